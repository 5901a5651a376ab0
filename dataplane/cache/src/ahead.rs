//! Reading ahead: who reads a file in sequence finds its next chunks here, or on their way.
//!
//! Owns the node's budget of chunks that were asked for and not read yet. Speculation costs readers nothing: it takes
//! free space only and evicts nothing, it leaves most slots to those who wait, and what it fails at is asked for again
//! when somebody wants it. It stops at random access, and is dropped when the file is closed, truncated or overwritten.

mod streams;

pub(crate) use streams::Streams;

use crate::inode::Inode;
use crate::{FileSystem, count, lock};
use fastcache_api::{ChunkKey, Ino};
use fastcache_reactor::Instant;
use fastcache_reactor::sync::{AtomicU64, Mutex};
use fastcache_types::ChunkId;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Budget unless told otherwise, bytes: four streams at their widest.
pub const READ_AHEAD_BYTES: u64 = 256 << 20;
/// At most one part in so many of the store: what is read ahead must not be a tenth of what is kept.
const CAPACITY_PART: u64 = 16;
/// Free space that is left to readers and writers, as a part of the store.
const RESERVE_PART: u64 = 50;
/// Chunks on their way at once that nobody waits for. The agent fetches 16 at once; the rest is for readers.
const TURNS: usize = 12;
/// No speculation for so long after one failed: the cloud has enough to do.
const PAUSE: Duration = Duration::from_secs(1);
/// What nobody came for after this long no longer counts (a REST download that was cut has no close).
const EXPIRES: Duration = Duration::from_secs(30);

/// What was asked for ahead of its readers.
pub(crate) struct Ahead {
    state: Mutex<State>,
    /// How many chunks `state` has: readers look here first.
    chunks: AtomicU64,
    budget_bytes: AtomicU64,
    pub(crate) turns: async_lock::Semaphore,
}

#[derive(Default)]
struct State {
    asked: HashMap<ChunkId, Asked>,
    bytes: u64,
    paused_until: Option<Instant>,
}

struct Asked {
    bytes: u64,
    since: Instant,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead {
            state: Mutex::default(),
            chunks: AtomicU64::new(0),
            budget_bytes: AtomicU64::new(READ_AHEAD_BYTES),
            turns: async_lock::Semaphore::new(TURNS),
        }
    }
}

impl Ahead {
    /// Takes a chunk's bytes from the budget. False when there is not enough left, or speculation is paused.
    fn take(&self, id: ChunkId, bytes: u64, budget: u64) -> bool {
        let now = fastcache_reactor::now();
        let mut state = lock(&self.state);
        if state.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        if state.bytes + bytes > budget {
            state.retain(|_, asked| now.duration_since(asked.since) < EXPIRES);
        }
        let is_in = state.bytes + bytes <= budget && !state.asked.contains_key(&id);
        if is_in {
            state.bytes += bytes;
            state.asked.insert(id, Asked { bytes, since: now });
        }
        self.told(&state);
        is_in
    }

    /// A reader wants the chunk, or it is gone: its bytes are free again. Whether it was asked for ahead.
    pub(crate) fn give_back(&self, id: ChunkId) -> bool {
        if self.chunks.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut state = lock(&self.state);
        let was_asked = state.retain(|other, _| *other != id) > 0;
        self.told(&state);
        was_asked
    }

    /// Nobody will read on in this file. How many chunks were asked for in vain.
    fn drop_file(&self, ino: Ino) -> u64 {
        if self.chunks.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut state = lock(&self.state);
        let dropped = state.retain(|id, _| id.ino != ino);
        self.told(&state);
        dropped
    }

    /// Whether a chunk is still wanted by nobody but us.
    pub(crate) fn is_wanted(&self, id: ChunkId) -> bool {
        lock(&self.state).asked.contains_key(&id)
    }

    fn told(&self, state: &State) {
        self.chunks
            .store(state.asked.len() as u64, Ordering::Relaxed);
    }
}

impl State {
    /// Keeps what `keeps` says; how many went. There are at most a few hundred.
    fn retain(&mut self, mut keeps: impl FnMut(&ChunkId, &Asked) -> bool) -> u64 {
        let mut gone = 0;
        let bytes = &mut self.bytes;
        self.asked.retain(|id, asked| {
            let stays = keeps(id, asked);
            if !stays {
                gone += 1;
                *bytes -= asked.bytes;
            }
            stays
        });
        gone
    }
}

impl FileSystem {
    /// Sets how many bytes may be read ahead and wait for their readers; 0: none are.
    pub fn set_read_ahead(&self, bytes: u64) {
        self.inner
            .ahead
            .budget_bytes
            .store(bytes, Ordering::Relaxed);
    }

    /// Asks for chunks that the next reads will want: those that are only in the cloud, as far as budget and free space
    /// reach.
    pub(crate) fn read_ahead(&self, inode: &Arc<Inode>, indices: Range<u32>) {
        let usage = self.inner.store.usage();
        let budget = self.inner.ahead.budget_bytes.load(Ordering::Relaxed);
        let budget = budget.min(usage.capacity_bytes / CAPACITY_PART);
        for index in indices {
            let id = ChunkId {
                ino: inode.ino,
                index,
            };
            let found = {
                let state = lock(&inode.state);
                match (&state.attr, &state.layout) {
                    (Some(attr), Some(layout)) if !state.open_chunks.contains_key(&index) => {
                        layout.chunk(index, attr.chunk_size)
                    }
                    _ => None,
                }
            };
            let Some((version, valid)) = found else {
                continue;
            };
            let here = self.inner.store.get(id);
            if here.is_some_and(|body| body.key().version == version) {
                continue;
            }
            let has_room = self.has_room_ahead(u64::from(valid));
            if !has_room || !self.inner.ahead.take(id, u64::from(valid), budget) {
                lock(&inode.state).streams.not_asked(index);
                return;
            }
            let key = ChunkKey {
                ino: inode.ino,
                index,
                version,
            };
            if self.fly_ahead(key) {
                count(&self.inner.counters.ahead_chunks, 1);
                count(&self.inner.counters.ahead_bytes, u64::from(valid));
            } else {
                self.inner.ahead.give_back(id);
            }
        }
    }

    /// Whether the store has free space for this much that nobody asked for yet.
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        let usage = self.inner.store.usage();
        usage.free_bytes > usage.capacity_bytes / RESERVE_PART + bytes
    }

    /// Somebody reads a chunk.
    pub(crate) fn read_of_ahead(&self, id: ChunkId) {
        if self.inner.ahead.give_back(id) {
            count(&self.inner.counters.ahead_used, 1);
        }
    }

    /// A chunk that was read ahead was evicted, or could not be kept.
    pub(crate) fn lost_ahead(&self, id: ChunkId) {
        if self.inner.ahead.give_back(id) {
            count(&self.inner.counters.ahead_wasted, 1);
        }
    }

    /// A chunk could not be read ahead: its reader will see.
    pub(crate) fn failed_ahead(&self, id: ChunkId) {
        self.inner.ahead.give_back(id);
        lock(&self.inner.ahead.state).paused_until = Some(fastcache_reactor::now() + PAUSE);
        count(&self.inner.counters.ahead_failed, 1);
    }

    /// The file was closed for the last time, or its contents change: what is on its way is for nobody.
    pub(crate) fn stop_ahead(&self, inode: &Inode) {
        if lock(&inode.state).streams.stop() {
            let wasted = self.inner.ahead.drop_file(inode.ino);
            count(&self.inner.counters.ahead_wasted, wasted);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the budget is never exceeded and never leaks. Method: one budget, by hand.
    use super::*;

    fn id(ino: u64, index: u32) -> ChunkId {
        ChunkId {
            ino: Ino(ino),
            index,
        }
    }

    #[test]
    fn the_budget_is_one_for_all_files_and_comes_back() {
        fastcache_reactor::run(fastcache_reactor::Config::default(), || async {
            let ahead = Ahead::default();
            assert!(!ahead.give_back(id(2, 0)));
            assert!(ahead.take(id(2, 0), 40, 100));
            assert!(!ahead.take(id(2, 0), 40, 100), "asked for once");
            assert!(ahead.take(id(3, 0), 60, 100));
            assert!(!ahead.take(id(4, 0), 1, 100));
            assert!(ahead.give_back(id(2, 0)));
            assert!(!ahead.give_back(id(2, 0)));
            assert!(ahead.take(id(3, 1), 40, 100));
            assert_eq!(ahead.drop_file(Ino(3)), 2);
            assert!(!ahead.is_wanted(id(3, 1)));
            assert_eq!(lock(&ahead.state).bytes, 0);
            assert_eq!(ahead.chunks.load(Ordering::Relaxed), 0);
        })
        .unwrap();
    }
}
