//! Requests: of the kernel, which the data plane counts, and of REST.

use super::Kind::{Counter, Histogram};
use super::rising::{risen, total};
use super::{Metric, metric};
use fastcache_api::control::{DataStats, LATENCY_BOUNDS_US, Latency};
use metrics::{counter, histogram};
use std::fmt::Write;
use std::time::Duration;

/// How long requests of FUSE took; kept here, since it is counted elsewhere.
const FUSE_DURATION: &str = "fastcache_fuse_request_duration_seconds";

/// How long fsyncs took; kept here, since it is counted elsewhere.
const FSYNC_DURATION: &str = "fastcache_fsync_duration_seconds";

/// The metrics of this subject.
pub(super) const METRICS: &[Metric] = &[
    metric(
        "fastcache_fuse_requests_total",
        Counter,
        "operation",
        "requests of the kernel",
    ),
    metric(
        FUSE_DURATION,
        Histogram,
        "operation",
        "how long they took, until the answer is ready",
    ),
    metric(
        FSYNC_DURATION,
        Histogram,
        "level",
        "how long fsyncs took that reached their level: `local`, `peers` or `cloud`",
    ),
    metric(
        "fastcache_rest_requests_total",
        Counter,
        "method,status",
        "REST requests answered",
    ),
    metric(
        "fastcache_rest_request_duration_seconds",
        Histogram,
        "method",
        "how long they took to their first byte",
    ),
];

/// A REST request was answered.
pub fn rest_request(method: &'static str, status: u16, took: Duration) {
    counter!("fastcache_rest_requests_total", "method" => method, "status" => status.to_string())
        .increment(1);
    histogram!("fastcache_rest_request_duration_seconds", "method" => method)
        .record(took.as_secs_f64());
}

pub(super) fn export(data: &DataStats) {
    for (operation, count) in &data.fuse_requests {
        total(
            "fastcache_fuse_requests_total",
            Some(("operation", operation)),
            *count,
        );
    }
}

/// How long requests of the kernel took.
pub(super) fn fuse_durations(text: &mut String, latencies: &[Latency]) {
    if let Some(metric) = METRICS.iter().find(|m| m.name == FUSE_DURATION) {
        durations(text, metric, latencies);
    }
}

/// How long fsyncs took.
pub(super) fn fsync_durations(text: &mut String, latencies: &[Latency]) {
    if let Some(metric) = METRICS.iter().find(|m| m.name == FSYNC_DURATION) {
        durations(text, metric, latencies);
    }
}

/// A histogram of the data plane, which comes with its buckets.
#[allow(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
pub(super) fn durations(text: &mut String, metric: &Metric, latencies: &[Latency]) {
    if latencies.is_empty() {
        return;
    }
    let (name, help, label) = (metric.name, metric.help, metric.label);
    let mut lines = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
    for latency in latencies {
        let op = &latency.operation;
        let mut upto = 0;
        for (at, count) in latency.buckets.iter().enumerate() {
            upto += risen(&format!("{name}/{op}/{at}"), *count).1;
            let bound = LATENCY_BOUNDS_US
                .get(at)
                .map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(
                lines,
                "{name}_bucket{{{label}=\"{op}\",le=\"{bound}\"}} {upto}"
            );
        }
        let sum = risen(&format!("{name}/{op}/sum"), latency.sum_us).1;
        let _ = writeln!(
            lines,
            "{name}_sum{{{label}=\"{op}\"}} {}\n{name}_count{{{label}=\"{op}\"}} {upto}",
            sum as f64 / 1e6
        );
    }
    text.push_str(&lines);
}
