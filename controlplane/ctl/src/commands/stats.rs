//! `stats`: what the node does now, as rates between two looks, line by line until it is interrupted.

use super::print_line;
use crate::cli::NodeFlags;
use crate::client::Target;
use crate::output::{bytes, duration, percent, say, seconds};
use clap::Args;
use fastcache_agent::rest::types::StatsBody;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Lines between two headings.
const HEADING_EVERY: u64 = 20;
/// Longest time a node that is away is waited for.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// `stats`.
#[derive(Clone, Debug, Args)]
pub struct StatsFlags {
    /// Seconds between two lines
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Lines to print; 0: until interrupted
    #[arg(long, value_name = "N", default_value = "0")]
    pub count: u64,
    /// Print the totals since the planes started, and end
    #[arg(long, conflicts_with_all = ["count", "interval"])]
    pub once: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// What happened in a time; and how things are at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Sample {
    /// How long the time was, seconds.
    seconds: f64,
    /// FUSE requests.
    requests: u64,
    nvme_reads: u64,
    nvme_read_bytes: u64,
    misses: u64,
    fetched_bytes: u64,
    written_bytes: u64,
    put_bytes: u64,
    get_bytes: u64,
    cloud_errors: u64,
    evicted_bytes: u64,
    write_stalls: u64,
    used_bytes: u64,
    capacity_bytes: u64,
    dirty_bytes: u64,
    oldest_dirty_age_seconds: f64,
    is_data_connected: bool,
}

impl Sample {
    /// Everything since the start.
    fn of(stats: &StatsBody, seconds: f64) -> Sample {
        let data = stats.nvme.clone().unwrap_or_default();
        Sample {
            seconds,
            requests: data.fuse_requests.iter().map(|(_, n)| n).sum(),
            nvme_reads: data.nvme_hits,
            nvme_read_bytes: data.nvme_hit_bytes,
            misses: data.misses,
            fetched_bytes: data.fetched_bytes,
            written_bytes: data.written_bytes,
            put_bytes: stats.cloud.put_bytes,
            get_bytes: stats.cloud.get_bytes,
            cloud_errors: stats.cloud.errors,
            evicted_bytes: data.evicted_bytes,
            write_stalls: data.write_stalls,
            used_bytes: data.used_bytes,
            capacity_bytes: data.capacity_bytes,
            dirty_bytes: stats.queue.dirty_bytes,
            oldest_dirty_age_seconds: stats.queue.oldest_dirty_age_seconds.unwrap_or(0.0),
            is_data_connected: stats.nvme.is_some(),
        }
    }

    /// What happened since an earlier sample. A count that fell began anew.
    fn since(&self, old: &Sample, seconds: f64) -> Sample {
        let rise = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Sample {
            seconds,
            requests: rise(self.requests, old.requests),
            nvme_reads: rise(self.nvme_reads, old.nvme_reads),
            nvme_read_bytes: rise(self.nvme_read_bytes, old.nvme_read_bytes),
            misses: rise(self.misses, old.misses),
            fetched_bytes: rise(self.fetched_bytes, old.fetched_bytes),
            written_bytes: rise(self.written_bytes, old.written_bytes),
            put_bytes: rise(self.put_bytes, old.put_bytes),
            get_bytes: rise(self.get_bytes, old.get_bytes),
            cloud_errors: rise(self.cloud_errors, old.cloud_errors),
            evicted_bytes: rise(self.evicted_bytes, old.evicted_bytes),
            write_stalls: rise(self.write_stalls, old.write_stalls),
            ..self.clone()
        }
    }

    fn row(&self) -> String {
        let rate = |n: u64| {
            #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
            let per_second = n as f64 / self.seconds.max(0.001);
            per_second
        };
        let speed = |n: u64| format!("{:.1}", rate(n) / 1e6);
        let reads = self.nvme_reads + self.misses;
        let hits = if reads == 0 {
            "-".to_owned()
        } else {
            percent(self.nvme_reads, reads)
        };
        let away = if self.is_data_connected {
            ""
        } else {
            "  data plane away"
        };
        format!(
            "{:>8.0} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8} {:>9} {:>10} {:>10} {:>6}{away}",
            rate(self.requests),
            speed(self.nvme_read_bytes + self.fetched_bytes),
            speed(self.written_bytes),
            hits,
            speed(self.get_bytes),
            speed(self.put_bytes),
            self.cloud_errors,
            percent(self.used_bytes, self.capacity_bytes),
            bytes(self.dirty_bytes),
            duration(seconds(self.oldest_dirty_age_seconds)),
            self.write_stalls,
        )
    }
}

/// What the columns are.
fn heading() -> String {
    format!(
        "{:>8} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8} {:>9} {:>10} {:>10} {:>6}",
        "req/s",
        "rd MB/s",
        "wr MB/s",
        "nvme",
        "get MB/s",
        "put MB/s",
        "errors",
        "full",
        "dirty",
        "oldest",
        "stalls"
    )
}

/// `stats`.
pub async fn stats(flags: &StatsFlags) -> anyhow::Result<ExitCode> {
    let target = Target::find(&flags.node)?;
    let ask = || target.api.get::<StatsBody>("/api/cache/stats");
    let first = ask().await?;
    let uptime = first.nvme.as_ref().map_or(0, |d| d.uptime_s);
    let uptime = Duration::from_secs(uptime).as_secs_f64();
    let mut old = Sample::of(&first, uptime);
    if flags.once {
        if flags.node.json {
            print_line(&old)?;
        } else {
            say!("{}\n{}", heading(), old.row());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut at = Instant::now();
    let mut away: Option<Instant> = None;
    let mut lines = 0;
    while flags.count == 0 || lines < flags.count {
        tokio::time::sleep(Duration::from_secs(flags.interval)).await;
        let stats = match ask().await {
            Ok(stats) => stats,
            Err(error) if error.is_passing() => {
                // It is being started again, perhaps.
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY_MAX {
                    return Err(error.into());
                }
                eprintln!("{error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        away = None;
        let now = Sample::of(&stats, 0.0);
        let sample = now.since(&old, at.elapsed().as_secs_f64());
        (old, at) = (now, Instant::now());
        if flags.node.json {
            print_line(&sample)?;
        } else {
            if lines % HEADING_EVERY == 0 {
                say!("{}", heading());
            }
            say!("{}", sample.row());
        }
        lines += 1;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_levels_are_not() {
        let old = Sample {
            requests: 100,
            written_bytes: 50,
            dirty_bytes: 7,
            ..Sample::default()
        };
        let now = Sample {
            requests: 130,
            written_bytes: 20,
            dirty_bytes: 3,
            ..Sample::default()
        };
        let since = now.since(&old, 2.0);
        assert_eq!(since.requests, 30);
        // The data plane was started again.
        assert_eq!(since.written_bytes, 20);
        assert_eq!(since.dirty_bytes, 3);
        assert!((since.seconds - 2.0).abs() < f64::EPSILON);
        assert!(since.row().starts_with("      15 "), "{}", since.row());
    }
}
