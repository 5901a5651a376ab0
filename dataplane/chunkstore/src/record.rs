//! Records: what happened to the index. The journal and the checkpoints carry the same ones. docs/disk-layout.md draws
//! them.
//!
//! Every submission to the journal begins with its ticket, a number that rises for ever. A checkpoint says for each
//! stripe of the index, and for the SEAL records, up to which ticket it has seen them; replay skips what it has seen.
//! Thus a checkpoint can be taken while everything goes on.

use crate::body::{BodyFacts, Runs};
use crate::header::{RUN_BYTES, get_runs, put_runs};
use crate::wire::{Get, Put};
use fastcache_types::{ChunkKey, Ino, Version};

const PUT: u8 = 1;
const SEAL: u8 = 2;
const COMMITTED: u8 = 3;
const CLEAN: u8 = 4;
const REMOVE: u8 = 5;

const TICKET: u8 = 6;
const MARK: u8 = 7;
const FLUSHED: u8 = 8;

/// The number in a MARK record that stands for the SEAL records instead of a stripe.
const MARK_SEALS: u16 = u16::MAX;

/// Bytes of a TICKET, MARK or FLUSHED record.
pub(crate) const TICKET_BYTES: usize = 12;

const FLAG_DIRTY: u8 = 1;
const FLAG_PENDING: u8 = 2;
const FLAG_SPILLED: u8 = 4;
const FLAG_KEPT: u8 = 8;

const PUT_FIXED: usize = 32;
const SEAL_FIXED: usize = 24;

/// One change of the index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// A chunk was sealed, replacing what its id had.
    Put {
        facts: BodyFacts,
        is_pending: bool,
        /// The device refused some of it: that its blocks are not what they should be says nothing of a power cut.
        is_spilled: bool,
    },
    /// A file was sealed: its pending chunks are final; the coordinator has to be told `commit`.
    Seal {
        ino: Ino,
        number: u64,
        commit: Vec<u8>,
    },
    /// The coordinator has it.
    Committed { number: u64 },
    /// This version is in the cloud.
    Clean(ChunkKey),
    /// This version is gone.
    Remove(ChunkKey),
    /// The records that follow have this ticket.
    Ticket(u64),
    /// In a checkpoint: it has seen this stripe (`None`: the SEAL records) up to this ticket.
    Mark { stripe: Option<u16>, ticket: u64 },
    /// A flush has covered everything up to this ticket, records and what they name.
    Flushed(u64),
}

/// Bytes of a PUT record.
pub(crate) fn put_bytes(runs: usize) -> u64 {
    (PUT_FIXED + runs * RUN_BYTES) as u64
}

/// Bytes of a SEAL record.
pub(crate) fn seal_bytes(commit: usize) -> u64 {
    (SEAL_FIXED + commit) as u64
}

fn put_key(out: &mut Vec<u8>, kind: u8, key: ChunkKey) {
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.put_u64(key.ino.0);
    out.put_u32(key.index);
    out.put_u64(key.version.0);
}

fn get_key(g: &mut Get<'_>) -> Option<ChunkKey> {
    g.bytes(3)?;
    Some(ChunkKey {
        ino: Ino(g.u64()?),
        index: g.u32()?,
        version: Version(g.u64()?),
    })
}

/// Appends a PUT record.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a chunk has at most 1024 runs"
)]
pub(crate) fn encode_put(out: &mut Vec<u8>, facts: &BodyFacts, is_pending: bool, is_spilled: bool) {
    out.push(PUT);
    let dirty = if facts.is_dirty { FLAG_DIRTY } else { 0 };
    let pending = if is_pending { FLAG_PENDING } else { 0 };
    let spilled = if is_spilled { FLAG_SPILLED } else { 0 };
    let kept = if facts.is_kept { FLAG_KEPT } else { 0 };
    out.push(dirty | pending | spilled | kept);
    out.put_u16(facts.runs.len() as u16);
    out.put_u32(facts.len);
    out.put_u64(facts.key.ino.0);
    out.put_u32(facts.key.index);
    out.put_u32(facts.header);
    out.put_u64(facts.key.version.0);
    put_runs(out, &facts.runs);
}

/// Appends a SEAL record.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the commit's length was checked"
)]
pub(crate) fn encode_seal(out: &mut Vec<u8>, ino: Ino, number: u64, commit: &[u8]) {
    out.extend_from_slice(&[SEAL, 0, 0, 0]);
    out.put_u32(commit.len() as u32);
    out.put_u64(ino.0);
    out.put_u64(number);
    out.extend_from_slice(commit);
}

impl Record {
    /// Appends it.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Put {
                facts,
                is_pending,
                is_spilled,
            } => encode_put(out, facts, *is_pending, *is_spilled),
            Record::Seal {
                ino,
                number,
                commit,
            } => encode_seal(out, *ino, *number, commit),
            Record::Committed { number } => {
                out.extend_from_slice(&[COMMITTED, 0, 0, 0]);
                out.put_u64(*number);
            }
            Record::Clean(key) => put_key(out, CLEAN, *key),
            Record::Remove(key) => put_key(out, REMOVE, *key),
            Record::Ticket(ticket) => {
                out.extend_from_slice(&[TICKET, 0, 0, 0]);
                out.put_u64(*ticket);
            }
            Record::Flushed(ticket) => {
                out.extend_from_slice(&[FLUSHED, 0, 0, 0]);
                out.put_u64(*ticket);
            }
            Record::Mark { stripe, ticket } => {
                out.extend_from_slice(&[MARK, 0]);
                out.put_u16(stripe.unwrap_or(MARK_SEALS));
                out.put_u64(*ticket);
            }
        }
    }

    /// Reads one; `None` when the bytes are none.
    pub(crate) fn decode(g: &mut Get<'_>) -> Option<Record> {
        Some(match g.u8()? {
            PUT => {
                let flags = g.u8()?;
                let count = usize::from(g.u16()?);
                let len = g.u32()?;
                let ino = Ino(g.u64()?);
                let index = g.u32()?;
                let header = g.u32()?;
                let key = ChunkKey {
                    ino,
                    index,
                    version: Version(g.u64()?),
                };
                let runs: Runs = get_runs(g, count)?;
                let facts = BodyFacts {
                    key,
                    len,
                    is_dirty: flags & FLAG_DIRTY != 0,
                    is_kept: flags & FLAG_KEPT != 0,
                    header,
                    runs,
                };
                Record::Put {
                    facts,
                    is_pending: flags & FLAG_PENDING != 0,
                    is_spilled: flags & FLAG_SPILLED != 0,
                }
            }
            SEAL => {
                g.bytes(3)?;
                let len = g.u32()? as usize;
                let ino = Ino(g.u64()?);
                let number = g.count()?;
                Record::Seal {
                    ino,
                    number,
                    commit: g.bytes(len)?.to_vec(),
                }
            }
            COMMITTED => {
                g.bytes(3)?;
                Record::Committed { number: g.count()? }
            }
            CLEAN => Record::Clean(get_key(g)?),
            REMOVE => Record::Remove(get_key(g)?),
            TICKET => {
                g.bytes(3)?;
                Record::Ticket(g.count()?)
            }
            FLUSHED => {
                g.bytes(3)?;
                Record::Flushed(g.count()?)
            }
            MARK => {
                g.u8()?;
                let stripe = Some(g.u16()?).filter(|&s| s != MARK_SEALS);
                Record::Mark {
                    stripe,
                    ticket: g.count()?,
                }
            }
            _ => return None,
        })
    }
}
