//! Metrics of the node, as Prometheus reads them at `/metrics`. Names are `fastcache_*`, units last.
//!
//! Each subject has a file with the list of its metrics; [`all`] is the list of all there are. docs/operations.md has
//! the same list, and tests compare both with each other and with what a running node answers. What happens in this
//! process is counted where it happens. Levels, and counters of the data plane, are taken over at scrape time
//! from [`NodeStats`]: the data plane's start at 0 again when it restarts, and what is exported only ever
//! rises, by the differences.

mod cloud;
mod namespace;
mod node;
mod peers;
mod requests;
mod rising;
mod store;
#[cfg(test)]
mod tests;

use crate::types::NodeStats;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
pub use requests::rest_request;
use std::sync::OnceLock;

/// Buckets of the durations of this process, seconds.
const DURATION_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0];

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
pub fn all() -> impl Iterator<Item = &'static Metric> {
    let subjects = [
        node::METRICS,
        namespace::METRICS,
        store::METRICS,
        peers::METRICS,
        cloud::METRICS,
        requests::METRICS,
    ];
    subjects.into_iter().flatten()
}

/// The recorder of this process: there is one, whoever asks first installs it.
static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

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
    for m in all() {
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
    cloud::announce();
    store::announce();
}

/// The text of a scrape; `None` when no recorder could be installed.
pub fn render(stats: &NodeStats) -> Option<String> {
    let handle = HANDLE.get()?.as_ref()?;
    node::export(stats);
    namespace::export(stats);
    cloud::export(stats);
    store::export_pins(&stats.pins);
    if let Some(data) = &stats.data {
        store::export(data);
        requests::export(data);
        peers::export(&data.peers);
    }
    handle.run_upkeep();
    let mut text = handle.render();
    if let Some(data) = &stats.data {
        requests::fuse_durations(&mut text, &data.fuse_latency);
        requests::fsync_durations(&mut text, &data.fsync_latency);
        peers::answer_durations(&mut text, &data.peers);
    }
    Some(text)
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn level(name: &'static str, value: u64) {
    gauge!(name).set(value as f64);
}
