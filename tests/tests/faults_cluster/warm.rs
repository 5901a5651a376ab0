//! A node comes back with what it had cached: what was changed meanwhile is as it is, and the rest costs nothing.

use super::files::{SOON, expect_within, three, written};
use fastcache_tests::{Bytes, Cluster, Node, serial, write_and_close};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

#[test]
fn a_node_that_comes_back_with_a_warm_cache_sees_what_was_changed() {
    let _one = serial();
    let cluster = Cluster::start(3, &["--lease", "3"]);
    let [a, b, c] = three(&cluster.nodes);
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
    b.kill_all();
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
