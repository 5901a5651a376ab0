//! Metrics of the node, as Prometheus reads them at `/metrics`. Names are `fastcache_*`, units last.
//!
//! [`METRICS`] is the list of all there are; docs/operations.md has the same list, and tests compare both with each
//! other and with what a running node answers. What happens in this process is counted where it happens. Levels,
//! and counters of the data plane, are taken over at scrape time from [`NodeStats`]: the data plane's start at 0
//! again when it restarts, and what is exported only ever rises, by the differences.

use crate::health::{self, Severity};
use crate::types::NodeStats;
use fastcache_api::HistoryState;
use fastcache_api::control::{LATENCY_BOUNDS_US, Latency};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Buckets of the durations of this process, seconds.
const DURATION_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0];
/// How long requests of FUSE took; kept here, since it is counted elsewhere.
const FUSE_DURATION: &str = "fastcache_fuse_request_duration_seconds";

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises, until the process restarts.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its label, if it has one (`method,status`: two).
    pub label: &'static str,
    /// What it means.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, label: &'static str, help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        label,
        help,
    }
}

use Kind::{Counter, Gauge, Histogram};

/// Every metric of a node. Those that begin with data plane's counters are absent until it was connected once.
pub const METRICS: &[Metric] = &[
    metric(
        "fastcache_build_info",
        Gauge,
        "version",
        "1, with the version",
    ),
    metric(
        "fastcache_health",
        Gauge,
        "",
        "0 ok, 1 warning, 2 critical: as `fastcache-ctl status` says",
    ),
    metric(
        "fastcache_problem",
        Gauge,
        "code",
        "1 while the node has this problem",
    ),
    metric(
        "fastcache_agent_uptime_seconds",
        Gauge,
        "",
        "since the agent started",
    ),
    metric(
        "fastcache_data_connected",
        Gauge,
        "",
        "0 while the data plane is away",
    ),
    metric(
        "fastcache_data_uptime_seconds",
        Gauge,
        "",
        "since the data plane started",
    ),
    metric(
        "fastcache_namespace_connected",
        Gauge,
        "",
        "0 while the coordinator does not answer",
    ),
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
    metric(
        "fastcache_nvme_capacity_bytes",
        Gauge,
        "",
        "what the store can hold",
    ),
    metric(
        "fastcache_nvme_used_bytes",
        Gauge,
        "",
        "what it holds, headers and rounding included",
    ),
    metric("fastcache_nvme_chunks", Gauge, "", "chunks in the store"),
    metric(
        "fastcache_dirty_chunks",
        Gauge,
        "",
        "chunks that are not in the cloud yet",
    ),
    metric(
        "fastcache_dirty_bytes",
        Gauge,
        "",
        "their bytes on the device: what would be lost with it",
    ),
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
    metric(
        "fastcache_fetching_chunks",
        Gauge,
        "",
        "chunks that readers wait for, from the cloud or for a slot",
    ),
    metric(
        "fastcache_uncommitted_files",
        Gauge,
        "",
        "sealed files that the namespace does not have yet",
    ),
    metric(
        "fastcache_arena_slots",
        Gauge,
        "",
        "slots of the memory that both planes share",
    ),
    metric(
        "fastcache_arena_free_slots",
        Gauge,
        "",
        "of those, unused; 0 for long: uploads and fetches wait",
    ),
    metric(
        "fastcache_hits_total",
        Counter,
        "tier",
        "chunk reads answered by the tier: `nvme`, or `cloud` (one for each fetched chunk)",
    ),
    metric("fastcache_hit_bytes_total", Counter, "tier", "their bytes"),
    metric(
        "fastcache_misses_total",
        Counter,
        "",
        "chunk reads that the NVMe store could not answer",
    ),
    metric(
        "fastcache_evicted_chunks_total",
        Counter,
        "",
        "chunks evicted",
    ),
    metric(
        "fastcache_evicted_bytes_total",
        Counter,
        "",
        "their bytes on the device",
    ),
    metric(
        "fastcache_written_bytes_total",
        Counter,
        "",
        "bytes written by programs",
    ),
    metric(
        "fastcache_write_stalls_total",
        Counter,
        "",
        "times a writer waited for space or for uploads",
    ),
    metric(
        "fastcache_conflict_files_total",
        Counter,
        "",
        "files that lost their lease and became conflict files",
    ),
    metric(
        "fastcache_checksum_errors_total",
        Counter,
        "tier",
        "wrong checksums: `nvme` blocks, `cloud` objects, `arena` slots",
    ),
    metric(
        "fastcache_device_errors_total",
        Counter,
        "",
        "failed reads and writes of the NVMe device",
    ),
    metric(
        "fastcache_device_is_sick",
        Gauge,
        "",
        "1 while the device takes no journal: every close and fsync waits for the cloud",
    ),
    metric(
        "fastcache_device_spilled_bytes",
        Gauge,
        "",
        "refused by the device, in memory until the cloud has them",
    ),
    metric(
        "fastcache_device_bad_bytes",
        Gauge,
        "",
        "blocks that the device refused, not used before the next start",
    ),
    metric(
        "fastcache_unreadable_chunks",
        Gauge,
        "",
        "dirty chunks that the device does not give back",
    ),
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

/// The recorder of this process: there is one, whoever asks first installs it.
static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
/// Counts of the data plane: what it said last, and what is exported.
static RISEN: Mutex<BTreeMap<String, Risen>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Risen {
    last: u64,
    sum: u64,
}

/// Installs the recorder, once a process. Without it metrics are dropped and [`render`] says `None`.
pub fn install() {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets_for_metric(
            Matcher::Suffix("_duration_seconds".to_owned()),
            &DURATION_BUCKETS,
        );
        match builder
            .map_err(|e| e.to_string())
            .and_then(|b| b.install_recorder().map_err(|e| e.to_string()))
        {
            Ok(handle) => {
                announce();
                Some(handle)
            }
            Err(error) => {
                tracing::warn!(target: "rest", %error, "no metrics");
                None
            }
        }
    });
}

/// Describes every metric, and begins those at 0 that nothing may ever happen to.
fn announce() {
    for m in METRICS {
        match m.kind {
            Counter => describe_counter!(m.name, m.help),
            Gauge => describe_gauge!(m.name, m.help),
            Histogram => describe_histogram!(m.name, m.help),
        }
        if m.label.is_empty() && m.kind == Counter {
            counter!(m.name).increment(0);
        }
        if m.label.is_empty() && m.kind == Histogram {
            // Made, so that it is there; nothing is recorded.
            let _ = histogram!(m.name);
        }
    }
    for op in ["put", "get", "delete"] {
        counter!("fastcache_cloud_errors_total", "op" => op).increment(0);
    }
    for op in ["put", "get"] {
        counter!("fastcache_cloud_retries_total", "op" => op).increment(0);
    }
    gauge!("fastcache_cloud_reads_stopped").set(0.0);
    for tier in ["nvme", "cloud", "arena"] {
        counter!("fastcache_checksum_errors_total", "tier" => tier).increment(0);
    }
}

/// A REST request was answered.
pub fn rest_request(method: &'static str, status: u16, took: Duration) {
    counter!("fastcache_rest_requests_total", "method" => method, "status" => status.to_string())
        .increment(1);
    histogram!("fastcache_rest_request_duration_seconds", "method" => method)
        .record(took.as_secs_f64());
}

/// The text of a scrape; `None` when no recorder could be installed.
pub fn render(stats: &NodeStats) -> Option<String> {
    let handle = HANDLE.get()?.as_ref()?;
    export(stats);
    handle.run_upkeep();
    let mut text = handle.render();
    if let Some(data) = &stats.data {
        fuse_durations(&mut text, &data.fuse_latency);
    }
    Some(text)
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn level(name: &'static str, value: u64) {
    gauge!(name).set(value as f64);
}

/// What a count of the data plane rose by since it was last looked at (all of it when it began anew), and its sum.
fn risen(key: &str, now: u64) -> (u64, u64) {
    let mut all = RISEN.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = all.entry(key.to_owned()).or_default();
    let rise = if now >= entry.last {
        now - entry.last
    } else {
        now
    };
    entry.last = now;
    entry.sum += rise;
    (rise, entry.sum)
}

/// Raises a counter to what the data plane counts now.
fn total(name: &'static str, label: Option<(&'static str, &str)>, now: u64) {
    let key = format!("{name}/{}", label.map_or("", |(_, v)| v));
    let (rise, _) = risen(&key, now);
    match label {
        Some((k, v)) => counter!(name, k => v.to_owned()).increment(rise),
        None => counter!(name).increment(rise),
    }
}

fn export(stats: &NodeStats) {
    gauge!("fastcache_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("fastcache_agent_uptime_seconds").set(stats.uptime.as_secs_f64());
    level("fastcache_data_connected", u64::from(stats.data.is_some()));
    level(
        "fastcache_namespace_connected",
        u64::from(stats.namespace.is_some()),
    );

    let problems = health::assess(stats);
    let worst = problems.iter().map(|p| p.severity).max();
    level(
        "fastcache_health",
        match worst {
            None => 0,
            Some(Severity::Warning) => 1,
            Some(Severity::Critical) => 2,
        },
    );
    for code in health::CODES {
        let has = problems.iter().any(|p| p.code == code);
        gauge!("fastcache_problem", "code" => code).set(f64::from(u8::from(has)));
    }

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
    let Some(data) = &stats.data else { return };
    level("fastcache_nvme_capacity_bytes", data.capacity_bytes);
    level("fastcache_nvme_used_bytes", data.used_bytes);
    level("fastcache_nvme_chunks", data.chunks);
    level("fastcache_dirty_chunks", data.dirty_chunks);
    level("fastcache_dirty_bytes", data.dirty_bytes);
    level("fastcache_uncommitted_files", data.uncommitted_files);
    level("fastcache_data_uptime_seconds", data.uptime_s);
    level("fastcache_arena_slots", data.arena_slots);
    level("fastcache_arena_free_slots", data.arena_free);
    level("fastcache_fetching_chunks", data.fetching_chunks);
    level("fastcache_device_is_sick", u64::from(data.is_device_lost));
    level("fastcache_device_spilled_bytes", data.spilled_bytes);
    level("fastcache_device_bad_bytes", data.bad_bytes);
    level("fastcache_unreadable_chunks", data.unreadable_chunks);
    let tiers = [
        ("nvme", data.nvme_hits, data.nvme_hit_bytes),
        ("cloud", data.fetched_chunks, data.fetched_bytes),
    ];
    for (tier, hits, bytes) in tiers {
        total("fastcache_hits_total", Some(("tier", tier)), hits);
        total("fastcache_hit_bytes_total", Some(("tier", tier)), bytes);
    }
    total("fastcache_misses_total", None, data.misses);
    total("fastcache_evicted_chunks_total", None, data.evicted_chunks);
    total("fastcache_evicted_bytes_total", None, data.evicted_bytes);
    total("fastcache_written_bytes_total", None, data.written_bytes);
    total(
        "fastcache_checksum_errors_total",
        Some(("tier", "nvme")),
        data.checksum_errors,
    );
    total("fastcache_device_errors_total", None, data.device_errors);
    total("fastcache_write_stalls_total", None, data.write_stalls);
    total("fastcache_conflict_files_total", None, data.conflict_files);
    for (operation, count) in &data.fuse_requests {
        total(
            "fastcache_fuse_requests_total",
            Some(("operation", operation)),
            *count,
        );
    }
}

/// The data plane's histograms, which come with their buckets.
#[allow(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn fuse_durations(text: &mut String, latencies: &[Latency]) {
    let help = METRICS
        .iter()
        .find(|m| m.name == FUSE_DURATION)
        .map_or("", |m| m.help);
    let mut lines = format!("# HELP {FUSE_DURATION} {help}\n# TYPE {FUSE_DURATION} histogram\n");
    for latency in latencies {
        let op = &latency.operation;
        let mut upto = 0;
        for (at, count) in latency.buckets.iter().enumerate() {
            upto += risen(&format!("{FUSE_DURATION}/{op}/{at}"), *count).1;
            let bound = LATENCY_BOUNDS_US
                .get(at)
                .map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(
                lines,
                "{FUSE_DURATION}_bucket{{operation=\"{op}\",le=\"{bound}\"}} {upto}"
            );
        }
        let sum = risen(&format!("{FUSE_DURATION}/{op}/sum"), latency.sum_us).1;
        let _ = writeln!(
            lines,
            "{FUSE_DURATION}_sum{{operation=\"{op}\"}} {}\n{FUSE_DURATION}_count{{operation=\"{op}\"}} {upto}",
            sum as f64 / 1e6
        );
    }
    text.push_str(&lines);
}

#[cfg(test)]
mod tests {
    //! The list of metrics and the table in docs/operations.md are the same; a scrape is what Prometheus can read.
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_documentation_lists_what_there_is() {
        let doc = include_str!("../../../docs/operations.md");
        let documented: BTreeMap<&str, (String, String)> = doc
            .lines()
            .filter(|l| l.starts_with("| `fastcache_"))
            .map(|l| {
                let cells: Vec<&str> = l.trim_matches('|').split('|').map(str::trim).collect();
                let plain = |s: &str| s.replace('`', "");
                (
                    cells[0].trim_matches('`'),
                    (plain(cells[1]), plain(cells[2])),
                )
            })
            .collect();
        let there: BTreeMap<&str, (String, String)> = METRICS
            .iter()
            .map(|m| {
                let kind = format!("{:?}", m.kind).to_lowercase();
                (m.name, (kind, m.label.to_owned()))
            })
            .collect();
        assert_eq!(documented, there);
    }

    #[test]
    fn what_the_data_plane_counts_only_rises() {
        let key = "test/rises";
        assert_eq!(risen(key, 5), (5, 5));
        assert_eq!(risen(key, 9), (4, 9));
        // It was started again.
        assert_eq!(risen(key, 2), (2, 11));
    }

    #[test]
    fn histograms_of_the_data_plane_are_cumulative() {
        let mut buckets = vec![0; LATENCY_BOUNDS_US.len() + 1];
        (buckets[0], buckets[2]) = (3, 4);
        let mut text = String::new();
        fuse_durations(
            &mut text,
            &[Latency {
                operation: "test".to_owned(),
                buckets,
                sum_us: 1500,
            }],
        );
        for line in [
            "_bucket{operation=\"test\",le=\"0.000025\"} 3",
            "_bucket{operation=\"test\",le=\"0.0001\"} 7",
            "_bucket{operation=\"test\",le=\"+Inf\"} 7",
            "_sum{operation=\"test\"} 0.0015",
            "_count{operation=\"test\"} 7",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
