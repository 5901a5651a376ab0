//! The coordinator: the namespace, the nodes that use it, and the leases that keep what they cached true.
//!
//! ```text
//!  change by A ─► engine (logged, applied) ─► leases of other nodes on what it touched
//!                                              │ one Revocation each, on the node's watch stream
//!                                              ▼
//!                  answered  ◄── all acknowledged, or their leases over
//! ```
//!
//! As long as only one node was ever registered, nothing can change behind its back: replies carry no end of lease
//! and nothing is noted. When the second one comes, the first is told to forget everything before the second
//! gets its session. After a restart of the coordinator nothing is known of the leases given before; where
//! there is more than one node, changes then wait until those are over.
//!
//! One node at a time may write a file: an `Open` for writing asks the node that could before to commit what it has,
//! and waits for that. A `Commit` of anybody else is refused (ESTALE).
//!
//! When the machine lost power, nodes bring back what was acknowledged to them and is not in the log (`coordinator/resent.rs`);
//! nothing is answered before that is made again.
//!
//! A session's lease is renewed by its heartbeats, and what it holds lasts as long; when it has ended, a change waits for
//! that node no more. What is open on a node is not known here: before an orphan is reaped, the other nodes are asked.

mod asking;
mod boot;
mod calling;
mod locking;
mod orphans;
mod promised;
mod registering;
mod resent;
mod revocations;
mod settling;
mod tables;
#[cfg(test)]
mod tests;
mod writing;

pub use asking::Held;
pub use registering::{REVOCATIONS_QUEUED, Registered, Renewed};
pub(crate) use resent::ResendError;
pub use revocations::Revocations;

use crate::leases::LeaseTable;
use crate::locations::Locations;
use crate::locks::Locks;
use crate::registry::{Peer, Registry, UnknownSession};
use crate::{Engine, EngineError, HistoryConfig, SYNC_EVERY};
use boot::Boot;
use fastcache_api::grpc;
use promised::PromisedLease;
use resent::Resent;
use settling::Settled;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tables::Tables;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a lease is, from when the request was received. Holders count from when they sent it, which is earlier.
pub const LEASE: Duration = Duration::from_secs(10);
/// A node that was not heard of for this long is dropped.
pub const STALE_AFTER: Duration = Duration::from_secs(60);
/// How often in one lease it is seen to that nodes are fenced.
const FENCING_TICKS: u32 = 10;

/// Times of a coordinator.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// See [`LEASE`].
    pub lease: Duration,
    /// See [`STALE_AFTER`].
    pub stale_after: Duration,
    /// See [`SYNC_EVERY`].
    pub sync_every: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            lease: LEASE,
            stale_after: STALE_AFTER,
            sync_every: SYNC_EVERY,
        }
    }
}

struct Inner {
    engine: Engine,
    options: Options,
    tables: Mutex<Tables>,
    /// Held from making a change until its holders are found.
    order: tokio::sync::Mutex<()>,
    /// Whether leases may be out that the table does not know.
    settled: watch::Sender<Settled>,
    /// How many wait for such leases to be over.
    settling: AtomicUsize,
    /// How long one may last that an earlier run gave.
    longest_lease: Duration,
    resent: resent::Resent,
    locations: Mutex<Locations>,
    /// Locks may be free that were not.
    freed: watch::Sender<()>,
    /// Streams are to end, so that a server can.
    stopping: watch::Sender<bool>,
}

/// A cluster's registry, namespace and leases. Clones share it.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

/// Counters of a coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CoordinatorStats {
    /// Nodes that are live.
    pub peers_live: usize,
    /// Nodes that were registered in this run.
    pub peers: usize,
    /// Leases noted.
    pub leases: usize,
    /// Locks of files that nodes hold.
    pub locks: usize,
    /// Revocations sent since the start.
    pub revocations: u64,
    /// Of these, those that were not acknowledged within a lease.
    pub revocations_unanswered: u64,
    /// Changes that were lost with the end of the log at a start, and were made again.
    pub changes_restored: u64,
    /// Of what nodes brought back, those that could not be made again.
    pub changes_lost: u64,
}

impl Coordinator {
    /// Opens a coordinator's state directory, or makes one. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn open(state_dir: &Path, options: Options) -> Result<Coordinator, EngineError> {
        let engine = Engine::open_with(&state_dir.join("namespace"), options.sync_every)?;
        Coordinator::on(engine, state_dir, options)
    }

    /// [`Coordinator::open`], with the history of the namespace written to a bucket.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn start(
        state_dir: &Path,
        options: Options,
        history: Option<HistoryConfig>,
    ) -> Result<Coordinator, EngineError> {
        let dir = state_dir.join("namespace");
        let engine = Engine::start_with(&dir, history, options.sync_every).await?;
        Coordinator::on(engine, state_dir, options)
    }

    fn on(engine: Engine, state_dir: &Path, options: Options) -> Result<Coordinator, EngineError> {
        if engine.is_unsettled() {
            // Only an operator knows which nodes there are.
            tracing::warn!(target: "registry", "this namespace was rebuilt: chunks that no node has any more read as errors; when every node is connected or known to be gone, fastcache-ctl fsck --repair on one of them brings back what was persisted before");
        }
        let stats = engine.stats();
        let registry = Registry::open(
            state_dir,
            stats.epoch << 32,
            options.stale_after,
            options.lease,
        )
        .map_err(|error| EngineError::Directory {
            path: state_dir.to_path_buf(),
            error,
        })?;
        // A bucket does not say which nodes there were.
        let may_be_held = registry.is_shared() || engine.is_unsettled();
        let wrong = |error| EngineError::Directory {
            path: state_dir.to_path_buf(),
            error,
        };
        let promised = PromisedLease::open(state_dir, options.lease).map_err(wrong)?;
        let are_nodes = !registry.known().is_empty();
        let returning = (!engine.is_unsettled()).then(|| registry.known());
        let resent = Boot::open(state_dir).and_then(|boot| Resent::new(boot, are_nodes));
        let resent = resent.map_err(wrong)?;
        let tables = Tables {
            registry,
            leases: LeaseTable::default(),
            pending: BTreeMap::new(),
            outlets: HashMap::new(),
            wanting: HashMap::new(),
            excuses: HashMap::new(),
            locks: Locks::default(),
            returning: settling::Returning::new(returning),
            next_revocation: 0,
            questions: asking::Questions::default(),
            making_room: HashSet::new(),
            position: stats.log_position,
            is_stopping: false,
            revocations: 0,
            unanswered: 0,
        };
        let inner = Arc::new(Inner {
            engine,
            options,
            tables: Mutex::new(tables),
            order: tokio::sync::Mutex::new(()),
            settled: watch::Sender::new(match may_be_held {
                true => Settled::No,
                false => Settled::Yes,
            }),
            settling: AtomicUsize::new(usize::from(may_be_held)),
            longest_lease: promised.longest(),
            resent,
            locations: Mutex::new(Locations::default()),
            freed: watch::Sender::new(()),
            stopping: watch::Sender::new(false),
        });
        let settling = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let start = tokio::time::Instant::now();
            let are_back = settling::are_back(Weak::clone(&settling), promised.longest()).await;
            if are_back
                && may_be_held
                && let Some(inner) = settling.upgrade()
            {
                tracing::info!(target: "registry", ms = start.elapsed().as_millis(), "every node is back: changes go on");
                inner.is_settled();
            }
            tokio::time::sleep_until(start + promised.longest()).await;
            let Some(inner) = settling.upgrade() else {
                return;
            };
            resent::stop_waiting(&inner).await;
            if may_be_held && !are_back {
                inner.is_settled();
            }
            promised.is_over();
        });
        tokio::spawn(keep_tables(
            Arc::downgrade(&inner),
            options.lease / FENCING_TICKS,
        ));
        tokio::spawn(orphans::reap_abandoned(
            Arc::downgrade(&inner),
            options.stale_after,
        ));
        Ok(Coordinator { inner })
    }

    /// The namespace, for calls of the coordinator's own (reads: changes made here revoke nothing).
    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn locations(&self) -> MutexGuard<'_, Locations> {
        self.inner
            .locations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.inner
            .tables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of the log is on stable storage, for a node.
    pub(crate) fn stable(&self) -> grpc::Stable {
        let engine = &self.inner.engine;
        grpc::Stable {
            epoch: engine.owner().1,
            position: match self.inner.resent.is_made_again() {
                true => engine.stable(),
                false => 0,
            },
        }
    }

    /// Whether a session is one of this run's.
    pub(crate) fn check(&self, session: u64) -> Result<(), UnknownSession> {
        self.tables().registry.check(session)
    }

    /// Another number than before when the list of nodes changed.
    pub fn peers_version(&self) -> u64 {
        self.tables().registry.version()
    }

    /// The nodes of this run.
    pub fn peers(&self) -> Vec<Peer> {
        self.tables().registry.peers(Instant::now())
    }

    /// Counters now.
    pub fn stats(&self) -> CoordinatorStats {
        let tables = self.tables();
        let peers = tables.registry.peers(Instant::now());
        let (changes_restored, changes_lost) = self.inner.resent.counts();
        CoordinatorStats {
            peers_live: peers.iter().filter(|p| p.state == "live").count(),
            peers: peers.len(),
            leases: tables.leases.len(),
            locks: tables.locks.len(),
            revocations: tables.revocations,
            revocations_unanswered: tables.unanswered,
            changes_restored,
            changes_lost,
        }
    }

    /// True when streams are to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.inner.stopping.subscribe()
    }

    /// Ends the streams, so that a server can end.
    pub(crate) fn stop(&self) {
        self.inner.stopping.send_replace(true);
        let mut tables = self.tables();
        tables.is_stopping = true;
        tables.outlets.clear();
    }

    /// Puts everything on stable storage, for an ordered end.
    pub async fn close(&self) {
        self.inner.engine.close().await;
    }
}

/// Runs [`Tables::keep`] until the coordinator is gone.
async fn keep_tables(inner: Weak<Inner>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        let are_free = {
            let mut tables = inner.tables.lock().unwrap_or_else(PoisonError::into_inner);
            tables.keep(Instant::now(), inner.options.lease)
        };
        if are_free {
            inner.freed.send_replace(());
        }
    }
}
