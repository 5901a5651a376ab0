//! What this node's store holds, least recently used first: the source of the victim list and of `GET /api/cache`.
//!
//! A view: the data plane is the truth. It is fed by the inventory and by events, and a wrong entry does no
//! harm: a victim that is dirty, in use or gone is left alone by the data plane. Memory is bounded by the
//! chunks the store has room for (about 120 bytes each).

use crate::types::CachedChunk;
use fastcache_api::control::LocalChunk;
use fastcache_api::{ChunkId, ChunkKey};
use hashlink::LinkedHashMap;
use std::collections::{BinaryHeap, HashSet};

/// Most ids in one victim list.
pub(crate) const VICTIMS_MAX: usize = 4096;
/// Fewest ids worth sending.
const VICTIMS_MIN: usize = 64;
/// The victim list covers at least one part in so many of the capacity.
const VICTIMS_PART: u64 = 20;

/// The cache as the agent sees it.
#[derive(Default)]
pub(crate) struct Lru {
    chunks: LinkedHashMap<ChunkId, CachedChunk>,
    bytes: u64,
    /// While an inventory is taken: what went away meanwhile and so must not come back by it.
    gone: Option<HashSet<ChunkKey>>,
}

impl Lru {
    /// Forgets everything: an inventory follows.
    pub(crate) fn begin_inventory(&mut self) {
        *self = Lru {
            gone: Some(HashSet::new()),
            ..Lru::default()
        };
    }

    /// One chunk of the inventory; an event knew better where the chunk is already there or gone.
    pub(crate) fn take_stock(&mut self, chunk: &LocalChunk) -> bool {
        let is_gone = self
            .gone
            .as_ref()
            .is_some_and(|gone| gone.contains(&chunk.key));
        if is_gone || self.chunks.contains_key(&chunk.key.id()) {
            return false;
        }
        self.store(chunk);
        true
    }

    /// The inventory is complete.
    pub(crate) fn end_inventory(&mut self) {
        self.gone = None;
    }

    /// A chunk was sealed or promoted: it is the most recently used.
    pub(crate) fn store(&mut self, chunk: &LocalChunk) {
        let LocalChunk {
            key,
            len,
            device_bytes,
            is_dirty,
        } = *chunk;
        self.bytes += u64::from(device_bytes);
        let new = CachedChunk {
            key,
            len,
            device_bytes,
            is_dirty,
        };
        if let Some(old) = self.chunks.insert(key.id(), new) {
            self.bytes -= u64::from(old.device_bytes);
        }
        self.chunks.to_back(&key.id());
    }

    /// Chunks were read.
    pub(crate) fn touch(&mut self, ids: &[ChunkId]) {
        for id in ids {
            self.chunks.to_back(id);
        }
    }

    /// A version left the store.
    pub(crate) fn forget(&mut self, key: ChunkKey) {
        if let Some(gone) = &mut self.gone {
            gone.insert(key);
        }
        if self.chunks.get(&key.id()).is_some_and(|c| c.key == key)
            && let Some(old) = self.chunks.remove(&key.id())
        {
            self.bytes -= u64::from(old.device_bytes);
        }
    }

    /// A version is in the object store.
    pub(crate) fn mark_clean(&mut self, key: ChunkKey) {
        if let Some(chunk) = self.chunks.get_mut(&key.id())
            && chunk.key == key
        {
            chunk.is_dirty = false;
        }
    }

    /// What the chunks take of the device, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What to evict first: clean chunks worth at least 5 % of the capacity or 64 of them, whichever is
    /// more, at most [`VICTIMS_MAX`].
    pub(crate) fn victims(&self, capacity_bytes: u64) -> Vec<ChunkId> {
        let wanted = capacity_bytes / VICTIMS_PART;
        let mut bytes = 0;
        let mut ids = Vec::new();
        for (id, chunk) in self.chunks.iter().filter(|(_, c)| !c.is_dirty) {
            if ids.len() >= VICTIMS_MAX || (ids.len() >= VICTIMS_MIN && bytes >= wanted) {
                break;
            }
            bytes += u64::from(chunk.device_bytes);
            ids.push(*id);
        }
        ids
    }

    /// Chunks in order of their id, after one, at most `max`.
    pub(crate) fn listed(&self, after: Option<ChunkId>, max: usize) -> Vec<CachedChunk> {
        let mut first = BinaryHeap::with_capacity(max.min(self.chunks.len()) + 1);
        for id in self
            .chunks
            .keys()
            .filter(|id| after.is_none_or(|after| **id > after))
        {
            if first.len() < max || first.peek().is_some_and(|top| id < top) {
                first.push(*id);
            }
            if first.len() > max {
                first.pop();
            }
        }
        first
            .into_sorted_vec()
            .iter()
            .filter_map(|id| self.chunks.get(id).copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the order of victims and the accounting. Method: events by hand.
    use super::*;
    use fastcache_api::{Ino, Version};

    fn chunk(ino: u64, version: u64, is_dirty: bool) -> LocalChunk {
        let key = ChunkKey {
            ino: Ino(ino),
            index: 0,
            version: Version(version),
        };
        LocalChunk {
            key,
            len: 4096,
            device_bytes: 8192,
            is_dirty,
        }
    }

    #[test]
    fn victims_are_clean_and_least_recently_used() {
        let mut lru = Lru::default();
        for ino in 2..202 {
            lru.store(&chunk(ino, 1, ino % 2 == 1));
        }
        lru.touch(&[chunk(2, 1, false).key.id()]);
        let victims = lru.victims(0);
        assert_eq!(victims.len(), VICTIMS_MIN);
        assert_eq!(victims[0].ino, Ino(4));
        assert!(victims.iter().all(|v| v.ino.0 % 2 == 0));
        lru.mark_clean(chunk(3, 1, true).key);
        assert_eq!(lru.victims(0)[0].ino, Ino(3));
        lru.mark_clean(chunk(5, 99, true).key);
        assert_eq!(lru.victims(u64::MAX).len(), 101);
    }

    #[test]
    fn an_inventory_does_not_bring_back_what_went() {
        let mut lru = Lru::default();
        lru.begin_inventory();
        lru.forget(chunk(2, 1, false).key);
        lru.store(&chunk(3, 2, true));
        assert!(!lru.take_stock(&chunk(2, 1, false)));
        assert!(!lru.take_stock(&chunk(3, 1, true)));
        assert!(lru.take_stock(&chunk(4, 1, true)));
        lru.end_inventory();
        assert_eq!(lru.bytes(), 2 * 8192);
        lru.forget(chunk(3, 1, true).key);
        assert_eq!(lru.listed(None, 10).len(), 2);
        assert_eq!(lru.listed(None, 1)[0].key.ino, Ino(3));
        assert_eq!(
            lru.listed(Some(chunk(3, 2, true).key.id()), 5)[0].key.ino,
            Ino(4)
        );
        lru.forget(chunk(3, 2, true).key);
        assert_eq!(lru.bytes(), 8192);
    }
}
