//! `status`: on one screen whether the node is healthy, how full, how dirty, how old the oldest dirty byte is, and which
//! tier answers reads. Ends with 1 when something does not work, so that scripts and probes can ask it.

use super::{NOT_WELL, print_json};
use crate::cli::NodeFlags;
use crate::client::Target;
use crate::output::{bytes, duration, percent, say, seconds};
use fastcache_agent::health::Severity;
use fastcache_agent::rest::types::{QueueBody, StatusBody};
use fastcache_api::control::{DataStats, PeerStats, PeersStats};
use fastcache_api::{HistoryState, HistoryStatus};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// `status`.
pub async fn status(flags: &NodeFlags) -> anyhow::Result<ExitCode> {
    let target = Target::find(flags)?;
    let status: StatusBody = target.api.get("/api/admin/status").await?;
    let worst = status.problems.iter().map(|p| p.severity).max();
    let health = match worst {
        None => "ok",
        Some(Severity::Warning) => "warning",
        Some(Severity::Critical) => "critical",
    };
    let code = match worst {
        Some(Severity::Critical) => ExitCode::from(NOT_WELL),
        _ => ExitCode::SUCCESS,
    };
    if flags.json {
        let mut value = serde_json::to_value(&status)?;
        value["health"] = json!(health);
        value["port"] = json!(target.port);
        value["mount"] = json!(target.mount);
        print_json(&value)?;
    } else {
        tell(&target, &status, health);
    }
    Ok(code)
}

fn line(name: &str, text: &str) {
    say!("{name:<12}{text}");
}

fn tell(target: &Target, status: &StatusBody, health: &str) {
    line("health", health);
    for problem in &status.problems {
        let severity = match problem.severity {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "warning",
        };
        line("", &format!("{severity}: {}", problem.what));
        line("", &format!("  do: {}", problem.todo));
    }
    line(
        "node",
        &format!(
            "{} (fastcache {}), up {}",
            status.peer_id,
            status.version,
            duration(seconds(status.uptime_seconds))
        ),
    );
    if let Some(mount) = &target.mount {
        line("mount", &mount.display().to_string());
    }
    line("rest", &format!("http://127.0.0.1:{}", target.port));
    line("cloud", &status.cloud_place);
    let counts = status.stats.namespace.map_or_else(
        || "does not answer".to_owned(),
        |n| format!("{} inodes, {}", n.inodes, bytes(n.bytes)),
    );
    line(
        "namespace",
        &format!("{counts} (coordinator: {})", status.coordinator),
    );
    if let Some(history) = &status.stats.history {
        line("history", &history_line(history));
    }
    match &status.stats.nvme {
        None => line("data plane", "not connected"),
        Some(data) => tell_data(data),
    }
    let pinned = &status.stats.pinned;
    if pinned.pinned_files > 0 {
        line(
            "pinned",
            &format!(
                "{} files, {} of them here (at most {})",
                pinned.pinned_files,
                bytes(pinned.pinned_bytes),
                bytes(pinned.pinned_most_bytes)
            ),
        );
    }
    let queue = &status.stats.queue;
    let capacity = status.stats.nvme.as_ref().map(|d| d.capacity_bytes);
    line("dirty", &dirty(queue, capacity, has_cloud(status)));
}

/// How much of the namespace is in the bucket.
fn history_line(history: &HistoryStatus) -> String {
    let behind = history
        .log_position
        .saturating_sub(history.shipped_position);
    let failing = history
        .error
        .as_ref()
        .map(|e| format!("; {e}"))
        .unwrap_or_default();
    match history.state {
        HistoryState::Off => "not written: there is no bucket for it".to_owned(),
        HistoryState::Stopped => format!("not written any more{failing}"),
        HistoryState::Claiming => format!("waits for the bucket{failing}"),
        HistoryState::Shipping if behind == 0 => {
            format!("all in the bucket (record {})", history.shipped_position)
        }
        HistoryState::Shipping => format!(
            "{behind} records are not yet in the bucket, the oldest for {}{failing}",
            duration(Duration::from_millis(history.lag_ms.unwrap_or(0)))
        ),
    }
}

fn has_cloud(status: &StatusBody) -> bool {
    status.cloud_place != "none"
}

fn tell_data(data: &DataStats) {
    line(
        "data plane",
        &format!(
            "connected, up {}, transport {} ({})",
            duration(Duration::from_secs(data.uptime_s)),
            data.transport,
            data.transport_why
        ),
    );
    line(
        "nvme",
        &format!(
            "{} of {} used ({}), {} chunks",
            bytes(data.used_bytes),
            bytes(data.capacity_bytes),
            percent(data.used_bytes, data.capacity_bytes),
            data.chunks
        ),
    );
    line(
        "reads",
        &format!(
            "{} hits ({}), {} misses, {} fetched ({}){}",
            data.nvme_hits,
            bytes(data.nvme_hit_bytes),
            data.misses,
            data.fetched_chunks,
            bytes(data.fetched_bytes),
            of_others(&data.peers)
        ),
    );
    line(
        "ahead",
        &format!(
            "{} chunks ({}) asked for before they were read, {} of them in vain",
            data.ahead_chunks,
            bytes(data.ahead_bytes),
            data.ahead_wasted + data.ahead_failed
        ),
    );
    let memory = &data.memory;
    let parts: Vec<String> = memory
        .parts
        .iter()
        .filter_map(|p| Some(format!("{} {}", p.name, bytes(p.used_bytes?))))
        .collect();
    line(
        "memory",
        &format!(
            "{} of {} resident ({})",
            bytes(memory.resident_bytes),
            bytes(memory.budget_bytes),
            parts.join(", ")
        ),
    );
    let reads = data.nvme_hits + data.misses;
    line(
        "hit rate",
        &if reads == 0 {
            "nothing was read from the tiers yet (the page cache answers without asking)".to_owned()
        } else {
            let (others, cloud) = split(data);
            let others = match data.peers.peers.is_empty() && others == 0 {
                true => String::new(),
                false => format!("other nodes {}, ", percent(others, reads)),
            };
            format!(
                "nvme {}, {others}cloud {} of {reads} chunk reads (the page cache answers without asking)",
                percent(data.nvme_hits, reads),
                percent(cloud, reads)
            )
        },
    );
    line(
        "evicted",
        &format!(
            "{} chunks ({})",
            data.evicted_chunks,
            bytes(data.evicted_bytes)
        ),
    );
    tell_others(&data.peers);
    let attention = [
        (data.conflict_files, "conflict files"),
        (data.uncommitted_files, "files not committed yet"),
        (data.write_stalls, "times a writer waited for space"),
    ];
    for (count, what) in attention.into_iter().filter(|(count, _)| *count > 0) {
        line("attention", &format!("{count} {what}"));
    }
}

/// What of the fetched chunks came from other nodes.
fn of_others(peers: &PeersStats) -> String {
    match peers.peer_fetched_chunks {
        0 => String::new(),
        chunks => format!(
            ", {chunks} of them from other nodes ({})",
            bytes(peers.peer_fetched_bytes)
        ),
    }
}

/// Misses that other nodes answered, and those that the cloud did. A chunk is fetched once, however many reads wait for it:
/// they are divided as the chunks are. What was read in parts is no miss of a chunk.
fn split(data: &DataStats) -> (u64, u64) {
    let of_others = data.peers.peer_fetched_chunks.min(data.fetched_chunks);
    let others =
        u128::from(data.misses) * u128::from(of_others) / u128::from(data.fetched_chunks.max(1));
    let others = u64::try_from(others).unwrap_or(data.misses);
    let in_parts = data.peers.peer_parts;
    (others.saturating_add(in_parts), data.misses - others)
}

/// Other nodes, and the copies of what is not in the cloud: theirs here and this node's there.
fn tell_others(peers: &PeersStats) {
    if peers.peers.is_empty() && peers.held_chunks == 0 {
        return;
    }
    let connected = peers.peers.iter().filter(|p| p.connections > 0).count();
    let sum = |of: fn(&PeerStats) -> u64| peers.peers.iter().map(of).sum::<u64>();
    line(
        "peers",
        &format!(
            "{}, {connected} connected; {} had from them, {} given, {} errors",
            peers.peers.len(),
            bytes(sum(|p| p.in_bytes)),
            bytes(sum(|p| p.out_bytes)),
            sum(|p| p.errors)
        ),
    );
    line(
        "copies",
        &format!(
            "of chunks not in the cloud: {} have all of theirs, {} lack some; {} ({}) kept here for other nodes",
            peers.replicated_chunks,
            peers.under_replicated_chunks,
            peers.held_chunks,
            bytes(peers.held_bytes)
        ),
    );
}

/// The persist queue in a line.
fn dirty(queue: &QueueBody, capacity: Option<u64>, has_cloud: bool) -> String {
    if queue.dirty_chunks == 0 {
        return if has_cloud {
            "nothing: everything is in the cloud".to_owned()
        } else {
            "nothing".to_owned()
        };
    }
    let part = capacity
        .map(|c| format!(" ({} of the store)", percent(queue.dirty_bytes, c)))
        .unwrap_or_default();
    let age = queue
        .oldest_dirty_age_seconds
        .map(|s| format!(", the oldest for {}", duration(seconds(s))))
        .unwrap_or_default();
    format!(
        "{} in {} chunks{part}{age}",
        bytes(queue.dirty_bytes),
        queue.dirty_chunks
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_divided_as_the_chunks_that_came() {
        let data = |misses, fetched_chunks, peer_fetched_chunks| DataStats {
            misses,
            fetched_chunks,
            peers: PeersStats {
                peer_fetched_chunks,
                ..PeersStats::default()
            },
            ..DataStats::default()
        };
        assert_eq!(split(&data(100, 10, 4)), (40, 60));
        assert_eq!(split(&data(100, 10, 0)), (0, 100));
        assert_eq!(split(&data(7, 3, 3)), (7, 0));
        assert_eq!(split(&data(5, 0, 0)), (0, 5));
        assert_eq!(split(&data(u64::MAX, 1, 9)), (u64::MAX, 0));
    }
}
