//! The namespace, and how far its history in the bucket is.

use super::Kind::Gauge;
use super::{Metric, level, metric};
use crate::types::NodeStats;
use fastcache_api::HistoryState;
use metrics::gauge;
use std::time::Duration;

/// The metrics of this subject.
pub(super) const METRICS: &[Metric] = &[
    metric(
        "fastcache_namespace_inodes",
        Gauge,
        "",
        "inodes of the file system",
    ),
    metric(
        "fastcache_namespace_bytes",
        Gauge,
        "",
        "bytes of all files, without holes",
    ),
    metric(
        "fastcache_history_shipping",
        Gauge,
        "",
        "1 while the coordinator writes the namespace's log to the bucket; 0: nothing new is persisted",
    ),
    metric(
        "fastcache_history_position",
        Gauge,
        "",
        "last record of the namespace's log that is in the bucket",
    ),
    metric(
        "fastcache_history_lag_records",
        Gauge,
        "",
        "records of the namespace that are not yet in the bucket",
    ),
    metric(
        "fastcache_history_lag_seconds",
        Gauge,
        "",
        "how long the oldest of them has waited; 0 without any",
    ),
];

pub(super) fn export(stats: &NodeStats) {
    if let Some(namespace) = &stats.namespace {
        level("fastcache_namespace_inodes", namespace.inodes);
        level("fastcache_namespace_bytes", namespace.bytes);
    }
    if let Some(history) = &stats.history {
        let is_shipping = history.state == HistoryState::Shipping;
        level("fastcache_history_shipping", u64::from(is_shipping));
        level("fastcache_history_position", history.shipped_position);
        level(
            "fastcache_history_lag_records",
            history
                .log_position
                .saturating_sub(history.shipped_position),
        );
        gauge!("fastcache_history_lag_seconds")
            .set(Duration::from_millis(history.lag_ms.unwrap_or(0)).as_secs_f64());
    }
}
