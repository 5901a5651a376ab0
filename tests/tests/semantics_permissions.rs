//! Promise: who may do what is decided as on ext4: groups, sticky and setuid bits; extended attributes have ext4's errors
//! and limits of their own; ACLs are refused (docs/semantics.md).

use fastcache_tests::{drop_page_cache, output_of, serial, shared_folder, wait_until};
use rustix::fs::{AtFlags, CWD, StatxFlags, XattrFlags};
use rustix::io::Errno;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

/// Users and groups without any privilege; no names are needed.
const ALICE: u32 = 61_001;
const BOB: u32 = 61_002;
const TEAM: u32 = 61_100;

/// A shell script in `here`, as a user with these groups (the first one is the primary).
fn shell_as(user: u32, groups: &[u32], here: &Path, script: &str) -> Output {
    let all: Vec<String> = groups.iter().map(ToString::to_string).collect();
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={}", groups[0]))
        .arg(format!("--groups={}", all.join(",")))
        .args(["bash", "-euc", script])
        .env("LC_ALL", "C")
        .current_dir(here);
    output_of(&mut command)
}

#[track_caller]
fn may(user: u32, groups: &[u32], here: &Path, script: &str) {
    let out = shell_as(user, groups, here, script);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{user} {groups:?}: {script}: {said}");
}

/// The script fails, and says why.
#[track_caller]
fn may_not(user: u32, groups: &[u32], here: &Path, script: &str, why: &str) {
    let out = shell_as(user, groups, here, script);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{user} {groups:?}: {script}");
    assert!(said.contains(why), "{user} {groups:?}: {script}: {said}");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("stat").mode() & 0o7777
}

const DENIED: &str = "Permission denied";
const NOT_PERMITTED: &str = "Operation not permitted";

#[test]
fn supplementary_groups_count() {
    let _one = serial();
    let (_, here) = shared_folder("groups");
    let dir = here.join("team");
    std::fs::create_dir(&dir).expect("mkdir");
    std::os::unix::fs::chown(&dir, Some(0), Some(TEAM)).expect("chown");
    set_mode(&dir, 0o2770);
    may(
        ALICE,
        &[ALICE, TEAM],
        &here,
        "echo alice >team/file; mkdir team/sub",
    );
    may_not(BOB, &[BOB], &here, "cat team/file", DENIED);
    may(BOB, &[BOB, 1, 2, 3, TEAM], &here, "cat team/file");
    // In a directory with setgid everything gets its group, and directories the bit.
    let m = std::fs::metadata(dir.join("file")).expect("stat");
    assert_eq!((m.uid(), m.gid()), (ALICE, TEAM));
    let m = std::fs::metadata(dir.join("sub")).expect("stat");
    assert_eq!((m.gid(), m.mode() & 0o2000), (TEAM, 0o2000));
    may_not(BOB, &[BOB, TEAM], &here, "echo bob >team/file", DENIED);
    may(ALICE, &[ALICE, TEAM], &here, "chmod 0660 team/file");
    may(BOB, &[BOB, TEAM], &here, "echo bob >>team/file");
    // An owner gives a file to a group of its own, to no other, and to nobody else.
    may(
        ALICE,
        &[ALICE, TEAM],
        &here,
        "echo x >own; chgrp 61100 own; chmod 666 own",
    );
    may_not(
        ALICE,
        &[ALICE, TEAM],
        &here,
        "chgrp 61002 own",
        NOT_PERMITTED,
    );
    may_not(
        ALICE,
        &[ALICE, TEAM],
        &here,
        "chown 61002 own",
        NOT_PERMITTED,
    );
    may_not(BOB, &[BOB, TEAM], &here, "chmod 777 own", NOT_PERMITTED);
    may_not(
        BOB,
        &[BOB, TEAM],
        &here,
        "touch -d 2001-01-01 own",
        NOT_PERMITTED,
    );
    // Who is not in the file's group cannot set its setgid bit.
    std::os::unix::fs::chown(here.join("own"), Some(ALICE), Some(0)).expect("chown");
    may(ALICE, &[ALICE], &here, "chmod 2755 own");
    assert_eq!(mode(&here.join("own")), 0o755);
}

#[test]
fn the_sticky_bit_protects_names() {
    let _one = serial();
    let (_, here) = shared_folder("sticky");
    let dir = here.join("tmp");
    std::fs::create_dir(&dir).expect("mkdir");
    set_mode(&dir, 0o1777);
    may(
        ALICE,
        &[ALICE],
        &dir,
        "echo alice >file; chmod 666 file; mkdir sub; chmod 777 sub",
    );
    may(BOB, &[BOB], &dir, "echo bob >>file; echo bob >own");
    may_not(BOB, &[BOB], &dir, "rm -f file", NOT_PERMITTED);
    may_not(BOB, &[BOB], &dir, "mv file other", NOT_PERMITTED);
    may_not(BOB, &[BOB], &dir, "mv -f own file", NOT_PERMITTED);
    may_not(BOB, &[BOB], &dir, "rmdir sub", NOT_PERMITTED);
    may(BOB, &[BOB], &dir, "mv own other; rm other");
    may(ALICE, &[ALICE], &dir, "mv file other; rm other; rmdir sub");
    // The directory's owner may, too.
    std::os::unix::fs::chown(&dir, Some(BOB), None).expect("chown");
    set_mode(&dir, 0o1777);
    may(ALICE, &[ALICE], &dir, "echo alice >file");
    may(BOB, &[BOB], &dir, "rm -f file");
}

#[test]
fn setuid_and_setgid_go_with_a_write_a_truncation_and_a_chown() {
    let _one = serial();
    let (node, here) = shared_folder("setuid");
    let path = here.join("file");
    let fresh = |mode: u32| {
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, b"#!/bin/true\n").expect("write");
        std::os::unix::fs::chown(&path, Some(ALICE), Some(TEAM)).expect("chown");
        set_mode(&path, mode);
    };
    let cases: [(&str, u32, u32); 9] = [
        ("echo x >>file", 0o6777, 0o777),
        ("echo x >file", 0o6777, 0o777),
        ("truncate -s 3 file", 0o6777, 0o777),
        ("truncate -s 100 file", 0o4777, 0o777),
        ("fallocate -l 1000 file", 0o6777, 0o777),
        (
            "dd if=/dev/zero of=file bs=4096 count=1 oflag=direct conv=notrunc status=none",
            0o6777,
            0o777,
        ),
        // Without execution by the group, setgid stands for mandatory locking and stays.
        ("echo x >>file", 0o2767, 0o2767),
        ("cat file", 0o6777, 0o6777),
        ("chmod 600 own; true", 0o6777, 0o6777),
    ];
    for (script, before, after) in cases {
        fresh(before);
        may(
            BOB,
            &[BOB],
            &here,
            &format!("touch own; {{ {script}; }} >/dev/null"),
        );
        assert_eq!(mode(&path), after, "{script} on {before:o}");
        node.flush();
        assert_eq!(
            mode(&path),
            after,
            "{script} on {before:o}, when it is committed"
        );
        std::fs::remove_file(here.join("own")).expect("unlink");
    }
    // The kernel forgets the mode it knew, which a write does not make it ask for: else it would run what was overwritten
    // as its owner.
    fresh(0o6777);
    let known = || {
        let stat = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::MODE);
        u32::from(stat.expect("statx").stx_mode) & 0o7777
    };
    assert_eq!(known(), 0o6777);
    may(BOB, &[BOB], &here, "echo x >>file");
    wait_until(
        "the mode alone is told anew",
        Duration::from_secs(30),
        || known() == 0o777,
    );
    // Root writes without taking them; a chown takes them, whoever does it, but not from a directory.
    fresh(0o6755);
    std::fs::write(&path, b"root").expect("write");
    assert_eq!(mode(&path), 0o6755);
    std::os::unix::fs::chown(&path, Some(BOB), Some(BOB)).expect("chown");
    assert_eq!(mode(&path), 0o755);
    fresh(0o6755);
    may(ALICE, &[ALICE, TEAM, 5], &here, "chgrp 5 file");
    assert_eq!(mode(&path), 0o755);
    let dir = here.join("dir");
    std::fs::create_dir(&dir).expect("mkdir");
    set_mode(&dir, 0o7755);
    std::os::unix::fs::chown(&dir, Some(BOB), Some(BOB)).expect("chown");
    assert_eq!(mode(&dir), 0o7755);
}

#[test]
fn capabilities_of_a_program_go_with_a_write() {
    let _one = serial();
    let (_, here) = shared_folder("capabilities");
    let path = here.join("file");
    std::fs::write(&path, b"x").expect("write");
    set_mode(&path, 0o777);
    // cap_net_bind_service+ep, as setcap(8) writes it (VFS_CAP_REVISION_2).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let name = "security.capability";
    let mut buf = [0; 64];
    for script in ["echo y >>file", "truncate -s 0 file", "chown 61002 file"] {
        rustix::fs::setxattr(&path, name, &capability, XattrFlags::empty()).expect("setxattr");
        assert_eq!(rustix::fs::getxattr(&path, name, &mut buf), Ok(20));
        if script.starts_with("chown") {
            std::os::unix::fs::chown(&path, Some(BOB), None).expect("chown");
        } else {
            may(BOB, &[BOB], &here, script);
        }
        let left = rustix::fs::getxattr(&path, name, &mut buf);
        assert_eq!(left, Err(Errno::NODATA), "{script}");
    }
}

#[test]
fn extended_attributes_have_limits_and_names_of_ext4() {
    let _one = serial();
    let (node, here) = shared_folder("xattr");
    let path = here.join("file");
    std::fs::write(&path, b"x").expect("write");
    let set =
        |name: &str, value: &[u8]| rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
    let get = |name: &str| {
        let mut buf = vec![0; 65536];
        rustix::fs::getxattr(&path, name, &mut buf).map(|n| buf[..n].to_vec())
    };
    let remove = |name: &str| rustix::fs::removexattr(&path, name);
    // Name: 255 bytes; value: 64 KiB, empty ones included.
    let longest = format!("user.{}", "n".repeat(250));
    assert_eq!(set(&longest, b"1"), Ok(()));
    assert_eq!(set(&format!("{longest}n"), b"1"), Err(Errno::RANGE));
    assert_eq!(set("user.", b"1"), Err(Errno::INVAL));
    assert_eq!(set("user.big", &[1; 65536]), Ok(()));
    assert_eq!(set("user.big", &[2; 65537]), Err(Errno::TOOBIG));
    assert_eq!(set("user.empty", b""), Ok(()));
    assert_eq!(set("user.bytes", b"\0\xff\n"), Ok(()));
    assert_eq!(get("user.big").map(|v| v == [1; 65536]), Ok(true));
    assert_eq!(get("user.empty"), Ok(Vec::new()));
    assert_eq!(get("user.none"), Err(Errno::NODATA));
    assert_eq!(remove("user.none"), Err(Errno::NODATA));
    let mut small = [0; 10];
    assert_eq!(
        rustix::fs::getxattr(&path, "user.big", &mut small),
        Err(Errno::RANGE)
    );
    let create = rustix::fs::setxattr(&path, "user.empty", b"", XattrFlags::CREATE);
    assert_eq!(create, Err(Errno::EXIST));
    let replace = rustix::fs::setxattr(&path, "user.none", b"", XattrFlags::REPLACE);
    assert_eq!(replace, Err(Errno::NODATA));
    // The namespaces.
    assert_eq!(set("trusted.t", b"1"), Ok(()));
    assert_eq!(set("security.s", b"1"), Ok(()));
    for name in ["nothing", "system.other", "fastcache.x"] {
        assert_eq!(set(name, b"1"), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(get(name), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(remove(name), Err(Errno::OPNOTSUPP), "{name}");
    }
    assert_eq!(set("user.fastcache.state", b"dirty"), Err(Errno::PERM));
    let names = || {
        let mut buf = vec![0; 65536];
        let n = rustix::fs::listxattr(&path, &mut buf).expect("listxattr");
        let mut names: Vec<String> = String::from_utf8_lossy(&buf[..n])
            .split_terminator('\0')
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    let mut want = vec![
        longest.as_str(),
        "user.big",
        "user.empty",
        "user.bytes",
        "trusted.t",
        "security.s",
    ];
    want.sort_unstable();
    assert_eq!(names(), want);
    // user.* is for files and directories, as the permissions of others mean nothing.
    std::os::unix::fs::symlink("file", here.join("link")).expect("symlink");
    let on_link = rustix::fs::lsetxattr(here.join("link"), "user.a", b"1", XattrFlags::empty());
    assert_eq!(on_link, Err(Errno::PERM));
    // All attributes of one inode: 1 MiB, ENOSPC beyond; nothing is lost by that, and room comes back.
    let mut n = 0;
    let full = loop {
        match set(&format!("user.fill{n}"), &[3; 65536]) {
            Ok(()) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 100, "no end");
    };
    assert_eq!((full, n), (Errno::NOSPC, 14));
    node.flush();
    drop_page_cache();
    assert_eq!(get("user.fill13").map(|v| v == [3; 65536]), Ok(true));
    assert_eq!(names().len(), want.len() + 14);
    assert_eq!(remove("user.fill3"), Ok(()));
    assert_eq!(set("user.again", &[4; 65536]), Ok(()));
    // And no more names than listxattr(2) can tell: 64 KiB.
    let path = here.join("names");
    std::fs::write(&path, b"").expect("write");
    let mut n = 0;
    while rustix::fs::setxattr(&path, format!("user.{n:0>250}"), b"", XattrFlags::empty()).is_ok() {
        n += 1;
        assert!(n < 1000, "no end");
    }
    let mut buf = vec![0; 65536];
    assert_eq!(
        (rustix::fs::listxattr(&path, &mut buf), n),
        (Ok(256 * 256), 256)
    );
}

#[test]
fn acls_are_refused() {
    let _one = serial();
    let (_, here) = shared_folder("acl");
    let path = here.join("file");
    std::fs::write(&path, b"x").expect("write");
    // user::rw-, group::r--, other::r-- and bob: what setfacl(1) would set.
    let entry = |tag: u16, perm: u16, id: u32| {
        [
            &tag.to_le_bytes()[..],
            &perm.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let none = u32::MAX;
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 6, none),
        entry(2, 6, BOB),
        entry(4, 4, none),
        entry(0x10, 6, none),
        entry(0x20, 4, none),
    ]
    .concat();
    for (name, at) in [
        ("system.posix_acl_access", &path),
        ("system.posix_acl_access", &here),
        ("system.posix_acl_default", &here),
    ] {
        let set = rustix::fs::setxattr(at, name, &acl, XattrFlags::empty());
        assert_eq!(set, Err(Errno::OPNOTSUPP), "{name}");
        let get = rustix::fs::getxattr(at, name, &mut [0; 100]);
        assert_eq!(get, Err(Errno::OPNOTSUPP), "{name}");
    }
    // The umask is therefore applied as ever, and `ls` and `cp -a` have nothing to complain about.
    let out = shell_as(
        ALICE,
        &[ALICE],
        &here,
        "umask 027; touch made; ls -l made; cp -a made copy",
    );
    assert!(out.status.success() && out.stderr.is_empty());
    assert_eq!(mode(&here.join("made")), 0o640);
    assert_eq!(
        rustix::fs::access(&path, rustix::fs::Access::READ_OK),
        Ok(())
    );
}
