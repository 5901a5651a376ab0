//! The audit finds nothing in a sound namespace (`Tree::check` asks it after every random walk), and each kind of
//! damage, done to the tables by hand, by its code and at its inode.

use super::*;
use crate::{Changes, Dirent};
use fastcache_api::{AuditedRef, ChunkKey, CloudRef, Commit, PersistedChunk, RefUse, Run, Version};

impl Tree {
    /// All that the audit finds: inode and code. Pages of three inodes, so that paging is tested, too.
    pub(super) fn flaws(&self) -> Vec<(Ino, String)> {
        let (mut found, mut after) = (Vec::new(), Ino(0));
        loop {
            let reply = answer(&self.kv, &NsOp::Audit { after, max: 3 }).unwrap();
            let Ok(NsAnswer::Audit {
                inodes,
                flaws,
                is_end,
                epoch,
                ..
            }) = reply.result
            else {
                panic!("{reply:?}");
            };
            assert_eq!(epoch, self.epochs);
            found.extend(flaws.into_iter().map(|f| (Ino(0), f.code)));
            for inode in inodes {
                assert!(inode.attr.ino > after, "pages go on");
                after = inode.attr.ino;
                found.extend(inode.flaws.into_iter().map(|f| (after, f.code)));
            }
            if is_end {
                return found;
            }
        }
    }

    pub(super) fn refs(&self) -> Vec<AuditedRef> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let reply = answer(&self.kv, &NsOp::AllRefs { after, max: 2 }).unwrap();
            let Ok(NsAnswer::AllRefs { refs, is_end }) = reply.result else {
                panic!("{reply:?}");
            };
            after = refs.last().map(|r: &AuditedRef| r.key).or(after);
            found.extend(refs);
            if is_end {
                return found;
            }
        }
    }

    fn damage(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.kv.apply(Changes::from([(key, value)]));
    }

    fn write(&mut self, ino: Ino, version: u64) {
        let base = self.stat(ino).layout_version;
        let run = Run {
            first: 0,
            count: 2,
            version: Version(version),
            valid: 7,
        };
        self.attr(NsOp::Commit(Commit {
            ino,
            base,
            version: Version(version),
            truncate: None,
            runs: vec![run],
            size: u64::from(CHUNK) + 7,
            mtime: BEGIN,
            kill_suid: false,
            conflict_file: false,
        }));
    }

    fn persist(&mut self, ino: Ino, index: u32, version: u64) -> ChunkKey {
        let key = ChunkKey {
            ino,
            index,
            version: Version(version),
        };
        let object = format!("{ino}/{index}-{version}");
        let at = CloudRef {
            object,
            offset: 0,
            len: CHUNK,
            crc32c: 0,
            etag: None,
        };
        self.done(NsOp::Persisted {
            chunks: vec![PersistedChunk { key, at }],
        });
        key
    }
}

/// A tree with something of everything, and the inodes of: directory, file in it, symbolic link, empty directory.
fn tree() -> (Tree, [Ino; 4]) {
    let mut t = Tree::new();
    let dir = t.make(Ino::ROOT, "dir", Kind::Dir);
    let file = t.make(dir, "file", Kind::File);
    let link = t.make(dir, "link", Kind::Symlink);
    let empty = t.make(dir, "empty", Kind::Dir);
    t.write(file, 100);
    t.done_link(file);
    assert_eq!(t.flaws(), vec![]);
    (t, [dir, file, link, empty])
}

impl Tree {
    fn done_link(&mut self, ino: Ino) {
        self.attr(NsOp::Link {
            ino,
            parent: Ino::ROOT,
            name: b"second".to_vec(),
        });
    }
}

#[test]
fn each_damage_is_found_where_it_is() {
    type Damage = fn(&mut Tree, [Ino; 4]);
    type Case = (&'static str, Damage, &'static [(usize, &'static str)]);
    let put = |t: &mut Tree, mut attr: Attr, with: fn(&mut Attr)| {
        with(&mut attr);
        t.damage(
            keys::attr(attr.ino),
            Some(postcard::to_stdvec(&attr).unwrap()),
        );
    };
    // What is done, and the codes found with the place of the inode in the list (9: none).
    let table: [Case; 9] = [
        (
            "an entry is gone",
            |t, [dir, ..]| t.damage(keys::dirent(dir, b"file"), None),
            &[(0, "dangling_name"), (0, "dangling_name"), (1, "lost_name")],
        ),
        (
            "an entry is not listed",
            |t, [dir, ..]| {
                let entry = t.kv.get(&keys::dirent(dir, b"file")).unwrap().unwrap();
                let entry: Dirent = postcard::from_bytes(&entry).unwrap();
                t.damage(keys::cookie(dir, entry.cookie), None);
            },
            &[(0, "dangling_name")],
        ),
        (
            "an inode does not know its name",
            |t, [dir, file, ..]| t.damage(keys::link(file, dir, b"file"), None),
            &[(0, "lost_name"), (1, "link_count")],
        ),
        (
            "an inode is gone",
            |t, [_, _, link, _]| t.damage(keys::attr(link), None),
            &[(0, "dangling_name")],
        ),
        (
            "a directory that is a loop",
            |t, [dir, _, _, empty]| {
                t.damage(keys::link(dir, Ino::ROOT, b"dir"), None);
                t.damage(keys::link(dir, empty, b"dir"), Some(Vec::new()));
            },
            &[(0, "lost_name"), (0, "unreachable"), (3, "unreachable")],
        ),
        (
            "an orphan with a name",
            |t, [_, file, ..]| t.damage(keys::orphan(file), Some(Vec::new())),
            &[(1, "orphan")],
        ),
        (
            "an orphan that does not exist",
            |t, _| t.damage(keys::orphan(Ino(77)), Some(Vec::new())),
            &[(9, "orphan")],
        ),
        (
            "a link without a target",
            |t, [_, _, link, _]| t.damage(keys::target(link), None),
            &[(2, "symlink")],
        ),
        (
            "runs that overlap",
            |t, [_, file, ..]| {
                let mut layout = t.layout(file);
                layout.runs.push(layout.runs[0]);
                t.damage(
                    keys::layout(file),
                    Some(postcard::to_stdvec(&layout).unwrap()),
                );
            },
            &[(1, "layout")],
        ),
    ];
    for (what, damage, found) in table {
        let (mut t, inos) = tree();
        damage(&mut t, inos);
        let mut found: Vec<(Ino, String)> = found
            .iter()
            .map(|(i, code)| (inos.get(*i).copied().unwrap_or(Ino(0)), (*code).to_owned()))
            .collect();
        found.sort();
        let mut flaws = t.flaws();
        flaws.sort();
        if what == "a directory that is a loop" {
            // The root has lost an entry that its directory does not know of.
            flaws.retain(|(ino, _)| *ino != Ino::ROOT);
        }
        assert_eq!(flaws, found, "{what}");
    }
    let (mut t, [dir, file, ..]) = tree();
    let attr = t.stat(dir);
    put(&mut t, attr, |a| a.nlink += 1);
    let attr = t.stat(file);
    put(&mut t, attr, |a| a.nlink = 0);
    let codes: Vec<_> = t.flaws();
    assert_eq!(
        codes,
        vec![
            (dir, "link_count".to_owned()),
            (file, "link_count".to_owned())
        ]
    );
}

#[test]
fn refs_are_named_or_not_and_only_those_that_are_not_are_dropped() {
    let mut t = Tree::new();
    let file = t.make(Ino::ROOT, "file", Kind::File);
    t.write(file, 100);
    let named = t.persist(file, 0, 100);
    let ahead = t.persist(file, 1, 101);
    let past = t.persist(file, 9, 50);
    let uses: Vec<_> = t.refs().into_iter().map(|r| (r.key, r.used)).collect();
    assert_eq!(
        uses,
        vec![
            (named, RefUse::Named),
            (ahead, RefUse::Unnamed),
            (past, RefUse::Unnamed)
        ]
    );
    let gone = ChunkKey {
        ino: Ino(99),
        ..past
    };
    let object = |k: ChunkKey| format!("{}/{}-{}", k.ino, k.index, k.version.0);
    let objects = [named, past, gone].map(|k| (k, object(k))).to_vec();
    assert_eq!(
        t.ask(NsOp::Discard { objects }),
        Ok(NsAnswer::Discarded(2)),
        "all but the one that is named"
    );
    let left: Vec<_> = t.refs().into_iter().map(|r| r.key).collect();
    assert_eq!(left, vec![named, ahead]);
    let queued = answer(&t.kv, &NsOp::QueuedGarbage { after: 0, max: 10 })
        .unwrap()
        .result;
    let both = [past, gone].map(object);
    let objects = vec![(1, both[0].clone()), (2, both[1].clone())];
    assert_eq!(
        queued,
        Ok(NsAnswer::QueuedGarbage {
            objects,
            is_end: true
        })
    );
    assert_eq!(t.garbage(), both.to_vec());
    t.check();
}

#[test]
fn spares_that_cannot_be_are_found() {
    let mut t = Tree::new();
    let file = t.make(Ino::ROOT, "file", Kind::File);
    t.write(file, 100);
    let first = t.persist(file, 0, 100);
    t.write(file, 101);
    assert_eq!(t.flaws(), vec![]);
    let spare = |index: u32, version: u64| {
        let value = postcard::to_stdvec(&(Version(version), 7u32)).unwrap();
        (keys::spare(file, index), Some(value))
    };
    let found = vec![(file, "spare".to_owned())];
    let sound = t.kv.clone();
    // Without an object; the chunk itself, which has none either; of a chunk that is not there; of one that is persisted.
    for (key, value) in [spare(0, 99), spare(9, 100)] {
        t.damage(key, value);
        assert!(t.flaws().contains(&found[0]));
        t.kv = sound.clone();
    }
    t.damage(keys::cloud_ref(file, 0, first.version), None);
    assert_eq!(t.flaws(), found);
    t.kv = sound;
    let (key, value) = spare(0, 100);
    let at = t.kv.get(&keys::cloud_ref(file, 0, first.version)).unwrap();
    t.damage(keys::cloud_ref(file, 0, Version(101)), at);
    t.damage(key, value);
    assert_eq!(t.flaws(), found);
}
