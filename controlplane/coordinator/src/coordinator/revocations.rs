//! The stream on which a node is told what it has to give up.

use super::Inner;
use fastcache_api::grpc;
use std::pin::Pin;
use std::sync::{PoisonError, Weak};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// The revocations for one session.
pub struct Revocations {
    pub(super) receiver: mpsc::Receiver<grpc::Revocation>,
    pub(super) session: u64,
    pub(super) inner: Weak<Inner>,
}

impl futures_util::Stream for Revocations {
    type Item = Result<grpc::Revocation, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|r| r.map(Ok))
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
