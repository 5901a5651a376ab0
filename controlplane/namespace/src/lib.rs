//! The namespace as a pure state machine: log records, state, rules of POSIX. No network, no clock, no I/O.
//!
//! ```text
//!  request ─► prepare() ─► Record ─► log        every change is a record; replaying them gives the same state
//!                            └─────► apply(state, record) ─► (changes of the state, reply)
//!  read    ─► answer(state, op) ─► reply
//! ```

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )
)]

mod audit;
mod change;
mod contents;
mod incomplete;
mod keys;
mod kv;
mod query;
mod restore;
mod state;
#[cfg(test)]
mod tests;

pub use incomplete::incomplete;
pub use kv::{Changes, Kv, KvError, MemoryKv, Pair, Take};
pub use restore::{Origin, restore};
pub use state::{Counters, Dirent, Fault, REPLIES_KEPT};

use fastcache_api::{Errno, Ino, NsAnswer, NsOp, NsReply, NsRequest, OpId, Time};
use serde::{Deserialize, Serialize};
use state::{Done, State};

/// Version of the records in the log. 1: first. 2: the begin of an epoch is a record, and the deletion queue is taken up
/// to a number. 3: the [`Origin`] of a change that is made again comes first; all others are written as version 2.
pub const RECORD_VERSION: u8 = 3;
/// The version of a record without an origin.
const PLAIN_VERSION: u8 = 2;

/// One change, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the log; the first is 1.
    pub position: u64,
    /// The epoch it was made in.
    pub epoch: u64,
    /// Who asked, so that asking twice does it once.
    pub id: Option<OpId>,
    /// The time it stamps.
    pub now: Time,
    /// What changes.
    pub op: NsOp,
    /// It was made before, in another epoch, and is made again.
    #[serde(skip)]
    pub origin: Option<Origin>,
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by a later version.
    #[error(
        "a log record has version {0}, this program reads up to {RECORD_VERSION}: install the version that wrote it"
    )]
    Version(u8),
    /// Not a record.
    #[error("a log record is damaged: {0}")]
    Damaged(postcard::Error),
    /// Nothing there.
    #[error("a log record is empty")]
    Empty,
}

impl Record {
    /// A version byte, then postcard.
    ///
    /// # Errors
    /// When the encoder fails, which it does for no record that was decoded or made here.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let head = match &self.origin {
            None => Ok(vec![PLAIN_VERSION]),
            Some(origin) => postcard::to_extend(origin, vec![RECORD_VERSION]),
        };
        head.and_then(|head| postcard::to_extend(self, head))
            .map_err(RecordError::Damaged)
    }

    /// Reads what `encode` wrote.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        match bytes.split_first() {
            None => Err(RecordError::Empty),
            Some((&PLAIN_VERSION, rest)) => {
                postcard::from_bytes(rest).map_err(RecordError::Damaged)
            }
            Some((&RECORD_VERSION, rest)) => {
                let (origin, rest) =
                    postcard::take_from_bytes(rest).map_err(RecordError::Damaged)?;
                let record = postcard::from_bytes(rest).map_err(RecordError::Damaged)?;
                Ok(Record {
                    origin: Some(origin),
                    ..record
                })
            }
            Some((version, _)) => Err(RecordError::Version(*version)),
        }
    }
}

/// The counters of a state; all zero for an empty one.
///
/// # Errors
/// When the store cannot be read.
pub fn counters(kv: &impl Kv) -> Done<Counters> {
    Ok(State::new(kv)?.counters)
}

/// Inodes that have no name: nobody has them open, or somebody has.
///
/// # Errors
/// When the store cannot be read.
pub fn orphans(kv: &impl Kv) -> Done<Vec<Ino>> {
    State::new(kv)?.orphans()
}

/// What a start does: a record that begins an epoch, as its first. The first one of all names the file system and makes
/// its root.
///
/// # Errors
/// When the store cannot be read.
pub fn begin_epoch(
    kv: &impl Kv,
    epoch: u64,
    file_system: u64,
    now: Time,
) -> Done<(Record, Changes)> {
    let record = Record {
        position: counters(kv)?.position + 1,
        epoch,
        id: None,
        now,
        op: NsOp::Begin { file_system },
        origin: None,
    };
    let changes = replay(kv, &record)?;
    Ok((record, changes))
}

/// The number of the file system; `None` before its first epoch.
///
/// # Errors
/// When the store cannot be read.
pub fn file_system(kv: &impl Kv) -> Done<Option<u64>> {
    State::new(kv)?.file_system()
}

/// The inodes whose identity, path, attributes or contents an applied record concerns (directories whose entries changed
/// are not among them), of its reply.
pub fn concerned(op: &NsOp, reply: &NsReply) -> Vec<Ino> {
    let dirs = match op {
        NsOp::Make {
            at: Some((parent, _)),
            ..
        }
        | NsOp::Unlink { parent, .. }
        | NsOp::Rmdir { parent, .. }
        | NsOp::Link { parent, .. }
        | NsOp::LinkReplace { parent, .. }
        | NsOp::LinkReplaceIf { parent, .. }
        | NsOp::UnlinkIf { parent, .. } => [Some(*parent), None],
        NsOp::Rename {
            parent, new_parent, ..
        } => [Some(*parent), Some(*new_parent)],
        _ => [None, None],
    };
    let touched = reply.touched.iter().map(|a| a.ino);
    let mut inos: Vec<Ino> = touched.filter(|i| !dirs.contains(&Some(*i))).collect();
    if let NsOp::Persisted { chunks } = op {
        inos.extend(chunks.iter().map(|c| c.key.ino));
        inos.dedup();
    }
    inos
}

/// An inode and every directory that one of its paths leads through, the root last; empty when there is no such inode.
///
/// # Errors
/// When the store cannot be read.
pub fn lineage(kv: &impl Kv, ino: Ino) -> Done<Vec<Ino>> {
    State::new(kv)?.lineage(ino)
}

/// What became of a change.
#[derive(Debug)]
pub enum Outcome {
    /// It is new: log the record, apply the changes, then give the reply. The origin is what makes the same of it in a later
    /// epoch, should it be lost.
    Applied(Box<Record>, Changes, NsReply, Origin),
    /// Nothing changes: the reply of the first time, or a refusal.
    Answered(NsReply),
}

/// Does a change that was asked for, on a state.
///
/// # Errors
/// When the store cannot be read or holds damaged values; nothing has changed then.
pub fn change(kv: &impl Kv, request: &NsRequest) -> Done<Outcome> {
    if matches!(request.op, NsOp::Begin { .. }) {
        return Ok(Outcome::Answered(refused(Errno::EPERM)));
    }
    make(kv, request.clone(), None)
}

/// Whether a change was asked for already, and is answered as it was then.
///
/// # Errors
/// When the store cannot be read.
pub fn is_answered(kv: &impl Kv, id: OpId) -> Done<bool> {
    Ok(State::new(kv)?.reply(id)?.is_some())
}

/// Does a change, or makes one again.
fn make(kv: &impl Kv, request: NsRequest, again: Option<Origin>) -> Done<Outcome> {
    let mut state = State::new(kv)?;
    if let Some(id) = request.id
        && let Some(reply) = state.reply(id)?
    {
        return Ok(Outcome::Answered(reply));
    }
    state.counters.position += 1;
    let before = state.counters;
    let record = Record {
        position: before.position,
        epoch: before.epoch,
        id: request.id,
        now: request.now,
        op: request.op,
        origin: again,
    };
    match run(&mut state, &record) {
        // Nothing to log: asked again, it would be the same.
        Ok(reply) if !state.is_changed(&before) => Ok(Outcome::Answered(NsReply {
            log_position: 0,
            ..reply
        })),
        Ok(reply) => {
            if let Some(id) = record.id {
                state.put_reply(id, &reply)?;
            }
            let origin = Origin::of(&before);
            Ok(Outcome::Applied(
                Box::new(record),
                state.finish()?,
                reply,
                origin,
            ))
        }
        Err(Fault::Refused(errno)) => Ok(Outcome::Answered(refused(errno))),
        Err(fault) => Err(fault),
    }
}

/// Applies a record that was logged before: the same changes as the first time.
///
/// # Errors
/// When the store cannot be read, or refuses what it once took (a damaged log or state).
pub fn replay(kv: &impl Kv, record: &Record) -> Done<Changes> {
    let mut state = State::new(kv)?;
    if state.counters.epoch != record.epoch {
        state.counters.epoch = record.epoch;
        state.counters.ino = 0;
        state.counters.version = 0;
    }
    state.counters.position = record.position;
    let reply = run(&mut state, record)?;
    if let Some(id) = record.id {
        state.put_reply(id, &reply)?;
    }
    state.finish()
}

fn run<K: Kv>(state: &mut State<'_, K>, record: &Record) -> Done<NsReply> {
    change::check_names(&record.op)?;
    let answer = match &record.origin {
        None => state.change(&record.op, record.now)?,
        Some(origin) => state.change_again(origin, &record.op, record.now)?,
    };
    let mut touched = Vec::with_capacity(state.touched.len());
    for ino in state.touched.clone() {
        touched.push(state.attr(ino)?);
    }
    Ok(NsReply {
        result: Ok(answer),
        touched,
        log_position: record.position,
        lease_ms: None,
    })
}

/// Answers a read.
///
/// # Errors
/// When the store cannot be read or holds damaged values.
pub fn answer(kv: &impl Kv, op: &NsOp) -> Done<NsReply> {
    let state = State::new(kv)?;
    match state.query(op) {
        Ok(answer) => Ok(told(answer)),
        Err(Fault::Refused(errno)) => Ok(refused(errno)),
        Err(fault) => Err(fault),
    }
}

fn told(answer: NsAnswer) -> NsReply {
    NsReply {
        result: Ok(answer),
        touched: Vec::new(),
        log_position: 0,
        lease_ms: None,
    }
}

fn refused(errno: Errno) -> NsReply {
    NsReply {
        result: Err(errno),
        touched: Vec::new(),
        log_position: 0,
        lease_ms: None,
    }
}
