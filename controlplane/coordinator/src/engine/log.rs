//! The log as the writer of the history reads it, and what is kept about that writer.

use super::kv::{SnapshotKv, StateKv, read_error};
use super::{Engine, Inner, LOG_KEPT, failed};
use crate::history::{Claimant, Owner, Progress};
use fastcache_api::{HistoryState, HistoryStatus, Ino, NsAnswer, NsReply};
use fastcache_namespace::{Counters, Fault, KvError, Pair};
use fjall::{Keyspace, PersistMode, Readable};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest a [`NsOp::Persist`](fastcache_api::NsOp::Persist) waits before it answers how far it is.
const PERSIST_WAIT: Duration = Duration::from_secs(5);
/// Records of one read of the log.
const RECORDS_MAX: usize = 50_000;
/// Note: the last record that is known to be in the bucket.
pub(super) const SHIPPED: &str = "shipped";
/// Note: 1 where the state was rebuilt from the bucket, and the chunks that were lost with the disks are not dealt with.
pub(super) const UNSETTLED: &str = "unsettled";
/// Note: epochs up to this one are taken, though no record here is of them.
pub(super) const EPOCH_FLOOR: &str = "epoch-floor";

/// A number that was noted; 0 when none was.
pub(super) fn note(notes: &Keyspace, name: &str) -> fjall::Result<u64> {
    let value = notes.get(name)?;
    Ok(value
        .and_then(|v| v.first_chunk::<8>().copied())
        .map_or(0, u64::from_be_bytes))
}

/// The position of the first record in a log.
pub(super) fn first(log: &Keyspace) -> fjall::Result<Option<u64>> {
    match log.first_key_value() {
        Some(guard) => {
            let key = guard.key()?;
            Ok(key.first_chunk::<8>().copied().map(u64::from_be_bytes))
        }
        None => Ok(None),
    }
}

/// A handle that does not keep the engine alive.
#[derive(Clone)]
pub(crate) struct WeakEngine(Weak<Inner>);

impl WeakEngine {
    pub(crate) fn upgrade(&self) -> Option<Engine> {
        self.0.upgrade().map(|inner| Engine { inner })
    }
}

/// The state as it was at one moment.
pub(crate) struct Frozen {
    snapshot: fjall::Snapshot,
    state: Keyspace,
    pub(crate) counters: Counters,
}

impl Frozen {
    /// Everything in it, in order of keys.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = Result<Pair, String>> + '_ {
        self.snapshot.iter(&self.state).map(|guard| {
            let (key, value) = guard.into_inner().map_err(|e| e.to_string())?;
            Ok((key.to_vec(), value.to_vec()))
        })
    }
}

impl Engine {
    pub(crate) fn downgrade(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.inner))
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.inner
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for the history.
    pub(crate) fn history_moved(&self) {
        self.inner.moved.send_replace(());
    }

    /// Somebody waits for the next segment.
    pub(crate) fn hurry(&self) -> Arc<Notify> {
        Arc::clone(&self.inner.hurry)
    }

    /// Who this is, as the history knows its writers.
    pub(crate) fn claimant(&self) -> Claimant {
        let inner = &self.inner;
        Claimant {
            owner: Owner {
                file_system: inner.file_system,
                epoch: inner.epoch,
            },
            holder: rand::random(),
            previous_epoch: inner.before.0,
            previous_position: inner.before.1,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        fastcache_namespace::counters(&self.inner.state).unwrap_or_default()
    }

    /// Position of the last record.
    pub(crate) fn log_position(&self) -> u64 {
        self.inner.written.load(Ordering::Acquire)
    }

    /// Position of the first record in the log.
    pub(crate) fn log_begins(&self) -> u64 {
        self.inner.log_begins.load(Ordering::Relaxed)
    }

    /// Records before this one may go when the last one is `position`.
    pub(super) fn log_kept_from(&self, position: u64) -> u64 {
        let keep = (position + 1).saturating_sub(LOG_KEPT);
        let progress = self.progress();
        match progress.state {
            HistoryState::Off => keep,
            _ => keep.min(progress.shipped + 1),
        }
    }

    /// Up to which number the deletion queue may be emptied.
    pub(crate) fn garbage_released(&self) -> u64 {
        let last = self.counters().garbage;
        let mut progress = self.progress();
        let over = progress.grace.over(last, Instant::now());
        match progress.state {
            HistoryState::Off => u64::MAX,
            HistoryState::Shipping => progress.garbage.min(over),
            HistoryState::Claiming | HistoryState::Stopped => 0,
        }
    }

    /// Encoded records from a position on that are on stable storage, at most `bytes` (but one at least).
    pub(crate) fn log_records(&self, from: u64, bytes: usize) -> Result<Vec<Vec<u8>>, KvError> {
        let upto = self.inner.synced.load(Ordering::Acquire);
        let mut out: Vec<Vec<u8>> = Vec::new();
        let mut total = 0;
        if from > upto {
            return Ok(out);
        }
        let range = from.to_be_bytes().to_vec()..=upto.to_be_bytes().to_vec();
        for (n, guard) in self.inner.log.range(range).take(RECORDS_MAX).enumerate() {
            let (key, value) = guard.into_inner().map_err(read_error)?;
            if key[..] != (from + n as u64).to_be_bytes() {
                return Err(KvError(format!(
                    "record {} of the log is missing",
                    from + n as u64
                )));
            }
            total += value.len();
            if total > bytes && !out.is_empty() {
                break;
            }
            out.push(value.to_vec());
        }
        Ok(out)
    }

    /// The last record that is known to be in the bucket.
    pub(crate) fn shipped_note(&self) -> u64 {
        note(&self.inner.notes, SHIPPED).unwrap_or(0)
    }

    /// Notes it; on stable storage when it returns, if `is_durable`.
    pub(crate) fn note_shipped(&self, position: u64, is_durable: bool) -> Result<(), String> {
        let inner = &self.inner;
        let noted = inner.notes.insert(SHIPPED, position.to_be_bytes().to_vec());
        noted
            .and_then(|()| match is_durable {
                true => inner.db.persist(PersistMode::SyncData),
                false => Ok(()),
            })
            .map_err(|e| e.to_string())
    }

    /// Whether this state was rebuilt from the bucket, and nobody has looked since which chunks went with the disks.
    pub fn is_unsettled(&self) -> bool {
        note(&self.inner.notes, UNSETTLED).unwrap_or(0) != 0
    }

    /// Somebody has. On stable storage when it returns.
    ///
    /// # Errors
    /// When the store cannot be written, with its words.
    pub fn settled(&self) -> Result<(), String> {
        let inner = &self.inner;
        inner
            .notes
            .remove(UNSETTLED)
            .and_then(|()| inner.db.persist(PersistMode::SyncAll))
            .map_err(|e| e.to_string())
    }

    /// The state as it is now, for as long as the answer lives.
    pub(crate) fn freeze(&self) -> Result<Frozen, Fault> {
        let state = self.inner.state.0.clone();
        let snapshot = self.inner.db.snapshot();
        let kv = SnapshotKv(snapshot, &state);
        let counters = fastcache_namespace::counters(&kv)?;
        let SnapshotKv(snapshot, _) = kv;
        Ok(Frozen {
            snapshot,
            state,
            counters,
        })
    }

    /// How far the history is, and whether it covers an inode.
    pub fn history_status(&self, ino: Option<Ino>) -> Result<HistoryStatus, Fault> {
        let lineage = match ino {
            Some(ino) => {
                let kv = SnapshotKv(self.inner.db.snapshot(), &self.inner.state.0);
                fastcache_namespace::lineage(&kv, ino)?
            }
            None => Vec::new(),
        };
        let log_position = self.log_position();
        let progress = self.progress();
        Ok(HistoryStatus {
            state: progress.state,
            file_system: self.inner.file_system,
            log_position,
            shipped_position: progress.shipped,
            snapshot_position: progress.snapshot,
            lag_ms: progress
                .lag(Instant::now())
                .filter(|_| progress.state != HistoryState::Off)
                .map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            error: progress.error.clone(),
            is_covered: progress.state != HistoryState::Off
                && !lineage.is_empty()
                && lineage.iter().all(|ino| progress.is_covered(*ino)),
        })
    }

    pub(super) fn history(&self, ino: Option<Ino>) -> NsReply {
        match self.history_status(ino) {
            Ok(status) => NsReply {
                result: Ok(NsAnswer::History(status)),
                touched: Vec::new(),
                log_position: 0,
                lease_ms: None,
            },
            Err(error) => {
                tracing::error!(target: "namespace", %error, "a read of the namespace failed");
                failed()
            }
        }
    }

    /// Waits until the history has everything up to a position (0: everything acknowledged so far), for a while.
    pub(super) async fn persist(&self, upto: u64) -> NsReply {
        let written = self.log_position();
        let want = if upto == 0 {
            written
        } else {
            upto.min(written)
        };
        let mut moved = self.inner.moved.subscribe();
        if self.sync().await.is_err() {
            return failed();
        }
        let reached = async {
            loop {
                let (state, shipped) = {
                    let progress = self.progress();
                    (progress.state, progress.shipped)
                };
                let is_over = matches!(state, HistoryState::Off | HistoryState::Stopped);
                if shipped >= want || is_over {
                    return;
                }
                self.inner.hurry.notify_one();
                if moved.changed().await.is_err() {
                    return;
                }
            }
        };
        // Whether it was reached is what the status says.
        let _ = tokio::time::timeout(PERSIST_WAIT, reached).await;
        self.history(None)
    }
}

impl StateKv {
    pub(super) fn keyspace(&self) -> &Keyspace {
        &self.0
    }
}
