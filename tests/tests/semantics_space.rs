//! Promise: a full file system says ENOSPC, loses nothing that was acknowledged, and gives the room back
//! (docs/semantics.md).

use fastcache_tests::{Bytes, Node, Setup, drop_page_cache, serial, shared_folder, wait_until};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

#[test]
fn statfs_tells_a_size_without_end_and_what_is_used() {
    let _one = serial();
    let (node, here) = shared_folder("statfs");
    let stat = || rustix::fs::statvfs(&here).expect("statvfs");
    let before = stat();
    assert_eq!(
        (before.f_bsize, before.f_frsize, before.f_namemax),
        (4096, 4096, 255)
    );
    assert_eq!(before.f_blocks * before.f_frsize, 1 << 50);
    assert_eq!(
        before.f_bfree, before.f_bavail,
        "nothing is kept back for root"
    );
    assert!(before.f_files > 1_000_000 && before.f_ffree < before.f_files);
    std::fs::write(here.join("file"), vec![1; 10 * MIB]).expect("write");
    File::create(here.join("sparse"))
        .and_then(|f| f.set_len(1 << 40))
        .expect("sparse");
    node.flush();
    wait_until(
        "10 MiB are used, and the hole is not",
        Duration::from_secs(30),
        || {
            let now = stat();
            before.f_bfree - now.f_bfree == (10 * MIB as u64) / 4096
                && before.f_ffree - now.f_ffree == 2
        },
    );
    std::fs::remove_file(here.join("file")).expect("unlink");
    std::fs::remove_file(here.join("sparse")).expect("unlink");
    wait_until("they are free again", Duration::from_secs(20), || {
        let now = stat();
        (now.f_bfree, now.f_ffree) == (before.f_bfree, before.f_ffree)
    });
}

/// Without a cloud the store is all there is: nothing can be uploaded and evicted.
#[test]
fn a_full_store_says_enospc_keeps_what_it_has_and_takes_more_after_a_removal() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("128MiB"),
        flags: vec!["--cloud-provider".into(), "none".into()],
        ..Setup::default()
    });
    let size = 8 * MIB;
    let mut whole = Vec::new();
    let begin = Instant::now();
    let error = loop {
        let n = whole.len();
        assert!(n < 20, "{n} files of 8 MiB in a store of 128 MiB");
        let path = node.at(&format!("{n}"));
        let file = File::create(&path).expect("create");
        let written = file.write_all_at(&Bytes::of(n as u64).range(0, size), 0);
        match written.and_then(|()| fastcache_tests::close(file)) {
            Ok(()) => whole.push(path),
            Err(e) => break e,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(whole.len() >= 8, "only {} files", whole.len());
    println!("{} files, ENOSPC after {:?}", whole.len(), begin.elapsed());
    // It is refused again, soon, and names still work.
    let begin = Instant::now();
    let again = std::fs::write(node.at("again"), vec![1; size]).expect_err("still full");
    assert_eq!(again.raw_os_error(), Some(libc::ENOSPC), "{again}");
    assert!(
        begin.elapsed() < Duration::from_secs(90),
        "{:?}",
        begin.elapsed()
    );
    std::fs::create_dir(node.at("dir")).expect("mkdir");
    let check = |when: &str| {
        drop_page_cache();
        for (n, path) in whole.iter().enumerate().skip(2) {
            let got = std::fs::read(path).expect("read");
            assert_eq!(got.len(), size, "{when}: {n}");
            assert_eq!(
                Bytes::of(n as u64).first_difference(0, &got),
                None,
                "{when}: {n}"
            );
        }
    };
    check("full");
    for name in ["0", "1", "again", &whole.len().to_string()] {
        let _ = std::fs::remove_file(node.at(name));
    }
    let mut last = None;
    wait_until("there is room again", Duration::from_secs(90), || {
        last = std::fs::write(node.at("more"), Bytes::of(99).range(0, size)).err();
        last.is_none()
    });
    let got = std::fs::read(node.at("more")).expect("read");
    assert_eq!(Bytes::of(99).first_difference(0, &got), None);
    check("after a removal");
}
