//! What the tables of the file system may take of RAM, and what goes when they take more.
//!
//! Inodes, open chunks and the index of the store are bounded each; the checksums of the store have what these leave.
//! An inode that the kernel references cannot be dropped: the kernel is asked to give it back (Linux 6.18), and until then
//! only its layout and names go. Chunks beyond the bound of the index are evicted like those beyond the capacity.

use crate::inode::{INODE_BYTES, Inode, InodeState, InodeTable};
use crate::{FileSystem, lock};
use fastcache_api::Ino;
use fastcache_reactor::sync::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// RAM that a chunk takes at most, bytes: 100 in the index, the rest for its part in the map of free space and in the list
/// of victims.
pub const CHUNK_BYTES: u64 = 128;
/// Inodes are dropped from this share of their bound on: 15/16, down to 7/8.
const FULL: (u64, u64) = (15, 16);
const DOWN_TO: (u64, u64) = (7, 8);
/// Stripes of the table that are looked at in one tick: all of them within a second.
const STRIPES_A_TICK: usize = 8;
/// What an inode has on the heap below this is not worth the question that brings it back, bytes.
const WORTH_DROPPING: u64 = 256;
/// Most inodes that the kernel is asked for in one tick.
const PRUNE_MAX: usize = 16_384;
/// Writers wait while more than this share of all chunks that there may be is dirty.
const DIRTY_PERCENT: u64 = 75;
/// Chunks are evicted from this share of their bound on.
const CHUNKS_PERCENT: u64 = 90;

/// Bounds of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLimits {
    /// All of them together, bytes.
    pub tables_bytes: u64,
    /// Chunks in the store, number; [`CHUNK_BYTES`] each.
    pub chunks: u64,
    /// Inodes: attributes, layouts, names of extended attributes, bytes.
    pub inodes_bytes: u64,
    /// Chunks that are being written: where their blocks are, and small writes that gather, bytes.
    pub writes_bytes: u64,
    /// Checksums have at least this, bytes.
    pub checksums_least_bytes: u64,
    /// And at most this, bytes.
    pub checksums_most_bytes: u64,
}

impl Default for MemoryLimits {
    /// No bounds, and the store keeps the checksums that it was opened for.
    fn default() -> Self {
        MemoryLimits {
            tables_bytes: u64::MAX,
            chunks: u64::MAX,
            inodes_bytes: u64::MAX,
            writes_bytes: u64::MAX,
            checksums_least_bytes: 0,
            checksums_most_bytes: u64::MAX,
        }
    }
}

/// What the tables take now, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUse {
    /// The index of the store.
    pub index_bytes: u64,
    /// Inodes.
    pub inodes_bytes: u64,
    /// Open chunks.
    pub writes_bytes: u64,
    /// What the device refused to take, in RAM until the cloud has it.
    pub spilled_bytes: u64,
    /// Checksums.
    pub checksums_bytes: u64,
    /// Inodes that the kernel was asked to give back since the start, number.
    pub pruned_inodes: u64,
}

/// The bounds, and the sum of what is weighed.
#[derive(Default)]
pub(crate) struct Memory {
    limits: OnceLock<MemoryLimits>,
    /// All open chunks.
    pub open_bytes: Arc<AtomicU64>,
    /// Inodes that the kernel was asked to give back.
    pub pruned: AtomicU64,
}

/// What one thing takes, in a sum of all such things. It leaves the sum when it is dropped.
pub(crate) struct Weight {
    sum: Arc<AtomicU64>,
    mine: AtomicU64,
}

impl Weight {
    pub fn new(sum: &Arc<AtomicU64>, bytes: usize) -> Weight {
        sum.fetch_add(bytes as u64, Ordering::Relaxed);
        Weight {
            sum: Arc::clone(sum),
            mine: AtomicU64::new(bytes as u64),
        }
    }

    /// It takes so much now.
    pub fn set(&self, bytes: usize) {
        let before = self.mine.swap(bytes as u64, Ordering::Relaxed);
        // Wraps around when it shrinks, and back again.
        self.sum
            .fetch_add((bytes as u64).wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn part(of: u64, (parts, all): (u64, u64)) -> u64 {
    of / all * parts
}

/// What came of a look at some of the table.
#[derive(Default, Debug, PartialEq, Eq)]
struct Trimmed {
    /// Dropped here.
    freed_bytes: u64,
    /// What goes when the kernel gives these back.
    asked_bytes: u64,
    asked: Vec<Ino>,
}

/// Drops what may go of a stripe, until `want` bytes went or are asked for. Those in use since the last look stay, unless
/// it `is_urgent`.
fn trim_stripe(
    table: &InodeTable,
    at: usize,
    want: u64,
    is_urgent: bool,
    can_prune: bool,
) -> Trimmed {
    let mut done = Trimmed::default();
    let mut heaps = 0;
    table.retain(at, |inode| {
        let enough = done.freed_bytes + done.asked_bytes >= want || done.asked.len() >= PRUNE_MAX;
        // Somebody works with it.
        if enough || Arc::strong_count(inode) > 1 {
            return true;
        }
        let was_used = inode.take_used();
        if was_used && !is_urgent {
            return true;
        }
        let mut state = lock(&inode.state);
        let heap = state.heap_bytes();
        if state.is_idle() {
            done.freed_bytes += INODE_BYTES + heap;
            heaps += heap;
            return false;
        }
        if !is_at_rest(&state) || inode.ino == Ino::ROOT {
            return true;
        }
        if can_prune {
            done.asked.push(inode.ino);
            done.asked_bytes += INODE_BYTES + heap;
        } else if heap >= WORTH_DROPPING {
            state.layout = None;
            state.xattrs = None;
            done.freed_bytes += heap;
            heaps += heap;
        }
        true
    });
    table.lighten(at, heaps);
    done
}

/// Whether it is known here only because the kernel may ask for it.
fn is_at_rest(state: &InodeState) -> bool {
    let lookups = state.lookups;
    let is_known_only = lookups > 0 && state.opens == 0 && !state.is_orphan;
    is_known_only && state.is_unchanged()
}

impl Inode {
    /// Whether it was used since the last call.
    fn take_used(&self) -> bool {
        self.was_used.swap(false, Ordering::Relaxed)
    }
}

impl FileSystem {
    /// Sets the bounds. Once, before serving.
    pub fn set_memory(&self, limits: MemoryLimits) {
        let _ = self.inner.memory.limits.set(limits);
    }

    fn limits(&self) -> MemoryLimits {
        self.inner.memory.limits.get().copied().unwrap_or_default()
    }

    /// What the tables take now.
    pub fn memory(&self) -> MemoryUse {
        let usage = self.inner.store.usage();
        MemoryUse {
            index_bytes: usage.chunks * CHUNK_BYTES,
            inodes_bytes: self.inner.inodes.bytes(),
            writes_bytes: self.inner.memory.open_bytes.load(Ordering::Relaxed),
            spilled_bytes: self.inner.store.health().spilled_bytes,
            checksums_bytes: usage.crc_cache_bytes,
            pruned_inodes: self.inner.memory.pruned.load(Ordering::Relaxed),
        }
    }

    /// Gives the checksums what the other tables leave. `left_bytes` is what the process may still take of the machine;
    /// negative when it has too much. Answers what they may take now, bytes.
    pub fn share_memory(&self, left_bytes: i64) -> u64 {
        let limits = self.limits();
        let now = self.memory();
        let others = now.index_bytes + now.inodes_bytes + now.writes_bytes + now.spilled_bytes;
        let bytes = limits
            .tables_bytes
            .saturating_sub(others)
            .min(now.checksums_bytes.saturating_add_signed(left_bytes))
            .max(limits.checksums_least_bytes)
            .min(limits.checksums_most_bytes);
        self.inner
            .store
            .set_crc_budget(usize::try_from(bytes).unwrap_or(usize::MAX));
        bytes
    }

    /// A tick's part of keeping the table of inodes within its bound. Answers what was dropped or asked for, bytes.
    pub(crate) async fn trim_inodes(&self) -> u64 {
        let bound = self.limits().inodes_bytes;
        let table = &self.inner.inodes;
        let notify = self.inner.notify.get();
        let can_prune = notify.is_some_and(|n| n.can_prune());
        let mut went = 0;
        for _ in 0..STRIPES_A_TICK {
            let at = table.next_stripe();
            let bytes = table.bytes();
            if bytes <= part(bound, FULL) {
                continue;
            }
            let want = (bytes - part(bound, DOWN_TO)).saturating_sub(went);
            let done = trim_stripe(table, at, want, bytes > bound, can_prune);
            went += done.freed_bytes + done.asked_bytes;
            if let (Some(notify), false) = (notify, done.asked.is_empty()) {
                let asked = done.asked.len() as u64;
                self.inner.memory.pruned.fetch_add(asked, Ordering::Relaxed);
                notify.prune(done.asked);
            }
            fastcache_reactor::yield_now().await;
        }
        went
    }

    /// Whether inodes may be kept that the kernel has forgotten: those it was asked for would not go otherwise.
    pub(crate) fn has_room_for_inodes(&self) -> bool {
        self.inner.inodes.bytes() <= part(self.limits().inodes_bytes, DOWN_TO)
    }

    /// How many chunks are too many.
    pub(crate) fn chunks_over(&self) -> u64 {
        let limit = self.limits().chunks;
        let chunks = self.inner.store.usage().chunks;
        chunks.saturating_sub(limit / 100 * CHUNKS_PERCENT)
    }

    /// Whether so many chunks are dirty that the index has no room for others.
    pub(crate) fn has_too_many_dirty(&self, dirty_chunks: u64) -> bool {
        let limit = self.limits().chunks;
        dirty_chunks > limit / 100 * DIRTY_PERCENT
    }

    /// Whether the chunks that are being written take too much.
    pub(crate) fn has_too_much_open(&self) -> bool {
        let open = self.inner.memory.open_bytes.load(Ordering::Relaxed);
        open > self.limits().writes_bytes
    }
}

#[cfg(test)]
mod tests;
