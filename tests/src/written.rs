//! Files that a test writes, and compares byte for byte later.

use crate::bytes::Bytes;
use crate::machine::{close, drop_page_cache};
use crate::node::Node;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a chunk, unless a node is told otherwise.
pub const CHUNK: usize = 4 << 20;

/// Files by name, seed of [`Bytes`] and length.
pub type Files = Vec<(String, u64, usize)>;

/// Writes a file; an error of `close` counts.
///
/// # Errors
/// The first one.
pub fn write_and_close(path: impl AsRef<Path>, bytes: &[u8]) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    file.write_all_at(bytes, 0)?;
    close(file)
}

impl Node {
    /// Writes files of less than a chunk, of one, and of more; each within `bound`.
    ///
    /// # Panics
    /// When that fails, or takes longer.
    #[track_caller]
    pub fn write_files(&self, what: &str, count: u64, bound: Duration) -> Files {
        let lengths = [1000, 70_000, CHUNK, CHUNK + 12_345];
        let files: Files = (0..count)
            .zip(lengths.into_iter().cycle())
            .map(|(n, len)| (format!("{what}-{n}"), n * 7919 + what.len() as u64, len))
            .collect();
        for (name, seed, len) in &files {
            let started = Instant::now();
            write_and_close(self.at(name), &Bytes::of(*seed).range(0, *len))
                .unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.logs()));
            let took = started.elapsed();
            assert!(took < bound, "{name}: written in {took:?}");
        }
        files
    }

    /// Reads all of them, past the page cache, and compares; each within `bound`.
    ///
    /// # Panics
    /// When one cannot be read, differs, or takes longer.
    #[track_caller]
    pub fn expect_files(&self, files: &[(String, u64, usize)], bound: Duration) {
        drop_page_cache();
        for (name, seed, len) in files {
            let started = Instant::now();
            let got = std::fs::read(self.at(name))
                .unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.logs()));
            assert_eq!(got.len(), *len, "{name}");
            let at = Bytes::of(*seed).first_difference(0, &got);
            assert_eq!(at, None, "{name} differs");
            let took = started.elapsed();
            assert!(took < bound, "{name}: read in {took:?}");
        }
    }
}
