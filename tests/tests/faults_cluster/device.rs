//! A bad disk of one node is no wrong byte on another.

use super::files::{SOON, expect_within, written};
use fastcache_tests::{Bytes, Cluster, Node, drop_page_cache, serial, wait_until};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

#[test]
fn nvme_read_error_of_a_copy_on_another_node() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let [a, b] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    let files = written(a, "file", 9);
    wait_until("nothing is kept for others any more", SOON, || {
        b.stat("held_chunks") == 0
    });
    b.evict();
    // Nobody but the first node and the bucket has them: and it sends them as they are on its device.
    let noise = Bytes::of(99).range(0, 4096);
    for (name, seed, len) in &files {
        let block = Bytes::of(*seed).range((len / 2).next_multiple_of(4096) as u64 - 4096, 4096);
        let places = find_on_device(a, &block);
        assert!(!places.is_empty(), "{name} is not on the device");
        let device = OpenOptions::new().write(true).open(a.dir().join("nvme"));
        let device = device.expect("open");
        for at in places {
            device.write_all_at(&noise, at).expect("write");
        }
        device.sync_all().expect("sync");
    }
    drop_page_cache();
    expect_within(b, &files, SOON);
    let errors = a.stat("checksum_errors");
    assert!(errors >= files.len() as u64, "{errors} were counted");
    assert_eq!(b.stat("checksum_errors"), 0);
    // Mended there, too: the next one to read them has them as they were.
    expect_within(a, &files, SOON);
    b.evict();
    expect_within(b, &files, SOON);
}

/// Where a block is on a node's device, bytes: what was overwritten since may be there, too.
fn find_on_device(node: &Node, block: &[u8]) -> Vec<u64> {
    let device = File::open(node.dir().join("nvme")).expect("open");
    let len = device.metadata().expect("stat").len();
    let mut piece = vec![0; 1 << 20];
    let mut places = Vec::new();
    for at in (0..len).step_by(piece.len()) {
        let n = device.read_at(&mut piece, at).expect("read");
        let blocks = piece[..n].chunks_exact(4096).zip(0u64..);
        for (found, n) in blocks {
            if found == block {
                places.push(at + n * 4096);
            }
        }
    }
    places
}
