//! Keeps the data plane's list of victims ahead of need, and the gauges up to date.

use crate::link::lock;
use crate::node::Inner;
use fastcache_api::control::DataCall;
use metrics::gauge;
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

    #[allow(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn set_gauges(&self) {
        let (chunks, bytes, oldest) = {
            let queue = lock(&self.queue);
            let (chunks, bytes) = queue.left(None);
            (chunks, bytes, queue.oldest())
        };
        let capacity = self.capacity_bytes.load(Ordering::Relaxed);
        self.namespace
            .set_status(capacity, lock(&self.cache).bytes(), bytes);
        gauge!("fastcache_upload_queue_chunks").set(chunks as f64);
        gauge!("fastcache_upload_queue_bytes").set(bytes as f64);
        gauge!("fastcache_oldest_dirty_age_seconds")
            .set(oldest.map_or(0.0, |t| t.elapsed().as_secs_f64()));
        gauge!("fastcache_uploads_failing").set(if lock(&self.breaker).error().is_some() {
            1.0
        } else {
            0.0
        });
        gauge!("fastcache_data_connected").set(if self.link.current().is_some() {
            1.0
        } else {
            0.0
        });
    }
}

/// Sends lists of victims until the node stops.
pub(crate) async fn victims_loop(inner: Arc<Inner>) {
    let mut last = Vec::new();
    let mut last_session = 0;
    let mut gauged = Instant::now() - LOOK;
    loop {
        let is_asked = tokio::select! {
            () = inner.victims_wake.notified() => true,
            () = tokio::time::sleep(LOOK) => false,
            () = inner.stop.cancelled() => return,
        };
        if gauged.elapsed() >= LOOK {
            gauged = Instant::now();
            inner.set_gauges();
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
