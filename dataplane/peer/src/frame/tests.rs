//! Goal: what is written is read, and nothing else is taken for a frame. Method: random headers, damaged bytes, golden bytes.

use super::*;
use proptest::prelude::*;

fn headers() -> impl Strategy<Value = Header> {
    let kinds = prop_oneof![
        Just(Kind::Get),
        Just(Kind::Has),
        Just(Kind::Put),
        Just(Kind::Cancel),
        Just(Kind::Bring),
        Just(Kind::Hold),
        Just(Kind::Release),
        Just(Kind::Take),
        Just(Kind::Answer),
        Just(Kind::Hello),
        Just(Kind::Refused),
    ];
    let statuses = prop_oneof![
        Just(Status::Ok),
        Just(Status::NotFound),
        Just(Status::Token)
    ];
    let sizes = (0u32..1024, 1u32..=1 << 20, 1u32..=1 << 20);
    (kinds, statuses, any::<[u64; 3]>(), any::<[u32; 3]>(), sizes).prop_map(
        |(kind, status, longs, words, (block, length, payload))| {
            let offset = block * 4096;
            let room = (4 << 20) - offset;
            Header {
                kind,
                status,
                request: longs[0],
                key: ChunkKey {
                    ino: Ino(longs[1]),
                    index: words[0],
                    version: Version(longs[2]),
                },
                offset,
                length: match kind {
                    Kind::Get => length.min(room),
                    _ => 0,
                },
                total: 4 << 20,
                payload: payload
                    .min(room)
                    .min(u32::try_from(kind.payload_max()).unwrap()),
                payload_crc: words[1],
                timeout_ms: words[2],
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(header in headers()) {
        prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
    }

    #[test]
    fn a_changed_bit_is_noticed(header in headers(), bit in 0usize..512) {
        let mut bytes = header.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Header::parse(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in any::<[u8; 32]>(), more in any::<[u8; 28]>()) {
        let mut all = [0; HEADER_BYTES];
        all[..32].copy_from_slice(&bytes);
        all[32..60].copy_from_slice(&more);
        all[..4].copy_from_slice(&MAGIC);
        all[4..6].copy_from_slice(&VERSION.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&all[..60]);
        all[60..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(header) = Header::parse(&all) {
            prop_assert!(header.payload as usize <= header.kind.payload_max());
            prop_assert!(header.offset as usize <= CHUNK_MAX);
            prop_assert_eq!(header.encode(), all);
        }
    }
}

#[test]
fn bounds() {
    let get = Header {
        length: 4096,
        ..Header::new(Kind::Get, 1)
    };
    let put = Header {
        total: 8192,
        payload: 4096,
        ..Header::new(Kind::Put, 1)
    };
    let table = [
        (Header { length: 0, ..get }, false),
        (
            Header {
                length: (1 << 20) + 1,
                ..get
            },
            false,
        ),
        (Header { offset: 1, ..get }, false),
        (
            Header {
                offset: 4 << 20,
                ..get
            },
            false,
        ),
        (
            Header {
                offset: (4 << 20) - 4096,
                length: 4097,
                ..get
            },
            false,
        ),
        (
            Header {
                offset: (4 << 20) - 4096,
                ..get
            },
            true,
        ),
        (Header { payload: 1, ..get }, false),
        (
            Header {
                total: (4 << 20) + 1,
                ..get
            },
            false,
        ),
        (put, true),
        (Header { length: 1, ..put }, false),
        (Header { payload: 0, ..put }, false),
        (
            Header {
                offset: 4096,
                payload: 4097,
                ..put
            },
            false,
        ),
        (
            Header {
                payload: 513,
                ..Header::new(Kind::Hello, 0)
            },
            false,
        ),
        (
            Header {
                payload: (1 << 20) + 1,
                total: 4 << 20,
                ..Header::new(Kind::Answer, 0)
            },
            false,
        ),
        (
            Header {
                payload: 5,
                total: 4,
                ..Header::new(Kind::Answer, 0)
            },
            false,
        ),
        (
            Header {
                payload: 4,
                total: 4,
                ..Header::new(Kind::Answer, 0)
            },
            true,
        ),
    ];
    for (header, is_good) in table {
        assert_eq!(
            Header::parse(&header.encode()).is_ok(),
            is_good,
            "{header:?}"
        );
    }
}

#[test]
fn another_version_is_named_whatever_else_it_has() {
    let mut bytes = [0xEE; HEADER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&7u16.to_le_bytes());
    let error = Header::parse(&bytes).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("version 7") && said.contains("this one 1"),
        "{said}"
    );
    assert_eq!(Header::parse(&[0; HEADER_BYTES]), Err(FrameError::Magic));
}

#[test]
fn golden_bytes_of_version_1() {
    let header = Header {
        kind: Kind::Get,
        status: Status::Ok,
        request: 0x0102_0304_0506_0708,
        key: ChunkKey {
            ino: Ino(0x1112_1314_1516_1718),
            index: 0x3132_3334,
            version: Version(0x2122_2324_2526_2728),
        },
        offset: 0x0001_2000,
        length: 0x0000_4321,
        total: 0,
        payload: 0,
        payload_crc: 0,
        timeout_ms: 0x0000_2710,
    };
    let golden = "46435052010010000807060504030201181716151413121128272625242322213433323100200100\
                  2143000000000000000000000000000010270000";
    let bytes = header.encode();
    let hex: String = bytes[..60].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, golden);
    let crc = u32::from_le_bytes(bytes[60..].try_into().unwrap());
    assert_eq!(crc, crc_fast::crc32_iscsi(&bytes[..60]));
}

#[test]
fn payloads_are_verified() {
    let header = Header::new(Kind::Answer, 1).with_payload(b"bytes");
    assert_eq!(header.verify(b"bytes"), Ok(()));
    assert_eq!(header.verify(b"bytez"), Err(FrameError::PayloadChecksum));
    assert_eq!(header.verify(b"byte"), Err(FrameError::PayloadChecksum));
}
