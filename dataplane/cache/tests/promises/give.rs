//! Goal: a store full of what the cloud does not take gives chunks to nodes that have copies of them, so that writers go on; never
//! the last copies but one, and nothing is lost. Method: other nodes by a script, an agent that uploads nothing.

use crate::node::{Node, STORE_BYTES, assert_same, on_node, pattern, soon, until};
use crate::scripted::{Does, Others};
use fastcache_api::control::DataEvent;
use fastcache_api::{ChunkKey, Errno, Ino};
use fastcache_reactor::IoBuf;

const CHUNK: usize = 1 << 20;

/// A node whose other nodes have so many copies of whatever it sealed, and take chunks over.
fn with_takers(node: &Node, copies: usize) -> Others {
    node.fs.set_chunk_size(CHUNK as u32);
    let others = Others::default();
    {
        let mut script = others.0.lock().unwrap();
        script.takes = true;
        script.all_have = copies;
    }
    node.fs.set_peers(Box::new(others.clone()));
    others
}

fn data(chunk: usize) -> Vec<u8> {
    pattern(chunk as u64, CHUNK)
}

async fn write_chunks(node: &Node, ino: Ino, chunks: std::ops::Range<usize>) -> Result<(), Errno> {
    for chunk in chunks {
        node.write(ino, (chunk * CHUNK) as u64, &data(chunk))
            .await?;
    }
    node.flush(ino).await
}

/// Chunks of which the store has no room for half.
const MANY: usize = 2 * STORE_BYTES as usize / CHUNK;

#[test]
fn a_full_store_gives_what_two_others_have() {
    on_node(async |node, agent| {
        let others = with_takers(&node, 2);
        let ino = node.create("file").await;
        soon("writing", write_chunks(&node, ino, 0..MANY))
            .await
            .unwrap();
        let taken = others.0.lock().unwrap().taken.clone();
        assert!(taken.len() >= MANY / 2, "{} were given", taken.len());
        assert_eq!(node.fs.stats().peers.given_chunks, taken.len() as u64);
        // They are not here any more, the agent has heard of it, and nobody was told to forget them.
        for key in &taken {
            assert!(node.fs.store().find(*key).is_none(), "{key}");
        }
        let is_gone = |key: &ChunkKey| {
            let events = agent.events.borrow();
            events
                .iter()
                .any(|e| matches!(e, DataEvent::Gone(keys) if keys.contains(key)))
        };
        until("the agent hears of all", || taken.iter().all(is_gone)).await;
        let settled = others.0.lock().unwrap().settled.clone();
        assert!(taken.iter().all(|key| !settled.contains(key)));
        // An fsync does not wait for what has left.
        agent.copies.set(Some(2));
        soon("fsync", node.fsync(ino)).await.unwrap();
        // What is here is what was written; the rest is read from where it went.
        let contents = taken.iter().map(|key| (*key, data(key.index as usize)));
        let contents: Vec<_> = contents.collect();
        {
            let mut script = others.0.lock().unwrap();
            script.contents.extend(contents);
            script.homes = vec![("b", Does::Has)];
        }
        for chunk in 0..MANY {
            let got = node.read(ino, (chunk * CHUNK) as u64, CHUNK).await.unwrap();
            assert_same(&format!("chunk {chunk}"), &got, &data(chunk));
        }
    });
}

#[test]
fn the_last_copies_but_one_stay() {
    on_node(async |node, _| {
        let others = with_takers(&node, 1);
        node.fs.set_has_cloud(false);
        let ino = node.create("file").await;
        let written = soon("writing", write_chunks(&node, ino, 0..MANY)).await;
        assert_eq!(written, Err(Errno::ENOSPC));
        let script = others.0.lock().unwrap();
        assert!(script.taken.is_empty());
        assert!(!script.hurried.is_empty(), "copies of them are hurried");
    });
}

#[test]
fn a_replica_is_taken_over_from_its_owner_alone_and_never_while_it_is_given() {
    on_node(async |node, agent| {
        let others = with_takers(&node, 2);
        let ino = node.create("file").await;
        write_chunks(&node, ino, 0..1).await.unwrap();
        node.fsync(ino).await.unwrap();
        let key = node.fs.store().chunks_of(ino)[0].key();
        node.upload().await;
        assert_eq!(node.evict(ino).await, 1);
        agent.cloud.borrow_mut().clear();
        let put = async |owner| {
            let mut buf = IoBuf::alloc(CHUNK);
            buf.copy_from_slice(&data(0));
            soon("put", node.fs.put_for_peer(owner, key, CHUNK, buf)).await
        };
        let take = async |owner| soon("take", node.fs.take_for_peer(owner, key)).await;
        assert_eq!(take("a").await, Err(Errno::ENOENT), "it is not here");
        put("a").await.unwrap();
        assert_eq!(take("b").await, Err(Errno::ENOENT), "it is another's");
        assert_eq!(node.fs.stats().dirty_chunks, 0);
        assert_eq!(take("a").await, Ok(CHUNK));
        let stats = node.fs.stats();
        assert_eq!((stats.dirty_chunks, stats.peers.taken_chunks), (1, 1));
        assert_eq!(stats.peers.held_chunks, 0);
        assert_eq!(others.0.lock().unwrap().sealed.last(), Some(&key));
        // Its answer got lost.
        assert_eq!(take("a").await, Err(Errno::ENOENT));
        assert_eq!(node.fs.stats().dirty_chunks, 1);
        // In the cloud meanwhile: nobody needs to take it.
        node.upload().await;
        assert_eq!(node.evict(ino).await, 1);
        put("a").await.unwrap();
        assert_eq!(take("a").await, Err(Errno::ENOENT));
        assert_eq!(node.fs.stats().dirty_chunks, 0);
    });
}
