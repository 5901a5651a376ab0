//! The stream on which a node is told what it has to give up, and that the list of nodes is another one; and what comes of it.

use super::tables::Wait;
use super::{Coordinator, Inner};
use crate::registry::UnknownSession;
use fastcache_api::grpc;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, Weak};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;

/// The revocations for one session.
pub struct Revocations {
    receiver: mpsc::Receiver<grpc::Revocation>,
    /// Numbers of the list of nodes. However many there were since it was looked at last: the newest.
    nodes: WatchStream<u64>,
    session: u64,
    inner: Weak<Inner>,
}

impl futures_util::Stream for Revocations {
    type Item = Result<grpc::Revocation, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.receiver.poll_recv(cx) {
            // Whoever ends the session ends this.
            Poll::Ready(revocation) => return Poll::Ready(revocation.map(Ok)),
            Poll::Pending => {}
        }
        Pin::new(&mut self.nodes).poll_next(cx).map(|version| {
            let peers_version = version?;
            Some(Ok(grpc::Revocation {
                peers_version,
                ..Default::default()
            }))
        })
    }
}

impl Drop for Revocations {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let mut tables = inner.tables.lock().unwrap_or_else(PoisonError::into_inner);
            tables.registry.unwatched(self.session);
        }
    }
}

/// What came of a revocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The node has done what it asks for.
    Done,
    /// Its session is over.
    Over,
    /// It has no lease any more.
    None,
}

impl Coordinator {
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
            if let Ok(peer) = tables.registry.peer_of(session) {
                tables.returning.forgot(&peer);
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

    /// Waits until a node has done what a revocation asks for, or its session is over, or it has no lease any more. False in the
    /// last case.
    pub(super) async fn given_up(&self, wait: Wait) -> bool {
        self.answer_to(wait).await != Answer::None
    }

    pub(super) async fn answer_to(&self, wait: Wait) -> Answer {
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
}
