//! Memory at an address that the kernel was told and keeps: it can be used by one side at a time, again and again.

use std::io;
use std::sync::Arc;

use super::{BufPool, IoBuf, PAGE, Region};
use crate::memory::Memory;

/// A buffer that always is the same memory. It never goes back to a pool's free list while the place lives; whoever wants
/// its bytes takes all of them, once every range of the last taking is dropped.
pub struct Place {
    region: Arc<Region>,
    index: u32,
    /// Its memory is its own, and can be given back to the system.
    is_lazy: bool,
}

impl Place {
    /// A place of `len` bytes of its own, on small pages that are taken when they are first touched. Not registered with
    /// any ring.
    ///
    /// # Errors
    /// When there is no address space.
    pub fn lazy(len: usize) -> io::Result<Place> {
        let len = len.max(1).next_multiple_of(PAGE);
        let region = Arc::new(Region::new(Memory::lazy(len)?, 1, len, len));
        Place::pin(&region, true).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Takes a free piece out of a region.
    fn pin(region: &Arc<Region>, is_lazy: bool) -> Option<Place> {
        let (index, _buf) = region.try_take()?;
        region.mark_lent(index);
        Some(Place {
            region: Arc::clone(region),
            index,
            is_lazy,
        })
    }

    /// The whole memory, when nobody has a range of it: neither a buffer taken before nor an operation.
    pub fn take(&self) -> Option<IoBuf> {
        let buf = self.region.reclaim(self.index)?;
        self.region.mark_lent(self.index);
        Some(buf)
    }

    /// Gives the memory from byte `from` on back to the system, where it is the place's own and nobody uses it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn discard(&self, from: usize) -> io::Result<()> {
        if !self.is_lazy {
            return Ok(());
        }
        let Some(_whole) = self.take() else {
            return Ok(());
        };
        // SAFETY: the region has this one piece, and all of it was just taken: nobody else reaches its bytes.
        unsafe { self.region.memory().discard(from) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Where an operation still has it, it stays out of use.
        drop(self.region.reclaim(self.index));
    }
}

impl BufPool {
    /// A place in this pool's memory, if a buffer is free: of the size of its buffers, registered as they are.
    pub fn try_pin(&self) -> Option<Place> {
        Place::pin(self.region(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_at_a_time_has_a_place() {
        let place = Place::lazy(3 * PAGE).unwrap();
        let mut buf = place.take().unwrap();
        let start = buf.as_ptr();
        assert!(buf.len() == 3 * PAGE && buf.is_aligned());
        assert!(place.take().is_none());
        let tail = buf.split_off(PAGE);
        drop(buf);
        assert!(place.take().is_none(), "a part of it is still held");
        drop(tail);
        assert_eq!(place.take().unwrap().as_ptr(), start);
    }

    #[test]
    fn pages_given_back_are_zeros_and_the_rest_stays() {
        let place = Place::lazy(4 * PAGE).unwrap();
        let mut buf = place.take().unwrap();
        buf.fill(7);
        place.discard(0).unwrap();
        assert!(buf.iter().all(|b| *b == 7), "not while somebody has it");
        drop(buf);
        place.discard(PAGE + 1).unwrap();
        let buf = place.take().unwrap();
        assert!(buf[..2 * PAGE].iter().all(|b| *b == 7));
        if !cfg!(miri) {
            assert!(buf[2 * PAGE..].iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn a_pinned_buffer_leaves_the_pool_until_its_place_goes() {
        let pool = BufPool::new(2, PAGE).unwrap();
        let place = pool.try_pin().unwrap();
        assert_eq!(pool.free(), 1);
        drop(place.take().unwrap());
        assert_eq!(pool.free(), 1);
        drop(place);
        assert_eq!(pool.free(), 2);
    }
}
