//! What the fuzz target `peer_frame` calls: everything that is read from another node before it has proven anything.

use crate::frame::{HEADER_BYTES, Header, Kind, PAYLOAD_MAX, Status};
use crate::handshake;
use fastcache_types::{BLOCK, CHUNK_MAX, ChunkKey, Ino, Version};

/// A header and what follows it. With a true lowest bit of the first byte, its checksum is made right.
///
/// # Panics
/// When something out of bounds is let through.
pub fn peer_frame(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else {
        return;
    };
    if first & 2 == 2 {
        if let Ok(identity) = handshake::introduced(rest) {
            assert!(identity.id.len() <= handshake::ID_MAX);
        }
        return;
    }
    let Some((bytes, payload)) = rest.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let mut bytes = *bytes;
    if first & 1 == 1 {
        let crc = crc_fast::crc32_iscsi(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(header) = Header::parse(&bytes) else {
        return;
    };
    assert!(header.payload as usize <= PAYLOAD_MAX && header.total as usize <= CHUNK_MAX);
    assert!((header.offset as usize).is_multiple_of(BLOCK));
    let end = header.offset as usize + (header.length.max(header.payload)) as usize;
    if matches!(header.kind, Kind::Get | Kind::Put) {
        assert!(end <= CHUNK_MAX, "{header:?}");
    }
    assert_eq!(header.encode(), bytes, "{header:?}");
    let _ = header.verify(payload);
}

/// Frames that are as they should be.
pub fn seeds() -> Vec<Vec<u8>> {
    let key = ChunkKey {
        ino: Ino(7),
        index: 3,
        version: Version(9),
    };
    let get = Header {
        key,
        offset: 4096,
        length: 65_536,
        timeout_ms: 10_000,
        ..Header::new(Kind::Get, 1)
    };
    let answer = Header {
        key,
        offset: 4096,
        total: 1 << 20,
        ..Header::new(Kind::Answer, 1).with_payload(b"bytes of a chunk")
    };
    let put = Header {
        kind: Kind::Put,
        ..answer
    };
    let refused = Header {
        status: Status::Token,
        ..Header::new(Kind::Refused, 0).with_payload(b"no")
    };
    let mut seeds: Vec<Vec<u8>> = [
        (get, &b""[..]),
        (answer, b"bytes of a chunk"),
        (put, b"bytes of a chunk"),
        (refused, b"no"),
        (Header::new(Kind::Has, 2), b""),
        (Header::new(Kind::Bring, 3), b""),
        (Header::new(Kind::Hold, 4), b""),
        (Header::new(Kind::Release, 5), b""),
        (Header::new(Kind::Cancel, 2), b""),
        (Header::new(Kind::Hello, 0).with_payload(&[1; 45]), &[1; 45]),
    ]
    .iter()
    .map(|(header, payload)| [&[1][..], &header.encode(), payload].concat())
    .collect();
    let introduction = [&[2][..], &[0; 32], &7u64.to_le_bytes(), b"node-1"].concat();
    seeds.push(introduction);
    seeds
}
