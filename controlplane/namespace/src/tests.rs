//! The rules of the tree: each operation by a table of cases, and invariants of the whole tree under random operations.
//! After every test the log is replayed on an empty state, which has to end up the same, byte for byte.

mod audit;
mod contents;
mod names;
mod random;
mod restore;
mod spares;

use crate::{
    Kv, MemoryKv, Origin, Outcome, Record, answer, begin_epoch, change, counters, keys, replay,
};
use fastcache_api::{
    Attr, Cred, Errno, Ino, Kind, Layout, NewInode, NsAnswer, NsOp, NsReply, NsRequest, OpId,
    SetAttr, Time,
};
use std::collections::{BTreeMap, BTreeSet};

/// When everything here began.
const BEGIN: Time = Time {
    sec: 1_000,
    nsec: 1,
};
/// Bytes of a chunk of the files made here.
const CHUNK: u32 = 4096;

/// A namespace in memory with its log.
struct Tree {
    kv: MemoryKv,
    log: Vec<Record>,
    /// The changes among them, with what came with them.
    origins: Vec<(Record, Origin)>,
    /// Epochs that began.
    epochs: u64,
    seq: u64,
}

impl Tree {
    fn new() -> Tree {
        let mut tree = Tree {
            kv: MemoryKv::default(),
            log: Vec::new(),
            origins: Vec::new(),
            epochs: 0,
            seq: 0,
        };
        tree.begin_epoch();
        tree
    }

    fn begin_epoch(&mut self) {
        self.epochs += 1;
        let (record, changes) = begin_epoch(&self.kv, self.epochs, 77, BEGIN).unwrap();
        self.kv.apply(changes);
        self.log.push(record);
    }

    fn reply(&mut self, request: &NsRequest) -> NsReply {
        if !request.op.is_change() {
            return answer(&self.kv, &request.op).unwrap();
        }
        match change(&self.kv, request).unwrap() {
            Outcome::Applied(record, changes, reply, origin) => {
                self.kv.apply(changes);
                let bytes = record.encode().unwrap();
                assert_eq!(Record::decode(&bytes).unwrap(), *record);
                self.origins.push((*record.clone(), origin));
                self.log.push(*record);
                reply
            }
            Outcome::Answered(reply) => reply,
        }
    }

    fn request(&mut self, op: NsOp) -> NsRequest {
        self.seq += 1;
        let id = op.is_change().then_some(OpId {
            client: 1,
            seq: self.seq,
        });
        let now = Time {
            sec: BEGIN.sec + self.seq.cast_signed(),
            nsec: 0,
        };
        NsRequest { id, now, op }
    }

    fn ask(&mut self, op: NsOp) -> Result<NsAnswer, Errno> {
        let request = self.request(op);
        self.reply(&request).result
    }

    /// An operation that has to work and answers with an inode's attributes.
    fn attr(&mut self, op: NsOp) -> Attr {
        match self.ask(op.clone()) {
            Ok(NsAnswer::Entry(attr) | NsAnswer::Attr(attr)) => attr,
            other => panic!("{op:?}: {other:?}"),
        }
    }

    fn done(&mut self, op: NsOp) {
        assert_eq!(self.ask(op.clone()), Ok(NsAnswer::Done), "{op:?}");
    }

    fn refused(&mut self, op: NsOp, errno: Errno) {
        let before = self.kv.clone();
        assert_eq!(self.ask(op.clone()), Err(errno), "{op:?}");
        assert_eq!(self.kv, before, "a refusal changed something: {op:?}");
    }

    fn make(&mut self, parent: Ino, name: &str, kind: Kind) -> Ino {
        self.attr(make(parent, name, kind)).ino
    }

    fn stat(&mut self, ino: Ino) -> Attr {
        self.attr(NsOp::GetAttr { ino })
    }

    fn names(&mut self, ino: Ino) -> Vec<String> {
        let op = NsOp::Readdir {
            ino,
            after: 0,
            max: 4096,
            plus: false,
        };
        match self.ask(op) {
            Ok(NsAnswer::Dir {
                entries,
                is_end: true,
            }) => entries
                .into_iter()
                .map(|e| String::from_utf8(e.name).unwrap())
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    fn layout(&mut self, ino: Ino) -> Layout {
        match self.ask(NsOp::Open { ino, write: false }) {
            Ok(NsAnswer::Opened { layout, .. }) => layout,
            other => panic!("{other:?}"),
        }
    }

    fn garbage(&mut self) -> Vec<String> {
        match self.ask(NsOp::TakeGarbage {
            max: 100,
            upto: u64::MAX,
        }) {
            Ok(NsAnswer::Garbage(objects)) => objects,
            other => panic!("{other:?}"),
        }
    }

    fn table(&self, letter: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.kv.scan(&[letter], &[], usize::MAX).unwrap()
    }

    /// The tree as a whole is as a tree has to be, and its log leads to it.
    fn check(&self) {
        let ino_at = |key: &[u8]| Ino(keys::number_at(key, 1).unwrap());
        let attrs: BTreeMap<Ino, Attr> = self
            .table(b'a')
            .iter()
            .map(|(k, v)| (ino_at(k), postcard::from_bytes(v).unwrap()))
            .collect();
        let mut names: BTreeMap<Ino, u32> = BTreeMap::new();
        let mut subdirs: BTreeMap<Ino, u32> = BTreeMap::new();
        let mut children: BTreeMap<Ino, Vec<Ino>> = BTreeMap::new();
        let entries = self.table(b'd');
        for (key, value) in &entries {
            let (parent, name) = (ino_at(key), &key[9..]);
            let entry: crate::Dirent = postcard::from_bytes(value).unwrap();
            let attr = attrs.get(&entry.ino).expect("an entry points to an inode");
            assert_eq!(attr.kind, entry.kind);
            assert_eq!(attrs[&parent].kind, Kind::Dir);
            assert!(entry.cookie >= 3);
            let listed = self.kv.get(&keys::cookie(parent, entry.cookie)).unwrap();
            let listed: (Vec<u8>, Ino, Kind) =
                postcard::from_bytes(&listed.expect("an entry is listed")).unwrap();
            assert_eq!(listed, (name.to_vec(), entry.ino, entry.kind));
            assert!(
                self.kv
                    .get(&keys::link(entry.ino, parent, name))
                    .unwrap()
                    .is_some()
            );
            *names.entry(entry.ino).or_default() += 1;
            if entry.kind == Kind::Dir {
                *subdirs.entry(parent).or_default() += 1;
            }
            children.entry(parent).or_default().push(entry.ino);
        }
        // As many as entries, and each entry has its own: cookies and links are unique.
        assert_eq!(self.table(b'c').len(), entries.len());
        assert_eq!(self.table(b'p').len(), entries.len());

        let orphans: BTreeSet<Ino> = self.table(b'o').iter().map(|(k, _)| ino_at(k)).collect();
        let mut reached = BTreeSet::from([Ino::ROOT]);
        let mut todo = vec![Ino::ROOT];
        while let Some(dir) = todo.pop() {
            for child in children.get(&dir).into_iter().flatten() {
                if reached.insert(*child) {
                    todo.push(*child);
                } else {
                    assert_ne!(attrs[child].kind, Kind::Dir, "a directory has one name");
                }
            }
        }
        for (ino, attr) in &attrs {
            let has_names = names.get(ino).copied().unwrap_or(0);
            let expected = match attr.kind {
                Kind::Dir if reached.contains(ino) => 2 + subdirs.get(ino).copied().unwrap_or(0),
                Kind::Dir => 0,
                _ => has_names,
            };
            assert_eq!(attr.nlink, expected, "links of {ino:?} {:?}", attr.kind);
            assert_ne!(
                reached.contains(ino),
                orphans.contains(ino),
                "{ino:?}: reachable or orphan"
            );
            assert!(attr.seq > 0 && attr.ino == *ino);
        }
        for table in *b"lxrsokt" {
            for (key, _) in self.table(table) {
                let letter = char::from(table);
                assert!(
                    attrs.contains_key(&ino_at(&key)),
                    "{letter} of an inode that is gone"
                );
            }
        }
        let counters = counters(&self.kv).unwrap();
        assert_eq!(counters.inodes, attrs.len() as u64);
        let files = attrs.values().filter(|a| a.kind == Kind::File);
        assert_eq!(counters.bytes, files.map(|a| a.allocated).sum::<u64>());
        assert_eq!(
            self.flaws(),
            vec![],
            "the audit finds something in a sound tree"
        );
        self.check_replay();
    }

    fn check_replay(&self) {
        let mut kv = MemoryKv::default();
        for record in &self.log {
            let changes = replay(&kv, record).unwrap();
            kv.apply(changes);
        }
        assert_eq!(kv, self.kv, "the replayed log leads elsewhere");
    }
}

fn new_inode(kind: Kind) -> NewInode {
    NewInode {
        kind,
        mode: 0o640,
        rdev: if kind == Kind::Char { 0x501 } else { 0 },
        cred: Cred { uid: 10, gid: 20 },
        target: if kind == Kind::Symlink {
            b"to/where".to_vec()
        } else {
            Vec::new()
        },
        chunk_size: if kind == Kind::File { CHUNK } else { 0 },
    }
}

fn make(parent: Ino, name: &str, kind: Kind) -> NsOp {
    NsOp::Make {
        at: Some((parent, name.into())),
        new: new_inode(kind),
    }
}

fn chmod(ino: Ino, mode: u32) -> NsOp {
    NsOp::SetAttr {
        ino,
        set: SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
    }
}
