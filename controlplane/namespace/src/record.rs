//! Records of the namespace log: one byte of version, then postcard.

use crate::{NsError, Result};
use fastcache_api::{NsOp, OpId, Time};
use serde::{Deserialize, Serialize};

/// Version of the encoding. 1: first (NS_VERSION 1 of the operations).
pub const RECORD_VERSION: u8 = 1;

/// What a record does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RecordOp {
    /// The coordinator started: inode numbers and versions of earlier epochs are never handed out again. The first
    /// one makes the root.
    Epoch(u64),
    /// An operation that succeeded.
    Op(NsOp),
}

/// One change of the namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the log; the first is 1, none is missing.
    pub position: u64,
    /// Who asked for it, so that asking again changes nothing.
    pub id: Option<OpId>,
    /// What it stamps.
    pub now: Time,
    /// What it does.
    pub op: RecordOp,
    /// What it was given: the inode made, or the first version; 0 otherwise. A replay must come to the same.
    pub given: u64,
}

impl Record {
    /// Bytes for the log.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(128);
        out.push(RECORD_VERSION);
        postcard::to_extend(self, out)
            .map_err(|e| NsError::Damaged(format!("a record cannot be encoded: {e}")))
    }

    /// Back from bytes.
    pub fn decode(bytes: &[u8]) -> Result<Record> {
        match bytes.split_first() {
            Some((&RECORD_VERSION, rest)) => postcard::from_bytes(rest)
                .map_err(|e| NsError::Damaged(format!("a log record cannot be read: {e}"))),
            Some((version, _)) => Err(NsError::Damaged(format!(
                "a log record has version {version}; this program reads {RECORD_VERSION}"
            ))),
            None => Err(NsError::Damaged("a log record is empty".into())),
        }
    }
}
