//! Keeps the data plane's list of victims ahead of need, and the coordinator informed of how full the node is.

use crate::link::{Session, lock};
use crate::node::Inner;
use fastcache_api::ChunkId;
use fastcache_api::control::DataCall;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks when nobody asks.
const LOOK: Duration = Duration::from_secs(1);
/// Shortest time between two lists.
const REST: Duration = Duration::from_millis(10);

impl Inner {
    /// Whether more than 80 % of the capacity is used.
    pub(crate) fn is_filling(&self) -> bool {
        let capacity = self.capacity_bytes.load(Ordering::Relaxed);
        lock(&self.cache).bytes() > capacity / 5 * 4
    }

    /// Sends a list of victims, unless it is the one that is `known`. The list, when it was sent.
    pub(crate) async fn send_victims(
        &self,
        session: &Arc<Session>,
        known: Option<&Vec<ChunkId>>,
    ) -> Option<Vec<ChunkId>> {
        let _turn = self.victims_turn.lock().await;
        if !*self.pins_known.borrow() {
            return None;
        }
        let ids = lock(&self.cache).victims(self.capacity_bytes.load(Ordering::Relaxed));
        if known == Some(&ids) {
            return None;
        }
        // A session that broke gets a list when the next one begins.
        let call = DataCall::Victims { ids: ids.clone() };
        let _ = session.call(session.any_lane(), call).await;
        Some(ids)
    }

    /// Tells the coordinator how full the node is.
    fn tell_status(&self) {
        let (_, bytes) = lock(&self.queue).left(None);
        let capacity = self.capacity_bytes.load(Ordering::Relaxed);
        self.namespace
            .set_status(capacity, lock(&self.cache).bytes(), bytes);
    }
}

/// Sends lists of victims until the node stops.
pub(crate) async fn victims_loop(inner: Arc<Inner>) {
    let mut last = Vec::new();
    let mut last_session = 0;
    let mut told = Instant::now() - LOOK;
    loop {
        let is_asked = tokio::select! {
            () = inner.victims_wake.notified() => true,
            () = tokio::time::sleep(LOOK) => false,
            () = inner.stop.cancelled() => return,
        };
        if told.elapsed() >= LOOK {
            told = Instant::now();
            inner.tell_status();
        }
        let Some(session) = inner.link.current() else {
            continue;
        };
        if !is_asked && !inner.is_filling() {
            continue;
        }
        let number = Arc::as_ptr(&session).addr();
        let known = (!is_asked && number == last_session).then_some(&last);
        if let Some(ids) = inner.send_victims(&session, known).await {
            last = ids;
            last_session = number;
        }
        tokio::time::sleep(REST).await;
    }
}
