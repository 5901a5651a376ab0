//! Goal: after any sequence of operations and restarts the store holds what a simple model says, every byte of it, and
//! every block of the device is accounted for. Method: seeded random operations; restarts with and without close, and
//! with the journal torn behind the last flush, as a power cut may leave it. The seed is in the message of a failure.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const INOS: u64 = 4;
const INDEXES: u32 = 6;

/// How often a seal was refused for want of space.
static FULL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Half of the stores are so small that they are full now and then, MiB.
fn size(seed: u64) -> u64 {
    if seed.is_multiple_of(2) { 64 } else { 16 }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Want {
    pub(super) key: ChunkKey,
    pub(super) len: u32,
    pub(super) image: Arc<Vec<u8>>,
    pub(super) is_dirty: bool,
}

#[derive(Clone, Default)]
struct Model {
    current: BTreeMap<(u64, u32), Want>,
    /// What a restart goes back to, for pending ones.
    prior: BTreeMap<(u64, u32), Option<Want>>,
}

impl Model {
    fn put(&mut self, at: (u64, u32), want: Want, is_pending: bool) {
        let old = self.current.insert(at, want);
        match is_pending {
            true => {
                self.prior.entry(at).or_insert(old);
            }
            false => {
                self.prior.remove(&at);
            }
        }
    }

    fn seal(&mut self, ino: u64) {
        self.prior.retain(|at, _| at.0 != ino);
    }

    fn restart(&mut self) {
        for (at, prior) in std::mem::take(&mut self.prior) {
            match prior {
                Some(want) => self.current.insert(at, want),
                None => self.current.remove(&at),
            };
        }
    }
}

async fn verify(store: &Store, model: &Model, seed: u64) {
    let mut count = 0;
    let mut from = Some(0);
    while let Some(at) = from {
        let (page, next) = store.inventory(at);
        count += page.len();
        from = next;
    }
    assert_eq!(count, model.current.len(), "seed {seed}");
    for ((ino, index), want) in &model.current {
        let body = store
            .get(id(*ino, *index))
            .unwrap_or_else(|| panic!("{want:?} seed {seed}"));
        assert_eq!(body.key(), want.key, "seed {seed}");
        assert_eq!(
            (body.len(), body.is_dirty()),
            (want.len, want.is_dirty),
            "{want:?} seed {seed}"
        );
        assert!(
            read(store, &body).await.unwrap() == *want.image,
            "{want:?} seed {seed}"
        );
    }
}

/// A new version of a chunk: random blocks new, the others shared with the body that is there.
pub(super) async fn patched(
    store: &Store,
    rng: &mut StdRng,
    key: ChunkKey,
    old: &Want,
) -> Option<(SealChunk, Want)> {
    let base = store.get(key.id())?;
    let crcs = store.meta(&base).await.unwrap();
    let blocks = blocks_of(rng.random_range(1..=80u32 << 10)) as usize;
    let mut image = vec![0; blocks * BLOCK];
    let mut runs: Vec<BlockRun> = Vec::new();
    let mut new_crcs = vec![0; blocks];
    let mut taken: Vec<Extent> = Vec::new();
    for b in 0..blocks {
        let kept = base.runs().iter().find_map(|r| {
            let skip = (b as u32).checked_sub(r.first)?;
            (skip < r.extent.len).then_some(r.extent.start + skip)
        });
        let at = match (kept, rng.random_range(0..4)) {
            (Some(at), 0..2) => {
                image[b * BLOCK..][..BLOCK].copy_from_slice(&old.image[b * BLOCK..][..BLOCK]);
                new_crcs[b] = crcs.crcs[b];
                at
            }
            (_, 2) => continue,
            _ => {
                let Some(e) = store.allocate(1) else {
                    taken.into_iter().for_each(|e| store.release(e));
                    return None;
                };
                taken.push(e);
                let data = bytes(key.version.0 * 1000 + b as u64, 4096);
                image[b * BLOCK..][..BLOCK].copy_from_slice(&data);
                new_crcs[b] = crc_block(&data);
                store.write_blocks(e.start, buf(&data)).await.0.unwrap();
                e.start
            }
        };
        match runs.last_mut() {
            Some(r) if r.extent.end() == at && r.first + r.extent.len == b as u32 => {
                r.extent.len += 1;
            }
            _ => runs.push(BlockRun {
                first: b as u32,
                extent: Extent { start: at, len: 1 },
            }),
        }
    }
    let len = blocks as u32 * 4096;
    let want = Want {
        key,
        len,
        image: Arc::new(image),
        is_dirty: true,
    };
    let data = SealData::Placed {
        runs,
        crcs: new_crcs,
    };
    let chunk = SealChunk {
        key,
        len,
        is_dirty: true,
        is_kept: false,
        is_pending: false,
        data,
    };
    Some((chunk, want))
}

/// One session of random operations. Returns where the journal was at the last flush and at the end.
async fn play(
    store: Store,
    model: &mut Model,
    rng: &mut StdRng,
    seed: u64,
    version: &mut u64,
) -> (u64, u64) {
    let mut held: Vec<(Arc<ChunkBody>, Want)> = Vec::new();
    // Where the journal was when some flush ended, whoever asked for it: not less than that flush covers.
    let mut flushed = store.inner.journal.lock().head;
    let mut flushes = store.inner.flusher.done();
    let mut look = |store: &Store| {
        let done = store.inner.flusher.done();
        if std::mem::replace(&mut flushes, done) != done {
            flushed = store.inner.journal.lock().head;
        }
        flushed
    };
    let mut seals: Vec<(Ino, u64)> = Vec::new();
    for _ in 0..rng.random_range(5..150) {
        look(&store);
        let (ino, index) = (rng.random_range(1..=INOS), rng.random_range(0..INDEXES));
        let at = (ino, index);
        *version += 1;
        let new = key(ino, index, *version);
        match rng.random_range(0..14) {
            0..5 => {
                let len = match rng.random_range(0..4) {
                    0 => rng.random_range(0..5000),
                    1 => rng.random_range(1..(64 << 20) / size(seed) as u32),
                    _ => rng.random_range(1..100_000),
                };
                let is_dirty = rng.random_range(0..3) > 0;
                let is_pending = is_dirty && rng.random_range(0..3) == 0;
                let with_file = !is_pending && rng.random_range(0..3) == 0;
                let image = bytes(*version, len);
                let one = SealChunk {
                    is_pending,
                    ..inline(new, &image, len, is_dirty)
                };
                let want = Want {
                    key: new,
                    len,
                    image: Arc::new(image),
                    is_dirty,
                };
                let f = if with_file {
                    file(ino, b"commit")
                } else {
                    None
                };
                match store.seal(vec![one], f).await {
                    Ok(sealed) => {
                        let is_kept = sealed.bodies[0].key() == new;
                        let blocked = model.current.get(&at).is_some_and(|w| w.is_dirty)
                            || model.prior.contains_key(&at);
                        assert_eq!(is_kept, is_dirty || !blocked, "seed {seed}");
                        if is_kept {
                            model.put(at, want, is_pending);
                        }
                        if with_file {
                            model.seal(ino);
                            seals.push((Ino(ino), sealed.number));
                        }
                    }
                    Err(StoreError::Full) => {
                        FULL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        store.reclaim().await.unwrap();
                    }
                    Err(e) => panic!("{e} seed {seed}"),
                }
            }
            5..8 => {
                let Some(old) = model.current.get(&at).cloned() else {
                    continue;
                };
                let Some((mut one, want)) = patched(&store, rng, new, &old).await else {
                    continue;
                };
                one.is_pending = rng.random();
                let is_pending = one.is_pending;
                let extents: Vec<Extent> = match &one.data {
                    SealData::Placed { runs, .. } => runs.iter().map(|r| r.extent).collect(),
                    SealData::Inline { .. } => vec![],
                };
                match store.seal(vec![one], None).await {
                    Ok(_) => model.put(at, want, is_pending),
                    Err(StoreError::Full) => {
                        // What was lent is still ours; shared blocks are not.
                        extents.iter().for_each(|&e| {
                            store.inner.pool.space.release(e);
                        });
                    }
                    Err(e) => panic!("{e} seed {seed}"),
                }
            }
            8 => {
                let sealed = store.seal(vec![], file(ino, b"x")).await.unwrap();
                seals.push((Ino(ino), sealed.number));
                model.seal(ino);
            }
            9 => {
                let Some(want) = model.current.get_mut(&at) else {
                    continue;
                };
                assert_eq!(store.mark_clean(&[want.key]).await.unwrap(), [want.key]);
                want.is_dirty = false;
            }
            10 => {
                let is_fit = model.current.get(&at).is_some_and(|w| !w.is_dirty)
                    && !model.prior.contains_key(&at);
                assert_eq!(store.evict(id(ino, index)).is_some(), is_fit, "seed {seed}");
                if is_fit {
                    model.current.remove(&at);
                }
            }
            11 => {
                let Some(want) = model.current.get(&at) else {
                    continue;
                };
                assert_eq!(store.remove(&[want.key]).await.unwrap().len(), 1);
                model.current.remove(&at);
                if let Some(Some(prior)) = model.prior.remove(&at) {
                    model.current.insert(at, prior);
                }
            }
            12 => {
                store.flush().await.unwrap();
                if let Some((ino, number)) = seals.pop() {
                    store.committed(ino, number).await.unwrap();
                }
            }
            _ => {
                if let Some(body) = store.get(id(ino, index)) {
                    held.push((body, model.current[&at].clone()));
                }
                if held.len() > 5 {
                    let (body, want) = held.swap_remove(rng.random_range(0..5));
                    assert!(
                        read(&store, &body).await.unwrap() == *want.image,
                        "seed {seed}"
                    );
                }
            }
        }
    }
    let bodies: Vec<_> = held.iter().map(|(b, _)| b.clone()).collect();
    check(&store, &bodies);
    for (body, want) in held {
        assert!(
            read(&store, &body).await.unwrap() == *want.image,
            "seed {seed}"
        );
    }
    drop(bodies);
    verify(&store, model, seed).await;
    let is_closed = rng.random_range(0..3) == 0;
    if is_closed {
        store.close().await.unwrap();
    } else {
        // Lazy records of evictions: a killed process may lose them, which the model does not know.
        let ticket = store.inner.journal.last();
        store.wait_written(ticket).await;
    }
    check(&store, &[]);
    let flushed = look(&store);
    let head = store.inner.journal.lock().head;
    (flushed, head)
}

#[test]
fn random_operations_and_restarts() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::default();
        let mut version = 0;
        for _ in 0..8 {
            session_of(dir.path(), size(seed), async |store, recovered| {
                assert_eq!(
                    recovered.chunks as usize,
                    model.current.len(),
                    "seed {seed}"
                );
                verify(&store, &model, seed).await;
                play(store, &mut model, &mut rng, seed, &mut version).await;
            });
            model.restart();
        }
    }
    assert!(FULL.load(std::sync::atomic::Ordering::Relaxed) > 10);
}

#[test]
fn a_power_cut_behind_a_flush_leaves_no_damaged_chunk() {
    for seed in 100..116 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut version = 0;
        for round in 0..6 {
            // What is there after the cut is the model of the next session.
            let (flushed, head, ring, sealed) =
                session_of(dir.path(), size(seed), async |store, _| {
                    let mut model = Model::default();
                    let (page, _) = {
                        let mut all = Vec::new();
                        let mut from = Some(0);
                        while let Some(at) = from {
                            let (page, next) = store.inventory(at);
                            all.extend(page);
                            from = next;
                        }
                        (all, 0)
                    };
                    for body in page {
                        let image = read(&store, &body)
                            .await
                            .unwrap_or_else(|e| panic!("{e}, seed {seed}, round {round}"));
                        let (key, len) = (body.key(), body.len());
                        let want = Want {
                            key,
                            len,
                            image: Arc::new(image),
                            is_dirty: body.is_dirty(),
                        };
                        model.current.insert((key.ino.0, key.index), want);
                    }
                    let ring = store.inner.journal.ring;
                    let (flushed, head) =
                        play(store, &mut model, &mut rng, seed, &mut version).await;
                    (flushed, head, ring, version)
                });
            assert!(sealed >= 1);
            if head > flushed {
                // Everything from some group after the flush on is lost, or that group alone is.
                let lost = rng.random_range(flushed..head);
                let (block, _) = journal::Journal::place(ring, lost);
                poke(dir.path(), u64::from(block) * 4096, |b| b.fill(0));
            }
        }
    }
}
