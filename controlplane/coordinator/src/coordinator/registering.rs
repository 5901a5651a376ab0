//! Nodes come, tell how they are, and go.

use super::Coordinator;
use super::settling::Settled;
use super::tables::{Outlet, Tables, Wait};
use crate::registry::{RegisterError, UnknownSession};
use fastcache_api::{NS_VERSION, grpc};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Revocations that may wait for a node's watch stream; beyond, the node is waited for until its leases are over.
pub const REVOCATIONS_QUEUED: usize = 1024;

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

impl Coordinator {
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
}
