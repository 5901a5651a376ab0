//! Goal: a chunk that is missing is fetched once for everybody who waits, and bytes that do not match their checksum
//! never reach a reader or the store. Method: a file whose only copy is in the cloud; an agent that holds its answers
//! until all readers wait, or sends wrong bytes.

use crate::node::{CHUNK, assert_same, on_node, pattern, soon, until};
use fastcache_api::Errno;
use futures_util::future::join_all;

const READERS: usize = 8;

#[test]
fn one_fetch_for_everybody_who_waits() {
    on_node(async |node, agent| {
        let data = pattern(1, 2 * CHUNK);
        let ino = node.cold_file("file", &data).await;
        agent.holds_fetches.set(true);
        let misses = node.fs.stats().misses;
        let readers = join_all((0..READERS).map(|i| {
            let (node, data) = (&node, &data);
            async move {
                // Different ranges of the first chunk, unaligned ones, too.
                let at = i * 5000;
                let got = node.read(ino, at as u64, 7000).await.unwrap();
                assert_same("a reader", &got, &data[at..at + 7000]);
            }
        }));
        let release = async {
            until("every reader waits", || {
                node.fs.stats().misses - misses == READERS as u64
                    && !agent.fetches.borrow().is_empty()
            })
            .await;
            agent.let_fetches_go(&node.link, &node.arena);
        };
        soon("the readers", futures_util::future::join(readers, release)).await;
        assert_eq!(
            agent.fetches.borrow().len(),
            1,
            "{:?}",
            agent.fetches.borrow()
        );
        until("the chunk is kept", || {
            node.fs.store().chunks_of(ino).len() == 1
        })
        .await;
        node.read(ino, 0, CHUNK).await.unwrap();
        assert_eq!(
            agent.fetches.borrow().len(),
            1,
            "later reads find it in the store"
        );
        assert_eq!(node.fs.stats().fetched_chunks, 1);
    });
}

#[test]
fn wrong_bytes_from_the_cloud_are_an_error_and_never_data() {
    on_node(async |node, agent| {
        let data = pattern(1, 2 * CHUNK);
        let ino = node.cold_file("file", &data).await;
        agent.damages_fetches.set(true);
        assert_eq!(node.read(ino, 0, 100).await, Err(Errno::EIO));
        assert_eq!(
            node.read(ino, 3000, CHUNK).await,
            Err(Errno::EIO),
            "over two chunks"
        );
        // A writer that needs the old bytes fails, too, and leaves no half chunk behind.
        assert_eq!(node.write(ino, 10, b"new").await, Err(Errno::EIO));
        assert!(
            node.fs.store().chunks_of(ino).is_empty(),
            "nothing wrong is kept"
        );
        assert_eq!(
            node.arena.free(),
            node.arena.slots(),
            "every slot came back"
        );
        // The error is not remembered.
        agent.damages_fetches.set(false);
        assert_same(
            "right again",
            &node.read(ino, 0, 2 * CHUNK).await.unwrap(),
            &data,
        );
    });
}

#[test]
fn a_fetch_the_agent_died_under_is_asked_of_the_next() {
    on_node(async |node, agent| {
        let data = pattern(1, 2 * CHUNK);
        let ino = node.cold_file("file", &data).await;
        agent.holds_fetches.set(true);
        let read = node.read(ino, 0, 2 * CHUNK);
        let restart = async {
            until("both chunks are asked for", || {
                agent.fetches.borrow().len() == 2
            })
            .await;
            node.link.detach(0, 1);
            agent.holds_fetches.set(false);
            agent.attach(&node.link, &node.arena, 2);
        };
        let (got, ()) = soon("the read", futures_util::future::join(read, restart)).await;
        assert_same("after a new agent came", &got.unwrap(), &data);
        assert_eq!(agent.fetches.borrow().len(), 4);
    });
}

#[test]
fn bytes_elsewhere_stay_until_the_write_that_covers_them_is_done() {
    on_node(async |node, _| {
        for round in 0..50 {
            let old = pattern(1 + 2 * round, 2 * CHUNK);
            let new = pattern(2 + 2 * round, 2 * CHUNK);
            let ino = node.cold_file(&format!("file-{round}"), &old).await;
            // Whole blocks with a tail that gathers, both chunks at once, while others read and write.
            let len = 2 * CHUNK;
            let reads = async {
                for _ in 0..4 {
                    let got = node.read(ino, 0, len).await.unwrap();
                    for half in [0..CHUNK, CHUNK..len] {
                        let is_old = got[half.clone()] == old[half.clone()];
                        let is_patched = half.start == 0 && {
                            let mut patched = old[half.clone()].to_vec();
                            patched[10..13].copy_from_slice(b"new");
                            got[half.clone()] == patched
                        };
                        let mut covered = new[half.clone()].to_vec();
                        let is_new = got[half.clone()] == covered;
                        covered[10..13].copy_from_slice(b"new");
                        assert!(
                            is_old || is_patched || is_new || got[half.clone()] == covered,
                            "round {round}: {half:?} is neither old nor new"
                        );
                    }
                }
            };
            let cover = async { node.write(ino, 0, &new).await.unwrap() };
            let patch = async {
                if round % 2 == 1 {
                    node.write(ino, 10, b"new").await.unwrap();
                }
            };
            soon(
                "all of them",
                futures_util::future::join3(patch, cover, reads),
            )
            .await;
            let got = node.read(ino, 0, len).await.unwrap();
            let mut patched = new.clone();
            patched[10..13].copy_from_slice(b"new");
            assert!(
                got == new || round % 2 == 1 && got == patched,
                "round {round}"
            );
            node.fsync(ino).await.unwrap();
            assert_eq!(
                node.read(ino, 0, len).await.unwrap(),
                got,
                "round {round}: sealed"
            );
        }
        assert_eq!(node.arena.free(), node.arena.slots());
    });
}
