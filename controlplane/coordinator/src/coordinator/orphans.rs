//! Inodes without a name: they live until no node has them open.
//!
//! What is open only the nodes know, and what leases they hold does not say it: those come and go with every change and every
//! restart. So before an orphan is reaped all other nodes are asked, and one that has it open takes a lease on it before it
//! acknowledges. As long as a node that may come back cannot be asked, nothing is reaped; who asked tries again. Orphans that
//! no node asks for, because theirs was killed, are looked for once in [`Options::stale_after`](super::Options).

use super::tables::{Tables, Wait};
use super::{Coordinator, Inner};
use crate::revocation::What;
use fastcache_api::{Ino, NsOp, NsRequest, OpId, Time};
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Most orphans in one reap of the coordinator's own.
const REAP_BATCH: usize = 1024;
/// The session of a reap that no node asked for.
const NOBODY: u64 = 0;

impl Coordinator {
    /// Before a reap: asks the other nodes which of the orphans they have open. What cannot be found out is taken out of it.
    pub(super) async fn ask_who_has_open(&self, session: u64, op: &mut NsOp) {
        if !matches!(op, NsOp::Reap { .. } | NsOp::ReapAllBut { .. })
            || !self.tables().registry.is_shared()
        {
            return;
        }
        let NsOp::Reap { inos } = op else {
            // A data plane starts. What the one before had open is found in time.
            *op = NsOp::Reap { inos: Vec::new() };
            return;
        };
        let waits = {
            let mut tables = self.tables();
            if tables.registry.is_one_away(Instant::now()) {
                inos.clear();
                return;
            }
            tables.ask_who_has_open(session, inos, self.inner.options.lease)
        };
        let waits = waits.into_iter().map(|wait| self.given_up(wait));
        let are_all_heard = futures_util::future::join_all(waits).await;
        if are_all_heard.contains(&false) {
            inos.clear();
        }
    }

    /// Reaps the orphans that were there before, too, and that no node has open. Those that are there now.
    async fn reap_abandoned(&self, before: &HashSet<Ino>, client: u64) -> HashSet<Ino> {
        if !self.tables().registry.is_shared() {
            return HashSet::new();
        }
        let orphans: HashSet<Ino> = self.inner.engine.orphans().into_iter().collect();
        let abandoned: Vec<Ino> = orphans.intersection(before).copied().collect();
        for (seq, batch) in (1..).zip(abandoned.chunks(REAP_BATCH)) {
            let mut op = NsOp::Reap {
                inos: batch.to_vec(),
            };
            self.ask_who_has_open(NOBODY, &mut op).await;
            let _in_order = self.inner.order.lock().await;
            self.tables().spare_held(NOBODY, &mut op);
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
    fn ask_who_has_open(&mut self, session: u64, inos: &[Ino], lease: Duration) -> Vec<Wait> {
        // What was granted until now is older than what they take then.
        self.leases.changed();
        let what = What {
            orphans: inos.to_vec(),
            ..What::default()
        };
        let asking = what.into_revocation();
        let mut waits = Vec::new();
        for other in self.registry.others(session) {
            waits.push(self.revoke(other, HashSet::new(), asking.clone(), lease));
            if let Some(asked) = self.pending.get_mut(&self.next_revocation) {
                asked.orphans = inos.iter().copied().collect();
            }
        }
        waits
    }

    /// Takes those orphans out of a reap that another node holds a lease on: it may have them open. The asker has not.
    pub(super) fn spare_held(&mut self, session: u64, op: &mut NsOp) {
        let NsOp::Reap { inos } = op else { return };
        if !self.registry.is_shared() {
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
