//! What a coordinator knows of its nodes: who is there, who holds what, and which revocations are on their way.
//!
//! One owner, under one lock that is never held across an await: everything here is done at once.

use crate::leases::LeaseTable;
use crate::locks::Locks;
use crate::registry::{Registry, UnknownSession};
use crate::revocation::{Effect, What};
use fastcache_api::{Attr, Ino, grpc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// A revocation whose acknowledgement is waited for.
pub(super) struct Pending {
    pub(super) session: u64,
    pub(super) held: HashSet<Ino>,
    /// Orphans that the node holds no lease on any more when it acknowledges, but those it took since.
    pub(super) orphans: HashSet<Ino>,
    pub(super) stamp: u64,
    pub(super) sent: Instant,
    /// What its node was [excused](Tables::excused) then.
    pub(super) excused: Duration,
    /// It asks for the lease on writing alone: this one. A node that has handed over may have asked for it again, and got it,
    /// before its acknowledgement is here.
    pub(super) hand_over: Option<u64>,
    /// Those who wait. Dropped or used: the wait is over.
    pub(super) done: Vec<oneshot::Sender<()>>,
}

impl Pending {
    /// Whether it is about this inode and nothing else: contents or attributes, no names.
    fn is_about(&self, ino: Ino) -> bool {
        self.held.len() == 1 && self.held.contains(&ino)
    }

    /// Ends the wait of all who wait.
    pub(super) fn answer(&mut self) {
        for done in self.done.drain(..) {
            // Nobody may wait any more, and that is as well.
            let _ = done.send(());
        }
    }
}

/// How long the changes of a session waited for other nodes.
#[derive(Default)]
pub(super) struct Excuse {
    /// Those that wait now.
    changes: usize,
    /// Since when any does.
    since: Option<Instant>,
    before: Duration,
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
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) outlets: HashMap<u64, Outlet>,
    /// Sessions that wait for the lease on writing of an inode. See `Coordinator::take_write`.
    pub(super) wanting: HashMap<Ino, Vec<u64>>,
    /// By session.
    pub(super) excuses: HashMap<u64, Excuse>,
    pub(super) locks: Locks,
    pub(super) returning: super::settling::Returning,
    pub(super) next_revocation: u64,
    pub(super) questions: super::asking::Questions,
    /// Revocations that make room in the table of leases; one for each node at a time.
    pub(super) making_room: HashSet<u64>,
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
    /// Its lease does not last longer.
    pub(super) until: Instant,
}

impl Tables {
    /// A session was heard of, and with it its data plane: its lease goes on, when is the answer. A revocation that it
    /// has not acknowledged is an end to that: what waits for it waits for one lease at most.
    pub(super) fn renew(&mut self, session: u64, now: Instant, lease: Duration) -> Instant {
        let of_it = self.pending.values().filter(|p| p.session == session);
        let oldest = of_it.map(|p| self.counts_from(p, now, lease)).min();
        let until = oldest.map_or(now, |sent| sent.min(now)) + lease;
        let until = self.leases.renew(session, until, now);
        self.registry.leased(session, until);
        until
    }

    /// How long a session's changes have waited for other nodes. A node may be unable to do what a revocation asks before its
    /// own change is answered, which is not its fault.
    pub(super) fn excused(&self, session: u64, now: Instant) -> Duration {
        self.excuses.get(&session).map_or(Duration::ZERO, |excuse| {
            let waits = excuse
                .since
                .map(|since| now.saturating_duration_since(since));
            excuse.before + waits.unwrap_or_default()
        })
    }

    /// From when the time to acknowledge a revocation counts: from when it was sent, and later by as long as the node was
    /// excused since; but for one lease at most, for two nodes may wait for each other.
    fn counts_from(&self, pending: &Pending, now: Instant, lease: Duration) -> Instant {
        let excused = self.excused(pending.session, now);
        pending.sent + excused.saturating_sub(pending.excused).min(lease)
    }

    /// A change of a session begins to wait for other nodes.
    pub(super) fn begin_excuse(&mut self, session: u64, now: Instant) {
        let excuse = self.excuses.entry(session).or_default();
        excuse.changes += 1;
        excuse.since.get_or_insert(now);
    }

    /// It waits no more.
    pub(super) fn end_excuse(&mut self, session: u64, now: Instant) {
        if let Some(excuse) = self.excuses.get_mut(&session) {
            excuse.changes -= 1;
            if excuse.changes == 0
                && let Some(since) = excuse.since.take()
            {
                excuse.before += now.saturating_duration_since(since);
            }
        }
    }

    /// Sends a node a revocation.
    pub(super) fn revoke(
        &mut self,
        session: u64,
        held: HashSet<Ino>,
        mut revocation: grpc::Revocation,
        lease: Duration,
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
            orphans: HashSet::new(),
            stamp,
            sent,
            excused: self.excused(session, sent),
            hand_over: None,
            done: vec![done],
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
            until: sent + lease,
        }
    }

    /// Has the node that holds most give up its oldest leases, when the table is nearly full. Nobody waits for that.
    pub(super) fn make_room(&mut self, now: Instant, lease: Duration) {
        let pending = &self.pending;
        self.making_room.retain(|n| pending.contains_key(n));
        let asked = self.making_room.iter().filter_map(|n| pending.get(n));
        let asked: HashSet<u64> = asked.map(|p| p.session).collect();
        let oldest = self.leases.oldest_of_most(|s| asked.contains(&s), now);
        let Some((session, inos)) = oldest.filter(|(_, inos)| !inos.is_empty()) else {
            return;
        };
        // Those granted until now are older than this.
        self.leases.changed(Vec::new());
        // A name that is none: the names of these are to be forgotten, too.
        let names = inos.iter().take(1).map(|ino| (*ino, Vec::new()));
        let what = What {
            inos: inos.iter().copied().collect(),
            entries: names.collect(),
            ..What::default()
        };
        self.revoke(session, inos, what.into_revocation(), lease);
        self.making_room.insert(self.next_revocation);
    }

    /// Asks the writer of an inode to commit what it has, and to write no more. Asked once for each lease on writing: a node
    /// that was asked twice could have got the lease again when it comes to the second, and whoever waits for that would wait
    /// for a node that waits for him.
    pub(super) fn ask_to_hand_over(&mut self, session: u64, ino: Ino, lease: Duration) -> Wait {
        let number = self.leases.write_number(ino);
        let is_it =
            |p: &Pending| p.hand_over == Some(number) && p.session == session && p.is_about(ino);
        let asked = self.pending.iter().find(|(_, p)| is_it(p));
        let asked = asked.map(|(n, p)| (*n, self.counts_from(p, Instant::now(), lease) + lease));
        if let Some((asked, until)) = asked
            && let Some(asked) = self.pending.get_mut(&asked)
        {
            let (done, acknowledged) = oneshot::channel();
            asked.done.push(done);
            return Wait {
                acknowledged,
                session,
                until,
            };
        }
        let what = What {
            hand_over: vec![ino],
            ..What::default()
        };
        let wait = self.revoke(session, [ino].into(), what.into_revocation(), lease);
        if let Some(pending) = self.pending.get_mut(&self.next_revocation) {
            pending.hand_over = Some(number);
        }
        wait
    }

    /// A node has handed an inode over: whoever waits for that looks again who may write it. One may have been asked for a
    /// lease that it asked for anew since.
    pub(super) fn handed_over(&mut self, ino: Ino) {
        self.leases.take_write(ino);
        let of_it = |p: &&mut Pending| p.hand_over.is_some() && p.is_about(ino);
        self.pending
            .values_mut()
            .filter(of_it)
            .for_each(Pending::answer);
    }

    /// Nobody waits any more for this node to give up an inode: it wants to write it, so it will ask for it anew, and it
    /// may be unable to drop its pages before it has written.
    pub(super) fn stop_waiting_for(&mut self, session: u64, ino: Ino) {
        for pending in self.pending.values_mut() {
            if pending.hand_over.is_none()
                && pending.is_about(ino)
                && self.registry.is_same_node(pending.session, session)
            {
                pending.answer();
            }
        }
    }

    /// Tells the other holders of what a change touched. Who has to be waited for.
    pub(super) fn revoke_others(
        &mut self,
        session: u64,
        effect: &Effect,
        touched: &[Attr],
        lease: Duration,
    ) -> Vec<Wait> {
        let holders = self.leases.holders(effect.covered(), Instant::now());
        let mut waits = Vec::new();
        for (holder, held) in holders {
            if self.registry.is_same_node(holder, session) {
                continue;
            }
            // Of contents or attributes alone: names are always waited for.
            let wants = held.len() == 1
                && held.iter().any(|ino| {
                    let wanting = self.wanting.get(ino).into_iter().flatten();
                    wanting
                        .into_iter()
                        .any(|s| self.registry.is_same_node(*s, holder))
                });
            let revocation = effect.told_to(&held, touched).into_revocation();
            let wait = self.revoke(holder, held, revocation, lease);
            if !wants {
                waits.push(wait);
            }
        }
        waits
    }

    /// What the node of a new session may write it may write on: its data plane is not new, and what was written is committed
    /// before another node writes. Whoever waits for the earlier sessions to hand over asks this one.
    pub(super) fn bequeath_writing(&mut self, session: u64) {
        let earlier = self.registry.earlier(session);
        self.leases.bequeath_writing(&earlier, session);
        self.pending
            .retain(|_, p| p.hand_over.is_none() || !earlier.contains(&p.session));
    }

    /// A node ends in order: it holds nothing any more.
    pub(super) fn leave(&mut self, session: u64, now: Instant) -> Result<(), UnknownSession> {
        let peer = self.registry.leave(session, now)?;
        let mut sessions = self.registry.earlier(session);
        sessions.push(session);
        for of_it in &sessions {
            self.leases.end(*of_it);
            self.outlets.remove(of_it);
        }
        self.pending.retain(|_, p| !sessions.contains(&p.session));
        self.locks.drop_peer(&peer);
        tracing::info!(target: "registry", peer, session, "the node has ended in order");
        Ok(())
    }

    /// Ends a session. When it was last heard of, if it was live.
    pub(super) fn fence(&mut self, session: u64) -> Option<Instant> {
        let seen = self.registry.fence(session)?;
        self.outlets.remove(&session);
        tracing::warn!(target: "registry", session, "session ended: the node was silent, or left a revocation unanswered");
        Some(seen)
    }

    /// What time alone changes. Whether locks are free now that were not.
    pub(super) fn keep(&mut self, now: Instant, lease: Duration) -> bool {
        for session in self.registry.stale(now) {
            self.fence(session);
        }
        let is_late = |p: &Pending| now >= self.counts_from(p, now, lease) + lease;
        let late = self.pending.iter().filter(|(_, p)| is_late(p));
        let late: Vec<(u64, u64)> = late.map(|(number, p)| (*number, p.session)).collect();
        self.unanswered += late.len() as u64;
        for (number, session) in late {
            self.pending.remove(&number);
            self.fence(session);
        }
        for session in self.registry.ended() {
            if !self.leases.is_live(session, now) {
                self.leases.end(session);
                self.registry.forget(session);
                self.outlets.remove(&session);
                self.excuses.remove(&session);
            }
        }
        let mut are_free = false;
        for peer in self.locks.peers() {
            let session = self.registry.session_of(&peer);
            if !session.is_some_and(|s| self.leases.is_live(s, now)) {
                tracing::warn!(target: "registry", peer, "the locks of a node are gone: its lease has ended");
                are_free |= self.locks.drop_peer(&peer);
            }
        }
        self.leases.prune(now);
        are_free
    }
}
