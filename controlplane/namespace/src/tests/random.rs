//! Random operations on a small tree, so that names collide, inodes are gone and directories are moved into each
//! other: whatever was asked, the tree stays a tree, and its log leads to it.

use super::*;
use fastcache_api::{
    ChunkKey, CloudRef, Commit, PersistedChunk, RenameMode, Run, Version, XattrMode,
};
use proptest::prelude::*;

/// An inode by its place among those that were made, modulo their number.
type Pick = usize;

/// An operation before its inodes are known.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Make(Pick, u8, Kind),
    Orphan,
    Unlink(Pick, u8),
    Rmdir(Pick, u8),
    Rename(Pick, u8, Pick, u8, RenameMode),
    Link(Pick, Pick, u8),
    LinkReplace(Pick, Pick, u8),
    Chmod(Pick, u32),
    Xattr(Pick, u8, bool),
    Commit(Pick, Option<u64>, u32, u32, bool),
    Persisted(Pick, u32),
    Discard(Pick),
    Revert(Pick),
    Reap(Pick),
    ReapAllBut(Pick),
    TakeGarbage,
    NewEpoch,
    Again,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let pick = 0..1000usize;
    let name = 0..3u8;
    let kind = prop_oneof![
        5 => Just(Kind::Dir),
        4 => Just(Kind::File),
        1 => Just(Kind::Symlink),
        1 => Just(Kind::Fifo)
    ];
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange)
    ];
    let two = (pick.clone(), name.clone());
    prop_oneof![
        10 => (two.clone(), kind).prop_map(|((p, n), k)| Step::Make(p, n, k)),
        1 => Just(Step::Orphan),
        3 => two.clone().prop_map(|(p, n)| Step::Unlink(p, n)),
        1 => two.clone().prop_map(|(p, n)| Step::Rmdir(p, n)),
        14 => (two.clone(), two.clone(), mode)
            .prop_map(|((p, n), (q, m), mode)| Step::Rename(p, n, q, m, mode)),
        3 => (pick.clone(), two.clone()).prop_map(|(i, (p, n))| Step::Link(i, p, n)),
        2 => (pick.clone(), two.clone()).prop_map(|(i, (p, n))| Step::LinkReplace(i, p, n)),
        1 => (pick.clone(), 0..0o10000u32).prop_map(|(i, m)| Step::Chmod(i, m)),
        2 => (two, any::<bool>()).prop_map(|((i, n), set)| Step::Xattr(i, n, set)),
        5 => (pick.clone(), proptest::option::of(0..5 * u64::from(CHUNK)), 0..4u32, 1..3u32, any::<bool>())
            .prop_map(|(i, cut, first, count, hole)| Step::Commit(i, cut, first, count, hole)),
        3 => (pick.clone(), 0..6u32).prop_map(|(i, index)| Step::Persisted(i, index)),
        1 => pick.clone().prop_map(Step::Discard),
        2 => pick.clone().prop_map(Step::Revert),
        2 => pick.clone().prop_map(Step::Reap),
        1 => pick.prop_map(Step::ReapAllBut),
        1 => Just(Step::TakeGarbage),
        1 => Just(Step::NewEpoch),
        1 => Just(Step::Again),
    ]
}

/// A tree, and what the steps need to know of it.
pub(super) struct Walk {
    pub(super) tree: Tree,
    made: Vec<Ino>,
    versions: u64,
    last: Option<(NsRequest, NsReply)>,
    /// Objects of versions that were named when they were persisted.
    uploaded: BTreeSet<String>,
    /// Objects that were handed out for deletion.
    taken: BTreeSet<String>,
}

impl Walk {
    pub(super) fn new() -> Walk {
        Walk {
            tree: Tree::new(),
            made: vec![Ino::ROOT],
            versions: 100,
            last: None,
            uploaded: BTreeSet::new(),
            taken: BTreeSet::new(),
        }
    }

    /// One of all that were ever made.
    fn ino(&self, pick: Pick) -> Ino {
        self.made[pick % self.made.len()]
    }

    /// Mostly one of those that have a name and are directories, or are not.
    fn named(&self, pick: Pick, is_dir: bool) -> Ino {
        let fits = |ino: &&Ino| {
            let attr = self.tree.kv.get(&keys::attr(**ino)).unwrap();
            let attr = attr.map(|v| postcard::from_bytes::<Attr>(&v).unwrap());
            attr.is_some_and(|a| a.nlink > 0 && (a.kind == Kind::Dir) == is_dir)
        };
        let fitting: Vec<Ino> = self.made.iter().filter(fits).copied().collect();
        if fitting.is_empty() || pick.is_multiple_of(10) {
            return self.ino(pick / 10);
        }
        fitting[(pick / 10) % fitting.len()]
    }

    fn dir(&self, pick: Pick) -> Ino {
        self.named(pick, true)
    }

    fn file(&self, pick: Pick) -> Ino {
        self.named(pick, false)
    }

    fn exists(&self, ino: Ino) -> bool {
        self.tree.kv.get(&keys::attr(ino)).unwrap().is_some()
    }

    fn layout(&self, ino: Ino) -> Layout {
        let layout = self.tree.kv.get(&keys::layout(ino)).unwrap();
        postcard::from_bytes(&layout.unwrap_or_default()).unwrap_or_default()
    }

    /// Everything is persisted in the end: there are no spares then, and of the objects of chunks that were named once,
    /// each is named, or about to be deleted.
    fn persist_all(&mut self) {
        for ino in self.made.clone() {
            for (index, version, _) in self.layout(ino).chunks(CHUNK) {
                self.uploaded.insert(format!("{ino}/{index}-{}", version.0));
                self.tree.done(persisted(ino, index, version));
            }
        }
        assert_eq!(self.tree.table(b'k'), vec![], "a spare is left");
        let mut known: BTreeSet<String> = self.taken.clone();
        for (_, object) in self.tree.table(b'g') {
            known.insert(String::from_utf8(object).unwrap());
        }
        let refs = self.tree.refs();
        let named = refs
            .iter()
            .filter(|r| r.used == fastcache_api::RefUse::Named);
        for one in named {
            assert!(
                !known.contains(&one.at.object),
                "{} is deleted",
                one.at.object
            );
            known.insert(one.at.object.clone());
        }
        for object in &self.uploaded {
            assert!(known.contains(object), "{object} is leaked");
        }
    }

    fn op(&mut self, step: Step) -> NsOp {
        let name = |n: u8| vec![b'a' + n];
        match step {
            Step::Make(p, n, kind) => NsOp::Make {
                at: Some((self.dir(p), name(n))),
                new: new_inode(kind),
            },
            Step::Orphan => NsOp::Make {
                at: None,
                new: new_inode(Kind::File),
            },
            Step::Unlink(p, n) => NsOp::Unlink {
                parent: self.dir(p),
                name: name(n),
            },
            Step::Rmdir(p, n) => NsOp::Rmdir {
                parent: self.dir(p),
                name: name(n),
            },
            Step::Rename(p, n, q, m, mode) => NsOp::Rename {
                parent: self.dir(p),
                name: name(n),
                new_parent: self.dir(q),
                new_name: name(m),
                mode,
            },
            Step::Link(i, p, n) => NsOp::Link {
                ino: self.file(i),
                parent: self.dir(p),
                name: name(n),
            },
            Step::LinkReplace(i, p, n) => NsOp::LinkReplace {
                ino: self.ino(i),
                parent: self.dir(p),
                name: name(n),
            },
            Step::Chmod(i, mode) => chmod(self.ino(i), mode),
            Step::Xattr(i, n, true) => NsOp::SetXattr {
                ino: self.ino(i),
                name: name(n),
                value: vec![n],
                mode: XattrMode::Any,
            },
            Step::Xattr(i, n, false) => NsOp::RemoveXattr {
                ino: self.ino(i),
                name: name(n),
            },
            Step::Commit(i, truncate, first, count, is_hole) => {
                let ino = self.file(i);
                let old = self.tree.kv.get(&keys::attr(ino)).unwrap();
                let old = old.map(|v| postcard::from_bytes::<Attr>(&v).unwrap());
                let base = old.as_ref().map_or(Version::NONE, |a| a.layout_version);
                self.versions += 1;
                let version = Version(self.versions);
                let laid = if is_hole { Version::NONE } else { version };
                let valid = if is_hole { 0 } else { CHUNK };
                let end = u64::from(first + count) * u64::from(CHUNK);
                let size = truncate
                    .unwrap_or_else(|| old.map_or(0, |a| a.size))
                    .max(end);
                NsOp::Commit(Commit {
                    ino,
                    base,
                    version,
                    truncate,
                    runs: vec![Run {
                        first,
                        count,
                        version: laid,
                        valid,
                    }],
                    size,
                    mtime: BEGIN,
                    kill_suid: false,
                    conflict_file: false,
                })
            }
            Step::Persisted(i, index) => {
                let ino = self.file(i);
                let named = self.layout(ino).chunk(index, CHUNK);
                if named.is_some() && self.exists(ino) {
                    let version = named.map_or(0, |(v, _)| v.0);
                    self.uploaded.insert(format!("{ino}/{index}-{version}"));
                }
                persisted(ino, index, named.map_or(Version(1), |(v, _)| v))
            }
            Step::Revert(i) => {
                let ino = self.file(i);
                let layout = self.layout(ino);
                let lost = layout
                    .chunks(CHUNK)
                    .filter(|(index, _, _)| (i + *index as usize).is_multiple_of(2));
                let chunks = lost.map(|(index, version, _)| ChunkKey {
                    ino,
                    index,
                    version,
                });
                NsOp::Revert {
                    chunks: chunks.collect(),
                }
            }
            Step::Discard(i) => {
                let refs = self.tree.refs();
                let one = refs.get(i % refs.len().max(1));
                NsOp::Discard {
                    objects: one
                        .map(|r| (r.key, r.at.object.clone()))
                        .into_iter()
                        .collect(),
                }
            }
            Step::Reap(i) => NsOp::Reap {
                inos: vec![self.ino(i)],
            },
            Step::ReapAllBut(i) => NsOp::ReapAllBut {
                open: vec![self.ino(i)],
            },
            Step::TakeGarbage | Step::NewEpoch | Step::Again => NsOp::TakeGarbage {
                max: 3,
                upto: u64::MAX,
            },
        }
    }

    pub(super) fn walk(&mut self, step: Step) {
        match (&step, self.last.take()) {
            (Step::NewEpoch, _) => return self.tree.begin_epoch(),
            (Step::Again, Some((request, first))) => {
                let again = self.tree.reply(&request);
                if first.result.is_ok() {
                    assert_eq!(again, first);
                }
                return;
            }
            _ => {}
        }
        let op = self.op(step);
        let request = self.tree.request(op);
        let before = counters(&self.tree.kv).unwrap().position;
        let reply = self.tree.reply(&request);
        if let Ok(NsAnswer::Garbage(objects)) = &reply.result {
            self.taken.extend(objects.iter().cloned());
        }
        if let (NsOp::Make { .. }, Ok(NsAnswer::Entry(attr))) = (&request.op, &reply.result) {
            assert!(!self.made.contains(&attr.ino), "an inode number came twice");
            self.made.push(attr.ino);
        }
        if reply.result.is_ok() && reply.log_position == 0 {
            // Nothing changed, and so there is no record.
            assert_eq!(counters(&self.tree.kv).unwrap().position, before);
            assert!(reply.touched.is_empty());
        } else if reply.result.is_ok() {
            assert_eq!(reply.log_position, before + 1);
            for attr in &reply.touched {
                let now = self.tree.kv.get(&keys::attr(attr.ino)).unwrap().unwrap();
                assert_eq!(postcard::from_bytes::<Attr>(&now).unwrap(), *attr);
                assert_eq!(attr.seq, reply.log_position);
            }
        } else {
            assert!(reply.touched.is_empty());
        }
        self.last = Some((request, reply));
    }
}

fn persisted(ino: Ino, index: u32, version: Version) -> NsOp {
    let at = CloudRef {
        object: format!("{ino}/{index}-{}", version.0),
        offset: 0,
        len: CHUNK,
        crc32c: 0,
        etag: None,
    };
    let key = ChunkKey {
        ino,
        index,
        version,
    };
    NsOp::Persisted {
        chunks: vec![PersistedChunk { key, at }],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_stays_a_tree(steps in proptest::collection::vec(step(), 1..150)) {
        let mut walk = Walk::new();
        for (i, step) in steps.into_iter().enumerate() {
            walk.walk(step);
            if i % 25 == 0 {
                walk.tree.check();
            }
        }
        walk.tree.check();
        walk.persist_all();
        walk.tree.check();
    }
}
