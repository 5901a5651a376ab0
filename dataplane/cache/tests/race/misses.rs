use crate::node::{CHUNK, Node, all, try_node};
use fastcache_api::{Errno, Ino};
use fastcache_reactor::{Task, spawn, yield_now};

const READERS: usize = 3;

/// A file of one chunk that is in the cloud and not in the store.
async fn evicted_file(node: &Node) -> Ino {
    let ino = node.create("file").await;
    node.write(ino, 0, &[7; CHUNK]).await.unwrap();
    node.fs.fsync(ino, 0, false).await.unwrap();
    node.upload().await;
    assert_eq!(node.evict(ino).await, 1);
    ino
}

fn reader(node: &Node, ino: Ino) -> Task<Result<Vec<u8>, Errno>> {
    let node = node.clone();
    spawn(async move { node.read(ino, CHUNK).await })
}

#[test]
fn one_fetch_for_all_readers() {
    try_node(async |node| {
        let ino = evicted_file(node).await;
        for got in all((0..READERS).map(|_| reader(node, ino))).await {
            assert_eq!(got.unwrap(), [7; CHUNK]);
        }
        assert_eq!(node.agent.fetches.borrow().len(), 1);
        node.at_rest().await;
        node.emptied().await;
    });
}

#[test]
fn a_failed_fetch_fails_who_waits_and_is_not_remembered() {
    try_node(async |node| {
        let ino = evicted_file(node).await;
        node.agent.damages_fetches.set(true);
        for got in all((0..READERS).map(|_| reader(node, ino))).await {
            assert_eq!(got.err(), Some(Errno::EIO));
        }
        node.at_rest().await;
        assert!(node.fs.store().chunks_of(ino).is_empty());
        node.agent.damages_fetches.set(false);
        assert_eq!(node.read(ino, CHUNK).await.unwrap(), [7; CHUNK]);
        node.at_rest().await;
        node.emptied().await;
    });
}

#[test]
fn a_reader_that_gives_up_holds_nothing() {
    try_node(async |node| {
        let ino = evicted_file(node).await;
        let (one, two) = (reader(node, ino), reader(node, ino));
        let impatient = spawn(async move {
            for _ in 0..3 {
                yield_now().await;
            }
            drop(two);
        });
        assert_eq!(one.await.unwrap(), [7; CHUNK]);
        impatient.await;
        node.at_rest().await;
        assert_eq!(node.read(ino, CHUNK).await.unwrap(), [7; CHUNK]);
        node.emptied().await;
    });
}

#[test]
fn readers_and_evictions_go_together() {
    try_node(async |node| {
        let ino = evicted_file(node).await;
        let evictor = {
            let node = node.clone();
            spawn(async move {
                for _ in 0..2 {
                    node.evict(ino).await;
                    node.fs.store().reclaim().await.unwrap();
                }
            })
        };
        for got in all((0..READERS).map(|_| reader(node, ino))).await {
            assert_eq!(got.unwrap(), [7; CHUNK]);
        }
        evictor.await;
        node.at_rest().await;
        node.emptied().await;
    });
}
