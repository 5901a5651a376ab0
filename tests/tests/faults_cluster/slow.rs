//! A node stands: the others go on, with what only it has, too.

use super::files::{CACHED, HEDGED, SOON, expect_within, three, written};
use fastcache_tests::{Cluster, Plane, drop_page_cache, serial, wait_until};
use std::fs;
use std::time::Instant;

/// A node stands. The others read what they have, and what it has; so does it when it goes on.
fn a_peer_that_is_slow_or_gone(plane: Plane) {
    let _one = serial();
    let cluster = Cluster::start(3, &[]);
    let [a, b, c] = three(&cluster.nodes);
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
