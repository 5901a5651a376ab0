//! Goal: chunks that are sealed ahead of their file count with it, and not before.

use super::*;

#[test]
fn pending_chunks_count_only_with_their_seal_record() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        store
            .seal(vec![chunk(key(5, 0, 1), 5000)], file(5, b"one"))
            .await
            .unwrap();
        let sealed = store
            .seal(vec![pending(key(5, 0, 2), 6000)], None)
            .await
            .unwrap();
        assert_eq!(sealed.replaced, vec![key(5, 0, 1)]);
        store
            .seal(
                vec![pending(key(5, 0, 3), 7000), pending(key(5, 1, 3), 10)],
                None,
            )
            .await
            .unwrap();
        store
            .seal(vec![pending(key(6, 0, 4), 20)], None)
            .await
            .unwrap();
        expect(&store, key(5, 0, 3), 7000).await;
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 1);
        let seals: Vec<_> = recovered
            .pending
            .iter()
            .map(|p| (p.ino, &p.commit[..]))
            .collect();
        assert_eq!(seals, [(Ino(5), &b"one"[..])]);
        expect(&store, key(5, 0, 1), 5000).await;
        assert!(store.get(id(5, 1)).is_none());
        assert!(store.get(id(6, 0)).is_none());
        // A SEAL record now must not bring back what the last start dropped.
        store.seal(vec![], file(5, b"two")).await.unwrap();
        store
            .seal(vec![chunk(key(6, 1, 5), 30)], file(6, b"three"))
            .await
            .unwrap();
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.chunks, 2);
        assert_eq!(recovered.pending.len(), 3);
        assert!(recovered.pending.is_sorted_by_key(|p| p.number));
        expect(&store, key(5, 0, 1), 5000).await;
        for p in &recovered.pending[..2] {
            store.committed(p.ino, p.number).await.unwrap();
        }
        assert!(
            store
                .committed(Ino(5), recovered.pending[0].number)
                .await
                .is_err()
        );
        // Pending, then sealed: real.
        store
            .seal(vec![pending(key(5, 0, 6), 100)], None)
            .await
            .unwrap();
        let sealed = store
            .seal(vec![pending(key(5, 2, 7), 200)], None)
            .await
            .unwrap();
        assert_eq!(sealed.number, 0);
        let sealed = store.seal(vec![], file(5, b"four")).await.unwrap();
        assert!(sealed.number > recovered.pending[2].number);
    });
    session(dir.path(), async |store, recovered| {
        let commits: Vec<_> = recovered.pending.iter().map(|p| &p.commit[..]).collect();
        assert_eq!(commits, [&b"three"[..], b"four"]);
        expect(&store, key(5, 0, 6), 100).await;
        expect(&store, key(5, 2, 7), 200).await;
        // The same through a checkpoint, with something pending in it.
        store
            .seal(vec![pending(key(5, 0, 8), 300)], None)
            .await
            .unwrap();
        store.close().await.unwrap();
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(recovered.pending.len(), 2);
        expect(&store, key(5, 0, 6), 100).await;
        assert_eq!(recovered.chunks, 3);
    });
}

#[test]
fn a_pending_chunk_that_is_removed_gives_way_to_what_it_replaced() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        store
            .seal(vec![chunk(key(5, 0, 1), 5000)], None)
            .await
            .unwrap();
        store
            .seal(vec![pending(key(5, 0, 2), 6000)], None)
            .await
            .unwrap();
        assert_eq!(
            store.mark_clean(&[key(5, 0, 1)]).await.unwrap(),
            [key(5, 0, 1)]
        );
        assert!(store.evict(id(5, 0)).is_none());
        check(&store, &[]);
        let gone = store.remove(&[key(5, 0, 2), key(5, 0, 9)]).await.unwrap();
        assert_eq!(gone.len(), 1);
        expect(&store, key(5, 0, 1), 5000).await;
        assert!(!store.get(id(5, 0)).unwrap().is_dirty());
    });
    session(dir.path(), async |store, _| {
        expect(&store, key(5, 0, 1), 5000).await;
        assert!(!store.get(id(5, 0)).unwrap().is_dirty());
    });
}
