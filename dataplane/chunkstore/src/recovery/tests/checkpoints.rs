//! Checkpoints, whole, damaged and gone.

use super::*;

/// Four checkpoints and records behind each; answers the areas, the newest one's first.
fn checkpointed(dir: &Path) -> [u64; 2] {
    session(dir, async |store, _| {
        let mut version = 0;
        for round in 0..4 {
            for index in 0..20 {
                version += 1;
                one(&store, index + round * 10, version).await;
            }
            store.close().await.unwrap();
        }
        store.mark_clean(&[key(1, 49, 80)]).await.unwrap();
        store.remove(&[key(1, 48, 79)]).await.unwrap();
        let newest = store.inner.journal.lock().newest.area;
        let areas = store.inner.superblock.geometry.checkpoints;
        [areas[newest], areas[1 - newest]].map(|e| e.offset())
    })
}

async fn is_as_checkpointed(store: &Store, recovered: &Recovered) {
    assert_eq!(recovered.chunks, 49);
    for index in 0..48 {
        let round = (index / 10).min(3);
        expect(
            store,
            key(1, index, u64::from(round * 20 + index - round * 10) + 1),
            5000,
        )
        .await;
    }
}

#[test]
fn a_damaged_checkpoint_is_replaced_by_the_older_one_and_its_journal() {
    for at in [8, 4096, 4096 + 300] {
        let dir = tempfile::tempdir().unwrap();
        let [newest, _] = checkpointed(dir.path());
        flip(dir.path(), newest + at);
        session(dir.path(), async |store, recovered| {
            is_as_checkpointed(&store, &recovered).await;
            assert!(!store.get(id(1, 49)).unwrap().is_dirty());
            assert!(store.get(id(1, 48)).is_none());
            store.close().await.unwrap();
        });
        session(dir.path(), async |store, recovered| {
            is_as_checkpointed(&store, &recovered).await
        });
    }
}

#[test]
fn without_checkpoints_the_headers_are_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let areas = checkpointed(dir.path());
    for at in areas {
        flip(dir.path(), at + 8);
    }
    for _ in 0..2 {
        session(dir.path(), async |store, recovered| {
            // What was removed is found again, and what was clean is dirty: harmless, as the agent knows.
            assert_eq!(recovered.chunks, 50);
            let recovered = Recovered {
                chunks: 49,
                ..recovered
            };
            is_as_checkpointed(&store, &recovered).await;
            expect(&store, key(1, 49, 80), 5000).await;
        });
    }
}

#[test]
fn a_checkpoint_whose_journal_is_overwritten_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let [newest, _] = checkpointed(dir.path());
    // A group of a later lap where the older checkpoint's journal begins.
    let (block, store_id, ring) = session(dir.path(), async |store, _| {
        let journal = &store.inner.journal;
        (journal.lock().tail, journal.store, journal.ring)
    });
    let (first, _) = Journal::place(ring, block);
    let mut group = vec![0; BLOCK];
    crate::journal::encode_group(
        &mut group,
        store_id,
        block + u64::from(ring.len),
        1,
        std::iter::empty(),
    );
    poke(dir.path(), u64::from(first) * BLOCK_U64, |b| {
        b.copy_from_slice(&group[..64])
    });
    flip(dir.path(), newest + 8);
    session(dir.path(), async |_, recovered| {
        assert_eq!(recovered.chunks, 50)
    });
}

#[test]
fn checkpoints_of_many_chunks_span_segments_and_carry_pending_ones() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), 512);
    let count = 30_000u32;
    reactor(async || {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        store
            .seal(vec![chunk(key(1, 0, 1), 10)], file(1, b"first"))
            .await
            .unwrap();
        for from in (0..count).step_by(5000) {
            // Files by the hundred, so that every stripe has some.
            let many = (from..from + 5000)
                .map(|n| clean(key(u64::from(n % 700) + 10, n, 7), 1))
                .collect();
            store.seal(many, None).await.unwrap();
        }
        store
            .seal(vec![pending(key(1, 0, 2), 20)], None)
            .await
            .unwrap();
        store.close().await.unwrap();
        assert!(store.inner.journal.lock().newest.sequence > 1);
        // Still pending behind the checkpoint: this makes it real.
        store.seal(vec![], file(1, b"second")).await.unwrap();
    });
    reactor(async || {
        let (store, recovered) = Store::open(options.clone()).await.unwrap();
        assert_eq!(recovered.chunks, u64::from(count) + 1);
        assert_eq!(recovered.pending.len(), 2);
        expect(&store, key(1, 0, 2), 20).await;
        expect(&store, key(u64::from(29_999u32 % 700) + 10, 29_999, 7), 1).await;
        check(&store, &[]);
    });
}
