//! Promise: whatever the object store does (gone for a while or for good, slow, half-dead, wrong or cut answers, errors)
//! cached data is read and written as ever, nothing that was acknowledged is lost, wrong bytes are never returned, what
//! cannot be had fails with an error within a bound and works again as soon as the store does, and memory stays inside
//! its budget.
//!
//! Short outages here; `FASTCACHE_FAULTS=long` makes them a minute (`make test-faults`).

use fastcache_tests::{
    Bytes, CHUNK, Cloud, Fault, FaultProxy, Files, Node, Plane, S3, SeenRequest, Setup, serial,
    wait_until, write_and_close,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A read that no tier can answer fails within this: the agent's deadline for a fetch is 40 s.
const MISS_BOUND: Duration = Duration::from_secs(60);
/// A read of what is cached, and a write, take at most this, on a busy machine with two cores.
const CACHED_BOUND: Duration = Duration::from_secs(5);
/// Memory of each plane: buffers, arena (160 MiB, touched), checksums, and what a process of this kind needs.
const MEMORY_MAX: u64 = 768 << 20;

/// How long an outage is.
fn outage() -> Duration {
    match std::env::var("FASTCACHE_FAULTS").as_deref() {
        Ok("long") => Duration::from_secs(60),
        _ => Duration::from_secs(8),
    }
}

/// A node whose cloud is an S3 server behind a proxy.
struct Behind {
    node: Node,
    proxy: FaultProxy,
}

impl Behind {
    fn start() -> Behind {
        let s3 = S3::start();
        let proxy = FaultProxy::start(s3.port());
        let node = Node::start(Setup {
            cloud: Cloud::S3(s3.through(&proxy)),
            capacity: Some("512MiB"),
            ..Setup::default()
        });
        Behind { node, proxy }
    }

    fn write(&self, what: &str, count: u64) -> Files {
        self.node.write_files(what, count, CACHED_BOUND)
    }

    /// Reads all of it, past the page cache, and compares.
    fn expect(&self, files: &Files, bound: Duration) {
        self.node.expect_files(files, bound);
    }

    /// A read that cannot be answered: EIO, in time, and never bytes.
    fn expect_eio(&self, name: &str) -> Duration {
        let started = Instant::now();
        let error = std::fs::read(self.node.at(name)).expect_err("nobody has these bytes");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
        assert!(
            started.elapsed() < MISS_BOUND,
            "{name}: {:?}",
            started.elapsed()
        );
        started.elapsed()
    }

    /// Files that are in the cloud alone.
    fn cold(&self, what: &str, count: u64) -> Files {
        let files = self.write(what, count);
        self.node.flush();
        self.node.evict();
        files
    }

    fn finish(self, what: &str) {
        for plane in [Plane::Data, Plane::Agent] {
            let peak = self.node.peak_memory(plane);
            println!("{what}: {plane:?} {} MiB at most", peak >> 20);
            assert!(peak < MEMORY_MAX, "{plane:?} took {peak} bytes");
        }
        self.proxy.set(Fault::Pass);
        self.node.down();
    }
}

fn is_chunk_get(r: &SeenRequest) -> bool {
    r.is_get() && r.path.contains("/chunks/")
}

/// What holds while the object store cannot be used: everything that is cached, and writes.
fn is_as_ever(b: &Behind, cached: &Files, what: &str) -> Files {
    b.expect(cached, CACHED_BOUND);
    let new = b.write(what, 8);
    b.expect(&new, CACHED_BOUND);
    new
}

/// An outage of this kind, and its end.
fn outage_of(fault: Fault, what: &str) {
    let _one = serial();
    let b = Behind::start();
    let cold = b.cold("cold", 2);
    let cached = b.write("cached", 8);
    b.node.flush();
    b.expect(&cached, CACHED_BOUND);
    let objects = b.node.data_objects().len();

    b.proxy.set(fault);
    let started = Instant::now();
    let mut new = is_as_ever(&b, &cached, "during");
    let slowest = b.expect_eio(&cold[0].0);
    println!("{what}: a miss failed after {slowest:?}");
    while started.elapsed() < outage() {
        // Half of the store: what happens at the dirty cap is a test of its own.
        if new.len() < 96 {
            let more = is_as_ever(&b, &cached, &format!("during{}", new.len()));
            new.extend(more);
        } else {
            b.expect(&cached, CACHED_BOUND);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(b.node.stat("dirty_chunks") > 0);

    b.proxy.set(Fault::Pass);
    b.node.flush();
    assert!(b.node.data_objects().len() > objects);
    b.node.evict();
    for files in [&cold, &cached, &new] {
        b.expect(files, MISS_BOUND);
    }
    b.finish(what);
}

#[test]
fn cloud_gone_for_a_while() {
    outage_of(Fault::Refuse, "gone");
}

#[test]
fn cloud_half_dead_accepts_and_never_answers() {
    outage_of(Fault::BlackHole, "half-dead");
}

#[test]
fn cloud_gone_for_good() {
    let _one = serial();
    let b = Behind::start();
    let cached = b.write("cached", 4);
    b.node.flush();
    b.proxy.set(Fault::Refuse);
    let new = is_as_ever(&b, &cached, "new");
    // `flush --wait` can be given up; a stop ends in its time and says what is left.
    let said = b.node.ctl(&["down", "--stop-timeout", "3"]);
    assert!(said.contains("not in the cloud yet"), "{said}");
    // The node starts without the cloud, and has everything.
    b.node.up();
    b.expect(&cached, CACHED_BOUND);
    b.expect(&new, CACHED_BOUND);
    // The cloud is back, against all expectations.
    b.proxy.set(Fault::Pass);
    b.node.flush();
    b.node.evict();
    b.expect(&new, MISS_BOUND);
    b.finish("gone for good");
}

#[test]
fn cloud_slow() {
    let _one = serial();
    let b = Behind::start();
    let cold = b.cold("cold", 4);
    let cached = b.write("cached", 4);
    b.node.flush();
    b.proxy.set(Fault::Slow {
        bytes_per_second: 2 << 20,
    });
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Slow misses hold nobody else up.
        scope.spawn(|| {
            b.expect(&cold, MISS_BOUND);
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) {
            for (name, seed, len) in &cached {
                let started = Instant::now();
                let got = std::fs::read(b.node.at(name)).expect("read");
                assert_eq!(got.len(), *len);
                assert_eq!(Bytes::of(*seed).first_difference(0, &got), None);
                assert!(started.elapsed() < CACHED_BOUND);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    b.proxy.set(Fault::Delay {
        delay: Duration::from_secs(1),
        share: 1.0,
    });
    let new = is_as_ever(&b, &cached, "new");
    b.node.flush();
    b.node.evict();
    b.expect(&new[..4].to_vec(), MISS_BOUND);
    b.finish("slow");
}

/// Answers that are wrong: an error, never bytes; and right again afterwards.
fn wrong_answers(faults: &[(Fault, &str)]) {
    let _one = serial();
    let b = Behind::start();
    for (fault, what) in faults {
        let cold = b.cold(what, 3);
        b.proxy.set_where(fault.clone(), is_chunk_get);
        for (name, _, _) in &cold {
            b.expect_eio(name);
        }
        let agent = std::fs::read_to_string(b.node.dir().join("log/agent.log")).expect("log");
        assert!(agent.contains("chunks/"), "the log names no object");
        b.proxy.set(Fault::Pass);
        // No error is remembered, but for the moment in which the kernel asks again, page by page.
        wait_until("the error is forgotten", Duration::from_secs(2), || {
            cold.iter()
                .all(|(name, _, _)| std::fs::read(b.node.at(name)).is_ok())
        });
        b.expect(&cold, MISS_BOUND);
    }
    b.finish("wrong answers");
}

#[test]
fn cloud_returns_wrong_bytes() {
    wrong_answers(&[(Fault::Corrupt, "corrupt")]);
}

#[test]
fn cloud_cuts_bodies_short() {
    wrong_answers(&[(Fault::Shorten, "shorten"), (Fault::Truncate, "truncate")]);
}

#[test]
fn cloud_fails_three_requests_of_ten() {
    let _one = serial();
    let b = Behind::start();
    for (code, what) in [(500, "errors"), (503, "slowdown")] {
        b.proxy.set(Fault::Status {
            code,
            share: 0.3,
            retry_after_s: None,
        });
        let files = b.write(what, 16);
        b.node.flush();
        b.node.evict();
        b.expect(&files, MISS_BOUND);
        assert!(b.proxy.hurt() > 0);
    }
    b.proxy.set(Fault::Reset { share: 0.3 });
    let files = b.write("reset", 16);
    b.node.flush();
    b.node.evict();
    b.expect(&files, MISS_BOUND);
    // The answer to an upload is lost: it is done again, and there is one object a chunk.
    b.proxy.set_where(Fault::LoseAnswer, {
        let calls = std::sync::atomic::AtomicU64::new(0);
        move |r| r.is_put() && calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(3)
    });
    let files = b.write("lost-answers", 8);
    b.node.flush();
    b.proxy.set(Fault::Pass);
    b.node.evict();
    b.expect(&files, MISS_BOUND);
    b.finish("errors");
}

/// A node with room for a dozen large files.
fn small() -> Behind {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let node = Node::start(Setup {
        cloud: Cloud::S3(s3.through(&proxy)),
        capacity: Some("64MiB"),
        ..Setup::default()
    });
    Behind { node, proxy }
}

#[test]
fn cloud_gone_while_the_store_is_full_of_dirty_data() {
    let _one = serial();
    let b = small();
    let kept = b.cold("kept", 2);
    b.proxy.set(Fault::Refuse);
    // Three times what the store holds: the writer slows down, and goes on when the cloud is back.
    let started = Instant::now();
    let files: Files = (0..48).map(|n| (format!("big-{n}"), n, CHUNK)).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            files.iter().try_for_each(|(name, seed, len)| {
                write_and_close(b.node.at(name), &Bytes::of(*seed).range(0, *len))
            })
        });
        std::thread::sleep(outage().min(Duration::from_secs(20)));
        assert!(!writer.is_finished(), "the store took more than it has");
        assert!(b.node.stat("write_stalls") > 0);
        let (used, capacity) = (b.node.stat("used_bytes"), b.node.stat("capacity_bytes"));
        assert!(used <= capacity);
        b.proxy.set(Fault::Pass);
        writer.join().expect("the writer").expect("no error");
    });
    println!("full: the writer took {:?}", started.elapsed());
    b.node.flush();
    b.expect(&files, MISS_BOUND);
    b.expect(&kept, MISS_BOUND);
    b.finish("full");
}

/// A writer of a full store waits this long while no upload succeeds, and is told ENOSPC then.
const STALL_MAX: Duration = Duration::from_secs(60);

#[test]
#[ignore = "waits for the bound of a minute: make test-faults"]
fn cloud_gone_until_a_full_store_says_enospc_loses_nothing() {
    let _one = serial();
    let b = small();
    b.proxy.set(Fault::Refuse);
    let big = |n: u64| (format!("big-{n}"), n, CHUNK);
    let put = |(name, seed, len): &(String, u64, usize)| {
        write_and_close(b.node.at(name), &Bytes::of(*seed).range(0, *len))
    };
    // What was acknowledged, with the time of the last.
    let closed = std::sync::Mutex::new((Files::new(), Instant::now()));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..64 {
                put(&big(n)).map_err(|e| (e, Instant::now()))?;
                let mut closed = closed.lock().expect("lock");
                closed.0.push(big(n));
                closed.1 = Instant::now();
            }
            Ok(())
        });
        wait_until("the writer waits", CACHED_BOUND, || {
            b.node.stat("write_stalls") > 0
        });
        // Reads, and names, do not wait with it.
        while !writer.is_finished() {
            let there = closed.lock().expect("lock").0.clone();
            b.expect(&there, CACHED_BOUND);
            let started = Instant::now();
            std::fs::create_dir(b.node.at("dir")).expect("mkdir");
            std::fs::remove_dir(b.node.at("dir")).expect("rmdir");
            assert!(started.elapsed() < CACHED_BOUND);
            std::thread::sleep(Duration::from_secs(1));
        }
        let (error, at) = writer.join().expect("the writer").expect_err("no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        let waited = at.duration_since(closed.lock().expect("lock").1);
        println!("ENOSPC after {waited:?}");
        assert!(waited >= STALL_MAX && waited < STALL_MAX + MISS_BOUND);
    });
    let (mut closed, _) = closed.into_inner().expect("lock");
    assert!(closed.len() >= 6, "only {} files", closed.len());
    let (dirty, capacity) = (b.node.stat("dirty_bytes"), b.node.stat("capacity_bytes"));
    assert!(dirty > capacity / 2 && b.node.stat("used_bytes") <= capacity);
    assert!(b.node.json(&["status"]).to_string().contains("dirty_much"));
    b.expect(&closed, CACHED_BOUND);
    // A removal makes room, still without a cloud.
    for (name, _, _) in closed.drain(..3) {
        std::fs::remove_file(b.node.at(&name)).expect("remove");
    }
    put(&big(100)).expect("there is room again");
    closed.push(big(100));
    b.expect(&closed, CACHED_BOUND);
    // The cloud is back: everything drains, and there is room for more than the store has.
    b.proxy.set(Fault::Pass);
    for n in 200..220 {
        put(&big(n)).expect("uploads make room");
        closed.push(big(n));
    }
    b.node.flush();
    assert_eq!(b.node.stat("dirty_chunks"), 0);
    for (name, _, _) in &closed {
        assert_eq!(b.node.state_xattr(name), "persisted", "{name}");
    }
    b.node.evict();
    b.expect(&closed, MISS_BOUND);
    b.finish("ENOSPC");
}
