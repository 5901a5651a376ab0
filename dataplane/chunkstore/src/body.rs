//! A sealed chunk in RAM: what it is, where its blocks are, and the promise that they stay there while a handle lives.
//!
//! RAM per chunk of one extent: 72 bytes of [`ChunkBody`] with its `Arc` counts (80 from malloc) and 11 bytes in the index
//! tree after a start, up to 22 where chunks came one after the other since; `tests/warm_restart` measures it. The extents of
//! a chunk that has several cost 12 bytes each.
//! Checksums are not kept here but in a cache with a budget.

use crate::crc_cache::CrcCache;
use crate::error::StoreError;
use crate::header;
use crate::space::Space;
use fastcache_reactor::sync::AtomicBool;
use fastcache_types::{
    BLOCK_U64, CHUNK_BLOCKS_MAX, CHUNK_MAX, ChunkKey, Extent, Ino, Version, blocks_of,
};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Consecutive blocks of a chunk that are consecutive on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRun {
    /// The first of them, counted in the chunk.
    pub first: u32,
    /// Where they are.
    pub extent: Extent,
}

/// Runs of one chunk; almost always one.
pub(crate) type Runs = SmallVec<[BlockRun; 1]>;

/// What a journal record or a checkpoint says about a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BodyFacts {
    pub(crate) key: ChunkKey,
    pub(crate) len: u32,
    pub(crate) is_dirty: bool,
    pub(crate) is_kept: bool,
    /// First block of its header.
    pub(crate) header: u32,
    pub(crate) runs: Runs,
}

impl BodyFacts {
    /// The blocks of the header.
    pub(crate) fn header_extent(&self) -> Extent {
        Extent {
            start: self.header,
            len: header::blocks(self.len, self.runs.len()),
        }
    }

    /// Header and data.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> {
        std::iter::once(self.header_extent()).chain(self.runs.iter().map(|r| r.extent))
    }

    /// Whether the block map is one that a chunk can have: in order, inside the chunk, inside the data region, no
    /// device block twice.
    pub(crate) fn check(&self, space: &Space) -> Result<(), StoreError> {
        check_runs(self.len, &self.runs)?;
        if !self.extents().all(|e| space.contains(e)) {
            return Err(StoreError::Invalid("an extent is outside the data region"));
        }
        let mut all: SmallVec<[Extent; 8]> = self.extents().collect();
        all.sort_unstable();
        if all.windows(2).any(|w| w[0].end() > w[1].start) {
            return Err(StoreError::Invalid("a chunk names a device block twice"));
        }
        Ok(())
    }
}

/// The part of [`BodyFacts::check`] that needs no header.
pub(crate) fn check_runs(len: u32, runs: &[BlockRun]) -> Result<(), StoreError> {
    if len as usize > CHUNK_MAX {
        return Err(StoreError::Invalid("a chunk is longer than CHUNK_MAX"));
    }
    let mut at = 0u64;
    for run in runs {
        if u64::from(run.first) < at || run.extent.len == 0 {
            return Err(StoreError::Invalid("the runs of a chunk are not in order"));
        }
        at = u64::from(run.first) + u64::from(run.extent.len);
    }
    if at > u64::from(blocks_of(len)) || at > CHUNK_BLOCKS_MAX as u64 {
        return Err(StoreError::Invalid("a run goes past the end of its chunk"));
    }
    Ok(())
}

/// What the bodies of one store share: the space they free their blocks to, and the cache of their checksums.
pub(crate) struct Pool {
    pub(crate) space: Space,
    pub(crate) crcs: CrcCache,
}

/// The runs of a sealed chunk, which never change, in as little RAM as can be.
enum FixedRuns {
    One(BlockRun),
    /// None, or several.
    #[allow(
        clippy::redundant_allocation,
        reason = "a thin pointer: 8 bytes less in every chunk that has one run"
    )]
    Other(Box<Box<[BlockRun]>>),
}

impl FixedRuns {
    fn new(runs: &[BlockRun]) -> FixedRuns {
        match runs {
            [one] => FixedRuns::One(*one),
            runs => FixedRuns::Other(Box::new(runs.into())),
        }
    }

    fn as_slice(&self) -> &[BlockRun] {
        match self {
            FixedRuns::One(run) => std::slice::from_ref(run),
            FixedRuns::Other(runs) => runs,
        }
    }
}

/// A sealed version of a chunk on the device. While a handle lives its blocks are not reused, even if the chunk was
/// evicted, replaced or removed meanwhile.
pub struct ChunkBody {
    ino: Ino,
    version: Version,
    index: u32,
    len: u32,
    header: u32,
    runs: FixedRuns,
    pool: Arc<Pool>,
    is_dirty: AtomicBool,
    is_kept: AtomicBool,
}

// RAM per chunk is bounded (see above).
#[cfg(not(feature = "race"))]
const _: () = assert!(size_of::<ChunkBody>() <= 56);

impl ChunkBody {
    /// Takes ownership of the blocks that `facts` names (see [`Space::adopt`]).
    pub(crate) fn adopt(facts: BodyFacts, pool: &Arc<Pool>) -> Result<Arc<ChunkBody>, StoreError> {
        facts.check(&pool.space)?;
        let extents: SmallVec<[Extent; 8]> = facts.extents().collect();
        pool.space.adopt(&extents)?;
        Ok(ChunkBody::recovered(facts, pool))
    }

    /// A body whose blocks the space already counts as owned.
    pub(crate) fn recovered(facts: BodyFacts, pool: &Arc<Pool>) -> Arc<ChunkBody> {
        let bytes = crate::record::put_bytes(facts.runs.len());
        pool.space.index_bytes.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(ChunkBody {
            ino: facts.key.ino,
            version: facts.key.version,
            index: facts.key.index,
            len: facts.len,
            header: facts.header,
            runs: FixedRuns::new(&facts.runs),
            pool: pool.clone(),
            is_dirty: AtomicBool::new(facts.is_dirty),
            is_kept: AtomicBool::new(facts.is_kept),
        })
    }

    /// Which chunk and version.
    #[must_use]
    pub fn key(&self) -> ChunkKey {
        ChunkKey {
            ino: self.ino,
            index: self.index,
            version: self.version,
        }
    }

    /// Its valid bytes.
    #[must_use]
    #[allow(
        clippy::len_without_is_empty,
        reason = "a length in bytes, not a collection"
    )]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Not yet in the cloud.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.is_dirty.load(Ordering::Acquire)
    }

    /// Kept for another node, as the last start or seal said: nobody has said since that it need not be.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Acquire)
    }

    pub(crate) fn set_clean(&self) {
        self.is_dirty.store(false, Ordering::Release);
        self.is_kept.store(false, Ordering::Release);
    }

    /// What it takes of the capacity: header and data blocks, bytes. Blocks it shares with an older body are counted.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        let data: u64 = self.runs().iter().map(|r| u64::from(r.extent.len)).sum();
        (data + u64::from(self.header_extent().len)) * BLOCK_U64
    }

    /// Where its blocks are, in order; blocks that no run names are holes and read as zeros.
    #[must_use]
    pub fn runs(&self) -> &[BlockRun] {
        self.runs.as_slice()
    }

    pub(crate) fn header_extent(&self) -> Extent {
        Extent {
            start: self.header,
            len: header::blocks(self.len, self.runs().len()),
        }
    }

    pub(crate) fn facts(&self) -> BodyFacts {
        BodyFacts {
            key: self.key(),
            len: self.len,
            is_dirty: self.is_dirty(),
            is_kept: self.is_kept(),
            header: self.header,
            runs: Runs::from_slice(self.runs()),
        }
    }

    /// Header and data.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> {
        std::iter::once(self.header_extent()).chain(self.runs().iter().map(|r| r.extent))
    }
}

impl Drop for ChunkBody {
    fn drop(&mut self) {
        let bytes = crate::record::put_bytes(self.runs().len());
        self.pool
            .space
            .index_bytes
            .fetch_sub(bytes, Ordering::Relaxed);
        self.pool.crcs.remove(self.header, self.key());
        self.pool.space.disown(self.extents());
    }
}

impl std::fmt::Debug for ChunkBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkBody")
            .field("key", &self.key())
            .field("len", &self.len)
            .field("is_dirty", &self.is_dirty())
            .field("is_kept", &self.is_kept())
            .field("header", &self.header)
            .field("runs", &self.runs())
            .finish_non_exhaustive()
    }
}

/// The checksums of a chunk's blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct ChunkMeta {
    /// CRC32C of each block up to the chunk's length; 0 for holes.
    pub crcs: Box<[u32]>,
}

/// A chunk as lists name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkInfo {
    /// The chunk.
    pub key: ChunkKey,
    /// Its length, bytes.
    pub len: u32,
    /// What it takes of the capacity, bytes.
    pub device_bytes: u64,
    /// Not yet in the cloud.
    pub is_dirty: bool,
}

impl ChunkInfo {
    /// Of a body.
    #[must_use]
    pub fn of(body: &ChunkBody) -> ChunkInfo {
        ChunkInfo {
            key: body.key(),
            len: body.len(),
            device_bytes: body.device_bytes(),
            is_dirty: body.is_dirty(),
        }
    }
}
