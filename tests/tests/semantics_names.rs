//! Promise: names, directories and special files behave as on ext4; what has lost its name lives until it is closed
//! (docs/semantics.md).

use fastcache_tests::{
    Bytes, Http, Plane, drop_page_cache, run, serial, shared_folder, wait_until,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn names_in(dir: &Path) -> BTreeSet<OsString> {
    std::fs::read_dir(dir)
        .expect("readdir")
        .map(|e| e.expect("entry").file_name())
        .collect()
}

#[test]
fn a_directory_has_two_links_and_one_for_each_subdirectory() {
    let _one = serial();
    let (_, here) = shared_folder("nlink");
    let nlink = |name: &str| std::fs::metadata(here.join(name)).expect("stat").nlink();
    for dir in ["a", "b", "a/x", "a/y"] {
        std::fs::create_dir(here.join(dir)).expect("mkdir");
    }
    std::fs::write(here.join("a/file"), b"").expect("write");
    assert_eq!(
        [nlink("a"), nlink("b"), nlink("a/x"), nlink("")],
        [4, 2, 2, 4]
    );
    let rename = |from: &str, to: &str| std::fs::rename(here.join(from), here.join(to));
    rename("a/x", "b/x").expect("rename");
    assert_eq!([nlink("a"), nlink("b")], [3, 3]);
    // Over an empty directory; over a full one: ENOTEMPTY; into itself: EINVAL.
    rename("a/y", "b/x").expect("rename over an empty directory");
    assert_eq!([nlink("a"), nlink("b")], [2, 3]);
    let errno = |r: std::io::Result<()>| r.expect_err("must fail").raw_os_error();
    std::fs::create_dir(here.join("a/z")).expect("mkdir");
    assert_eq!(errno(rename("a", "b")), Some(libc::ENOTEMPTY));
    assert_eq!(errno(rename("a", "a/z/a")), Some(libc::EINVAL));
    let exchange = RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(CWD, here.join("a/file"), CWD, here.join("b/x"), exchange)
        .expect("exchange a file and a directory");
    assert_eq!([nlink("a"), nlink("b")], [4, 2]);
    std::fs::remove_dir(here.join("a/z")).expect("rmdir");
    std::fs::remove_dir(here.join("a/file")).expect("rmdir");
    assert_eq!([nlink("a"), nlink("")], [2, 4]);
    let hard_link = rustix::fs::linkat(CWD, here.join("a"), CWD, here.join("c"), AtFlags::empty());
    assert_eq!(hard_link, Err(Errno::PERM));
    // A directory that was removed while it is open: no links, nothing in it, nothing can be made in it.
    let open = File::open(here.join("b")).expect("open");
    std::fs::remove_file(here.join("b/x")).expect("unlink");
    std::fs::remove_dir(here.join("b")).expect("rmdir");
    assert_eq!(open.metadata().expect("fstat").nlink(), 0);
    let inside = rustix::fs::openat(&open, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
    assert_eq!(inside.map(drop), Err(Errno::NOENT));
}

#[test]
fn a_rename_over_an_open_file_leaves_its_readers_the_old_bytes() {
    let _one = serial();
    let (node, here) = shared_folder("rename-over");
    let path = here.join("file");
    let (old, new) = (
        Bytes::of(1).range(0, 5_000_000),
        Bytes::of(2).range(0, 3_000_000),
    );
    std::fs::write(&path, &old).expect("write");
    let reader = File::open(&path).expect("open");
    let writer = OpenOptions::new().write(true).open(&path).expect("open");
    std::fs::write(here.join("new"), &new).expect("write");
    node.flush();
    std::fs::rename(here.join("new"), &path).expect("rename");
    assert_eq!(reader.metadata().expect("fstat").nlink(), 0);
    assert!(std::fs::read(&path).expect("read") == new);
    writer
        .write_all_at(b"still", 100)
        .expect("a write to the old file");
    for round in ["at once", "after eviction"] {
        let mut got = vec![0; old.len()];
        reader.read_exact_at(&mut got, 0).expect("read");
        assert_eq!(&got[100..105], b"still", "{round}");
        got[100..105].copy_from_slice(&old[100..105]);
        assert!(got == old, "{round}");
        node.flush();
        node.evict();
        drop_page_cache();
    }
    assert!(std::fs::read(&path).expect("read") == new);
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed_and_then_gives_its_space_back() {
    let _one = serial();
    let (node, here) = shared_folder("unlinked");
    let path = here.join("file");
    let bytes = Bytes::of(3);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("open");
    file.write_all_at(&bytes.range(0, 9_000_000), 0)
        .expect("write");
    node.flush();
    std::fs::remove_file(&path).expect("unlink");
    assert_eq!(names_in(&here).len(), 0);
    node.evict();
    drop_page_cache();
    let check = |when: &str, from: u64, len: usize| {
        let mut got = vec![0; len];
        file.read_exact_at(&mut got, from)
            .unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_eq!(bytes.first_difference(from, &got), None, "{when}");
    };
    check("evicted, from the cloud", 0, 9_000_000);
    // It can still be written, extended, cut, synced, and its attributes changed.
    file.write_all_at(&bytes.range(9_000_000, 20_000_000), 9_000_000)
        .expect("write");
    file.sync_all().expect("fsync");
    node.evict();
    drop_page_cache();
    check("written without a name, evicted", 0, 29_000_000);
    file.set_len(12_000_000).expect("cut");
    check("cut", 0, 12_000_000);
    let m = file.metadata().expect("fstat");
    assert_eq!((m.nlink(), m.size()), (0, 12_000_000));
    rustix::fs::fchmod(&file, Mode::RUSR).expect("fchmod");
    // It gets no name again: as on ext4.
    let fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let again = rustix::fs::linkat(CWD, fd, CWD, here.join("again"), AtFlags::SYMLINK_FOLLOW);
    assert_eq!(again, Err(Errno::NOENT));
    let used = node.stat("used_bytes");
    drop(file);
    wait_until(
        "its room on NVMe is free again",
        Duration::from_secs(20),
        || node.stat("used_bytes") + 11_000_000 <= used,
    );
}

#[test]
fn names_are_bytes() {
    let _one = serial();
    let (node, here) = shared_folder("bytes");
    let mut names: Vec<Vec<u8>> = (1..=255)
        .filter(|b| *b != b'/')
        .map(|b| vec![b'n', b])
        .collect();
    names.push(b"two\nlines\n".to_vec());
    names.push(b"\xff\xfe not UTF-8 \xc3".to_vec());
    names.push(b" leading and trailing ".to_vec());
    names.push(b"-rf".to_vec());
    names.push(b"...".to_vec());
    names.push("名前\u{301}".as_bytes().to_vec());
    names.push(vec![0xe4; 255]);
    let dir = here.join(OsString::from_vec(b"a\ndirectory \xff".to_vec()));
    std::fs::create_dir(&dir).expect("mkdir");
    let at = |name: &[u8]| dir.join(OsString::from_vec(name.to_vec()));
    for name in &names {
        std::fs::write(at(name), name).unwrap_or_else(|e| panic!("{name:?}: {e}"));
    }
    let target = b"target \n\xff\xfe";
    std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), at(b"link")).expect("symlink");
    let all = || -> BTreeSet<Vec<u8>> {
        names_in(&dir)
            .into_iter()
            .map(OsString::into_vec)
            .filter(|n| n != b"link")
            .collect()
    };
    let want: BTreeSet<Vec<u8>> = names.iter().cloned().collect();
    assert!(all() == want);
    node.flush();
    node.evict();
    drop_page_cache();
    std::fs::write("/proc/sys/vm/drop_caches", "2").expect("drop the names, too");
    assert!(all() == want, "after eviction");
    for name in &names {
        assert_eq!(&std::fs::read(at(name)).expect("read"), name);
        std::fs::rename(at(name), at(b"moved")).expect("rename");
        std::fs::rename(at(b"moved"), at(name)).expect("rename");
    }
    let read = std::fs::read_link(at(b"link")).expect("readlink");
    assert_eq!(read.as_os_str().as_bytes(), target);
    // The operator's command shows them without breaking its lines.
    let state = run(Command::new(fastcache_tests::program("fastcache-ctl"))
        .args(["state", "--dir"])
        .arg(node.dir())
        .arg(at(b"two\nlines\n")));
    assert!(state.contains("persisted"), "{state}");
}

#[test]
fn names_end_at_255_bytes_and_paths_at_4096() {
    let _one = serial();
    let (_, here) = shared_folder("long");
    let errno = |r: std::io::Result<()>| r.map_err(|e| e.raw_os_error().unwrap_or(0));
    let name = |n: usize| here.join("n".repeat(n));
    assert_eq!(errno(std::fs::create_dir(name(255))), Ok(()));
    for n in [256, 1024, 1025, 4000] {
        let long = Err(libc::ENAMETOOLONG);
        assert_eq!(errno(std::fs::create_dir(name(n))), long, "mkdir {n}");
        assert_eq!(errno(File::create(name(n)).map(drop)), long, "create {n}");
        assert_eq!(
            errno(std::fs::metadata(name(n)).map(drop)),
            long,
            "stat {n}"
        );
        assert_eq!(
            errno(std::fs::rename(name(255), name(n))),
            long,
            "rename {n}"
        );
        assert_eq!(
            errno(std::os::unix::fs::symlink("x", name(n))),
            long,
            "symlink {n}"
        );
    }
    // A path of 5,000 bytes is refused; the same place is reached in steps, and holds as much as any other.
    let deep = here.join("deep");
    std::fs::create_dir(&deep).expect("mkdir");
    let step = "d".repeat(200);
    let mut dir = rustix::fs::open(&deep, OFlags::DIRECTORY, Mode::empty()).expect("open");
    for _ in 0..25 {
        rustix::fs::mkdirat(&dir, &step, Mode::RWXU).expect("mkdirat");
        dir = rustix::fs::openat(&dir, &step, OFlags::DIRECTORY, Mode::empty()).expect("openat");
    }
    let flags = OFlags::CREATE | OFlags::RDWR;
    let file = rustix::fs::openat(&dir, "file", flags, Mode::RUSR | Mode::WUSR).expect("openat");
    File::from(file).write_all_at(b"deep", 0).expect("write");
    let path = deep.join(vec![step; 25].join("/"));
    assert!(path.as_os_str().len() > 5_000);
    assert_eq!(
        errno(std::fs::metadata(&path).map(drop)),
        Err(libc::ENAMETOOLONG)
    );
    let target = |n: usize| std::os::unix::fs::symlink("t".repeat(n), here.join("link"));
    assert_eq!(errno(target(4096)), Err(libc::ENAMETOOLONG));
    assert_eq!(errno(target(4095)), Ok(()));
    assert_eq!(
        std::fs::read_link(here.join("link"))
            .expect("readlink")
            .as_os_str()
            .len(),
        4095
    );
    run(Command::new("rm").arg("-r").arg(&deep));
}

#[test]
fn a_directory_of_3000_names_is_listed_once_each_while_it_changes() {
    let _one = serial();
    let (_, here) = shared_folder("many");
    for n in 0..3_000 {
        let at = here.join(format!("{n:05}"));
        rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).expect("mknod");
    }
    let mut seen = BTreeSet::new();
    for (n, entry) in std::fs::read_dir(&here).expect("readdir").enumerate() {
        let name = entry.expect("entry").file_name();
        // Others come, go and move while the listing is on its way.
        if n % 100 == 0 {
            std::fs::write(here.join(format!("new{n}")), b"").expect("write");
            std::fs::rename(here.join(format!("new{n}")), here.join(format!("moved{n}")))
                .expect("rename");
            std::fs::remove_file(here.join(format!("moved{n}"))).expect("unlink");
        }
        assert!(seen.insert(name.clone()), "{} twice", name.display());
    }
    let stayed = seen.iter().filter(|n| n.len() == 5).count();
    assert_eq!(stayed, 3_000);
    // Removing what was listed, while listing, empties the directory.
    for entry in std::fs::read_dir(&here).expect("readdir") {
        std::fs::remove_file(entry.expect("entry").path()).expect("unlink");
    }
    std::fs::remove_dir(&here).expect("it is empty");
}

#[test]
fn fifos_sockets_and_devices_can_be_made_and_used() {
    let _one = serial();
    let (_, here) = shared_folder("special");
    let fifo = here.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo");
    assert!(
        std::fs::metadata(&fifo)
            .expect("stat")
            .file_type()
            .is_fifo()
    );
    // Nobody reads: a writer that does not want to wait is told so.
    let alone = rustix::fs::open(&fifo, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
    assert_eq!(alone.map(drop), Err(Errno::NXIO));
    let mut cat = Command::new("cat")
        .arg(&fifo)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("cat");
    File::options()
        .write(true)
        .open(&fifo)
        .expect("open")
        .write_all(b"through")
        .expect("write");
    let mut text = String::new();
    cat.stdout
        .take()
        .expect("stdout")
        .read_to_string(&mut text)
        .expect("read");
    assert!(cat.wait().expect("wait").success());
    assert_eq!(text, "through");

    // A socket's path is short: 108 bytes with what is before it.
    let listener = std::os::unix::net::UnixListener::bind(here.join("socket")).expect("bind");
    let mut client = std::os::unix::net::UnixStream::connect(here.join("socket")).expect("connect");
    let (mut served, _) = listener.accept().expect("accept");
    client.write_all(b"hello").expect("write");
    let mut got = [0; 5];
    served.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"hello");
    let again = std::os::unix::net::UnixListener::bind(here.join("socket")).expect_err("in use");
    assert_eq!(again.raw_os_error(), Some(libc::EADDRINUSE));

    let null = here.join("null");
    let device = rustix::fs::makedev(1, 3);
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, mode, device).expect("mknod");
    let m = std::fs::metadata(&null).expect("stat");
    assert!(m.file_type().is_char_device() && m.rdev() == device);
    File::options()
        .write(true)
        .open(&null)
        .expect("open")
        .write_all(b"gone")
        .expect("write");
    assert_eq!(std::fs::read(&null).expect("read"), b"");
    let zram = here.join("block");
    rustix::fs::mknodat(
        CWD,
        &zram,
        FileType::BlockDevice,
        mode,
        rustix::fs::makedev(259, 1_048_575),
    )
    .expect("mknod");
    let m = std::fs::metadata(&zram).expect("stat");
    assert!(m.file_type().is_block_device() && m.rdev() == rustix::fs::makedev(259, 1_048_575));
}

#[test]
fn what_is_not_there_is_refused_in_words_programs_know() {
    let _one = serial();
    let (_, here) = shared_folder("refused");
    let tmpfile = rustix::fs::open(&here, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    assert_eq!(tmpfile.map(drop), Err(Errno::OPNOTSUPP));
    std::fs::write(here.join("a"), b"1").expect("write");
    let rename = |flags| rustix::fs::renameat_with(CWD, here.join("a"), CWD, here.join("b"), flags);
    assert_eq!(rename(RenameFlags::WHITEOUT), Err(Errno::INVAL));
    assert_eq!(rename(RenameFlags::EXCHANGE), Err(Errno::NOENT));
    assert_eq!(rename(RenameFlags::NOREPLACE), Ok(()));
    std::fs::write(here.join("a"), b"2").expect("write");
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename(RenameFlags::EXCHANGE), Ok(()));
    assert_eq!(std::fs::read(here.join("b")).expect("read"), b"2");
    let outside = std::fs::rename(here.join("b"), "/tmp/fastcache-elsewhere").expect_err("rename");
    assert_eq!(outside.raw_os_error(), Some(libc::EXDEV));
}

#[test]
fn after_a_kill_an_unlinked_open_file_is_gone_and_its_space_is_back() {
    let _one = serial();
    let (node, here) = shared_folder("killed");
    let path = here.join("file");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("open");
    file.write_all_at(&Bytes::of(4).range(0, 30_000_000), 0)
        .expect("write");
    file.sync_all().expect("fsync");
    std::fs::write(here.join("stays"), b"1").expect("write");
    std::fs::remove_file(&path).expect("unlink");
    let used = node.stat("used_bytes");
    assert!(node.kill(Plane::Data));
    node.wait_for_return();
    // The descriptor belongs to the mount that died; all it can still tell is what the page cache has.
    let dead = file
        .write_at(b"lost", 0)
        .expect_err("a write")
        .raw_os_error();
    assert!(
        matches!(dead, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)),
        "{dead:?}"
    );
    drop(file);
    assert_eq!(names_in(&here).into_iter().collect::<Vec<_>>(), ["stays"]);
    wait_until("its room is free again", Duration::from_secs(30), || {
        node.stat("used_bytes") + 29_000_000 <= used
    });
}

#[test]
fn what_was_looked_for_in_vain_is_found_as_soon_as_it_is_made() {
    let _one = serial();
    let (node, here) = shared_folder("in-vain");
    let http = Http::on(node.port());
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    // In a folder that the mount made, in one that REST made, and in one that is not there yet.
    http.ask("PUT", "/api/files/in-vain/rest/first", &[], b"x");
    std::fs::create_dir(here.join("mount")).expect("mkdir");
    for round in 0..20 {
        for folder in ["mount", "rest", &format!("none-{round}")] {
            let name = format!("{folder}/{round}");
            let path = here.join(&name);
            for _ in 0..3 {
                assert!(!is_there(&path), "{name}");
            }
            let url = format!("/api/files/in-vain/{name}");
            assert_eq!(http.ask("PUT", &url, &[], b"12345").status, 200);
            assert!(is_there(&path), "{name} after its PUT");
            assert_eq!(std::fs::read(&path).expect("read"), b"12345");
            assert_eq!(http.ask("DELETE", &url, &[], b"").status, 204);
            assert!(!is_there(&path), "{name} after its DELETE");
            std::fs::write(&path, b"again").expect("write");
            std::fs::rename(&path, here.join("elsewhere")).expect("rename");
            assert!(!is_there(&path), "{name} after its rename");
            std::fs::hard_link(here.join("elsewhere"), &path).expect("link");
            assert!(is_there(&path), "{name} after its link");
            std::fs::remove_file(&path).expect("unlink");
            assert!(!is_there(&path), "{name} after its unlink");
        }
    }
}
