//! Promise: each process of a node, and the coordinator, may be killed under load. What needs it waits or fails within a
//! bound, the rest goes on, and nothing that was acknowledged is lost. (`crash.rs` does the same at random moments.)
//!
//! `FASTCACHE_FAULTS=long` makes the outages as long as the promise says (`make test-faults`).

use fastcache_tests::{
    Bytes, Coordinator, Node, Plane, Setup, close, drop_page_cache, serial, temp_dir, wait_until,
};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Memory of each plane.
const MEMORY_MAX: u64 = 768 << 20;
const FILE: usize = 300_000;

/// Readers of what is cached, and writers, at work on a node.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    /// Files whose close succeeded: name and seed.
    closed: Mutex<Vec<(String, u64)>>,
    read_errors: AtomicU64,
    write_errors: AtomicU64,
    reads: AtomicU64,
    slowest_read_ms: AtomicU64,
}

impl Load {
    fn read_on(&self, node: &Node, cached: &[(String, u64)]) {
        for (name, seed) in cached.iter().cycle() {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let started = Instant::now();
            match read_past_the_cache(node.at(name)) {
                Ok(got) => {
                    assert_eq!(Bytes::of(*seed).first_difference(0, &got), None, "{name}");
                    self.reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    self.read_errors.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.slowest_read_ms.fetch_max(ms, Ordering::Relaxed);
        }
    }

    fn write_on(&self, node: &Node, writer: u64) {
        let mut n = writer << 32;
        while !self.is_over.load(Ordering::Relaxed) {
            n += 1;
            let name = format!("w{n:x}");
            match write_and_close(node.at(&name), &Bytes::of(n).range(0, FILE)) {
                Ok(()) => self.closed.lock().expect("lock").push((name, n)),
                Err(_) => {
                    self.write_errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Writes a file; an error of `close` counts.
fn write_and_close(path: PathBuf, bytes: &[u8]) -> io::Result<()> {
    let file = std::fs::File::create(path)?;
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
    close(file)
}

/// Reads with O_DIRECT, so that the kernel's pages do not answer.
fn read_past_the_cache(path: PathBuf) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut got = vec![0; FILE.next_multiple_of(4096) + 4096];
    let skip = got.as_ptr().align_offset(4096);
    let mut n = 0;
    while n < FILE {
        let room = FILE.next_multiple_of(4096);
        let at = &mut got[skip + n..skip + room];
        let some = std::os::unix::fs::FileExt::read_at(&file, at, n as u64)?;
        if some == 0 {
            break;
        }
        n += some;
    }
    got.drain(..skip);
    got.truncate(n);
    Ok(got)
}

fn cached(node: &Node) -> Vec<(String, u64)> {
    let files: Vec<(String, u64)> = (0..12u64).map(|n| (format!("c{n}"), n)).collect();
    for (name, seed) in &files {
        std::fs::write(node.at(name), Bytes::of(*seed).range(0, FILE)).expect("write");
    }
    files
}

/// Keeps a node busy while `hurt` does something to it; then compares everything that was closed.
fn under_load(node: &Node, hurt: impl FnOnce(&Load)) -> Load {
    let files = cached(node);
    let load = Load::default();
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| scope.spawn(|| load.read_on(node, &files)));
        let writers = [1, 2].map(|w| {
            scope.spawn({
                let load = &load;
                move || load.write_on(node, w)
            })
        });
        wait_until("the load is under way", Duration::from_secs(20), || {
            load.closed.lock().expect("lock").len() > 20
        });
        hurt(&load);
        let before = load.closed.lock().expect("lock").len();
        node.wait_for_return();
        wait_until("writes go on", Duration::from_secs(60), || {
            load.closed.lock().expect("lock").len() > before + 20
        });
        load.is_over.store(true, Ordering::Relaxed);
        for thread in readers {
            thread.join().expect("a reader");
        }
        for thread in writers {
            thread.join().expect("a writer");
        }
    });
    let closed = load.closed.lock().expect("lock").clone();
    let all = files.iter().chain(&closed);
    for is_cold in [false, true] {
        if is_cold {
            node.flush();
            node.evict();
        }
        drop_page_cache();
        for (name, seed) in all.clone() {
            let got = std::fs::read(node.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(got.len(), FILE, "{name}");
            assert_eq!(Bytes::of(*seed).first_difference(0, &got), None, "{name}");
        }
    }
    println!(
        "{} files closed, {} reads (slowest {} ms), errors: {} reads, {} writes",
        closed.len(),
        load.reads.load(Ordering::Relaxed),
        load.slowest_read_ms.load(Ordering::Relaxed),
        load.read_errors.load(Ordering::Relaxed),
        load.write_errors.load(Ordering::Relaxed),
    );
    for plane in [Plane::Data, Plane::Agent] {
        let peak = node.peak_memory(plane);
        println!("{plane:?}: {} MiB at most", peak >> 20);
        assert!(peak < MEMORY_MAX, "{plane:?} took {peak} bytes");
    }
    load
}

fn node() -> Node {
    Node::start(Setup {
        capacity: Some("1GiB"),
        ..Setup::default()
    })
}

#[test]
fn agent_killed_under_load() {
    let _one = serial();
    let node = node();
    let load = under_load(&node, |_| {
        for _ in 0..3 {
            assert!(node.kill(Plane::Agent));
            node.wait_for_return();
        }
    });
    // Cached reads do not need the agent, and what does waits for the next one.
    assert_eq!(load.read_errors.load(Ordering::Relaxed), 0);
    assert_eq!(load.write_errors.load(Ordering::Relaxed), 0);
}

#[test]
fn data_plane_killed_under_load() {
    let _one = serial();
    let node = node();
    under_load(&node, |_| {
        for _ in 0..3 {
            assert!(node.kill(Plane::Data));
            node.wait_for_return();
        }
    });
}

#[test]
fn coordinator_killed_for_a_while() {
    let _one = serial();
    let is_long = std::env::var("FASTCACHE_FAULTS").as_deref() == Ok("long");
    let outage = Duration::from_secs(if is_long { 30 } else { 5 });
    let bucket = temp_dir("bucket");
    let (mut coordinator, flags) = Coordinator::start_with_folder(bucket.path());
    let node = Node::start(Setup {
        capacity: Some("1GiB"),
        flags,
        ..Setup::default()
    });
    let load = under_load(&node, |load| {
        coordinator.kill();
        let (started, reads) = (Instant::now(), load.reads.load(Ordering::Relaxed));
        let errors = load.read_errors.load(Ordering::Relaxed);
        // Leased metadata and cached data: stat and read go on without it.
        wait_until("reads go on", Duration::from_secs(30), || {
            load.reads.load(Ordering::Relaxed) > reads + 20
        });
        assert_eq!(load.read_errors.load(Ordering::Relaxed), errors);
        assert_eq!(
            std::fs::metadata(node.at("c3")).expect("stat").len(),
            FILE as u64
        );
        std::thread::sleep(outage.saturating_sub(started.elapsed()));
        coordinator.start();
    });
    // Changes waited for it.
    assert_eq!(load.write_errors.load(Ordering::Relaxed), 0);
    if is_long {
        // For good: a change fails within a bound.
        coordinator.kill();
        let started = Instant::now();
        let error = std::fs::create_dir(node.at("never")).expect_err("nobody can make it");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        assert!(started.elapsed() < Duration::from_secs(120));
        let name = node.at("c5");
        assert_eq!(read_past_the_cache(name).expect("read").len(), FILE);
        coordinator.start();
        node.wait_for_return();
    }
    node.down();
}

/// Whether this kernel can be told to ask again for every name (Linux 6.16).
fn takes_inc_epoch() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().ok());
    let version = [numbers.next().flatten(), numbers.next().flatten()];
    version >= [Some(6), Some(16)]
}

/// The agent may have ended between a change that came by REST and telling the kernel of it.
#[test]
fn after_the_agent_was_killed_the_kernel_asks_again_for_what_it_knew() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(node.at("known"), b"known").expect("write");
    let requests_of_a_look = || {
        let before = node.fuse_requests();
        let found = ["known", "absent"].map(|name| std::fs::metadata(node.at(name)).is_ok());
        assert_eq!(found, [true, false]);
        node.fuse_requests() - before
    };
    requests_of_a_look();
    if takes_inc_epoch() {
        assert_eq!(requests_of_a_look(), 0, "known for the lease");
    }
    assert!(node.kill(Plane::Agent));
    node.wait_for_return();
    let limit = Duration::from_secs(10);
    wait_until("the kernel asks for both", limit, || {
        requests_of_a_look() >= 2
    });
    if takes_inc_epoch() {
        assert_eq!(requests_of_a_look(), 0, "known again");
    }
}
