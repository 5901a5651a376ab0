//! Goal: what is sealed is read as it was, within a session and in the next one.

use super::*;

#[test]
fn inline_chunks_of_every_size_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let lens = [
        1,
        100,
        4096,
        4097,
        65_536,
        131_072,
        200_000,
        1 << 20,
        CHUNK - 1,
        CHUNK,
    ];
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 0);
        for (n, &len) in lens.iter().enumerate() {
            let key = key(7, n as u32, 100 + n as u64);
            let sealed = store.seal(vec![chunk(key, len)], None).await.unwrap();
            assert_eq!(sealed.bodies.len(), 1);
            assert_eq!(sealed.number, 0);
            let body = &sealed.bodies[0];
            assert!(body.is_dirty());
            assert_eq!(body.runs().len(), 1);
            if len >= 64 << 10 {
                // Header and rounding stay within 10 %.
                assert!(body.device_bytes() * 10 <= u64::from(len) * 11, "{len}");
            }
            expect(&store, key, len).await;
        }
        assert_eq!(store.chunks_of(Ino(7)).len(), lens.len());
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, lens.len() as u64);
        assert!(recovered.pending.is_empty());
        for (n, &len) in lens.iter().enumerate() {
            // Not in RAM: the checksums come from the header.
            expect(&store, key(7, n as u32, 100 + n as u64), len).await;
        }
        store.close().await.unwrap();
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, lens.len() as u64);
        for (n, &len) in lens.iter().enumerate() {
            expect(&store, key(7, n as u32, 100 + n as u64), len).await;
        }
    });
}

#[test]
fn reads_of_parts_past_the_end_and_over_holes() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        // Blocks 0-3 hole, 4-7 data, 8 hole, 9-10 data, 11 hole (the chunk ends in it).
        let data = bytes(5, 6 * 4096);
        let a = store.allocate(4).unwrap();
        let b = store.allocate(2).unwrap();
        let crcs = crc_blocks(&data);
        store
            .write_blocks(a.start, buf(&data[..4 * BLOCK]))
            .await
            .0
            .unwrap();
        store
            .write_blocks(b.start, buf(&data[4 * BLOCK..]))
            .await
            .0
            .unwrap();
        let mut all = vec![0; 12];
        all[4..8].copy_from_slice(&crcs[..4]);
        all[9..11].copy_from_slice(&crcs[4..]);
        let runs = vec![
            BlockRun {
                first: 4,
                extent: a,
            },
            BlockRun {
                first: 9,
                extent: b,
            },
        ];
        let placed = SealChunk {
            key: key(3, 0, 1),
            len: 11 * 4096 + 10,
            is_dirty: true,
            is_kept: false,
            is_pending: false,
            data: SealData::Placed { runs, crcs: all },
        };
        let sealed = store.seal(vec![placed], None).await.unwrap();
        let mut image = vec![0; 64 * BLOCK];
        image[4 * BLOCK..8 * BLOCK].copy_from_slice(&data[..4 * BLOCK]);
        image[9 * BLOCK..11 * BLOCK].copy_from_slice(&data[4 * BLOCK..]);
        for first in 0..14u32 {
            for blocks in 1..15usize {
                let mut buf = IoBuf::alloc(blocks * BLOCK);
                buf.fill(0xEE);
                let at = buf.as_ptr();
                let (result, buf) = store.read(&sealed.bodies[0], first, buf).await;
                result.unwrap();
                assert_eq!(buf.as_ptr(), at);
                let first = first as usize * BLOCK;
                assert!(
                    buf[..] == image[first..first + blocks * BLOCK],
                    "{first} {blocks}"
                );
            }
        }
        let (result, _) = store.read(&sealed.bodies[0], 0, IoBuf::alloc(100)).await;
        assert!(matches!(result, Err(StoreError::Invalid(_))));
    });
}

/// A new version of a chunk that keeps all blocks of `base` but block 1.
async fn overwrite_block_1(store: &Store, base: &Arc<ChunkBody>, key: ChunkKey) -> SealChunk {
    let new = bytes(key.version.0, 4096);
    let e = store.allocate(1).unwrap();
    store.write_blocks(e.start, buf(&new)).await.0.unwrap();
    let mut crcs = store.meta(base).await.unwrap().crcs.to_vec();
    crcs[1] = crc_block(&new);
    let mut runs = Vec::new();
    for run in base.runs() {
        for n in 0..run.extent.len {
            let first = run.first + n;
            let at = if first == 1 {
                e.start
            } else {
                run.extent.start + n
            };
            runs.push(BlockRun {
                first,
                extent: Extent { start: at, len: 1 },
            });
        }
    }
    let data = SealData::Placed { runs, crcs };
    SealChunk {
        key,
        len: base.len(),
        is_dirty: true,
        is_kept: false,
        is_pending: false,
        data,
    }
}

#[test]
fn a_new_version_shares_blocks_and_the_old_one_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let len = 40_000;
    let mut image = bytes(1, len);
    image[4096..8192].copy_from_slice(&bytes(2, 4096));
    session(dir.path(), async |store, _| {
        let old = store
            .seal(vec![chunk(key(9, 4, 1), len)], None)
            .await
            .unwrap()
            .bodies
            .remove(0);
        let new = overwrite_block_1(&store, &old, key(9, 4, 2)).await;
        let mut sealed = store.seal(vec![new], None).await.unwrap();
        assert_eq!(sealed.replaced, vec![key(9, 4, 1)]);
        let dead = sealed.dead.pop().unwrap();
        assert!(Arc::ptr_eq(&dead, &old) && sealed.dead.is_empty());
        drop(dead);
        assert!(read(&store, &old).await.unwrap() == bytes(1, len));
        assert!(read(&store, &sealed.bodies[0]).await.unwrap() == image);
        check(&store, std::slice::from_ref(&old));
        let used = store.usage().used_bytes;
        drop(old);
        // Its header and block 1 wait for a flush.
        assert_eq!(store.usage().quarantined_bytes, 2 * 4096);
        assert_eq!(store.usage().used_bytes, used - 2 * 4096);
        store.reclaim().await.unwrap();
        assert_eq!(store.usage().quarantined_bytes, 0);
    });
    session(dir.path(), async |store, _| {
        let body = store.get(id(9, 4)).unwrap();
        assert_eq!(body.key(), key(9, 4, 2));
        assert!(read(&store, &body).await.unwrap() == image);
        // The base is gone from the index before the seal: its handle alone keeps the blocks.
        store.mark_clean(&[key(9, 4, 2)]).await.unwrap();
        let new = overwrite_block_1(&store, &body, key(9, 4, 3)).await;
        store.evict(id(9, 4)).unwrap();
        store.seal(vec![new], None).await.unwrap();
        drop(body);
        store.reclaim().await.unwrap();
    });
    session(dir.path(), async |store, _| {
        image[4096..8192].copy_from_slice(&bytes(3, 4096));
        let body = store.get(id(9, 4)).unwrap();
        assert!(read(&store, &body).await.unwrap() == image);
    });
}

#[test]
fn many_chunks_in_one_seal_are_all_or_nothing_with_their_file() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        // More records than one submission takes, and a stranger among them.
        let mut chunks: Vec<_> = (0..6000).map(|n| chunk(key(1, n, 10), 1)).collect();
        chunks.push(chunk(key(2, 0, 11), 50));
        let sealed = store.seal(chunks, file(1, &[9; 1000])).await.unwrap();
        assert_eq!(sealed.bodies.len(), 6001);
        for (n, body) in sealed.bodies[..6000].iter().enumerate() {
            assert_eq!(body.key(), key(1, n as u32, 10));
        }
        let too_long = vec![0; 10 << 20];
        assert!(matches!(
            store.seal(vec![], file(1, &too_long)).await,
            Err(StoreError::CommitTooLong { .. })
        ));
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 6001);
        assert_eq!(recovered.pending.len(), 1);
        assert_eq!(store.chunks_of(Ino(1)).len(), 6000);
        let (mut from, mut all) = (Some(0), 0);
        while let Some(at) = from {
            let (page, next) = store.inventory(at);
            all += page.len();
            from = next;
        }
        assert_eq!(all, 6001);
    });
}

#[test]
fn the_journal_wraps_and_checkpoints_follow() {
    let dir = tempfile::tempdir().unwrap();
    // 16384 blocks: a ring of 1024.
    let rounds = 3000u64;
    session(dir.path(), async |store, _| {
        for n in 0..rounds {
            let index = (n % 50) as u32;
            store
                .seal(vec![chunk(key(1, index, n + 1), 3000)], None)
                .await
                .unwrap();
            if n % 100 == 0 {
                store.flush().await.unwrap();
            }
        }
        let st = store.inner.journal.lock();
        assert!(
            st.head >= rounds && st.newest.sequence > 3,
            "{} {:?}",
            st.head,
            st.newest
        );
        assert!(st.head - st.tail <= 1024);
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 50);
        for n in rounds - 50..rounds {
            expect(&store, key(1, (n % 50) as u32, n + 1), 3000).await;
        }
        // Many at once share groups, and wait for each other where the ring is short.
        let work = (0..2000u64).map(|n| {
            let store = store.clone();
            async move {
                store
                    .seal(
                        vec![chunk(key(n + 2, 1, 10_000 + n), 10)],
                        file(n + 2, b"c"),
                    )
                    .await
            }
        });
        for sealed in futures_util::future::join_all(work).await {
            let number = sealed.unwrap().number;
            assert!(number > 0);
        }
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 2050);
        assert_eq!(recovered.pending.len(), 2000);
        for n in 0..2000 {
            expect(&store, key(n + 2, 1, 10_000 + n), 10).await;
        }
    });
}

#[test]
fn wrong_use_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        let short = SealChunk {
            len: 5000,
            ..chunk(key(1, 0, 1), 100)
        };
        assert!(matches!(
            store.seal(vec![short], None).await,
            Err(StoreError::Invalid(_))
        ));
        let placed = |runs: Vec<BlockRun>, blocks: usize| SealChunk {
            key: key(1, 0, 1),
            len: 8192,
            is_dirty: true,
            is_kept: false,
            is_pending: false,
            data: SealData::Placed {
                runs,
                crcs: vec![0; blocks],
            },
        };
        let run = |first, start, len| BlockRun {
            first,
            extent: Extent { start, len },
        };
        let free = store.inner.superblock.geometry.data.start;
        for bad in [
            placed(vec![], 1),
            placed(vec![run(1, free, 1), run(0, free + 1, 1)], 2),
            placed(vec![run(1, free, 2)], 2),
            placed(vec![run(0, 0, 1)], 2),
            placed(vec![run(0, u32::MAX, 2)], 2),
            placed(vec![run(0, free, 1)], 2),
        ] {
            assert!(matches!(
                store.seal(vec![bad], None).await,
                Err(StoreError::Invalid(_))
            ));
        }
        store.flush().await.unwrap();
        assert_eq!(store.usage().used_bytes, 0);
    });
}
