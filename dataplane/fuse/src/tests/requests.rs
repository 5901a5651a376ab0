//! Requests, golden and damaged.

use super::{cat, message};
use crate::opcode::Opcode;
use crate::request::{Op, ParseError, forgets, parse, parse_header};
use crate::wire::{
    CreateIn, ForgetOne, InHeader, MknodIn, OpenIn, ReadIn, Rename2In, SetattrIn, SetxattrIn,
    WriteIn,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

fn parse_message(message: &[u8], ext: bool) -> Result<(InHeader, Op<'_>), ParseError> {
    let header = parse_header(message, message.len())?;
    Ok((
        header,
        parse(&header, &message[size_of::<InHeader>()..], ext)?,
    ))
}

fn op_of(message: &[u8]) -> Op<'_> {
    parse_message(message, true).unwrap().1
}

#[test]
fn names_are_taken_as_bytes() {
    let bytes = message(1, b"caf\xe9\0");
    assert_eq!(op_of(&bytes), Op::Lookup { name: b"caf\xe9" });
    let bytes = message(6, b"link\0../target\0");
    assert_eq!(
        op_of(&bytes),
        Op::Symlink {
            name: b"link",
            target: b"../target"
        }
    );
}

#[test]
fn both_renames_mean_the_same() {
    let bytes = message(12, &cat(&[&5_u64.to_ne_bytes(), b"a\0b\0"]));
    assert_eq!(
        op_of(&bytes),
        Op::Rename {
            new_parent: 5,
            flags: 0,
            name: b"a",
            new_name: b"b"
        }
    );
    let args = Rename2In {
        newdir: 5,
        flags: 2,
        padding: 0,
    };
    let bytes = message(45, &cat(&[args.as_bytes(), b"a\0b\0"]));
    assert_eq!(
        op_of(&bytes),
        Op::Rename {
            new_parent: 5,
            flags: 2,
            name: b"a",
            new_name: b"b"
        }
    );
}

#[test]
fn arguments_come_in_their_places() {
    let args = CreateIn {
        flags: 0o1101,
        mode: 0o100_640,
        umask: 0o22,
        open_flags: 1,
    };
    let bytes = message(35, &cat(&[args.as_bytes(), b"file\0"]));
    assert_eq!(
        op_of(&bytes),
        Op::Create {
            args,
            name: b"file"
        }
    );
    let args = MknodIn {
        mode: 0o020_600,
        rdev: 0x103,
        ..MknodIn::default()
    };
    let bytes = message(8, &cat(&[args.as_bytes(), b"null\0"]));
    assert_eq!(
        op_of(&bytes),
        Op::Mknod {
            args,
            name: b"null"
        }
    );
    let args = SetattrIn {
        valid: 8,
        size: 100,
        ..SetattrIn::default()
    };
    assert_eq!(op_of(&message(4, args.as_bytes())), Op::Setattr(args));
    let args = ReadIn {
        fh: 3,
        offset: 4096,
        size: 8192,
        ..ReadIn::default()
    };
    assert_eq!(op_of(&message(15, args.as_bytes())), Op::Read(args));
    let args = OpenIn {
        flags: 2,
        open_flags: 1,
    };
    assert_eq!(op_of(&message(14, args.as_bytes())), Op::Open(args));
}

#[test]
fn a_writes_data_may_be_left_where_it_is() {
    let args = WriteIn {
        fh: 3,
        offset: 0,
        size: 5,
        write_flags: 4,
        ..WriteIn::default()
    };
    assert_eq!(
        op_of(&message(16, &cat(&[args.as_bytes(), b"hello"]))),
        Op::Write(args)
    );
    assert_eq!(op_of(&message(16, args.as_bytes())), Op::Write(args));
}

#[test]
fn setxattr_is_short_on_older_kernels() {
    let args = SetxattrIn {
        size: 3,
        flags: 1,
        ..SetxattrIn::default()
    };
    let long = message(21, &cat(&[args.as_bytes(), b"user.a\0xyz"]));
    let short = message(21, &cat(&[&args.as_bytes()[..8], b"user.a\0xyz"]));
    let want = Op::Setxattr {
        flags: 1,
        name: b"user.a",
        value: b"xyz",
    };
    assert_eq!(parse_message(&long, true).unwrap().1, want);
    assert_eq!(parse_message(&short, false).unwrap().1, want);
}

#[test]
fn a_batch_of_forgets_is_bounded_by_the_message() {
    let pairs = [
        ForgetOne {
            nodeid: 5,
            nlookup: 1,
        },
        ForgetOne {
            nodeid: 6,
            nlookup: 2,
        },
    ];
    let bytes = message(42, &cat(&[&2_u32.to_ne_bytes(), &[0; 4], pairs.as_bytes()]));
    let Op::BatchForget { pairs: got } = op_of(&bytes) else {
        panic!("not a batch")
    };
    assert_eq!(forgets(got).collect::<Vec<_>>(), pairs);
    let bytes = message(
        42,
        &cat(&[&u32::MAX.to_ne_bytes(), &[0; 4], pairs.as_bytes()]),
    );
    assert_eq!(
        parse_message(&bytes, true).unwrap_err(),
        ParseError::Short("forgets")
    );
}

#[test]
fn unknown_operations_are_told_apart_from_damage() {
    assert_eq!(op_of(&message(4711, b"")), Op::Unsupported(4711));
    assert_eq!(op_of(&message(52, &[0; 24])), Op::Unsupported(52));
    assert_eq!(
        parse_message(&message(1, b"no end"), true),
        Err(ParseError::Name)
    );
    assert_eq!(
        parse_message(&message(1, b"\0"), true),
        Err(ParseError::Name)
    );
    let mut long = message(1, b"a\0");
    long.push(0);
    assert_eq!(
        parse_message(&long, true),
        Err(ParseError::Length {
            header: 42,
            got: 43
        })
    );
    assert!(parse_message(&long[..20], true).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(opcode in 0_u32..64, body in proptest::collection::vec(any::<u8>(), 0..300), ext: bool) {
        let bytes = message(opcode, &body);
        if let Ok((_, Op::BatchForget { pairs })) = parse_message(&bytes, ext) {
            prop_assert!(forgets(pairs).count() * 16 <= body.len());
        }
    }

    #[test]
    fn no_cut_panics(opcode in 0_u32..64, cut in 0_usize..200) {
        let bytes = message(opcode, &[b'a'; 160]);
        let cut = cut.min(bytes.len());
        prop_assert!(cut == bytes.len() || parse_message(&bytes[..cut], true).is_err());
    }

    #[test]
    fn a_mount_table_of_any_bytes_is_read(table in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = crate::mount::parse_mountinfo(&table).count();
    }
}

#[test]
fn every_opcode_keeps_its_number() {
    for opcode in Opcode::ALL {
        assert_eq!(Opcode::from_number(*opcode as u32), Some(*opcode));
    }
    assert_eq!(Opcode::ALL.len(), 51);
}

#[test]
fn the_mount_table_is_read_with_its_escapes() {
    let table = b"36 35 0:39 / /mnt/a\\040b rw,relatime shared:1 master:2 - fuse.fastcache fastcache rw\nrubbish\n\
        37 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw\n";
    let entries: Vec<_> = crate::mount::parse_mountinfo(table).collect();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].dir, std::path::Path::new("/mnt/a b"));
    assert_eq!(entries[0].dev, (0, 39));
    assert_eq!(entries[0].fs_type, "fuse.fastcache");
    assert_eq!(entries[0].source, "fastcache");
    assert_eq!(entries[1].fs_type, "ext3");
}
