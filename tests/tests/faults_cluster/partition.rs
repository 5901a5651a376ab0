//! A node is cut off: the others wait for its lease and no longer, and it reads nothing that was changed after that.

use super::files::{CACHED, HEDGED, SOON, expect_within, three, written};
use fastcache_tests::{CabledNodes, have_own_files, on_an_island, serial, wait_until};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest the test may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);

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
        let cluster = CabledNodes::start(3, LEASE, LIMIT);
        cut_off_and_back(&cluster, LEASE);
        cluster.end();
    });
}

fn cut_off_and_back(cluster: &CabledNodes, lease: Duration) {
    let ([a, c, far], cable) = (three(&cluster.nodes), &cluster.cable);
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
