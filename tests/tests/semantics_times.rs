//! Promise: times are those of ext4 mounted with `noatime`: which operation sets which (docs/semantics.md).
//!
//! Method: stamps before and after one operation, of a file and of its directory; the letters of those that differ are
//! compared with the table.

use fastcache_tests::{drop_page_cache, serial, shared_folder};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// Access, modification and change time in nanoseconds.
type Stamp = [(char, i128); 3];

fn stamp(path: &Path) -> Stamp {
    let m = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let nanos = |sec: i64, nsec: i64| i128::from(sec) * 1_000_000_000 + i128::from(nsec);
    [
        ('a', nanos(m.atime(), m.atime_nsec())),
        ('m', nanos(m.mtime(), m.mtime_nsec())),
        ('c', nanos(m.ctime(), m.ctime_nsec())),
    ]
}

/// Which times of `path` an operation changes. They may only go forward.
#[track_caller]
fn changed(path: &Path, op: impl FnOnce()) -> String {
    let before = stamp(path);
    op();
    let after = stamp(path);
    before
        .iter()
        .zip(after)
        .filter(|(b, a)| b.1 != a.1)
        .map(|(b, a)| {
            assert!(a.1 > b.1, "{} of {} went back", b.0, path.display());
            b.0
        })
        .collect()
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("open")
}

#[test]
fn an_operation_on_a_file_sets_the_times_of_the_table() {
    let _one = serial();
    let (_, here) = shared_folder("table");
    let path = here.join("file");
    std::fs::write(&path, vec![7; 10_000]).expect("write");
    let mut file = open(&path);
    let file = &mut file;
    let other = here.join("other");
    std::fs::write(&other, vec![8; 100]).expect("write");

    // Reads leave everything as it is: noatime.
    let mut buf = [0; 100];
    assert_eq!(
        changed(&path, || file.read_exact(&mut buf).expect("read")),
        ""
    );
    drop_page_cache();
    assert_eq!(
        changed(&path, || drop(std::fs::read(&path).expect("read"))),
        ""
    );
    assert_eq!(changed(&path, || drop(open(&path))), "");
    assert_eq!(changed(&path, || file.sync_all().expect("fsync")), "");
    assert_eq!(changed(&path, || drop(file.rewind())), "");

    assert_eq!(
        changed(&path, || file.write_all(b"x").expect("write")),
        "mc"
    );
    assert_eq!(changed(&path, || drop(file.write(b""))), "");
    assert_eq!(
        changed(&path, || file.set_len(5_000).expect("ftruncate")),
        "mc"
    );
    assert_eq!(
        changed(&path, || file.set_len(9_000).expect("ftruncate")),
        "mc"
    );
    assert_eq!(
        changed(&path, || file.set_len(9_000).expect("same size")),
        "mc"
    );
    let truncate = || drop(File::create(&path).expect("O_TRUNC"));
    assert_eq!(changed(&path, truncate), "mc");
    assert_eq!(changed(&path, truncate), "mc", "O_TRUNC of an empty file");

    let allocate = |flags, at, len| {
        rustix::fs::fallocate(open(&path), flags, at, len).expect("fallocate");
    };
    assert_eq!(
        changed(&path, || allocate(FallocateFlags::empty(), 0, 50_000)),
        "mc"
    );
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(changed(&path, || allocate(punch, 4096, 4096)), "mc");
    assert_eq!(
        changed(&path, || allocate(FallocateFlags::ZERO_RANGE, 0, 4096)),
        "mc"
    );

    let (from, to) = (open(&other), open(&path));
    let copy = || {
        let n = rustix::fs::copy_file_range(&from, Some(&mut 0), &to, Some(&mut 0), 100);
        assert_eq!(n, Ok(100));
    };
    assert_eq!(changed(&path, copy), "mc", "the target of copy_file_range");
    assert_eq!(changed(&other, copy), "", "its source");

    // Attributes: the change time alone.
    let chmod = || rustix::fs::chmod(&path, Mode::from_bits_truncate(0o640)).expect("chmod");
    assert_eq!(changed(&path, chmod), "c");
    assert_eq!(
        changed(&path, || std::os::unix::fs::chown(&path, Some(1), Some(1))
            .expect("chown")),
        "c"
    );
    let set =
        || rustix::fs::setxattr(&path, "user.a", b"1", XattrFlags::empty()).expect("setxattr");
    assert_eq!(changed(&path, set), "c");
    assert_eq!(
        changed(&path, || rustix::fs::removexattr(&path, "user.a")
            .expect("removexattr")),
        "c"
    );
    let link = || std::fs::hard_link(&path, here.join("link")).expect("link");
    assert_eq!(changed(&path, link), "c");
    let rename = || std::fs::rename(here.join("link"), here.join("renamed")).expect("rename");
    assert_eq!(changed(&path, rename), "c");
    let replace =
        || std::fs::rename(&other, here.join("renamed")).expect("rename over a link of it");
    assert_eq!(changed(&path, replace), "c");
    std::fs::hard_link(&path, here.join("link")).expect("link");
    assert_eq!(
        changed(&path, || std::fs::remove_file(here.join("link"))
            .expect("unlink")),
        "c"
    );
    assert_eq!(changed(&path, || drop(std::fs::metadata(&path))), "");
}

#[test]
fn a_change_of_a_directory_sets_its_mtime_and_ctime() {
    let _one = serial();
    let (_, here) = shared_folder("directories");
    let dir = here.join("dir");
    std::fs::create_dir(&dir).expect("mkdir");
    let elsewhere = here.join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("mkdir");
    let at = |name: &str| dir.join(name);
    let check = |what: &str, want: &str, op: &dyn Fn()| {
        assert_eq!(changed(&dir, op), want, "{what}");
    };
    check("create", "mc", &|| {
        drop(File::create(at("f")).expect("create"))
    });
    check("open of what is there", "", &|| drop(open(&at("f"))));
    check("a write in it", "", &|| {
        std::fs::write(at("f"), b"1").expect("write")
    });
    check("listing", "", &|| {
        assert_eq!(std::fs::read_dir(&dir).expect("readdir").count(), 1)
    });
    check("mkdir", "mc", &|| {
        std::fs::create_dir(at("d")).expect("mkdir")
    });
    check("a change in a subdirectory", "", &|| {
        std::fs::write(at("d/x"), b"1").expect("write")
    });
    check("symlink", "mc", &|| {
        std::os::unix::fs::symlink("f", at("s")).expect("symlink")
    });
    check("readlink", "", &|| {
        drop(std::fs::read_link(at("s")).expect("readlink"))
    });
    check("mknod", "mc", &|| {
        rustix::fs::mknodat(CWD, at("p"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .expect("mkfifo");
    });
    check("link", "mc", &|| {
        std::fs::hard_link(at("f"), at("l")).expect("link")
    });
    check("rename in it", "mc", &|| {
        std::fs::rename(at("l"), at("m")).expect("rename")
    });
    check("rename out of it", "mc", &|| {
        std::fs::rename(at("m"), elsewhere.join("m")).expect("rename")
    });
    check("rename into it", "mc", &|| {
        std::fs::rename(elsewhere.join("m"), at("m")).expect("rename")
    });
    check("rename of a file onto another name of it", "", &|| {
        std::fs::rename(at("m"), at("f")).expect("rename")
    });
    check("unlink", "mc", &|| {
        std::fs::remove_file(at("p")).expect("unlink")
    });
    std::fs::remove_file(at("d/x")).expect("unlink");
    check("rmdir", "mc", &|| {
        std::fs::remove_dir(at("d")).expect("rmdir")
    });
    check("chmod", "c", &|| {
        rustix::fs::chmod(&dir, Mode::RWXU).expect("chmod")
    });
}

#[test]
fn times_that_were_set_stay_through_close_the_cloud_and_the_page_cache() {
    let _one = serial();
    let (node, here) = shared_folder("set");
    let path = here.join("file");
    let file = File::create(&path).expect("create");
    file.write_all_at(&[1; 5_000], 0).expect("write");
    let written = stamp(&path);
    std::thread::sleep(std::time::Duration::from_millis(20));
    drop(file);
    assert_eq!(stamp(&path), written, "close is no modification");
    node.flush();
    node.evict();
    drop_page_cache();
    assert_eq!(stamp(&path), written, "neither is an upload or an eviction");

    // To the nanosecond, before 1970 and after 2038, and only what was asked for.
    let set = |a: (i64, i64), m: (i64, i64)| {
        let of = |(tv_sec, tv_nsec): (i64, i64)| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: of(a),
            last_modification: of(m),
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).expect("utimensat");
    };
    set((1, 999_999_999), (5_000_000_000, 1));
    let m = std::fs::metadata(&path).expect("stat");
    assert_eq!(
        (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec()),
        (1, 999_999_999, 5_000_000_000, 1)
    );
    set((-5, 0), (-1, 500_000_000));
    let m = std::fs::metadata(&path).expect("stat");
    assert_eq!(
        (m.atime(), m.mtime(), m.mtime_nsec()),
        (-5, -1, 500_000_000)
    );
    let omit: i64 = libc::UTIME_OMIT;
    set((7, 0), (0, omit));
    let m = std::fs::metadata(&path).expect("stat");
    assert_eq!((m.atime(), m.mtime()), (7, -1));

    // A time set while the file is open for writing, after the write, stays: what tar and rsync do.
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all_at(&[2; 5_000], 0).expect("write");
    set((9, 9), (10, 10));
    drop(file);
    node.flush();
    node.evict();
    drop_page_cache();
    let m = std::fs::metadata(&path).expect("stat");
    assert_eq!((m.atime(), m.mtime()), (9, 10));
}

#[test]
fn a_write_through_a_mapping_sets_the_times_at_msync() {
    let _one = serial();
    let (_, here) = shared_folder("mapped");
    let path = here.join("file");
    std::fs::write(&path, vec![0; 8192]).expect("write");
    let fd = rustix::fs::open(&path, OFlags::RDWR, Mode::empty()).expect("open");
    let map = fastcache_tests::Mapping::shared(&fd, 8192);
    let at_msync = changed(&path, || {
        map.write(100, b"mapped");
        map.sync();
    });
    assert_eq!(at_msync, "mc");
    assert_eq!(&std::fs::read(&path).expect("read")[100..106], b"mapped");
}
