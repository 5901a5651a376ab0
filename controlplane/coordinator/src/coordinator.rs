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
mod locking;
mod orphans;
mod promised;
mod resent;
mod revocations;
mod tables;
#[cfg(test)]
mod tests;
mod writing;

pub use asking::Held;
pub(crate) use resent::ResendError;
pub use revocations::Revocations;

use crate::leases::LeaseTable;
use crate::locations::Locations;
use crate::locks::Locks;
use crate::registry::{Peer, RegisterError, Registry, UnknownSession};
use crate::revocation::{Effect, is_cached, revealed};
use crate::{Engine, EngineError, HistoryConfig, SYNC_EVERY};
use boot::Boot;
use fastcache_api::{Ino, Kind, NS_VERSION, NsAnswer, NsOp, NsReply, NsRequest, grpc};
use promised::PromisedLease;
use resent::Resent;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tables::{Outlet, Tables, Wait};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;

/// How long a lease is, from when the request was received. Holders count from when they sent it, which is earlier.
pub const LEASE: Duration = Duration::from_secs(10);
/// A node that was not heard of for this long is dropped.
pub const STALE_AFTER: Duration = Duration::from_secs(60);
/// Revocations that may wait for a node's watch stream; beyond, the node is waited for until its leases are over.
pub const REVOCATIONS_QUEUED: usize = 1024;
/// How often in one lease it is seen to that nodes are fenced.
const FENCING_TICKS: u32 = 10;
/// How often a read is made again because something changed meanwhile; then it is answered without a lease.
const READ_TRIES: usize = 3;

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

/// What a node is given at its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Number of the registration.
    pub session: u64,
    /// Length of a lease: what is learned is good for as long from when the request was sent, and after that as long as
    /// heartbeats renew it.
    pub lease: Duration,
    /// There are other nodes.
    pub is_shared: bool,
}

/// What a node is told when it was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// How long its lease goes on, from when the heartbeat was received.
    pub lease: Duration,
    /// There are other nodes.
    pub is_shared: bool,
}

/// What came of a revocation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The node has done what it asks for.
    Done,
    /// Its session is over.
    Over,
    /// It has no lease any more.
    None,
}

/// Since when, and until when, changes are not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Yes,
    /// Any node may hold what this run does not know of.
    No,
    /// This session may; it is the only one, and need not wait for itself.
    NotFor(u64),
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

impl Inner {
    /// One of those who wait is through.
    fn is_settled(&self) {
        // Whoever registers meanwhile says otherwise.
        let _tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if self.settling.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.send_replace(Settled::Yes);
        }
    }
}

/// A change of a session waits for other nodes, until this is dropped.
struct Excused<'c> {
    coordinator: &'c Coordinator,
    session: u64,
}

impl Excused<'_> {
    fn new(coordinator: &Coordinator, session: u64) -> Excused<'_> {
        coordinator.tables().begin_excuse(session, Instant::now());
        Excused {
            coordinator,
            session,
        }
    }
}

impl Drop for Excused<'_> {
    fn drop(&mut self) {
        let mut tables = self.coordinator.tables();
        tables.end_excuse(self.session, Instant::now());
    }
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
            tokio::time::sleep(promised.longest()).await;
            let Some(inner) = settling.upgrade() else {
                return;
            };
            resent::stop_waiting(&inner).await;
            if may_be_held {
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

    /// Registers a node. `previous` is its session before (0: none), whose leases last until [`Coordinator::acknowledge`] says
    /// that they are given up, or to their end.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn register(
        &self,
        node: grpc::Node,
        ns_version: u32,
        previous: u64,
    ) -> Result<Registered, RegisterError> {
        if ns_version != NS_VERSION {
            return Err(RegisterError::Version {
                ours: NS_VERSION,
                theirs: ns_version,
            });
        }
        let (session, waits) = {
            let mut tables = self.tables();
            let peer_id = node.peer_id.clone();
            let accepted = tables.registry.register(node, previous, Instant::now())?;
            let session = accepted.session;
            tracing::info!(target: "registry", peer_id, session, "registered");
            if let Some(old) = accepted.replaced {
                tables.outlets.remove(&old);
            }
            let now = Instant::now();
            tables.renew(session, now, self.inner.options.lease);
            tables.bequeath_writing(session);
            let (sender, receiver) = mpsc::channel(REVOCATIONS_QUEUED);
            tables.outlets.insert(
                session,
                Outlet {
                    sender,
                    receiver: Some(receiver),
                },
            );
            // What another one asks for waits for who else may hold it; what it waits for itself must not.
            let waits = accepted.is_second.then(|| {
                let is_settled = self.inner.settling.fetch_add(1, Ordering::AcqRel) == 0;
                self.inner.settled.send_replace(Settled::No);
                is_settled.then(|| self.revoke_everything(&mut tables, session))
            });
            (session, waits)
        };
        if let Some(waits) = waits {
            // A task of its own: the node may give up waiting for its session, the others still have to forget.
            let this = self.clone();
            let settled = tokio::spawn(async move {
                // The other one may have been registered with an earlier run only.
                if waits.as_ref().is_none_or(Vec::is_empty) {
                    tokio::time::sleep(this.inner.longest_lease).await;
                }
                let waits =
                    waits.unwrap_or_else(|| this.revoke_everything(&mut this.tables(), session));
                for wait in waits {
                    let session = wait.session;
                    if !this.given_up(wait).await {
                        this.tables().fence(session);
                    }
                }
                this.inner.is_settled();
                // It waited, and its lease with it.
                let mut tables = this.tables();
                tables.renew(session, Instant::now(), this.inner.options.lease);
            });
            if settled.await.is_err() {
                tracing::error!(target: "registry", session, "waiting for the first node failed");
            }
        }
        Ok(Registered {
            session,
            lease: self.inner.options.lease,
            is_shared: self.tables().registry.is_shared(),
        })
    }

    /// Has the only other node forget everything; its changes are answered meanwhile.
    fn revoke_everything(&self, tables: &mut Tables, session: u64) -> Vec<Wait> {
        let others = tables.registry.others(session).into_iter();
        others
            .map(|other| {
                self.inner.settled.send_replace(Settled::NotFor(other));
                let all = grpc::Revocation {
                    everything: true,
                    ..Default::default()
                };
                tables.revoke(other, HashSet::new(), all, self.inner.options.lease)
            })
            .collect()
    }

    /// Waits until a node has done what a revocation asks for, or its session is over, or it has no lease any more. False in the
    /// last case.
    async fn given_up(&self, wait: Wait) -> bool {
        self.answer_to(wait).await != Answer::None
    }

    async fn answer_to(&self, wait: Wait) -> Answer {
        let Wait {
            mut acknowledged,
            session,
            until: latest,
        } = wait;
        let lease = self.inner.options.lease;
        let before = self.tables().excused(session, Instant::now());
        loop {
            let now = Instant::now();
            let (until, excused) = {
                let tables = self.tables();
                (
                    tables.leases.until(session, now),
                    tables.excused(session, now),
                )
            };
            let latest = latest + excused.saturating_sub(before).min(lease);
            let Some(until) = until.filter(|_| now < latest) else {
                return Answer::None;
            };
            match tokio::time::timeout_at(until.min(latest), &mut acknowledged).await {
                Ok(Ok(())) => return Answer::Done,
                // Dropped: the session is over, and what it held with it.
                Ok(Err(_)) => return Answer::Over,
                Err(_) => {}
            }
        }
    }

    /// A node is alive, and tells how it is. Its lease goes on when its data plane `is_heard` of, too.
    ///
    /// # Errors
    /// When the session is over.
    pub fn heartbeat(
        &self,
        session: u64,
        status: Option<grpc::Node>,
        is_heard: bool,
    ) -> Result<Renewed, UnknownSession> {
        let now = Instant::now();
        let mut tables = self.tables();
        tables.registry.heartbeat(session, status, now)?;
        let until = match is_heard {
            true => tables.renew(session, now, self.inner.options.lease),
            false => tables.leases.until(session, now).unwrap_or(now),
        };
        Ok(Renewed {
            lease: until.saturating_duration_since(now),
            is_shared: tables.registry.is_shared(),
        })
    }

    /// The revocations for a node. Ends when its session does.
    ///
    /// # Errors
    /// When the session is over, or has its stream already.
    pub fn watch(&self, session: u64) -> Result<Revocations, UnknownSession> {
        let mut tables = self.tables();
        tables.registry.check(session)?;
        let receiver = tables
            .outlets
            .get_mut(&session)
            .and_then(|o| o.receiver.take());
        match receiver {
            Some(receiver) if !tables.is_stopping => Ok(Revocations {
                receiver,
                nodes: WatchStream::new(tables.registry.versions()),
                session,
                inner: Arc::downgrade(&self.inner),
            }),
            _ => Err(UnknownSession(session)),
        }
    }

    /// A node has done what a revocation asked for. Number 0: it has forgotten what its earlier sessions were told.
    pub fn acknowledge(&self, session: u64, number: u64) {
        let mut tables = self.tables();
        if number == 0 {
            let earlier = tables.registry.earlier(session);
            for old in earlier {
                tables.leases.end(old);
                tables.pending.retain(|_, p| p.session != old);
            }
            return;
        }
        if tables
            .pending
            .get(&number)
            .is_some_and(|p| p.session == session)
            && let Some(mut pending) = tables.pending.remove(&number)
        {
            if let Some(number) = pending.hand_over {
                for ino in &pending.held {
                    if tables.leases.write_number(*ino) == number {
                        tables.handed_over(*ino);
                    }
                }
            } else {
                tables.leases.release(session, &pending.held, pending.stamp);
                tables
                    .leases
                    .release(session, &pending.orphans, pending.stamp);
            }
            pending.answer();
        }
    }

    /// A node ends in order: it uses nothing any more that it was told in this session or in those before, and holds no locks.
    /// It is one of the nodes until it is stale, for it may be back in a moment.
    ///
    /// # Errors
    /// When the session is over.
    pub fn leave(&self, session: u64) -> Result<(), UnknownSession> {
        self.tables().leave(session, Instant::now())?;
        self.inner.freed.send_replace(());
        Ok(())
    }

    /// One operation of a node.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn call(&self, session: u64, request: NsRequest) -> Result<NsReply, UnknownSession> {
        Ok(self.call_kept(session, request).await?.0)
    }

    /// One operation of a node, and what it keeps of it until that is on stable storage.
    pub(crate) async fn call_kept(
        &self,
        session: u64,
        request: NsRequest,
    ) -> Result<(NsReply, Option<grpc::Kept>), UnknownSession> {
        self.tables().registry.check(session)?;
        self.inner.resent.made_again().await;
        match request.op.is_change() {
            true => Ok(self.change(session, request).await),
            false => Ok((self.read(session, request).await?, None)),
        }
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

    async fn read(&self, session: u64, request: NsRequest) -> Result<NsReply, UnknownSession> {
        if !is_cached(&request.op) {
            return Ok(self.inner.engine.call(request).await);
        }
        if let NsOp::Open { ino, write: true } = request.op {
            self.take_write(session, ino).await?;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let stamp = self.tables().leases.stamp();
            let mut reply = self.inner.engine.call(request.clone()).await;
            let inos = revealed(&request.op, &reply);
            let mut tables = self.tables();
            tables.registry.check(session)?;
            if !tables.registry.is_shared() {
                return Ok(reply);
            }
            // Read before a change whose holders are found already: it would not be revoked.
            let is_old = tables.leases.is_changed_since(stamp, &inos);
            if is_old && tries < READ_TRIES {
                continue;
            }
            if let Ok(NsAnswer::Opened { attr, .. }) = &reply.result
                && attr.nlink == 0
            {
                // Open there: nobody is to reap it.
                let now = Instant::now();
                tables.leases.grant_needed(session, attr.ino, now);
            }
            reply.lease_ms = match is_old {
                true => Some(0),
                false => Some(self.grant(&mut tables, session, &inos)),
            };
            return Ok(reply);
        }
    }

    fn grant(&self, tables: &mut Tables, session: u64, inos: &[Ino]) -> u32 {
        let now = Instant::now();
        let until = tables.leases.grant(session, inos, now);
        tables.make_room(now, self.inner.options.lease);
        let left = until.map_or(Duration::ZERO, |until| until - now);
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
    }

    /// Waits until no leases are out that the table does not know, but the asker's own.
    async fn settled_for(&self, session: u64) {
        let mut settled = self.inner.settled.subscribe();
        loop {
            let now = *settled.borrow_and_update();
            let is_settled = match now {
                Settled::Yes => true,
                Settled::No => false,
                Settled::NotFor(only) => self.tables().registry.is_same_node(only, session),
            };
            // The sender is in `inner`, which is there as long as `self` is.
            if is_settled || settled.changed().await.is_err() {
                return;
            }
        }
    }

    async fn change(&self, session: u64, mut request: NsRequest) -> (NsReply, Option<grpc::Kept>) {
        // What a node wrote before a restart is committed before anybody else may write; the answer waits.
        let is_commit = matches!(request.op, NsOp::Commit(_));
        if !is_commit {
            self.settled_for(session).await;
        }
        let asked = self.ask_who_has_open(session, &mut request.op).await;
        let (reply, kept, waits) = {
            let _in_order = self.inner.order.lock().await;
            if let Some(refused) = self.refused(session, &mut request, asked.as_ref())
                && !self.has_commit(&request).await
            {
                return (refused, None);
            }
            let (mut reply, kept) = self.inner.engine.call_kept(request.clone()).await;
            let mut tables = self.tables();
            // A request that was sent again gets its first answer, which may be old by now.
            let is_new = reply.log_position > tables.position;
            tables.position = tables.position.max(reply.log_position);
            if !tables.registry.is_shared() {
                return (reply, kept);
            }
            let effect = Effect::of(&request.op, &reply);
            tables.leases.changed(effect.covered());
            let lease = self.inner.options.lease;
            let waits = tables.revoke_others(session, &effect, &reply.touched, lease);
            reply.lease_ms = Some(match is_new {
                true => self.grant(&mut tables, session, &effect.covered()),
                false => 0,
            });
            if is_new
                && matches!(request.op, NsOp::Make { .. })
                && let Ok(NsAnswer::Entry(attr)) = &reply.result
                && attr.kind == Kind::File
            {
                // Its maker is the first to write it.
                tables.leases.grant_write(session, attr.ino, Instant::now());
            }
            (reply, kept, waits)
        };
        if !waits.is_empty() {
            let _excused = Excused::new(self, session);
            futures_util::future::join_all(waits.into_iter().map(|wait| self.given_up(wait))).await;
        }
        if is_commit {
            self.settled_for(session).await;
        }
        (reply, kept)
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
