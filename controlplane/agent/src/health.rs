//! Whether a node is well, and what to do where it is not. Pure: it judges what [`NodeStats`] tells.

use crate::history;
use crate::types::NodeStats;
use fastcache_api::HistoryState;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Dirty bytes that are older are worth a look: uploads are due after 30 seconds at most.
pub const DIRTY_AGE_MAX: Duration = Duration::from_secs(300);
/// Percent of the store that may be dirty before it is worth a look: at the cap writers wait.
pub const DIRTY_PERCENT_MAX: u64 = 70;

/// Records of the namespace that wait longer for the bucket are worth a look: they are due after a second.
pub const HISTORY_LAG_MAX: Duration = Duration::from_secs(60);

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything works; somebody should look.
    Warning,
    /// Something does not work.
    Critical,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// For programs; one of [`CODES`].
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, for people.
    pub what: String,
    /// What to do.
    pub todo: String,
}

/// Every code there is, for the metric `fastcache_problem`.
pub const CODES: [&str; 14] = [
    "data_plane_away",
    "namespace_away",
    "uploads_paused",
    "uploads_failing",
    "device_sick",
    "data_unreadable",
    "device_errors",
    "checksum_errors",
    "dirty_old",
    "dirty_much",
    "reads_stopped",
    "core_stuck",
    "history_stopped",
    "history_behind",
];

fn problem(code: &str, severity: Severity, what: String, todo: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        severity,
        what,
        todo: todo.to_owned(),
    }
}

/// What is wrong with a node, the worst first.
pub fn assess(stats: &NodeStats) -> Vec<Problem> {
    use Severity::{Critical, Warning};
    let mut found = Vec::new();
    if stats.data.is_none() {
        found.push(problem(
            "data_plane_away",
            Critical,
            "the data plane does not answer: the mount does not work".to_owned(),
            "see its log (DIR/log/data.log); `up` restarts it, else start fastcache-data with the same --socket",
        ));
    }
    if stats.namespace.is_none() {
        let who = stats
            .coordinator
            .as_deref()
            .unwrap_or("the embedded coordinator");
        found.push(problem(
            "namespace_away",
            Critical,
            format!(
                "the namespace ({who}) does not answer: names cannot be changed, only what is cached can be read"
            ),
            "start the coordinator, or check the network to it; what was acknowledged is kept meanwhile",
        ));
    }
    if let Some(error) = &stats.backlog.failing {
        let todo = "check the object store, its credentials and the network; dirty data stays on NVMe, and uploads go on by themselves";
        if stats.is_breaker_open {
            let what = format!("uploads are paused because they kept failing: {error}");
            found.push(problem("uploads_paused", Critical, what, todo));
        } else {
            let what = format!("uploads fail: {error}");
            found.push(problem("uploads_failing", Warning, what, todo));
        }
    }
    if let Some(error) = &stats.reads_stopped {
        found.push(problem(
            "reads_stopped",
            Critical,
            format!(
                "reads of the object store are stopped because they kept failing: what is not on this node gives EIO: {error}"
            ),
            "check the object store, its credentials and the network; one read at a time probes, and all go on by themselves",
        ));
    }
    if let Some(age) = stats.backlog.oldest_dirty_age
        && stats.has_cloud
        && age > DIRTY_AGE_MAX
    {
        found.push(problem(
            "dirty_old",
            Warning,
            format!(
                "the oldest dirty bytes have waited {} s for their upload",
                age.as_secs()
            ),
            "`fastcache-ctl flush --wait` says what holds them up; is the object store fast enough for the writers?",
        ));
    }
    if let Some(history) = &stats.history
        && stats.has_cloud
    {
        let lag = Duration::from_millis(history.lag_ms.unwrap_or(0));
        match history.state {
            HistoryState::Stopped | HistoryState::Off => found.push(problem(
                "history_stopped",
                Critical,
                history::problem(history).unwrap_or_default(),
                "until then names and files are safe on the coordinator's disk only",
            )),
            _ if lag > HISTORY_LAG_MAX => found.push(problem(
                "history_behind",
                Warning,
                format!(
                    "names and layouts have waited {} s for the bucket{}",
                    lag.as_secs(),
                    history.error.as_ref().map(|e| format!(": {e}")).unwrap_or_default()
                ),
                "check the object store, its credentials and the network of the coordinator; it goes on by itself",
            )),
            _ => {}
        }
    }
    if let Some(data) = &stats.data {
        if let Some(first) = data.stuck_cores.first() {
            let cores = data.stuck_cores.len();
            found.push(problem(
                "core_stuck",
                Critical,
                format!(
                    "{cores} core{} of the data plane do{} not go on, and what is served there waits: core {} for {} s in {}",
                    if cores == 1 { "" } else { "s" },
                    if cores == 1 { "es" } else { "" },
                    first.core,
                    first.for_ms / 1000,
                    first.doing
                ),
                "see `dmesg` and the log of the data plane; when it lasts, kill -9 the data plane: `up` starts it again, and what was closed is not lost",
            ));
        }
        if data.is_device_lost || data.spilled_bytes > 0 {
            let what = if data.is_device_lost {
                "the NVMe device takes no journal: every close and fsync waits for the cloud"
                    .to_owned()
            } else {
                format!(
                    "the NVMe device refused {} bytes, which are in memory until the cloud has them: close and fsync wait for that",
                    data.spilled_bytes
                )
            };
            found.push(problem(
                "device_sick",
                Critical,
                what,
                "see `dmesg` and `smartctl -a`; `flush --wait`, stop the node, replace the device, start with --format",
            ));
        }
        if data.unreadable_chunks > 0 {
            found.push(problem(
                "data_unreadable",
                Critical,
                format!(
                    "{} chunks that are not in the cloud cannot be read from the device: their files give EIO",
                    data.unreadable_chunks
                ),
                "the log of the data plane names them (`fastcache-ctl state FILE` shows what is dirty): write those files anew, or delete them",
            ));
        }
        if data.device_errors > 0 {
            found.push(problem(
                "device_errors",
                Critical,
                format!(
                    "the NVMe device failed {} times since the data plane started",
                    data.device_errors
                ),
                "see `dmesg` and `smartctl -a`; `flush --wait`, stop the node, replace the device, start with --format",
            ));
        }
        if data.checksum_errors > 0 {
            found.push(problem(
                "checksum_errors",
                Warning,
                format!(
                    "{} blocks of the store had a wrong checksum; they were fetched again where the cloud has them",
                    data.checksum_errors
                ),
                "`fastcache-ctl fsck`; when it goes on, replace the device",
            ));
        }
        let part = data.dirty_bytes.saturating_mul(100) / data.capacity_bytes.max(1);
        if part > DIRTY_PERCENT_MAX {
            let todo = if stats.has_cloud {
                "uploads do not keep up with the writers: they will have to wait; a larger store or a faster object store helps"
            } else {
                "without a cloud tier (--cloud-provider none) nothing can be evicted: delete files, or give it one"
            };
            let what = format!("{part} % of the store is dirty");
            found.push(problem("dirty_much", Warning, what, todo));
        }
    }
    found.sort_by_key(|p| std::cmp::Reverse(p.severity));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Backlog, CloudCounters, NamespaceStats, PinStats};
    use fastcache_api::HistoryStatus;
    use fastcache_api::control::{DataStats, StuckCore};

    fn well() -> NodeStats {
        NodeStats {
            data: Some(DataStats {
                capacity_bytes: 1000,
                ..DataStats::default()
            }),
            pins: PinStats::default(),
            backlog: Backlog::default(),
            cloud: CloudCounters::default(),
            namespace: Some(NamespaceStats::default()),
            history: Some(HistoryStatus {
                state: HistoryState::Shipping,
                ..HistoryStatus::default()
            }),
            peer_id: "node".to_owned(),
            coordinator: None,
            uptime: Duration::ZERO,
            has_cloud: true,
            is_breaker_open: false,
            reads_stopped: None,
            uploads_in_flight: 0,
            fetches_in_flight: 0,
        }
    }

    #[test]
    fn each_problem_has_its_code_and_something_to_do() {
        type Break = fn(&mut NodeStats);
        let table: [(&str, Break); 12] = [
            ("data_plane_away", |s| s.data = None),
            ("namespace_away", |s| s.namespace = None),
            ("uploads_paused", |s| {
                s.backlog.failing = Some("no route".to_owned());
                s.is_breaker_open = true;
            }),
            ("uploads_failing", |s| {
                s.backlog.failing = Some("no route".to_owned());
            }),
            ("device_sick", |s| {
                s.data.as_mut().unwrap().spilled_bytes = 1;
            }),
            ("data_unreadable", |s| {
                s.data.as_mut().unwrap().unreadable_chunks = 1;
            }),
            ("device_errors", |s| {
                s.data.as_mut().unwrap().device_errors = 1;
            }),
            ("checksum_errors", |s| {
                s.data.as_mut().unwrap().checksum_errors = 1;
            }),
            ("dirty_old", |s| {
                s.backlog.oldest_dirty_age = Some(DIRTY_AGE_MAX * 2);
            }),
            ("dirty_much", |s| {
                s.data.as_mut().unwrap().dirty_bytes = 800;
            }),
            ("reads_stopped", |s| {
                s.reads_stopped = Some("no route".to_owned());
            }),
            ("core_stuck", |s| {
                s.data.as_mut().unwrap().stuck_cores = vec![StuckCore::default()];
            }),
        ];
        assert_eq!(assess(&well()), vec![]);
        for ((code, broken), listed) in table.into_iter().zip(CODES) {
            assert_eq!(code, listed);
            let mut stats = well();
            broken(&mut stats);
            let found = assess(&stats);
            assert_eq!(found.len(), 1, "{code}: {found:?}");
            assert_eq!(found[0].code, code);
            assert!(!found[0].todo.is_empty());
        }
        let mut stats = well();
        stats.backlog.oldest_dirty_age = Some(DIRTY_AGE_MAX * 2);
        stats.data.as_mut().unwrap().device_errors = 1;
        assert_eq!(assess(&stats)[0].severity, Severity::Critical);
    }
}
