//! What nodes keep of the log until it is on stable storage, and what is made of it when they bring it back.
//!
//! A record that was acknowledged and is not on stable storage yet is lost when the machine loses power. So its node keeps it,
//! with what makes the same of it in a later epoch, until it hears that the log is stable up to there. After a start, what
//! nodes bring of an earlier epoch behind the [end](note_end) that it had on stable storage is made again, as new records.
//!
//! A record of one run is never taken for one of another, though runs reuse positions: each start writes a record of its own
//! epoch before anything else, and notes where the epoch before it ended.

use super::{Engine, failed};
use fastcache_api::{Errno, NsOp, NsReply, NsRequest, Time, grpc};
use fastcache_namespace::{Origin, Outcome, Record, RecordError};
use fjall::Keyspace;
use std::ops::Bound;
use std::sync::atomic::Ordering;

/// Longest record that a node is given to keep, bytes; a longer one is on stable storage before it is acknowledged.
const RECORD_MAX: usize = 64 << 10;
/// Records behind the end of an epoch that can be lost, at most: in one sync of the log there are not so many.
const LOST_MAX: u64 = 1 << 20;
/// Positions that are left out behind the last one that is known to be lost: more than changes can have been seen by a node
/// and not be acknowledged. An attribute with a higher position than another is the newer one, on nodes.
const MARGIN: u64 = 4096;
/// Ends of epochs that are noted, at most.
const ENDS_MAX: u64 = 10_000;
/// Begin of the name of such a note; the epoch, big-endian, follows.
const ENDED: &[u8] = b"ended-";

fn ended(epoch: u64) -> Vec<u8> {
    [ENDED, &epoch.to_be_bytes()].concat()
}

/// Notes with a start that the epochs before it, as far as the state (the first) or only the bucket (the second) has them,
/// ended at this position.
pub(super) fn note_end(
    batch: &mut fjall::OwnedWriteBatch,
    notes: &Keyspace,
    epochs: (u64, u64),
    position: u64,
) {
    for epoch in [epochs.0, epochs.0.max(epochs.1)] {
        batch.insert(notes, ended(epoch), position.to_be_bytes().to_vec());
        if let Some(old) = epoch.checked_sub(ENDS_MAX) {
            batch.remove(notes, ended(old));
        }
    }
}

/// What came of a record, for its node.
pub(super) fn of(record: &Record, bytes: Vec<u8>, origin: Origin, reply: &NsReply) -> grpc::Kept {
    grpc::Kept {
        epoch: record.epoch,
        position: record.position,
        record: bytes,
        inos: origin.ino,
        versions: origin.version,
        touched: touched(reply),
    }
}

/// Stands for the inodes that a change touched, in order.
fn touched(reply: &NsReply) -> u32 {
    let inos = reply.touched.iter().flat_map(|a| a.ino.0.to_be_bytes());
    crc_fast::crc32_iscsi(&inos.collect::<Vec<u8>>())
}

/// Whether a lost change would be missed. Who drew versions has them: no other epoch gives them away. What was taken off the
/// deletion queue is taken, and deleted, once more.
fn is_missed(request: &NsRequest) -> bool {
    request.id.is_some() && request.op.is_change() && !is_harmless(&request.op)
}

/// A record that a node brings. Nothing of it is believed.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) record: Record,
    origin: Origin,
    touched: u32,
    /// What it takes in memory, about.
    pub(crate) bytes: usize,
}

/// Why something that was brought cannot be a record that was lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLost {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(
        "a record is of epoch {0}, position {1}, and was said to be of epoch {2}, position {3}"
    )]
    Place(u64, u64, u64, u64),
    #[error("a record that nobody asked for was not to be kept")]
    Asked,
    #[error("position {0} is more than {LOST_MAX} records behind the end of epoch {1}, {2}")]
    TooFar(u64, u64, u64),
}

/// What became of a lost change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is made again.
    Restored,
    /// The state has it.
    There,
    /// It cannot be made as it was acknowledged, and why.
    Gone(String),
}

impl Engine {
    /// [`Engine::call`] for a node: what it keeps of a change comes with the reply. Nothing does where nothing can be lost any
    /// more, or would be missed.
    pub(crate) async fn call_kept(&self, request: NsRequest) -> (NsReply, Option<grpc::Kept>) {
        if !is_missed(&request) {
            return (self.call(request).await, None);
        }
        let (reply, kept) = self.change_logged(&request);
        let kept = kept.filter(|k| k.record.len() <= RECORD_MAX);
        // A long one, or an answer that is given again.
        let is_safe = kept.is_some() || reply.log_position <= self.stable();
        if !is_safe && self.sync().await.is_err() {
            return (failed(), None);
        }
        (reply, kept)
    }

    /// Position up to which the log is on stable storage.
    pub(crate) fn stable(&self) -> u64 {
        self.inner.synced.load(Ordering::Acquire)
    }

    /// Where an earlier epoch ended, as far as it is here. `None` of this one and later ones.
    fn end_of(&self, epoch: u64) -> Result<Option<u64>, String> {
        if epoch >= self.inner.epoch {
            return Ok(None);
        }
        let range = (
            Bound::Included(ended(epoch)),
            Bound::Included(ended(u64::MAX)),
        );
        // An epoch without a note ended where the next one did that has one: none of its records came after that.
        let Some(first) = self.inner.notes.range::<Vec<u8>, _>(range).next() else {
            return Ok(None);
        };
        let value = first.value().map_err(|e| e.to_string())?;
        Ok(value.first_chunk::<8>().copied().map(u64::from_be_bytes))
    }

    /// Reads what a node brings. `None`: it was not lost.
    ///
    /// # Errors
    /// When it is not a record that this file system can have lost. When the store cannot be read: as if it was not lost.
    pub(crate) fn lost(&self, kept: &grpc::Kept) -> Result<Option<Lost>, NotLost> {
        let record = Record::decode(&kept.record)?;
        if (record.epoch, record.position) != (kept.epoch, kept.position) {
            let (epoch, position) = (record.epoch, record.position);
            return Err(NotLost::Place(epoch, position, kept.epoch, kept.position));
        }
        let request = NsRequest {
            id: record.id,
            now: record.now,
            op: record.op.clone(),
        };
        if record.origin.is_some() || !is_missed(&request) {
            return Err(NotLost::Asked);
        }
        let end = self.end_of(record.epoch).unwrap_or_else(|error| {
            tracing::error!(target: "namespace", %error, "a read of the namespace failed");
            None
        });
        let Some(end) = end.filter(|end| record.position > *end) else {
            return Ok(None);
        };
        if record.position - end > LOST_MAX {
            return Err(NotLost::TooFar(record.position, record.epoch, end));
        }
        Ok(Some(Lost {
            origin: Origin {
                epoch: record.epoch,
                ino: kept.inos,
                version: kept.versions,
            },
            record,
            touched: kept.touched,
            bytes: kept.record.len() + size_of::<Lost>(),
        }))
    }

    /// How many records of this epoch behind its end are not among these.
    pub(crate) fn missing(&self, lost: &[Lost]) -> u64 {
        let end = |l: &Lost| self.end_of(l.record.epoch).ok().flatten().unwrap_or(0);
        let epochs = lost.chunk_by(|a, b| a.record.epoch == b.record.epoch);
        let missing = epochs.filter_map(|of| {
            let last = of.last()?;
            Some((last.record.position - end(last)).saturating_sub(of.len() as u64))
        });
        missing.sum()
    }

    /// Whether nothing was changed since an epoch ended, but by [`Engine::restore`].
    pub(crate) fn is_as_at_the_end_of(&self, epoch: u64) -> bool {
        let Ok(Some(end)) = self.end_of(epoch) else {
            return false;
        };
        let from = end.saturating_add(1);
        // In that case it is not known.
        if from < self.log_begins() {
            return false;
        }
        let mut records = self.inner.log.range(from.to_be_bytes()..);
        records.all(|guard| {
            let value = guard.value().ok();
            let record = value.and_then(|v| Record::decode(&v).ok());
            record.is_some_and(|record| record.origin.is_some() || is_harmless(&record.op))
        })
    }

    /// Makes a lost change again, as it was acknowledged or not at all: with its inode numbers, versions and times, and on the
    /// same inodes. Once others may have changed what it changed, only what adds something is.
    ///
    /// # Errors
    /// When the log cannot be written, with the store's words.
    pub(crate) fn restore(&self, lost: &Lost, is_late: bool) -> Result<Fate, String> {
        self.leave_out(lost.record.position)?;
        let _one_at_a_time = self.writing();
        let outcome = fastcache_namespace::restore(&self.inner.state, &lost.record, lost.origin);
        match outcome {
            Err(error) => Ok(Fate::Gone(error.to_string())),
            Ok(Outcome::Answered(reply)) => Ok(match reply.result {
                Ok(_) => Fate::There,
                Err(errno) => Fate::Gone(errno.to_string()),
            }),
            Ok(Outcome::Applied(record, changes, reply, _)) => {
                if touched(&reply) != lost.touched {
                    return Ok(Fate::Gone("it would change other inodes now".to_owned()));
                }
                if is_late && !is_added(&record.op) {
                    return Ok(Fate::Gone("there were other changes since".to_owned()));
                }
                self.write(&record, changes, &reply)?;
                Ok(Fate::Restored)
            }
        }
    }

    /// Leaves positions out up to this one and some more: nodes may have seen attributes with them.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn leave_out_behind(&self, position: u64) -> Result<(), String> {
        self.leave_out(position.max(self.log_position()).saturating_add(MARGIN))
    }

    /// The next record will have this position, or a later one.
    fn leave_out(&self, position: u64) -> Result<(), String> {
        while self.log_position().saturating_add(1) < position {
            let request = NsRequest {
                id: None,
                now: Time::now(),
                op: NsOp::AllocVersions { count: 1 },
            };
            if let Err(errno) = self.change(&request).result {
                return Err(match errno {
                    Errno::EIO => "the log cannot be written".to_owned(),
                    other => other.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// Whether it changes nothing that another change could differ by.
fn is_harmless(op: &NsOp) -> bool {
    matches!(
        op,
        NsOp::Begin { .. } | NsOp::AllocVersions { .. } | NsOp::TakeGarbage { .. }
    )
}

/// Whether it only adds, or checks by itself what it was made from.
fn is_added(op: &NsOp) -> bool {
    matches!(
        op,
        NsOp::Make { .. } | NsOp::Link { .. } | NsOp::Commit(_) | NsOp::Persisted { .. }
    )
}
