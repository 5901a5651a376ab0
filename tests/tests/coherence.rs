//! Promise P4: what one node changes, the others see: names and attributes when the system call has returned, contents when
//! `close` or `fsync` has.
//!
//! Several nodes of one coordinator on this machine, each with a mount of its own.

use fastcache_tests::{
    Bytes, Cluster, Http, Mapping, Node, Plane, close, number, serial, wait_until,
};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Length of a lease where a test waits for one to end, seconds.
const LEASE: u64 = 3;
/// More than a lease and what follows take on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// A cluster of `count` nodes with short leases.
fn short_leases(count: usize) -> Cluster {
    let lease = LEASE.to_string();
    Cluster::start(count, &["--lease", &lease])
}

/// A file, to be read and written.
fn both(node: &Node, name: &str) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(node.at(name));
    file.expect("open")
}

/// Names in a folder.
fn listed(path: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut names: Vec<String> = entries
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_change_of_names_is_seen_by_the_other_node_whatever_it_had_cached() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    for round in 0..20 {
        let dir = format!("d{round}");
        let at = |name: &str| format!("{dir}/{name}");
        fs::create_dir(a.at(&dir)).expect("mkdir");
        fs::write(a.at(&at("old")), b"old").expect("write");
        // The other node has cached: the listing, an absent name, entries and attributes.
        assert_eq!(listed(b.at(&dir)), ["old"]);
        let absent = fs::metadata(b.at(&at("new"))).expect_err("absent");
        assert_eq!(absent.kind(), ErrorKind::NotFound);
        let mode = |n: &str| fs::metadata(b.at(&at(n))).map(|m| m.mode() & 0o777);
        assert_eq!(mode("old").expect("stat"), 0o644);

        fs::write(a.at(&at("new")), b"new").expect("write");
        assert_eq!(mode("new").expect("a new name"), 0o644);
        assert_eq!(listed(b.at(&dir)), ["new", "old"]);
        fs::set_permissions(a.at(&at("old")), fs::Permissions::from_mode(0o600)).expect("chmod");
        assert_eq!(mode("old").expect("stat"), 0o600);
        fs::rename(a.at(&at("old")), a.at(&at("moved"))).expect("rename");
        let gone = fs::metadata(b.at(&at("old"))).expect_err("moved away");
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        assert_eq!(mode("moved").expect("stat"), 0o600);
        fs::hard_link(a.at(&at("moved")), a.at(&at("linked"))).expect("link");
        assert_eq!(fs::metadata(b.at(&at("moved"))).expect("stat").nlink(), 2);
        assert_eq!(listed(b.at(&dir)), ["linked", "moved", "new"]);
        fs::remove_file(a.at(&at("moved"))).expect("unlink");
        assert_eq!(fs::metadata(b.at(&at("linked"))).expect("stat").nlink(), 1);
        fs::create_dir(a.at(&at("sub"))).expect("mkdir");
        assert_eq!(fs::metadata(b.at(&dir)).expect("stat").nlink(), 3);
        fs::remove_dir(a.at(&at("sub"))).expect("rmdir");
        assert_eq!(listed(b.at(&dir)), ["linked", "new"]);
        // And the other way around: what was revoked comes back.
        fs::remove_file(b.at(&at("new"))).expect("unlink");
        fs::remove_file(b.at(&at("linked"))).expect("unlink");
        assert_eq!(listed(a.at(&dir)), Vec::<String>::new());
        fs::remove_dir(b.at(&dir)).expect("rmdir");
        let gone = fs::metadata(a.at(&dir)).expect_err("removed");
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }
}

#[test]
fn contents_are_seen_when_they_are_closed_or_fsynced() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::write(a.at("file"), vec![b'0'; 10_000]).expect("write");
    assert_eq!(fs::read(b.at("file")).expect("read"), vec![b'0'; 10_000]);
    // Open and mapped before, on the other node.
    let mut open = File::open(b.at("file")).expect("open");
    let mapped = Mapping::shared(both(b, "file"), 10_000);
    assert_eq!(mapped.read(9_999, 1)[0], b'0');
    for round in 1..=5u8 {
        let digit = b'0' + round;
        let mut file = File::create(a.at("file")).expect("create");
        file.write_all(&[digit; 10_000]).expect("write");
        let long_ago =
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + u64::from(round));
        file.set_modified(long_ago).expect("utimensat");
        drop(file);
        assert_eq!(fs::read(b.at("file")).expect("read"), vec![digit; 10_000]);
        let seen = fs::metadata(b.at("file")).expect("stat");
        assert_eq!(seen.modified().expect("mtime"), long_ago);
        let mut again = Vec::new();
        open.seek(SeekFrom::Start(0)).expect("seek");
        open.read_to_end(&mut again).expect("read");
        assert_eq!(again, vec![digit; 10_000], "what was open sees it, too");
        assert_eq!(mapped.read(5_000, 1)[0], digit, "and what was mapped");
        // fsync, and no close.
        let file = OpenOptions::new()
            .write(true)
            .open(b.at("file"))
            .expect("open");
        file.write_all_at(b"middle", 5_000).expect("write");
        file.sync_all().expect("fsync");
        let got = fs::read(a.at("file")).expect("read");
        assert_eq!((&got[5_000..5_006], got.len()), (&b"middle"[..], 10_000));
        // Shorter, and longer, by name.
        let by_name = OpenOptions::new()
            .write(true)
            .open(a.at("file"))
            .expect("open");
        by_name.set_len(7).expect("truncate");
        drop(by_name);
        assert_eq!(fs::metadata(b.at("file")).expect("stat").len(), 7);
        assert_eq!(fs::read(b.at("file")).expect("read"), vec![digit; 7]);
    }
}

#[test]
fn two_nodes_that_write_one_file_keep_what_both_wrote() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::write(a.at("file"), vec![b'.'; 64 << 10]).expect("write");
    let open = |node: &Node| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(node.at("file"))
    };
    let (one, two) = (open(a).expect("open"), open(b).expect("open"));
    for n in 0..100u64 {
        one.write_all_at(&[b'a'; 100], n * 600).expect("write");
        two.write_all_at(&[b'b'; 100], n * 600 + 300)
            .expect("write");
    }
    drop((one, two));
    for node in [a, b] {
        let got = fs::read(node.at("file")).expect("read");
        let count = |byte| got.iter().filter(|b| **b == byte).count();
        assert_eq!(
            (count(b'a'), count(b'b'), got.len()),
            (10_000, 10_000, 64 << 10)
        );
        assert_eq!(node.stat("conflict_files"), 0);
    }
}

#[test]
fn appends_of_two_nodes_lose_nothing() {
    let _one = serial();
    appends(&Cluster::start(2, &[]), 100);
}

#[test]
fn appends_of_two_nodes_with_only_a_bucket_between_them_lose_nothing() {
    let _one = serial();
    appends(&Cluster::start_apart(2, &[]), 40);
}

fn appends(cluster: &Cluster, each: usize) {
    fs::write(cluster.nodes[0].at("log"), b"").expect("write");
    let append = |node: &Node, who: u8| {
        let path = node.at("log");
        std::thread::spawn(move || {
            for n in 0..each {
                let mut file = OpenOptions::new().append(true).open(&path).expect("open");
                file.write_all(format!("{who} {n:04}\n").as_bytes())
                    .expect("append");
            }
        })
    };
    // Two of each node, one of them with a file that stays open.
    let mut threads: Vec<_> = cluster
        .nodes
        .iter()
        .zip(0..)
        .map(|(n, who)| append(n, who))
        .collect();
    for (node, who) in cluster.nodes.iter().zip(2..) {
        let mut file = OpenOptions::new()
            .append(true)
            .open(node.at("log"))
            .expect("open");
        threads.push(std::thread::spawn(move || {
            for n in 0..each {
                file.write_all(format!("{who} {n:04}\n").as_bytes())
                    .expect("append");
            }
        }));
    }
    for thread in threads {
        thread.join().expect("a writer");
    }
    for node in &cluster.nodes {
        let text = fs::read_to_string(node.at("log")).expect("read");
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4 * each);
        for who in 0..4 {
            let own = lines.iter().filter(|l| l.starts_with(&format!("{who} ")));
            let own: Vec<_> = own.collect();
            assert!(own.is_sorted(), "each writer's own order");
        }
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 4 * each, "no line is torn or twice there");
    }
}

#[test]
fn an_exclusive_create_has_one_winner() {
    let _one = serial();
    let cluster = Cluster::start(3, &[]);
    let rounds = number("FASTCACHE_EXCL_ROUNDS", 40);
    for round in 0..rounds {
        let threads: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| {
                let path = node.at(&format!("lock{round}"));
                std::thread::spawn(move || {
                    match OpenOptions::new().write(true).create_new(true).open(&path) {
                        Ok(_) => 1,
                        Err(e) if e.kind() == ErrorKind::AlreadyExists => 0,
                        Err(e) => panic!("{e}"),
                    }
                })
            })
            .collect();
        let winners: u32 = threads.into_iter().map(|t| t.join().expect("thread")).sum();
        assert_eq!(winners, 1, "round {round}");
    }
}

#[test]
fn within_a_lease_nothing_is_asked_beyond_the_node() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::create_dir(a.at("dir")).expect("mkdir");
    for n in 0..50 {
        fs::write(a.at(&format!("dir/{n}")), b"some bytes").expect("write");
    }
    let look = || {
        assert_eq!(listed(b.at("dir")).len(), 50);
        for n in 0..50 {
            assert_eq!(
                fs::metadata(b.at(&format!("dir/{n}"))).expect("stat").len(),
                10
            );
            assert!(fs::metadata(b.at(&format!("dir/{n}-absent"))).is_err());
            assert_eq!(
                fs::read(b.at(&format!("dir/{n}"))).expect("read"),
                b"some bytes"
            );
        }
    };
    look();
    look();
    let asked = || b.stat("namespace_calls");
    let fetched = || b.stat("peer_fetched_bytes") + b.stat("get_bytes");
    let (before, bytes) = (asked(), fetched());
    (0..3).for_each(|_| look());
    let (questions, more) = (asked() - before, fetched() - bytes);
    // Those of `status`.
    assert!(questions <= 6, "{questions} questions to the coordinator");
    assert_eq!(more, 0, "bytes from elsewhere");
    let before = b.stat("namespace_calls");
    // Something else is changed: the kernel forgets all names.
    for round in 0..3 {
        fs::write(a.at("elsewhere"), [round; 3]).expect("write");
        look();
    }
    let asked = asked() - before;
    // `status` itself asks for three things.
    assert!(asked <= 12, "{asked} questions to the coordinator");
}

#[test]
fn nodes_that_make_files_in_one_folder_do_not_wait_for_leases() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    fs::create_dir(cluster.nodes[0].at("dir")).expect("mkdir");
    let longest: Vec<Duration> = std::thread::scope(|scope| {
        let makers = cluster.nodes.iter().enumerate().map(|(n, node)| {
            scope.spawn(move || {
                let make = |i: u32| {
                    let since = Instant::now();
                    fs::write(node.at(&format!("dir/{n}-{i}")), b"new").expect("write");
                    // Both have the folder's names, and lose them again.
                    assert!(fs::metadata(node.at("dir/none")).is_err());
                    since.elapsed()
                };
                (0..300).map(make).max().expect("some")
            })
        });
        let makers: Vec<_> = makers.collect();
        makers
            .into_iter()
            .map(|m| m.join().expect("a maker"))
            .collect()
    });
    // A lease is 10 s.
    assert!(
        longest.iter().all(|t| *t < Duration::from_secs(3)),
        "{longest:?}"
    );
    for node in &cluster.nodes {
        assert_eq!(listed(node.at("dir")).len(), 600);
    }
}

/// Changes a file's mode on one node while a process of the other stands, which has it cached: the change takes a lease at
/// most, and once the other goes on it tells the new one.
fn a_node_that_stands(plane: Plane) {
    let _one = serial();
    let cluster = short_leases(2);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::write(a.at("file"), b"old").expect("write");
    let mode = |n: &Node| fs::metadata(n.at("file")).expect("stat").mode() & 0o777;
    assert_eq!((mode(a), mode(b)), (0o644, 0o644));
    let mut open = File::open(b.at("file")).expect("open");
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read");
    let stopped = b.stop(plane);
    let since = Instant::now();
    fs::set_permissions(a.at("file"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let waited = since.elapsed();
    assert!(waited < Duration::from_secs(LEASE) + SOON / 2, "{waited:?}");
    fs::write(a.at("file"), b"new").expect("write");
    // Fenced, or its lease is over: nobody waits for it any more.
    let since = Instant::now();
    fs::create_dir(a.at("dir")).expect("mkdir");
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
    drop(stopped);
    assert_eq!(mode(b), 0o600);
    assert_eq!(fs::read(b.at("file")).expect("read"), b"new");
    text.clear();
    open.seek(SeekFrom::Start(0)).expect("seek");
    open.read_to_string(&mut text).expect("read");
    assert_eq!(text, "new", "{plane:?}");
    // It is a node like any other again.
    fs::write(b.at("dir/back"), b"back").expect("write");
    assert_eq!(fs::read(a.at("dir/back")).expect("read"), b"back");
}

#[test]
fn an_agent_that_stands_delays_others_by_a_lease_and_is_not_stale_after() {
    a_node_that_stands(Plane::Agent);
}

#[test]
fn a_data_plane_that_stands_delays_others_by_a_lease_and_is_not_stale_after() {
    a_node_that_stands(Plane::Data);
}

#[test]
fn a_node_that_ends_in_order_delays_nobody() {
    let _one = serial();
    let cluster = Cluster::start(2, &["--lease", "60"]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::write(a.at("file"), b"old").expect("write");
    fs::write(a.at("other"), b"old").expect("write");
    assert_eq!(fs::read(b.at("file")).expect("read"), b"old");
    fs::write(b.at("other"), b"of b").expect("write");
    b.down();
    let since = Instant::now();
    fs::write(a.at("file"), b"new").expect("write");
    fs::write(a.at("other"), b"new").expect("write");
    fs::remove_file(a.at("file")).expect("unlink");
    assert!(since.elapsed() < SOON / 2, "{:?}", since.elapsed());
    b.up();
    assert_eq!(listed(b.at("")), ["other"]);
    assert_eq!(fs::read(b.at("other")).expect("read"), b"new");
}

#[test]
fn what_was_written_under_a_lost_lease_becomes_a_file_beside() {
    let _one = serial();
    let cluster = short_leases(2);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::create_dir(a.at("dir")).expect("mkdir");
    fs::write(a.at("dir/file"), vec![b'0'; 9_000]).expect("write");
    fs::write(a.at("dir/alone"), b"0").expect("write");
    let open = |name: &str| {
        OpenOptions::new()
            .write(true)
            .open(a.at(name))
            .expect("open")
    };
    let (file, alone) = (open("dir/file"), open("dir/alone"));
    file.write_all_at(b"ours", 100).expect("write");
    alone.write_all_at(b"ours", 0).expect("write");
    let stopped = a.stop(Plane::Agent);
    fs::write(b.at("dir/file"), b"theirs").expect("write");
    drop(stopped);
    // Nobody else wrote this one: nothing is lost.
    alone.sync_all().expect("fsync");
    assert_eq!(fs::read(b.at("dir/alone")).expect("read"), b"ours");
    // Said once, at the next close or fsync; so nothing may be forked before, whose copies of the file are closed.
    let mut said = None;
    wait_until("the conflict is told", SOON, || {
        said = file.sync_all().err().and_then(|e| e.raw_os_error());
        said.is_some()
    });
    assert_eq!(said, Some(5));
    assert_eq!(a.stat("conflict_files"), 1);
    assert_eq!(fs::read(a.at("dir/file")).expect("read"), b"theirs");
    assert_eq!(fs::read(b.at("dir/file")).expect("read"), b"theirs");
    let names = listed(b.at("dir"));
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[2].starts_with("file.conflict-"), "{names:?}");
    let saved = fs::read(b.at(&format!("dir/{}", names[2]))).expect("read");
    assert_eq!((saved.len(), &saved[98..106]), (9_000, &b"00ours00"[..]));
}

#[test]
fn without_the_coordinator_leases_last_to_their_end_and_then_nothing_old_is_told() {
    let _one = serial();
    let mut cluster = short_leases(2);
    fs::write(cluster.nodes[0].at("file"), b"before").expect("write");
    assert_eq!(
        fs::read(cluster.nodes[1].at("file")).expect("read"),
        b"before"
    );
    cluster.coordinator.kill();
    // Under the lease; from then on it waits for the coordinator.
    assert_eq!(
        fs::read(cluster.nodes[1].at("file")).expect("read"),
        b"before"
    );
    let path = cluster.nodes[1].at("file");
    std::thread::sleep(Duration::from_secs(LEASE + 1));
    let reader = std::thread::spawn(move || fs::read(path).expect("read"));
    std::thread::sleep(Duration::from_secs(1));
    assert!(!reader.is_finished(), "the lease is over");
    cluster.coordinator.start();
    assert_eq!(reader.join().expect("reader"), b"before");
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::write(a.at("file"), b"after").expect("write");
    assert_eq!(fs::read(b.at("file")).expect("read"), b"after");
    fs::rename(b.at("file"), b.at("moved")).expect("rename");
    assert!(fs::metadata(a.at("file")).is_err());
}

#[test]
fn an_unlinked_file_lives_as_long_as_another_node_has_it_open() {
    let _one = serial();
    let mut cluster = short_leases(2);
    let len = 2 << 20;
    let contents = Bytes::of(7).range(0, len);
    for name in ["open", "closed"] {
        fs::write(cluster.nodes[0].at(name), &contents).expect("write");
    }
    let file = File::open(cluster.nodes[1].at("open")).expect("open");
    // Each of these ends the lease that came with the open.
    fs::set_permissions(
        cluster.nodes[0].at("open"),
        fs::Permissions::from_mode(0o600),
    )
    .expect("chmod");
    cluster.nodes[1].kill(Plane::Agent);
    cluster.nodes[1].wait_for_return();
    cluster.coordinator.kill();
    cluster.coordinator.start();
    let http = Http::on(cluster.coordinator.port());
    let inodes = || {
        let metrics = http.ask("GET", "/metrics", &[], b"").text();
        let line = metrics
            .lines()
            .find(|l| l.starts_with("fastcache_namespace_inodes "));
        let value = line
            .and_then(|l| l.split_whitespace().nth(1))
            .map(str::parse::<u64>);
        value.expect("a metric").expect("a number")
    };
    for name in ["open", "closed"] {
        fs::remove_file(cluster.nodes[0].at(name)).expect("unlink");
    }
    // The root and one file are left.
    wait_until("what nobody has open goes", SOON, || inodes() == 2);
    // Several tries to reap it.
    std::thread::sleep(Duration::from_secs(4));
    let mut read = vec![0; len];
    file.read_exact_at(&mut read, 0).expect("read");
    assert!(read == contents);
    drop(file);
    wait_until("it goes with the last close", SOON, || inodes() == 1);
}

/// Appends lines on one node while programs of both nodes read the log again and again. Zeros at its end are nobody's line: not
/// after the read that holds a page while the kernel drops it, which may be one of thousands.
#[test]
fn a_log_that_is_read_while_it_grows_ends_in_what_was_appended() {
    const SESSIONS: u64 = 700;
    const CUT_EVERY: u64 = 100;
    const LINE: usize = 16;
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    fs::write(a.at("log"), b"").expect("write");
    let is_over = AtomicBool::new(false);
    let (found, longest) = std::thread::scope(|scope| {
        let readers = [a, b].map(|node| {
            let is_over = &is_over;
            scope.spawn(move || {
                let read = || fs::read(node.at("log")).expect("read");
                let (mut reads, mut zeros) = (0u64, 0u64);
                while !is_over.load(Ordering::Relaxed) {
                    reads += 1;
                    if read().contains(&0) {
                        zeros += 1;
                        assert!(!read().contains(&0), "zeros stay");
                    }
                }
                (reads, zeros)
            })
        });
        let over = Over(&is_over);
        let mut longest = Duration::ZERO;
        for session in 0..SESSIONS {
            let since = Instant::now();
            let log = OpenOptions::new().append(true).open(a.at("log"));
            let mut log = log.expect("open");
            for line in 0..3 {
                let line = format!("line {:010}\n", session * 3 + line);
                assert_eq!(line.len(), LINE);
                log.write_all(line.as_bytes()).expect("append");
            }
            close(log).expect("close");
            longest = longest.max(since.elapsed());
            if session % CUT_EVERY == 0 {
                fs::write(a.at("log"), b"").expect("cut");
            }
        }
        drop(over);
        (readers.map(|r| r.join().expect("a reader")), longest)
    });
    for (reads, zeros) in found {
        assert!(zeros * 100 <= reads, "{zeros} of {reads} reads");
    }
    // A commit and a read that wait for each other do so for 10 s.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

/// Ends readers also when the test panics.
struct Over<'o>(&'o AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
