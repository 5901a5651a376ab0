//! Who reads a file in sequence, and how far ahead of them to look. No I/O.

use std::ops::Range;

/// Readers of one file that are told apart.
const STREAMS_MAX: usize = 4;
/// How far from the end of a stream a read still belongs to it, bytes: the kernel has up to this much of its own
/// readahead in flight, and its parts arrive in any order.
const SLACK: u64 = 8 << 20;
/// Speculation begins when this part of a chunk was read in sequence.
const BEGIN_PART: u64 = 8;
/// Bytes ahead for each byte that was read in sequence.
const GROWTH: u64 = 4;
/// Farthest ahead of a reader, bytes: 16 of the largest chunks.
const WINDOW_BYTES: u64 = 64 << 20;
/// The same in chunks, where they are small.
const WINDOW_CHUNKS: u64 = 64;

/// The readers of one file.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// The one that read last is last.
    list: Vec<Stream>,
}

/// Reads that follow each other.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where it began, bytes.
    start: u64,
    /// The farthest byte read.
    end: u64,
    /// Bytes read; less than half of what lies between: not in sequence.
    bytes: u64,
    /// First chunk that was not asked for yet.
    asked: u32,
}

impl Streams {
    /// A read of `len` bytes (not 0) at `offset` of a file of `size` bytes: the chunks to ask for now. They count as asked
    /// for; see [`Streams::not_asked`].
    pub(crate) fn read(&mut self, offset: u64, len: u64, size: u64, chunk_size: u32) -> Range<u32> {
        let chunk = u64::from(chunk_size).max(1);
        if size <= chunk {
            return 0..0;
        }
        let end = offset.saturating_add(len);
        let is_near = |s: &Stream| offset <= s.end + SLACK && end + SLACK >= s.end;
        let found = self.list.iter().rposition(is_near);
        let mut stream = match found {
            Some(at) => {
                let mut stream = self.list.remove(at);
                stream.start = stream.start.min(offset);
                stream.end = stream.end.max(end);
                stream.bytes = stream.bytes.saturating_add(len);
                stream
            }
            None => Stream::new(offset, end),
        };
        // Read again and again in one place, or here and there: it begins anew.
        let span = stream.end - stream.start;
        if stream.bytes < span / 2 || stream.bytes > span.saturating_mul(2) {
            stream = Stream::new(offset, end);
        }
        let wanted = stream.wanted(size, chunk);
        stream.asked = stream.asked.max(wanted.end);
        if self.list.len() >= STREAMS_MAX {
            self.list.remove(0);
        }
        self.list.push(stream);
        wanted
    }

    /// Chunks from this one on were not asked for after all.
    pub(crate) fn not_asked(&mut self, index: u32) {
        if let Some(stream) = self.list.last_mut() {
            stream.asked = stream.asked.min(index);
        }
    }

    /// Forgets them all. Whether there were any.
    pub(crate) fn stop(&mut self) -> bool {
        let had_any = !self.list.is_empty();
        self.list = Vec::new();
        had_any
    }
}

impl Stream {
    fn new(start: u64, end: u64) -> Stream {
        Stream {
            start,
            end,
            bytes: end - start,
            asked: 0,
        }
    }

    fn wanted(&self, size: u64, chunk: u64) -> Range<u32> {
        if self.bytes < chunk / BEGIN_PART {
            return 0..0;
        }
        let most = (WINDOW_BYTES / chunk).clamp(1, WINDOW_CHUNKS);
        let window = (self.bytes.saturating_mul(GROWTH) / chunk).clamp(1, most);
        let next = self.end.saturating_sub(1) / chunk + 1;
        let last = size.div_ceil(chunk).min(next + window);
        let index = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let first = index(next).max(self.asked);
        first..index(last).max(first)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the window grows with sequential reads up to its bound, and random reads ask for nothing. Method: reads by
    //! hand; random ones from a fixed seed.
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const CHUNK: u32 = 4 << 20;
    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sequential_reader_gets_a_growing_window_without_gaps() {
        let mut streams = Streams::default();
        let (mut asked, mut widest) = (0, 0);
        let size = 1 << 30;
        for at in (0..size).step_by(1 << 20) {
            let range = streams.read(at, MIB, size, CHUNK);
            if !range.is_empty() {
                assert!(asked == 0 || range.start == asked, "no gap, nothing twice");
                asked = range.end;
            }
            let here = u32::try_from(at / u64::from(CHUNK)).unwrap();
            widest = widest.max(asked.saturating_sub(here + 1));
            if at == 0 {
                assert_eq!(range, 1..2, "one chunk at first");
            }
        }
        assert_eq!(asked, 256, "up to the end and not beyond");
        assert_eq!(widest, 16);
    }

    #[test]
    fn order_within_the_kernels_readahead_does_not_matter() {
        let mut streams = Streams::default();
        let mut asked = 0;
        for group in 0..16 {
            for piece in [2, 0, 3, 1] {
                let at = (group * 4 + piece) * MIB;
                asked = asked.max(streams.read(at, MIB, 1 << 30, CHUNK).end);
            }
        }
        assert_eq!(asked, 16 + 16);
    }

    #[test]
    fn random_and_tiny_reads_ask_for_nothing() {
        for (size, len) in [(16 * MIB, 4096), (1 << 30, 4096), (1 << 30, 65536)] {
            let mut rng = StdRng::seed_from_u64(7);
            let mut streams = Streams::default();
            for _ in 0..20_000 {
                let at = rng.random_range(0..size / 4096) * 4096;
                let range = streams.read(at, len, size, CHUNK);
                assert!(range.is_empty(), "{range:?} of {size}");
            }
        }
        let mut streams = Streams::default();
        for _ in 0..10_000 {
            assert!(streams.read(4096, 4096, 1 << 30, CHUNK).is_empty());
        }
    }

    #[test]
    fn several_readers_are_told_apart_and_a_jump_begins_anew() {
        let mut streams = Streams::default();
        let mut asked = [0; 3];
        for step in 0..32 {
            for (reader, asked) in asked.iter_mut().enumerate() {
                let at = reader as u64 * 256 * MIB + step * MIB;
                let range = streams.read(at, MIB, 1 << 30, CHUNK);
                *asked = range.end.max(*asked);
            }
        }
        assert_eq!(asked, [8 + 16, 64 + 8 + 16, 128 + 8 + 16]);
        assert_eq!(streams.read(900 * MIB, MIB, 1 << 30, CHUNK), 226..227);
        streams.not_asked(226);
        assert_eq!(streams.read(901 * MIB, MIB, 1 << 30, CHUNK), 226..228);
        assert!(streams.stop());
        assert!(!streams.stop());
    }
}
