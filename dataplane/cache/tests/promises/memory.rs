//! Goal: the index of the store stays within its bound as the store does within its capacity, and checksums give way to
//! everything else. Method: bounds far below what is written.

use crate::agent::inventory;
use crate::node::{Node, on_node, pattern, until};
use fastcache_api::control::DataCall;
use fastcache_cache::MemoryLimits;

/// Chunks that there may be.
const CHUNKS: u64 = 100;

async fn write_files(node: &Node, from: u64, to: u64) {
    for n in from..to {
        let ino = node.create(&format!("file {n}")).await;
        node.write(ino, 0, &pattern(n, 100)).await.unwrap();
        node.flush(ino).await.unwrap();
    }
}

#[test]
fn chunks_beyond_the_bound_of_the_index_are_evicted() {
    on_node(async |node, _| {
        node.fs.set_memory(MemoryLimits {
            chunks: CHUNKS,
            ..MemoryLimits::default()
        });
        let fs = node.fs.clone();
        let background = fastcache_reactor::spawn(async move { fs.background().await });
        for round in 0..4 {
            write_files(&node, round * 50, (round + 1) * 50).await;
            node.upload().await;
            let ids = inventory(&node.fs).await;
            let ids = ids.iter().map(|c| c.key.id()).collect();
            node.fs.serve(DataCall::Victims { ids }).await.unwrap();
        }
        until("the index is within its bound", || {
            node.fs.stats().chunks <= CHUNKS
        })
        .await;
        assert!(node.fs.stats().evicted_chunks >= CHUNKS);
        drop(background);
    });
}

#[test]
fn checksums_have_what_the_others_leave() {
    on_node(async |node, _| {
        let limits = MemoryLimits {
            tables_bytes: 1 << 20,
            checksums_least_bytes: 4096,
            checksums_most_bytes: 1 << 20,
            ..MemoryLimits::default()
        };
        node.fs.set_memory(limits);
        write_files(&node, 0, 50).await;
        let now = node.fs.memory();
        assert!(now.index_bytes > 0 && now.inodes_bytes > 0, "{now:?}");
        let others = now.index_bytes + now.inodes_bytes + now.writes_bytes;
        assert_eq!(node.fs.share_memory(i64::MAX), limits.tables_bytes - others);
        // The process has as much as it may: no more than they have.
        let have = node.fs.memory().checksums_bytes;
        assert_eq!(node.fs.share_memory(0), have.max(4096));
        // It has too much.
        assert_eq!(node.fs.share_memory(i64::MIN), 4096);
        assert!(node.fs.memory().checksums_bytes <= 4096);
    });
}
