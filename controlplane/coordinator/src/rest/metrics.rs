//! `GET /metrics` of the coordinator, as Prometheus reads it.

use crate::Coordinator;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::fmt::Write;

/// `GET /metrics`.
pub(super) async fn metrics(State(coordinator): State<Coordinator>) -> Response {
    let namespace = coordinator.engine().stats();
    let own = coordinator.stats();
    let mut text = String::new();
    let mut one = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP fastcache_{name} {help}\n# TYPE fastcache_{name} {kind}\nfastcache_{name} {value}\n"
        );
    };
    one(
        "coordinator_peers",
        "gauge",
        "Nodes registered in this run.",
        own.peers as u64,
    );
    one(
        "coordinator_peers_live",
        "gauge",
        "Nodes that are live.",
        own.peers_live as u64,
    );
    one(
        "coordinator_leases",
        "gauge",
        "Leases noted.",
        own.leases as u64,
    );
    one(
        "coordinator_revocations_total",
        "counter",
        "Revocations sent.",
        own.revocations,
    );
    one(
        "coordinator_revocations_unanswered_total",
        "counter",
        "Revocations that were not acknowledged within a lease.",
        own.revocations_unanswered,
    );
    one(
        "coordinator_changes_restored_total",
        "counter",
        "Changes that were lost with the end of the log when this run began, and made again from what nodes had kept.",
        own.changes_restored,
    );
    one(
        "coordinator_changes_lost_total",
        "counter",
        "Changes that nodes had kept and that could not be made again.",
        own.changes_lost,
    );
    one(
        "namespace_inodes",
        "gauge",
        "Inodes that exist.",
        namespace.inodes,
    );
    one(
        "namespace_bytes",
        "gauge",
        "Bytes of all files.",
        namespace.bytes,
    );
    one(
        "namespace_log_position",
        "gauge",
        "Position of the last record.",
        namespace.log_position,
    );
    one(
        "namespace_log_synced_position",
        "gauge",
        "Position up to which the log is on stable storage.",
        namespace.synced_position,
    );
    one(
        "namespace_changes_total",
        "counter",
        "Changes since the start.",
        namespace.changes,
    );
    one(
        "namespace_reads_total",
        "counter",
        "Reads since the start.",
        namespace.reads,
    );
    one(
        "namespace_disk_bytes",
        "gauge",
        "Bytes the store takes on disk.",
        namespace.disk_bytes,
    );
    one(
        "namespace_cache_bytes",
        "gauge",
        "Bytes of the store that are cached in memory.",
        namespace.cache_bytes,
    );
    one(
        "namespace_write_buffer_bytes",
        "gauge",
        "Bytes of changes that are in memory until the store writes a table of them.",
        namespace.write_buffer_bytes,
    );
    one(
        "history_shipping",
        "gauge",
        "1 while the log is written to the bucket; 0: nothing new is persisted.",
        u64::from(namespace.is_shipping),
    );
    one(
        "history_position",
        "gauge",
        "Position of the last record that is in the bucket.",
        namespace.shipped_position,
    );
    one(
        "history_lag_milliseconds",
        "gauge",
        "How long the oldest record that is not in the bucket waits.",
        namespace.history_lag_ms,
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
