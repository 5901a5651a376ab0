//! Goal: a store full of what is not in the cloud makes writers wait, not fail; they go on when chunks become clean, and
//! nothing is lost, not even what a waiting writer is about to replace. Method: more bytes than the store has, first
//! without an uploader, then with one.

use crate::agent::inventory;
use crate::node::{Node, STORE_BYTES, assert_same, on_node, pattern, soon, until};
use fastcache_api::control::{DataAnswer, DataCall, DataEvent};
use fastcache_api::{Errno, Ino};
use futures_util::future::{join, join_all};
use std::cell::Cell;

/// Chunk size here, bytes: fewer chunks than with the small one.
const BIG_CHUNK: usize = 1 << 20;
const WRITERS: usize = 4;
/// Together a good deal more than the store.
const CHUNKS_EACH: usize = 24;

/// One round of what the agent does: uploads, and says what may go.
async fn relieve(node: &Node) {
    node.upload().await;
    let ids = inventory(&node.fs)
        .await
        .iter()
        .map(|c| c.key.id())
        .collect();
    node.fs.serve(DataCall::Victims { ids }).await.unwrap();
}

#[test]
fn writers_wait_for_uploads_and_go_on() {
    on_node(async |node, agent| {
        node.fs.set_chunk_size(BIG_CHUNK as u32);
        assert!((WRITERS * CHUNKS_EACH * BIG_CHUNK) as u64 > STORE_BYTES);
        let mut inos = Vec::new();
        for i in 0..WRITERS {
            inos.push(node.create(&format!("file {i}")).await);
        }
        let data = |writer: usize, chunk: usize| pattern((writer * 1000 + chunk) as u64, BIG_CHUNK);
        let (written, done) = (Cell::new(0), Cell::new(0));
        let writers = join_all(inos.iter().enumerate().map(|(i, ino)| {
            let (node, written, done) = (&node, &written, &done);
            async move {
                for chunk in 0..CHUNKS_EACH {
                    let at = (chunk * BIG_CHUNK) as u64;
                    node.write(*ino, at, &data(i, chunk)).await.unwrap();
                    written.set(written.get() + 1);
                }
                node.flush(*ino).await.unwrap();
                done.set(done.get() + 1);
            }
        }));
        let uploads = async {
            until("every writer waits", || {
                node.fs.stats().write_stalls >= WRITERS as u64
            })
            .await;
            assert_eq!(done.get(), 0, "they cannot all fit");
            let usage = node.fs.store().usage();
            assert!(usage.dirty_bytes < usage.capacity_bytes, "{usage:?}");
            let is_blocked = |e: &DataEvent| {
                matches!(
                    e,
                    DataEvent::Pressure {
                        is_blocked: true,
                        ..
                    }
                )
            };
            until("the agent hears of it", || {
                agent.events.borrow().iter().any(is_blocked)
            })
            .await;
            while done.get() < WRITERS {
                relieve(&node).await;
                fastcache_reactor::yield_now().await;
            }
        };
        soon("writers and uploads", join(writers, uploads)).await;
        assert_eq!(written.get(), WRITERS * CHUNKS_EACH);
        relieve(&node).await;
        for (i, ino) in inos.iter().enumerate() {
            for chunk in 0..CHUNKS_EACH {
                let got = node
                    .read(*ino, (chunk * BIG_CHUNK) as u64, BIG_CHUNK)
                    .await
                    .unwrap();
                assert_same(&format!("file {i}, chunk {chunk}"), &got, &data(i, chunk));
            }
        }
    });
}

/// Fills the store with clean chunks that may not be evicted (they are on no list).
async fn fill(node: &Node) -> Ino {
    let ino = node.create("filler").await;
    let mut at = 0;
    while node.fs.store().usage().free_bytes > 2 * BIG_CHUNK as u64 {
        node.write(ino, at, &pattern(at, BIG_CHUNK)).await.unwrap();
        node.fsync(ino).await.unwrap();
        node.upload().await;
        node.fs.store().reclaim().await.unwrap();
        at += BIG_CHUNK as u64;
    }
    ino
}

#[test]
fn the_old_bytes_stay_until_a_waiting_writer_has_room_for_the_new_ones() {
    on_node(async |node, _| {
        node.fs.set_chunk_size(BIG_CHUNK as u32);
        let ino = node.create("file").await;
        let chunks = 4;
        let old = pattern(1, chunks * BIG_CHUNK);
        let new = pattern(2, chunks * BIG_CHUNK);
        node.write(ino, 0, &old).await.unwrap();
        node.fsync(ino).await.unwrap();
        node.upload().await;
        fill(&node).await;
        let stalls = node.fs.stats().write_stalls;
        let writer = async { node.write(ino, 0, &new).await.unwrap() };
        let reader = async {
            until("the writer waits", || node.fs.stats().write_stalls > stalls).await;
            for chunk in 0..chunks {
                let (a, b) = (chunk * BIG_CHUNK, (chunk + 1) * BIG_CHUNK);
                let got = node.read(ino, a as u64, BIG_CHUNK).await.unwrap();
                if got != new[a..b] {
                    assert_same(
                        &format!("chunk {chunk} under a waiting writer"),
                        &got,
                        &old[a..b],
                    );
                }
            }
            relieve(&node).await;
        };
        soon("the writer", join(writer, reader)).await;
        let got = node.read(ino, 0, new.len()).await.unwrap();
        assert_same("at the end", &got, &new);
    });
}

#[test]
fn an_upload_that_may_wait_waits_for_who_writes_the_next_version() {
    on_node(async |node, _| {
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 10_000)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let key = inventory(&node.fs).await[0].key;
        let read = async |key, is_patient| {
            let answer = node.fs.serve(DataCall::ReadChunk { key, is_patient }).await;
            answer.map(|answer| match answer {
                DataAnswer::Slot { slot, len, .. } => {
                    node.fs.release_slot(slot);
                    len
                }
                other => panic!("ReadChunk: {other:?}"),
            })
        };
        assert_eq!(read(key, true).await, Ok(10_000), "nobody writes");
        node.write(ino, 10_000, &pattern(2, 10)).await.unwrap();
        assert_eq!(read(key, true).await, Err(Errno::EAGAIN));
        assert_eq!(read(key, false).await, Ok(10_000), "the sealed version");
        node.fsync(ino).await.unwrap();
        let key = inventory(&node.fs).await[0].key;
        assert_eq!(read(key, true).await, Ok(10_010), "nobody writes any more");
    });
}
