//! Who owns which block of the data region. Owns the allocator, the loans, the sharing counts and the quarantine.
//!
//! Every block is in exactly one state:
//! - free: allocatable;
//! - lent: handed out by `allocate*`, not yet named by a journal record; may be released at once;
//! - owned: by one body or, counted, by several bodies of one chunk that share it;
//! - quarantined: freed by a journaled change; free again after the next device flush that covers the record, because
//!   until then a power cut could bring the record's predecessor back;
//! - bad: the device refused to write it, or its records, and nobody owns it any more. Counted with the quarantine, until the next start.
//!
//! `used` (lent and owned), free and quarantined blocks always add up to the capacity.
//! Lock order: index stripe, seals, journal queue, space. Nothing else is locked while the space is.

use crate::error::StoreError;
use crate::spill::Spill;
use fastcache_reactor::sync::{AtomicU64, Mutex, MutexGuard};
use fastcache_types::Extent;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Extents shorter than this come from the low end of the device, others from the high end, so that small chunks do not
/// break up the space of large ones.
const SMALL_BLOCKS: u32 = 64;
/// Most blocks kept back for the headers of dirty chunks (16 MiB).
const RESERVE_MAX: u32 = 4096;
/// The reserve is this part of the data region, at most.
const RESERVE_PART: u32 = 64;

/// A set of disjoint ranges, coalesced.
#[derive(Default)]
pub(crate) struct RangeSet {
    map: BTreeMap<u32, u32>,
}

impl RangeSet {
    /// Adds a range that must not overlap the set; returns the coalesced ranges it swallowed and the one it became.
    pub(crate) fn insert(&mut self, e: Extent) -> (SmallVec<[Extent; 2]>, Extent) {
        let mut merged = e;
        let mut swallowed = SmallVec::new();
        if let Some((&start, &len)) = self.map.range(..=e.start).next_back() {
            let left = Extent { start, len };
            assert!(left.end() <= e.start, "{e:?} overlaps {left:?}");
            if left.end() == e.start {
                swallowed.push(left);
                merged = Extent {
                    start,
                    len: len + e.len,
                };
            }
        }
        if let Some((&start, &len)) = self.map.range(e.start..).next() {
            assert!(
                e.end() <= start,
                "{e:?} overlaps {:?}",
                Extent { start, len }
            );
            if e.end() == start {
                swallowed.push(Extent { start, len });
                merged.len += len;
                self.map.remove(&start);
            }
        }
        self.map.insert(merged.start, merged.len);
        (swallowed, merged)
    }

    /// The parts of `e` that are in the set.
    pub(crate) fn overlap(&self, e: Extent) -> SmallVec<[Extent; 4]> {
        let mut parts = SmallVec::new();
        let from = match self.map.range(..=e.start).next_back() {
            Some((&start, &len)) if start + len > e.start => start,
            _ => e.start,
        };
        for (&start, &len) in self.map.range(from..e.end()) {
            let first = start.max(e.start);
            let end = (start + len).min(e.end());
            parts.push(Extent {
                start: first,
                len: end - first,
            });
        }
        parts
    }

    /// Removes a range that must be in the set as part of one range.
    fn cut(&mut self, e: Extent) {
        let (&start, &len) = self
            .map
            .range(..=e.start)
            .next_back()
            .expect("cut of nothing");
        assert!(start + len >= e.end(), "cut of {e:?} from {start}+{len}");
        if start == e.start {
            self.map.remove(&start);
        } else {
            self.map.insert(start, e.start - start);
        }
        if start + len > e.end() {
            self.map.insert(e.end(), start + len - e.end());
        }
    }
}

/// Free ranges, by place and by length.
#[derive(Default)]
struct FreeMap {
    by_start: RangeSet,
    by_len: BTreeSet<(u32, u32)>,
    blocks: u64,
}

impl FreeMap {
    fn insert(&mut self, e: Extent) {
        let (swallowed, merged) = self.by_start.insert(e);
        for s in swallowed {
            self.by_len.remove(&(s.len, s.start));
        }
        self.by_len.insert((merged.len, merged.start));
        self.blocks += u64::from(e.len);
    }

    /// Takes `blocks` from the range `from` (which must be in the map), from its low or its high end.
    fn carve(&mut self, from: Extent, blocks: u32, is_small: bool) -> Extent {
        let start = if is_small {
            from.start
        } else {
            from.end() - blocks
        };
        let e = Extent { start, len: blocks };
        self.by_len.remove(&(from.len, from.start));
        self.by_start.cut(e);
        let left = Extent {
            start: from.start,
            len: start - from.start,
        };
        let right = Extent {
            start: e.end(),
            len: from.end() - e.end(),
        };
        for rest in [left, right] {
            if rest.len > 0 {
                self.by_len.insert((rest.len, rest.start));
            }
        }
        self.blocks -= u64::from(blocks);
        e
    }

    /// The shortest range that has `blocks`; of equal ones the lowest or the highest.
    fn best_fit(&self, blocks: u32, is_small: bool) -> Option<Extent> {
        let &(len, start) = self.by_len.range((blocks, 0)..).next()?;
        if is_small {
            return Some(Extent { start, len });
        }
        let &(len, start) = self.by_len.range((len, 0)..=(len, u32::MAX)).next_back()?;
        Some(Extent { start, len })
    }
}

struct State {
    free: FreeMap,
    lent: RangeSet,
    /// Start → (length, bodies beyond the first) of ranges that several bodies own.
    shared: BTreeMap<u32, (u32, u32)>,
    /// (journal ticket, range), tickets ascending.
    quarantine: VecDeque<(u64, Extent)>,
    quarantined: u64,
    /// Part of `quarantined` that does not become free.
    bad: Vec<Extent>,
    bad_blocks: u64,
    used: u64,
}

/// What the space holds, blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    pub(crate) free: u64,
    /// Part of `free` that only headers of dirty chunks may take.
    pub(crate) reserved: u64,
    pub(crate) quarantined: u64,
}

/// The blocks of the data region and who owns them.
pub(crate) struct Space {
    region: Extent,
    reserve: u64,
    state: Mutex<State>,
    /// Ticket of the last record that was put into the journal's queue; written by the journal.
    pub(crate) last_ticket: AtomicU64,
    /// Bytes a checkpoint of all bodies takes.
    pub(crate) index_bytes: AtomicU64,
    /// Blocks that a flush would free, for a look without the lock.
    quarantined: AtomicU64,
    /// Blocks that the device refused.
    pub(crate) spill: Arc<Spill>,
}

impl Space {
    /// A region of which `owned` (sorted, disjoint) is owned and the rest free.
    pub(crate) fn new(region: Extent, owned: &[Extent]) -> Space {
        let mut free = FreeMap::default();
        let mut at = region.start;
        for e in owned {
            assert!(
                e.start >= at && e.end() <= region.end(),
                "{e:?} is not in order"
            );
            if e.start > at {
                free.insert(Extent {
                    start: at,
                    len: e.start - at,
                });
            }
            at = e.end();
        }
        if at < region.end() {
            free.insert(Extent {
                start: at,
                len: region.end() - at,
            });
        }
        let used = u64::from(region.len) - free.blocks;
        Space {
            region,
            reserve: u64::from((region.len / RESERVE_PART).min(RESERVE_MAX)),
            state: Mutex::new(State {
                free,
                lent: RangeSet::default(),
                shared: BTreeMap::new(),
                quarantine: VecDeque::new(),
                quarantined: 0,
                bad: Vec::new(),
                bad_blocks: 0,
                used,
            }),
            last_ticket: AtomicU64::new(0),
            index_bytes: AtomicU64::new(0),
            quarantined: AtomicU64::new(0),
            spill: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `e` is inside the data region.
    pub(crate) fn contains(&self, e: Extent) -> bool {
        let end = u64::from(e.start) + u64::from(e.len);
        e.len > 0 && e.start >= self.region.start && end <= u64::from(self.region.end())
    }

    /// One extent of exactly `blocks`. `is_header` may use the reserve.
    pub(crate) fn allocate(&self, blocks: u32, is_header: bool) -> Option<Extent> {
        if blocks == 0 {
            return None;
        }
        let mut st = self.lock();
        let reserve = if is_header { 0 } else { self.reserve };
        if st.free.blocks < reserve + u64::from(blocks) {
            return None;
        }
        let is_small = blocks < SMALL_BLOCKS;
        let from = st.free.best_fit(blocks, is_small)?;
        Some(st.lend(from, blocks, is_small))
    }

    /// As few extents as possible that add up to `blocks`; nothing is taken when there is not enough.
    pub(crate) fn allocate_pieces(&self, blocks: u32) -> Option<SmallVec<[Extent; 4]>> {
        let mut pieces = SmallVec::new();
        let mut st = self.lock();
        if blocks == 0 || st.free.blocks < self.reserve + u64::from(blocks) {
            return None;
        }
        let mut left = blocks;
        while left > 0 {
            let is_small = left < SMALL_BLOCKS;
            let (from, take) = match st.free.best_fit(left, is_small) {
                Some(from) => (from, left),
                None => {
                    let &(len, start) = st.free.by_len.last()?;
                    (Extent { start, len }, len)
                }
            };
            pieces.push(st.lend(from, take, is_small));
            left -= take;
        }
        Some(pieces)
    }

    /// Gives back what was lent and never named by a journal record. Blocks of it that were not lent stay as they are;
    /// returns how many those were.
    pub(crate) fn release(&self, e: Extent) -> u32 {
        if !self.contains(e) {
            return e.len;
        }
        let mut st = self.lock();
        let mut released = 0;
        for part in st.lent.overlap(e) {
            st.lent.cut(part);
            st.used -= u64::from(part.len);
            self.set_free(&mut st, part);
            released += part.len;
        }
        e.len - released
    }

    /// A new body owns these (disjoint) extents from now on: lent blocks become its own, others must be owned by bodies
    /// of the same chunk, which the caller pins, and are shared with them.
    pub(crate) fn adopt(&self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut st = self.lock();
        for &e in extents {
            if !self.contains(e) {
                return Err(StoreError::Invalid("an extent is outside the data region"));
            }
            if !st.free.by_start.overlap(e).is_empty() {
                return Err(StoreError::Invalid("a chunk names blocks that are free"));
            }
        }
        for &e in extents {
            let mut at = e.start;
            for part in st.lent.overlap(e) {
                if part.start > at {
                    st.share(Extent {
                        start: at,
                        len: part.start - at,
                    });
                }
                st.lent.cut(part);
                at = part.end();
            }
            if at < e.end() {
                st.share(Extent {
                    start: at,
                    len: e.end() - at,
                });
            }
        }
        Ok(())
    }

    /// A body is gone: its blocks that no other body owns go to the quarantine.
    pub(crate) fn disown(&self, extents: impl Iterator<Item = Extent>) {
        let mut st = self.lock();
        // Read under the lock, so that tickets ascend. Every record that took a share of these blocks away was queued
        // before, so the latest ticket covers all of them.
        let ticket = self.last_ticket.load(Ordering::Acquire);
        let mut freed: SmallVec<[Extent; 4]> = SmallVec::new();
        for e in extents {
            st.unshare(e, &mut freed);
        }
        for e in freed {
            self.spill.forget(e);
            st.used -= u64::from(e.len);
            st.quarantined += u64::from(e.len);
            st.quarantine.push_back((ticket, e));
        }
        self.note_quarantined(&st);
    }

    /// Puts blocks among the free ones, but for those that the device refused.
    fn set_free(&self, st: &mut State, e: Extent) {
        self.spill.forget(e);
        let mut at = e.start;
        for bad in self.spill.bad_in(e) {
            if bad.start > at {
                st.free.insert(Extent {
                    start: at,
                    len: bad.start - at,
                });
            }
            at = bad.end();
            st.quarantined += u64::from(bad.len);
            st.bad_blocks += u64::from(bad.len);
            st.bad.push(bad);
        }
        if at < e.end() {
            st.free.insert(Extent {
                start: at,
                len: e.end() - at,
            });
        }
    }

    fn note_quarantined(&self, st: &State) {
        self.quarantined
            .store(st.quarantined - st.bad_blocks, Ordering::Relaxed);
    }

    /// The device was flushed after the record with this ticket was written.
    pub(crate) fn flushed(&self, ticket: u64) {
        let mut st = self.lock();
        while let Some(&(at, e)) = st.quarantine.front() {
            if at > ticket {
                break;
            }
            st.quarantine.pop_front();
            st.quarantined -= u64::from(e.len);
            self.set_free(&mut st, e);
        }
        self.note_quarantined(&st);
    }

    /// What waits for a flush does not become free any more.
    pub(crate) fn keep_quarantine(&self) {
        let mut guard = self.lock();
        let st = &mut *guard;
        for (_, e) in st.quarantine.drain(..) {
            st.bad_blocks += u64::from(e.len);
            st.bad.push(e);
        }
        self.note_quarantined(st);
    }

    /// Blocks that a flush would free.
    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Blocks in each state.
    pub(crate) fn levels(&self) -> Levels {
        let st = self.lock();
        Levels {
            capacity: u64::from(self.region.len),
            used: st.used,
            free: st.free.blocks,
            reserved: st.free.blocks.min(self.reserve),
            quarantined: st.quarantined,
        }
    }

    /// Recounts everything from the maps and compares (for tests).
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn check(&self, owned: &[Extent]) {
        let st = self.lock();
        let mut all: Vec<Extent> = owned.to_vec();
        let ranges = |set: &RangeSet| -> Vec<Extent> {
            set.map
                .iter()
                .map(|(&start, &len)| Extent { start, len })
                .collect()
        };
        let free = ranges(&st.free.by_start);
        assert_eq!(
            free.iter().map(|e| u64::from(e.len)).sum::<u64>(),
            st.free.blocks
        );
        let by_len: BTreeSet<_> = free.iter().map(|e| (e.len, e.start)).collect();
        assert_eq!(by_len, st.free.by_len);
        all.extend(free);
        all.extend(ranges(&st.lent));
        all.extend(st.quarantine.iter().map(|(_, e)| *e));
        all.extend(&st.bad);
        all.sort_unstable();
        let mut at = self.region.start;
        for e in all {
            assert_eq!(e.start, at, "a gap or an overlap before {e:?}");
            at = e.end();
        }
        assert_eq!(at, self.region.end());
        let waiting = st.quarantine.iter().map(|(_, e)| e);
        let q: u64 = waiting.chain(&st.bad).map(|e| u64::from(e.len)).sum();
        assert_eq!(q, st.quarantined);
        assert_eq!(
            st.used + st.free.blocks + st.quarantined,
            u64::from(self.region.len)
        );
        assert!(st.shared.is_empty() || !owned.is_empty());
    }
}

impl State {
    fn lend(&mut self, from: Extent, blocks: u32, is_small: bool) -> Extent {
        let e = self.free.carve(from, blocks, is_small);
        self.lent.insert(e);
        self.used += u64::from(blocks);
        e
    }

    /// Makes `at` a border of the shared ranges.
    fn split_shared(&mut self, at: u32) {
        if let Some((&start, &(len, extra))) = self.shared.range(..at).next_back()
            && start + len > at
        {
            self.shared.insert(start, (at - start, extra));
            self.shared.insert(at, (start + len - at, extra));
        }
    }

    /// One more body owns `e`.
    fn share(&mut self, e: Extent) {
        self.split_shared(e.start);
        self.split_shared(e.end());
        let mut at = e.start;
        let mut gaps: SmallVec<[Extent; 4]> = SmallVec::new();
        for (&start, (len, extra)) in self.shared.range_mut(e.start..e.end()) {
            if start > at {
                gaps.push(Extent {
                    start: at,
                    len: start - at,
                });
            }
            *extra += 1;
            at = start + *len;
        }
        if at < e.end() {
            gaps.push(Extent {
                start: at,
                len: e.end() - at,
            });
        }
        for gap in gaps {
            self.shared.insert(gap.start, (gap.len, 1));
        }
    }

    /// One body fewer owns `e`; what nobody owns any more is added to `freed`.
    fn unshare(&mut self, e: Extent, freed: &mut SmallVec<[Extent; 4]>) {
        if self.shared.is_empty() {
            freed.push(e);
            return;
        }
        self.split_shared(e.start);
        self.split_shared(e.end());
        let mut at = e.start;
        let mut unique: SmallVec<[u32; 4]> = SmallVec::new();
        for (&start, (len, extra)) in self.shared.range_mut(e.start..e.end()) {
            if start > at {
                freed.push(Extent {
                    start: at,
                    len: start - at,
                });
            }
            *extra -= 1;
            if *extra == 0 {
                unique.push(start);
            }
            at = start + *len;
        }
        if at < e.end() {
            freed.push(Extent {
                start: at,
                len: e.end() - at,
            });
        }
        for start in unique {
            self.shared.remove(&start);
        }
    }
}

#[cfg(test)]
mod tests;
