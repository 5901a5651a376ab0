//! Names, paths and sizes as long as they may be, and longer.

use fastcache_tests::{Bytes, Node, Setup, serial};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

#[test]
fn names_and_sizes_at_their_limits() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("256MiB"),
        ..Setup::default()
    });
    let started = Instant::now();
    // A path longer than PATH_MAX, a name longer than NAME_MAX.
    let deep = node.at(&"d/".repeat(2500));
    let error = std::fs::write(&deep, "x").expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let error = std::fs::write(node.at(&"n".repeat(256)), "x").expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    std::fs::write(node.at(&"n".repeat(255)), "x").expect("255 bytes");
    // Any bytes but a slash and NUL.
    for name in [
        &b"new\nline"[..],
        b"\xff\xfe\x80",
        b" ",
        b"-rf",
        b"\t\\\"'*?",
    ] {
        let path = node.mount().join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(&path, name).expect("write");
        assert_eq!(std::fs::read(&path).expect("read"), name);
    }
    let sizes = [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1];
    for size in sizes {
        let bytes = Bytes::of(size as u64).range(0, size);
        std::fs::write(node.at(&format!("size-{size}")), bytes).expect("write");
    }
    let sparse = std::fs::File::create(node.at("sparse")).expect("create");
    let last = (1u64 << 40) - 5;
    sparse.write_all_at(b"first", 0).expect("write");
    sparse.write_all_at(b"-last", last).expect("write");
    sparse.sync_all().expect("fsync");
    drop(sparse);
    node.flush();
    node.evict();
    for size in sizes {
        let bytes = Bytes::of(size as u64).range(0, size);
        let back = std::fs::read(node.at(&format!("size-{size}"))).expect("read");
        assert!(back == bytes, "{size} bytes");
    }
    let sparse = std::fs::File::open(node.at("sparse")).expect("open");
    assert_eq!(sparse.metadata().expect("stat").len(), 1 << 40);
    let mut five = [1; 5];
    for (at, want) in [(0, b"first"), (last, b"-last"), (1 << 39, b"\0\0\0\0\0")] {
        sparse.read_exact_at(&mut five, at).expect("read");
        assert_eq!(&five, want);
    }
    assert!(started.elapsed() < Duration::from_secs(120));
}
