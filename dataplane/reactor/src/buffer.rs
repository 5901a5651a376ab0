//! Buffers for I/O. An [`IoBuf`] is an exclusive range of some backing memory: it can be split and joined again, sent
//! to another core, and given to an operation. The backing lives until its last range is dropped.
//!
//! Invariant: the ranges of all living `IoBuf`s of one backing are disjoint. It holds because a range is only ever
//! made by handing out a free piece of a region, by allocating, or by splitting another range in two.

mod arena;
mod place;
mod pool;
#[cfg(all(test, feature = "race"))]
mod race;
mod region;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

pub use arena::{Arena, Slot};
pub use place::Place;
pub use pool::BufPool;
pub(crate) use region::{Region, Registration};

use crate::memory::Memory;

/// Alignment of every backing in bytes: what O_DIRECT asks for at most.
pub const PAGE: usize = 4096;

/// An exclusive range of bytes. Its memory keeps what earlier users left in it, except after [`IoBuf::alloc`].
pub struct IoBuf {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

enum Owner {
    Heap(Arc<Memory>),
    /// A piece of a region; counted in the region's holds.
    Piece {
        region: Arc<Region>,
        index: u32,
    },
}

// SAFETY: an IoBuf is the only one to reach its range (module invariant), and its owners are Send and Sync.
unsafe impl Send for IoBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for IoBuf {}

impl IoBuf {
    /// `len` zeroed bytes on the heap, starting on a multiple of 4096.
    pub fn alloc(len: usize) -> IoBuf {
        let memory = Memory::heap(len, PAGE);
        IoBuf {
            start: memory.base(),
            len,
            owner: Owner::Heap(Arc::new(memory)),
        }
    }

    /// A whole piece of a region.
    ///
    /// # Safety
    /// The caller must have counted one hold for the piece, no other `IoBuf` of it may exist, and `start..start + len`
    /// must be inside the piece.
    unsafe fn piece(region: Arc<Region>, index: u32, start: NonNull<u8>, len: usize) -> IoBuf {
        IoBuf {
            start,
            len,
            owner: Owner::Piece { region, index },
        }
    }

    /// Bytes of this range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the range starts on a multiple of 4096.
    pub fn is_aligned(&self) -> bool {
        self.start.as_ptr().addr().is_multiple_of(PAGE)
    }

    /// Takes the first `at` bytes out; self keeps the rest.
    ///
    /// # Panics
    /// If `at > len`.
    pub fn split_to(&mut self, at: usize) -> IoBuf {
        assert!(
            at <= self.len,
            "split_to({at}) of a buffer of {} bytes",
            self.len
        );
        let head = IoBuf {
            start: self.start,
            len: at,
            owner: self.owner.share(),
        };
        // SAFETY: at <= len, so the result stays inside (or one past) the same allocation.
        self.start = unsafe { self.start.add(at) };
        self.len -= at;
        head
    }

    /// Takes everything from `at` on out; self keeps the first `at` bytes.
    ///
    /// # Panics
    /// If `at > len`.
    pub fn split_off(&mut self, at: usize) -> IoBuf {
        assert!(
            at <= self.len,
            "split_off({at}) of a buffer of {} bytes",
            self.len
        );
        // SAFETY: at <= len, so the result stays inside (or one past) the same allocation.
        let start = unsafe { self.start.add(at) };
        let tail = IoBuf {
            start,
            len: self.len - at,
            owner: self.owner.share(),
        };
        self.len = at;
        tail
    }

    /// Joins `other` behind self. Possible when both are adjacent ranges of the same backing, self first; otherwise
    /// `other` comes back.
    pub fn unsplit(&mut self, other: IoBuf) -> Result<(), IoBuf> {
        // SAFETY: start + len is inside or one past the allocation.
        let end = unsafe { self.start.add(self.len) };
        if end != other.start || !self.owner.is_same(&other.owner) {
            return Err(other);
        }
        self.len += other.len;
        Ok(())
    }

    /// First byte, for the kernel. Valid for `len` bytes as long as the buffer is not dropped.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Index of the fixed buffer that covers the range on the ring `ring_id`.
    pub(crate) fn fixed_index(&self, ring_id: u64) -> Option<u16> {
        match &self.owner {
            Owner::Piece { region, index } => region.fixed_index(*index, ring_id),
            Owner::Heap(_) => None,
        }
    }
}

impl Owner {
    /// Another owner of the same backing, for the other half of a split.
    fn share(&self) -> Owner {
        match self {
            Owner::Heap(memory) => Owner::Heap(memory.clone()),
            Owner::Piece { region, index } => {
                region.hold(*index);
                Owner::Piece {
                    region: region.clone(),
                    index: *index,
                }
            }
        }
    }

    fn is_same(&self, other: &Owner) -> bool {
        match (self, other) {
            (Owner::Heap(a), Owner::Heap(b)) => Arc::ptr_eq(a, b),
            (
                Owner::Piece {
                    region: a,
                    index: i,
                },
                Owner::Piece {
                    region: b,
                    index: j,
                },
            ) => i == j && Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Owner::Piece { region, index } = self {
            region.release(*index);
        }
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is initialised (zeroed at the start), inside the backing, and only reachable through self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for IoBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("IoBuf");
        out.field("start", &self.start).field("len", &self.len);
        if let Owner::Piece { index, .. } = &self.owner {
            out.field("piece", index);
        }
        out.finish()
    }
}
