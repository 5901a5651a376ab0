//! Checksums of chunks that were read or written lately, least recently used out first, within a budget of bytes.

use crate::body::ChunkMeta;
use fastcache_reactor::sync::{AtomicUsize, Mutex, MutexGuard};
use fastcache_types::ChunkKey;
use hashlink::LinkedHashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Shards, so that cores rarely meet at a lock.
const SHARDS: usize = 16;
/// What an entry costs beside its checksums, bytes (map node, key, two Arc counts, allocation headers).
const ENTRY_BYTES: usize = 160;

/// The place of the header tells bodies apart that have the same key, one after the other.
type Key = (u32, ChunkKey);

#[derive(Default)]
struct Shard {
    entries: LinkedHashMap<Key, Arc<ChunkMeta>>,
    bytes: usize,
}

pub(crate) struct CrcCache {
    shards: [Mutex<Shard>; SHARDS],
    /// Per shard.
    budget: AtomicUsize,
    /// Of all shards, for a look without their locks.
    bytes: AtomicUsize,
}

impl Shard {
    /// Drops what was not used for longest, until the rest fits.
    fn shrink(&mut self, budget: usize) {
        while self.bytes > budget
            && let Some((_, old)) = self.entries.pop_front()
        {
            self.bytes -= cost(&old);
        }
    }
}

fn cost(meta: &ChunkMeta) -> usize {
    ENTRY_BYTES + meta.crcs.len() * size_of::<u32>()
}

impl CrcCache {
    pub(crate) fn new(budget_bytes: usize) -> CrcCache {
        CrcCache {
            shards: Default::default(),
            budget: AtomicUsize::new(budget_bytes / SHARDS),
            bytes: AtomicUsize::new(0),
        }
    }

    fn shard(&self, header: u32) -> MutexGuard<'_, Shard> {
        let at = (header.wrapping_mul(0x9E37_79B1) >> 28) as usize % SHARDS;
        self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, header: u32, key: ChunkKey) -> Option<Arc<ChunkMeta>> {
        self.shard(header).entries.to_back(&(header, key)).cloned()
    }

    pub(crate) fn insert(&self, header: u32, key: ChunkKey, meta: Arc<ChunkMeta>) {
        let mut shard = self.shard(header);
        let before = shard.bytes;
        shard.bytes += cost(&meta);
        if let Some(old) = shard.entries.insert((header, key), meta) {
            shard.bytes -= cost(&old);
        }
        shard.shrink(self.budget.load(Ordering::Relaxed));
        // Wraps around when it shrinks, and back again.
        self.bytes
            .fetch_add(shard.bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, header: u32, key: ChunkKey) {
        let mut shard = self.shard(header);
        if let Some(old) = shard.entries.remove(&(header, key)) {
            shard.bytes -= cost(&old);
            self.bytes.fetch_sub(cost(&old), Ordering::Relaxed);
        }
    }

    /// Changes the budget; what is beyond it goes at once.
    pub(crate) fn set_budget(&self, budget_bytes: usize) {
        let budget = budget_bytes / SHARDS;
        if self.budget.swap(budget, Ordering::Relaxed) <= budget {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let before = shard.bytes;
            shard.shrink(budget);
            self.bytes
                .fetch_sub(before - shard.bytes, Ordering::Relaxed);
        }
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
