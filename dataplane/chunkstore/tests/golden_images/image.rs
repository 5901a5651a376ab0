//! A device image in a small file. LZ4 (a block, its length in front) of:
//!
//! ```text
//! "FCIMAGE1" | bytes of the device u64 | pieces: (offset u64, length u32, bytes), in order
//! ```
//!
//! Little-endian. What no piece names is zeros, and a hole in the file it is unpacked to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"FCIMAGE1";
/// Zeros are left out in pieces of this size.
const UNIT: usize = 4096;

/// Packs a device.
pub fn pack(device: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend((device.len() as u64).to_le_bytes());
    let is_used = |unit: &[u8]| unit.iter().any(|&b| b != 0);
    let mut at = 0;
    while at < device.len() {
        let units = device[at..].chunks(UNIT);
        let len: usize = units.take_while(|u| is_used(u)).map(<[u8]>::len).sum();
        if len > 0 {
            out.extend((at as u64).to_le_bytes());
            out.extend((len as u32).to_le_bytes());
            out.extend(&device[at..at + len]);
        }
        at += len + UNIT;
    }
    lz4_flex::block::compress_prepend_size(&out)
}

/// Unpacks it into a new file.
pub fn unpack(packed: &[u8], path: &Path) -> io::Result<()> {
    let bytes = lz4_flex::block::decompress_size_prepended(packed).map_err(io::Error::other)?;
    let mut rest = bytes.as_slice();
    let mut take = |n: usize| rest.split_off(..n).ok_or(io::ErrorKind::UnexpectedEof);
    if take(8)? != MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let u64_of = |b: &[u8]| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let file = File::create(path)?;
    file.set_len(u64_of(take(8)?))?;
    while let Ok(offset) = take(8) {
        let offset = u64_of(offset);
        let len = u64_of(take(4)?) as usize;
        file.write_all_at(take(len)?, offset)?;
    }
    Ok(())
}
