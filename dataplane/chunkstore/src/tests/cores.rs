//! Goal: who seals may go away at any moment, a call or a whole core. Method: reactors that end in the middle.

use super::*;

#[test]
fn a_seal_goes_on_when_its_caller_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| {
        for n in 0..20u64 {
            let seal = store.seal(vec![chunk(key(1, n as u32, n + 1), 1 << 20)], None);
            let nothing =
                fastcache_reactor::timeout(std::time::Duration::from_micros(n * 50), seal);
            let _ = nothing.await;
        }
        while store.usage().chunks < 20 {
            fastcache_reactor::sleep(std::time::Duration::from_millis(1)).await;
        }
        store.flush().await.unwrap();
    });
    session(dir.path(), async |store, _| {
        for n in 0..20u64 {
            expect(&store, key(1, n as u32, n + 1), 1 << 20).await;
        }
    });
}

#[test]
fn cores_share_a_store_and_may_end_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = 400u64;
    session(dir.path(), async |store, _| {
        let others: Vec<_> = (1..=3u64)
            .map(|core| {
                let store = store.clone();
                std::thread::spawn(move || {
                    // Several short lives, the tasks of which may be in the middle of a write or a flush.
                    for life in 0..8 {
                        reactor(async || {
                            for n in 0..rounds / 8 {
                                let n = life * rounds / 8 + n;
                                let new = key(core, (n % 7) as u32, core * 10_000 + n);
                                let seal = store.seal(vec![chunk(new, 9000)], file(core, b"c"));
                                let sealed = seal.await.unwrap();
                                store.committed(Ino(core), sealed.number).await.unwrap();
                                store.mark_clean(&[new]).await.unwrap();
                                if n.is_multiple_of(5) {
                                    store.evict(new.id()).unwrap();
                                }
                                if n.is_multiple_of(9) {
                                    store.flush().await.unwrap();
                                }
                            }
                            let unheard = store.clone();
                            fastcache_reactor::spawn(async move { unheard.flush().await }).detach();
                            fastcache_reactor::yield_now().await;
                        });
                    }
                })
            })
            .collect();
        while !others.iter().all(std::thread::JoinHandle::is_finished) {
            store.flush().await.unwrap();
            fastcache_reactor::yield_now().await;
        }
        others.into_iter().for_each(|o| o.join().unwrap());
        store.flush().await.unwrap();
    });
    session(dir.path(), async |store, recovered| {
        assert!(recovered.pending.is_empty(), "{recovered:?}");
        for core in 1..=3 {
            for n in rounds - 7..rounds {
                let new = key(core, (n % 7) as u32, core * 10_000 + n);
                match n % 5 {
                    0 => assert!(store.get(new.id()).is_none()),
                    _ => expect(&store, new, 9000).await,
                }
            }
        }
    });
}
