//! Answers: golden bytes, sizes, and what the kernel's flags are taken to mean.

use crate::handlers::meaning::{open_out, rename_mode, set_attr_of, sized, xattr_mode};
use crate::reply::{
    ListedEntry, Listing, Reply, attr_out, encode, kind_of_mode, negative_entry, type_bits,
};
use crate::wire::flags::{fattr, fopen};
use crate::wire::{EntryOut, SetattrIn};
use fastcache_api::{Attr, Errno, Ino, Kind, RenameMode, Time, Version, XattrMode};
use fastcache_cache::Opened;
use std::time::Duration;
use zerocopy::FromZeros;

#[test]
fn errors_are_negated_and_in_the_kernels_range() {
    let bytes = encode(9, Reply::Error(Errno::ENOENT)).unwrap();
    assert_eq!(bytes[..4], 16_u32.to_ne_bytes());
    assert_eq!(bytes[4..8], (-2_i32).to_ne_bytes());
    assert_eq!(bytes[8..16], 9_u64.to_ne_bytes());
    let bytes = encode(9, Reply::Error(Errno::from_code(4000))).unwrap();
    assert_eq!(bytes[4..8], (-5_i32).to_ne_bytes());
    assert_eq!(encode(9, Reply::Silent), None);
    assert_eq!(encode(9, Reply::Done).unwrap().len(), 16);
    assert_eq!(
        encode(9, Reply::raw(b"abc")).unwrap()[..4],
        19_u32.to_ne_bytes()
    );
}

fn entry(name: &[u8], cookie: u64) -> ListedEntry<'_> {
    ListedEntry {
        ino: Ino(5),
        kind: Kind::File,
        cookie,
        name,
    }
}

fn bytes_of(reply: Reply) -> Vec<u8> {
    encode(1, reply).unwrap()[16..].to_vec()
}

#[test]
fn a_listing_is_padded_and_ends_where_the_room_does() {
    let mut listing = Listing::new(64);
    assert!(listing.push(&entry(b"abc", 3), None));
    assert!(listing.push(&entry(b"12345678", 4), None));
    assert!(!listing.push(&entry(b"x", 5), None));
    let bytes = bytes_of(listing.into_reply());
    assert_eq!(bytes.len(), 64);
    assert_eq!(bytes[8..16], 3_u64.to_ne_bytes());
    assert_eq!(bytes[16..20], 3_u32.to_ne_bytes());
    assert_eq!(bytes[20..24], 8_u32.to_ne_bytes());
    assert_eq!(&bytes[24..32], b"abc\0\0\0\0\0");
    assert_eq!(bytes[40..48], 4_u64.to_ne_bytes());
}

#[test]
fn readdirplus_has_an_entry_in_front() {
    let mut listing = Listing::new(4096);
    let head = EntryOut {
        nodeid: 5,
        ..EntryOut::new_zeroed()
    };
    assert!(listing.push(&entry(b"abc", 3), Some(&head)));
    let bytes = bytes_of(listing.into_reply());
    assert_eq!(bytes.len(), 160);
    assert_eq!(bytes[..8], 5_u64.to_ne_bytes());
    assert_eq!(&bytes[152..155], b"abc");
    assert_eq!(Listing::capacity(4096, true), 25);
    assert_eq!(Listing::capacity(4096, false), 128);
}

#[test]
fn a_negative_entry_has_no_inode() {
    let bytes = bytes_of(negative_entry(Duration::from_millis(1500)));
    assert_eq!(bytes.len(), 128);
    assert_eq!(bytes[..8], [0; 8]);
    assert_eq!(bytes[16..24], 1_u64.to_ne_bytes());
    assert_eq!(bytes[32..36], 500_000_000_u32.to_ne_bytes());
}

#[test]
fn attributes_carry_type_and_space() {
    let t = Time { sec: -1, nsec: 5 };
    let attr = Attr {
        ino: Ino(5),
        kind: Kind::File,
        mode: 0o4755,
        nlink: 2,
        uid: 1,
        gid: 2,
        rdev: 0,
        size: 1 << 40,
        allocated: 8192,
        atime: t,
        mtime: t,
        ctime: t,
        chunk_size: 4 << 20,
        layout_version: Version::NONE,
        seq: 1,
    };
    let out = attr_out(&attr);
    assert_eq!(out.mode, 0o104_755);
    assert_eq!(out.blocks, 16);
    assert_eq!(out.mtime, u64::MAX);
    assert_eq!(out.mtimensec, 5);
}

#[test]
fn kinds_survive_the_mode() {
    for kind in [
        Kind::File,
        Kind::Dir,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::Char,
        Kind::Block,
    ] {
        assert_eq!(kind_of_mode(type_bits(kind) | 0o644), Some(kind));
    }
    assert_eq!(kind_of_mode(0o644), Some(Kind::File));
    assert_eq!(kind_of_mode(0o170_000), None);
}

#[test]
fn setattr_takes_only_what_is_marked() {
    let args = SetattrIn {
        valid: fattr::SIZE | fattr::MTIME | fattr::KILL_SUIDGID | fattr::MODE,
        size: 7,
        mtime: 100,
        mtimensec: u32::MAX,
        mode: 0o100_4777,
        uid: 5,
        ..SetattrIn::default()
    };
    let request = set_attr_of(&args);
    assert_eq!(request.size, Some(7));
    assert_eq!(
        request.set.mtime,
        Some(Time {
            sec: 100,
            nsec: 999_999_999
        })
    );
    assert_eq!(request.set.mode, Some(0o4777));
    assert!(request.set.kill_suid);
    assert_eq!(
        (request.set.uid, request.set.atime, request.set.ctime),
        (None, None, None)
    );
    let now = set_attr_of(&SetattrIn {
        valid: fattr::ATIME | fattr::ATIME_NOW,
        ..SetattrIn::default()
    });
    assert!(now.set.atime.unwrap().sec > 0);
}

#[test]
fn flags_mean_what_the_system_calls_say() {
    assert_eq!(rename_mode(0), Ok(RenameMode::Replace));
    assert_eq!(rename_mode(1), Ok(RenameMode::NoReplace));
    assert_eq!(rename_mode(2), Ok(RenameMode::Exchange));
    assert_eq!(rename_mode(4), Err(Errno::EINVAL));
    assert_eq!(rename_mode(3), Err(Errno::EINVAL));
    assert_eq!(xattr_mode(0), Ok(XattrMode::Any));
    assert_eq!(xattr_mode(1), Ok(XattrMode::Create));
    assert_eq!(xattr_mode(2), Ok(XattrMode::Replace));
    assert_eq!(xattr_mode(3), Err(Errno::EINVAL));
    let opened = Opened {
        fh: 3,
        keep_cache: true,
        is_direct: false,
        is_being_read: false,
    };
    assert_eq!(
        open_out(&opened, 0).open_flags & (fopen::NOFLUSH | fopen::KEEP_CACHE),
        0x22
    );
    assert_eq!(open_out(&opened, 0o1).open_flags & fopen::NOFLUSH, 0);
    assert_eq!(open_out(&opened, 0o2).open_flags & fopen::NOFLUSH, 0);
}

#[test]
fn xattrs_answer_length_value_or_erange() {
    assert_eq!(
        bytes_of(sized(b"abc", 0)),
        [3_u32.to_ne_bytes(), [0; 4]].concat()
    );
    assert_eq!(bytes_of(sized(b"abc", 3)), b"abc");
    assert_eq!(sized(b"abc", 2), Reply::Error(Errno::ERANGE));
}
