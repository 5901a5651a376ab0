//! The stream on which a node is told what it has to give up, and that the list of nodes is another one.

use super::Inner;
use fastcache_api::grpc;
use std::pin::Pin;
use std::sync::{PoisonError, Weak};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::WatchStream;

/// The revocations for one session.
pub struct Revocations {
    pub(super) receiver: mpsc::Receiver<grpc::Revocation>,
    /// Numbers of the list of nodes. However many there were since it was looked at last: the newest.
    pub(super) nodes: WatchStream<u64>,
    pub(super) session: u64,
    pub(super) inner: Weak<Inner>,
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
