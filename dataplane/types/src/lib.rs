//! Ids, ranges and limits of the data plane. No I/O.

pub use fastcache_api::{ChunkId, ChunkKey, Errno, Ino, Version};

/// Bytes of a block: the unit of checksum (CRC32C), of alignment and of allocation.
pub const BLOCK: usize = 4096;
/// The same, for arithmetic on offsets.
pub const BLOCK_U64: u64 = 4096;
/// Largest chunk, bytes.
pub const CHUNK_MAX: usize = 4 << 20;
/// Most blocks in a chunk.
pub const CHUNK_BLOCKS_MAX: usize = CHUNK_MAX / BLOCK;
/// Longest read or write the kernel sends in one FUSE request, bytes (256 pages: fs.fuse.max_pages_limit).
pub const REQUEST_MAX: usize = 1 << 20;

/// Blocks that `bytes` bytes take.
#[must_use]
#[allow(
    clippy::cast_possible_truncation,
    reason = "callers pass chunk-sized counts"
)]
pub const fn blocks_of(bytes: u32) -> u32 {
    bytes.div_ceil(BLOCK as u32)
}

/// A contiguous range of the device, in blocks. Devices up to 16 TiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First block of the device.
    pub start: u32,
    /// How many blocks.
    pub len: u32,
}

impl Extent {
    /// The block after the last.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.start + self.len
    }

    /// Offset on the device, bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.start as u64 * BLOCK_U64
    }

    /// Length, bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.len as u64 * BLOCK_U64
    }
}
