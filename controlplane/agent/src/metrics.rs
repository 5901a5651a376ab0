//! Metrics of the node, as Prometheus reads them at `/metrics`. Names are `fastcache_*`, units last.
//!
//! Levels and counters of the planes are taken over at scrape time from [`NodeStats`]. Counters of the data plane
//! start at 0 again when it restarts; what is exported only ever rises, by the differences.

use crate::types::NodeStats;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Buckets of request durations, seconds.
const DURATION_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0];

/// The recorder of this process: there is one, whoever asks first installs it.
static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
/// Counter values seen at the last scrape, by name and label.
static SEEN: Mutex<Option<HashMap<(&'static str, String), u64>>> = Mutex::new(None);

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
            Ok(handle) => Some(handle),
            Err(error) => {
                tracing::warn!(target: "rest", %error, "no metrics");
                None
            }
        }
    });
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
    Some(handle.render())
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn level(name: &'static str, value: u64) {
    gauge!(name).set(value as f64);
}

/// Raises a counter to what a source counts now, or by all of it when the source began anew.
fn total(name: &'static str, label: Option<(&'static str, &str)>, now: u64) {
    let key = (name, label.map(|(_, v)| v.to_owned()).unwrap_or_default());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let last = seen.get_or_insert_default().insert(key, now).unwrap_or(0);
    let rise = if now >= last { now - last } else { now };
    match label {
        Some((k, v)) => counter!(name, k => v.to_owned()).increment(rise),
        None => counter!(name).increment(rise),
    }
}

fn export(stats: &NodeStats) {
    gauge!("fastcache_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("fastcache_agent_uptime_seconds").set(stats.uptime.as_secs_f64());
    level("fastcache_data_connected", u64::from(stats.data.is_some()));

    let queue = &stats.backlog;
    level("fastcache_queue_chunks", queue.chunks);
    level("fastcache_queue_bytes", queue.bytes);
    gauge!("fastcache_oldest_dirty_age_seconds")
        .set(queue.oldest_dirty_age.map_or(0.0, |d| d.as_secs_f64()));
    level(
        "fastcache_uploads_failing",
        u64::from(queue.failing.is_some()),
    );

    let cloud = &stats.cloud;
    total("fastcache_cloud_puts_total", None, cloud.puts);
    total("fastcache_cloud_put_bytes_total", None, cloud.put_bytes);
    total("fastcache_cloud_gets_total", None, cloud.gets);
    total("fastcache_cloud_get_bytes_total", None, cloud.get_bytes);
    total("fastcache_cloud_deletes_total", None, cloud.deletes);
    total("fastcache_cloud_errors_total", None, cloud.errors);

    if let Some(namespace) = &stats.namespace {
        level("fastcache_namespace_inodes", namespace.inodes);
        level("fastcache_namespace_bytes", namespace.bytes);
    }
    let Some(data) = &stats.data else { return };
    level("fastcache_nvme_capacity_bytes", data.capacity_bytes);
    level("fastcache_nvme_used_bytes", data.used_bytes);
    level("fastcache_nvme_chunks", data.chunks);
    level("fastcache_dirty_chunks", data.dirty_chunks);
    level("fastcache_dirty_bytes", data.dirty_bytes);
    level("fastcache_uncommitted_files", data.uncommitted_files);
    level("fastcache_data_uptime_seconds", data.uptime_s);
    total(
        "fastcache_hits_total",
        Some(("tier", "nvme")),
        data.nvme_hits,
    );
    total(
        "fastcache_hits_total",
        Some(("tier", "cloud")),
        data.fetched_chunks,
    );
    total(
        "fastcache_hit_bytes_total",
        Some(("tier", "nvme")),
        data.nvme_hit_bytes,
    );
    total(
        "fastcache_hit_bytes_total",
        Some(("tier", "cloud")),
        data.fetched_bytes,
    );
    total("fastcache_misses_total", None, data.misses);
    total("fastcache_fetched_chunks_total", None, data.fetched_chunks);
    total("fastcache_fetched_bytes_total", None, data.fetched_bytes);
    total("fastcache_evicted_chunks_total", None, data.evicted_chunks);
    total("fastcache_evicted_bytes_total", None, data.evicted_bytes);
    total("fastcache_written_bytes_total", None, data.written_bytes);
    total(
        "fastcache_checksum_errors_total",
        None,
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
