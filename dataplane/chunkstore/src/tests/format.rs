//! Goal: format 2 stays what docs/disk-layout.md says. Method: known values, their bytes at the documented offsets, and
//! the checksum of all of them. A change here is a new format.

use super::*;
use crate::body::{BodyFacts, Runs};
use crate::checkpoint::CheckpointHeader;
use crate::record::Record;
use crate::superblock::{Geometry, Superblock};

fn facts() -> BodyFacts {
    BodyFacts {
        key: key(0x0102_0304_0506_0708, 0x1112_1314, 0x2122_2324_2526_2728),
        len: 0x5001,
        is_dirty: true,
        is_kept: false,
        header: 0x3132_3334,
        runs: Runs::from_slice(&[
            BlockRun {
                first: 0,
                extent: Extent {
                    start: 0x4142_4344,
                    len: 2,
                },
            },
            BlockRun {
                first: 4,
                extent: Extent {
                    start: 0x5152_5354,
                    len: 1,
                },
            },
        ]),
    }
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap())
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

#[test]
fn superblock() {
    let geometry = Geometry::new(10 << 30).unwrap();
    let uuid = *b"0123456789abcdef";
    let s = Superblock {
        uuid,
        generation: 7,
        formatted_at: 99,
        geometry,
    };
    let mut b = vec![0; BLOCK];
    s.encode(&mut b);
    assert_eq!(&b[..8], b"FASTCACH");
    assert_eq!((u32_at(&b, 8), u32_at(&b, 12)), (2, 4096));
    assert_eq!(b[16..32], uuid);
    assert_eq!(
        (u32_at(&b, 32), u32_at(&b, 36), u64_at(&b, 40)),
        (7, 2_621_440, 99)
    );
    assert_eq!((u32_at(&b, 48), u32_at(&b, 52)), (32, 10_240));
    // 12,800 + 800 + 17.
    assert_eq!((u32_at(&b, 56), u32_at(&b, 60)), (10_272, 13_617));
    assert_eq!((u32_at(&b, 64), u32_at(&b, 68)), (23_889, 13_617));
    assert_eq!((u32_at(&b, 72), u32_at(&b, 76)), (37_506, 2_583_934));
    assert_eq!(u32_at(&b, 4092), crc_all(&b[..4092]));
    let half = |b: &[u8]| u64_at(b, 0);
    assert_eq!(
        s.store_id(),
        half(b"01234567") ^ half(b"89abcdef").rotate_left(1)
    );
}

#[test]
fn records() {
    let mut b = Vec::new();
    Record::Put {
        facts: facts(),
        is_pending: true,
        is_spilled: true,
    }
    .encode(&mut b);
    let want = "01070200015000000807060504030201141312113433323128272625242322210000020044434241\
        0400010054535251";
    assert_eq!(hex(&b), want);
    let kept = BodyFacts {
        is_dirty: false,
        is_kept: true,
        ..facts()
    };
    b.clear();
    Record::Put {
        facts: kept.clone(),
        is_pending: false,
        is_spilled: false,
    }
    .encode(&mut b);
    assert_eq!(hex(&b[..4]), "01080200");
    let mut g = crate::wire::Get::new(&b);
    assert!(matches!(
        Record::decode(&mut g),
        Some(Record::Put { facts, is_pending: false, is_spilled: false }) if facts == kept
    ));
    for (record, want) in [
        (
            Record::Seal {
                ino: Ino(5),
                number: 6,
                commit: vec![7, 8],
            },
            "0200000002000000050000000000000006000000000000000708",
        ),
        (Record::Committed { number: 6 }, "030000000600000000000000"),
        (
            Record::Clean(key(1, 2, 3)),
            "040000000100000000000000020000000300000000000000",
        ),
        (
            Record::Remove(key(1, 2, 3)),
            "050000000100000000000000020000000300000000000000",
        ),
        (Record::Ticket(9), "060000000900000000000000"),
        (Record::Flushed(9), "080000000900000000000000"),
        (
            Record::Mark {
                stripe: None,
                ticket: 9,
            },
            "0700ffff0900000000000000",
        ),
        (
            Record::Mark {
                stripe: Some(3),
                ticket: 9,
            },
            "070003000900000000000000",
        ),
    ] {
        let mut b = Vec::new();
        record.encode(&mut b);
        assert_eq!(hex(&b), want);
    }
    assert_eq!(index::Index::stripe_of(Ino(1)), 0x9E);
    assert_eq!(index::Index::stripe_of(Ino(1 << 40 | 77)), {
        let n = (1u64 << 40 | 77).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (n >> 56) as usize
    });
}

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn group_and_checkpoint() {
    let mut b = vec![0xEE; BLOCK];
    journal::encode_group(&mut b, 0x1122, 0x33, 4, [&b"abc"[..], b"de"].into_iter());
    assert_eq!(&b[..4], b"FCJG");
    assert_eq!(u32_at(&b, 4), crc_all(&b[8..37]));
    assert_eq!((u64_at(&b, 8), u64_at(&b, 16)), (0x1122, 0x33));
    assert_eq!((u32_at(&b, 24), u32_at(&b, 28)), (4, 5));
    assert_eq!(&b[32..38], b"abcde\0");
    assert_eq!(b[4095], 0);

    let (sequence, start, generation) = (2, 3, 4);
    let h = CheckpointHeader {
        sequence,
        start,
        generation,
        segments: 5,
        blocks: 6,
        next_number: 7,
    };
    h.encode(&mut b, 0x1122);
    assert_eq!(&b[..8], b"FCCKPT01");
    assert_eq!([8, 16, 24, 32].map(|at| u64_at(&b, at)), [0x1122, 2, 3, 7]);
    assert_eq!([40, 44, 48].map(|at| u32_at(&b, at)), [4, 5, 6]);
    assert_eq!(u32_at(&b, 52), crc_all(&b[..52]));
    assert_eq!(CheckpointHeader::decode(&b, 0x1122), Some(h));
    assert_eq!(CheckpointHeader::decode(&b, 0x1123), None);
    let area = Extent {
        start: 1000,
        len: 300,
    };
    let h = CheckpointHeader {
        segments: 2,
        blocks: 259,
        ..h
    };
    assert_eq!(
        h.segment(area, 0),
        Some(Extent {
            start: 1001,
            len: 256
        })
    );
    assert_eq!(
        h.segment(area, 1),
        Some(Extent {
            start: 1257,
            len: 3
        })
    );
    assert_eq!(h.segment(area, 2), None);
}

#[test]
fn chunk_header() {
    let facts = facts();
    let mut b = vec![0xEE; BLOCK];
    header::encode(&mut b, 0x1122, 0x77, &facts, &[1, 2, 0, 0, 3, 0]);
    assert_eq!(&b[..8], b"FCCHUNK1");
    assert_eq!(u64_at(&b, 8), 0x1122);
    assert_eq!([16, 18, 20, 22].map(|at| u16_at(&b, at)), [1, 1, 2, 0]);
    assert_eq!(u64_at(&b, 24), facts.key.ino.0);
    assert_eq!([32, 36].map(|at| u32_at(&b, at)), [0x1112_1314, 0x5001]);
    assert_eq!(
        [40, 48].map(|at| u64_at(&b, at)),
        [facts.key.version.0, 0x77]
    );
    assert_eq!(u32_at(&b, 60), 64 + 16 + 24);
    assert_eq!(
        (u16_at(&b, 72), u16_at(&b, 74), u32_at(&b, 76)),
        (4, 1, 0x5152_5354)
    );
    assert_eq!([80, 84, 96, 100].map(|at| u32_at(&b, at)), [1, 2, 3, 0]);
    assert!(b[104..].iter().all(|&b| b == 0));
    let mut zeroed = b[..104].to_vec();
    zeroed[56..60].fill(0);
    assert_eq!(u32_at(&b, 56), crc_all(&zeroed));
    let found = header::decode(&b, 0x1122, facts.header).unwrap();
    assert_eq!((found.facts, found.stamp), (facts, 0x77));
    assert!(header::decode(&b, 0x1123, 0).is_none());
    for cut in 0..104 {
        assert!(header::decode(&b[..cut], 0x1122, 0).is_none());
    }
    assert_eq!(header::blocks(4 << 20, 1), 2);
    assert_eq!(header::blocks((4 << 20) - (88 << 10), 1), 1);
    assert_eq!(header::blocks(4 << 20, 1024), 4);
}

#[test]
fn checksums_combine() {
    let all = bytes(3, 20_000);
    // The check value of CRC-32C (iSCSI).
    assert_eq!(crc_all(b"123456789"), 0xE306_9283);
    assert_eq!(crc_of_blocks(&crc_blocks(&all)), crc_all(&all));
    let (a, b) = all.split_at(777);
    assert_eq!(
        crc_combine(crc_all(a), crc_all(b), b.len() as u64),
        crc_all(&all)
    );
}
