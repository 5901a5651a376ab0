//! The bytes of version 1: what is in buckets must stay readable.

use crate::history::format::{self, EpochBody, FormatError, Kind, Manifest, Owner, PartInfo};
use crate::history::format::{SegmentName, SnapshotName};
use crate::history::snapshot;
use fastcache_api::{Ino, NsOp, OpId, Time};
use fastcache_namespace::Record;

const OWNER: Owner = Owner {
    file_system: 0x1122_3344_5566_7788,
    epoch: 3,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn epoch() -> Vec<u8> {
    let body = EpochBody {
        holder: 9,
        at_seconds: 1000,
        version: "0.1.0".to_owned(),
        host: "host".to_owned(),
    };
    format::seal(Kind::Epoch, OWNER, &postcard::to_stdvec(&body).unwrap())
}

fn records() -> Vec<Record> {
    let now = Time { sec: 5, nsec: 6 };
    let begin = Record {
        position: 7,
        epoch: 3,
        id: None,
        now,
        origin: None,
        op: NsOp::Begin {
            file_system: OWNER.file_system,
        },
    };
    let unlink = Record {
        position: 8,
        id: Some(OpId { client: 1, seq: 2 }),
        op: NsOp::Unlink {
            parent: Ino::ROOT,
            name: b"name".to_vec(),
        },
        ..begin.clone()
    };
    vec![begin, unlink]
}

const NAME: SegmentName = SegmentName {
    first: 7,
    last: 8,
    epoch: 3,
};

fn segment() -> Vec<u8> {
    let encoded: Vec<Vec<u8>> = records().iter().map(|r| r.encode().unwrap()).collect();
    format::encode_segment(NAME, OWNER.file_system, &encoded)
}

fn part() -> Vec<u8> {
    let mut payload = Vec::new();
    for (key, value) in [(&b"a"[..], &[7u8; 64][..]), (b"b", b"")] {
        format::put_bytes(&mut payload, key);
        format::put_bytes(&mut payload, value);
    }
    format::seal(Kind::Part, OWNER, &payload)
}

fn manifest() -> Vec<u8> {
    let manifest = Manifest {
        position: 8,
        garbage: 2,
        bytes: 80,
        parts: vec![PartInfo {
            crc32c: crc_fast::crc32_iscsi(&part()),
            pairs: 2,
        }],
    };
    format::seal(
        Kind::Manifest,
        OWNER,
        &postcard::to_stdvec(&manifest).unwrap(),
    )
}

#[test]
fn the_bytes_are_those_of_version_1() {
    assert_eq!(hex(&epoch()), EPOCH);
    assert_eq!(hex(&segment()), SEGMENT);
    assert_eq!(hex(&part()), PART);
    assert_eq!(hex(&manifest()), MANIFEST);
    let read = format::decode_segment(NAME, OWNER.file_system, &segment()).unwrap();
    assert_eq!(read, records());
    let name = SnapshotName {
        position: 8,
        epoch: 3,
    };
    let m = snapshot::decode_manifest(name, OWNER.file_system, &manifest()).unwrap();
    let pairs = snapshot::decode_part(name, OWNER.file_system, m.parts[0], &part()).unwrap();
    assert_eq!(pairs.len(), 2);
    assert_eq!(pairs[0].1, [7; 64]);
}

const EPOCH: &str = "46434849535452590100010003886f9f887766554433221103000000000000000e0000000000000009d00f05302e312e\
    3004686f7374";
const SEGMENT: &str = "46434849535452590100020074c993018877665544332211030000000000000027000000000000001000000002070300\
    0a061f88ef99abc5e88c91110f0000000208030101020a060e01046e616d65";
const PART: &str = "464348495354525901000300cf0aa7d6887766554433221103000000000000005200000001000000af01000000614000\
    00000701002c90010000006200000000";
const MANIFEST: &str = "46434849535452590100040081e95742887766554433221103000000000000000a0000000000000008025001d3f2d1db\
    0a02";

#[test]
fn damaged_bytes_are_refused_wherever_they_are() {
    let whole = segment();
    let read = |bytes: &[u8]| format::decode_segment(NAME, OWNER.file_system, bytes);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        assert!(read(&bytes).is_err(), "byte {at}");
        assert!(read(&whole[..at]).is_err(), "cut at {at}");
    }
    let version = {
        let mut bytes = whole.clone();
        bytes[8] = 9;
        read(&bytes).unwrap_err()
    };
    assert_eq!(version, FormatError::Version(9));
    let other = format::decode_segment(NAME, 1, &whole).unwrap_err();
    assert!(matches!(other, FormatError::Misplaced(_)));
    let moved = SegmentName {
        first: 6,
        last: 7,
        ..NAME
    };
    let moved = format::decode_segment(moved, OWNER.file_system, &whole).unwrap_err();
    assert!(matches!(moved, FormatError::Misplaced(_)));
    assert_eq!(
        read(b"something else entirely, and long enough"),
        Err(FormatError::NotOurs)
    );
}
