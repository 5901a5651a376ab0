//! The header of a chunk on the device: key, length, block map and checksums. Written once, never changed; a new version
//! of a chunk has a new header elsewhere. docs/disk-layout.md draws it.

use crate::body::{BlockRun, BodyFacts, Runs};
use crate::crc::crc_all;
use crate::error::StoreError;
use crate::wire::{Get, Put};
use fastcache_types::{BLOCK, CHUNK_MAX, ChunkKey, Extent, Ino, Version, blocks_of};

/// First bytes of a header: "FCCHUNK1".
const MAGIC: u64 = u64::from_le_bytes(*b"FCCHUNK1");
/// Format of the header. 1: first.
const FORMAT: u16 = 1;
/// Bytes before the runs.
const FIXED: usize = 64;
/// Bytes of a run, here and in journal records.
pub(crate) const RUN_BYTES: usize = 8;
/// Where the checksum is.
const CRC_AT: usize = 56;
const FLAG_DIRTY: u16 = 1;
const FLAG_KEPT: u16 = 2;
/// Most blocks a header can have: 1024 runs and 1024 checksums.
pub(crate) const BLOCKS_MAX: u32 = 4;

/// Blocks that the header of a chunk takes.
#[allow(clippy::cast_possible_truncation, reason = "at most 4 blocks")]
pub(crate) fn blocks(len: u32, runs: usize) -> u32 {
    let bytes = FIXED + runs * RUN_BYTES + blocks_of(len) as usize * 4;
    bytes.div_ceil(BLOCK) as u32
}

/// Writes runs as (first u16, len u16, start u32).
#[allow(
    clippy::cast_possible_truncation,
    reason = "a chunk has at most 1024 blocks"
)]
pub(crate) fn put_runs(out: &mut Vec<u8>, runs: &[BlockRun]) {
    for run in runs {
        out.put_u16(run.first as u16);
        out.put_u16(run.extent.len as u16);
        out.put_u32(run.extent.start);
    }
}

/// Reads `count` runs.
pub(crate) fn get_runs(from: &mut Get<'_>, count: usize) -> Option<Runs> {
    let mut runs = Runs::with_capacity(count.min(from.rest.len() / RUN_BYTES));
    for _ in 0..count {
        let first = u32::from(from.u16()?);
        let len = u32::from(from.u16()?);
        runs.push(BlockRun {
            first,
            extent: Extent {
                start: from.u32()?,
                len,
            },
        });
    }
    Some(runs)
}

/// Fills `out` (`blocks()` blocks) with the header of a chunk. `stamp` rises with every header of the store.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a chunk has at most 1024 runs"
)]
pub(crate) fn encode(out: &mut [u8], store: u64, stamp: u64, facts: &BodyFacts, crcs: &[u32]) {
    let mut h = Vec::with_capacity(out.len());
    h.put_u64(MAGIC);
    h.put_u64(store);
    h.put_u16(FORMAT);
    let dirty = if facts.is_dirty { FLAG_DIRTY } else { 0 };
    let kept = if facts.is_kept { FLAG_KEPT } else { 0 };
    h.put_u16(dirty | kept);
    h.put_u16(facts.runs.len() as u16);
    h.put_u16(0);
    h.put_u64(facts.key.ino.0);
    h.put_u32(facts.key.index);
    h.put_u32(facts.len);
    h.put_u64(facts.key.version.0);
    h.put_u64(stamp);
    h.put_u32(0);
    h.put_u32((FIXED + facts.runs.len() * RUN_BYTES + crcs.len() * 4) as u32);
    debug_assert_eq!(h.len(), FIXED);
    put_runs(&mut h, &facts.runs);
    for &crc in crcs {
        h.put_u32(crc);
    }
    let crc = crc_all(&h).to_le_bytes();
    h[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
    out[..h.len()].copy_from_slice(&h);
    out[h.len()..].fill(0);
}

/// What a header says.
pub(crate) struct Header {
    pub(crate) facts: BodyFacts,
    pub(crate) stamp: u64,
    pub(crate) crcs: Box<[u32]>,
}

/// Reads a header that starts at device block `at`. `bytes` may be longer than it. `None`: there is none, or it is
/// damaged, or of another store.
pub(crate) fn decode(bytes: &[u8], store: u64, at: u32) -> Option<Header> {
    let mut g = Get::new(bytes);
    if g.u64()? != MAGIC || g.u64()? != store || g.u16()? != FORMAT {
        return None;
    }
    let flags = g.u16()?;
    let runs = usize::from(g.u16()?);
    g.u16()?;
    let ino = Ino(g.u64()?);
    let index = g.u32()?;
    let len = g.u32()?;
    let version = Version(g.u64()?);
    let stamp = g.u64()?;
    let crc = g.u32()?;
    let size = g.u32()? as usize;
    if len as usize > CHUNK_MAX
        || size > bytes.len()
        || size != FIXED + runs * RUN_BYTES + blocks_of(len) as usize * 4
    {
        return None;
    }
    let mut copy = bytes[..size].to_vec();
    copy[CRC_AT..CRC_AT + 4].fill(0);
    if crc_all(&copy) != crc {
        return None;
    }
    let runs = get_runs(&mut g, runs)?;
    let crcs = (0..blocks_of(len))
        .map(|_| g.u32())
        .collect::<Option<Box<[u32]>>>()?;
    let key = ChunkKey {
        ino,
        index,
        version,
    };
    let facts = BodyFacts {
        key,
        len,
        is_dirty: flags & FLAG_DIRTY != 0,
        is_kept: flags & FLAG_KEPT != 0,
        header: at,
        runs,
    };
    Some(Header { facts, stamp, crcs })
}

/// The error for a header that is not what the index says.
pub(crate) fn corrupt(key: ChunkKey, at: u32) -> StoreError {
    StoreError::Corrupt {
        what: "a chunk header",
        at: format!("chunk {key}, device block {at}"),
    }
}
