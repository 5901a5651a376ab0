//! What a coordinator knows of its nodes: who is there, who holds what, and which revocations are on their way.
//!
//! One owner, under one lock that is never held across an await: everything here is done at once.

use crate::leases::LeaseTable;
use crate::registry::Registry;
use crate::revocation::Effect;
use fastcache_api::{Attr, Ino, NsOp, grpc};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A revocation whose acknowledgement is waited for.
pub(super) struct Pending {
    pub(super) session: u64,
    pub(super) held: HashSet<Ino>,
    pub(super) stamp: u64,
    pub(super) sent: Instant,
    /// Dropped or used: the wait is over.
    pub(super) done: oneshot::Sender<()>,
}

/// The way to a node's watch stream.
pub(super) struct Outlet {
    pub(super) sender: mpsc::Sender<grpc::Revocation>,
    /// Until the node opens its stream.
    pub(super) receiver: Option<mpsc::Receiver<grpc::Revocation>>,
}

pub(super) struct Tables {
    pub(super) registry: Registry,
    pub(super) leases: LeaseTable,
    pub(super) pending: HashMap<u64, Pending>,
    pub(super) outlets: HashMap<u64, Outlet>,
    pub(super) next_revocation: u64,
    /// Position of the last change: a reply with an earlier one repeats what was told before.
    pub(super) position: u64,
    pub(super) is_stopping: bool,
    pub(super) revocations: u64,
    pub(super) unanswered: u64,
}

/// One node that has to give something up.
pub(super) struct Wait {
    pub(super) acknowledged: oneshot::Receiver<()>,
    pub(super) session: u64,
    pub(super) until: Instant,
}

impl Tables {
    /// Sends a node a revocation.
    pub(super) fn revoke(
        &mut self,
        session: u64,
        held: HashSet<Ino>,
        mut revocation: grpc::Revocation,
        until: Instant,
    ) -> Wait {
        self.next_revocation += 1;
        self.revocations += 1;
        revocation.number = self.next_revocation;
        let (done, acknowledged) = oneshot::channel();
        let stamp = self.leases.stamp();
        let sent = Instant::now();
        let pending = Pending {
            session,
            held,
            stamp,
            sent,
            done,
        };
        self.pending.insert(revocation.number, pending);
        let is_sent = self
            .outlets
            .get(&session)
            .is_some_and(|o| o.sender.try_send(revocation).is_ok());
        if !is_sent {
            tracing::debug!(target: "leases", session, "a revocation cannot be sent: waiting for the leases to end");
        }
        Wait {
            acknowledged,
            session,
            until,
        }
    }

    pub(super) fn revoke_others(
        &mut self,
        session: u64,
        effect: &Effect,
        touched: &[Attr],
    ) -> Vec<Wait> {
        let holders = self.leases.holders(effect.covered(), Instant::now());
        let mut waits = Vec::new();
        for (holder, (held, until)) in holders {
            if self.registry.is_same_node(holder, session) {
                continue;
            }
            match effect.told_to(&held, touched) {
                Ok(what) => {
                    let revocation = grpc::Revocation {
                        what,
                        ..Default::default()
                    };
                    waits.push(self.revoke(holder, held, revocation, until));
                }
                Err(error) => {
                    tracing::error!(target: "leases", %error, "a revocation cannot be encoded: forgetting everything instead");
                    let all = grpc::Revocation {
                        everything: true,
                        ..Default::default()
                    };
                    waits.push(self.revoke(holder, held, all, until));
                }
            }
        }
        waits
    }

    /// Takes those orphans out of a reap that another node may have open.
    pub(super) fn spare_open_orphans(&self, session: u64, op: &mut NsOp) {
        if !self.registry.is_shared() {
            return;
        }
        match op {
            NsOp::Reap { inos } => {
                let holders = self.leases.holders(inos.iter().copied(), Instant::now());
                inos.retain(|ino| {
                    !holders.iter().any(|(holder, (held, _))| {
                        held.contains(ino) && !self.registry.is_same_node(*holder, session)
                    })
                });
            }
            NsOp::ReapAllBut { .. } => *op = NsOp::Reap { inos: Vec::new() },
            _ => {}
        }
    }

    /// Ends a session. When it was last heard of, if it was live.
    pub(super) fn fence(&mut self, session: u64) -> Option<Instant> {
        let seen = self.registry.fence(session)?;
        self.outlets.remove(&session);
        tracing::warn!(target: "registry", session, "session ended: the node was silent, or left a revocation unanswered");
        Some(seen)
    }

    /// What time alone changes.
    pub(super) fn keep(&mut self, now: Instant, lease: Duration) {
        for session in self.registry.stale(now) {
            self.fence(session);
        }
        let is_late = |p: &Pending| now >= p.sent + lease;
        let late: HashSet<u64> = self
            .pending
            .values()
            .filter(|p| is_late(p))
            .map(|p| p.session)
            .collect();
        let before = self.pending.len();
        self.pending.retain(|_, p| !is_late(p));
        self.unanswered += (before - self.pending.len()) as u64;
        for session in late {
            self.fence(session);
        }
        self.leases.prune(now);
        let ended = self.registry.ended();
        if !ended.is_empty() {
            let holding = self.leases.sessions();
            for session in ended.iter().filter(|s| !holding.contains(s)) {
                self.registry.forget(*session);
                self.outlets.remove(session);
            }
        }
    }
}
