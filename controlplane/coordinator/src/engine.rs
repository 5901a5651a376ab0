//! The namespace with its log: one embedded store holds both, so that a record and what it changes are written
//! in one atomic batch.
//!
//! A change is acknowledged when the batch has reached the operating system (it survives a kill of the process); it is
//! on stable storage after at most [`SYNC_EVERY`], and at once when [`NsOp::Sync`] waits for it. Until then the node that
//! asked for it keeps it, where there is one: see `engine/kept.rs`.
//!
//! Changes are made one after the other under one lock, in the thread that asks: each takes microseconds, and
//! handing it to another thread would cost more than it does.

mod kept;
mod kv;
mod log;
mod restore;
#[cfg(test)]
mod tests;

pub(crate) use kept::{Fate, Lost, NotLost};
pub(crate) use log::{Frozen, WeakEngine};
pub(crate) use restore::{Target, check_unused, is_there};

use crate::history::{self, HistoryConfig, HistoryError, Progress};
use fastcache_api::{Errno, HistoryState, Ino, NsOp, NsReply, NsRequest, Time, grpc};
use fastcache_namespace::{Outcome, Record};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use kv::{SnapshotKv, StateKv, fill};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// How long an acknowledged change may wait for stable storage.
pub const SYNC_EVERY: Duration = Duration::from_millis(50);
/// Records of the log that are kept: what a consumer that was away may still read. More, when the bucket does not have
/// them yet.
pub const LOG_KEPT: u64 = 1_000_000;
/// Old records that a change removes, at most: what piled up while the bucket was away goes little by little.
const TRIM_AT_ONCE: u64 = 4;
/// Cache of the embedded store, bytes.
const CACHE_BYTES: u64 = 64 << 20;
/// Changes of the state, and of the log, that the embedded store gathers in memory before it writes a table, bytes. It
/// holds up to five of them each when the disk is slow. Kept with a namespace when it is made.
const WRITE_BUFFER_BYTES: u64 = 16 << 20;
/// Most bytes of the embedded store's journal, which is read again at every start.
const JOURNAL_BYTES: u64 = 128 << 20;

/// Why the namespace cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another process has it.
    #[error(
        "the namespace in {0} is in use by another process: stop that one, or choose another --state-dir"
    )]
    Locked(PathBuf),
    /// The store failed.
    #[error(
        "the namespace in {path}: {error}; check the disk, then restore the directory from a copy or rebuild it from the bucket"
    )]
    Store {
        /// Its directory.
        path: PathBuf,
        /// What the store said.
        error: String,
    },
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] fastcache_namespace::Fault),
    /// The directory cannot be used.
    #[error("the state directory {path} cannot be used: {error}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its history in the bucket cannot be written.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Counters of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EngineStats {
    /// Position of the last record.
    pub log_position: u64,
    /// Position up to which the log is on stable storage.
    pub synced_position: u64,
    /// Inodes that exist.
    pub inodes: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The epoch of this start.
    pub epoch: u64,
    /// Changes since the start.
    pub changes: u64,
    /// Reads since the start.
    pub reads: u64,
    /// Bytes the store takes on disk.
    pub disk_bytes: u64,
    /// Bytes of it that are cached in memory.
    pub cache_bytes: u64,
    /// Bytes of changes that the store holds in memory until it writes a table of them, as it counts them.
    pub write_buffer_bytes: u64,
    /// Whether the history is written to a bucket now.
    pub is_shipping: bool,
    /// Position of the last record that is in the bucket.
    pub shipped_position: u64,
    /// How long the oldest record that is not there waits, ms; 0 without any, or without a bucket.
    pub history_lag_ms: u64,
}

struct Inner {
    db: Database,
    state: StateKv,
    log: Keyspace,
    path: PathBuf,
    /// Held while a change is made.
    writer: Mutex<()>,
    /// Position of the last record that the operating system has.
    written: AtomicU64,
    synced: AtomicU64,
    syncing: tokio::sync::Mutex<()>,
    changes: AtomicU64,
    reads: AtomicU64,
    epoch: u64,
    file_system: u64,
    /// What this start found: the highest epoch and the last record before it.
    before: (u64, u64),
    /// Position of the first record in the log; above the last one when there is none.
    log_begins: AtomicU64,
    /// What is known of the history in the bucket, kept across starts.
    notes: Keyspace,
    progress: Mutex<Progress>,
    /// The history got further, or stopped.
    moved: watch::Sender<()>,
    hurry: Arc<Notify>,
}

/// A namespace and its log in a directory. Clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// How the tables are made.
fn table_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(WRITE_BUFFER_BYTES)
}

impl Engine {
    /// Opens the namespace in a directory, or makes an empty one. Raises the epoch, durably, before it returns.
    /// To be called inside a tokio runtime: a task of it syncs the log.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn open(state_dir: &Path) -> Result<Engine, EngineError> {
        Engine::open_with(state_dir, SYNC_EVERY)
    }

    /// [`Engine::open`]; an acknowledged change waits for stable storage for `sync_every` at most.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn open_with(state_dir: &Path, sync_every: Duration) -> Result<Engine, EngineError> {
        let path = state_dir.to_path_buf();
        std::fs::create_dir_all(&path).map_err(|error| EngineError::Directory {
            path: path.clone(),
            error,
        })?;
        let wrong = |error: fjall::Error| match error {
            fjall::Error::Locked => EngineError::Locked(path.clone()),
            other => EngineError::Store {
                path: path.clone(),
                error: other.to_string(),
            },
        };
        let db = Database::builder(&path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .open()
            .map_err(wrong)?;
        let state = db.keyspace("state", table_options).map_err(wrong)?;
        let log = db.keyspace("log", table_options).map_err(wrong)?;
        let notes = db.keyspace("history", table_options).map_err(wrong)?;
        let state = StateKv(state);
        let counters = fastcache_namespace::counters(&state)?;
        let floor = log::note(&notes, log::EPOCH_FLOOR).map_err(wrong)?;
        let before = (counters.epoch.max(floor), counters.position);
        let epoch = before.0 + 1;
        let number = match fastcache_namespace::file_system(&state)? {
            Some(number) => number,
            None => rand::random(),
        };
        let (record, changes) =
            fastcache_namespace::begin_epoch(&state, epoch, number, Time::now())?;
        let position = record.position;
        let bytes = record.encode().map_err(|e| EngineError::Store {
            path: path.clone(),
            error: e.to_string(),
        })?;
        let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&log, position.to_be_bytes().to_vec(), bytes);
        fill(&mut batch, &state.0, changes);
        kept::note_end(&mut batch, &notes, (counters.epoch, floor), before.1);
        batch.commit().map_err(wrong)?;
        let log_begins = log::first(&log).map_err(wrong)?.unwrap_or(position);
        let progress = Progress::new(HistoryState::Off, position, 0, Instant::now());
        let engine = Engine {
            inner: Arc::new(Inner {
                db,
                state,
                log,
                path,
                writer: Mutex::new(()),
                written: AtomicU64::new(position),
                synced: AtomicU64::new(position),
                syncing: tokio::sync::Mutex::new(()),
                changes: AtomicU64::new(0),
                reads: AtomicU64::new(0),
                epoch,
                file_system: number,
                before,
                log_begins: AtomicU64::new(log_begins),
                notes,
                progress: Mutex::new(progress),
                moved: watch::Sender::new(()),
                hurry: Arc::new(Notify::new()),
            }),
        };
        tokio::spawn(keep_synced(Arc::downgrade(&engine.inner), sync_every));
        Ok(engine)
    }

    /// Opens the namespace and writes its history to a bucket, if there is one. A bucket that is away is tried again in
    /// the background; only for a new namespace it must be there.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn start(
        state_dir: &Path,
        history: Option<HistoryConfig>,
    ) -> Result<Engine, EngineError> {
        Engine::start_with(state_dir, history, SYNC_EVERY).await
    }

    /// [`Engine::start`]; an acknowledged change waits for stable storage for `sync_every` at most.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn start_with(
        state_dir: &Path,
        history: Option<HistoryConfig>,
        sync_every: Duration,
    ) -> Result<Engine, EngineError> {
        if let Some(config) = &history
            && !is_there(state_dir)
        {
            history::expect_free(&config.cloud).await?;
        }
        let path = state_dir.to_path_buf();
        let opened = tokio::task::spawn_blocking(move || Engine::open_with(&path, sync_every));
        let opened = opened.await;
        let engine = opened.map_err(|e| EngineError::Store {
            path: state_dir.to_path_buf(),
            error: e.to_string(),
        })??;
        if let Some(config) = history {
            engine.write_history(config).await?;
        }
        Ok(engine)
    }

    /// Does one operation. Changes are acknowledged as the top of this file says.
    pub async fn call(&self, request: NsRequest) -> NsReply {
        if request.op == NsOp::Sync {
            return match self.sync().await {
                Ok(()) => self.query(&NsOp::Sync),
                Err(()) => failed(),
            };
        }
        match request.op {
            NsOp::Persist { upto } => self.persist(upto).await,
            NsOp::History { ino } => self.history(ino),
            NsOp::TakeGarbage { max, upto } => {
                // What no snapshot covers may still be named by a state that is rebuilt.
                let upto = upto.min(self.garbage_released());
                let op = NsOp::TakeGarbage { max, upto };
                self.change(&NsRequest { op, ..request })
            }
            _ if request.op.is_change() => self.change(&request),
            _ => self.query(&request.op),
        }
    }

    fn query(&self, op: &NsOp) -> NsReply {
        self.inner.reads.fetch_add(1, Ordering::Relaxed);
        fastcache_namespace::answer(
            &SnapshotKv(self.inner.db.snapshot(), &self.inner.state.0),
            op,
        )
        .unwrap_or_else(|error| {
            tracing::error!(target: "namespace", %error, "a read of the namespace failed");
            failed()
        })
    }

    /// Whether a change was done already, and is asked for again.
    pub(crate) fn is_answered(&self, request: &NsRequest) -> bool {
        let known = |id| fastcache_namespace::is_answered(&self.inner.state, id).unwrap_or(false);
        request.id.is_some_and(known)
    }

    fn change(&self, request: &NsRequest) -> NsReply {
        self.change_logged(request).0
    }

    /// A change, and what is kept of it elsewhere until it is on stable storage; nothing of one that was none.
    fn change_logged(&self, request: &NsRequest) -> (NsReply, Option<grpc::Kept>) {
        let _one_at_a_time = self.writing();
        let outcome = fastcache_namespace::change(&self.inner.state, request);
        let done = outcome.map_err(|e| e.to_string()).and_then(|o| match o {
            Outcome::Answered(reply) => Ok((reply, None)),
            Outcome::Applied(record, changes, reply, origin) => {
                let bytes = self.write(&record, changes, &reply)?;
                let kept = kept::of(&record, bytes, origin, &reply);
                Ok((reply, Some(kept)))
            }
        });
        done.unwrap_or_else(|error| {
            tracing::error!(target: "namespace", %error, "a change of the namespace failed; when the log cannot be written, changes fail until the process is started again");
            (failed(), None)
        })
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        let writer = &self.inner.writer;
        writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who is [`Engine::writing`]. The record as it is in the log.
    fn write(
        &self,
        record: &Record,
        changes: fastcache_namespace::Changes,
        reply: &NsReply,
    ) -> Result<Vec<u8>, String> {
        let inner = &self.inner;
        let bytes = record.encode().map_err(|e| e.to_string())?;
        let mut batch = inner.db.batch();
        batch.insert(
            &inner.log,
            record.position.to_be_bytes().to_vec(),
            &bytes[..],
        );
        let begins = inner.log_begins.load(Ordering::Relaxed);
        let keep = self.log_kept_from(record.position);
        let trimmed = keep.clamp(begins, begins + TRIM_AT_ONCE);
        for old in begins..trimmed {
            batch.remove(&inner.log, old.to_be_bytes().to_vec());
        }
        fill(&mut batch, &inner.state.0, changes);
        batch.commit().map_err(|e| e.to_string())?;
        inner.log_begins.store(trimmed, Ordering::Relaxed);
        inner.written.store(record.position, Ordering::Release);
        inner.changes.fetch_add(1, Ordering::Relaxed);
        let mut progress = self.progress();
        if progress.state != HistoryState::Off {
            let inos = fastcache_namespace::concerned(&record.op, reply);
            progress.noted(record.position, inos, Instant::now());
        }
        Ok(bytes)
    }

    /// Waits until everything written so far is on stable storage; callers share one sync.
    pub(crate) async fn sync(&self) -> Result<(), ()> {
        let want = self.inner.written.load(Ordering::Acquire);
        let _one_at_a_time = self.inner.syncing.lock().await;
        if self.inner.synced.load(Ordering::Acquire) >= want {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || {
            let upto = inner.written.load(Ordering::Acquire);
            inner.db.persist(PersistMode::SyncData).map(|()| upto)
        });
        match done.await {
            Ok(Ok(upto)) => {
                self.inner.synced.fetch_max(upto, Ordering::AcqRel);
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(target: "namespace", %error, path = %self.inner.path.display(), "the log cannot be put on stable storage");
                Err(())
            }
            Err(_) => Err(()),
        }
    }

    /// Puts everything on stable storage, and into the bucket if that works at once; for an ordered end.
    pub async fn close(&self) {
        // The failure is logged in there, and there is nothing else to do about it here.
        let _ = self.sync().await;
        if self.progress().state == HistoryState::Shipping {
            self.persist(0).await;
        }
    }

    /// Inodes without a name.
    pub(crate) fn orphans(&self) -> Vec<Ino> {
        fastcache_namespace::orphans(&self.inner.state).unwrap_or_else(|error| {
            tracing::error!(target: "namespace", %error, "a read of the namespace failed");
            Vec::new()
        })
    }

    /// Number of the file system, and the epoch of this start.
    pub fn owner(&self) -> (u64, u64) {
        (self.inner.file_system, self.inner.epoch)
    }

    /// Counters now.
    pub fn stats(&self) -> EngineStats {
        let inner = &self.inner;
        let counters = fastcache_namespace::counters(&inner.state).unwrap_or_default();
        let history = self.history_status(None).unwrap_or_default();
        EngineStats {
            log_position: counters.position,
            synced_position: inner.synced.load(Ordering::Relaxed),
            inodes: counters.inodes,
            bytes: counters.bytes,
            epoch: inner.epoch,
            changes: inner.changes.load(Ordering::Relaxed),
            reads: inner.reads.load(Ordering::Relaxed),
            disk_bytes: inner.db.disk_space().unwrap_or(0),
            cache_bytes: inner.db.cache_size(),
            write_buffer_bytes: [&inner.state.0, &inner.log, &inner.notes]
                .into_iter()
                .map(write_buffer)
                .sum(),
            is_shipping: history.state == HistoryState::Shipping,
            shipped_position: history.shipped_position,
            history_lag_ms: history.lag_ms.unwrap_or(0),
        }
    }
}

/// Syncs the log while there is something to sync, until the engine is gone.
async fn keep_synced(inner: std::sync::Weak<Inner>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.written.load(Ordering::Acquire) > inner.synced.load(Ordering::Acquire) {
            // Logged in there; the next round tries again.
            let _ = Engine { inner }.sync().await;
        }
    }
}

fn failed() -> NsReply {
    NsReply {
        result: Err(Errno::EIO),
        touched: Vec::new(),
        log_position: 0,
        lease_ms: None,
    }
}

/// Bytes of changes that are in no table yet. Those that wait to be written are full. The store's own count of all of them leaves
/// out what is written in batches.
fn write_buffer(keyspace: &Keyspace) -> u64 {
    let waiting = keyspace.tree.sealed_memtable_count() as u64;
    keyspace.tree.active_memtable().size() + waiting * WRITE_BUFFER_BYTES
}
