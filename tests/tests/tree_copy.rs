//! Promise: what was copied in is what is read back, from every tier, with everything `cp -a` keeps.
//!
//! A tree of at least 5,000 files and 75 MB (20,000 and 300 MB with FASTCACHE_TREE=long, `make test-tree`) goes in with `cp -a`; it is compared, sent to the cloud, dropped from the
//! NVMe store, read back from the cloud, and read a third time. Counters of the data plane prove where the bytes of
//! each reading came from.

use fastcache_tests::{
    Cloud, Node, S3, Setup, SourceTree, assert_same_tree, drop_page_cache, run, serial, wait_until,
};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn tree_goes_through(cloud: Cloud) {
    let _one = serial();
    let is_long = std::env::var("FASTCACHE_TREE").is_ok_and(|form| form == "long");
    let part = if is_long { 1 } else { 4 };
    let (files, bytes) = (20_000 / part, 300_000_000 / part);
    // Empty files are made as well, and have no chunks: they are not among those that count.
    let tree = SourceTree::new(files + files / 33, bytes);
    assert!(
        tree.files >= files && tree.bytes >= bytes,
        "{} files",
        tree.files
    );
    let node = Node::start(Setup {
        cloud,
        ..Setup::default()
    });
    let mut clock = Clock::start();

    let copy = node.at("tree");
    run(Command::new("cp").arg("-a").arg(tree.path()).arg(&copy));
    clock.lap("cp -a");
    assert_same_tree(&tree.path(), &copy);
    clock.lap("first comparison");
    assert_eq!(node.stat("fetched_chunks"), 0, "nothing was evicted yet");

    node.flush();
    clock.lap("flush --wait");
    assert_eq!(node.stat("dirty_chunks"), 0);
    assert!(
        node.data_objects().len() as u64 >= tree.files,
        "a file's chunks are objects"
    );
    let chunks = node.stat("chunks");

    node.evict();
    clock.lap("evict --all");
    assert_eq!(
        node.stat("chunks"),
        0,
        "everything was clean, so everything goes"
    );
    let fetched = (node.stat("fetched_chunks"), node.stat("fetched_bytes"));
    read_everything(&copy);
    clock.lap("read everything, from the cloud");
    assert_same_tree(&tree.path(), &copy);
    clock.lap("second comparison");
    let again = (node.stat("fetched_chunks"), node.stat("fetched_bytes"));
    assert!(
        again.0 - fetched.0 >= tree.files,
        "{} chunks were fetched",
        again.0 - fetched.0
    );
    // A file of holes is larger than its chunks; nothing else is.
    assert!(
        again.1 - fetched.1 >= tree.bytes - (30 << 20),
        "{} bytes were fetched",
        again.1 - fetched.1
    );
    wait_until(
        "what was fetched is in the store",
        Duration::from_secs(30),
        || node.stat("chunks") >= chunks,
    );

    drop_page_cache();
    let hits = node.stat("nvme_hit_bytes");
    assert_same_tree(&tree.path(), &copy);
    clock.lap("third comparison, from NVMe");
    assert_eq!(
        node.stat("fetched_chunks"),
        again.0,
        "the third reading must not need the cloud"
    );
    assert!(
        node.stat("nvme_hit_bytes") - hits >= tree.bytes / 2,
        "and came from NVMe"
    );
    assert_eq!(node.stat("checksum_errors"), 0);

    // The second half of the promise: it is gone when it is removed, and space comes back.
    run(Command::new("rm").arg("-rf").arg(&copy));
    clock.lap("rm -rf");
    wait_until(
        "the space of removed files is free",
        Duration::from_secs(60),
        || node.stat("chunks") == 0,
    );
}

/// Reads every file, several at a time: a server that answers slowly is not waited for file by file. What is compared
/// afterwards are these bytes, in the kernel's pages or in the store.
fn read_everything(root: &Path) {
    let script = "find \"$0\" -type f -print0 | xargs -0 -n 100 -P 8 cat > /dev/null";
    run(Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .arg(root));
}

/// What each step took, in the test's output.
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    fn lap(&mut self, what: &str) {
        println!("{what}: {:.1} s", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

#[test]
fn a_tree_survives_the_way_through_a_directory() {
    tree_goes_through(Cloud::Dir);
}

#[test]
fn a_tree_survives_the_way_through_s3() {
    tree_goes_through(Cloud::S3(S3::start()));
}
