//! Spares: what a chunk was when it was last persisted, kept while what it is now is not; and the way back.

use super::*;
use fastcache_api::{ChunkKey, CloudRef, Commit, PersistedChunk, RefUse, Run, Spare, Version};

const C: u64 = CHUNK as u64;

fn run(first: u32, count: u32, version: u64, valid: u32) -> Run {
    Run {
        first,
        count,
        version: Version(version),
        valid,
    }
}

/// A file, and a commit on what it is now.
struct File {
    t: Tree,
    ino: Ino,
}

impl File {
    /// A file of so many whole chunks of version 1, all persisted.
    fn persisted(chunks: u32) -> File {
        let mut t = Tree::new();
        let ino = t.make(Ino::ROOT, "f", Kind::File);
        let mut f = File { t, ino };
        f.commit(
            1,
            None,
            vec![run(0, chunks, 1, CHUNK)],
            u64::from(chunks) * C,
        );
        f.persist(&(0..chunks).map(|i| (i, 1)).collect::<Vec<_>>());
        f
    }

    fn commit(&mut self, version: u64, truncate: Option<u64>, runs: Vec<Run>, size: u64) -> Attr {
        let base = self.t.stat(self.ino).layout_version;
        let commit = self.a_commit(base, version, truncate, runs, size);
        self.t.attr(NsOp::Commit(commit))
    }

    fn a_commit(
        &self,
        base: Version,
        version: u64,
        truncate: Option<u64>,
        runs: Vec<Run>,
        size: u64,
    ) -> Commit {
        Commit {
            ino: self.ino,
            base,
            version: Version(version),
            truncate,
            runs,
            size,
            mtime: BEGIN,
            kill_suid: false,
            conflict_file: false,
        }
    }

    fn key(&self, index: u32, version: u64) -> ChunkKey {
        ChunkKey {
            ino: self.ino,
            index,
            version: Version(version),
        }
    }

    fn persist(&mut self, chunks: &[(u32, u64)]) {
        let chunks = chunks.iter().map(|(index, version)| PersistedChunk {
            key: self.key(*index, *version),
            at: CloudRef {
                object: format!("{index}-{version}"),
                offset: 0,
                len: CHUNK,
                crc32c: 0,
                etag: None,
            },
        });
        let chunks = chunks.collect();
        self.t.done(NsOp::Persisted { chunks });
    }

    /// Index, version and valid bytes of each spare, in pages of two.
    fn spares(&mut self) -> Vec<(u32, u64, u32)> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            match self.t.ask(NsOp::Spares { after, max: 2 }) {
                Ok(NsAnswer::Spares { spares, is_end }) => {
                    after = spares.last().map(|s: &Spare| s.named.id()).or(after);
                    for spare in spares {
                        let layout = self.t.layout(self.ino);
                        let named = layout.chunk(spare.named.index, CHUNK).unwrap();
                        assert_eq!(named.0, spare.named.version);
                        found.push((spare.named.index, spare.version.0, spare.valid));
                    }
                    if is_end {
                        return found;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn revert(&mut self, chunks: &[(u32, u64)]) -> Vec<u32> {
        let chunks = chunks.iter().map(|(i, v)| self.key(*i, *v)).collect();
        match self.t.ask(NsOp::Revert { chunks }) {
            Ok(NsAnswer::Reverted(files)) => match files.as_slice() {
                [] => Vec::new(),
                [(ino, indexes)] if *ino == self.ino => indexes.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn chunk(&mut self, index: u32) -> Option<(u64, u32)> {
        let layout = self.t.layout(self.ino);
        layout.chunk(index, CHUNK).map(|(v, n)| (v.0, n))
    }
}

#[test]
fn a_lost_chunk_is_what_it_was() {
    let mut f = File::persisted(3);
    let before = f.commit(2, None, vec![run(1, 1, 2, CHUNK)], 3 * C);
    assert_eq!(f.spares(), [(1, 1, CHUNK)]);
    assert!(f.t.garbage().is_empty());
    let used: Vec<RefUse> = f.t.refs().iter().map(|r| r.used).collect();
    assert_eq!(used, [RefUse::Named, RefUse::Spare, RefUse::Named]);
    // What gc asks for is refused.
    let objects = vec![(f.key(1, 1), "1-1".to_owned())];
    assert_eq!(
        f.t.ask(NsOp::Discard { objects }),
        Ok(NsAnswer::Discarded(0))
    );
    f.t.check();

    assert_eq!(f.revert(&[(1, 2)]), [1]);
    assert_eq!(f.chunk(1), Some((1, CHUNK)));
    assert!(f.spares().is_empty() && f.t.garbage().is_empty());
    let after = f.t.stat(f.ino);
    assert!(after.layout_version != before.layout_version && after.ctime > before.ctime);
    assert_eq!((after.size, after.allocated), (3 * C, 3 * C));
    f.t.check();
    // And it is a chunk like any other.
    f.commit(3, None, vec![run(0, 3, 3, CHUNK)], 3 * C);
    assert_eq!(f.spares().len(), 3);
    f.persist(&[(0, 3), (1, 3), (2, 3)]);
    assert!(f.spares().is_empty());
    assert_eq!(f.t.garbage(), ["0-1", "1-1", "2-1"]);
    f.t.check();
}

#[test]
fn what_was_last_persisted_is_the_spare() {
    let mut f = File::persisted(1);
    for version in 2..5 {
        f.commit(version, None, vec![run(0, 1, version, CHUNK)], C);
        assert_eq!(f.spares(), [(0, 1, CHUNK)]);
    }
    // One that was replaced since was uploaded: it is not what the layout names, and not the spare.
    f.persist(&[(0, 3)]);
    assert_eq!(f.spares(), [(0, 1, CHUNK)]);
    f.persist(&[(0, 4)]);
    assert!(f.spares().is_empty());
    assert_eq!(f.t.garbage(), ["0-1"]);
    // A later version may have the smaller number.
    f.commit(2, None, vec![run(0, 1, 2, CHUNK)], C);
    assert_eq!(f.spares(), [(0, 4, CHUNK)]);
    assert_eq!(f.revert(&[(0, 2)]), [0]);
    assert_eq!(f.chunk(0), Some((4, CHUNK)));
    // Uploaded ahead of its commit: nothing needs a spare.
    f.persist(&[(0, 9)]);
    f.commit(9, None, vec![run(0, 1, 9, CHUNK)], C);
    assert!(f.spares().is_empty());
    assert_eq!(f.t.garbage(), ["0-4"]);
    f.t.check();
}

#[test]
fn spares_go_with_their_chunks_and_files() {
    let mut f = File::persisted(4);
    f.commit(2, None, vec![run(0, 4, 2, CHUNK)], 4 * C);
    assert_eq!(f.spares().len(), 4);
    f.commit(3, None, vec![run(1, 1, 0, 0)], 4 * C);
    assert_eq!(f.t.garbage(), ["1-1"]);
    f.commit(4, Some(3 * C), Vec::new(), 3 * C);
    assert_eq!(f.t.garbage(), ["3-1"]);
    assert_eq!(f.spares(), [(0, 1, CHUNK), (2, 1, CHUNK)]);
    f.t.check();
    f.t.ask(NsOp::Unlink {
        parent: Ino::ROOT,
        name: b"f".to_vec(),
    })
    .unwrap();
    f.t.done(NsOp::Reap { inos: vec![f.ino] });
    assert_eq!(f.t.garbage(), ["0-1", "2-1"]);
    assert!(f.t.table(b'k').is_empty());
    f.t.check();
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    // Before the chunk was written again, in the same commit, and after it.
    let mut f = File::persisted(2);
    f.commit(2, Some(C + 100), Vec::new(), C + 100);
    f.commit(3, None, Vec::new(), 2 * C);
    f.commit(4, None, vec![run(1, 1, 4, CHUNK)], 2 * C);
    assert_eq!(f.spares(), [(1, 1, 100)]);
    let mut f = File::persisted(2);
    f.commit(2, Some(C + 100), vec![run(1, 1, 2, CHUNK)], 2 * C);
    assert_eq!(f.spares(), [(1, 1, 100)]);
    let mut f = File::persisted(2);
    f.commit(2, None, vec![run(0, 2, 2, CHUNK)], 2 * C);
    f.commit(3, Some(C + 100), Vec::new(), C + 100);
    f.commit(4, Some(C + 200), Vec::new(), 2 * C);
    assert_eq!(f.spares(), [(0, 1, CHUNK), (1, 1, 100)]);
    assert_eq!(f.revert(&[(0, 2), (1, 2)]), [0, 1]);
    assert_eq!(f.chunk(1), Some((1, 100)));
    // The chunk had no more before it was lost: the file ends where it was said to end.
    assert_eq!(f.t.stat(f.ino).size, 2 * C);
    f.t.check();
}

#[test]
fn a_file_written_anew_has_what_it_was() {
    // open(O_TRUNC), write, close: one commit.
    let mut f = File::persisted(3);
    f.commit(2, Some(0), vec![run(0, 1, 2, 500)], 500);
    assert_eq!(f.spares(), [(0, 1, CHUNK)]);
    assert_eq!(f.t.garbage(), ["1-1", "2-1"]);
    assert_eq!(f.revert(&[(0, 2)]), [0]);
    assert_eq!(f.chunk(0), Some((1, 500)));
    assert_eq!(f.t.stat(f.ino).size, 500);
    f.t.check();
}

#[test]
fn a_file_that_had_grown_ends_where_it_ended() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let mut f = File { t, ino };
    f.commit(1, None, vec![run(0, 2, 1, 100)], C + 100);
    f.persist(&[(0, 1), (1, 1)]);
    f.commit(2, None, vec![run(1, 1, 2, 300)], C + 300);
    assert_eq!(f.revert(&[(1, 2)]), [1]);
    assert_eq!(f.t.stat(f.ino).size, C + 100);
    assert_eq!(f.chunk(1), Some((1, 100)));
    f.t.check();
    // It had been extended behind its bytes: that stays.
    f.commit(3, None, vec![run(1, 1, 3, 300)], C + 1000);
    assert_eq!(f.revert(&[(1, 3)]), [1]);
    assert_eq!(f.t.stat(f.ino).size, C + 1000);
    f.t.check();
}

#[test]
fn only_what_is_named_without_an_object_comes_back() {
    let mut f = File::persisted(3);
    f.commit(2, None, vec![run(1, 3, 2, CHUNK)], 4 * C);
    f.persist(&[(2, 2)]);
    let before = f.t.kv.clone();
    // Persisted and not replaced; another version; persisted meanwhile; never persisted; not there; no such file.
    let missing = ChunkKey {
        ino: Ino(4711),
        ..f.key(1, 2)
    };
    for (index, version) in [(0, 1), (1, 7), (2, 2), (3, 2), (9, 2)] {
        assert!(
            f.revert(&[(index, version)]).is_empty(),
            "{index}@{version}"
        );
    }
    let chunks = vec![missing];
    let nothing = NsAnswer::Reverted(Vec::new());
    assert_eq!(f.t.ask(NsOp::Revert { chunks }), Ok(nothing));
    assert_eq!(f.t.kv, before, "nothing changed, and there is no record");
    assert_eq!(f.revert(&[(1, 2), (1, 2), (3, 2)]), [1]);
    assert_eq!(f.chunk(3), Some((2, CHUNK)));
    f.t.check();
}

#[test]
fn a_writer_that_does_not_know_of_a_revert_loses_nothing() {
    let mut f = File::persisted(3);
    f.commit(2, None, vec![run(0, 2, 2, CHUNK)], 3 * C);
    assert_eq!(f.revert(&[(0, 2)]), [0]);
    assert_eq!(f.revert(&[(1, 2)]), [1]);
    // The commit that was reverted is done, and not once more.
    let again = f.a_commit(Version(1), 2, None, vec![run(0, 2, 2, CHUNK)], 3 * C);
    let attr = f.t.attr(NsOp::Commit(again));
    assert_eq!(f.chunk(0), Some((1, CHUNK)));
    assert_eq!(attr, f.t.stat(f.ino));
    // The next one is based on it.
    let next = f.a_commit(Version(2), 3, None, vec![run(2, 1, 3, CHUNK)], 3 * C);
    f.t.attr(NsOp::Commit(next));
    assert_eq!(f.chunk(0), Some((1, CHUNK)));
    assert_eq!(f.chunk(2), Some((3, CHUNK)));
    // And only that one.
    let late = f.a_commit(Version(2), 4, None, vec![run(2, 1, 4, CHUNK)], 3 * C);
    f.t.refused(NsOp::Commit(late), Errno::ESTALE);
    f.t.check();
}

#[test]
fn a_commit_of_many_chunks_is_as_one_of_few() {
    let count = 3000;
    let mut f = File::persisted(count);
    let size = u64::from(count) * C;
    f.commit(2, None, vec![run(0, count, 2, CHUNK)], size);
    f.commit(3, None, vec![run(0, count, 3, CHUNK)], size);
    assert_eq!(f.t.table(b'k').len(), count as usize);
    let all: Vec<(u32, u64)> = (0..count).map(|i| (i, 3)).collect();
    f.persist(&all[..1500]);
    assert_eq!(f.t.table(b'k').len(), 1500);
    assert_eq!(f.revert(&all).len(), 1500);
    assert_eq!(f.chunk(1499), Some((3, CHUNK)));
    assert_eq!(f.chunk(1500), Some((1, CHUNK)));
    f.commit(4, None, vec![run(0, count, 0, 0)], size);
    assert!(f.t.refs().is_empty());
    f.t.check();
}
