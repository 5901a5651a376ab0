//! Operations of the namespace: a read is answered with a lease, and a change when no other node can still be using what it
//! replaced.

use super::Coordinator;
use super::tables::Tables;
use crate::registry::UnknownSession;
use crate::revocation::{Effect, is_cached, revealed};
use fastcache_api::{Ino, Kind, NsAnswer, NsOp, NsReply, NsRequest, grpc};
use std::time::Duration;
use tokio::time::Instant;

/// How often a read is made again because something changed meanwhile; then it is answered without a lease.
const READ_TRIES: usize = 3;

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

impl Coordinator {
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
            true => {
                self.take_write_to_commit(session, &request).await?;
                Ok(self.change(session, request).await)
            }
            false => Ok((self.read(session, request).await?, None)),
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

    pub(super) fn grant(&self, tables: &mut Tables, session: u64, inos: &[Ino]) -> u32 {
        let now = Instant::now();
        let until = tables.leases.grant(session, inos, now);
        tables.make_room(now, self.inner.options.lease);
        let left = until.map_or(Duration::ZERO, |until| until - now);
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
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
}
