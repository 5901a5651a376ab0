//! Frames between nodes: a fixed header of 64 bytes, then bytes.
//!
//! ```text
//!   0      4    6    7    8        16       24        32     36      40      44     48       52       56       60
//!   ┌──────┬────┬────┬────┬────────┬────────┬─────────┬──────┬───────┬───────┬──────┬────────┬────────┬────────┬──────┐
//!   │ FCPR │ver │kind│stat│request │inode   │version  │index │offset │length │total │payload │payload │timeout │header│
//!   │      │u16 │u8  │us u8│id u64  │u64     │u64      │u32   │u32    │u32    │u32   │bytes   │CRC32C  │ms      │CRC32C│
//!   └──────┴────┴────┴────┴────────┴────────┴─────────┴──────┴───────┴───────┴──────┴────────┴────────┴────────┴──────┘
//! ```
//!
//! Little-endian. Everything that comes from the wire is checked here, before anybody uses it: what [`Header::parse`] returns
//! keeps the bounds below.

#[cfg(test)]
mod tests;

use fastcache_types::{BLOCK, CHUNK_MAX, ChunkKey, Ino, Version};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of this protocol. 1: first.
pub const VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Most bytes behind the header of an answer or a PUT.
pub const PAYLOAD_MAX: usize = 1 << 20;
/// Most bytes behind the header of a frame of the handshake.
pub const HANDSHAKE_MAX: usize = 512;

const MAGIC: [u8; 4] = *b"FCPR";

/// The header as it is on the wire.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    status: u8,
    request: U64,
    ino: U64,
    chunk_version: U64,
    index: U32,
    offset: U32,
    length: U32,
    total: U32,
    payload: U32,
    payload_crc: U32,
    timeout_ms: U32,
    header_crc: U32,
}
const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, header_crc) == HEADER_BYTES - 4);

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// First frame, of who connected: who it is.
    Hello = 1,
    /// Answer to it: who listens.
    Challenge = 2,
    /// That who connected knows the token.
    Proof = 3,
    /// That who listens knows it, too; requests may follow.
    Welcome = 4,
    /// Instead of `Challenge` or `Welcome`: the connection ends. The payload is a sentence.
    Refused = 5,
    /// A range of a chunk is asked for.
    Get = 16,
    /// Whether a chunk is there.
    Has = 17,
    /// A part of a replica, in order; the last is answered when the device has all of it.
    Put = 18,
    /// Nobody waits for this request any more; it has no answer of its own.
    Cancel = 19,
    /// A chunk that may be nowhere but in the cloud is to be fetched from there and kept, for everybody who asks.
    Bring = 20,
    /// A replica that may be there is to be kept until it is released.
    Hold = 21,
    /// A replica need not be kept any more; not answered.
    Release = 22,
    /// A replica that is kept for who asks is to become the other node's own: to be uploaded, and copied anew.
    Take = 23,
    /// Answer to `Get`, `Has`, `Bring`, `Hold`, `Take` and `Put`.
    Answer = 32,
}

/// How a request ended, or why a connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Status {
    /// Done.
    #[default]
    Ok = 0,
    /// This version of the chunk is not here.
    NotFound = 1,
    /// Too much is asked at once, or there is no room: not now.
    Busy = 2,
    /// The device does not give it, or does not take it.
    Failed = 3,
    /// Another protocol version.
    Version = 16,
    /// The cluster token is another one, or none.
    Token = 17,
    /// A node of another file system.
    FileSystem = 18,
    /// The node has not been told yet which file system it belongs to.
    NotReady = 19,
    /// A frame that does not belong there.
    Protocol = 20,
}

/// Why a frame cannot be used. The connection it came on ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all.
    #[error("not a frame of this protocol")]
    Magic,
    /// Another version.
    #[error("the other node speaks version {theirs} of the peer protocol, this one {VERSION}")]
    Version {
        /// Of the other node.
        theirs: u16,
    },
    /// Altered on the way.
    #[error("the checksum of a header does not match")]
    HeaderChecksum,
    /// Altered on the way, or on the other node.
    #[error("the checksum of a payload does not match")]
    PayloadChecksum,
    /// A kind or status without meaning.
    #[error("a frame of an unknown kind or status")]
    Unknown,
    /// Out of bounds; which.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
}

/// A header that was checked, or is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// How it ended; `Ok` in requests.
    pub status: Status,
    /// Chosen by who asks; the answer has the same.
    pub request: u64,
    /// The chunk.
    pub key: ChunkKey,
    /// First byte of the range, in the chunk; whole blocks.
    pub offset: u32,
    /// Bytes asked for; only in `Get`.
    pub length: u32,
    /// Bytes of the whole chunk, in answers that are `Ok`, and in `Put`.
    pub total: u32,
    /// Bytes that follow.
    pub payload: u32,
    /// CRC32C of them.
    pub payload_crc: u32,
    /// How long who asks waits, milliseconds; 0: not said.
    pub timeout_ms: u32,
}

/// No chunk: what frames that are not about one carry.
pub const NO_KEY: ChunkKey = ChunkKey {
    ino: Ino(0),
    index: 0,
    version: Version(0),
};

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Hello,
            2 => Kind::Challenge,
            3 => Kind::Proof,
            4 => Kind::Welcome,
            5 => Kind::Refused,
            16 => Kind::Get,
            17 => Kind::Has,
            18 => Kind::Put,
            19 => Kind::Cancel,
            20 => Kind::Bring,
            21 => Kind::Hold,
            22 => Kind::Release,
            23 => Kind::Take,
            32 => Kind::Answer,
            _ => return None,
        })
    }

    /// Most bytes that may follow its header.
    fn payload_max(self) -> usize {
        match self {
            Kind::Hello | Kind::Challenge | Kind::Proof | Kind::Welcome | Kind::Refused => {
                HANDSHAKE_MAX
            }
            Kind::Get
            | Kind::Has
            | Kind::Cancel
            | Kind::Bring
            | Kind::Hold
            | Kind::Release
            | Kind::Take => 0,
            Kind::Put | Kind::Answer => PAYLOAD_MAX,
        }
    }
}

impl Status {
    fn of(number: u8) -> Option<Status> {
        Some(match number {
            0 => Status::Ok,
            1 => Status::NotFound,
            2 => Status::Busy,
            3 => Status::Failed,
            16 => Status::Version,
            17 => Status::Token,
            18 => Status::FileSystem,
            19 => Status::NotReady,
            20 => Status::Protocol,
            _ => return None,
        })
    }
}

impl Header {
    /// A frame about nothing yet.
    pub fn new(kind: Kind, request: u64) -> Header {
        Header {
            kind,
            status: Status::Ok,
            request,
            key: NO_KEY,
            offset: 0,
            length: 0,
            total: 0,
            payload: 0,
            payload_crc: 0,
            timeout_ms: 0,
        }
    }

    /// The same with what follows it.
    ///
    /// # Panics
    /// When that is longer than such a frame may be.
    pub fn with_payload(mut self, bytes: &[u8]) -> Header {
        assert!(
            bytes.len() <= self.kind.payload_max(),
            "{} bytes",
            bytes.len()
        );
        self.payload = u32::try_from(bytes.len()).unwrap_or(0);
        self.payload_crc = crc_fast::crc32_iscsi(bytes);
        self
    }

    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            kind: self.kind as u8,
            status: self.status as u8,
            request: self.request.into(),
            ino: self.key.ino.0.into(),
            chunk_version: self.key.version.0.into(),
            index: self.key.index.into(),
            offset: self.offset.into(),
            length: self.length.into(),
            total: self.total.into(),
            payload: self.payload.into(),
            payload_crc: self.payload_crc.into(),
            timeout_ms: self.timeout_ms.into(),
            header_crc: 0.into(),
        };
        raw.header_crc = crc_of(&raw).into();
        zerocopy::transmute!(raw)
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::Magic);
        }
        // Beyond these six bytes another version may have anything.
        if raw.version.get() != VERSION {
            return Err(FrameError::Version {
                theirs: raw.version.get(),
            });
        }
        if raw.header_crc.get() != crc_of(&raw) {
            return Err(FrameError::HeaderChecksum);
        }
        let header = Header {
            kind: Kind::of(raw.kind).ok_or(FrameError::Unknown)?,
            status: Status::of(raw.status).ok_or(FrameError::Unknown)?,
            request: raw.request.get(),
            key: ChunkKey {
                ino: Ino(raw.ino.get()),
                index: raw.index.get(),
                version: Version(raw.chunk_version.get()),
            },
            offset: raw.offset.get(),
            length: raw.length.get(),
            total: raw.total.get(),
            payload: raw.payload.get(),
            payload_crc: raw.payload_crc.get(),
            timeout_ms: raw.timeout_ms.get(),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FrameError> {
        let bad = |what| Err(FrameError::Bounds(what));
        let (offset, length) = (self.offset as usize, self.length as usize);
        let (total, payload) = (self.total as usize, self.payload as usize);
        if payload > self.kind.payload_max() {
            return bad("the length of a payload");
        }
        if total > CHUNK_MAX || offset >= CHUNK_MAX || !offset.is_multiple_of(BLOCK) {
            return bad("a place in a chunk");
        }
        if self.kind != Kind::Get && length != 0 {
            return bad("a length where no bytes are asked for");
        }
        match self.kind {
            Kind::Get if length == 0 || length > PAYLOAD_MAX || offset + length > CHUNK_MAX => {
                bad("the length that is asked for")
            }
            Kind::Put if payload == 0 || offset + payload > total => bad("a part of a replica"),
            Kind::Answer if payload > 0 && offset + payload > total => bad("a part of a chunk"),
            _ => Ok(()),
        }
    }

    /// Whether the bytes that followed are those that were sent.
    ///
    /// # Errors
    /// `PayloadChecksum`.
    pub fn verify(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() == self.payload as usize
            && crc_fast::crc32_iscsi(payload) == self.payload_crc
        {
            Ok(())
        } else {
            Err(FrameError::PayloadChecksum)
        }
    }
}

/// CRC32C of a header without its last four bytes, which are for it.
fn crc_of(raw: &Raw) -> u32 {
    crc_fast::crc32_iscsi(&raw.as_bytes()[..HEADER_BYTES - 4])
}
