//! Whether the node is well, and which of its parts are there.

use super::Kind::{Counter, Gauge};
use super::rising::total;
use super::{Metric, level, metric};
use crate::health::{self, Severity};
use crate::types::NodeStats;
use metrics::gauge;

/// The metrics of this subject.
pub(super) const METRICS: &[Metric] = &[
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
        "fastcache_stuck_cores",
        Gauge,
        "",
        "cores of the data plane that do not go on: what they serve waits",
    ),
    metric(
        "fastcache_core_stalls_total",
        Counter,
        "",
        "times that a core did not go on for a second",
    ),
    metric(
        "fastcache_namespace_connected",
        Gauge,
        "",
        "0 while the coordinator does not answer",
    ),
];

pub(super) fn export(stats: &NodeStats) {
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
    if let Some(data) = &stats.data {
        level("fastcache_data_uptime_seconds", data.uptime_s);
        let stuck = u64::try_from(data.stuck_cores.len()).unwrap_or(u64::MAX);
        level("fastcache_stuck_cores", stuck);
        total("fastcache_core_stalls_total", None, data.core_stalls);
    }
}
