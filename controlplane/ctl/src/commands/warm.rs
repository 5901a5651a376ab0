//! `warmup`, `pin` and `unpin`: bring files to this node, and keep them there.
//!
//! They end with 0 when everything is here, with 1 when something does not fit or could not be fetched. Ctrl-C ends the
//! command; the node stops fetching as soon as nobody listens.

use super::{NOT_WELL, print_json};
use crate::cli::WarmFlags;
use crate::client::Target;
use crate::output::{bytes, duration, say, seconds};
use fastcache_agent::rest::types::UnpinBody;
use fastcache_agent::warm::{Line, WarmReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::process::ExitCode;

/// `warmup PATH`.
pub async fn warmup(flags: &WarmFlags) -> anyhow::Result<ExitCode> {
    run(flags, "warmup").await
}

/// `pin PATH`.
pub async fn pin(flags: &WarmFlags) -> anyhow::Result<ExitCode> {
    run(flags, "pin").await
}

/// `unpin PATH`.
pub async fn unpin(flags: &WarmFlags) -> anyhow::Result<()> {
    let target = Target::find(&flags.node)?;
    let path = target.query_path(&flags.path)?;
    let query = format!("/api/admin/unpin?path={path}");
    let body: UnpinBody = target.api.post(&query, None).await?;
    if flags.node.json {
        return print_json(&body);
    }
    say!("unpinned {} files", body.files);
    Ok(())
}

async fn run(flags: &WarmFlags, what: &str) -> anyhow::Result<ExitCode> {
    let target = Target::find(&flags.node)?;
    let path = target.query_path(&flags.path)?;
    let bar = (!flags.node.json && std::io::stderr().is_terminal()).then(bar);
    let mut so_far = WarmReport::default();
    let mut last = None;
    let query = format!("/api/admin/{what}?path={path}");
    let ended = {
        let reading = target.api.post_lines(&query, |line: Line| match line {
            Line::Progress(report) => {
                if let Some(bar) = &bar {
                    show(bar, &report);
                }
                so_far = report;
            }
            line => last = Some(line),
        });
        tokio::select! {
            read = reading => Some(read),
            _ = tokio::signal::ctrl_c() => None,
        }
    };
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let is_cut = ended.is_none();
    if let Some(read) = ended {
        read?;
    }
    let report = match last {
        Some(Line::Error(error)) => return Err(anyhow::anyhow!(error)),
        Some(Line::Done(report) | Line::Progress(report)) => report,
        None if is_cut => so_far,
        None => anyhow::bail!("the node ended before {what} did"),
    };
    if flags.node.json {
        print_json(&report)?;
    } else {
        tell(&report, is_cut);
    }
    let left = report.no_room_chunks + report.failed_chunks;
    Ok(if left > 0 || is_cut {
        ExitCode::from(NOT_WELL)
    } else {
        ExitCode::SUCCESS
    })
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    let template = "{bar:32} {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, report: &WarmReport) {
    bar.set_length(report.bytes - report.no_room_bytes - report.present_bytes);
    bar.set_position(report.fetched_bytes);
}

fn tell(report: &WarmReport, is_cut: bool) {
    if is_cut {
        say!("stopped; what was fetched so far stays");
    }
    say!(
        "{} files, {}: {} were here, {} fetched in {}",
        report.files,
        bytes(report.bytes),
        bytes(report.present_bytes),
        bytes(report.fetched_bytes),
        duration(seconds(report.seconds))
    );
    if report.is_pinned {
        say!("pinned: they stay until `fastcache-ctl unpin`");
    }
    if report.no_room_chunks > 0 {
        say!(
            "{} in {} chunks did not fit: there is no room beside what is dirty, pinned or was brought here just now",
            bytes(report.no_room_bytes),
            report.no_room_chunks
        );
    }
    if report.failed_chunks > 0 {
        say!(
            "{} chunks could not be fetched; the agent's log says why",
            report.failed_chunks
        );
    }
    if report.changed_chunks > 0 {
        say!(
            "{} chunks were rewritten or removed meanwhile",
            report.changed_chunks
        );
    }
}
