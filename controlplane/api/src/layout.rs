//! How a layout changes: truncation, and new runs laid over old ones. Used by the coordinator's state and by the
//! data plane's view of an open file, so that both always agree.

use crate::{Layout, Run, Version};

/// What the device allocates at least, bytes.
const ALLOCATION: u64 = 4096;

impl Layout {
    /// The version and valid bytes of a chunk; `None` for a hole.
    pub fn chunk(&self, index: u32, chunk_size: u32) -> Option<(Version, u32)> {
        let at = self
            .runs
            .partition_point(|r| r.first <= index)
            .checked_sub(1)?;
        let run = &self.runs[at];
        let last = run.first + (run.count - 1);
        if index > last {
            return None;
        }
        Some((
            run.version,
            if index == last { run.valid } else { chunk_size },
        ))
    }

    /// Drops everything from byte `size` on; what a later extension uncovers reads as zeros.
    pub fn truncate(&mut self, size: u64, chunk_size: u32) {
        let Ok(keep) = u32::try_from(size.div_ceil(u64::from(chunk_size))) else {
            return;
        };
        self.cut_sized(keep, u32::MAX, chunk_size);
        let rest = size % u64::from(chunk_size);
        if rest == 0 || keep == 0 {
            return;
        }
        let rest = u32::try_from(rest).unwrap_or(chunk_size);
        let index = keep - 1;
        if let Some((version, valid)) = self.chunk(index, chunk_size)
            && valid > rest
        {
            self.lay(
                &[Run {
                    first: index,
                    count: 1,
                    version,
                    valid: rest,
                }],
                chunk_size,
            );
        }
    }

    /// Lays `runs` over what is there. A run with `Version::NONE` leaves a hole.
    pub fn lay(&mut self, runs: &[Run], chunk_size: u32) {
        for run in runs {
            if run.count == 0 {
                continue;
            }
            self.cut_sized(run.first, run.first + (run.count - 1), chunk_size);
            if run.version == Version::NONE {
                continue;
            }
            let at = self.runs.partition_point(|r| r.first < run.first);
            self.runs.insert(at, *run);
            self.join(at, chunk_size);
        }
    }

    /// Every chunk that is not a hole: index, version, valid bytes.
    pub fn chunks(&self, chunk_size: u32) -> impl Iterator<Item = (u32, Version, u32)> + '_ {
        self.runs.iter().flat_map(move |r| {
            (0..r.count).map(move |i| {
                (
                    r.first + i,
                    r.version,
                    if i + 1 == r.count {
                        r.valid
                    } else {
                        chunk_size
                    },
                )
            })
        })
    }

    /// Bytes that are not holes, each chunk in whole blocks of 4 KiB. A chunk counts up to its valid length: holes
    /// inside it are not told apart here, so the number is the same wherever the chunk is.
    pub fn allocated(&self, chunk_size: u32) -> u64 {
        let of = |r: &Run| {
            let last = u64::from(r.valid).next_multiple_of(ALLOCATION);
            u64::from(r.count - 1) * u64::from(chunk_size) + last
        };
        self.runs.iter().map(of).sum()
    }

    /// Removes the chunks `from..=to`; a run cut before its last chunk ends in a whole chunk.
    fn cut_sized(&mut self, from: u32, to: u32, chunk_size: u32) {
        let mut out = Vec::with_capacity(self.runs.len() + 1);
        for r in &self.runs {
            let last = r.first + (r.count - 1);
            if last < from || r.first > to {
                out.push(*r);
                continue;
            }
            if r.first < from {
                out.push(Run {
                    count: from - r.first,
                    valid: chunk_size,
                    ..*r
                });
            }
            if last > to {
                out.push(Run {
                    first: to + 1,
                    count: last - to,
                    ..*r
                });
            }
        }
        self.runs = out;
    }

    /// Joins the run at `at` with its neighbours where version and wholeness allow.
    fn join(&mut self, at: usize, chunk_size: u32) {
        let can = |a: &Run, b: &Run| {
            a.version == b.version && a.valid == chunk_size && a.first + a.count == b.first
        };
        let mut at = at;
        if at > 0 && can(&self.runs[at - 1], &self.runs[at]) {
            let r = self.runs.remove(at);
            at -= 1;
            self.runs[at].count += r.count;
            self.runs[at].valid = r.valid;
        }
        if at + 1 < self.runs.len() && can(&self.runs[at], &self.runs[at + 1]) {
            let r = self.runs.remove(at + 1);
            self.runs[at].count += r.count;
            self.runs[at].valid = r.valid;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: u32 = 4096;

    fn run(first: u32, count: u32, version: u64, valid: u32) -> Run {
        Run {
            first,
            count,
            version: Version(version),
            valid,
        }
    }

    #[test]
    fn laying_over_splits_and_joins() {
        let mut l = Layout::default();
        l.lay(&[run(0, 10, 1, 100)], C);
        l.lay(&[run(3, 2, 2, C)], C);
        assert_eq!(
            l.runs,
            vec![run(0, 3, 1, C), run(3, 2, 2, C), run(5, 5, 1, 100)]
        );
        l.lay(&[run(5, 1, 2, C)], C);
        assert_eq!(l.runs[1], run(3, 3, 2, C));
        assert_eq!(l.chunk(9, C), Some((Version(1), 100)));
        assert_eq!(l.chunk(10, C), None);
    }

    #[test]
    fn truncation_clamps_the_last_chunk() {
        let mut l = Layout::default();
        l.lay(&[run(0, 4, 1, C)], C);
        l.truncate(u64::from(C) * 2 + 5, C);
        assert_eq!(l.runs, vec![run(0, 3, 1, 5)]);
        l.truncate(u64::from(C) * 2, C);
        assert_eq!(l.chunk(1, C), Some((Version(1), C)));
        l.truncate(0, C);
        assert!(l.runs.is_empty());
    }

    #[test]
    fn a_hole_removes() {
        let mut l = Layout::default();
        l.lay(&[run(0, 3, 1, 7)], C);
        l.lay(&[run(1, 1, 0, 0)], C);
        assert_eq!(l.runs, vec![run(0, 1, 1, C), run(2, 1, 1, 7)]);
        assert_eq!(l.allocated(C), u64::from(C) * 2);
    }
}
