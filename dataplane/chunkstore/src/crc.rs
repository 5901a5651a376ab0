//! CRC32C, the checksum of every block, header, record and superblock.

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use fastcache_types::{BLOCK, BLOCK_U64};

/// CRC32C of one block (or of any bytes).
#[must_use]
pub fn crc_block(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC32C of each 4 KiB block of `bytes`; the last may be shorter.
#[must_use]
pub fn crc_blocks(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK).map(crc_block).collect()
}

/// CRC32C of all of `bytes`.
#[must_use]
pub fn crc_all(bytes: &[u8]) -> u32 {
    crc_block(bytes)
}

/// CRC32C of `a` followed by `b`, from theirs and the length of `b` in bytes.
#[must_use]
pub fn crc_combine(a: u32, b: u32, b_len: u64) -> u32 {
    let crc = crc_fast::checksum_combine(Crc32Iscsi, u64::from(a), u64::from(b), b_len);
    #[allow(clippy::cast_possible_truncation, reason = "a CRC32 fits")]
    let crc = crc as u32;
    crc
}

/// CRC32C of consecutive whole blocks, from theirs.
#[must_use]
pub fn crc_of_blocks(crcs: &[u32]) -> u32 {
    crcs.iter()
        .copied()
        .reduce(|a, b| crc_combine(a, b, BLOCK_U64))
        .unwrap_or(0)
}
