//! Promise: the table of faults (docs/semantics.md), where several nodes are concerned. A node that stands, is cut off, is
//! killed or has a bad disk costs the others time within a bound, never an error or a wrong byte; and when everything is
//! killed at once, what was acknowledged is there.
//!
//! `FASTCACHE_FAULTS=long` makes the outages as long as the promise says (`make test-cluster`).

use fastcache_tests::{
    Busy, Bytes, Cable, Cluster, Coordinator, Http, Node, Plane, Setup, drop_page_cache,
    have_own_files, on_an_island, seed, serial, temp_dir, wait_until, write_and_close,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest a read may take whose first source stands: a chunk's first home has a second to fetch it for everybody, and
/// two cores run four nodes.
const HEDGED: Duration = Duration::from_secs(4);
/// Longest a read may take that needs nobody else.
const CACHED: Duration = Duration::from_secs(2);
/// More than a lease and what follows take on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);
/// Of the files that one node writes and others read: less than a chunk, one, and more.
const LENGTHS: [usize; 3] = [10_000, 300_000, (4 << 20) + 5_000];

fn is_long() -> bool {
    std::env::var("FASTCACHE_FAULTS").as_deref() == Ok("long")
}

fn three(cluster: &Cluster) -> [&Node; 3] {
    let [a, b, c] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    [a, b, c]
}

/// A file's name, the seed of its bytes, and how many.
type Named = (String, u64, usize);

/// Writes files on a node, and has them in the bucket.
fn written(node: &Node, what: &str, count: u64) -> Vec<Named> {
    let lengths = LENGTHS.into_iter().cycle();
    let files = (0..count).zip(lengths);
    let files: Vec<Named> = files
        .map(|(n, len)| (format!("{what}{n}"), n + 1000 * what.len() as u64, len))
        .collect();
    for (name, seed, len) in &files {
        write_and_close(node.at(name), &Bytes::of(*seed).range(0, *len)).expect("write");
    }
    node.flush();
    files
}

/// Reads them, each within a bound.
#[track_caller]
fn expect_within(node: &Node, files: &[Named], bound: Duration) {
    for (name, seed, len) in files {
        let since = Instant::now();
        let got = fs::read(node.at(name));
        let took = since.elapsed();
        let got = got.unwrap_or_else(|e| panic!("{name}: {e} after {took:?}\n{}", node.logs()));
        let differs = Bytes::of(*seed).first_difference(0, &got);
        assert_eq!((got.len(), differs), (*len, None), "{name}");
        assert!(took < bound, "{name}: read in {took:?}");
    }
}

/// A node stands. The others read what they have, and what it has; so does it when it goes on.
fn a_peer_that_is_slow_or_gone(plane: Plane) {
    let _one = serial();
    let cluster = Cluster::start(3, &[]);
    let [a, b, c] = three(&cluster);
    let held = written(b, "held", 6);
    expect_within(c, &held, SOON);
    let there = written(a, "there", 9);
    for node in [a, b, c] {
        // Its layout is known, not its bytes.
        for (name, _, _) in &there {
            fs::metadata(node.at(name)).expect("stat");
        }
    }
    for node in [b, c] {
        wait_until("nothing is kept for others any more", SOON, || {
            node.stat("held_chunks") == 0
        });
        node.evict();
    }
    // They have connections to it, and know how long it takes.
    let (used, unused) = there.split_at(3);
    expect_within(b, used, SOON);
    expect_within(c, used, SOON);
    expect_within(b, &held, SOON);
    expect_within(c, &held, SOON);
    if plane == Plane::Agent {
        // It is asked to fetch them for everybody, and cannot.
        a.evict();
    }
    drop_page_cache();
    let stopped = a.stop(plane);
    std::thread::scope(|scope| {
        for node in [b, c] {
            let held = &held;
            scope.spawn(move || {
                expect_within(node, held, CACHED);
                expect_within(node, unused, HEDGED);
            });
        }
    });
    // What one of them writes, the other reads.
    let since = Instant::now();
    let new = written(b, "new", 3);
    expect_within(c, &new, HEDGED);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    drop(stopped);
    expect_within(a, &new, SOON);
    expect_within(a, &held, SOON);
    let back = written(a, "back", 3);
    expect_within(c, &back, HEDGED);
}

#[test]
fn peer_slow_or_gone_its_data_plane_stands() {
    a_peer_that_is_slow_or_gone(Plane::Data);
}

#[test]
fn peer_slow_or_gone_its_agent_stands() {
    a_peer_that_is_slow_or_gone(Plane::Agent);
}

#[test]
fn coordinator_killed_under_the_load_of_three_nodes() {
    let _one = serial();
    let outage = Duration::from_secs(if is_long() { 30 } else { 5 });
    // Renewed each quarter, now and then one later on a busy machine: what is cached can be read all the time that the
    // coordinator is away.
    let lease = outage * if is_long() { 2 } else { 3 };
    let mut cluster = Cluster::start(3, &["--lease", &lease.as_secs().to_string()]);
    let (nodes, coordinator) = (&cluster.nodes, &mut cluster.coordinator);
    let coordinator = Mutex::new(coordinator);
    let busy = Busy::during(nodes, |busy| {
        let mut coordinator = coordinator.lock().expect("lock");
        let reads = |n: usize| busy.seen[n].cached_reads.load(Ordering::Relaxed);
        // The first heartbeat comes before the data plane was heard of, and renews nothing: load until the second.
        std::thread::sleep(lease * 5 / 8);
        coordinator.kill();
        let since = Instant::now();
        let mut before: Vec<u64> = (0..3).map(reads).collect();
        while since.elapsed() < outage {
            std::thread::sleep(outage / 5);
            for (n, before) in before.iter_mut().enumerate() {
                let now = reads(n);
                assert!(now > *before + 3, "node {n} reads what it has cached");
                *before = now;
            }
        }
        coordinator.start();
        // It does not know what it granted before: changes wait until that is over.
        let so_far = busy.count();
        wait_until("changes are made again", lease + SOON, || {
            busy.count() > so_far
        });
    });
    let (reads, writes) = busy.errors();
    assert_eq!(reads, Vec::<String>::new());
    if !is_long() {
        // They waited.
        assert_eq!(writes, Vec::<String>::new());
    }
    for seen in &busy.seen {
        let slowest = seen.slowest_cached_ms.load(Ordering::Relaxed);
        assert!(u128::from(slowest) < CACHED.as_millis(), "{slowest} ms");
    }
}

/// What was acknowledged and not on the coordinator's stable storage is there again: nodes had kept it.
#[test]
fn power_cut_of_the_coordinators_machine_loses_no_name() {
    const EACH: u64 = 40;
    let _one = serial();
    // It puts nothing on stable storage by itself, as in the last 50 ms before any power cut.
    let mut cluster = Cluster::start(2, &["--lease", "8", "--log-sync-ms", "60000"]);
    let (nodes, coordinator) = (&cluster.nodes, &mut cluster.coordinator);
    let [a, b] = [&nodes[0], &nodes[1]];
    for name in ["renamed", "removed", "changed"] {
        write_and_close(a.at(name), &Bytes::of(1).range(0, 5_000)).expect("write");
    }
    let port = coordinator.port();
    let stats = |of: &str, what: &str| {
        let stats = Http::on(port).ask("GET", "/api/stats", &[], b"").json();
        stats[of][what].as_u64().expect("a number")
    };
    let positions = || {
        let of = |what| stats("namespace", what);
        (of("log_position"), of("synced_position"))
    };
    nodes.iter().for_each(Node::flush);
    wait_until("all of it is on stable storage", SOON, || {
        let (dir, before) = (File::open(a.mount()), positions());
        dir.and_then(|d| d.sync_all()).expect("fsync");
        std::thread::sleep(Duration::from_millis(300));
        before == positions() && before.0 == before.1
    });
    let before = coordinator.copy_state();
    let (_, stable) = positions();

    // Each needs what the other did.
    fs::create_dir(a.at("dir")).expect("mkdir");
    fs::create_dir(b.at("dir/sub")).expect("mkdir");
    fs::rename(a.at("dir"), a.at("moved")).expect("rename");
    fs::rename(b.at("renamed"), b.at("moved/sub/here")).expect("rename");
    fs::remove_file(a.at("removed")).expect("unlink");
    write_and_close(b.at("changed"), &Bytes::of(2).range(0, 9_000)).expect("write");
    for n in 0..EACH {
        for (node, at) in nodes.iter().zip(["a", "b"]) {
            let name = format!("moved/sub/{at}{n}");
            write_and_close(node.at(&name), &Bytes::of(n).range(0, 3_000)).expect("write");
        }
    }
    // One that the other node wrote last.
    write_and_close(a.at("moved/sub/b0"), &Bytes::of(77).range(0, 4_000)).expect("write");
    let (last, synced) = positions();
    assert_eq!(
        synced, stable,
        "nothing was put on stable storage meanwhile"
    );
    coordinator.kill();
    coordinator.lose_power(&before);
    coordinator.start();

    let mut expected: Vec<String> = (0..EACH)
        .flat_map(|n| [format!("a{n}"), format!("b{n}")])
        .chain(["here".to_owned()])
        .collect();
    expected.sort();
    let names = |node: &Node, dir: &str| {
        let listed = fs::read_dir(node.at(dir)).unwrap_or_else(|e| panic!("{dir}: {e}"));
        let name = |e: std::io::Result<fs::DirEntry>| e.map(|e| e.file_name());
        let names = listed.map(|e| name(e).expect("an entry").to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    for node in nodes {
        assert_eq!(names(node, "moved/sub"), expected, "{}", node.logs());
        assert_eq!(names(node, ""), ["changed", "moved"]);
        let contents = |name: &str, seed: u64, len: usize| {
            let got = fs::read(node.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let differs = Bytes::of(seed).first_difference(0, &got);
            assert_eq!((got.len(), differs), (len, None), "{name}");
        };
        for n in 0..EACH {
            contents(&format!("moved/sub/a{n}"), n, 3_000);
            if n > 0 {
                contents(&format!("moved/sub/b{n}"), n, 3_000);
            }
        }
        contents("moved/sub/b0", 77, 4_000);
        contents("moved/sub/here", 1, 5_000);
        contents("changed", 2, 9_000);
    }
    assert_eq!(stats("coordinator", "changes_lost"), 0);
    let restored = stats("coordinator", "changes_restored");
    assert!(
        restored >= 4 * EACH && restored <= last - stable,
        "{restored}"
    );
    // What comes then is as ever.
    for (node, at) in nodes.iter().zip(["a", "b"]) {
        write_and_close(node.at(at), &Bytes::of(5).range(0, 100)).expect("write");
    }
    assert_eq!(names(a, ""), ["a", "b", "changed", "moved"]);
    let (code, report) = a.verdict(&["fsck"]);
    assert_eq!(code, 0, "{report}");
}

#[test]
fn everything_killed_at_once_and_started_again() {
    let _one = serial();
    let mut cluster = Cluster::start(3, &["--lease", "4"]);
    let rounds = if is_long() { 10 } else { 1 };
    for round in 0..rounds {
        let (nodes, coordinator) = (&cluster.nodes, Mutex::new(&mut cluster.coordinator));
        // fsynced and never closed; what is written behind that is nobody's promise.
        let open = |n: usize| -> File {
            let mut options = OpenOptions::new();
            let options = options.create(true).write(true).truncate(true);
            options
                .open(nodes[n].at(&format!("open{n}")))
                .expect("open")
        };
        let bytes = Bytes::of(77 + round).range(0, 200_000);
        let synced: Vec<File> = (0..3).map(open).collect();
        for file in &synced {
            file.write_all_at(&bytes, 0).expect("write");
            file.sync_all().expect("fsync");
            file.write_all_at(b"more", 200_000).expect("write");
        }
        let busy = Busy::prepare(nodes);
        busy.run(|busy| {
            let so_far = busy.count();
            wait_until("more is written", SOON, || busy.count() > so_far + 60);
            for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
                for node in nodes {
                    assert!(node.kill(plane), "{plane:?}");
                }
                if plane == Plane::Supervisor {
                    coordinator.lock().expect("lock").kill();
                }
            }
        });
        drop(synced);
        coordinator.lock().expect("lock").start();
        std::thread::scope(|scope| {
            for node in nodes {
                scope.spawn(|| node.up());
            }
        });
        busy.expect_all();
        for node in nodes {
            for n in 0..3 {
                let got = fs::read(node.at(&format!("open{n}"))).expect("read");
                assert!(got.starts_with(&bytes), "open{n} was fsynced");
            }
            node.wait_for_return();
        }
    }
}

/// Reads a name on a node again and again.
struct Watcher<'w> {
    is_over: &'w AtomicBool,
    seen: Mutex<Vec<Look>>,
}

/// A read: when it began, and what it said.
struct Look {
    since: Instant,
    got: Result<Vec<u8>, String>,
}

/// Ends a watch also when the test panics.
struct Over<'w>(&'w AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Watcher<'_> {
    fn watch(&self, path: &std::path::Path) {
        have_own_files();
        while !self.is_over.load(Ordering::Relaxed) {
            let since = Instant::now();
            let got = fs::read(path).map_err(|e| e.to_string());
            self.seen.lock().expect("lock").push(Look { since, got });
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn partition_of_one_node() {
    let _one = serial();
    on_an_island(&[], || {
        const LEASE: Duration = Duration::from_secs(3);
        let cable = Cable::lay();
        let bucket = temp_dir("bucket");
        let folder = bucket.path().display().to_string();
        let cloud = ["--cloud-provider", "dir", "--cloud-dir", &folder];
        let lease = LEASE.as_secs().to_string();
        let flags = [&cloud[..], &["--lease", &lease]].concat();
        let coordinator = Coordinator::start_at(Cable::NEAR, &flags, &[]);
        let start = |host: &str| {
            let own = [
                format!("--coordinator={}", coordinator.address()),
                format!("--listen={host}:0"),
            ];
            let flags = cloud.iter().map(|f| (*f).to_owned()).chain(own);
            Node::start(Setup {
                capacity: Some("256MiB"),
                flags: flags.collect(),
                env: vec![
                    ("FASTCACHE_CLUSTER_TOKEN", "0".repeat(32)),
                    ("POD_IP", host.to_owned()),
                ],
                ..Setup::default()
            })
        };
        let (a, c) = (start(Cable::NEAR), start(Cable::NEAR));
        let far = cable.at_far_end(|| start(Cable::FAR));
        cut_off_and_back([&a, &c], &far, &cable, LEASE);
        // Its REST is at the other end.
        cable.at_far_end(|| far.down());
        drop((a, c));
    });
}

fn cut_off_and_back([a, c]: [&Node; 2], far: &Node, cable: &Cable, lease: Duration) {
    let near = written(a, "near", 6);
    expect_within(far, &near, SOON);
    expect_within(c, &near, SOON);
    fs::write(a.at("changes"), b"old").expect("write");
    for node in [a, c, far] {
        assert_eq!(fs::read(node.at("changes")).expect("read"), b"old");
    }
    fs::write(far.at("own"), b"of the far node").expect("write");
    let is_over = AtomicBool::new(false);
    let watcher = Watcher {
        is_over: &is_over,
        seen: Mutex::default(),
    };
    let changed = std::thread::scope(|scope| {
        let over = Over(&is_over);
        scope.spawn(|| watcher.watch(&far.at("changes")));
        wait_until("it reads", SOON, || {
            !watcher.seen.lock().expect("lock").is_empty()
        });
        cable.pull();
        // What the far node has cached is changed: that takes its lease, and no longer.
        let since = Instant::now();
        let done = fs::write(a.at("changes"), b"new");
        let (changed, took) = (Instant::now(), since.elapsed());
        // The others go on, with what it wrote, too.
        done.expect("a change");
        assert!(took < lease + SOON / 2, "{took:?}");
        assert_eq!(fs::read(c.at("changes")).expect("read"), b"new");
        expect_within(c, &near, CACHED);
        let since = Instant::now();
        let more = written(c, "more", 3);
        expect_within(a, &more, HEDGED);
        assert_eq!(fs::read(c.at("own")).expect("read"), b"of the far node");
        fs::rename(a.at("own"), a.at("renamed")).expect("rename");
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
        std::thread::sleep(lease);
        cable.plug_in();
        wait_until("the far node sees the change", SOON, || {
            let seen = watcher.seen.lock().expect("lock");
            seen.last()
                .is_some_and(|look| look.got.as_deref() == Ok(b"new"))
        });
        drop(over);
        changed
    });
    let seen = watcher.seen.lock().expect("lock");
    let mut old = 0;
    for Look { since, got } in &*seen {
        match got.as_deref() {
            Ok(b"old") => {
                assert!(*since < changed, "what was changed was read after that");
                old += 1;
            }
            // The file was cut off and not written again when it was read.
            Ok(b"new" | b"") | Err(_) => {}
            Ok(other) => panic!("{other:?}"),
        }
    }
    assert!(old > 0, "it never read what was there before");
    drop(seen);
    assert!(fs::metadata(far.at("own")).is_err());
    assert_eq!(
        fs::read(far.at("renamed")).expect("read"),
        b"of the far node"
    );
    expect_within(far, &near, SOON);
    fs::write(far.at("back"), b"back").expect("write");
    assert_eq!(fs::read(a.at("back")).expect("read"), b"back");
}

#[test]
fn a_node_that_comes_back_with_a_warm_cache_sees_what_was_changed() {
    let _one = serial();
    let cluster = Cluster::start(3, &["--lease", "3"]);
    let [a, b, c] = three(&cluster);
    let same = written(a, "same", 9);
    fs::create_dir(a.at("dir")).expect("mkdir");
    for name in ["rewritten", "renamed", "removed", "cut", "dir/within"] {
        write_and_close(a.at(name), &Bytes::of(1).range(0, 100_000)).expect("write");
    }
    let look = |node: &Node| {
        for name in ["rewritten", "renamed", "removed", "cut", "dir/within"] {
            assert_eq!(fs::read(node.at(name)).expect("read").len(), 100_000);
        }
        assert!(fs::metadata(node.at("absent")).is_err());
    };
    look(b);
    expect_within(b, &same, SOON);
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        assert!(b.kill(plane));
    }
    write_and_close(a.at("rewritten"), &Bytes::of(2).range(0, 100_000)).expect("write");
    let part = OpenOptions::new().write(true).open(c.at("dir/within"));
    part.expect("open")
        .write_all_at(b"in the middle", 50_000)
        .expect("write");
    fs::rename(c.at("renamed"), c.at("another")).expect("rename");
    fs::remove_file(a.at("removed")).expect("unlink");
    let cut = OpenOptions::new().write(true).open(a.at("cut"));
    cut.expect("open").set_len(10).expect("truncate");
    fs::write(c.at("absent"), b"there").expect("write");
    b.up();
    let got = fs::read(b.at("rewritten")).expect("read");
    assert_eq!(Bytes::of(2).first_difference(0, &got), None);
    let got = fs::read(b.at("dir/within")).expect("read");
    assert_eq!(&got[50_000..50_013], b"in the middle");
    assert_eq!(Bytes::of(1).first_difference(0, &got), Some(50_000));
    assert!(fs::metadata(b.at("renamed")).is_err());
    assert_eq!(fs::read(b.at("another")).expect("read").len(), 100_000);
    assert!(fs::metadata(b.at("removed")).is_err());
    let got = fs::read(b.at("cut")).expect("read");
    assert_eq!(
        (got.len(), Bytes::of(1).first_difference(0, &got)),
        (10, None)
    );
    assert_eq!(fs::read(b.at("absent")).expect("read"), b"there");
    // And what was not changed costs nothing.
    let came = || b.stat("peer_fetched_bytes") + b.stat("get_bytes");
    let before = came();
    expect_within(b, &same, SOON);
    assert_eq!(came(), before, "its cache is warm");
}

#[test]
fn nvme_read_error_of_a_copy_on_another_node() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    let files = written(a, "file", 9);
    wait_until("nothing is kept for others any more", SOON, || {
        b.stat("held_chunks") == 0
    });
    b.evict();
    // Nobody but the first node and the bucket has them: and it sends them as they are on its device.
    let noise = Bytes::of(99).range(0, 4096);
    for (name, seed, len) in &files {
        let block = Bytes::of(*seed).range((len / 2).next_multiple_of(4096) as u64 - 4096, 4096);
        let places = find_on_device(a, &block);
        assert!(!places.is_empty(), "{name} is not on the device");
        let device = OpenOptions::new().write(true).open(a.dir().join("nvme"));
        let device = device.expect("open");
        for at in places {
            device.write_all_at(&noise, at).expect("write");
        }
        device.sync_all().expect("sync");
    }
    drop_page_cache();
    expect_within(b, &files, SOON);
    let errors = a.stat("checksum_errors");
    assert!(errors >= files.len() as u64, "{errors} were counted");
    assert_eq!(b.stat("checksum_errors"), 0);
    // Mended there, too: the next one to read them has them as they were.
    expect_within(a, &files, SOON);
    b.evict();
    expect_within(b, &files, SOON);
}

/// Where a block is on a node's device, bytes: what was overwritten since may be there, too.
fn find_on_device(node: &Node, block: &[u8]) -> Vec<u64> {
    let device = File::open(node.dir().join("nvme")).expect("open");
    let len = device.metadata().expect("stat").len();
    let mut piece = vec![0; 1 << 20];
    let mut places = Vec::new();
    for at in (0..len).step_by(piece.len()) {
        let n = device.read_at(&mut piece, at).expect("read");
        let blocks = piece[..n].chunks_exact(4096).zip(0u64..);
        for (found, n) in blocks {
            if found == block {
                places.push(at + n * 4096);
            }
        }
    }
    places
}

/// What is done to a cluster under load.
#[derive(Clone, Copy, Debug)]
enum Hurt {
    Kill(usize, Plane),
    Stop(usize, Plane),
    KillCoordinator,
}

impl Hurt {
    fn random(rng: &mut StdRng) -> Hurt {
        let node = rng.random_range(0..3);
        let plane = match rng.random_bool(0.5) {
            true => Plane::Agent,
            false => Plane::Data,
        };
        match rng.random_range(0..5) {
            0 | 1 => Hurt::Kill(node, plane),
            2 | 3 => Hurt::Stop(node, plane),
            _ => Hurt::KillCoordinator,
        }
    }
}

/// Any process of three nodes, and the coordinator, killed or standing for up to two leases, two things at a time.
#[test]
fn anything_killed_or_standing_under_the_load_of_three_nodes() {
    const LEASE: Duration = Duration::from_secs(3);
    let _one = serial();
    let seed = seed("FASTCACHE_CLUSTER_SEED", "FASTCACHE_FAULTS");
    println!("FASTCACHE_CLUSTER_SEED={seed}");
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3, &["--lease", &LEASE.as_secs().to_string()]);
    let (nodes, coordinator) = (&cluster.nodes, Mutex::new(&mut cluster.coordinator));
    let mut is_killed = [false; 3];
    let rounds = if is_long() { 60 } else { 3 };
    let busy = Busy::during(nodes, |busy| {
        for round in 0..rounds {
            let so_far = busy.count();
            let hurts = [Hurt::random(rng), Hurt::random(rng)];
            let pause = LEASE.mul_f64(rng.random_range(0.1..2.0));
            println!("round {round}: {hurts:?}, {pause:?}");
            let mut stopped = Vec::new();
            for hurt in hurts {
                match hurt {
                    Hurt::Kill(node, plane) => {
                        is_killed[node] |= plane == Plane::Data;
                        nodes[node].kill(plane);
                    }
                    // It may be the one that was just killed.
                    Hurt::Stop(node, plane) if nodes[node].pid(plane).is_none() => {}
                    Hurt::Stop(node, plane) => stopped.push(nodes[node].stop(plane)),
                    Hurt::KillCoordinator => coordinator.lock().expect("lock").kill(),
                }
            }
            std::thread::sleep(pause);
            drop(stopped);
            let mut coordinator = coordinator.lock().expect("lock");
            if coordinator.pid() == 0 {
                coordinator.start();
            }
            for node in nodes {
                node.wait_for_return();
            }
            wait_until("the load goes on", SOON, || busy.count() > so_far + 15);
        }
    });
    for (node, seen) in busy.seen.iter().enumerate() {
        let errors = [&seen.read_errors, &seen.write_errors];
        let errors = errors.map(|e| e.lock().expect("lock").clone()).concat();
        assert!(is_killed[node] || errors.is_empty(), "{node}: {errors:?}");
        assert_eq!(nodes[node].stat("checksum_errors"), 0);
    }
}

/// While a data plane tells the kernel to drop a page that is being read, it is killed: nobody answers that read any more.
#[test]
fn a_data_plane_that_is_killed_while_the_kernel_waits_for_it_comes_back() {
    let _one = serial();
    for planes in [
        &[Plane::Data][..],
        &[Plane::Supervisor, Plane::Agent, Plane::Data],
    ] {
        let cluster = Cluster::start_apart(3, &["--lease", "3"]);
        let [a, b, c] = three(&cluster);
        fs::write(a.at("other"), b"other").expect("write");
        assert_eq!(fs::read(b.at("other")).expect("read"), b"other");
        write_and_close(a.at("file"), &Bytes::of(1).range(0, 100_000)).expect("write");
        // It is on that node alone: whoever reads it elsewhere waits.
        let stopped = a.stop(Plane::Agent);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                have_own_files();
                fs::read(b.at("file"))
            });
            std::thread::sleep(Duration::from_millis(500));
            assert!(!reader.is_finished(), "the read waits");
            scope.spawn(|| {
                let changed = fs::set_permissions(c.at("file"), fs::Permissions::from_mode(0o600));
                changed.expect("chmod");
            });
            std::thread::sleep(Duration::from_secs(1));
            for plane in planes {
                assert!(b.kill(*plane), "{plane:?}");
            }
            let since = Instant::now();
            if planes.contains(&Plane::Supervisor) {
                b.up();
            }
            b.wait_for_return();
            let took = since.elapsed();
            assert!(took < SOON, "{planes:?}: {took:?}");
            reader
                .join()
                .expect("a reader")
                .expect_err("its mount ended");
            drop(stopped);
        });
        assert_eq!(fs::read(b.at("other")).expect("read"), b"other");
        expect_within(b, &[("file".to_owned(), 1, 100_000)], SOON);
    }
}

#[test]
fn nodes_restarted_one_after_the_other_under_load() {
    let _one = serial();
    let cluster = Cluster::start(3, &["--lease", "4"]);
    let rounds = if is_long() { 10 } else { 1 };
    let busy = Busy::during(&cluster.nodes, |busy| {
        for round in 0..rounds {
            for n in 0..3 {
                let so_far = busy.count();
                busy.without(n, |node| {
                    // In order, and not.
                    if (round + n) % 3 == 2 {
                        for plane in [Plane::Supervisor, Plane::Data, Plane::Agent] {
                            assert!(node.kill(plane));
                        }
                    } else {
                        node.down();
                    }
                    node.up();
                });
                wait_until("the load goes on", SOON, || busy.count() > so_far + 30);
            }
        }
    });
    assert_eq!(busy.errors(), (Vec::new(), Vec::new()));
}
