//! A session of random operations, by several tasks, and its record.

use super::super::model::{Want, patched};
use super::history::State;
use super::*;
use fastcache_reactor::{Task, spawn};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Tasks; each has files of its own.
const TASKS: u64 = 3;
/// Files of each, and chunks of each file.
const FILES: u64 = 2;
const INDEXES: u32 = 3;
/// Operations of a task in a session.
const OPERATIONS: u64 = 24;
/// Blocks that are free at the start, beyond those that are kept back for headers: so few that they are used again soon.
const ROOM: u32 = 160;

/// A task's view of its files.
struct Actor {
    store: Store,
    device: Device,
    history: Rc<RefCell<History>>,
    rng: StdRng,
    versions: Rc<RefCell<u64>>,
    current: BTreeMap<(u64, u32), Want>,
    /// What a restart goes back to, for pending ones.
    prior: BTreeMap<(u64, u32), Option<Want>>,
    seals: Vec<usize>,
}

/// Plays a session on `medium`, and what the device did.
pub(super) async fn play(
    path: &Path,
    medium: Medium,
    snapshot: Option<Snapshot>,
    seed: u64,
) -> (History, Vec<Step>) {
    let moods = Moods {
        transfer_us: 20..300,
        flush_us: 100..5_000,
        ..Moods::default()
    };
    let device = Device::new(medium, moods);
    device.record();
    device.attach(path);
    let is_first = snapshot.is_none();
    let mut history = snapshot.map_or_else(History::default, History::of);
    let (store, _) = Store::open(options(path, DEVICE_BYTES / MIB))
        .await
        .unwrap();
    if is_first {
        let made = device.recorded();
        history.flushes.push((made, made));
    }
    let free = (store.usage().free_bytes / 4096) as u32;
    let _ballast = store.allocate_pieces(free.saturating_sub(ROOM));
    let history = Rc::new(RefCell::new(history));
    let versions = Rc::new(RefCell::new(seed * 100_000));
    let background = {
        let store = store.clone();
        spawn(async move { store.background().await })
    };
    let tasks: Vec<Task<()>> = (0..TASKS)
        .map(|task| {
            let mut actor = Actor {
                store: store.clone(),
                device: device.clone(),
                history: history.clone(),
                rng: StdRng::seed_from_u64(seed * TASKS + task),
                versions: versions.clone(),
                current: BTreeMap::new(),
                prior: BTreeMap::new(),
                seals: Vec::new(),
            };
            actor.remember(task);
            spawn(async move {
                for _ in 0..OPERATIONS {
                    let ino = 1 + task * FILES + actor.rng.random_range(0..FILES);
                    actor.act(ino).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    drop(background);
    drop(store);
    let history = Rc::into_inner(history).unwrap().into_inner();
    (history, device.take_log())
}

impl Actor {
    /// Takes over what is there of the task's files.
    fn remember(&mut self, task: u64) {
        let history = self.history.borrow();
        let own = 1 + task * FILES..1 + (task + 1) * FILES;
        for (id, states) in &history.chunks {
            if let Some(want) = states[0].what.clone().filter(|_| own.contains(&id.0)) {
                self.current.insert(*id, want);
            }
        }
        let seals = history.seals.iter().enumerate();
        self.seals = seals
            .filter(|(_, s)| own.contains(&s.ino.0))
            .map(|(n, _)| n)
            .collect();
    }

    /// The moment.
    fn at(&self) -> usize {
        self.device.recorded()
    }

    fn next_key(&self, ino: u64, index: u32) -> ChunkKey {
        *self.versions.borrow_mut() += 1;
        key(ino, index, *self.versions.borrow())
    }

    /// A chunk is about to be this after a restart.
    fn begin(&self, id: (u64, u32), what: Option<Want>) -> (u64, u32) {
        let state = State {
            began: self.at(),
            ended: usize::MAX,
            what,
        };
        let mut history = self.history.borrow_mut();
        history.chunks.entry(id).or_default().push(state);
        id
    }

    /// The caller was told so; it is on the device so many steps later.
    fn end(&self, ids: &[(u64, u32)], later: usize) {
        let at = self.at() + later;
        let mut history = self.history.borrow_mut();
        for id in ids {
            if let Some(state) = history.chunks.get_mut(id).and_then(|s| s.last_mut()) {
                state.ended = at;
            }
        }
    }

    /// It did not happen.
    fn undo(&self, ids: &[(u64, u32)]) {
        let mut history = self.history.borrow_mut();
        for id in ids {
            history.chunks.get_mut(id).and_then(Vec::pop);
        }
    }

    /// As the store does it.
    fn put(&mut self, id: (u64, u32), want: Want, is_pending: bool) {
        let old = self.current.insert(id, want);
        match is_pending {
            true => {
                self.prior.entry(id).or_insert(old);
            }
            false => {
                self.prior.remove(&id);
            }
        }
    }

    async fn act(&mut self, ino: u64) {
        let index = self.rng.random_range(0..INDEXES);
        let id = (ino, index);
        match self.rng.random_range(0..20) {
            0..7 => self.write(ino).await,
            7..10 => self.overwrite(ino, index).await,
            10..12 => {
                let chunks = Vec::new();
                self.seal(ino, chunks, true).await;
            }
            12..15 => self.flush().await,
            15 => {
                if let Some(want) = self.current.get_mut(&id) {
                    want.is_dirty = false;
                    let key = want.key;
                    let at = self.at();
                    self.history.borrow_mut().cleaned.entry(key).or_insert(at);
                    self.store.mark_clean(&[key]).await.unwrap();
                }
            }
            16 => self.evict(),
            17 => {
                let Some(want) = self.current.get(&id) else {
                    return;
                };
                let key = want.key;
                if let Some(prior) = self.prior.remove(&id) {
                    // A restart would have gone back to it, too.
                    self.store.remove(&[key]).await.unwrap();
                    match prior {
                        Some(prior) => self.current.insert(id, prior),
                        None => self.current.remove(&id),
                    };
                } else {
                    self.current.remove(&id);
                    let begun = self.begin(id, None);
                    self.store.remove(&[key]).await.unwrap();
                    self.end(&[begun], 0);
                }
            }
            18 => {
                if let Some(n) = self.seals.pop() {
                    let (ino, number) = {
                        let at = self.at();
                        let mut history = self.history.borrow_mut();
                        let seal = &mut history.seals[n];
                        seal.committed = at;
                        (seal.ino, seal.number)
                    };
                    self.store.committed(ino, number).await.unwrap();
                }
            }
            _ => match self.rng.random_range(0..4) {
                0 => self.store.close().await.unwrap(),
                _ => fastcache_reactor::sleep(Duration::from_millis(700)).await,
            },
        }
    }

    async fn flush(&mut self) {
        let began = self.at();
        self.store.flush().await.unwrap();
        let ended = self.at();
        self.history.borrow_mut().flushes.push((began, ended));
    }

    /// Evicts what is clean.
    fn evict(&mut self) {
        let clean: Vec<(u64, u32)> = self
            .current
            .iter()
            .filter(|(id, want)| !want.is_dirty && !self.prior.contains_key(id))
            .map(|(id, _)| *id)
            .collect();
        for at in clean {
            let begun = self.begin(at, None);
            assert!(self.store.evict(id(at.0, at.1)).is_some());
            // Its record is queued, not written: a flush that was asked for just before does not cover it.
            self.end(&[begun], 1);
            self.current.remove(&at);
        }
    }

    /// New contents of some chunks of a file.
    async fn write(&mut self, ino: u64) {
        let count = self.rng.random_range(1..=INDEXES);
        let mut chunks = Vec::new();
        for index in 0..count {
            let key = self.next_key(ino, index);
            let len = match self.rng.random_range(0..4) {
                0 => self.rng.random_range(0..4096),
                _ => self.rng.random_range(1..40_000),
            };
            let image = bytes(key.version.0, len);
            let is_dirty = self.rng.random_range(0..4) > 0;
            let want = Want {
                key,
                len,
                image: Arc::new(image.clone()),
                is_dirty,
            };
            chunks.push((inline(key, &image, len, is_dirty), want));
        }
        let is_file = self.rng.random_range(0..3) > 0;
        self.seal(ino, chunks, is_file).await;
    }

    /// Some blocks of a chunk new, others as they were, perhaps fewer.
    async fn overwrite(&mut self, ino: u64, index: u32) {
        let Some(old) = self.current.get(&(ino, index)).cloned() else {
            return;
        };
        let key = self.next_key(ino, index);
        let store = self.store.clone();
        let Some(one) = patched(&store, &mut self.rng, key, &old).await else {
            self.evict();
            return self.flush().await;
        };
        let is_file = self.rng.random();
        self.seal(ino, vec![one], is_file).await;
    }

    async fn seal(&mut self, ino: u64, chunks: Vec<(SealChunk, Want)>, is_file: bool) {
        let is_pending = !is_file && self.rng.random();
        let mut begun = Vec::new();
        let mut names = Vec::new();
        let mut puts = Vec::new();
        let mut seals = Vec::new();
        let mut lent = Vec::new();
        for (mut chunk, want) in chunks {
            let id = (ino, want.key.index);
            chunk.is_pending = is_pending && chunk.is_dirty;
            let is_blocked =
                self.prior.contains_key(&id) || self.current.get(&id).is_some_and(|w| w.is_dirty);
            if let SealData::Placed { runs, .. } = &chunk.data {
                lent.extend(runs.iter().map(|r| r.extent));
            }
            if chunk.is_dirty || !is_blocked {
                if !want.is_dirty {
                    let at = self.at();
                    self.history.borrow_mut().cleaned.insert(want.key, at);
                }
                if !chunk.is_pending {
                    begun.push(self.begin(id, Some(want.clone())));
                    names.push(want.key);
                }
                puts.push((id, want, chunk.is_pending));
            }
            seals.push(chunk);
        }
        let mut file = None;
        if is_file {
            let waiting: Vec<(u64, u32)> = self.prior.keys().copied().collect();
            for id in waiting.into_iter().filter(|id| id.0 == ino) {
                if puts.iter().any(|(put, _, _)| *put == id) {
                    continue;
                }
                if let Some(want) = self.current.get(&id).cloned() {
                    names.push(want.key);
                    begun.push(self.begin(id, Some(want)));
                }
            }
            let commit = format!("{names:?} {}", self.next_key(0, 0)).into_bytes();
            let began = self.at();
            let mut history = self.history.borrow_mut();
            history.seals.push(SealInfo {
                ino: Ino(ino),
                commit: commit.clone(),
                number: 0,
                began,
                ended: usize::MAX,
                committed: usize::MAX,
                names,
            });
            let n = history.seals.len() - 1;
            file = Some((n, commit));
        }
        let seal_file = file.as_ref().map(|(_, commit)| SealFile {
            ino: Ino(ino),
            commit: commit.clone(),
        });
        match self.store.seal(seals, seal_file).await {
            Ok(sealed) => {
                self.end(&begun, 0);
                for (id, want, is_pending) in puts {
                    self.put(id, want, is_pending);
                }
                if let Some((n, _)) = file {
                    self.prior.retain(|id, _| id.0 != ino);
                    let at = self.at();
                    let mut history = self.history.borrow_mut();
                    history.seals[n].number = sealed.number;
                    history.seals[n].ended = at;
                    drop(history);
                    self.seals.push(n);
                }
            }
            Err(StoreError::Full) => {
                self.undo(&begun);
                lent.iter().for_each(|&e| {
                    self.store.inner.pool.space.release(e);
                });
                self.evict();
                self.flush().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
