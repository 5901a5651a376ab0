//! What a coordinator says of leases, on its way to the data plane: what is to be forgotten, and how long the rest is good.
//!
//! Invariants: a revocation is acknowledged after the data plane and the kernel have obeyed it, or not at all (the
//! coordinator then waits for the lease to end); leases and revocations of everything keep their order, so that no lease of
//! one session reaches the data plane in the next; other revocations do not wait for each other, because
//! obeying one may commit a file, which may wait for another node to obey one.

use crate::link::{Link, Session, lock};
use crate::node::Inner;
use fastcache_api::control::{DataAnswer, DataCall};
use fastcache_api::locks::{LockAnswer, LockOp};
use fastcache_api::{Errno, Ino, NsOp};
use fastcache_coordinator::{Lease, Notice, Revocation};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard, mpsc};
use tracing::{error, info, warn};

/// Longest a revocation waits for a data plane that is away. Leases are shorter.
const OBEY_WAIT: Duration = Duration::from_secs(60);

/// How often who asks for locks is told to make way for who brings the coordinator all there are.
const MAKE_WAY: Duration = Duration::from_millis(100);

/// Uploads begin after this much quiet where there are other nodes that cannot ask this one: what was closed here may be read
/// there at once.
const SHARED_QUIET: Duration = Duration::from_millis(50);

/// The lease as the data plane is to have it.
pub(crate) struct Leases {
    now: Mutex<DataCall>,
    /// Held while the data plane is told of a lease or to forget everything, and while a session of it begins.
    turn: tokio::sync::Mutex<()>,
    /// Shared by who asks for locks, until the answer is on its way to the data plane; taken alone to bring the coordinator
    /// all there are.
    locks: tokio::sync::RwLock<()>,
    /// Somebody waits to bring them.
    restoring: tokio::sync::watch::Sender<()>,
    /// The coordinator's session is another one: it may not know the locks.
    is_new: AtomicBool,
}

impl Leases {
    /// Without end where the namespace `is_embedded`; else none yet.
    pub(crate) fn new(is_embedded: bool) -> Leases {
        let until_ns = if is_embedded { None } else { Some(0) };
        Leases {
            now: Mutex::new(DataCall::Lease {
                until_ns,
                is_shared: false,
            }),
            turn: tokio::sync::Mutex::default(),
            locks: tokio::sync::RwLock::default(),
            restoring: tokio::sync::watch::Sender::default(),
            is_new: AtomicBool::new(false),
        }
    }

    fn set(&self, until_ns: Option<u64>, is_shared: bool) -> DataCall {
        let call = DataCall::Lease {
            until_ns,
            is_shared,
        };
        *lock(&self.now) = call.clone();
        call
    }

    /// Whether there are other nodes.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(
            *lock(&self.now),
            DataCall::Lease {
                is_shared: true,
                ..
            }
        )
    }

    /// Whether the data plane has a lease that is over.
    fn has_ended(&self) -> bool {
        let DataCall::Lease {
            until_ns: Some(until),
            ..
        } = *lock(&self.now)
        else {
            return false;
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
        until != 0 && now >= until
    }

    /// Asks about locks, and asks again when all of them are brought meanwhile: a coordinator that was restarted answers nobody
    /// before it has those of every node. Until the guard is dropped nobody brings them.
    pub(crate) async fn with_locks<F: Future>(
        &self,
        ask: impl Fn() -> F,
    ) -> (F::Output, RwLockReadGuard<'_, ()>) {
        let mut restoring = self.restoring.subscribe();
        loop {
            let shared = self.locks.read().await;
            tokio::select! {
                answer = ask() => return (answer, shared),
                _ = restoring.changed() => {}
            }
        }
    }

    /// Nobody asks for locks as long as this is held.
    async fn without_locks(&self) -> RwLockWriteGuard<'_, ()> {
        let mut alone = pin!(self.locks.write());
        loop {
            tokio::select! {
                // First: whoever makes way then asks again behind this.
                biased;
                alone = &mut alone => return alone,
                () = self.make_way() => {}
            }
        }
    }

    async fn make_way(&self) {
        self.restoring.send_replace(());
        tokio::time::sleep(MAKE_WAY).await;
    }

    /// Tells a new session of the data plane the lease, and makes it the one that is used.
    pub(crate) async fn begin(
        &self,
        session: &Session,
        publish: impl FnOnce(),
    ) -> Result<(), Errno> {
        let _turn = self.turn.lock().await;
        let lease = lock(&self.now).clone();
        session.call(0, lease).await?;
        publish();
        Ok(())
    }
}

/// Passes on what the coordinator says.
pub(crate) async fn notice_loop(inner: Arc<Inner>, mut notices: mpsc::Receiver<Notice>) {
    loop {
        let notice = tokio::select! {
            next = notices.recv() => next,
            () = inner.stop.cancelled() => return,
        };
        match notice {
            None => return,
            Some(Notice::Lease(lease)) => lengthen(&inner, lease).await,
            Some(Notice::Asked(question)) => {
                // One at a time, and not here: it takes a look at every chunk, and leases wait behind it.
                let (others, inner) = (inner.lanes.others().clone(), inner.clone());
                others.spawn(async move {
                    let turn = inner.looking.acquire().await;
                    let (chunks, bytes) = lock(&inner.cache).of_file(question.ino);
                    drop(turn);
                    question.answer(chunks, bytes).await;
                });
            }
            Some(Notice::Revoked(revoked)) if revoked.everything => {
                forget_everything(&inner, revoked).await;
            }
            Some(Notice::Revoked(revoked)) => {
                let inner = inner.clone();
                tokio::spawn(async move { forget(&inner, revoked).await });
            }
        }
    }
}

impl Inner {
    /// Has uploads begin sooner where another node can have what was written here from the cloud alone.
    pub(crate) fn pace_uploads(&self) {
        let usual = self.config.upload_quiet;
        let is_cloud_alone = self.leases.is_shared() && !self.are_all_peers.load(Ordering::Relaxed);
        let quiet = match is_cloud_alone {
            true => SHARED_QUIET.min(usual),
            false => usual,
        };
        lock(&self.queue).set_quiet(quiet);
    }

    /// Tells the coordinator which locks this node's programs hold, when it may not know: its session is another one, or the
    /// data plane is.
    pub(crate) async fn restore_locks(&self, session: &Session) {
        if self.namespace.owner().is_none() {
            return;
        }
        let _alone = self.leases.without_locks().await;
        let mut held = Vec::new();
        // On every lane: behind what was granted on it. The last one has all.
        for lane in 0..session.lane_count() {
            held = match session.call(lane, DataCall::Locks).await {
                Ok(DataAnswer::Locks(held)) => held,
                _ => return,
            };
        }
        let count = held.len();
        match self.namespace.lock(&LockOp::Restore { held }).await {
            Ok(LockAnswer::Held(lock)) => {
                error!(target: "control", pid = lock.pid, "a lock was lost while the coordinator did not hear of this node: another one has it now");
            }
            Ok(_) if count > 0 => {
                info!(target: "control", count, "the coordinator has this node's locks again")
            }
            Ok(_) => {}
            Err(errno) => {
                warn!(target: "control", %errno, "the coordinator could not be told of this node's locks")
            }
        }
    }
}

async fn lengthen(inner: &Arc<Inner>, lease: Lease) {
    let _turn = inner.leases.turn.lock().await;
    let until = u64::try_from(lease.until.as_nanos()).unwrap_or(u64::MAX);
    if inner.leases.has_ended() {
        // The coordinator took the locks for gone.
        inner.leases.is_new.store(true, Ordering::Release);
    }
    let call = inner.leases.set(Some(until), lease.is_shared);
    inner.pace_uploads();
    let Some(session) = inner.link.current() else {
        return;
    };
    if matches!(session.call(0, call).await, Ok(DataAnswer::Done)) {
        // The coordinator's session may be over meanwhile.
        let _ = lease.heard.send(());
    }
    if inner.leases.is_new.swap(false, Ordering::AcqRel) {
        let inner = inner.clone();
        tokio::spawn(async move { inner.restore_locks(&session).await });
    }
}

async fn forget_everything(inner: &Arc<Inner>, revoked: Revocation) {
    let _turn = inner.leases.turn.lock().await;
    // By the coordinator: a second node comes, and waits. Else the session is over, and nobody waits.
    let and_commit = revoked.is_shared;
    let is_shared = and_commit || inner.leases.is_shared();
    inner.leases.set(Some(0), is_shared);
    if !and_commit {
        inner.leases.is_new.store(true, Ordering::Release);
    }
    let Some(session) = inner.link.current() else {
        // The data plane may trust what it has until it hears of this agent; a session that begins trusts nothing, but the
        // kernel does until it has been told.
        let inner = inner.clone();
        tokio::spawn(async move {
            if obey(&inner.link, &DataCall::ForgetEarlier).await.is_ok() {
                revoked.ack().await;
            }
        });
        return;
    };
    let call = DataCall::Forget {
        is_shared,
        and_commit,
    };
    match session.call(0, call).await {
        Ok(_) => revoked.ack().await,
        Err(errno) => {
            warn!(target: "control", %errno, "the data plane could not be told that its leases are over: they end by themselves");
        }
    }
}

async fn forget(inner: &Inner, mut revoked: Revocation) {
    let hand_over = std::mem::take(&mut revoked.hand_over);
    let mut calls = Vec::new();
    if !hand_over.is_empty() {
        calls.push(DataCall::HandOver { inos: hand_over });
    }
    let orphans = std::mem::take(&mut revoked.orphans);
    if !orphans.is_empty() {
        if !hold_nameless(inner, &orphans).await {
            return;
        }
        calls.push(DataCall::HoldOpen { inos: orphans });
    }
    if !revoked.inos.is_empty() || !revoked.entries.is_empty() || !revoked.touched.is_empty() {
        calls.push(DataCall::Invalidate {
            touched: std::mem::take(&mut revoked.touched),
            entries: std::mem::take(&mut revoked.entries),
            inos: std::mem::take(&mut revoked.inos),
        });
    }
    for call in calls {
        let obeyed = tokio::time::timeout(OBEY_WAIT, obey(&inner.link, &call)).await;
        if !matches!(obeyed, Ok(Ok(()))) {
            warn!(target: "control", "a revocation could not be obeyed: another node waits until this one's lease ends");
            return;
        }
    }
    revoked.ack().await;
}

/// Takes a lease on those of these files that are being made here: of a slow one the data plane may know nothing yet. False
/// when the coordinator does not answer.
async fn hold_nameless(inner: &Inner, orphans: &[Ino]) -> bool {
    let made: Vec<Ino> = {
        let nameless = lock(&inner.nameless);
        let made = orphans.iter().filter(|ino| nameless.contains(ino));
        made.copied().collect()
    };
    for ino in made {
        let open = inner.request(NsOp::Open { ino, write: false });
        if !matches!(
            inner.namespace.call(open).await.result,
            Ok(_) | Err(Errno::ENOENT)
        ) {
            return false;
        }
    }
    true
}

/// Has the data plane obey, this session of it or the next: until then it may trust what it has.
async fn obey(link: &Link, call: &DataCall) -> Result<(), Errno> {
    loop {
        let session = link.session(OBEY_WAIT).await?;
        match session.call(session.any_lane(), call.clone()).await {
            Err(Errno::ENOTCONN) => link.left(&session).await,
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}
