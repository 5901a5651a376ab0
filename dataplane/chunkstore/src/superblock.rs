//! The superblock: what the device is, and where everything on it is. Two copies, so that one bad block loses nothing.
//! docs/disk-layout.md draws it.

use crate::crc::crc_all;
use crate::error::StoreError;
use crate::signature;
use crate::wire::{Get, Put};
use fastcache_types::{BLOCK, BLOCK_U64, Extent};

/// First bytes: "FASTCACH".
const MAGIC: u64 = u64::from_le_bytes(*b"FASTCACH");
/// First bytes, before zeros, of a device on which formatting has begun and not ended. They are in one sector: they are there
/// or not, and a store that has been open never begins with them.
const UNFINISHED: &[u8; 8] = b"FASTMADE";
/// Version of the disk format. 1: first. 2: groups of the journal say up to where it has been flushed.
pub(crate) const FORMAT: u32 = 2;
/// The oldest that is read; opening a store makes it one of [`FORMAT`].
const FORMAT_MIN: u32 = 1;
/// Blocks of the two copies.
pub(crate) const COPIES: [u32; 2] = [0, 16];
/// Blocks at the start of the device that hold the copies and zeros. Read as a whole at open.
pub(crate) const HEAD_BLOCKS: u32 = 32;
/// No store was opened so often: stamps and sequences that are made of a generation stay far from overflow.
const GENERATION_MAX: u32 = 1 << 29;
/// Where the checksum is in its block.
const CRC_AT: usize = BLOCK - 4;

/// The smallest store, bytes.
pub(crate) const MIN_BYTES: u64 = 16 << 20;
/// The largest store, bytes: what 32-bit block numbers can name.
pub(crate) const MAX_BYTES: u64 = (u32::MAX as u64) * BLOCK_U64;
/// The journal is 1/256 of the device, between these bounds (4 and 64 MiB), but never more than 1/16.
const JOURNAL_MIN: u32 = 1024;
const JOURNAL_MAX: u32 = 16_384;
/// Bytes of a checkpoint area per block of data: a chunk of one block of data (and one of header) has a record of 40.
const CHECKPOINT_BYTES_PER_BLOCK: u64 = 20;
/// Blocks of a checkpoint area beyond that: its header, and SEAL records (1/16 of the area, at least 64 KiB).
const CHECKPOINT_SLACK: u32 = 17;

/// Where everything is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub(crate) total_blocks: u32,
    pub(crate) journal: Extent,
    pub(crate) checkpoints: [Extent; 2],
    pub(crate) data: Extent,
}

impl Geometry {
    /// For a new store on a device of `bytes`.
    #[allow(clippy::cast_possible_truncation, reason = "bounded by MAX_BYTES")]
    pub(crate) fn new(bytes: u64) -> Result<Geometry, StoreError> {
        if bytes < MIN_BYTES {
            return Err(StoreError::TooSmall {
                have: bytes,
                need: MIN_BYTES,
            });
        }
        if bytes > MAX_BYTES {
            return Err(StoreError::TooLarge {
                have: bytes,
                most: MAX_BYTES,
            });
        }
        let total = (bytes / BLOCK_U64) as u32;
        let journal = (total / 256)
            .clamp(JOURNAL_MIN, JOURNAL_MAX)
            .min(total / 16);
        let area = (u64::from(total) * CHECKPOINT_BYTES_PER_BLOCK).div_ceil(BLOCK_U64) as u32;
        let area = area + area / 16 + CHECKPOINT_SLACK;
        let journal = Extent {
            start: HEAD_BLOCKS,
            len: journal,
        };
        let first = Extent {
            start: journal.end(),
            len: area,
        };
        let second = Extent {
            start: first.end(),
            len: area,
        };
        let data = Extent {
            start: second.end(),
            len: total - second.end(),
        };
        Ok(Geometry {
            total_blocks: total,
            journal,
            checkpoints: [first, second],
            data,
        })
    }

    /// Whether the parts follow each other as they must.
    fn is_sound(&self) -> bool {
        let parts = [
            self.journal,
            self.checkpoints[0],
            self.checkpoints[1],
            self.data,
        ];
        let mut at = u64::from(HEAD_BLOCKS);
        for part in parts {
            if u64::from(part.start) != at || part.len == 0 {
                return false;
            }
            at += u64::from(part.len);
        }
        at <= u64::from(self.total_blocks) && self.journal.len >= 64
    }
}

/// The superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) uuid: [u8; 16],
    /// Rises at every open; durable before the journal of that session begins.
    pub(crate) generation: u32,
    /// Seconds since 1970.
    pub(crate) formatted_at: u64,
    pub(crate) geometry: Geometry,
}

impl Superblock {
    /// What everything else on the device carries, so that nothing of an earlier store is ever taken for its own.
    pub(crate) fn store_id(&self) -> u64 {
        let (a, b) = self.uuid.split_at(8);
        let word = |b: &[u8]| b.iter().rev().fold(0u64, |n, &x| (n << 8) | u64::from(x));
        word(a) ^ word(b).rotate_left(1)
    }

    /// One block.
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let g = &self.geometry;
        let mut b = Vec::with_capacity(BLOCK);
        b.put_u64(MAGIC);
        b.put_u32(FORMAT);
        b.put_u32(4096);
        b.extend_from_slice(&self.uuid);
        b.put_u32(self.generation);
        b.put_u32(g.total_blocks);
        b.put_u64(self.formatted_at);
        for e in [g.journal, g.checkpoints[0], g.checkpoints[1], g.data] {
            b.put_u32(e.start);
            b.put_u32(e.len);
        }
        b.resize(CRC_AT, 0);
        b.put_u32(crc_all(&b));
        out.copy_from_slice(&b);
    }
}

/// What one copy is.
#[derive(Debug, PartialEq, Eq)]
enum Copy {
    Good(Box<Superblock>),
    /// Of another version of fastcache.
    Other(u32),
    Damaged,
    /// Not a superblock of ours.
    None,
}

fn decode(block: &[u8]) -> Copy {
    let mut g = Get::new(block);
    if g.u64() != Some(MAGIC) {
        return Copy::None;
    }
    let crc = block.get(CRC_AT..CRC_AT + 4);
    if crc != Some(crc_all(&block[..CRC_AT]).to_le_bytes().as_slice()) {
        return Copy::Damaged;
    }
    match fields(&mut g) {
        Some(Ok(s)) if s.geometry.is_sound() => Copy::Good(Box::new(s)),
        Some(Err(format)) => Copy::Other(format),
        _ => Copy::Damaged,
    }
}

/// The fields after the magic, or the format when it is not ours.
fn fields(g: &mut Get<'_>) -> Option<Result<Superblock, u32>> {
    let format = g.u32()?;
    if !(FORMAT_MIN..=FORMAT).contains(&format) {
        return Some(Err(format));
    }
    if g.u32()? != 4096 {
        return None;
    }
    let uuid = g.bytes(16)?.try_into().ok()?;
    let generation = g.u32().filter(|&n| n < GENERATION_MAX)?;
    let total_blocks = g.u32()?;
    let formatted_at = g.u64()?;
    let mut extent = || {
        Some(Extent {
            start: g.u32()?,
            len: g.u32()?,
        })
    };
    let journal = extent()?;
    let checkpoints = [extent()?, extent()?];
    let geometry = Geometry {
        total_blocks,
        journal,
        checkpoints,
        data: extent()?,
    };
    Some(Ok(Superblock {
        uuid,
        generation,
        formatted_at,
        geometry,
    }))
}

/// Writes, over the first copy, that the device is being formatted.
pub(crate) fn encode_unfinished(block: &mut [u8]) {
    block.fill(0);
    block[..UNFINISHED.len()].copy_from_slice(UNFINISHED);
}

/// What a device is, from its first [`HEAD_BLOCKS`].
#[derive(Debug)]
pub(crate) enum Found {
    /// Zeros.
    Blank,
    /// Somebody asked to format it, and it was not done to the end: nothing on it counts.
    Unfinished,
    /// A store.
    Store {
        superblock: Superblock,
        /// One copy was bad; it is rewritten at open anyway.
        is_repaired: bool,
        /// Which of [`COPIES`] is to be written first: the damaged or older one, so that the other stays whole meanwhile.
        first: usize,
    },
    /// Something that only `--format --force` may erase (or `--format`, for `Version`).
    Refused(StoreError),
}

/// Looks at the first blocks of a device.
pub(crate) fn examine(head: &[u8]) -> Found {
    let [a, b] = COPIES.map(|at| {
        let at = at as usize * BLOCK;
        head.get(at..at + BLOCK).map_or(Copy::None, decode)
    });
    // Even where a superblock is whole: between and behind its fields there is nothing but zeros, so somebody else has
    // begun to use the device.
    if let Some(signature) = signature::known(head) {
        return Found::Refused(StoreError::Foreign { signature });
    }
    if head.starts_with(UNFINISHED) {
        return Found::Unfinished;
    }
    match (a, b) {
        // Also in one copy alone: a later version has begun to change the device.
        (Copy::Other(found), _) | (_, Copy::Other(found)) => Found::Refused(StoreError::Version {
            found,
            supported: FORMAT,
        }),
        (Copy::Good(a), Copy::Good(b)) if a.uuid != b.uuid => {
            Found::Refused(StoreError::TwoStores {
                first: a.uuid,
                second: b.uuid,
            })
        }
        (Copy::Good(a), Copy::Good(b)) => {
            let is_second_older = a.generation > b.generation;
            let superblock = if a.generation >= b.generation { *a } else { *b };
            Found::Store {
                superblock,
                is_repaired: false,
                first: usize::from(is_second_older),
            }
        }
        (Copy::Good(s), _) => Found::Store {
            superblock: *s,
            is_repaired: true,
            first: 1,
        },
        (_, Copy::Good(s)) => Found::Store {
            superblock: *s,
            is_repaired: true,
            first: 0,
        },
        (Copy::Damaged, _) | (_, Copy::Damaged) => Found::Refused(StoreError::Damaged),
        (Copy::None, Copy::None) => match head.iter().any(|&b| b != 0) {
            true => Found::Refused(StoreError::Foreign {
                signature: "data of an unknown kind",
            }),
            false => Found::Blank,
        },
    }
}

#[cfg(test)]
mod tests;
