//! Bytes that depend on a seed and their offset: any range can be made again, and no range equals another's.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

/// An endless sequence of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    seed: u64,
}

impl Bytes {
    /// The sequence of this seed.
    pub fn of(seed: u64) -> Bytes {
        Bytes { seed }
    }

    /// Fills `buf` with the bytes from `offset` on.
    pub fn fill(self, offset: u64, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let position = offset + at as u64;
            let word = self.word(position / 8).to_le_bytes();
            let skip = usize::try_from(position % 8).unwrap_or(0);
            let take = (8 - skip).min(buf.len() - at);
            buf[at..at + take].copy_from_slice(&word[skip..skip + take]);
            at += take;
        }
    }

    /// The bytes `offset..offset + len`.
    pub fn range(self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.fill(offset, &mut buf);
        buf
    }

    /// Where `got`, read from `offset`, first differs.
    pub fn first_difference(self, offset: u64, got: &[u8]) -> Option<u64> {
        let want = self.range(offset, got.len());
        let at = want.iter().zip(got).position(|(a, b)| a != b)?;
        Some(offset + at as u64)
    }

    /// splitmix64 of the word's number.
    fn word(self, number: u64) -> u64 {
        let mut z = self
            .seed
            .wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Panics
/// When it cannot be read.
pub fn sha256_file(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let n = file
            .read(&mut buf)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if n == 0 {
            break;
        }
        hash.update(&buf[..n]);
    }
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree() {
        let b = Bytes::of(7);
        let all = b.range(0, 100);
        assert_eq!(&all[13..77], &b.range(13, 64)[..]);
        assert_eq!(b.first_difference(13, &all[13..]), None);
        let mut wrong = all.clone();
        wrong[50] ^= 1;
        assert_eq!(b.first_difference(0, &wrong), Some(50));
    }
}
