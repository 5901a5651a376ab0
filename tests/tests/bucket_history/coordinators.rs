//! A coordinator of its own: it is rebuilt like a node's, and knows less of what nodes have.

use fastcache_tests::{Bytes, Coordinator, Node, Setup, serial, temp_dir, wait_until};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

/// A coordinator on a bucket that is a folder, and a node of it.
fn start_on(bucket: &Path, further: &[&str]) -> (Coordinator, Node) {
    let folder = bucket.to_str().expect("utf-8");
    let cloud = ["--cloud-provider", "dir", "--cloud-dir", folder];
    let coordinator = Coordinator::start_with(&[&cloud[..], further].concat());
    let own = ["--coordinator".to_owned(), coordinator.address()];
    let node = Node::start(Setup {
        flags: own.into_iter().chain(cloud.map(str::to_owned)).collect(),
        capacity: Some("1GiB"),
        ..Setup::default()
    });
    (coordinator, node)
}

#[test]
fn a_coordinator_of_its_own_is_rebuilt_from_the_bucket() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let (first, node) = start_on(bucket.path(), &[]);
    std::fs::create_dir_all(node.at("a/b")).expect("mkdir");
    for n in 0..20 {
        let path = node.at(&format!("a/b/{n}"));
        std::fs::write(path, Bytes::of(n).range(0, 30_000)).expect("write");
    }
    std::fs::rename(node.at("a/b"), node.at("c")).expect("rename");
    node.flush();
    assert_eq!(node.state_xattr("c/7"), "persisted");
    node.stop_by_force();
    drop((node, first));

    let (_second, node) = start_on(bucket.path(), &["--rebuild"]);
    for n in 0..20 {
        let got = std::fs::read(node.at(&format!("c/{n}"))).expect("read");
        assert_eq!(got.len(), 30_000);
        assert_eq!(Bytes::of(n).first_difference(0, &got), None);
    }
    assert!(!node.at("a/b").exists());
}

#[test]
fn a_coordinator_without_a_bucket_never_says_persisted() {
    let _one = serial();
    let coordinator = Coordinator::start_with(&["--cloud-provider", "none"]);
    let flags = ["--coordinator", &coordinator.address(), "--fsync", "cloud"];
    let node = Node::start(Setup {
        flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        capacity: Some("1GiB"),
        ..Setup::default()
    });
    let mut file = std::fs::File::create(node.at("f")).expect("create");
    std::io::Write::write_all(&mut file, b"bytes").expect("write");
    let error = file
        .sync_all()
        .expect_err("there is no bucket for the namespace");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    let out = node.try_ctl(&["flush", "--wait"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && text.contains("no bucket"),
        "{text}"
    );
    assert_eq!(node.state_xattr("f"), "dirty");
}

/// Nobody but an operator knows which nodes there are: with a coordinator of its own nothing goes back by itself.
#[test]
fn a_coordinator_of_its_own_brings_nothing_back_by_itself() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let old = Bytes::of(1).range(0, 100_000);
    let (first, node) = start_on(bucket.path(), &[]);
    std::fs::write(node.at("f"), &old).expect("write");
    node.flush();
    // The directory takes no more chunks, but the log.
    let (chunks, aside) = (bucket.path().join("chunks"), bucket.path().join("aside"));
    std::fs::rename(&chunks, &aside).expect("rename");
    std::fs::write(&chunks, b"in the way").expect("write");
    let file = std::fs::File::options()
        .write(true)
        .open(node.at("f"))
        .expect("open");
    file.write_all_at(b"new", 500).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    let position = node.stat("log_position");
    wait_until("the log is in the bucket", Duration::from_secs(20), || {
        node.stat("shipped_position") >= position
    });
    node.kill_all();
    node.stop_by_force();
    drop((node, first));
    std::fs::remove_file(&chunks).expect("remove");
    std::fs::rename(&aside, &chunks).expect("rename");

    let (_second, node) = start_on(bucket.path(), &["--rebuild"]);
    let error = std::fs::read(node.at("f")).expect_err("this node does not have it");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // Another node may have it: nothing is wrong yet.
    let (code, report) = node.verdict(&["fsck"]);
    assert_eq!(
        (code, report["repairable"].as_u64()),
        (0, Some(1)),
        "{report:#}"
    );
    let (code, report) = node.verdict(&["fsck", "--repair"]);
    assert_eq!(
        (code, report["repaired"].as_u64()),
        (1, Some(1)),
        "{report:#}"
    );
    assert!(std::fs::read(node.at("f")).expect("read") == old);
    let (code, report) = node.verdict(&["fsck", "--deep"]);
    assert_eq!(
        (code, report["repairable"].as_u64()),
        (0, Some(0)),
        "{report:#}"
    );
}
