//! Other nodes: what was read from them, what they were given, how well they answer.

use super::Kind::{Counter, Gauge, Histogram};
use super::requests::durations;
use super::rising::total;
use super::{Metric, level, metric};
use fastcache_api::control::{Latency, PeersStats};
use metrics::gauge;

/// How long other nodes took to answer with bytes; kept here, since it is counted elsewhere.
const DURATION: &str = "fastcache_peer_request_duration_seconds";

/// The metrics of this subject.
pub(super) const METRICS: &[Metric] = &[
    metric(
        "fastcache_peers",
        Gauge,
        "",
        "other nodes that the data plane knows",
    ),
    metric(
        "fastcache_peer_connections",
        Gauge,
        "peer",
        "connections to a node that are open",
    ),
    metric(
        "fastcache_peer_requests_total",
        Counter,
        "peer",
        "requests to a node",
    ),
    metric(
        "fastcache_peer_errors_total",
        Counter,
        "peer",
        "requests and connections that failed; that it does not have a chunk is none",
    ),
    metric(
        "fastcache_peer_in_bytes_total",
        Counter,
        "peer",
        "bytes a node gave",
    ),
    metric(
        "fastcache_peer_out_bytes_total",
        Counter,
        "peer",
        "bytes a node was given",
    ),
    metric(
        DURATION,
        Histogram,
        "peer",
        "how long a node took to answer with bytes",
    ),
    metric(
        "fastcache_peer_absent_total",
        Counter,
        "",
        "chunks that a node was asked for and did not have",
    ),
    metric(
        "fastcache_peer_hedges_total",
        Counter,
        "",
        "nodes, or the cloud, that were asked because the one before took long",
    ),
    metric(
        "fastcache_replicated_chunks",
        Gauge,
        "",
        "chunks that are not in the cloud and have all their copies on other nodes",
    ),
    metric(
        "fastcache_under_replicated_chunks",
        Gauge,
        "",
        "chunks that are not in the cloud and lack copies, though there are other nodes",
    ),
    metric(
        "fastcache_replicas_given_total",
        Counter,
        "",
        "copies that other nodes were given",
    ),
    metric(
        "fastcache_replica_errors_total",
        Counter,
        "",
        "times that a copy could not be given; it is tried again",
    ),
    metric(
        "fastcache_repair_backlog_chunks",
        Gauge,
        "",
        "chunks of nodes that are gone, kept here or taken over, that are not known to be in the cloud",
    ),
    metric("fastcache_repair_backlog_bytes", Gauge, "", "their bytes"),
    metric(
        "fastcache_repaired_chunks_total",
        Counter,
        "",
        "chunks of nodes that are gone that were taken over",
    ),
    metric(
        "fastcache_given_chunks_total",
        Counter,
        "",
        "chunks that other nodes took over because this node's store was full",
    ),
    metric(
        "fastcache_taken_chunks_total",
        Counter,
        "",
        "chunks of other nodes' full stores that this node took over",
    ),
    metric(
        "fastcache_held_chunks",
        Gauge,
        "",
        "chunks that are kept for other nodes until the cloud has them",
    ),
    metric("fastcache_held_bytes", Gauge, "", "their bytes"),
    metric(
        "fastcache_peer_served_connections",
        Gauge,
        "",
        "connections of other nodes that are open",
    ),
    metric(
        "fastcache_peer_served_bytes_total",
        Counter,
        "",
        "bytes that other nodes were given",
    ),
    metric(
        "fastcache_peer_served_absent_total",
        Counter,
        "",
        "requests of other nodes for what is not here",
    ),
    metric(
        "fastcache_peer_refused_total",
        Counter,
        "",
        "connections that were refused: token, version, file system, silence",
    ),
    metric(
        "fastcache_peer_broken_total",
        Counter,
        "",
        "connections of other nodes that broke",
    ),
];

#[allow(clippy::cast_precision_loss, reason = "a number of connections")]
pub(super) fn export(stats: &PeersStats) {
    level("fastcache_peers", stats.peers.len() as u64);
    level(
        "fastcache_peer_served_connections",
        stats.served_connections,
    );
    for (name, value) in [
        ("fastcache_replicated_chunks", stats.replicated_chunks),
        (
            "fastcache_under_replicated_chunks",
            stats.under_replicated_chunks,
        ),
        ("fastcache_repair_backlog_chunks", stats.repair_chunks),
        ("fastcache_repair_backlog_bytes", stats.repair_bytes),
        ("fastcache_held_chunks", stats.held_chunks),
        ("fastcache_held_bytes", stats.held_bytes),
    ] {
        level(name, value);
    }
    for (name, count) in [
        ("fastcache_replicas_given_total", stats.given_replicas),
        ("fastcache_replica_errors_total", stats.replica_errors),
        ("fastcache_repaired_chunks_total", stats.repaired_chunks),
        ("fastcache_given_chunks_total", stats.given_chunks),
        ("fastcache_taken_chunks_total", stats.taken_chunks),
        ("fastcache_peer_absent_total", stats.peer_absent),
        ("fastcache_peer_hedges_total", stats.peer_hedges),
        ("fastcache_peer_served_bytes_total", stats.served_bytes),
        ("fastcache_peer_served_absent_total", stats.served_absent),
        ("fastcache_peer_refused_total", stats.refused_connections),
        ("fastcache_peer_broken_total", stats.broken_connections),
    ] {
        total(name, None, count);
    }
    for peer in &stats.peers {
        gauge!("fastcache_peer_connections", "peer" => peer.id.clone())
            .set(peer.connections as f64);
        for (name, count) in [
            ("fastcache_peer_requests_total", peer.requests),
            ("fastcache_peer_errors_total", peer.errors),
            ("fastcache_peer_in_bytes_total", peer.in_bytes),
            ("fastcache_peer_out_bytes_total", peer.out_bytes),
        ] {
            total(name, Some(("peer", &peer.id)), count);
        }
    }
}

/// How long they took.
pub(super) fn answer_durations(text: &mut String, stats: &PeersStats) {
    let latencies: Vec<Latency> = stats.peers.iter().map(|p| p.latency.clone()).collect();
    if let Some(metric) = METRICS.iter().find(|m| m.name == DURATION) {
        durations(text, metric, &latencies);
    }
}
