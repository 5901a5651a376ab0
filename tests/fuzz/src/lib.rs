//! What comes from a device, from the kernel or from the other plane, and is read before anything vouches for it: a
//! function for each, which takes any bytes and asserts what has to hold for them. cargo-fuzz calls them (`make test-fuzz`),
//! and so does `tests/short.rs`, which needs no nightly (`make test-unit`).

use fastcache_api::control::{ClientHello, ServerHello, ToAgent, ToData};
use fastcache_fuse::opcode::Opcode;
use fastcache_fuse::request::{Op, forgets, parse, parse_header};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use fastcache_chunkstore::fuzz::{chunk_header, journal, superblock};
pub use fastcache_peer::fuzz::peer_frame;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 6] = [
    ("superblock", superblock),
    ("journal", journal),
    ("chunk_header", chunk_header),
    ("fuse_request", fuse_request),
    ("control_message", control_message),
    ("peer_frame", peer_frame),
];

/// Bytes of a request's header.
const HEADER: usize = 40;

/// A request as it is read from `/dev/fuse`. With a true first byte its length is made right.
pub fn fuse_request(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else {
        return;
    };
    let mut bytes = rest.to_vec();
    if first & 1 == 1
        && bytes.len() >= 4
        && let Ok(len) = u32::try_from(bytes.len())
    {
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
    }
    let Ok(header) = parse_header(&bytes, bytes.len()) else {
        return;
    };
    let Some(body) = bytes.get(HEADER..) else {
        panic!("a header of {} bytes", bytes.len());
    };
    let Ok(op) = parse(&header, body, first & 2 == 2) else {
        return;
    };
    let check = |name: &[u8]| assert!(!name.is_empty() && !name.contains(&0), "{op:?}");
    match op {
        Op::Lookup { name }
        | Op::Unlink { name }
        | Op::Rmdir { name }
        | Op::Mkdir { name, .. }
        | Op::Mknod { name, .. }
        | Op::Create { name, .. }
        | Op::Link { name, .. }
        | Op::Symlink { name, .. }
        | Op::Removexattr { name } => check(name),
        Op::Rename { name, new_name, .. } => {
            check(name);
            check(new_name);
        }
        Op::BatchForget { pairs } => assert!(forgets(pairs).count() <= bytes.len() / 16),
        _ => {}
    }
}

/// A message of the control socket, in either direction, without the length in front.
pub fn control_message(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    match kind % 4 {
        0 => again::<ToData>(rest),
        1 => again::<ToAgent>(rest),
        2 => again::<ServerHello>(rest),
        _ => again::<ClientHello>(rest),
    }
}

/// What could be read can be written, and reads the same then.
fn again<T: Serialize + DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = postcard::from_bytes::<T>(bytes) else {
        return;
    };
    let written = match postcard::to_stdvec(&message) {
        Ok(written) => written,
        Err(error) => panic!("{message:?} cannot be written: {error}"),
    };
    match postcard::from_bytes::<T>(&written) {
        Ok(second) => assert_eq!(format!("{second:?}"), format!("{message:?}")),
        Err(error) => panic!("{message:?} was written and cannot be read: {error}"),
    }
}

/// Inputs that are as they should be, for a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "fuse_request" => fuse_seeds(),
        "control_message" => control_seeds(),
        "peer_frame" => fastcache_peer::fuzz::seeds(),
        _ => {
            let all = fastcache_chunkstore::fuzz::seeds();
            all.into_iter()
                .find(|(name, _)| *name == target)
                .map(|(_, seeds)| seeds)
                .unwrap_or_default()
        }
    }
}

/// Every operation with room for its arguments and two names.
fn fuse_seeds() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for opcode in Opcode::ALL {
        for args in [0, 4, 8, 16, 24, 32, 40, 64, 88, 128] {
            let mut m = vec![3];
            m.extend(0u32.to_ne_bytes());
            m.extend((*opcode as u32).to_ne_bytes());
            m.extend([1u64, 1].map(u64::to_ne_bytes).concat());
            m.extend([0; 16]);
            m.extend(vec![1; args]);
            m.extend(b"name\0other\0");
            all.push(m);
        }
    }
    all
}

fn control_seeds() -> Vec<Vec<u8>> {
    use fastcache_api::control::{
        DataAnswer, DataCall, DataEvent, DataStats, LocalChunk, NodeAnswer, NodeCall, PeerNode,
    };
    use fastcache_api::{ChunkKey, Errno, Ino, Version};
    fn of(kind: u8, message: &impl Serialize) -> Vec<u8> {
        postcard::to_extend(message, vec![kind]).unwrap_or_default()
    }
    let key = ChunkKey {
        ino: Ino(7),
        index: 3,
        version: Version(9),
    };
    let chunk = LocalChunk {
        key,
        len: 4096,
        device_bytes: 8192,
        is_dirty: true,
    };
    vec![
        of(
            0,
            &ToData::Call(
                1,
                DataCall::ReadChunk {
                    key,
                    is_patient: true,
                },
            ),
        ),
        of(
            0,
            &ToData::Call(
                7,
                DataCall::Peers {
                    me: "node-1".to_owned(),
                    file_system: 7,
                    peers: vec![PeerNode {
                        id: "node-2".to_owned(),
                        address: "10.0.0.2:8082".to_owned(),
                    }],
                },
            ),
        ),
        of(0, &ToData::Call(2, DataCall::Drop { keys: vec![key; 3] })),
        of(
            0,
            &ToData::Call(
                3,
                DataCall::Invalidate {
                    touched: vec![],
                    entries: vec![(Ino(1), b"a".to_vec())],
                    inos: vec![Ino(2)],
                },
            ),
        ),
        of(
            0,
            &ToData::Call(
                4,
                DataCall::WriteFile {
                    ino: Ino(1),
                    offset: 1 << 40,
                    slot: 3,
                    len: 100,
                },
            ),
        ),
        of(
            0,
            &ToData::Answer(5, Ok(NodeAnswer::State("dirty".to_owned()))),
        ),
        of(0, &ToData::Answer(6, Err(Errno::EIO))),
        of(0, &ToData::ReleaseSlot(4)),
        of(1, &ToAgent::Call(1, NodeCall::Fetch { key, slot: 2 })),
        of(
            1,
            &ToAgent::Answer(
                2,
                Ok(DataAnswer::Inventory {
                    chunks: vec![chunk; 2],
                    next: Some(3),
                }),
            ),
        ),
        of(
            1,
            &ToAgent::Answer(3, Ok(DataAnswer::Stats(Box::new(DataStats::default())))),
        ),
        of(1, &ToAgent::Event(DataEvent::Stored(vec![chunk]))),
        of(
            1,
            &ToAgent::Event(DataEvent::Pressure {
                used_bytes: 1,
                is_blocked: true,
            }),
        ),
        of(
            2,
            &ServerHello {
                peer_listen: Some("0.0.0.0:8082".to_owned()),
                version: 6,
                data: 1,
                lanes: 2,
                slots: 40,
                capacity_bytes: 1 << 40,
            },
        ),
        of(
            3,
            &ClientHello {
                version: 6,
                agent: 1,
                lane: 0,
                chunk_size: 4 << 20,
                has_coordinator: false,
                has_cloud: true,
            },
        ),
    ]
}
