//! Goal: what is clean gives way, and what is dirty or being read never does.

use super::*;

#[test]
fn clean_chunks_are_evicted_dirty_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        store
            .seal(vec![chunk(key(1, 0, 1), 9000)], None)
            .await
            .unwrap();
        assert!(store.evict(id(1, 0)).is_none());
        assert!(store.mark_clean(&[key(1, 0, 99)]).await.unwrap().is_empty());
        assert_eq!(store.mark_clean(&[key(1, 0, 1)]).await.unwrap().len(), 1);
        assert_eq!(store.usage().dirty_bytes, 0);
        let reader = store.get(id(1, 0)).unwrap();
        let (gone, freed) = store.evict(id(1, 0)).unwrap();
        assert_eq!((gone, freed), (key(1, 0, 1), 4 * 4096));
        // A reader that came before goes on, whatever is written meanwhile.
        store.reclaim().await.unwrap();
        assert_eq!(store.usage().used_bytes, 4 * 4096);
        while let Some(e) = store.allocate(512) {
            store
                .write_blocks(e.start, buf(&vec![7; 512 * BLOCK]))
                .await
                .0
                .unwrap();
            if store.usage().free_bytes < 4 * MIB {
                break;
            }
        }
        assert!(read(&store, &reader).await.unwrap() == bytes(1, 9000));
        check(&store, std::slice::from_ref(&reader));
        drop(reader);
        assert_eq!(store.usage().quarantined_bytes, 4 * 4096);
    });
    session(dir.path(), async |store, recovered| {
        // Lent blocks are nobody's after a restart.
        assert_eq!(recovered.chunks, 0);
        assert_eq!(store.usage().used_bytes, 0);
    });
}

#[test]
fn a_clean_chunk_never_replaces_a_dirty_one_or_itself() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        store
            .seal(vec![chunk(key(1, 0, 5), 100)], None)
            .await
            .unwrap();
        let sealed = store
            .seal(vec![clean(key(1, 0, 4), 200)], None)
            .await
            .unwrap();
        assert_eq!(sealed.bodies[0].key(), key(1, 0, 5));
        assert!(sealed.replaced.is_empty());
        store.mark_clean(&[key(1, 0, 5)]).await.unwrap();
        let sealed = store
            .seal(vec![clean(key(1, 0, 5), 100)], None)
            .await
            .unwrap();
        assert!(sealed.replaced.is_empty());
        let sealed = store
            .seal(vec![clean(key(1, 0, 6), 300)], None)
            .await
            .unwrap();
        assert_eq!(sealed.replaced, [key(1, 0, 5)]);
        expect(&store, key(1, 0, 6), 300).await;
    });
}

#[test]
fn a_full_store_says_so_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        let mut n = 0;
        loop {
            match store
                .seal(vec![clean(key(1, n, u64::from(n) + 1), 1 << 20)], None)
                .await
            {
                Ok(_) => n += 1,
                Err(StoreError::Full) => break,
                Err(e) => panic!("{e}"),
            }
        }
        let u = store.usage();
        assert!(u.used_bytes > u.capacity_bytes / 100 * 95, "{u:?}");
        check(&store, &[]);
        // Nothing is taken by a seal that does not fit, even if its first chunk does.
        let used = store.usage().used_bytes;
        let small = clean(key(2, 0, 1000), 4096);
        let large = clean(key(2, 1, 1001), CHUNK);
        assert!(matches!(
            store.seal(vec![small, large], None).await,
            Err(StoreError::Full)
        ));
        assert_eq!(store.usage().used_bytes, used);
        // Evicting every other chunk leaves pieces: the large one is sealed in several.
        for k in (0..12).step_by(2) {
            store.evict(id(1, k)).unwrap();
        }
        assert!(store.allocate(1024).is_none());
        store.reclaim().await.unwrap();
        let sealed = store
            .seal(vec![chunk(key(2, 1, 1002), CHUNK)], None)
            .await
            .unwrap();
        assert!(sealed.bodies[0].runs().len() > 1);
        expect(&store, key(2, 1, 1002), CHUNK).await;
        for k in 12..n {
            expect(&store, key(1, k, u64::from(k) + 1), 1 << 20).await;
        }
    });
    session(dir.path(), async |store, _| {
        expect(&store, key(2, 1, 1002), CHUNK).await
    });
}
