//! The object store: the upload queue, and the requests.

use super::Kind::{Counter, Gauge, Histogram};
use super::{Metric, level, metric};
use crate::types::NodeStats;
use metrics::{counter, gauge};

/// The metrics of this subject.
pub(super) const METRICS: &[Metric] = &[
    metric(
        "fastcache_oldest_dirty_age_seconds",
        Gauge,
        "",
        "how long the oldest of them has waited; 0 without any",
    ),
    metric(
        "fastcache_queue_chunks",
        Gauge,
        "",
        "chunks in the upload queue",
    ),
    metric("fastcache_queue_bytes", Gauge, "", "their bytes"),
    metric(
        "fastcache_uploads_in_flight",
        Gauge,
        "",
        "uploads under way",
    ),
    metric(
        "fastcache_uploads_failing",
        Gauge,
        "",
        "1 while the last upload failed",
    ),
    metric(
        "fastcache_breaker_open",
        Gauge,
        "",
        "1 while uploads are paused because they kept failing",
    ),
    metric(
        "fastcache_fetches_in_flight",
        Gauge,
        "",
        "cloud reads under way",
    ),
    metric("fastcache_cloud_puts_total", Counter, "", "objects written"),
    metric(
        "fastcache_cloud_put_bytes_total",
        Counter,
        "",
        "their bytes",
    ),
    metric(
        "fastcache_cloud_put_duration_seconds",
        Histogram,
        "",
        "how long writing an object took, retries included",
    ),
    metric("fastcache_cloud_gets_total", Counter, "", "objects read"),
    metric(
        "fastcache_cloud_get_bytes_total",
        Counter,
        "",
        "their bytes",
    ),
    metric(
        "fastcache_cloud_get_duration_seconds",
        Histogram,
        "",
        "how long reading an object took, retries included",
    ),
    metric(
        "fastcache_cloud_deletes_total",
        Counter,
        "",
        "objects deleted",
    ),
    metric(
        "fastcache_cloud_errors_total",
        Counter,
        "op",
        "requests that failed after their retries: `put`, `get`, `delete`",
    ),
    metric(
        "fastcache_cloud_retries_total",
        Counter,
        "op",
        "requests made again because the first ones failed: `put`, `get`",
    ),
    metric(
        "fastcache_cloud_hedges_total",
        Counter,
        "",
        "second requests beside reads that took longer than most",
    ),
    metric(
        "fastcache_cloud_hedges_won_total",
        Counter,
        "",
        "of those, answered first",
    ),
    metric(
        "fastcache_cloud_throttled_total",
        Counter,
        "",
        "answers that asked for fewer requests (429, 503)",
    ),
    metric(
        "fastcache_cloud_reads_stopped",
        Gauge,
        "",
        "1 while reads of the object store are stopped because they kept failing",
    ),
    metric(
        "fastcache_upload_limit",
        Gauge,
        "",
        "uploads allowed at once; falls when the store asks for fewer",
    ),
    metric(
        "fastcache_fetch_errors_total",
        Counter,
        "",
        "reads that failed because no tier had the chunk in time",
    ),
    metric(
        "fastcache_upload_read_errors_total",
        Counter,
        "",
        "dirty chunks that could not be read for their upload",
    ),
    metric(
        "fastcache_reverted_chunks_total",
        Counter,
        "",
        "chunks that were lost before they were uploaded and are again what was last persisted",
    ),
];

/// Begins those at 0 that nothing may ever happen to.
pub(super) fn announce() {
    for op in ["put", "get", "delete"] {
        counter!("fastcache_cloud_errors_total", "op" => op).increment(0);
    }
    for op in ["put", "get"] {
        counter!("fastcache_cloud_retries_total", "op" => op).increment(0);
    }
    gauge!("fastcache_cloud_reads_stopped").set(0.0);
}

pub(super) fn export(stats: &NodeStats) {
    let queue = &stats.backlog;
    level("fastcache_queue_chunks", queue.chunks);
    level("fastcache_queue_bytes", queue.bytes);
    gauge!("fastcache_oldest_dirty_age_seconds")
        .set(queue.oldest_dirty_age.map_or(0.0, |d| d.as_secs_f64()));
    level(
        "fastcache_uploads_failing",
        u64::from(queue.failing.is_some()),
    );
    level("fastcache_breaker_open", u64::from(stats.is_breaker_open));
    level("fastcache_uploads_in_flight", stats.uploads_in_flight);
    level("fastcache_fetches_in_flight", stats.fetches_in_flight);
}
