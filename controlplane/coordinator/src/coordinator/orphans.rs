//! Inodes without a name: they live until no node has them open.
//!
//! What is open only the nodes know, and what leases they hold does not say it: those come and go with every change and every
//! restart. So before an orphan is reaped all other nodes are asked, and one that has it open takes a lease on it before it
//! acknowledges. As long as a node that may come back cannot be asked, nothing is reaped; who asked tries again. Orphans that
//! no node asks for, because theirs was killed, are looked for once in [`Options::stale_after`](super::Options).

use super::revocations::Answer;
use super::tables::{Tables, Wait};
use super::{Coordinator, Inner};
use crate::revocation::What;
use fastcache_api::{Ino, NsOp, NsRequest, OpId, Time};
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// The nodes that were asked what they have open.
pub(super) struct AskedOpen {
    sessions: Vec<u64>,
    since: Instant,
}

/// Most orphans in one reap of the coordinator's own.
const REAP_BATCH: usize = 1024;
/// The session of a reap that no node asked for.
const NOBODY: u64 = 0;

impl Coordinator {
    /// Before a reap: asks the other nodes which of the orphans they have open. What cannot be found out is taken out of it.
    /// `None`: it is no reap, or there is one node.
    pub(super) async fn ask_who_has_open(&self, session: u64, op: &mut NsOp) -> Option<AskedOpen> {
        if !matches!(op, NsOp::Reap { .. } | NsOp::ReapAllBut { .. })
            || !self.tables().registry.is_shared()
        {
            return None;
        }
        let NsOp::Reap { inos } = op else {
            // A data plane starts. What the one before had open is found in time.
            *op = NsOp::Reap { inos: Vec::new() };
            return None;
        };
        let (waits, asked) = {
            let mut tables = self.tables();
            let now = Instant::now();
            if tables.registry.is_one_away(now) {
                inos.clear();
                return None;
            }
            tables.ask_who_has_open(session, inos, now, self.inner.options.lease)
        };
        let waits = waits.into_iter().map(|wait| self.answer_to(wait));
        let answers = futures_util::future::join_all(waits).await;
        // An agent that was started again has not asked its data plane.
        if answers.iter().any(|answer| *answer != Answer::Done) {
            inos.clear();
        }
        Some(asked)
    }

    /// Reaps the orphans that were there before, too, and that no node has open. Those that are there now.
    async fn reap_abandoned(&self, before: &HashSet<Ino>, client: u64) -> HashSet<Ino> {
        if !self.tables().registry.is_shared() {
            return HashSet::new();
        }
        // They may have a name again.
        self.inner.resent.made_again().await;
        let orphans: HashSet<Ino> = self.inner.engine.orphans().into_iter().collect();
        let abandoned: Vec<Ino> = orphans.intersection(before).copied().collect();
        for (seq, batch) in (1..).zip(abandoned.chunks(REAP_BATCH)) {
            let mut op = NsOp::Reap {
                inos: batch.to_vec(),
            };
            let asked = self.ask_who_has_open(NOBODY, &mut op).await;
            let _in_order = self.inner.order.lock().await;
            self.tables().spare_held(NOBODY, &mut op, asked.as_ref());
            let NsOp::Reap { inos } = &op else { continue };
            if inos.is_empty() {
                continue;
            }
            let count = inos.len();
            let request = NsRequest {
                id: Some(OpId { client, seq }),
                now: Time::now(),
                op,
            };
            let reply = self.inner.engine.call(request).await;
            match reply.result {
                Ok(_) => {
                    tracing::info!(target: "registry", count, "files without a name that no node has open any more are gone");
                }
                Err(error) => {
                    tracing::warn!(target: "registry", count, %error, "files without a name that no node has open could not be dropped: tried again");
                }
            }
        }
        orphans
    }
}

impl Tables {
    /// Asks all nodes but the one of this session which of these orphans they have open: on these they hold leases afterwards,
    /// on others no more.
    fn ask_who_has_open(
        &mut self,
        session: u64,
        inos: &[Ino],
        now: Instant,
        lease: Duration,
    ) -> (Vec<Wait>, AskedOpen) {
        // What was granted until now is older than what they take then.
        self.leases.changed(inos.to_vec());
        let what = What {
            orphans: inos.to_vec(),
            ..What::default()
        };
        let asking = what.into_revocation();
        // Who has no lease, although its agent is there, would not answer: its data plane is gone, and what it had open with it.
        let mut sessions = self.registry.others(session);
        sessions.retain(|s| self.leases.is_live(*s, now));
        let mut waits = Vec::new();
        for other in &sessions {
            waits.push(self.revoke(*other, HashSet::new(), asking.clone(), lease));
            if let Some(asked) = self.pending.get_mut(&self.next_revocation) {
                asked.orphans = inos.iter().copied().collect();
            }
        }
        let asked = AskedOpen {
            sessions,
            since: now,
        };
        (waits, asked)
    }

    /// Takes those orphans out of a reap that another node holds a lease on: it may have them open. The asker has not. All of
    /// them, when what the nodes answered may not be noted any more.
    pub(super) fn spare_held(&mut self, session: u64, op: &mut NsOp, asked: Option<&AskedOpen>) {
        let NsOp::Reap { inos } = op else { return };
        if !self.registry.is_shared() {
            return;
        }
        if !asked.is_some_and(|asked| self.is_noted(asked, session)) {
            inos.clear();
            return;
        }
        let given_up = inos.iter().copied().collect();
        self.leases.release(session, &given_up, u64::MAX);
        let holders = self.leases.holders(inos.iter().copied(), Instant::now());
        inos.retain(|ino| {
            !holders.iter().any(|(holder, held)| {
                held.contains(ino) && !self.registry.is_same_node(*holder, session)
            })
        });
    }

    /// Whether every node that was asked has its session and its lease still, without a break, and no other one has come.
    fn is_noted(&self, asked: &AskedOpen, session: u64) -> bool {
        let now = Instant::now();
        let mut others = self.registry.others(session).into_iter();
        let is_new = |s: &u64| self.leases.is_live(*s, now) && !asked.sessions.contains(s);
        let mut are = asked.sessions.iter();
        are.all(|s| self.leases.is_unbroken(*s, asked.since, now)) && !others.any(|s| is_new(&s))
    }
}

/// Runs [`Coordinator::reap_abandoned`] until the coordinator is gone.
pub(super) async fn reap_abandoned(inner: Weak<Inner>, every: Duration) {
    let mut before = HashSet::new();
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        let coordinator = Coordinator {
            inner: Arc::clone(&inner),
        };
        // The answers that are remembered are each client's own.
        before = coordinator.reap_abandoned(&before, rand::random()).await;
    }
}
