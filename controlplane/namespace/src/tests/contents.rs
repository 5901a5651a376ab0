//! Attributes, extended attributes, commits, cloud refs and garbage.

use super::*;
use fastcache_api::{ChunkKey, CloudRef, Commit, PersistedChunk, Run, Statfs, Version, XattrMode};

fn run(first: u32, count: u32, version: u64, valid: u32) -> Run {
    Run {
        first,
        count,
        version: Version(version),
        valid,
    }
}

fn commit(ino: Ino, base: u64, version: u64, runs: Vec<Run>, size: u64) -> Commit {
    Commit {
        ino,
        base: Version(base),
        version: Version(version),
        truncate: None,
        runs,
        size,
        mtime: Time { sec: 7, nsec: 8 },
        kill_suid: false,
        conflict_file: false,
    }
}

fn persisted(ino: Ino, index: u32, version: u64) -> PersistedChunk {
    let key = ChunkKey {
        ino,
        index,
        version: Version(version),
    };
    PersistedChunk {
        key,
        at: cloud_ref(index, version),
    }
}

fn cloud_ref(index: u32, version: u64) -> CloudRef {
    let object = format!("{index}-{version}");
    CloudRef {
        object,
        offset: 0,
        len: CHUNK,
        crc32c: 5,
        etag: Some("e".to_owned()),
    }
}

#[test]
fn attributes_change_as_asked() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let before = t.stat(ino);
    let time = Time { sec: -5, nsec: 6 };
    let set = SetAttr {
        mode: Some(0o7755),
        uid: Some(1),
        ..SetAttr::default()
    };
    let after = t.attr(NsOp::SetAttr { ino, set });
    assert_eq!((after.mode, after.uid, after.gid), (0o7755, 1, before.gid));
    assert!(after.ctime > before.ctime && after.seq > before.seq);
    assert_eq!(after.mtime, before.mtime);
    let set = SetAttr {
        atime: Some(time),
        mtime: Some(time),
        ctime: Some(time),
        ..SetAttr::default()
    };
    let after = t.attr(NsOp::SetAttr { ino, set });
    assert_eq!((after.atime, after.mtime, after.ctime), (time, time, time));
    let kill = SetAttr {
        kill_suid: true,
        ..SetAttr::default()
    };
    assert_eq!(t.attr(NsOp::SetAttr { ino, set: kill }).mode, 0o1755);
    // setgid without the group's x is mandatory locking's mark, not a privilege.
    t.attr(chmod(ino, 0o6644));
    assert_eq!(t.attr(NsOp::SetAttr { ino, set: kill }).mode, 0o2644);
    t.refused(
        NsOp::SetAttr {
            ino: Ino(9),
            set: kill,
        },
        Errno::ENOENT,
    );
    t.check();
}

#[test]
fn extended_attributes() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let set = |name: &str, value: &[u8], mode| NsOp::SetXattr {
        ino,
        name: name.into(),
        value: value.to_vec(),
        mode,
    };
    let get = |name: &str| NsOp::GetXattr {
        ino,
        name: name.into(),
    };
    let remove = |name: &str| NsOp::RemoveXattr {
        ino,
        name: name.into(),
    };
    t.refused(set("user.a", b"1", XattrMode::Replace), Errno::ENODATA);
    t.done(set("user.a", b"1", XattrMode::Create));
    t.refused(set("user.a", b"2", XattrMode::Create), Errno::EEXIST);
    t.done(set("user.a", b"2", XattrMode::Replace));
    t.done(set("user.ab", b"", XattrMode::Any));
    assert_eq!(t.ask(get("user.a")), Ok(NsAnswer::Bytes(b"2".to_vec())));
    assert_eq!(t.ask(get("user.ab")), Ok(NsAnswer::Bytes(Vec::new())));
    let names = vec![b"user.a".to_vec(), b"user.ab".to_vec()];
    assert_eq!(t.ask(NsOp::ListXattr { ino }), Ok(NsAnswer::Names(names)));
    t.refused(set("", b"", XattrMode::Any), Errno::ERANGE);
    t.refused(set(&"x".repeat(256), b"", XattrMode::Any), Errno::ERANGE);
    t.refused(
        set("user.big", &vec![0; 65537], XattrMode::Any),
        Errno::ERANGE,
    );
    t.done(set("user.big", &vec![0; 65536], XattrMode::Any));
    for n in 0..14 {
        t.done(set(&format!("user.{n}"), &vec![0; 65536], XattrMode::Any));
    }
    t.refused(
        set("user.too-much", &vec![0; 65536], XattrMode::Any),
        Errno::ENOSPC,
    );
    t.done(set("user.big", &vec![1; 65536], XattrMode::Any));
    for n in 0..14 {
        t.done(remove(&format!("user.{n}")));
    }
    t.done(remove("user.a"));
    t.refused(remove("user.a"), Errno::ENODATA);
    t.refused(get("user.a"), Errno::ENODATA);
    t.ask(NsOp::Unlink {
        parent: Ino::ROOT,
        name: b"f".to_vec(),
    })
    .unwrap();
    t.done(NsOp::Reap { inos: vec![ino] });
    t.refused(NsOp::ListXattr { ino }, Errno::ENOENT);
    t.check();
}

#[test]
fn a_commit_happens_once_and_on_its_base() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let first = commit(ino, 0, 5, vec![run(0, 2, 5, 100)], u64::from(CHUNK) + 100);
    let done = t.attr(NsOp::Commit(first.clone()));
    assert_eq!(
        (done.size, done.layout_version),
        (u64::from(CHUNK) + 100, Version(5))
    );
    assert_eq!(done.mtime, Time { sec: 7, nsec: 8 });
    // Sent again under another id (after a restart): already done.
    let again = t.attr(NsOp::Commit(first));
    assert_eq!(again, done);
    t.refused(
        NsOp::Commit(commit(ino, 4, 6, Vec::new(), 0)),
        Errno::ESTALE,
    );
    t.refused(
        NsOp::Commit(commit(Ino::ROOT, 0, 6, Vec::new(), 0)),
        Errno::EINVAL,
    );
    t.refused(
        NsOp::Commit(commit(Ino(99), 0, 6, Vec::new(), 0)),
        Errno::ENOENT,
    );
    t.attr(chmod(ino, 0o4755));
    let mut second = commit(ino, 5, 6, vec![run(1, 1, 6, 50)], u64::from(CHUNK) + 100);
    second.kill_suid = true;
    assert_eq!(t.attr(NsOp::Commit(second)).mode, 0o755);
    assert_eq!(
        t.layout(ino).runs,
        vec![run(0, 1, 5, CHUNK), run(1, 1, 6, 50)]
    );
    let counts = Statfs {
        inodes: 2,
        // The second chunk has 50 bytes: a block.
        bytes: u64::from(CHUNK) + 4096,
    };
    assert_eq!(t.ask(NsOp::Statfs), Ok(NsAnswer::Statfs(counts)));
    t.check();
}

#[test]
fn a_commit_truncates_first_and_lays_then() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let chunk = u64::from(CHUNK);
    t.attr(NsOp::Commit(commit(
        ino,
        0,
        1,
        vec![run(0, 4, 1, CHUNK)],
        4 * chunk,
    )));
    // Down to the middle of chunk 1, then chunk 3 written: chunk 2 is a hole, chunk 1 valid in part.
    let mut next = commit(ino, 1, 2, vec![run(3, 1, 2, 10)], 3 * chunk + 10);
    next.truncate = Some(chunk + 7);
    t.attr(NsOp::Commit(next));
    assert_eq!(t.layout(ino).runs, vec![run(0, 2, 1, 7), run(3, 1, 2, 10)]);
    // A hole in chunk 0.
    t.attr(NsOp::Commit(commit(
        ino,
        2,
        3,
        vec![run(0, 1, 0, 0)],
        3 * chunk + 10,
    )));
    assert_eq!(t.layout(ino).runs, vec![run(1, 1, 1, 7), run(3, 1, 2, 10)]);
    let mut nothing = commit(ino, 3, 4, Vec::new(), 0);
    nothing.truncate = Some(0);
    t.attr(NsOp::Commit(nothing));
    assert!(t.layout(ino).runs.is_empty());
    t.check();
}

#[test]
fn a_commit_with_runs_that_cannot_be_is_refused() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let size = u64::from(CHUNK);
    for bad in [run(u32::MAX, 2, 1, CHUNK), run(0, 1, 1, CHUNK + 1)] {
        t.refused(
            NsOp::Commit(commit(ino, 0, 1, vec![bad], size)),
            Errno::EINVAL,
        );
    }
    let endless = commit(ino, 0, 1, Vec::new(), fastcache_api::FILE_SIZE_MAX + 1);
    t.refused(NsOp::Commit(endless), Errno::EFBIG);
}

#[test]
fn a_large_hole_is_quick() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    t.done(NsOp::Persisted {
        chunks: vec![persisted(ino, 7, 1)],
    });
    t.attr(NsOp::Commit(commit(
        ino,
        0,
        1,
        vec![run(7, 1, 1, CHUNK)],
        1 << 40,
    )));
    let start = std::time::Instant::now();
    t.attr(NsOp::Commit(commit(
        ino,
        1,
        2,
        vec![run(0, 1 << 28, 0, 0)],
        1 << 40,
    )));
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
    assert_eq!(t.garbage(), ["7-1"]);
    t.check();
}

#[test]
fn a_chunk_persisted_before_its_commit_keeps_its_object() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    // Version 2 of the chunk is in the cloud before version 1 of the file is committed.
    t.done(NsOp::Persisted {
        chunks: vec![persisted(ino, 0, 2)],
    });
    t.attr(NsOp::Commit(commit(
        ino,
        0,
        1,
        vec![run(0, 1, 1, CHUNK)],
        10,
    )));
    assert!(t.garbage().is_empty());
    t.attr(NsOp::Commit(commit(
        ino,
        1,
        2,
        vec![run(0, 1, 2, CHUNK)],
        10,
    )));
    assert!(t.garbage().is_empty());
    t.check();
}

#[test]
fn replaced_versions_are_garbage_and_current_ones_are_not() {
    let mut t = Tree::new();
    let ino = t.make(Ino::ROOT, "f", Kind::File);
    let chunk = u64::from(CHUNK);
    t.attr(NsOp::Commit(commit(
        ino,
        0,
        1,
        vec![run(0, 3, 1, CHUNK)],
        3 * chunk,
    )));
    let chunks = (0..3).map(|i| persisted(ino, i, 1)).collect();
    t.done(NsOp::Persisted { chunks });
    let only = Some((1, Version(1)));
    let found = NsAnswer::CloudRefs(vec![(1, Version(1), cloud_ref(1, 1))]);
    assert_eq!(t.ask(NsOp::CloudRefs { ino, only }), Ok(found));
    assert!(t.garbage().is_empty());
    // Uploaded before its commit: kept for it.
    t.done(NsOp::Persisted {
        chunks: vec![persisted(ino, 1, 2)],
    });
    t.attr(NsOp::Commit(commit(
        ino,
        1,
        2,
        vec![run(1, 1, 2, CHUNK)],
        3 * chunk,
    )));
    assert_eq!(t.garbage(), ["1-1"]);
    assert!(t.garbage().is_empty());
    let mut cut = commit(ino, 2, 3, Vec::new(), chunk + 1);
    cut.truncate = Some(chunk + 1);
    t.attr(NsOp::Commit(cut));
    assert_eq!(t.garbage(), ["2-1"]);
    t.check();
    t.ask(NsOp::Unlink {
        parent: Ino::ROOT,
        name: b"f".to_vec(),
    })
    .unwrap();
    assert!(t.garbage().is_empty());
    t.done(NsOp::Reap { inos: vec![ino] });
    let mut left = t.garbage();
    left.sort();
    assert_eq!(left, ["0-1", "1-2"]);
    // Uploaded too late for anything.
    t.done(NsOp::Persisted {
        chunks: vec![persisted(ino, 0, 9)],
    });
    assert_eq!(t.garbage(), ["0-9"]);
    t.check();
}

#[test]
fn garbage_is_taken_in_portions() {
    let mut t = Tree::new();
    let chunks = (0..10).map(|i| persisted(Ino(55), i, 1)).collect();
    t.done(NsOp::Persisted { chunks });
    let Ok(NsAnswer::Garbage(some)) = t.ask(NsOp::TakeGarbage {
        max: 4,
        upto: u64::MAX,
    }) else {
        panic!()
    };
    assert_eq!(some, ["0-1", "1-1", "2-1", "3-1"]);
    assert_eq!(t.garbage().len(), 6);
    t.check();
}

#[test]
fn a_record_of_another_version_is_refused_by_name() {
    let mut t = Tree::new();
    t.make(Ino::ROOT, "f", Kind::File);
    let mut bytes = t.log[1].encode().unwrap();
    assert!(matches!(
        Record::decode(&bytes[..9]),
        Err(crate::RecordError::Damaged(_))
    ));
    bytes[0] = 9;
    let text = Record::decode(&bytes).unwrap_err().to_string();
    assert!(text.contains("version 9"), "{text}");
    assert!(matches!(
        Record::decode(&[]),
        Err(crate::RecordError::Empty)
    ));
}
