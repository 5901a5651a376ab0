//! Goal: whatever order threads come in, blocks of a chunk stay while somebody reads it, what a flush promised is there
//! after a power cut, nobody waits for ever, and every block and every count comes back. Method: the whole store, on a
//! simulated device, in thousands of interleavings (`make test-race`); see `fastcache_reactor::race`.

use crate::tests::{buf, bytes, check, chunk, clean, file, id, inline, key, pending, read};
use crate::*;
use fastcache_reactor::race::{cut_power, try_schedules};
use fastcache_reactor::{Task, spawn, yield_now};
use fastcache_types::{BLOCK, ChunkKey, Extent};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Schedules tried of each model.
const RUNS: usize = 4_000;
/// Of the smallest store, bytes.
const DEVICE_BYTES: u64 = 16 << 20;
/// Of a chunk here: two blocks, the second not full.
const LEN: u32 = 5000;
/// What it takes with its header, blocks.
const BLOCKS: u32 = 3;

async fn open(path: &Path) -> (Store, Recovered) {
    let options = StoreOptions {
        path: path.to_owned(),
        capacity_bytes: DEVICE_BYTES,
        format: false,
        force: false,
        crc_budget_bytes: 64 << 10,
    };
    Store::open(options).await.unwrap()
}

/// Runs `model` on an empty store; at its end nothing may be left that is not in the index.
fn try_store(model: impl AsyncFn(&Store, &Path) + Send + Sync + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("device");
    let device = std::fs::File::create(&path).unwrap();
    device.set_len(DEVICE_BYTES).unwrap();
    try_schedules(RUNS, async move || {
        let (store, _) = open(&path).await;
        let whole = store.usage();
        model(&store, &path).await;
        check(&store, &[]);
        let all: Vec<ChunkKey> = store.inventory(0).0.iter().map(|b| b.key()).collect();
        store.remove(&all).await.unwrap();
        // A pending chunk left the one it replaced.
        let all: Vec<ChunkKey> = store.inventory(0).0.iter().map(|b| b.key()).collect();
        store.remove(&all).await.unwrap();
        store.flush().await.unwrap();
        check(&store, &[]);
        assert_eq!(store.usage(), whole, "all came back");
        assert_eq!(
            store.inner.pool.space.index_bytes.load(Ordering::Relaxed),
            0
        );
    });
}

/// Takes all room but that of so many chunks.
fn narrow(store: &Store, chunks: u32) -> Vec<Extent> {
    let free = u32::try_from(store.usage().free_bytes).unwrap() / BLOCK as u32;
    let rest = store.allocate_pieces(free - chunks * BLOCKS).unwrap();
    rest.to_vec()
}

async fn all(tasks: impl IntoIterator<Item = Task<()>>) {
    for task in tasks {
        task.await;
    }
}

/// Reads the chunk, if it is there.
fn reader(store: &Store, ino: u64) -> Task<()> {
    let store = store.clone();
    spawn(async move {
        if let Some(body) = store.get(id(ino, 0)) {
            let got = read(&store, &body).await.unwrap();
            assert!(got == bytes(body.key().version.0, LEN), "{}", body.key());
        }
    })
}

/// Reads the chunk that is there now, over and over, until the others have ended, and once more.
fn patient_reader(store: &Store, ino: u64, others: &Rc<()>) -> Task<()> {
    let (store, others) = (store.clone(), Rc::downgrade(others));
    let body = store.get(id(ino, 0)).unwrap();
    spawn(async move {
        loop {
            let is_last = others.strong_count() == 0;
            let got = read(&store, &body).await.unwrap();
            assert!(got == bytes(body.key().version.0, LEN), "{}", body.key());
            if is_last {
                return;
            }
            yield_now().await;
        }
    })
}

/// Seals a clean version of a chunk; where there is no room, what was freed becomes room first.
fn writer(store: &Store, key: ChunkKey) -> Task<()> {
    let store = store.clone();
    spawn(async move {
        for _ in 0..2 {
            match store.seal(vec![clean(key, LEN)], None).await {
                Ok(_) => return,
                Err(StoreError::Full) => store.reclaim().await.unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
    })
}

#[test]
fn blocks_of_a_reader_are_not_reused() {
    try_store(async |store, _| {
        let rest = narrow(store, 2);
        let one = key(1, 0, 1);
        store.seal(vec![clean(one, LEN)], None).await.unwrap();
        let others = Rc::new(());
        let patient = patient_reader(store, 1, &others);
        let evictor = {
            let store = store.clone();
            spawn(async move {
                let _ = store.evict(one.id());
                store.reclaim().await.unwrap();
            })
        };
        all([
            evictor,
            writer(store, key(1, 0, 2)),
            writer(store, key(2, 0, 3)),
            reader(store, 1),
        ])
        .await;
        drop(others);
        patient.await;
        rest.into_iter().for_each(|e| store.release(e));
    });
}

#[test]
fn shared_blocks_live_as_long_as_the_last_that_has_them() {
    try_store(async |store, _| {
        let rest = narrow(store, 3);
        let (one, two) = (key(1, 0, 1), key(1, 0, 2));
        store.seal(vec![clean(one, LEN)], None).await.unwrap();
        // The first block anew, the second as it was.
        let mut mixed = bytes(2, BLOCK as u32);
        mixed.extend_from_slice(&bytes(1, LEN)[BLOCK..]);
        let overwriter = {
            let (store, mixed) = (store.clone(), mixed.clone());
            spawn(async move {
                let Some(base) = store.get(one.id()).filter(|b| b.key() == one) else {
                    return;
                };
                let Some(new) = store.allocate(1) else { return };
                let written = store.write_blocks(new.start, buf(&mixed[..BLOCK])).await;
                written.0.unwrap();
                let old = base.runs()[0].extent;
                let tail = Extent {
                    start: old.start + 1,
                    len: 1,
                };
                let runs = [(0, new), (1, tail)].map(|(first, extent)| BlockRun { first, extent });
                let data = SealData::Placed {
                    runs: runs.to_vec(),
                    crcs: crc_blocks(&mixed),
                };
                let seal = SealChunk {
                    data,
                    ..clean(two, LEN)
                };
                match store.seal(vec![seal], None).await {
                    Ok(_) => {}
                    Err(StoreError::Full) => store.release(new),
                    Err(error) => panic!("{error}"),
                }
            })
        };
        let reader = {
            let (store, mixed) = (store.clone(), mixed);
            spawn(async move {
                for _ in 0..2 {
                    let Some(body) = store.get(one.id()) else {
                        return;
                    };
                    let got = read(&store, &body).await.unwrap();
                    let is_two = body.key() == two;
                    let want = if is_two { mixed.clone() } else { bytes(1, LEN) };
                    assert!(got == want, "{}", body.key());
                }
            })
        };
        let remover = {
            let store = store.clone();
            spawn(async move {
                store.remove(&[one]).await.unwrap();
                store.reclaim().await.unwrap();
            })
        };
        all([overwriter, reader, remover, writer(store, key(2, 0, 3))]).await;
        rest.into_iter().for_each(|e| store.release(e));
    });
}

#[test]
fn counts_are_exact_whatever_meets() {
    try_store(async |store, _| {
        let versions = [key(1, 0, 1), key(1, 0, 2), key(1, 0, 3)];
        let seal = vec![chunk(versions[0], LEN)];
        store.seal(seal, None).await.unwrap();
        let uploaded = {
            let store = store.clone();
            spawn(async move {
                store.mark_clean(&versions[..2]).await.unwrap();
            })
        };
        let replaced = {
            let store = store.clone();
            spawn(async move {
                let early = vec![pending(versions[1], LEN)];
                store.seal(early, None).await.unwrap();
                let last = vec![chunk(key(1, 1, 4), LEN)];
                let sealed = store.seal(last, file(1, b"commit")).await.unwrap();
                store
                    .committed(versions[0].ino, sealed.number)
                    .await
                    .unwrap();
            })
        };
        let removed = {
            let store = store.clone();
            spawn(async move {
                store.remove(&versions[..1]).await.unwrap();
            })
        };
        let evicted = {
            let store = store.clone();
            spawn(async move {
                let _ = store.evict(versions[0].id());
                let fetched = inline(versions[2], &bytes(3, LEN), LEN, false);
                store.seal(vec![fetched], None).await.unwrap();
            })
        };
        all([uploaded, replaced, removed, evicted]).await;
    });
}

#[test]
fn what_a_flush_promised_is_there_after_a_power_cut() {
    try_store(async |store, path| {
        let rest = narrow(store, 4);
        let promised: Rc<RefCell<Vec<ChunkKey>>> = Rc::default();
        let files = [1, 2].map(|ino| {
            let (store, promised) = (store.clone(), Rc::clone(&promised));
            spawn(async move {
                for round in 0..2 {
                    let key = key(ino, 0, 10 * ino + round);
                    let seal = vec![chunk(key, LEN)];
                    let sealed = store.seal(seal, file(ino, b"commit")).await.unwrap();
                    store.flush().await.unwrap();
                    promised.borrow_mut().retain(|k| k.ino != key.ino);
                    promised.borrow_mut().push(key);
                    store.committed(key.ino, sealed.number).await.unwrap();
                }
            })
        });
        let cut = {
            let (promised, path) = (Rc::clone(&promised), path.to_owned());
            spawn(async move {
                yield_now().await;
                let promised = promised.borrow().clone();
                cut_power(&path);
                let (left, _) = open(&path).await;
                for key in &promised {
                    let body = left.get(key.id()).unwrap();
                    assert!(body.key().version >= key.version, "{key}");
                }
                for body in left.inventory(0).0 {
                    let key = body.key();
                    match read(&left, &body).await {
                        Ok(got) => assert!(got == bytes(key.version.0, LEN), "{key}"),
                        // Sealed and not flushed: its record may have come before its bytes. Never wrong ones.
                        Err(error) => assert!(!promised.contains(&key), "{error}"),
                    }
                }
            })
        };
        all(files.into_iter().chain([cut])).await;
        rest.into_iter().for_each(|e| store.release(e));
    });
}
