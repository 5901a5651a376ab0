//! Equal pieces of one memory region, handed out and taken back by any thread: what pools and arenas share.
//!
//! A piece is in one of three states, kept in its counter: free (0, and its index is in the free list), held (number
//! of `IoBuf`s of it), lent (the `LENT` bit: another process uses it, it does not go back to the free list).

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};

use event_listener::{Event, IntoNotification};

use super::IoBuf;
use crate::memory::Memory;
use crate::sync::{AtomicU32, Mutex, MutexGuard};

/// Set in a piece's counter while another process uses the piece.
const LENT: u32 = 1 << 31;

/// Most `IoBuf`s of one piece; beyond it the counter could run into the LENT bit.
const MAX_HOLDS: u32 = LENT >> 1;

/// Which ring knows the region as fixed buffers, and how it is cut (one fixed buffer is at most 1 GiB).
pub(crate) struct Registration {
    pub(crate) ring_id: u64,
    pub(crate) pieces_per_buffer: u32,
}

/// Memory cut into pieces of `stride` bytes of which `piece_bytes` are used.
pub(crate) struct Region {
    memory: Memory,
    piece_bytes: usize,
    stride: usize,
    holds: Box<[AtomicU32]>,
    /// Indexes of free pieces; the last one returned goes out first, it is the one still in the CPU's cache.
    free: Mutex<Vec<u32>>,
    returned: Event,
    registration: OnceLock<Registration>,
}

impl Region {
    /// `memory` must have at least `pieces * stride` bytes and `piece_bytes` must be at most `stride`.
    pub(crate) fn new(memory: Memory, pieces: u32, piece_bytes: usize, stride: usize) -> Region {
        Region {
            memory,
            piece_bytes,
            stride,
            holds: (0..pieces).map(|_| AtomicU32::new(0)).collect(),
            free: Mutex::new((0..pieces).rev().collect()),
            returned: Event::new(),
            registration: OnceLock::new(),
        }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn pieces(&self) -> usize {
        self.holds.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.free_list().len()
    }

    fn free_list(&self) -> MutexGuard<'_, Vec<u32>> {
        // Nothing in here panics while the lock is held, so a poisoned lock has a sound list.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free piece.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<(u32, IoBuf)> {
        let index = self.free_list().pop()?;
        let before = self.holds[index as usize].swap(1, Ordering::Acquire);
        assert!(
            before == 0,
            "piece {index} was in the free list with counter {before:#x}"
        );
        // SAFETY: the piece was free, so no IoBuf of it exists, and its hold was counted above.
        Some((index, unsafe { self.whole(index) }))
    }

    /// A free piece, waiting for one to come back. Waiters are served in turn, but a `try_take` may come first.
    pub(crate) async fn take(self: &Arc<Self>) -> (u32, IoBuf) {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            let returned = self.returned.listen();
            if let Some(taken) = self.try_take() {
                return taken;
            }
            returned.await;
        }
    }

    /// # Safety
    /// As for `IoBuf::piece`; `index` must be a piece of this region.
    unsafe fn whole(self: &Arc<Self>, index: u32) -> IoBuf {
        // SAFETY: index < pieces, and the memory has pieces * stride bytes.
        let start: NonNull<u8> = unsafe { self.memory.base().add(index as usize * self.stride) };
        // SAFETY: upheld by the caller; piece_bytes <= stride.
        unsafe { IoBuf::piece(self.clone(), index, start, self.piece_bytes) }
    }

    /// Counts one more `IoBuf` of a held piece.
    pub(super) fn hold(&self, index: u32) {
        let before = self.holds[index as usize].fetch_add(1, Ordering::Relaxed);
        assert!(
            before & !LENT < MAX_HOLDS,
            "piece {index} is split into too many parts"
        );
    }

    /// Counts one `IoBuf` less; the last one frees the piece unless it is lent.
    pub(super) fn release(&self, index: u32) {
        let before = self.holds[index as usize].fetch_sub(1, Ordering::AcqRel);
        if before == 1 {
            self.free_list().push(index);
            // Each returned piece wakes one more waiter, whether or not those woken before have run.
            self.returned.notify(1.additional());
        }
    }

    /// Marks a held piece as used by another process: it will not go to the free list.
    pub(super) fn mark_lent(&self, index: u32) {
        let before = self.holds[index as usize].fetch_or(LENT, Ordering::AcqRel);
        assert!(
            before & LENT == 0 && before > 0,
            "piece {index} lent with counter {before:#x}"
        );
    }

    /// Takes a lent piece back. None if the index is out of range, if the piece is not lent, or while a part of it is
    /// still held here.
    pub(super) fn reclaim(self: &Arc<Self>, index: u32) -> Option<IoBuf> {
        let holds = self.holds.get(index as usize)?;
        holds
            .compare_exchange(LENT, 1, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        // SAFETY: a lent piece without holds has no IoBuf and is not in the free list; the hold is counted by the swap.
        Some(unsafe { self.whole(index) })
    }

    /// Remembers that a ring registered the region. The first registration counts.
    pub(crate) fn set_registration(&self, registration: Registration) {
        let _ = self.registration.set(registration);
    }

    pub(super) fn fixed_index(&self, index: u32, ring_id: u64) -> Option<u16> {
        let registration = self.registration.get()?;
        if registration.ring_id != ring_id {
            return None;
        }
        u16::try_from(index / registration.pieces_per_buffer).ok()
    }
}
