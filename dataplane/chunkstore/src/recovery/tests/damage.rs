//! Damage to groups of the journal and to chunks: what it takes, and where it is found.

use super::*;

#[test]
fn a_torn_or_damaged_group_ends_the_replay() {
    for at in [0, 5, 20, 40, 60] {
        let dir = tempfile::tempdir().unwrap();
        let second = session(dir.path(), async |store, _| {
            one(&store, 0, 1).await;
            let second = one(&store, 1, 2).await;
            one(&store, 2, 3).await;
            second
        });
        flip(dir.path(), second + at);
        session(dir.path(), async |store, recovered| {
            assert_eq!(recovered.chunks, 1);
            expect(&store, key(1, 0, 1), 5000).await;
            // Written where the damaged group was; the group behind it is still whole on the device.
            assert_eq!(one(&store, 3, 4).await, second);
        });
        session(dir.path(), async |store, recovered| {
            assert_eq!(recovered.chunks, 2);
            expect(&store, key(1, 0, 1), 5000).await;
            expect(&store, key(1, 3, 4), 5000).await;
        });
    }
}

#[test]
fn a_group_that_wraps_around_the_ring_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let torn = session(dir.path(), async |store, _| {
        let ring = store.inner.journal.ring;
        let mut n = 0;
        while store.inner.journal.lock().head % u64::from(ring.len) != u64::from(ring.len) - 1 {
            n += 1;
            one(&store, 0, n).await;
        }
        // 200 records take two blocks or more: the last of the ring and the first.
        let many = (0..200).map(|i| chunk(key(2, i, 1000), 1)).collect();
        store.seal(many, None).await.unwrap();
        u64::from(ring.start) * BLOCK_U64 + 9
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 201);
        expect(&store, key(2, 199, 1000), 1).await;
    });
    flip(dir.path(), torn);
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 1);
        assert!(store.get(id(2, 0)).is_none());
    });
}

#[test]
fn a_flipped_bit_of_a_chunk_is_found_where_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (data, header) = session(dir.path(), async |store, _| {
        let len = 10 * 4096;
        let a = store
            .seal(vec![chunk(key(1, 0, 1), len)], None)
            .await
            .unwrap();
        let b = store
            .seal(vec![chunk(key(1, 1, 2), len)], None)
            .await
            .unwrap();
        // What is known to be flushed is not verified at the start.
        store.flush().await.unwrap();
        store.seal(vec![], file(9, b"")).await.unwrap();
        let data = a.bodies[0].runs()[0].extent.offset() + 7 * BLOCK_U64 + 100;
        (data, b.bodies[0].header_extent().offset() + 70)
    });
    flip(dir.path(), data);
    flip(dir.path(), header);
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 2);
        let a = store.get(id(1, 0)).unwrap();
        match read(&store, &a).await {
            Err(StoreError::Checksum { key: k, block }) => {
                assert_eq!((k, block), (key(1, 0, 1), 7))
            }
            other => panic!("{other:?}"),
        }
        // The other blocks are as good as ever.
        let (result, some) = store.read(&a, 0, IoBuf::alloc(7 * BLOCK)).await;
        result.unwrap();
        assert!(some[..] == bytes(1, 10 * 4096)[..7 * BLOCK]);
        let b = store.get(id(1, 1)).unwrap();
        assert!(matches!(
            read(&store, &b).await,
            Err(StoreError::Corrupt { .. })
        ));
        assert_eq!(store.errors().checksum_errors, 2);
        store.remove(&[a.key(), b.key()]).await.unwrap();
    });
    session(dir.path(), async |_, recovered| {
        assert_eq!(recovered.chunks, 0)
    });
}

#[test]
fn versions_never_repeat_a_cached_checksum() {
    // Same key, evicted and fetched again in another shape: the checksums of the first body must not be used.
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        let sealed = store
            .seal(vec![clean(key(1, 0, 1), 8192)], None)
            .await
            .unwrap();
        drop(sealed);
        store.evict(id(1, 0)).unwrap();
        store.reclaim().await.unwrap();
        let image = [vec![0; 4096], bytes(9, 4096)].concat();
        let e = store.allocate(1).unwrap();
        store
            .write_blocks(e.start, buf(&image[4096..]))
            .await
            .0
            .unwrap();
        let runs = vec![crate::BlockRun {
            first: 1,
            extent: e,
        }];
        let crcs = vec![0, crate::crc_block(&image[4096..])];
        let again = SealChunk {
            key: crate::tests::key(1, 0, Version(1).0),
            len: 8192,
            is_dirty: false,
            is_kept: false,
            is_pending: false,
            data: SealData::Placed { runs, crcs },
        };
        let body = store
            .seal(vec![again], None)
            .await
            .unwrap()
            .bodies
            .remove(0);
        assert!(read(&store, &body).await.unwrap() == image);
    });
}
