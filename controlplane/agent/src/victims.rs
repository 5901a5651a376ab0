//! Keeps the data plane's list of victims ahead of need, and the coordinator informed of how full the node is.

use crate::link::lock;
use crate::node::Inner;
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
        let ids = lock(&inner.cache).victims(inner.capacity_bytes.load(Ordering::Relaxed));
        let number = Arc::as_ptr(&session).addr();
        if !is_asked && ids == last && number == last_session {
            continue;
        }
        last.clone_from(&ids);
        last_session = number;
        // A session that broke gets a list when the next one begins.
        let _ = session
            .call(session.any_lane(), DataCall::Victims { ids })
            .await;
        tokio::time::sleep(REST).await;
    }
}
