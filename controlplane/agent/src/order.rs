//! In which order chunks are evicted: what was used again in earnest stays, what passed through once goes first.
//!
//! Two queues, each least recently used first, and a memory of what went. A new chunk is on *probation*; it comes to the
//! *kept* ones when it was visited [`VISITS`] more times, or comes back while it is remembered. Probation gives while it
//! has more than [`PROBATION_PERCENT`] of the capacity, so a pass over any amount of data recycles that share alone.
//! docs/adr/0009-eviction.md compares this with other policies.
//!
//! A *visit* is what one reader does at once: a chunk of 4 MiB is read in many pieces, and in pieces ahead of time.
//! Reads within [`GAP`] of the last one are the same visit, up to [`LONGEST`].
//!
//! Memory: about 90 bytes a chunk, and 50 for each that is remembered, of which there are at most as many.

use hashlink::LinkedHashMap;
use std::hash::Hash;

/// Time in units of 100 ms since any fixed moment: how often the data plane tells of reads.
pub type Ticks = u32;

/// Visits after the first that make a chunk a kept one. The first of them may be the read it was fetched ahead for.
const VISITS: u8 = 2;
/// Reads that follow each other so closely are one visit.
const GAP: Ticks = 10;
/// A visit that lasts longer is several.
const LONGEST: Ticks = 100;
/// Share of the capacity that probation has before anything kept goes. More than readahead may fill (a sixteenth).
const PROBATION_PERCENT: u64 = 20;
/// What was on probation is remembered for so much of the capacity that went since.
const REMEMBERED_PERCENT: u64 = 100;
/// Remembered at least, however few chunks there are.
const REMEMBERED_MIN: usize = 256;

/// The order of keys. What each weighs is counted in bytes.
#[derive(Debug)]
pub struct Order<K> {
    capacity_bytes: u64,
    probation: Queue<K, Visits>,
    kept: Queue<K, ()>,
    remembered: Queue<K, ()>,
}

#[derive(Debug)]
struct Queue<K, T> {
    entries: LinkedHashMap<K, (u32, T)>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Visits {
    count: u8,
    began: Ticks,
    last: Ticks,
}

impl<K: Hash + Eq + Copy, T> Queue<K, T> {
    fn push(&mut self, key: K, bytes: u32, with: T) {
        self.remove(&key);
        self.bytes += u64::from(bytes);
        self.entries.insert(key, (bytes, with));
    }

    fn remove(&mut self, key: &K) -> Option<u32> {
        let (bytes, _) = self.entries.remove(key)?;
        self.bytes -= u64::from(bytes);
        Some(bytes)
    }

    fn pop(&mut self) {
        if let Some((_, (bytes, _))) = self.entries.pop_front() {
            self.bytes -= u64::from(bytes);
        }
    }
}

impl<K: Hash + Eq, T> Default for Queue<K, T> {
    fn default() -> Self {
        Queue {
            entries: LinkedHashMap::new(),
            bytes: 0,
        }
    }
}

impl<K: Hash + Eq + Copy> Default for Order<K> {
    fn default() -> Self {
        Order {
            capacity_bytes: 0,
            probation: Queue::default(),
            kept: Queue::default(),
            remembered: Queue::default(),
        }
    }
}

impl<K: Hash + Eq + Copy> Order<K> {
    /// Says how much there is room for.
    pub fn set_capacity(&mut self, bytes: u64) {
        self.capacity_bytes = bytes;
    }

    /// A key is there, of so many bytes: new, or in a new version, which counts as a read.
    pub fn insert(&mut self, key: K, bytes: u32, now: Ticks) {
        let is_kept = self.kept.entries.contains_key(&key);
        if is_kept || self.remembered.remove(&key).is_some() {
            self.kept.push(key, bytes, ());
        } else if let Some((_, visits)) = self.probation.entries.get(&key).copied() {
            self.probation.push(key, bytes, visits);
            self.touch(key, now);
        } else {
            let visits = Visits {
                count: 0,
                began: now,
                last: now,
            };
            self.probation.push(key, bytes, visits);
        }
    }

    /// A key was read.
    pub fn touch(&mut self, key: K, now: Ticks) {
        if self.kept.entries.to_back(&key).is_some() {
            return;
        }
        let Some((bytes, visits)) = self.probation.entries.to_back(&key) else {
            return;
        };
        let is_same =
            now.saturating_sub(visits.last) <= GAP && now.saturating_sub(visits.began) <= LONGEST;
        visits.last = now;
        if !is_same {
            visits.began = now;
            visits.count += 1;
        }
        if visits.count >= VISITS {
            let bytes = *bytes;
            self.probation.remove(&key);
            self.kept.push(key, bytes, ());
        }
    }

    /// A key is to be kept without more ado: somebody asked for it by name.
    pub fn keep(&mut self, key: K) {
        if let Some(bytes) = self.probation.remove(&key) {
            self.kept.push(key, bytes, ());
        }
    }

    /// A key is not there any more.
    pub fn remove(&mut self, key: K) {
        self.kept.remove(&key);
        if let Some(bytes) = self.probation.remove(&key) {
            self.remembered.push(key, bytes, ());
            let most = self.capacity_bytes / 100 * REMEMBERED_PERCENT;
            let count = self.probation.entries.len() + self.kept.entries.len();
            while self.remembered.bytes > most
                || self.remembered.entries.len() > count.max(REMEMBERED_MIN)
            {
                self.remembered.pop();
            }
        }
    }

    /// Keys, first to go first; the first is what the policy evicts now, the others what it would go on with.
    pub fn first_to_go(&self) -> impl Iterator<Item = K> + '_ {
        let share = self.capacity_bytes / 100 * PROBATION_PERCENT;
        let mut left = self.probation.bytes;
        let mut probation = self.probation.entries.iter().peekable();
        let mut kept = self.kept.entries.keys();
        std::iter::from_fn(move || {
            if left <= share
                && let Some(key) = kept.next()
            {
                return Some(*key);
            }
            match probation.next() {
                Some((key, (bytes, _))) => {
                    left -= u64::from(*bytes);
                    Some(*key)
                }
                None => kept.next().copied(),
            }
        })
    }

    /// Keys that are kept, on probation, and remembered.
    pub fn lens(&self) -> (usize, usize, usize) {
        (
            self.kept.entries.len(),
            self.probation.entries.len(),
            self.remembered.entries.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    //! Goal: one pass evicts nothing that is in use, and memory is bounded. Method: a cache of 100 keys by hand.
    use super::*;

    const CAPACITY: usize = 100;

    struct Cache {
        order: Order<u32>,
        here: std::collections::HashSet<u32>,
        now: Ticks,
    }

    impl Cache {
        fn new() -> Cache {
            let mut order = Order::default();
            order.set_capacity(CAPACITY as u64);
            Cache {
                order,
                here: Default::default(),
                now: 0,
            }
        }

        /// Reads a key in four pieces; whether it was here.
        fn read(&mut self, key: u32) -> bool {
            let is_hit = self.here.contains(&key);
            if !is_hit {
                if self.here.len() >= CAPACITY {
                    let victim = self.order.first_to_go().next().unwrap();
                    assert!(self.here.remove(&victim));
                    self.order.remove(victim);
                }
                self.here.insert(key);
                self.order.insert(key, 1, self.now);
            }
            for _ in 0..4 {
                self.order.touch(key, self.now);
                self.now += 1;
            }
            is_hit
        }

        fn rest(&mut self) {
            self.now += LONGEST + GAP;
        }
    }

    #[test]
    fn a_pass_over_ten_times_the_cache_leaves_the_hot_set() {
        let mut cache = Cache::new();
        for _ in 0..4 {
            for key in 0..60 {
                cache.read(key);
            }
            cache.rest();
        }
        (1000..2000).for_each(|key| assert!(!cache.read(key)));
        assert!((0..60).all(|key| cache.read(key)), "all of it is here");
        // A pass in which each is read twice at once, as readahead and its reader do, is no different.
        for key in 2000..3000 {
            cache.read(key);
            cache.read(key);
        }
        assert!((0..60).all(|key| cache.read(key)));
    }

    #[test]
    fn what_is_not_used_any_more_makes_room_for_what_is() {
        let mut cache = Cache::new();
        for set in 0..5u32 {
            for _ in 0..12 {
                for key in 0..80 {
                    cache.read(set * 1000 + key);
                }
                cache.rest();
            }
            let hits = (0..80).filter(|key| cache.read(set * 1000 + key)).count();
            assert!(hits >= 78, "set {set}: {hits} of 80");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut cache = Cache::new();
        for key in 0..100_000 {
            cache.read(key);
        }
        let (kept, probation, remembered) = cache.order.lens();
        assert!(kept + probation <= CAPACITY && remembered <= CAPACITY);
        assert_eq!(cache.order.first_to_go().count(), cache.here.len());
    }
}
