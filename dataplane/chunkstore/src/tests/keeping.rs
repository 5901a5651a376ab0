//! Goal: what is kept for other nodes is known again after every kind of end, until it need not be kept. Method: sessions that
//! end without `close`.

use super::*;

fn kept(key: ChunkKey, len: u32) -> SealChunk {
    SealChunk {
        is_kept: true,
        ..clean(key, len)
    }
}

/// Seals the same bytes once more, where they are, as something else.
async fn seal_as(store: &Store, key: ChunkKey, is_dirty: bool, is_kept: bool) {
    let body = store.find(key).unwrap();
    let meta = store.meta(&body).await.unwrap();
    let again = SealChunk {
        key,
        len: body.len(),
        is_dirty,
        is_kept,
        is_pending: false,
        data: SealData::Placed {
            runs: body.runs().to_vec(),
            crcs: meta.crcs.to_vec(),
        },
    };
    store.seal(vec![again], None).await.unwrap();
}

fn keys(recovered: &Recovered) -> Vec<ChunkKey> {
    let mut keys: Vec<ChunkKey> = recovered.kept.iter().map(|c| c.key).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn what_is_kept_is_known_after_a_kill_until_it_need_not_be() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c, d] = [key(1, 0, 5), key(1, 1, 6), key(2, 0, 7), key(3, 0, 8)];
    session(dir.path(), async |store, recovered| {
        assert!(recovered.kept.is_empty());
        let sealed = store.seal(
            vec![kept(a, 5000), kept(b, 6000), kept(c, 7000), clean(d, 8000)],
            None,
        );
        sealed.await.unwrap();
        // Cached, and then kept; it is one chunk.
        seal_as(&store, d, false, true).await;
        assert!(store.find(d).unwrap().is_kept());
        assert_eq!(store.usage().dirty_chunks, 0);
        store.unkeep(&[b, key(9, 9, 9)]).await;
        assert!(!store.find(b).unwrap().is_kept());
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!((keys(&recovered), recovered.chunks), (vec![a, c, d], 4));
        for (key, len) in [(a, 5000), (b, 6000), (c, 7000), (d, 8000)] {
            expect(&store, key, len).await;
        }
        // A newer version of one, and one becomes this node's own: neither is a copy any more.
        store
            .seal(vec![clean(key(1, 0, 9), 100)], None)
            .await
            .unwrap();
        seal_as(&store, c, true, false).await;
        store.unkeep(&[a, c]).await;
        assert!(store.find(c).unwrap().is_dirty(), "it is in no cloud");
        store.checkpoint().await.unwrap();
    });
    session(dir.path(), async |store, recovered| {
        assert_eq!(keys(&recovered), [d]);
        assert!(store.find(c).unwrap().is_dirty());
        expect(&store, c, 7000).await;
        // What is cached anew does not end it.
        store.seal(vec![clean(d, 8000)], None).await.unwrap();
        assert!(store.find(d).unwrap().is_kept());
        store.remove(&[d]).await.unwrap();
    });
    session(dir.path(), async |_, recovered| {
        assert!(recovered.kept.is_empty());
    });
}

#[test]
fn the_headers_alone_know_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (key(1, 0, 5), key(1, 1, 6));
    session(dir.path(), async |store, _| {
        store
            .seal(vec![kept(a, 5000), clean(b, 6000)], None)
            .await
            .unwrap();
        store.flush().await.unwrap();
    });
    reactor(async || {
        let rebuilt = Store::rebuild_index(options(dir.path(), 64)).await;
        let (store, recovered) = rebuilt.unwrap();
        assert_eq!(keys(&recovered), [a]);
        expect(&store, a, 5000).await;
    });
}
