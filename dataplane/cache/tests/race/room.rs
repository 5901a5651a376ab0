use crate::node::{CHUNK, Node, all, try_node, until};
use fastcache_api::control::{DataCall, DataEvent};
use fastcache_api::{ChunkKey, Ino, Version};
use fastcache_chunkstore::{BlockRun, SealChunk, SealData};
use fastcache_reactor::{Task, spawn};
use fastcache_types::{BLOCK, CHUNK_BLOCKS_MAX, Extent};

const WRITERS: usize = 2;

/// Fills the store but for `left` blocks with chunks of one file that nobody reads; their keys.
async fn fill(node: &Node, left: u32, is_dirty: bool) -> Vec<ChunkKey> {
    let store = node.fs.store();
    let mut keys = Vec::new();
    loop {
        let free = (store.usage().free_bytes / BLOCK as u64) as u32;
        let blocks = free.saturating_sub(left + 3).min(CHUNK_BLOCKS_MAX as u32);
        if blocks == 0 {
            return keys;
        }
        let extent: Extent = store.allocate(blocks).unwrap();
        let key = ChunkKey {
            ino: Ino(7),
            index: keys.len() as u32,
            version: Version(1 << 40),
        };
        let chunk = SealChunk {
            key,
            len: blocks * BLOCK as u32,
            is_dirty,
            is_kept: false,
            is_pending: false,
            data: SealData::Placed {
                runs: vec![BlockRun { first: 0, extent }],
                crcs: vec![0; blocks as usize],
            },
        };
        store.seal(vec![chunk], None).await.unwrap();
        keys.push(key);
    }
}

fn writers(node: &Node, inos: &[Ino]) -> Vec<Task<()>> {
    let write = |ino: Ino| {
        let node = node.clone();
        spawn(async move {
            node.write(ino, 0, &[7; CHUNK]).await.unwrap();
            node.fs.flush(ino, 0).await.unwrap();
        })
    };
    inos.iter().map(|ino| write(*ino)).collect()
}

/// Once a writer says that it is blocked, `relieve` makes room: once.
fn relief(node: &Node, call: DataCall) -> Task<()> {
    let node = node.clone();
    spawn(async move {
        let is_blocked = |e: &DataEvent| {
            matches!(
                e,
                DataEvent::Pressure {
                    is_blocked: true,
                    ..
                }
            )
        };
        until("a writer is blocked", || {
            node.agent.events.borrow().iter().any(is_blocked)
        })
        .await;
        node.fs.serve(call).await.unwrap();
    })
}

async fn files(node: &Node) -> Vec<Ino> {
    let mut inos = Vec::new();
    for i in 0..WRITERS {
        inos.push(node.create(&format!("file {i}")).await);
    }
    inos
}

async fn written(node: &Node, inos: &[Ino]) {
    for ino in inos {
        assert_eq!(node.read(*ino, CHUNK).await.unwrap(), [7; CHUNK]);
        node.fs.fsync(*ino, 0, false).await.unwrap();
    }
    node.emptied().await;
}

#[test]
fn a_writer_without_room_is_woken_when_something_may_go() {
    try_node(async |node| {
        let inos = files(node).await;
        let ids = fill(node, 0, false).await.iter().map(|k| k.id()).collect();
        let relief = relief(node, DataCall::Victims { ids });
        all(writers(node, &inos)).await;
        relief.await;
        written(node, &inos).await;
    });
}

#[test]
fn a_writer_at_the_dirty_cap_is_woken_by_an_upload() {
    try_node(async |node| {
        let inos = files(node).await;
        let keys = fill(node, 200, true).await;
        let relief = relief(node, DataCall::MarkClean { keys });
        all(writers(node, &inos)).await;
        relief.await;
        written(node, &inos).await;
    });
}
