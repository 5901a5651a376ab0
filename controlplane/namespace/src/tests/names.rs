//! Operations on names: make, unlink, rmdir, rename, link, listings, and what they do to links and times.

use super::*;
use fastcache_api::{LINK_MAX, NAME_MAX, RenameMode, SYMLINK_MAX, Version};

const KINDS: [Kind; 7] = [
    Kind::File,
    Kind::Dir,
    Kind::Symlink,
    Kind::Fifo,
    Kind::Socket,
    Kind::Char,
    Kind::Block,
];

fn rename(from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> NsOp {
    let (name, new_name) = (from.1.into(), to.1.into());
    NsOp::Rename {
        parent: from.0,
        name,
        new_parent: to.0,
        new_name,
        mode,
    }
}

fn unlink(parent: Ino, name: &str) -> NsOp {
    NsOp::Unlink {
        parent,
        name: name.into(),
    }
}

fn rmdir(parent: Ino, name: &str) -> NsOp {
    NsOp::Rmdir {
        parent,
        name: name.into(),
    }
}

fn link(ino: Ino, parent: Ino, name: &str) -> NsOp {
    NsOp::Link {
        ino,
        parent,
        name: name.into(),
    }
}

fn lookup(parent: Ino, name: &str) -> NsOp {
    NsOp::Lookup {
        parent,
        name: name.into(),
    }
}

#[test]
fn every_kind_is_made_and_found() {
    let mut t = Tree::new();
    for (i, kind) in KINDS.into_iter().enumerate() {
        let name = format!("n{i}");
        let made = t.attr(make(Ino::ROOT, &name, kind));
        assert_eq!(
            (made.kind, made.mode, made.uid, made.gid),
            (kind, 0o640, 10, 20)
        );
        assert_eq!(made.nlink, if kind == Kind::Dir { 2 } else { 1 });
        assert_eq!(made.size, if kind == Kind::Symlink { 8 } else { 0 });
        assert_eq!(
            (made.rdev != 0, made.mtime),
            (kind == Kind::Char, made.atime)
        );
        assert_eq!(t.attr(lookup(Ino::ROOT, &name)), made);
        assert_eq!(t.stat(made.ino), made);
        let read = t.ask(NsOp::Readlink { ino: made.ino });
        if kind == Kind::Symlink {
            assert_eq!(read, Ok(NsAnswer::Bytes(b"to/where".to_vec())));
        } else {
            assert_eq!(read, Err(Errno::EINVAL));
        }
        t.refused(make(Ino::ROOT, &name, Kind::File), Errno::EEXIST);
    }
    assert_eq!(t.stat(Ino::ROOT).nlink, 3);
    t.check();
}

#[test]
fn names_and_places_that_cannot_be() {
    let mut t = Tree::new();
    let file = t.make(Ino::ROOT, "f", Kind::File);
    let dir = t.make(Ino::ROOT, "d", Kind::Dir);
    for name in ["", ".", "..", "a/b", "a\0"] {
        t.refused(make(Ino::ROOT, name, Kind::File), Errno::EINVAL);
        t.refused(
            rename((Ino::ROOT, "f"), (dir, name), RenameMode::Replace),
            Errno::EINVAL,
        );
        t.refused(link(file, dir, name), Errno::EINVAL);
    }
    let longest = "x".repeat(NAME_MAX);
    t.make(dir, &longest, Kind::File);
    t.refused(make(dir, &(longest + "x"), Kind::File), Errno::ENAMETOOLONG);
    t.refused(make(file, "x", Kind::File), Errno::ENOTDIR);
    t.refused(make(Ino(77), "x", Kind::File), Errno::ENOENT);
    let mut long = new_inode(Kind::Symlink);
    long.target = vec![b'x'; SYMLINK_MAX + 1];
    t.refused(
        NsOp::Make {
            at: Some((dir, b"l".to_vec())),
            new: long,
        },
        Errno::ENAMETOOLONG,
    );
    let mut odd = new_inode(Kind::File);
    odd.chunk_size = 1000;
    t.refused(
        NsOp::Make {
            at: Some((dir, b"o".to_vec())),
            new: odd,
        },
        Errno::EINVAL,
    );
    t.refused(
        NsOp::Make {
            at: None,
            new: new_inode(Kind::Dir),
        },
        Errno::EINVAL,
    );
    t.refused(lookup(dir, "nothing"), Errno::ENOENT);
    t.refused(lookup(file, "x"), Errno::ENOTDIR);
    t.check();
}

#[test]
fn removing() {
    let mut t = Tree::new();
    let dir = t.make(Ino::ROOT, "d", Kind::Dir);
    let file = t.make(dir, "f", Kind::File);
    t.refused(rmdir(Ino::ROOT, "d"), Errno::ENOTEMPTY);
    t.refused(unlink(Ino::ROOT, "d"), Errno::EISDIR);
    t.refused(rmdir(dir, "f"), Errno::ENOTDIR);
    t.refused(unlink(dir, "g"), Errno::ENOENT);
    t.refused(rmdir(dir, "g"), Errno::ENOENT);
    t.attr(link(file, Ino::ROOT, "f2"));
    assert_eq!(t.stat(file).nlink, 2);
    assert_eq!(
        t.ask(unlink(dir, "f")),
        Ok(NsAnswer::Unlinked {
            ino: file,
            is_orphan: false
        })
    );
    assert_eq!(
        t.ask(unlink(Ino::ROOT, "f2")),
        Ok(NsAnswer::Unlinked {
            ino: file,
            is_orphan: true
        })
    );
    // Open somewhere: it is there until it is reaped, but gets no new name.
    assert_eq!(t.stat(file).nlink, 0);
    t.refused(link(file, dir, "again"), Errno::ENOENT);
    assert_eq!(
        t.ask(rmdir(Ino::ROOT, "d")),
        Ok(NsAnswer::Unlinked {
            ino: dir,
            is_orphan: true
        })
    );
    assert_eq!(t.stat(Ino::ROOT).nlink, 2);
    t.refused(make(dir, "x", Kind::File), Errno::ENOENT);
    t.check();
    t.done(NsOp::Reap {
        inos: vec![file, Ino(12345)],
    });
    t.refused(NsOp::GetAttr { ino: file }, Errno::ENOENT);
    t.done(NsOp::ReapAllBut { open: vec![dir] });
    t.stat(dir);
    t.done(NsOp::ReapAllBut { open: Vec::new() });
    t.refused(NsOp::GetAttr { ino: dir }, Errno::ENOENT);
    t.check();
}

#[test]
fn reaping_spares_what_has_a_name() {
    let mut t = Tree::new();
    let file = t.make(Ino::ROOT, "f", Kind::File);
    t.done(NsOp::Reap {
        inos: vec![file, Ino::ROOT],
    });
    t.done(NsOp::ReapAllBut { open: Vec::new() });
    t.stat(file);
    t.check();
}

#[test]
fn renaming_within_the_rules() {
    use RenameMode::{Exchange, NoReplace, Replace};
    let root = Ino::ROOT;
    let mut t = Tree::new();
    let a = t.make(root, "a", Kind::Dir);
    let b = t.make(root, "b", Kind::Dir);
    let inner = t.make(a, "inner", Kind::Dir);
    let file = t.make(a, "file", Kind::File);
    let other = t.make(b, "other", Kind::File);
    for (from, to, mode, errno) in [
        ((root, "nothing"), (root, "x"), Replace, Errno::ENOENT),
        ((a, "file"), (b, "other"), NoReplace, Errno::EEXIST),
        ((a, "file"), (b, "nothing"), Exchange, Errno::ENOENT),
        ((a, "file"), (a, "inner"), Replace, Errno::EISDIR),
        ((a, "inner"), (b, "other"), Replace, Errno::ENOTDIR),
        ((root, "a"), (inner, "x"), Replace, Errno::EINVAL),
        ((root, "a"), (a, "x"), Replace, Errno::EINVAL),
        ((a, "inner"), (root, "b"), Replace, Errno::ENOTEMPTY),
        ((root, "a"), (a, "inner"), Exchange, Errno::EINVAL),
        ((a, "inner"), (root, "a"), Exchange, Errno::EINVAL),
        ((a, "file"), (file, "x"), Replace, Errno::ENOTDIR),
    ] {
        t.refused(rename(from, to, mode), errno);
    }
    t.check();
    // To its own name, and to another name of the same inode: nothing happens.
    t.done(rename((a, "file"), (a, "file"), Replace));
    t.attr(link(file, b, "file2"));
    t.done(rename((a, "file"), (b, "file2"), Replace));
    assert_eq!(t.names(a), ["inner", "file"]);
    // Moving a directory moves a link of its parents, and its `..`.
    t.done(rename((a, "inner"), (b, "moved"), NoReplace));
    assert_eq!((t.stat(a).nlink, t.stat(b).nlink), (2, 3));
    assert_eq!(t.attr(lookup(inner, "..")).ino, b);
    assert_eq!(
        t.ask(NsOp::PathOf { ino: inner }),
        Ok(NsAnswer::Bytes(b"b/moved".to_vec()))
    );
    // Replacing.
    let gone = NsAnswer::Unlinked {
        ino: other,
        is_orphan: true,
    };
    assert_eq!(t.ask(rename((a, "file"), (b, "other"), Replace)), Ok(gone));
    let empty = t.make(a, "empty", Kind::Dir);
    let gone = NsAnswer::Unlinked {
        ino: inner,
        is_orphan: true,
    };
    assert_eq!(t.ask(rename((a, "empty"), (b, "moved"), Replace)), Ok(gone));
    assert_eq!(
        (t.stat(a).nlink, t.stat(b).nlink, t.stat(inner).nlink),
        (2, 3, 0)
    );
    t.refused(rename((b, "other"), (inner, "x"), Replace), Errno::ENOENT);
    // Exchanging a directory with a file.
    let single = t.make(a, "single", Kind::File);
    t.done(rename((b, "moved"), (a, "single"), Exchange));
    assert_eq!(
        (
            t.attr(lookup(b, "moved")).ino,
            t.attr(lookup(a, "single")).ino
        ),
        (single, empty)
    );
    assert_eq!((t.stat(a).nlink, t.stat(b).nlink), (3, 2));
    t.check();
}

#[test]
fn a_file_has_a_million_names_at_most() {
    let mut t = Tree::new();
    let file = t.make(Ino::ROOT, "f", Kind::File);
    // All but one of them are only counted: making a million names takes a minute.
    let mut attr = t.stat(file);
    attr.nlink = LINK_MAX - 1;
    let value = postcard::to_stdvec(&attr).unwrap();
    t.kv.apply([(keys::attr(file), Some(value))].into());
    assert_eq!(t.attr(link(file, Ino::ROOT, "last")).nlink, LINK_MAX);
    t.refused(link(file, Ino::ROOT, "more"), Errno::EMLINK);
    assert_eq!(t.names(Ino::ROOT), ["f", "last"]);
    // One goes: there is room for another.
    t.ask(unlink(Ino::ROOT, "f")).unwrap();
    assert_eq!(t.attr(link(file, Ino::ROOT, "more")).nlink, LINK_MAX);
    t.refused(link(file, Ino::ROOT, "f"), Errno::EMLINK);
}

#[test]
fn links_and_replacing_links() {
    let mut t = Tree::new();
    let dir = t.make(Ino::ROOT, "d", Kind::Dir);
    let file = t.make(Ino::ROOT, "f", Kind::File);
    t.refused(link(dir, Ino::ROOT, "d2"), Errno::EPERM);
    t.refused(link(file, file, "f"), Errno::ENOTDIR);
    t.refused(link(file, Ino::ROOT, "d"), Errno::EEXIST);
    t.refused(link(Ino(99), Ino::ROOT, "x"), Errno::ENOENT);
    // A file made without a name takes the place of another at once.
    let new = t.attr(NsOp::Make {
        at: None,
        new: new_inode(Kind::File),
    });
    assert_eq!(new.nlink, 0);
    t.check();
    let place = |ino, name: &str| NsOp::LinkReplace {
        ino,
        parent: Ino::ROOT,
        name: name.into(),
    };
    t.refused(place(file, "x"), Errno::EINVAL);
    t.refused(place(new.ino, "d"), Errno::EISDIR);
    let gone = NsAnswer::Unlinked {
        ino: file,
        is_orphan: true,
    };
    assert_eq!(t.ask(place(new.ino, "f")), Ok(gone));
    assert_eq!(t.attr(lookup(Ino::ROOT, "f")).ino, new.ino);
    assert_eq!(t.stat(new.ino).nlink, 1);
    t.refused(place(new.ino, "g"), Errno::EINVAL);
    let second = t.attr(NsOp::Make {
        at: None,
        new: new_inode(Kind::File),
    });
    t.done(place(second.ino, "g"));
    t.check();
}

#[test]
fn a_change_under_a_condition_happens_only_while_it_holds() {
    let mut t = Tree::new();
    let orphan = |t: &mut Tree| {
        let new = new_inode(Kind::File);
        t.attr(NsOp::Make { at: None, new }).ino
    };
    let place = |ino, name: &str, expected| NsOp::LinkReplaceIf {
        ino,
        parent: Ino::ROOT,
        name: name.into(),
        expected,
    };
    let remove = |name: &str, expected| NsOp::UnlinkIf {
        parent: Ino::ROOT,
        name: name.into(),
        expected,
    };
    let first = orphan(&mut t);
    t.refused(
        place(first, "f", Some((first, Version::NONE))),
        Errno::ESTALE,
    );
    t.done(place(first, "f", None));
    let second = orphan(&mut t);
    t.refused(place(second, "f", None), Errno::ESTALE);
    t.refused(place(second, "f", Some((first, Version(7)))), Errno::ESTALE);
    t.refused(
        place(second, "f", Some((second, Version::NONE))),
        Errno::ESTALE,
    );
    let gone = NsAnswer::Unlinked {
        ino: first,
        is_orphan: true,
    };
    assert_eq!(
        t.ask(place(second, "f", Some((first, Version::NONE)))),
        Ok(gone)
    );
    t.refused(remove("f", (first, Version::NONE)), Errno::ESTALE);
    t.refused(remove("g", (first, Version::NONE)), Errno::ESTALE);
    t.refused(remove("", (first, Version::NONE)), Errno::EINVAL);
    assert!(t.ask(remove("f", (second, Version::NONE))).is_ok());
    t.refused(lookup(Ino::ROOT, "f"), Errno::ENOENT);
    t.check();
}

#[test]
fn a_removed_directory_gets_no_name() {
    let mut t = Tree::new();
    let dir = t.make(Ino::ROOT, "d", Kind::Dir);
    t.ask(rmdir(Ino::ROOT, "d")).unwrap();
    let again = NsOp::LinkReplace {
        ino: dir,
        parent: Ino::ROOT,
        name: b"e".to_vec(),
    };
    t.refused(again, Errno::EINVAL);
    t.check();
}

#[test]
fn a_setgid_directory_hands_its_group_on() {
    let mut t = Tree::new();
    let dir = t.make(Ino::ROOT, "d", Kind::Dir);
    let set = SetAttr {
        gid: Some(77),
        mode: Some(0o2755),
        ..SetAttr::default()
    };
    t.attr(NsOp::SetAttr { ino: dir, set });
    let file = t.attr(make(dir, "f", Kind::File));
    let sub = t.attr(make(dir, "s", Kind::Dir));
    assert_eq!((file.gid, file.mode), (77, 0o640));
    assert_eq!((sub.gid, sub.mode), (77, 0o2640));
}

/// Counts what is looked for one by one.
struct Counting(MemoryKv, std::cell::Cell<usize>);

impl Kv for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, crate::KvError> {
        self.1.set(self.1.get() + 1);
        self.0.get(key)
    }

    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<crate::Pair>, crate::KvError> {
        self.0.scan(prefix, from, limit)
    }

    fn each(
        &self,
        first: &[u8],
        end: &[u8],
        take: &mut crate::Take<'_>,
    ) -> Result<(), crate::KvError> {
        self.0.each(first, end, take)
    }
}

/// Attributes that are read in one go are those of each entry, whatever lies between the inodes: files of other directories,
/// inodes that are gone, names that lead to the same one, and far ones.
#[test]
fn a_listing_has_the_attributes_of_each_entry() {
    let mut t = Tree::new();
    let far = t.make(Ino::ROOT, "far", Kind::File);
    let dir = t.make(Ino::ROOT, "dir", Kind::Dir);
    let other = t.make(Ino::ROOT, "other", Kind::Dir);
    let mut inos = Vec::new();
    for n in 0..64 {
        inos.push(t.make(dir, &format!("f{n}"), Kind::File));
        if n % 5 == 0 {
            t.make(other, &format!("o{n}"), Kind::File);
        }
        if n % 20 == 0 {
            for more in 0..6 {
                t.make(other, &format!("o{n}-{more}"), Kind::Fifo);
            }
        }
    }
    for n in [0, 1, 9, 30, 31, 32, 33, 34, 35, 63] {
        t.ask(unlink(dir, &format!("f{n}"))).unwrap();
    }
    let inos_gone = vec![inos[1], inos[9], inos[31], inos[32]];
    t.done(NsOp::Reap { inos: inos_gone });
    t.attr(link(inos[40], dir, "again"));
    t.attr(link(inos[40], dir, "and again"));
    t.attr(link(far, dir, "near"));
    t.make(dir, "subdirectory", Kind::Dir);
    t.begin_epoch();
    t.make(dir, "of another epoch", Kind::Symlink);

    let list = |kv: &Counting, after, max| {
        let op = NsOp::Readdir {
            ino: dir,
            after,
            max,
            plus: true,
        };
        match answer(kv, &op).unwrap().result {
            Ok(NsAnswer::Dir { entries, .. }) => entries,
            other => panic!("{other:?}"),
        }
    };
    let mut kv = Counting(t.kv.clone(), std::cell::Cell::new(0));
    let all = list(&kv, 0, 4096);
    assert_eq!(all.len(), 64 - 10 + 5);
    assert!(kv.1.get() < 20, "{} looked for one by one", kv.1.get());
    for entry in &all {
        assert_eq!(entry.attr, Some(t.stat(entry.ino)));
    }
    for max in 1..20 {
        for from in 0..all.len() {
            let after = from.checked_sub(1).map_or(0, |before| all[before].cookie);
            let some = list(&kv, after, max);
            assert_eq!(some, all[from..all.len().min(from + max as usize)]);
        }
    }
    // Of one that went away in between there are none.
    let gone = [all[0].ino, all[7].ino, inos[40], far, all[20].ino];
    kv.0.apply(gone.iter().map(|ino| (keys::attr(*ino), None)).collect());
    for (then, now) in all.iter().zip(list(&kv, 0, 4096)) {
        let attr = then.attr.clone().filter(|a| !gone.contains(&a.ino));
        assert_eq!((&then.name, attr), (&now.name, now.attr));
    }
    // A value that cannot be read is no attribute.
    kv.0.apply([(keys::attr(inos[50]), Some(vec![0xff]))].into());
    let op = NsOp::Readdir {
        ino: dir,
        after: 0,
        max: 4096,
        plus: true,
    };
    assert!(answer(&kv, &op).is_err());
    t.check();
}

#[test]
fn listings_go_on_where_they_stopped() {
    let mut t = Tree::new();
    let names: Vec<String> = (0..25).map(|i| format!("f{i:02}")).collect();
    for name in &names {
        t.make(Ino::ROOT, name, Kind::File);
    }
    let mut found = Vec::new();
    let mut after = 0;
    loop {
        let op = NsOp::Readdir {
            ino: Ino::ROOT,
            after,
            max: 7,
            plus: true,
        };
        let Ok(NsAnswer::Dir { entries, is_end }) = t.ask(op) else {
            panic!("no listing")
        };
        assert!(entries.len() <= 7);
        for entry in entries {
            assert!(entry.cookie > after && entry.cookie >= 3);
            after = entry.cookie;
            let attr = entry.attr.unwrap();
            assert_eq!((attr.ino, attr.kind), (entry.ino, entry.kind));
            found.push(String::from_utf8(entry.name).unwrap());
        }
        if is_end {
            break;
        }
        // What is removed or made while listing disturbs nothing else.
        if found.len() == 7 {
            t.ask(unlink(Ino::ROOT, "f03")).unwrap();
            t.ask(rename(
                (Ino::ROOT, "f04"),
                (Ino::ROOT, "late"),
                RenameMode::Replace,
            ))
            .unwrap();
        }
    }
    let mut expected = names;
    expected.push("late".to_owned());
    assert_eq!(found, expected);
    let file = t.attr(lookup(Ino::ROOT, "f05")).ino;
    t.refused(
        NsOp::Readdir {
            ino: file,
            after: 0,
            max: 7,
            plus: false,
        },
        Errno::ENOTDIR,
    );
    t.check();
}

#[test]
fn paths_both_ways() {
    let mut t = Tree::new();
    let dir = t.make(Ino::ROOT, "d", Kind::Dir);
    let file = t.make(dir, "f", Kind::File);
    let resolve = |path: &[&str]| NsOp::Resolve {
        path: path.iter().map(|n| (*n).into()).collect(),
    };
    assert_eq!(t.attr(resolve(&["d", "f"])).ino, file);
    assert_eq!(t.attr(resolve(&[])).ino, Ino::ROOT);
    t.refused(resolve(&["d", "g"]), Errno::ENOENT);
    t.refused(resolve(&["d", "f", "g"]), Errno::ENOTDIR);
    t.refused(resolve(&["d", ".."]), Errno::EINVAL);
    t.refused(
        NsOp::Resolve {
            path: vec![b"x".to_vec(); 5000],
        },
        Errno::ENAMETOOLONG,
    );
    assert_eq!(
        t.ask(NsOp::PathOf { ino: file }),
        Ok(NsAnswer::Bytes(b"d/f".to_vec()))
    );
    assert_eq!(
        t.ask(NsOp::PathOf { ino: Ino::ROOT }),
        Ok(NsAnswer::Bytes(Vec::new()))
    );
    t.ask(unlink(dir, "f")).unwrap();
    t.refused(NsOp::PathOf { ino: file }, Errno::ENOENT);
}

#[test]
fn a_request_sent_twice_happens_once() {
    let mut t = Tree::new();
    let request = t.request(make(Ino::ROOT, "f", Kind::File));
    let first = t.reply(&request);
    t.attr(chmod(Ino::ROOT, 0o700));
    assert_eq!(t.reply(&request), first);
    // With the one that began the epoch.
    assert_eq!(t.log.len(), 3);
    let touched: Vec<Ino> = first.touched.iter().map(|a| a.ino).collect();
    assert!(touched.contains(&Ino::ROOT) && touched.len() == 2);
    assert_eq!(first.log_position, t.log[1].position);
    // Only so many answers are kept.
    let old = request.id.unwrap().seq;
    t.seq = old + crate::REPLIES_KEPT - 1;
    t.make(Ino::ROOT, "g", Kind::File);
    assert_eq!(t.reply(&request).result, Err(Errno::EEXIST));
    t.check();
}

#[test]
fn numbers_of_another_epoch_are_other_numbers() {
    let mut t = Tree::new();
    let a = t.make(Ino::ROOT, "a", Kind::File);
    let versions = |t: &mut Tree| match t.ask(NsOp::AllocVersions { count: 10 }) {
        Ok(NsAnswer::Versions { first, count: 10 }) => first,
        other => panic!("{other:?}"),
    };
    let (v1, v2) = (versions(&mut t), versions(&mut t));
    assert_eq!(v2.0, v1.0 + 10);
    t.begin_epoch();
    let b = t.make(Ino::ROOT, "b", Kind::File);
    assert!(b.0 >> 40 == 2 && a.0 >> 40 == 1);
    assert!(versions(&mut t).0 > v2.0 + 10);
    t.check();
}
