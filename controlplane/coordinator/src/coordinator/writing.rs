//! Who may write a file: one node at a time.

use super::orphans::AskedOpen;
use super::{Coordinator, FENCING_TICKS};
use crate::registry::UnknownSession;
use fastcache_api::{Errno, Ino, NsAnswer, NsOp, NsReply, NsRequest, Time, Version};
use tokio::time::Instant;

/// A session waits for the lease on writing of an inode, until this is dropped.
struct Wants<'c> {
    coordinator: &'c Coordinator,
    session: u64,
    ino: Ino,
}

impl Wants<'_> {
    fn new(coordinator: &Coordinator, session: u64, ino: Ino) -> Wants<'_> {
        let mut tables = coordinator.tables();
        tables.wanting.entry(ino).or_default().push(session);
        tables.stop_waiting_for(session, ino);
        drop(tables);
        Wants {
            coordinator,
            session,
            ino,
        }
    }
}

impl Drop for Wants<'_> {
    fn drop(&mut self) {
        let mut tables = self.coordinator.tables();
        if let Some(wanting) = tables.wanting.get_mut(&self.ino) {
            if let Some(at) = wanting.iter().position(|s| *s == self.session) {
                wanting.swap_remove(at);
            }
            if wanting.is_empty() {
                tables.wanting.remove(&self.ino);
            }
        }
    }
}

impl Coordinator {
    /// Makes a session the one that may write an inode: the one that could before commits what it has first.
    ///
    /// A node that asks may have pages of the file that it cannot drop before the write that waits here is done, so nobody
    /// waits meanwhile for it to forget the file. Its lease may be over, when heartbeats were late: asking renews it, for it is
    /// its data plane that asks. It is answered when its lease on writing is noted, and not before: the next one to write is to
    /// ask for it.
    pub(super) async fn take_write(&self, session: u64, ino: Ino) -> Result<(), UnknownSession> {
        if !self.tables().registry.is_shared() {
            return Ok(());
        }
        self.settled_for(session).await;
        let _wants = Wants::new(self, session, ino);
        self.be_writer(session, ino).await
    }

    /// Of a commit that is based on what the file has, while another node may write it: that one hands over first. It may have
    /// written nothing, and what is committed here may be the only copy of what the file had before.
    pub(super) async fn take_write_to_commit(
        &self,
        session: u64,
        request: &NsRequest,
    ) -> Result<(), UnknownSession> {
        let NsOp::Commit(commit) = &request.op else {
            return Ok(());
        };
        let is_others = {
            let tables = self.tables();
            let writer = tables.leases.writer(commit.ino, Instant::now());
            writer.is_some_and(|writer| !tables.registry.is_same_node(writer, session))
        };
        match is_others
            && !self.inner.engine.is_answered(request)
            && self.layout_version(commit.ino).await == Some(commit.base)
        {
            true => self.be_writer(session, commit.ino).await,
            false => Ok(()),
        }
    }

    async fn be_writer(&self, session: u64, ino: Ino) -> Result<(), UnknownSession> {
        let lease = self.inner.options.lease;
        loop {
            let wait = {
                let mut tables = self.tables();
                tables.registry.check(session)?;
                let now = Instant::now();
                match tables.leases.writer(ino, now) {
                    Some(writer) if !tables.registry.is_same_node(writer, session) => {
                        Some(tables.ask_to_hand_over(writer, ino, lease))
                    }
                    _ => {
                        if tables.leases.until(session, now).is_none() {
                            tables.renew(session, now, lease);
                        }
                        if tables.leases.grant_write(session, ino, now).is_some() {
                            return Ok(());
                        }
                        None
                    }
                }
            };
            let Some(wait) = wait else {
                // It left a revocation unanswered for one lease, and is fenced before long.
                tokio::time::sleep(lease / FENCING_TICKS).await;
                continue;
            };
            let writer = wait.session;
            if !self.given_up(wait).await {
                let mut tables = self.tables();
                if tables.leases.writer(ino, Instant::now()) == Some(writer) {
                    // One lease has passed, and it still has one: it was renewed by mistake.
                    tables.fence(writer);
                    tables.leases.take_write(ino);
                }
            }
        }
    }

    /// Whether a commit was done already, and is asked for again.
    pub(super) async fn has_commit(&self, request: &NsRequest) -> bool {
        let NsOp::Commit(commit) = &request.op else {
            return false;
        };
        self.inner.engine.is_answered(request)
            || self.layout_version(commit.ino).await == Some(commit.version)
    }

    /// What a file has now.
    async fn layout_version(&self, ino: Ino) -> Option<Version> {
        let asked = NsRequest {
            id: None,
            now: Time::default(),
            op: NsOp::GetAttr { ino },
        };
        match self.inner.engine.call(asked).await.result {
            Ok(NsAnswer::Attr(attr)) => Some(attr.layout_version),
            _ => None,
        }
    }

    /// What is refused, or taken out of a request, because of other nodes.
    pub(super) fn refused(
        &self,
        session: u64,
        request: &mut NsRequest,
        asked: Option<&AskedOpen>,
    ) -> Option<NsReply> {
        let mut tables = self.tables();
        tables.spare_held(session, &mut request.op, asked);
        let NsOp::Commit(commit) = &request.op else {
            return None;
        };
        let writer = tables.leases.writer(commit.ino, Instant::now())?;
        // The lease it was written under ended, and another node got it.
        (!tables.registry.is_same_node(writer, session)).then(|| NsReply {
            result: Err(Errno::ESTALE),
            touched: Vec::new(),
            log_position: 0,
            lease_ms: Some(0),
        })
    }
}
