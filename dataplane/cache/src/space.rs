//! Room: the standing list of victims, eviction ahead of need, and writers that wait for uploads.

use crate::open_chunk::device_error;
use crate::{FileSystem, Result, count, lock};
use event_listener::Event;
use fastcache_api::control::DataEvent;
use fastcache_api::{ChunkId, Errno, Ino};
use fastcache_chunkstore::SealChunk;
use fastcache_reactor::Instant;
use fastcache_reactor::striped::Striped;
use fastcache_reactor::sync::{AtomicBool, AtomicU64, Mutex};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Eviction keeps the store below this share of its capacity.
const FULL_PERCENT: u64 = 90;
/// Writers wait while more than this share is dirty: the rest is for reads and for what is being written.
const DIRTY_PERCENT: u64 = 75;
/// How long a writer waits for room while nothing moves, before ENOSPC.
const STALL_MAX: Duration = Duration::from_secs(60);
/// The same without a cloud tier: only a removal, or what a seal does not need after all, makes room then.
const STALL_MAX_ALONE: Duration = Duration::from_secs(2);
/// How long a writer waits for uploads that make no room before other nodes are asked to take chunks over.
const GIVE_AFTER: Duration = Duration::from_secs(2);
/// How long a writer waits at most because of memory alone.
const OPEN_STALL_MAX: Duration = Duration::from_secs(5);
/// How often a waiting writer looks again even when nobody woke it.
const STALL_LOOK: Duration = Duration::from_millis(50);
/// Most reads noted between two reports on a core; further ones of that time are not reported (the order is approximate).
const ACCESSED_MAX: usize = 65_536;
/// How often reads are reported and space is looked after.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks for files that were dirty for long.
const AGE_TICKS: u64 = 10;

/// What eviction and waiting writers share.
#[derive(Default)]
pub(crate) struct Space {
    victims: Mutex<VecDeque<ChunkId>>,
    accessed: Striped<Mutex<HashSet<ChunkId>>>,
    /// Room was made.
    pub freed: Event,
    /// Writers that wait now.
    pub waiting: AtomicU64,
    /// The files of writes that wait before they begin, once for each: the kernel has their pages locked.
    stalled: Mutex<Vec<Ino>>,
    is_relieving: AtomicBool,
    pub is_giving: AtomicBool,
}

impl Space {
    /// Notes a read for the agent's order.
    pub fn accessed(&self, id: ChunkId) {
        let mut set = lock(self.accessed.mine());
        if set.len() < ACCESSED_MAX {
            set.insert(id);
        }
    }

    /// Notes that a write waits before it begins, because too much is dirty or for the lease of its file.
    pub fn stalls(&self, ino: Ino) -> Stalled<'_> {
        lock(&self.stalled).push(ino);
        Stalled { space: self, ino }
    }

    /// Files of which a write waits before it begins.
    pub fn stalled(&self) -> HashSet<Ino> {
        lock(&self.stalled).iter().copied().collect()
    }

    /// Replaces the standing list.
    pub fn set_victims(&self, ids: Vec<ChunkId>) {
        *lock(&self.victims) = ids.into();
    }
}

/// A write that waits, as long as this is held.
pub(crate) struct Stalled<'s> {
    space: &'s Space,
    ino: Ino,
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        let mut stalled = lock(&self.space.stalled);
        if let Some(at) = stalled.iter().position(|one| *one == self.ino) {
            stalled.swap_remove(at);
        }
    }
}

impl FileSystem {
    /// The loop that reports reads, evicts ahead of need, seals aged files and reaps orphans. One core runs it.
    pub async fn background(&self) {
        let mut tick: u64 = 0;
        while !self.inner.is_stopping.load(Ordering::Relaxed) {
            fastcache_reactor::sleep(TICK).await;
            tick += 1;
            self.see_to_lapse();
            let mut accessed = HashSet::new();
            for core in self.inner.space.accessed.iter() {
                accessed.extend(lock(core).drain());
            }
            if !accessed.is_empty() {
                let ids = accessed.into_iter().collect();
                self.inner.link.event(Ino::ROOT, DataEvent::Accessed(ids));
            }
            self.evict_ahead();
            self.trim_inodes().await;
            if tick.is_multiple_of(AGE_TICKS) {
                let fs = self.clone();
                fastcache_reactor::spawn(async move {
                    fs.expire_holds().await;
                    fs.seal_aged().await;
                    fs.reap_orphans().await;
                })
                .detach();
            }
        }
    }

    /// Evicts down to FULL_PERCENT; tells the agent when the list runs out.
    fn evict_ahead(&self) {
        let usage = self.inner.store.usage();
        let limit = usage.capacity_bytes / 100 * FULL_PERCENT;
        if usage.used_bytes > limit {
            self.evict_bytes(usage.used_bytes - limit);
        }
        let chunks_over = self.chunks_over();
        if chunks_over > 0 {
            self.evict_some(u64::MAX, chunks_over);
        }
        let waiting = self.inner.space.waiting.load(Ordering::Relaxed) > 0;
        let is_filling = usage.used_bytes > limit / 10 * 9 || chunks_over > 0;
        let is_short = is_filling && lock(&self.inner.space.victims).len() < 64;
        if waiting || is_short {
            self.press(waiting);
        }
    }

    fn press(&self, is_blocked: bool) {
        let used_bytes = self.inner.store.usage().used_bytes;
        self.inner.link.event(
            Ino::ROOT,
            DataEvent::Pressure {
                used_bytes,
                is_blocked,
            },
        );
    }

    /// Evicts clean chunks from the list until `bytes` are freed or the list is empty. Answers what was freed.
    fn evict_bytes(&self, bytes: u64) -> u64 {
        self.evict_some(bytes, u64::MAX)
    }

    /// The same, and at most so many.
    fn evict_some(&self, bytes: u64, chunks: u64) -> u64 {
        let mut freed = 0;
        let mut gone = Vec::new();
        while freed < bytes && (gone.len() as u64) < chunks {
            let Some(id) = lock(&self.inner.space.victims).pop_front() else {
                break;
            };
            if self.is_held(id) {
                continue;
            }
            if let Some((key, n)) = self.inner.store.evict(id) {
                self.lost_ahead(id);
                freed += n;
                gone.push(key);
            }
        }
        if !gone.is_empty() {
            count(&self.inner.counters.evicted_chunks, gone.len() as u64);
            count(&self.inner.counters.evicted_bytes, freed);
            self.inner.link.event(Ino::ROOT, DataEvent::Gone(gone));
            self.inner.space.freed.notify(usize::MAX);
        }
        freed
    }

    /// Evicts one chunk by name, if it is clean.
    pub(crate) fn evict_one(&self, id: ChunkId) -> Option<u64> {
        if self.is_held(id) {
            return None;
        }
        let (key, bytes) = self.inner.store.evict(id)?;
        self.lost_ahead(id);
        count(&self.inner.counters.evicted_chunks, 1);
        count(&self.inner.counters.evicted_bytes, bytes);
        self.inner.link.event(id.ino, DataEvent::Gone(vec![key]));
        Some(bytes)
    }

    /// Room enough to be generous with: more than a quarter is free.
    pub(crate) fn is_roomy(&self) -> bool {
        let usage = self.inner.store.usage();
        usage.free_bytes > usage.capacity_bytes / 4
    }

    /// How long a writer waits while nothing moves.
    fn stall_max(&self) -> Duration {
        if self.inner.has_cloud.load(Ordering::Relaxed) {
            STALL_MAX
        } else {
            STALL_MAX_ALONE
        }
    }

    /// A writer waits, and nothing has moved since then: others may take what the cloud does not.
    fn see_to_stall(&self, since: Instant) {
        if since.elapsed() > GIVE_AFTER.min(self.stall_max() / 2) {
            self.begin_to_give();
        }
    }

    /// Tries to make room for `blocks` without waiting for uploads.
    pub(crate) async fn make_room_now(&self, blocks: u32) -> bool {
        let want = u64::from(blocks) * 4096;
        for _ in 0..2 {
            if self.inner.store.usage().free_bytes >= want {
                return true;
            }
            self.evict_bytes(want);
            // Freed blocks can be used after a flush of the record that freed them.
            if let Err(error) = self.inner.store.reclaim().await {
                device_error(&error);
            }
        }
        self.inner.store.usage().free_bytes >= want
    }

    /// Makes room for `blocks`: evicts; when nothing can be evicted, waits for uploads. ENOSPC when nothing moves.
    pub(crate) async fn make_room(&self, blocks: u32) -> Result<()> {
        let blocks = blocks.max(1);
        let mut is_counted = false;
        let mut since = fastcache_reactor::now();
        let mut dirty = u64::MAX;
        loop {
            let listener = is_counted.then(|| self.inner.space.freed.listen());
            // Fragments may not add up for one caller although the sum is there: ask for a little more each time.
            if self.make_room_now(blocks + 64).await {
                break;
            }
            if !std::mem::replace(&mut is_counted, true) {
                count(&self.inner.counters.write_stalls, 1);
                self.inner.space.waiting.fetch_add(1, Ordering::Relaxed);
                self.press(true);
            }
            self.relieve();
            self.see_to_stall(since);
            let now_dirty = self.inner.store.usage().dirty_bytes;
            if now_dirty < dirty {
                dirty = now_dirty;
                since = fastcache_reactor::now();
            } else if fastcache_reactor::now().duration_since(since) > self.stall_max() {
                self.inner.space.waiting.fetch_sub(1, Ordering::Relaxed);
                tracing::error!(target: "cache", "the store is full of data that is not in the cloud, and no upload succeeds: ENOSPC");
                return Err(Errno::ENOSPC);
            }
            // Who waits looks once more after it began to listen.
            if let Some(listener) = listener {
                let _ = fastcache_reactor::timeout(STALL_LOOK, listener).await;
            }
        }
        if is_counted {
            self.inner.space.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Room for what a seal writes beside the data that is placed already.
    pub(crate) async fn make_room_for_seal(&self, blocks: u32, seals: &[SealChunk]) -> Result<()> {
        if seals.is_empty() {
            return Ok(());
        }
        let want = u64::from(blocks) * 4096;
        if self.inner.store.usage().free_bytes >= want {
            return Ok(());
        }
        self.make_room(blocks).await
    }

    /// Holds writers of a file back while too much is dirty. ENOSPC when nothing moves for a minute.
    pub async fn await_dirty_room(&self, ino: Ino, bytes: u64) -> Result<()> {
        let mut stalled = None;
        let began = fastcache_reactor::now();
        let mut since = began;
        let mut least = u64::MAX;
        let result = loop {
            let listener = stalled.is_some().then(|| self.inner.space.freed.listen());
            let usage = self.inner.store.usage();
            let limit = usage.capacity_bytes / 100 * DIRTY_PERCENT;
            let is_full = usage.dirty_bytes + bytes.min(limit / 2) > limit;
            let has_too_much_open = self.has_too_much_open();
            if !is_full && !has_too_much_open && !self.has_too_many_dirty(usage.dirty_chunks) {
                break Ok(());
            }
            if stalled.is_none() {
                count(&self.inner.counters.write_stalls, 1);
                self.inner.space.waiting.fetch_add(1, Ordering::Relaxed);
                stalled = Some(self.inner.space.stalls(ino));
                self.press(true);
            }
            if !is_full && began.elapsed() > OPEN_STALL_MAX {
                // Memory alone is no reason to refuse a write.
                break Ok(());
            }
            if has_too_much_open {
                self.relieve();
            }
            self.see_to_stall(since);
            if usage.dirty_bytes < least {
                least = usage.dirty_bytes;
                since = fastcache_reactor::now();
            } else if fastcache_reactor::now().duration_since(since) > self.stall_max() {
                tracing::error!(target: "cache", dirty_bytes = usage.dirty_bytes, "the dirty cap is reached and no upload succeeds: ENOSPC");
                break Err(Errno::ENOSPC);
            }
            if let Some(listener) = listener {
                let _ = fastcache_reactor::timeout(STALL_LOOK, listener).await;
            }
        };
        if stalled.is_some() {
            self.inner.space.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        result
    }

    /// The store is full of chunks that are still open: seal them, so that they can be uploaded and evicted.
    fn relieve(&self) {
        if self.inner.space.is_relieving.swap(true, Ordering::AcqRel) {
            return;
        }
        let fs = self.clone();
        fastcache_reactor::spawn(async move {
            for inode in fs.inner.inodes.all() {
                let has_open = {
                    let state = lock(&inode.state);
                    state.open_chunks.values().any(|c| !lock(&c.state).is_sealing)
                };
                if has_open && inode.seal_lock.try_lock().is_some() {
                    let fs2 = fs.clone();
                    fastcache_reactor::spawn(async move {
                        if let Err(error) = fs2.seal_file(&inode, false).await {
                            tracing::debug!(target: "cache", ino = %inode.ino, %error, "a file could not be sealed to make room");
                        }
                    })
                    .detach();
                }
            }
            fastcache_reactor::sleep(Duration::from_secs(1)).await;
            fs.inner.space.is_relieving.store(false, Ordering::Release);
        })
        .detach();
    }
}
