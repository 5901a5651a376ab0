//! The objects of the history: names and bytes. Pure.
//!
//! ```text
//! history/epochs/<epoch>                                 who writes the history from then on
//! history/log/<first>-<last>-<epoch>                     records first..=last
//! history/snapshots/<position>-<epoch>/<part>            key-value pairs of the state after record `position`
//! history/snapshots/<position>-<epoch>/manifest          written last: the snapshot is whole
//! ```
//!
//! Numbers are hexadecimal, positions with 16 digits, epochs and parts with 6. `<epoch>` is the writer's; records
//! have their own. Every object is a header and a payload:
//!
//! ```text
//!  0        8      10    12       16            24      32         36            40
//!  ┌────────┬───────┬─────┬────────┬─────────────┬───────┬──────────┬─────────────┬─────────┐
//!  │FCHISTRY│version│kind │ CRC32C │ file system │ epoch │ raw bytes│ compression │ payload │
//!  └────────┴───────┴─────┴────────┴─────────────┴───────┴──────────┴─────────────┴─────────┘
//! ```
//!
//! Little-endian. The CRC32C covers everything from byte 16 on. `raw bytes` is the length of the payload before
//! compression; compression is 0 (none) or 1 (LZ4 block).

use fastcache_namespace::Pair;
use serde::{Deserialize, Serialize};

/// Version of the objects. 1: first.
pub(crate) const VERSION: u16 = 1;
/// Everything of the history is under this.
pub(crate) const ROOT: &str = "history";
/// Largest object, bytes: a segment or a part holds at least one record or pair, and those fit one frame of the
/// protocols (8 MiB).
pub(crate) const OBJECT_MAX: u64 = 16 << 20;
/// Largest payload before compression, bytes.
const RAW_MAX: usize = 16 << 20;
const MAGIC: &[u8; 8] = b"FCHISTRY";
const HEADER: usize = 40;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Epoch = 1,
    Segment = 2,
    Part = 3,
    Manifest = 4,
}

/// Whose an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Number of the file system, drawn when it was made.
    pub file_system: u64,
    /// The writer's epoch.
    pub epoch: u64,
}

/// Why the bytes of an object are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    /// Not an object of the history.
    #[error("it is not one of fastcache's")]
    NotOurs,
    /// Of another version.
    #[error("it has version {0}, and this program reads {VERSION}: use the version that wrote it")]
    Version(u16),
    /// The bytes were changed, or cut.
    #[error("it is damaged ({0})")]
    Damaged(&'static str),
    /// Whole, but something else than its name says.
    #[error("its name and its contents differ ({0})")]
    Misplaced(&'static str),
}

/// Who writes from an epoch on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochBody {
    /// Drawn at the start of the process: tells two starts of one number apart.
    pub holder: u64,
    /// Seconds since 1970.
    pub at_seconds: i64,
    /// Of the program.
    pub version: String,
    /// The machine's name.
    pub host: String,
}

/// One part of a snapshot, as the manifest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartInfo {
    /// CRC32C of the whole object.
    pub crc32c: u32,
    /// Pairs in it.
    pub pairs: u32,
}

/// A whole snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The last record it contains.
    pub position: u64,
    /// The last number of the deletion queue then: what is queued up to there is named by no later state.
    pub garbage: u64,
    /// Bytes of all keys and values.
    pub bytes: u64,
    /// The parts, in order.
    pub parts: Vec<PartInfo>,
}

pub(crate) fn epoch_name(epoch: u64) -> String {
    format!("{ROOT}/epochs/{epoch:06x}")
}

/// A segment, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub first: u64,
    pub last: u64,
    pub epoch: u64,
}

impl SegmentName {
    pub(crate) fn key(self) -> String {
        let SegmentName { first, last, epoch } = self;
        format!("{ROOT}/log/{first:016x}-{last:016x}-{epoch:06x}")
    }
}

/// A snapshot, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SnapshotName {
    pub position: u64,
    pub epoch: u64,
}

impl SnapshotName {
    pub(crate) fn manifest(self) -> String {
        format!("{}/manifest", self.folder())
    }

    pub(crate) fn part(self, number: usize) -> String {
        format!("{}/{number:06x}", self.folder())
    }

    fn folder(self) -> String {
        format!("{ROOT}/snapshots/{:016x}-{:06x}", self.position, self.epoch)
    }
}

/// What a key under [`ROOT`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Epoch(u64),
    Segment(SegmentName),
    Manifest(SnapshotName),
    Part(SnapshotName),
}

/// Reads a key; `None` when it is nothing this version writes.
pub(crate) fn parse_name(key: &str) -> Option<Name> {
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut parts = key.strip_prefix(ROOT)?.strip_prefix('/')?.split('/');
    let name = match (parts.next()?, parts.next()?, parts.next()) {
        ("epochs", epoch, None) => Name::Epoch(number(epoch)?),
        ("log", name, None) => {
            let mut numbers = name.split('-').map(number);
            let (first, last, epoch) = (numbers.next()??, numbers.next()??, numbers.next()??);
            Name::Segment(SegmentName { first, last, epoch })
        }
        ("snapshots", folder, Some(file)) => {
            let (position, epoch) = folder.split_once('-')?;
            let (position, epoch) = (number(position)?, number(epoch)?);
            let name = SnapshotName { position, epoch };
            match file {
                "manifest" => Name::Manifest(name),
                part => number(part).map(|_| Name::Part(name))?,
            }
        }
        _ => return None,
    };
    parts.next().is_none().then_some(name)
}

/// The bytes of an object.
pub(crate) fn seal(kind: Kind, owner: Owner, payload: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(payload);
    let is_packed = packed.len() < payload.len();
    let body = if is_packed { &packed[..] } else { payload };
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(kind as u16).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&owner.file_system.to_le_bytes());
    out.extend_from_slice(&owner.epoch.to_le_bytes());
    let raw = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&raw.to_le_bytes());
    out.extend_from_slice(&u32::from(is_packed).to_le_bytes());
    out.extend_from_slice(body);
    let crc = crc_fast::crc32_iscsi(&out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads what `seal` wrote.
pub(crate) fn unseal(kind: Kind, bytes: &[u8]) -> Result<(Owner, Vec<u8>), FormatError> {
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(if MAGIC.starts_with(bytes) || bytes.starts_with(MAGIC) {
            FormatError::Damaged("it ends in its header")
        } else {
            FormatError::NotOurs
        });
    };
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| {
        let mut b = [0; 4];
        b.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(b)
    };
    let u64_at = |at: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(b)
    };
    if &header[..8] != MAGIC {
        return Err(FormatError::NotOurs);
    }
    if u16_at(8) != VERSION {
        return Err(FormatError::Version(u16_at(8)));
    }
    if crc_fast::crc32_iscsi(&bytes[16..]) != u32_at(12) {
        return Err(FormatError::Damaged("its checksum is wrong"));
    }
    if u16_at(10) != kind as u16 {
        return Err(FormatError::Misplaced("it is of another kind"));
    }
    let raw = usize::try_from(u32_at(32)).unwrap_or(usize::MAX);
    if raw > RAW_MAX {
        return Err(FormatError::Damaged("it is larger than any"));
    }
    let payload = match u32_at(36) {
        0 if body.len() == raw => body.to_vec(),
        1 => match lz4_flex::block::decompress(body, raw) {
            Ok(payload) if payload.len() == raw => payload,
            _ => return Err(FormatError::Damaged("it does not decompress")),
        },
        _ => return Err(FormatError::Damaged("its length is wrong")),
    };
    let owner = Owner {
        file_system: u64_at(16),
        epoch: u64_at(24),
    };
    Ok((owner, payload))
}

/// Adds a byte string with its length.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Takes a byte string off the front.
pub(crate) fn take_bytes<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], FormatError> {
    const CUT: FormatError = FormatError::Damaged("it ends too early");
    let (len, rest) = from.split_first_chunk::<4>().ok_or(CUT)?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| CUT)?;
    let (bytes, rest) = rest.split_at_checked(len).ok_or(CUT)?;
    *from = rest;
    Ok(bytes)
}

/// A segment: each record as the log has it, with its length in front.
pub(crate) fn encode_segment(name: SegmentName, file_system: u64, records: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for record in records {
        put_bytes(&mut payload, record);
    }
    let owner = Owner {
        file_system,
        epoch: name.epoch,
    };
    seal(Kind::Segment, owner, &payload)
}

/// The records of a segment, checked against its name.
pub(crate) fn decode_segment(
    name: SegmentName,
    file_system: u64,
    bytes: &[u8],
) -> Result<Vec<fastcache_namespace::Record>, FormatError> {
    let (owner, payload) = unseal(Kind::Segment, bytes)?;
    check_owner(owner, file_system, name.epoch)?;
    let mut rest = &payload[..];
    let mut records = Vec::new();
    for position in name.first..=name.last {
        let record = fastcache_namespace::Record::decode(take_bytes(&mut rest)?)
            .map_err(|_| FormatError::Damaged("a record cannot be read"))?;
        if record.position != position {
            return Err(FormatError::Misplaced("its records have other positions"));
        }
        records.push(record);
    }
    match rest.is_empty() {
        true => Ok(records),
        false => Err(FormatError::Misplaced("it has more records")),
    }
}

/// Refuses an object of another file system or writer than its name says.
pub(crate) fn check_owner(owner: Owner, file_system: u64, epoch: u64) -> Result<(), FormatError> {
    if owner.file_system != file_system {
        return Err(FormatError::Misplaced("it is of another file system"));
    }
    if owner.epoch != epoch {
        return Err(FormatError::Misplaced("it is of another epoch"));
    }
    Ok(())
}

/// A part of a snapshot: keys and values, each with its length in front.
pub(crate) fn decode_part(payload: &[u8]) -> Result<Vec<Pair>, FormatError> {
    let mut rest = payload;
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let key = take_bytes(&mut rest)?.to_vec();
        pairs.push((key, take_bytes(&mut rest)?.to_vec()));
    }
    Ok(pairs)
}
