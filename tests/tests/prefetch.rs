//! Promise: who reads a cold file in sequence finds the next chunks here or on their way; what was warmed is read without
//! the cloud; what is pinned stays, whatever passes through and whatever is started again; and one pass over more than the
//! store holds does not cost the files that are in use.

use fastcache_tests::{
    Bytes, CHUNK, Node, Plane, Setup, drop_page_cache, serial, wait_until, write_and_close,
};
use std::io::Read as _;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn write(node: &Node, name: &str, seed: u64, bytes: usize) {
    let data = Bytes::of(seed).range(0, bytes);
    write_and_close(node.at(name), &data).unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn reads_right(node: &Node, name: &str, seed: u64, bytes: usize) {
    let mut file = std::fs::File::open(node.at(name)).expect("open");
    let mut buf = vec![0; MIB];
    let mut at = 0;
    loop {
        let n = file
            .read(&mut buf)
            .unwrap_or_else(|e| panic!("{name} at {at}: {e}"));
        if n == 0 {
            break;
        }
        assert_eq!(
            Bytes::of(seed).first_difference(at, &buf[..n]),
            None,
            "{name}"
        );
        at += n as u64;
    }
    assert_eq!(at, bytes as u64, "{name}");
}

/// Takes the bucket away, or brings it back.
fn cloud_is_away(node: &Node, is_away: bool) {
    let (here, away) = (node.dir().join("cloud"), node.dir().join("cloud-away"));
    let (from, to) = if is_away { (here, away) } else { (away, here) };
    std::fs::rename(from, to).expect("rename");
}

fn small_node(capacity: &'static str) -> Node {
    Node::start(Setup {
        capacity: Some(capacity),
        ..Setup::default()
    })
}

#[test]
fn a_sequential_reader_finds_the_next_chunks() {
    let _one = serial();
    let node = small_node("1GiB");
    let bytes = 128 * MIB;
    write(&node, "file", 1, bytes);
    node.flush();
    node.evict();
    drop_page_cache();
    reads_right(&node, "file", 1, bytes);
    let chunks = (bytes / CHUNK) as u64;
    let (asked, used) = (node.stat("ahead_chunks"), node.stat("ahead_used"));
    println!("{asked} of {chunks} chunks were asked for ahead, {used} of them were used");
    assert!(asked >= chunks * 3 / 4, "{asked} of {chunks}");
    assert!(used >= asked - 2, "{used} of {asked}");
    assert_eq!(node.stat("fetched_chunks"), chunks, "each was fetched once");
    assert_eq!(node.stat("ahead_failed"), 0);

    // Here and there: nothing is asked for.
    node.evict();
    drop_page_cache();
    let file = std::fs::File::open(node.at("file")).expect("open");
    for i in 0..16u64 {
        let at = (i * 7 % 32) * CHUNK as u64 + 4096;
        let mut buf = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut buf, at).expect("read");
        assert_eq!(Bytes::of(1).first_difference(at, &buf), None);
    }
    assert_eq!(
        node.stat("ahead_chunks"),
        asked,
        "random reads ask for nothing"
    );
}

#[test]
fn what_was_warmed_is_read_without_the_cloud() {
    let _one = serial();
    let node = small_node("256MiB");
    std::fs::create_dir(node.at("tree")).expect("mkdir");
    write(&node, "tree/large", 1, 40 * MIB);
    for i in 0..50 {
        write(&node, &format!("tree/{i}"), 2 + i, 5000);
    }
    write(&node, "huge", 100, 400 * MIB);
    node.flush();
    node.evict();
    drop_page_cache();

    let path = node.at("tree");
    let report = node.json(&["warmup", path.to_str().expect("a path")]);
    assert_eq!(report["files"], 51, "{report:#}");
    assert_eq!(report["fetched_bytes"], 40 * MIB + 50 * 5000, "{report:#}");
    let again = node.json(&["warmup", "tree"]);
    assert_eq!(again["fetched_chunks"], 0, "{again:#}");
    assert_eq!(again["present_chunks"], again["chunks"], "{again:#}");

    // What cannot fit is said, and does not push out what is here.
    let (code, much) = node.verdict(&["warmup", "."]);
    assert_eq!(code, 1, "{much:#}");
    assert!(much["no_room_bytes"].as_u64() > Some(150 << 20), "{much:#}");
    assert_eq!(much["failed_chunks"], 0, "{much:#}");

    cloud_is_away(&node, true);
    drop_page_cache();
    reads_right(&node, "tree/large", 1, 40 * MIB);
    for i in 0..50 {
        reads_right(&node, &format!("tree/{i}"), 2 + i, 5000);
    }
    cloud_is_away(&node, false);
}

#[test]
fn what_is_pinned_stays() {
    let _one = serial();
    let node = small_node("256MiB");
    std::fs::create_dir(node.at("models")).expect("mkdir");
    write(&node, "models/a", 1, 40 * MIB);
    write(&node, "models/b", 2, 20 * MIB);
    write(&node, "stream", 3, 400 * MIB);
    node.flush();
    node.evict();
    drop_page_cache();

    let report = node.json(&["pin", "models"]);
    assert_eq!(report["is_pinned"], true, "{report:#}");
    assert_eq!(report["fetched_bytes"], 60 * MIB, "{report:#}");
    assert_eq!(node.stat("pinned_files"), 2);
    assert!(node.stat("pinned_bytes") >= 60 << 20);
    let metrics = node.ctl(&["status"]);
    assert!(metrics.contains("pinned"), "{metrics}");
    let mut value = [0u8; 8];
    let n = rustix::fs::getxattr(node.at("models/a"), "user.fastcache.pin", &mut value[..]);
    assert_eq!(n, Ok(1), "pinned by command, seen on the mount");
    // More than may be pinned: all or nothing.
    let out = node.try_ctl(&["pin", "stream"]);
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("at most") && said.contains("unpin"), "{said}");
    assert_eq!(node.stat("pinned_files"), 2);

    // Everything passes through, both planes start again, and everything is evicted that can be.
    reads_right(&node, "stream", 3, 400 * MIB);
    node.kill(Plane::Agent);
    node.kill(Plane::Data);
    node.wait_for_return();
    wait_until("the pins are known", Duration::from_secs(30), || {
        node.stat("pinned_files") == 2 && node.stat("pinned_bytes") >= 60 << 20
    });
    reads_right(&node, "stream", 3, 400 * MIB);
    std::fs::rename(node.at("models/a"), node.at("renamed")).expect("rename");
    let evicted = node.json(&["evict", "--all"]);
    assert_eq!(evicted["pinned_chunks"], 15, "{evicted:#}");
    let evicted = node.json(&["evict", "renamed"]);
    assert_eq!(evicted["chunks"], 0, "{evicted:#}");
    assert_eq!(evicted["pinned_chunks"], 10, "{evicted:#}");
    drop_page_cache();
    cloud_is_away(&node, true);
    reads_right(&node, "renamed", 1, 40 * MIB);
    reads_right(&node, "models/b", 2, 20 * MIB);
    cloud_is_away(&node, false);

    // By attribute, as well; it is not listed, so that copies do not carry it.
    let xattr = "user.fastcache.pin";
    let any = rustix::fs::XattrFlags::empty();
    rustix::fs::removexattr(node.at("renamed"), xattr).expect("unpinned");
    assert_eq!(node.stat("pinned_files"), 1);
    rustix::fs::setxattr(node.at("renamed"), xattr, b"1", any).expect("pinned");
    assert_eq!(node.stat("pinned_files"), 2);
    let mut names = [0u8; 256];
    let n = rustix::fs::listxattr(node.at("renamed"), &mut names[..]).expect("list");
    assert_eq!(n, 0, "{:?}", String::from_utf8_lossy(&names[..n]));
    let refused = rustix::fs::setxattr(node.at("stream"), xattr, b"1", any);
    assert_eq!(refused, Err(rustix::io::Errno::NOSPC));

    // Overwritten, cut, removed, let go.
    write(&node, "models/b", 4, 8 * MIB);
    node.flush();
    wait_until("new contents are pinned", Duration::from_secs(10), || {
        (48 << 20..52 << 20).contains(&node.stat("pinned_bytes"))
    });
    let unpinned = node.json(&["unpin", "models"]);
    assert_eq!(unpinned["files"], 1);
    std::fs::remove_file(node.at("renamed")).expect("remove");
    wait_until("nothing is pinned", Duration::from_secs(10), || {
        node.stat("pinned_files") == 0 && node.stat("pinned_bytes") == 0
    });
    reads_right(&node, "models/b", 4, 8 * MIB);
}

#[test]
fn one_pass_over_more_than_the_store_leaves_what_is_in_use() {
    let _one = serial();
    let node = small_node("256MiB");
    for i in 0..10 {
        write(&node, &format!("hot-{i}"), 10 + i, 10 * MIB);
    }
    write(&node, "stream", 3, 600 * MIB);
    node.flush();
    node.evict();
    // In use: read now and then.
    for _ in 0..4 {
        drop_page_cache();
        (0..10).for_each(|i| reads_right(&node, &format!("hot-{i}"), 10 + i, 10 * MIB));
        std::thread::sleep(Duration::from_millis(1300));
    }
    reads_right(&node, "stream", 3, 600 * MIB);
    drop_page_cache();
    let before = node.stat("fetched_chunks");
    (0..10).for_each(|i| reads_right(&node, &format!("hot-{i}"), 10 + i, 10 * MIB));
    let again = node.stat("fetched_chunks") - before;
    println!("{again} of 30 chunks in use had to be fetched again after the pass");
    assert!(again <= 3, "{again} of 30 chunks were evicted by the pass");
}
