//! A core's pool of large buffers on 2 MiB pages, registered with its ring as fixed buffers.

use std::io;
use std::sync::Arc;

use super::{IoBuf, PAGE, Region};
use crate::memory::Memory;

/// Handle of a pool of equal buffers. Buffers may be dropped, and taken, on any thread; only operations on the pool's
/// own core use them as fixed buffers.
#[derive(Clone)]
pub struct BufPool {
    region: Arc<Region>,
}

impl BufPool {
    pub(crate) fn new(buffers: usize, buffer_bytes: usize) -> io::Result<BufPool> {
        let pieces = u32::try_from(buffers)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too many pool buffers"))?;
        let stride = buffer_bytes
            .max(1)
            .checked_next_multiple_of(PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let bytes = stride
            .checked_mul(buffers)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Memory::huge(bytes)?;
        Ok(BufPool {
            region: Arc::new(Region::new(memory, pieces, buffer_bytes, stride)),
        })
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// A whole buffer, if one is free.
    pub fn try_get(&self) -> Option<IoBuf> {
        self.region.try_take().map(|(_, buf)| buf)
    }

    /// A whole buffer, as soon as one is free. A buffer is free when the last range of it is dropped.
    pub async fn get(&self) -> IoBuf {
        self.region.take().await.1
    }

    /// Number of free buffers at this moment.
    pub fn free(&self) -> usize {
        self.region.free()
    }

    /// Number of all buffers.
    pub fn buffers(&self) -> usize {
        self.region.pieces()
    }
}
