//! Goal: who reads in sequence finds the next chunks asked for already, and what is asked for in vain costs no reader
//! anything: no error, no room, no turn. Method: a cold file, an agent that holds or damages what it fetches.

use crate::node::{CHUNK, Node, assert_same, on_node, pattern, until};
use fastcache_api::Ino;

/// Chunks of the file.
const CHUNKS: usize = 40;
/// Bytes of one read: what makes a chunk's reader one in sequence.
const PIECE: usize = CHUNK / 4;

/// A file whose chunks are in the cloud alone, and its bytes.
async fn cold_file(node: &Node) -> (Ino, Vec<u8>) {
    let data = pattern(1, CHUNKS * CHUNK);
    let ino = node.cold_file("file", &data).await;
    node.fs.set_read_ahead(64 << 20);
    (ino, data)
}

#[test]
fn the_next_chunks_are_on_their_way_and_the_window_grows() {
    on_node(async |node, agent| {
        let (ino, data) = cold_file(&node).await;
        node.read(ino, 0, PIECE).await.unwrap();
        until("the second chunk is here", || {
            node.fs.stats().fetched_chunks == 2
        })
        .await;
        assert_eq!(node.fs.stats().ahead_chunks, 1);
        for at in (PIECE..data.len()).step_by(PIECE) {
            let got = node.read(ino, at as u64, PIECE).await.unwrap();
            assert_same("in sequence", &got, &data[at..at + PIECE]);
        }
        until("it has settled", || node.fs.stats().fetching_chunks == 0).await;
        let stats = node.fs.stats();
        assert_eq!(agent.fetches.borrow().len(), CHUNKS, "each chunk once");
        assert_eq!(stats.ahead_chunks as usize, CHUNKS - 1, "all but the first");
        assert_eq!(stats.ahead_used, stats.ahead_chunks, "and none in vain");
        assert_eq!(stats.ahead_wasted + stats.ahead_failed, 0);
        assert_eq!(node.arena.free(), node.arena.slots());
    });
}

#[test]
fn random_reads_ask_for_nothing_ahead() {
    on_node(async |node, _| {
        let (ino, data) = cold_file(&node).await;
        for i in 0..CHUNKS {
            let at = (i * 17 % CHUNKS) * CHUNK + 4096;
            let got = node.read(ino, at as u64, 4096).await.unwrap();
            assert_same("here and there", &got, &data[at..at + 4096]);
        }
        assert_eq!(node.fs.stats().ahead_chunks, 0);
    });
}

#[test]
fn what_cannot_be_read_ahead_is_asked_for_again_by_its_reader() {
    on_node(async |node, agent| {
        let (ino, data) = cold_file(&node).await;
        node.read(ino, 0, 100).await.unwrap();
        agent.damages_fetches.set(true);
        node.read(ino, 0, PIECE).await.unwrap();
        until("it failed", || node.fs.stats().ahead_failed == 1).await;
        agent.damages_fetches.set(false);
        let got = node.read(ino, CHUNK as u64, PIECE).await.unwrap();
        assert_same("read all the same", &got, &data[CHUNK..CHUNK + PIECE]);
    });
}

#[test]
fn who_waits_for_what_cannot_be_read_ahead_does_not_fail_with_it() {
    on_node(async |node, agent| {
        let (ino, data) = cold_file(&node).await;
        node.read(ino, 0, 100).await.unwrap();
        agent.holds_fetches.set(true);
        let before = agent.fetches.borrow().len();
        node.read(ino, 0, PIECE).await.unwrap();
        until("it is on its way", || agent.fetches.borrow().len() > before).await;
        let misses = node.fs.stats().misses;
        let damage = async {
            until("the reader waits", || node.fs.stats().misses > misses).await;
            agent.damages_fetches.set(true);
            agent.let_fetches_go(&node.link, &node.arena);
            agent.damages_fetches.set(false);
        };
        let read = node.read(ino, CHUNK as u64, PIECE);
        let (got, ()) = futures_util::future::join(read, damage).await;
        assert_same("no error", &got.unwrap(), &data[CHUNK..CHUNK + PIECE]);
        assert!(node.fs.stats().ahead_failed >= 1);
    });
}

#[test]
fn closing_or_changing_the_file_drops_what_nobody_waits_for() {
    on_node(async |node, agent| {
        let (ino, mut data) = cold_file(&node).await;
        for change in ["write", "truncate", "close"] {
            node.evict(ino).await;
            node.read(ino, 0, CHUNK).await.unwrap();
            until("nothing is on its way", || {
                node.fs.stats().fetching_chunks == 0
            })
            .await;
            node.evict(ino).await;
            let before = agent.fetches.borrow().len();
            agent.holds_fetches.set(true);
            let read = node.read(ino, 0, CHUNK);
            let release = async {
                until("the window is asked for", || {
                    node.fs.stats().fetching_chunks > 1
                })
                .await;
                until("it was asked", || agent.fetches.borrow().len() > before).await;
                match change {
                    "write" => node.write(ino, data.len() as u64, b"more").await.unwrap(),
                    "truncate" => node.truncate(ino, data.len() as u64).await.unwrap(),
                    _ => node.fs.release(ino, 0).await.unwrap(),
                }
                agent.let_fetches_go(&node.link, &node.arena);
            };
            let (got, ()) = futures_util::future::join(read, release).await;
            assert_same(change, &got.unwrap(), &data[..CHUNK]);
            until("nothing is on its way", || {
                node.fs.stats().fetching_chunks == 0
            })
            .await;
            if change == "write" {
                data.extend_from_slice(b"more");
                node.fsync(ino).await.unwrap();
                node.upload().await;
            }
            assert!(node.fs.stats().ahead_wasted > 0, "{change}");
            assert_eq!(node.arena.free(), node.arena.slots());
        }
    });
}
