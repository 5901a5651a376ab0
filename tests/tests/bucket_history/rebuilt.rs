//! A whole tree comes back, with all that a tree can have; what was never uploaded is an error.

use fastcache_tests::{
    Bytes, Cloud, Node, S3, Setup, SourceTree, assert_same_tree, drop_page_cache, lose_everything,
    run, serial, temp_dir,
};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn a_tree_comes_back(cloud: Cloud) {
    let _one = serial();
    let node = Node::start(Setup {
        cloud,
        capacity: Some("2GiB"),
        ..Setup::default()
    });
    let tree = SourceTree::new(2_000, 30_000_000);
    let copy = node.at("tree");
    run(Command::new("cp").arg("-a").arg(tree.path()).arg(&copy));
    // What a copy does not have: extended attributes, renames, deletions, links that come and go, new contents.
    let twin = temp_dir("twin");
    let twin = twin.path().join("tree");
    run(Command::new("cp").arg("-a").arg(tree.path()).arg(&twin));
    for side in [&copy, &twin] {
        change(side);
    }
    let xattrs = |root: &Path| {
        run(Command::new("getfattr")
            .args(["-R", "-h", "-d", "-m", "^user\\.test", "."])
            .current_dir(root))
    };
    let want_xattrs = xattrs(&copy);
    assert!(want_xattrs.contains("user.test.long"));
    assert_same_tree(&twin, &copy);
    let times = all_times(&copy);

    node.flush();
    let state = node.state_xattr("tree/odd/several-chunks");
    assert_eq!(state, "persisted");

    lose_everything(&node);
    // Without being told what to do, an empty node does not begin a new file system over the old one.
    let refused = node.try_up();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("--rebuild"),
        "{text}"
    );
    node.up_with(&["--rebuild"]);
    drop_page_cache();
    assert_same_tree(&twin, &copy);
    assert_eq!(xattrs(&copy), want_xattrs);
    assert_eq!(all_times(&copy), times);
    assert_eq!(node.stat("checksum_errors"), 0);

    // And it is a file system like any other.
    std::fs::write(node.at("tree/new"), b"after").expect("write");
    node.flush();
    lose_everything(&node);
    let told = rebuild(&node, &["--json"]);
    assert!(told.contains("\"incomplete\": []"), "{told}");
    node.up();
    assert_eq!(std::fs::read(node.at("tree/new")).expect("read"), b"after");
    let out = node.try_rebuild(&[]);
    assert!(
        !out.status.success(),
        "a namespace that is there is not replaced unasked"
    );
    let out = node.try_rebuild(&["--force"]);
    assert!(!out.status.success(), "nor under a process that uses it");
}

fn rebuild(node: &Node, flags: &[&str]) -> String {
    let out = node.try_rebuild(flags);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "rebuild: {text}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The same changes on both sides.
fn change(root: &Path) {
    let script = r#"
        set -eu
        setfattr -h -n user.test.short -v x odd/several-chunks
        setfattr -n user.test.long -v "$(head -c 3000 /dev/zero | tr '\0' y)" odd/block
        setfattr -n user.test.gone -v x odd/block
        setfattr -x user.test.gone odd/block
        setfattr -n user.test.dir -v d odd/sticky
        mkdir -p moved/from/here
        for n in $(seq 1 200); do echo "file $n" > moved/from/here/$n; done
        rm moved/from/here/1*
        mv moved/from moved/to
        ln moved/to/here/20 moved/hard
        ln moved/to/here/20 moved/hard-too
        rm moved/to/here/20
        ln -s to/here/22 moved/soft
        mv -f moved/to/here/21 moved/to/here/22
        head -c 9000000 /dev/zero > moved/zeros
        printf island | dd of=moved/zeros bs=1 seek=5000000 conv=notrunc status=none
        truncate -s 7000000 moved/zeros
        truncate -s 12000000 moved/zeros
        cp odd/several-chunks moved/rewritten
        dd if=odd/chunk-and-one of=moved/rewritten bs=1000003 count=2 seek=3 conv=notrunc status=none
        chmod 2711 moved/to
        chown 7:8 moved/hard
        touch -d '2011-11-11 11:11:11.111111111' moved/hard moved/to moved/zeros moved/rewritten moved/to/here
        touch -d '2012-12-12 12:12:12' moved moved/to/here/*
        touch -h -d '2013-01-01' moved/soft
        touch -d '2014-01-01' .
    "#;
    run(Command::new("bash").args(["-c", script]).current_dir(root));
}

/// Change and access times of everything, which `cp -a` does not keep.
fn all_times(root: &Path) -> String {
    run(Command::new("sh")
        .args(["-c", "find . -printf '%p %C@ %A@ %n\\n' | sort"])
        .current_dir(root))
}

#[test]
fn a_tree_comes_back_from_a_directory() {
    a_tree_comes_back(Cloud::Dir);
}

#[test]
fn a_tree_comes_back_from_s3() {
    a_tree_comes_back(Cloud::S3(S3::start()));
}

/// A file whose bytes were in no object when the disks were lost: its name is there, and reading it fails.
#[test]
fn bytes_that_were_never_uploaded_are_an_error_and_not_zeros() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("1GiB"),
        ..Setup::default()
    });
    std::fs::write(node.at("kept"), Bytes::of(1).range(0, 50_000)).expect("write");
    node.flush();
    // The directory takes no more chunks, but the log.
    let chunks = node.dir().join("cloud/chunks");
    std::fs::rename(&chunks, node.outside().join("chunks")).expect("rename");
    std::fs::write(&chunks, b"in the way").expect("write");
    std::fs::write(node.at("lost"), Bytes::of(2).range(0, 50_000)).expect("write");
    let file = std::fs::File::open(node.at("lost")).expect("open");
    file.sync_all().expect("fsync");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.state_xattr("lost"), "dirty");
    drop(file);
    std::fs::remove_file(&chunks).expect("remove");
    std::fs::rename(node.outside().join("chunks"), &chunks).expect("rename");
    lose_everything(&node);
    let told = rebuild(&node, &[]);
    assert!(told.contains("lost (inode"), "{told}");
    node.up();
    let kept = std::fs::read(node.at("kept")).expect("read");
    assert_eq!(Bytes::of(1).first_difference(0, &kept), None);
    let lost = std::fs::File::open(node.at("lost")).expect("the name is there");
    assert_eq!(lost.metadata().expect("stat").len(), 50_000);
    let error = lost
        .read_at(&mut [0; 100], 0)
        .expect_err("it was never uploaded");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(
        node.logs().contains("lost before it was uploaded"),
        "{}",
        node.logs()
    );
}
