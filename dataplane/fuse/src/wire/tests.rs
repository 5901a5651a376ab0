//! The layouts against the numbers of the kernel's header, where the assertions beside the structures cannot see
//! them: the bytes of whole messages, and flag values.

use super::flags::{fattr, fopen, init};
use super::*;

#[test]
fn a_header_has_the_kernels_bytes() {
    let header = InHeader {
        len: 0x0102_0304,
        opcode: 15,
        unique: 0x1112_1314_1516_1718,
        nodeid: 1,
        uid: 1000,
        gid: 100,
        pid: 42,
        total_extlen: 0,
        padding: 0,
    };
    let mut want = Vec::new();
    want.extend_from_slice(&0x0102_0304_u32.to_ne_bytes());
    want.extend_from_slice(&15_u32.to_ne_bytes());
    want.extend_from_slice(&0x1112_1314_1516_1718_u64.to_ne_bytes());
    want.extend_from_slice(&1_u64.to_ne_bytes());
    for number in [1000_u32, 100, 42, 0] {
        want.extend_from_slice(&number.to_ne_bytes());
    }
    assert_eq!(header.as_bytes(), want);
}

#[test]
fn an_entry_places_its_attributes_behind_the_timeouts() {
    let attr = FuseAttr {
        ino: 7,
        mode: 0o100_644,
        blksize: 4096,
        ..FuseAttr::default()
    };
    let entry = EntryOut {
        nodeid: 7,
        entry_valid_nsec: 5,
        attr,
        ..EntryOut::default()
    };
    let bytes = entry.as_bytes();
    assert_eq!(bytes[32..36], 5_u32.to_ne_bytes());
    assert_eq!(bytes[40..48], 7_u64.to_ne_bytes());
    assert_eq!(bytes[100..104], 0o100_644_u32.to_ne_bytes());
    assert_eq!(bytes[120..124], 4096_u32.to_ne_bytes());
}

#[test]
fn flags_have_the_kernels_values() {
    assert_eq!(init::MAX_PAGES, 0x40_0000);
    assert_eq!(init::HANDLE_KILLPRIV_V2, 0x1000_0000);
    assert_eq!(init::INIT_EXT, 0x4000_0000);
    assert_eq!(init::OVER_IO_URING, 0x200_0000_0000);
    assert_eq!(fattr::KILL_SUIDGID, 0x800);
    assert_eq!(fopen::PARALLEL_DIRECT_WRITES, 0x40);
}

#[test]
fn an_entry_of_io_uring_has_the_kernels_layout() {
    // struct fuse_uring_req_header: two areas of 128 bytes, then struct fuse_uring_ent_in_out.
    assert_eq!(uring_header::OP_IN, 128);
    assert_eq!(uring_header::ENT_IN_OUT, 256);
    assert_eq!(uring_header::BYTES, 288);
    let entry = UringEntInOut {
        commit_id: 0x0102_0304_0506_0708,
        payload_sz: 4096,
        ..UringEntInOut::default()
    };
    let mut want = vec![0; 8];
    want.extend_from_slice(&0x0102_0304_0506_0708_u64.to_ne_bytes());
    want.extend_from_slice(&4096_u32.to_ne_bytes());
    want.extend_from_slice(&[0; 12]);
    assert_eq!(entry.as_bytes(), want);
    let command = UringCmdReq {
        commit_id: 9,
        qid: 0x0102,
        ..UringCmdReq::default()
    };
    let mut want = vec![0; 8];
    want.extend_from_slice(&9_u64.to_ne_bytes());
    want.extend_from_slice(&0x0102_u16.to_ne_bytes());
    want.extend_from_slice(&[0; 6]);
    assert_eq!(command.as_bytes(), want);
    assert_eq!(flags::uring_cmd::REGISTER, 1);
    assert_eq!(flags::uring_cmd::COMMIT_AND_FETCH, 2);
}
