//! Shared memory cut into slots, for data that goes to and comes from the agent process.
//!
//! The agent maps the same memory and is trusted not to touch slots that were not lent to it, but nothing enforces
//! it: what a slot contains must be validated after it was copied or checksummed, never assumed to stand still.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{IoBuf, Owner, PAGE, Region};
use crate::memory::Memory;

/// Shared memory of `slots` equal slots; slot `i` starts at byte `i * slot_bytes` of the descriptor.
#[derive(Clone)]
pub struct Arena {
    region: Arc<Region>,
}

/// One slot taken out of an [`Arena`]. It is free again when every range of `buf` is dropped.
pub struct Slot {
    /// Place in the arena, as the agent counts it.
    pub index: u32,
    /// The slot's bytes.
    pub buf: IoBuf,
    arena: Arena,
}

impl Arena {
    /// Creates the shared memory. `slot_bytes` must be a positive multiple of 4096.
    pub fn new(slots: usize, slot_bytes: usize) -> io::Result<Arena> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(PAGE) {
            return Err(invalid(
                "the slot size of an arena is a positive multiple of 4096",
            ));
        }
        let pieces = u32::try_from(slots)
            .ok()
            .filter(|slots| *slots > 0)
            .ok_or_else(|| invalid("an arena has 1 to 2^32 - 1 slots"))?;
        let bytes = slots
            .checked_mul(slot_bytes)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Memory::shared(bytes)?;
        Ok(Arena {
            region: Arc::new(Region::new(memory, pieces, slot_bytes, slot_bytes)),
        })
    }

    /// The same bookkeeping on the heap, where Miri can follow it.
    #[cfg(test)]
    pub(super) fn on_heap(slots: u32, slot_bytes: usize) -> Arena {
        let memory = Memory::heap(slots as usize * slot_bytes, PAGE);
        Arena {
            region: Arc::new(Region::new(memory, slots, slot_bytes, slot_bytes)),
        }
    }

    /// The memory's descriptor, to be passed over a socket.
    ///
    /// # Panics
    /// Never for an arena made by [`Arena::new`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self.region.memory().fd() {
            Some(fd) => fd,
            None => panic!("this arena is not shared memory"),
        }
    }

    /// A slot, if one is free.
    pub fn try_take(&self) -> Option<Slot> {
        let (index, buf) = self.region.try_take()?;
        Some(Slot {
            index,
            buf,
            arena: self.clone(),
        })
    }

    /// A slot, as soon as one is free.
    pub async fn take(&self) -> Slot {
        let (index, buf) = self.region.take().await;
        Slot {
            index,
            buf,
            arena: self.clone(),
        }
    }

    /// Takes a lent slot back, whole. None if the index is out of range or the slot is not lent (or a range split off
    /// before it was lent is still alive), so an index from the socket can be passed as it came.
    pub fn reclaim(&self, index: u32) -> Option<Slot> {
        let buf = self.region.reclaim(index)?;
        Some(Slot {
            index,
            buf,
            arena: self.clone(),
        })
    }

    /// Number of all slots.
    pub fn slots(&self) -> usize {
        self.region.pieces()
    }

    /// Bytes of each slot.
    pub fn slot_bytes(&self) -> usize {
        self.region.stride()
    }

    /// Number of slots that are neither held nor lent.
    pub fn free(&self) -> usize {
        self.region.free()
    }
}

impl Slot {
    /// Gives the slot to the agent: it is neither free nor held here until [`Arena::reclaim`] takes it back.
    ///
    /// # Panics
    /// If `buf` or `index` was exchanged for that of another slot.
    pub fn lend(self) -> u32 {
        match &self.buf.owner {
            Owner::Piece { region, index }
                if *index == self.index && Arc::ptr_eq(region, &self.arena.region) =>
            {
                region.mark_lent(*index);
                *index
            }
            _ => panic!("lend of slot {} with the buffer of another", self.index),
        }
    }
}
