//! What this node's store holds: the source of the victim list and of `GET /api/cache`.
//!
//! A view: the data plane is the truth. It is fed by the inventory and by events, and a wrong entry does no
//! harm: a victim that is dirty, in use or gone is left alone by the data plane. Memory is bounded by the
//! chunks the store has room for (about 200 bytes each, what [`Order`] remembers of those that went included).

use crate::order::{Order, Ticks};
use crate::types::CachedChunk;
use fastcache_api::control::LocalChunk;
use fastcache_api::{ChunkId, ChunkKey, Ino};
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Most ids in one victim list.
pub(crate) const VICTIMS_MAX: usize = 4096;
/// Fewest ids worth sending.
const VICTIMS_MIN: usize = 64;
/// The victim list covers at least one part in so many of the capacity.
const VICTIMS_PART: u64 = 20;

/// The cache as the agent sees it.
#[derive(Default)]
pub(crate) struct Lru {
    chunks: HashMap<ChunkId, CachedChunk>,
    order: Order<ChunkId>,
    bytes: u64,
    pins: Pins,
    /// While an inventory is taken: what went away meanwhile and so must not come back by it.
    gone: Option<HashSet<ChunkKey>>,
}

/// Files whose chunks are not evicted.
#[derive(Default)]
struct Pins {
    files: HashSet<Ino>,
    /// Chunks of theirs that are here, and what they take of the device.
    chunks: u64,
    bytes: u64,
    /// Beyond it the least recently used of them go as any others.
    most_bytes: u64,
}

/// What is pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) files: u64,
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
    pub(crate) most_bytes: u64,
}

impl Lru {
    /// Forgets everything but the pins: an inventory follows.
    pub(crate) fn begin_inventory(&mut self, capacity_bytes: u64, pins_most_bytes: u64) {
        let files = std::mem::take(&mut self.pins.files);
        let mut order = Order::default();
        order.set_capacity(capacity_bytes);
        *self = Lru {
            order,
            pins: Pins {
                files,
                most_bytes: pins_most_bytes,
                ..Pins::default()
            },
            gone: Some(HashSet::new()),
            ..Lru::default()
        };
    }

    /// One chunk of the inventory; an event knew better where the chunk is already there or gone. Nothing is known of its
    /// use: it stays until the others were used more.
    pub(crate) fn take_stock(&mut self, chunk: &LocalChunk, now: Ticks) -> bool {
        let is_gone = self
            .gone
            .as_ref()
            .is_some_and(|gone| gone.contains(&chunk.key));
        if is_gone || self.chunks.contains_key(&chunk.key.id()) {
            return false;
        }
        self.store(chunk, now);
        self.order.keep(chunk.key.id());
        true
    }

    /// The inventory is complete.
    pub(crate) fn end_inventory(&mut self) {
        self.gone = None;
    }

    /// A chunk was sealed or promoted.
    pub(crate) fn store(&mut self, chunk: &LocalChunk, now: Ticks) {
        let LocalChunk {
            key,
            len,
            device_bytes,
            is_dirty,
        } = *chunk;
        let new = CachedChunk {
            key,
            len,
            device_bytes,
            is_dirty,
        };
        if let Some(old) = self.chunks.insert(key.id(), new) {
            self.uncount(&old);
        }
        self.bytes += u64::from(device_bytes);
        if self.pins.files.contains(&key.ino) {
            self.pins.chunks += 1;
            self.pins.bytes += u64::from(device_bytes);
        }
        self.order.insert(key.id(), device_bytes, now);
    }

    fn uncount(&mut self, old: &CachedChunk) {
        self.bytes -= u64::from(old.device_bytes);
        if self.pins.files.contains(&old.key.ino) {
            self.pins.chunks -= 1;
            self.pins.bytes -= u64::from(old.device_bytes);
        }
    }

    /// Chunks were read.
    pub(crate) fn touch(&mut self, ids: &[ChunkId], now: Ticks) {
        for id in ids {
            self.order.touch(*id, now);
        }
    }

    /// Somebody asked for this chunk to be here: it is not on probation.
    pub(crate) fn keep(&mut self, id: ChunkId) {
        self.order.keep(id);
    }

    /// A version left the store.
    pub(crate) fn forget(&mut self, key: ChunkKey) {
        if let Some(gone) = &mut self.gone {
            gone.insert(key);
        }
        if self.chunks.get(&key.id()).is_some_and(|c| c.key == key)
            && let Some(old) = self.chunks.remove(&key.id())
        {
            self.uncount(&old);
            self.order.remove(key.id());
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

    /// The version of a chunk that is here.
    pub(crate) fn get(&self, id: ChunkId) -> Option<&CachedChunk> {
        self.chunks.get(&id)
    }

    /// What the chunks take of the device, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// These files are pinned, and no others.
    pub(crate) fn set_pins(&mut self, files: HashSet<Ino>) {
        self.pins.files = files;
        (self.pins.chunks, self.pins.bytes) = (0, 0);
        for chunk in self.chunks.values() {
            if self.pins.files.contains(&chunk.key.ino) {
                self.pins.chunks += 1;
                self.pins.bytes += u64::from(chunk.device_bytes);
            }
        }
    }

    /// A file is pinned, or not any more. `indices`: how many chunks it may have.
    pub(crate) fn pin(&mut self, ino: Ino, is_pinned: bool, indices: u32) {
        let is_new = if is_pinned {
            self.pins.files.insert(ino)
        } else {
            self.pins.files.remove(&ino)
        };
        if !is_new {
            return;
        }
        for index in 0..indices {
            let Some(chunk) = self.chunks.get(&ChunkId { ino, index }) else {
                continue;
            };
            let bytes = u64::from(chunk.device_bytes);
            if is_pinned {
                self.pins.chunks += 1;
                self.pins.bytes += bytes;
            } else {
                self.pins.chunks = self.pins.chunks.saturating_sub(1);
                self.pins.bytes = self.pins.bytes.saturating_sub(bytes);
            }
        }
    }

    /// Chunks of a file that are here, and what they take of the device. Looks at every chunk.
    pub(crate) fn of_file(&self, ino: Ino) -> (u64, u64) {
        let of = self.chunks.values().filter(|c| c.key.ino == ino);
        of.fold((0, 0), |(n, bytes), c| {
            (n + 1, bytes + u64::from(c.device_bytes))
        })
    }

    /// Whether a file is pinned.
    pub(crate) fn is_pinned(&self, ino: Ino) -> bool {
        self.pins.files.contains(&ino)
    }

    /// Every pinned file.
    pub(crate) fn pins(&self) -> Vec<Ino> {
        self.pins.files.iter().copied().collect()
    }

    /// How much is pinned.
    pub(crate) fn pinned(&self) -> Pinned {
        Pinned {
            files: self.pins.files.len() as u64,
            chunks: self.pins.chunks,
            bytes: self.pins.bytes,
            most_bytes: self.pins.most_bytes,
        }
    }

    /// What to evict first: clean chunks worth at least 5 % of the capacity or 64 of them, whichever is
    /// more, at most [`VICTIMS_MAX`]. Pinned ones only beyond the share they may have.
    pub(crate) fn victims(&self, capacity_bytes: u64) -> Vec<ChunkId> {
        let wanted = capacity_bytes / VICTIMS_PART;
        let mut bytes = 0;
        let mut ids = Vec::new();
        let mut pinned_bytes = self.pins.bytes;
        for id in self.order.first_to_go() {
            let Some(chunk) = self.chunks.get(&id).filter(|c| !c.is_dirty) else {
                continue;
            };
            if ids.len() >= VICTIMS_MAX || (ids.len() >= VICTIMS_MIN && bytes >= wanted) {
                break;
            }
            if self.pins.files.contains(&id.ino) {
                if pinned_bytes <= self.pins.most_bytes {
                    continue;
                }
                pinned_bytes -= u64::from(chunk.device_bytes);
            }
            bytes += u64::from(chunk.device_bytes);
            ids.push(id);
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
            lru.store(&chunk(ino, 1, ino % 2 == 1), 0);
        }
        lru.touch(&[chunk(2, 1, false).key.id()], 0);
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
        lru.begin_inventory(1 << 30, 1 << 29);
        lru.forget(chunk(2, 1, false).key);
        lru.store(&chunk(3, 2, true), 0);
        assert!(!lru.take_stock(&chunk(2, 1, false), 0));
        assert!(!lru.take_stock(&chunk(3, 1, true), 0));
        assert!(lru.take_stock(&chunk(4, 1, true), 0));
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

    #[test]
    fn pinned_chunks_are_no_victims_within_their_share() {
        let mut lru = Lru::default();
        lru.begin_inventory(1 << 20, 3 * 8192);
        lru.pin(Ino(2), true, 1);
        for ino in 2..12 {
            lru.take_stock(&chunk(ino, 1, false), 0);
        }
        lru.end_inventory();
        lru.pin(Ino(3), true, 1);
        lru.pin(Ino(3), true, 1);
        let of = |lru: &Lru| (lru.pinned().files, lru.pinned().chunks, lru.pinned().bytes);
        assert_eq!(of(&lru), (2, 2, 2 * 8192));
        let victims = lru.victims(u64::MAX);
        assert_eq!(victims.len(), 8);
        assert!(victims.iter().all(|v| v.ino.0 > 3));
        // A new version, and one that went.
        lru.store(&chunk(2, 2, true), 1);
        assert_eq!(of(&lru), (2, 2, 2 * 8192));
        lru.forget(chunk(2, 2, true).key);
        assert_eq!(of(&lru), (2, 1, 8192));
        // Beyond the share they go as any others.
        (4..8).for_each(|ino| lru.pin(Ino(ino), true, 1));
        assert_eq!(of(&lru), (6, 5, 5 * 8192));
        assert_eq!(lru.victims(u64::MAX).len(), 9 - 3);
        lru.pin(Ino(4), false, 1);
        assert_eq!(of(&lru), (5, 4, 4 * 8192));
        lru.set_pins(HashSet::from([Ino(9)]));
        assert_eq!(of(&lru), (1, 1, 8192));
        assert_eq!(lru.victims(u64::MAX).len(), 8);
    }

    #[test]
    fn a_pass_over_more_than_the_store_leaves_the_hot_set() {
        let mut lru = Lru::default();
        let (hot, capacity) = (60, 100u64);
        lru.begin_inventory(capacity * 8192, 0);
        lru.end_inventory();
        let mut now = 0;
        for round in 0..4 {
            for ino in 2..2 + hot {
                if round == 0 {
                    lru.store(&chunk(ino, 1, false), now);
                }
                lru.touch(&[chunk(ino, 1, false).key.id()], now);
            }
            now += 200;
        }
        for ino in 1000..1500 {
            if lru.bytes() + 8192 > capacity * 8192 {
                let victim = lru.victims(0)[0];
                let key = lru.get(victim).unwrap().key;
                lru.forget(key);
            }
            lru.store(&chunk(ino, 1, false), now);
            lru.touch(&[chunk(ino, 1, false).key.id()], now);
            now += 1;
        }
        for ino in 2..2 + hot {
            assert!(lru.get(chunk(ino, 1, false).key.id()).is_some(), "{ino}");
        }
    }
}
