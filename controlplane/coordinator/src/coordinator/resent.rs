//! What nodes bring back when the machine of the coordinator lost power: changes that were acknowledged and not yet on stable
//! storage.
//!
//! ```text
//!  start ── same boot ──────────────────────────────► calls are answered
//!     └─── another: every call waits ──► each known node has brought what it keeps, or the leases of before are over
//!                                          └─► made again in the order of before, put on stable storage ──► answered
//! ```
//!
//! A node brings what it keeps before its first call, so nobody waits for himself. When one has something that was lost, though
//! the boot is the same (the state is an old copy), calls wait from then on. What comes when calls were answered already is made
//! again at once, as far as that changes nothing that others may have changed since, and the other nodes forget what they
//! learned. What cannot be made as it was acknowledged is lost: it is counted, and stands in the log.

#[cfg(test)]
mod tests;

use super::boot::Boot;
use super::tables::Wait;
use super::{Coordinator, Inner};
use crate::engine::{Engine, Fate, Lost};
use crate::registry::UnknownSession;
use fastcache_api::grpc;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

/// Most that nodes may bring, bytes; each keeps a few MiB at most.
const BROUGHT_MAX: usize = 256 << 20;
/// Lost changes that are named in the log after one start; the others are counted.
const NAMED_MAX: usize = 100;
/// Characters of a lost change in the log.
const SHOWN_MAX: usize = 300;

/// Why a node cannot bring something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResendError {
    #[error(transparent)]
    Session(#[from] UnknownSession),
    #[error("what this node keeps is of file system {theirs:x}, and this one is {ours:x}")]
    FileSystem { ours: u64, theirs: u64 },
    #[error("a change to be made again cannot be read: {0}")]
    Garbage(#[from] crate::engine::NotLost),
    #[error("nodes bring more than {BROUGHT_MAX} bytes of changes to be made again")]
    Full,
    #[error("the changes of before cannot be made again: {0}")]
    Store(String),
}

/// What nodes have brought in this run.
#[derive(Default)]
struct Brought {
    /// Nodes that have brought all they keep.
    heard: HashSet<String>,
    /// By epoch and position.
    lost: BTreeMap<(u64, u64), Lost>,
    bytes: usize,
    /// Nobody is waited for any more.
    is_over: bool,
    /// When calls that had waited were answered.
    opened: Option<Instant>,
    named: usize,
}

/// Changes that were lost, and are brought back.
pub(super) struct Resent {
    brought: Mutex<Brought>,
    /// Calls are answered.
    is_open: watch::Sender<bool>,
    boot: Boot,
    restored: AtomicU64,
    gone: AtomicU64,
}

impl Resent {
    /// `are_nodes`: there are nodes that may bring something.
    pub(super) fn new(boot: Boot, are_nodes: bool) -> std::io::Result<Resent> {
        let is_open = boot.is_same() || !are_nodes;
        if is_open {
            boot.note()?;
        }
        Ok(Resent {
            brought: Mutex::default(),
            is_open: watch::Sender::new(is_open),
            boot,
            restored: AtomicU64::new(0),
            gone: AtomicU64::new(0),
        })
    }

    /// Waits until what was lost is made again.
    pub(super) async fn made_again(&self) {
        if !self.is_made_again() {
            // The sender is in `self`.
            let _ = self.is_open.subscribe().wait_for(|is_open| *is_open).await;
        }
    }

    /// Whether it is.
    pub(super) fn is_made_again(&self) -> bool {
        *self.is_open.borrow()
    }

    /// Changes that were made again, and those that are lost.
    pub(super) fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.restored), count(&self.gone))
    }
}

/// What is to be done when a node has brought something.
#[derive(PartialEq, Eq)]
enum Next {
    /// Nothing was lost.
    Nothing,
    /// More is to come.
    Wait,
    Make,
}

impl Coordinator {
    /// A node brings what it keeps of earlier runs. True: it need not keep it any more.
    ///
    /// # Errors
    /// See [`ResendError`].
    pub(crate) async fn bring(&self, request: grpc::ResendRequest) -> Result<bool, ResendError> {
        let session = request.session;
        let (peer, known) = {
            let mut tables = self.tables();
            let peer = tables.registry.peer_of(session)?;
            (peer, tables.registry.known())
        };
        let (ours, _) = self.inner.engine.owner();
        let theirs = request.file_system;
        if theirs != ours {
            return Err(ResendError::FileSystem { ours, theirs });
        }
        let mut lost = Vec::new();
        for kept in &request.kept {
            lost.extend(self.inner.engine.lost(kept)?);
        }
        match self.note(peer, lost, request.is_all, &known)? {
            Next::Nothing => Ok(true),
            Next::Wait => Ok(false),
            Next::Make => {
                // A task of its own: the node may give up waiting.
                let this = self.clone();
                let made = tokio::spawn(async move { this.make_again(session).await });
                let made = made.await.unwrap_or_else(|e| Err(e.to_string()));
                made.map(|()| true).map_err(ResendError::Store)
            }
        }
    }

    fn note(
        &self,
        peer: String,
        lost: Vec<Lost>,
        is_all: bool,
        known: &[String],
    ) -> Result<Next, ResendError> {
        let resent = &self.inner.resent;
        let mut brought = resent.brought();
        let bytes: usize = lost.iter().map(|l| l.bytes).sum();
        if brought.bytes + bytes > BROUGHT_MAX {
            return Err(ResendError::Full);
        }
        brought.bytes += bytes;
        for one in lost {
            // Brought twice: the answer to the first time was lost.
            let key = (one.record.epoch, one.record.position);
            brought.lost.entry(key).or_insert(one);
        }
        if !is_all {
            return Ok(Next::Wait);
        }
        brought.heard.insert(peer);
        let is_open = *resent.is_open.borrow();
        if is_open && brought.lost.is_empty() {
            return Ok(Next::Nothing);
        }
        if brought.is_over || known.iter().all(|id| brought.heard.contains(id)) {
            return Ok(Next::Make);
        }
        if is_open {
            tracing::warn!(target: "registry", "a node brings changes that this state lost: nothing is answered until every node has brought what it keeps, or its lease is over");
            resent.is_open.send_replace(false);
        }
        Ok(Next::Wait)
    }

    /// Makes again what was brought, and has calls answered. `session` brought the last of it; 0: nobody.
    async fn make_again(&self, session: u64) -> Result<(), String> {
        let resent = &self.inner.resent;
        let (result, waits) = {
            let _in_order = self.inner.order.lock().await;
            let lost = {
                let mut brought = resent.brought();
                brought.bytes = 0;
                std::mem::take(&mut brought.lost)
            };
            let was_open = *resent.is_open.borrow();
            let engine = self.inner.engine.clone();
            let made = tokio::task::spawn_blocking(move || made_again(&engine, lost, !was_open));
            let made = made
                .await
                .unwrap_or_else(|e| (Vec::new(), 0, Err(e.to_string())));
            let (gone, restored, mut result) = made;
            if result.is_ok() && self.inner.engine.sync().await.is_err() {
                result = Err("they cannot be put on stable storage".to_owned());
            }
            self.tell(restored, gone);
            let mut tables = self.tables();
            tables.position = tables.position.max(self.inner.engine.log_position());
            tables.leases.all_changed();
            let waits = match restored > 0 && tables.leases.len() > 0 {
                true => self.forget_all(&mut tables, session),
                false => Vec::new(),
            };
            drop(tables);
            (result, waits)
        };
        match &result {
            Ok(()) => {
                if let Err(error) = resent.boot.note() {
                    tracing::warn!(target: "registry", %error, "the boot cannot be noted: the next start waits for every node");
                }
                let mut brought = resent.brought();
                brought.opened.get_or_insert_with(Instant::now);
                resent.is_open.send_replace(true);
            }
            // Nodes keep theirs, for the next run.
            Err(error) => {
                tracing::error!(target: "registry", error, "changes that were acknowledged cannot be made again: what waits for them is not answered until the coordinator is started again");
            }
        }
        futures_util::future::join_all(waits.into_iter().map(|wait| self.given_up(wait))).await;
        result
    }

    /// Has all nodes but this session's forget what they learned.
    fn forget_all(&self, tables: &mut super::Tables, session: u64) -> Vec<Wait> {
        let others = tables.registry.others(session).into_iter();
        let everything = grpc::Revocation {
            everything: true,
            ..Default::default()
        };
        let lease = self.inner.options.lease;
        others
            .map(|other| tables.revoke(other, HashSet::new(), everything.clone(), lease))
            .collect()
    }

    fn tell(&self, restored: u64, gone: Vec<(Lost, String)>) {
        let resent = &self.inner.resent;
        resent.restored.fetch_add(restored, Ordering::Relaxed);
        resent.gone.fetch_add(gone.len() as u64, Ordering::Relaxed);
        if restored > 0 {
            tracing::warn!(target: "registry", restored, "changes that were acknowledged, and were not on stable storage when the run before ended, are made again: nodes had kept them");
        }
        let mut brought = resent.brought();
        for (lost, why) in &gone {
            brought.named += 1;
            if brought.named > NAMED_MAX {
                break;
            }
            let (epoch, position) = (lost.record.epoch, lost.record.position);
            let change: String = format!("{:?}", lost.record.op)
                .chars()
                .take(SHOWN_MAX)
                .collect();
            tracing::error!(target: "registry", epoch, position, change, why, "lost: a change that was acknowledged cannot be made again");
        }
        if !gone.is_empty() {
            tracing::error!(target: "registry", count = gone.len(), "lost: changes that were acknowledged");
        }
    }
}

impl Resent {
    fn brought(&self) -> std::sync::MutexGuard<'_, Brought> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes changes again, in their order. Those that are gone, and how many were made.
fn made_again(
    engine: &Engine,
    lost: BTreeMap<(u64, u64), Lost>,
    is_start: bool,
) -> (Vec<(Lost, String)>, u64, Result<(), String>) {
    let mut gone = Vec::new();
    let mut restored = 0;
    let lost: Vec<Lost> = lost.into_values().collect();
    let missing = engine.missing(&lost);
    if missing > 0 {
        tracing::warn!(target: "registry", missing, "positions of the log were lost that no node brought back: they were not acknowledged, need not be kept, or were of nodes that are gone");
    }
    let last = lost.iter().map(|l| l.record.position).max().unwrap_or(0);
    let is_any = !lost.is_empty();
    let mut late: Option<(u64, bool)> = None;
    for one in lost {
        let epoch = one.record.epoch;
        let is_late = match late.filter(|(of, _)| *of == epoch) {
            Some((_, is_late)) => is_late,
            None => !engine.is_as_at_the_end_of(epoch),
        };
        late = Some((epoch, is_late));
        match engine.restore(&one, is_late) {
            Ok(Fate::Restored) => restored += 1,
            Ok(Fate::There) => {}
            Ok(Fate::Gone(why)) => gone.push((one, why)),
            Err(error) => return (gone, restored, Err(error)),
        }
    }
    let result = match is_any || is_start {
        true => engine.leave_out_behind(last),
        false => Ok(()),
    };
    (gone, restored, result)
}

/// The leases of the run before are over: nobody is waited for any more. Returns when what nodes had written before could be
/// committed.
pub(super) async fn stop_waiting(inner: &Arc<Inner>) {
    let coordinator = Coordinator {
        inner: Arc::clone(inner),
    };
    let resent = &inner.resent;
    resent.brought().is_over = true;
    if !*resent.is_open.borrow() {
        tracing::warn!(target: "registry", "not every node brought what it keeps of the run before, in the time of a lease: going on without");
        // Told in there.
        let _ = coordinator.make_again(0).await;
    }
    let opened = resent.brought().opened;
    if let Some(opened) = opened {
        tokio::time::sleep_until(opened + inner.options.lease / 2).await;
    }
}
