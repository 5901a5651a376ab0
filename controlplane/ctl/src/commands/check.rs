//! `gc` and `fsck`: start a check on the node, show how far it is, tell what it found.
//!
//! They end with 0 when there is nothing wrong (or what was wrong has been dealt with), 1 when something was found, 2
//! when it could not be checked.

use super::{NOT_CHECKED, NOT_WELL, print_json};
use crate::cli::NodeFlags;
use crate::client::Target;
use crate::output::{bytes, duration, say, seconds};
use clap::Args;
use fastcache_agent::check::report::{Finding, FsckReport, GcReport, Line, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// `gc`.
#[derive(Clone, Debug, Args)]
pub struct GcFlags {
    /// Delete what is found; without it, only tell
    #[arg(long)]
    pub delete: bool,
    /// Leave alone what is younger: 90s, 15min, 1h, 2d [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub grace: Option<Duration>,
    /// Delete also when most of the bucket would go
    #[arg(long, requires = "delete")]
    pub force: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// `fsck`.
#[derive(Clone, Debug, Args)]
pub struct FsckFlags {
    /// Read every object and every local chunk, and compare the bytes with their checksums
    #[arg(long)]
    pub deep: bool,
    /// Bring chunks that are neither in the cloud nor on this node back as they were when they were last persisted.
    /// With a coordinator of its own: only when every node is connected or known to be gone
    #[arg(long)]
    pub repair: bool,
    /// Do not call younger objects leaks: 90s, 15min, 1h, 2d [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub grace: Option<Duration>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeFlags,
}

/// A time as the flags take it.
fn time(text: &str) -> Result<Duration, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => 0,
    };
    match number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
    {
        Some(seconds) if factor > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("write a number and s, min, h or d, such as 15min".to_owned()),
    }
}

/// `gc`.
pub async fn gc(flags: &GcFlags) -> ExitCode {
    let mut query = format!(
        "/api/admin/gc?delete={}&force={}",
        flags.delete, flags.force
    );
    if let Some(grace) = flags.grace {
        query.push_str(&format!("&grace={}", grace.as_secs()));
    }
    match run(&flags.node, &query).await {
        Ok(Line::Gc(report)) => tell_gc(&report, flags.node.json),
        Ok(line) => not_checked(&anyhow::anyhow!("an answer of the wrong kind: {line:?}")),
        Err(error) => not_checked(&error),
    }
}

/// `fsck`.
pub async fn fsck(flags: &FsckFlags) -> ExitCode {
    let mut query = format!(
        "/api/admin/fsck?deep={}&repair={}",
        flags.deep, flags.repair
    );
    if let Some(grace) = flags.grace {
        query.push_str(&format!("&grace={}", grace.as_secs()));
    }
    match run(&flags.node, &query).await {
        Ok(Line::Fsck(report)) => tell_fsck(&report, flags),
        Ok(line) => not_checked(&anyhow::anyhow!("an answer of the wrong kind: {line:?}")),
        Err(error) => not_checked(&error),
    }
}

fn not_checked(error: &anyhow::Error) -> ExitCode {
    eprintln!("fastcache-ctl: could not check: {error:#}");
    ExitCode::from(NOT_CHECKED)
}

/// Starts a check, shows its progress on a terminal; its last line.
async fn run(flags: &NodeFlags, query: &str) -> anyhow::Result<Line> {
    let target = Target::find(flags)?;
    let bar = (!flags.json && std::io::stderr().is_terminal()).then(ProgressBar::no_length);
    let mut last = None;
    let read = target.api.post_lines(query, |line: Line| match line {
        Line::Progress(progress) => {
            if let Some(bar) = &bar {
                show(bar, &progress);
            }
        }
        line => last = Some(line),
    });
    let read = read.await;
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    read?;
    match last {
        Some(Line::Error(error)) => Err(anyhow::anyhow!(error)),
        Some(line) => Ok(line),
        None => Err(anyhow::anyhow!("the node ended before the check did")),
    }
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let what = match progress.stage.as_str() {
        "objects" => "listing the bucket",
        "references" => "reading references",
        "namespace" => "checking files and directories",
        "reading" => "reading objects",
        "chunks" => "reading this node's chunks",
        "confirming" => "looking again at what seems wrong",
        "deleting" => "deleting",
        "repairing" => "repairing",
        other => other,
    };
    let template = match (progress.total, progress.stage.as_str()) {
        (Some(_), _) => "{msg} {bar:32} {human_pos} of {human_len}",
        (None, "reading") => "{msg} {spinner} {bytes}",
        (None, _) => "{msg} {spinner} {human_pos}",
    };
    if bar.message() != what
        && let Ok(style) = ProgressStyle::with_template(template)
    {
        bar.set_style(style);
        bar.set_message(what.to_owned());
    }
    if let Some(total) = progress.total {
        bar.set_length(total);
    }
    bar.set_position(progress.done);
}

fn tell_gc(report: &GcReport, is_json: bool) -> ExitCode {
    let is_left = report.leaks > 0 && report.discarded < report.leaks;
    let code = if is_left {
        ExitCode::from(NOT_WELL)
    } else {
        ExitCode::SUCCESS
    };
    if is_json {
        return match print_json(report) {
            Ok(()) => code,
            Err(error) => not_checked(&error),
        };
    }
    say!(
        "{} objects ({}), {} in use, {} about to be deleted ({})",
        report.objects,
        bytes(report.object_bytes),
        report.named,
        report.queued,
        duration(seconds(report.seconds))
    );
    let left_alone = [
        (report.young, "not named, but younger than the grace time"),
        (
            report.in_flight,
            "not named, but on this node's device or being uploaded",
        ),
        (
            report.held_back,
            "not named, but other nodes may be uploading them",
        ),
        (report.foreign_objects, "under chunks/ and none of ours"),
    ];
    for (count, what) in left_alone.into_iter().filter(|(count, _)| *count > 0) {
        say!("left alone: {count} {what}");
    }
    for object in &report.foreign {
        say!("  foreign    {object}");
    }
    for leak in &report.listed {
        let why = match leak.why.as_str() {
            "file_gone" => "its file was deleted",
            "not_named" => "its file has other contents",
            "stale_ref" => "its version had been replaced before its upload ended",
            other => other,
        };
        say!(
            "  leak       {}  {}  {} old: {why}",
            leak.object,
            bytes(leak.bytes),
            duration(Duration::from_secs(leak.age_seconds))
        );
    }
    more(report.leaks, report.listed.len(), "leaks");
    let sum = format!("{} leaks ({})", report.leaks, bytes(report.leak_bytes));
    match (&report.refused, report.leaks) {
        (Some(why), _) => say!("{sum}; nothing was deleted: {why}"),
        (None, 0) => say!("no leaks"),
        (None, _) if report.is_dry_run => say!("{sum}; gc --delete deletes them"),
        (None, _) => say!(
            "{sum}; {} were given to the deletion queue, which deletes them as soon as the bucket cannot need them any more",
            report.discarded
        ),
    }
    code
}

fn tell_fsck(report: &FsckReport, flags: &FsckFlags) -> ExitCode {
    let code = if report.is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_WELL)
    };
    if flags.node.json {
        return match print_json(report) {
            Ok(()) => code,
            Err(error) => not_checked(&error),
        };
    }
    say!(
        "{} inodes, {} references, {} objects ({}), {} local chunks, {} read ({})",
        report.inodes,
        report.refs,
        report.objects,
        bytes(report.object_bytes),
        report.local_chunks,
        bytes(report.read_bytes),
        duration(seconds(report.seconds))
    );
    for finding in &report.listed {
        say!("  {}", told(finding));
    }
    more(report.findings, report.listed.len(), "findings");
    if report.unnamed_refs > 0 {
        say!(
            "{} references are of replaced versions; gc deletes what is not needed",
            report.unnamed_refs
        );
    }
    if report.repaired > 0 {
        say!(
            "{} lost chunks are again what they were when they were last persisted",
            report.repaired
        );
    }
    if report.repairable > 0 {
        say!(
            "{} chunks that this node does not have can be brought back as they were when they were last persisted: \
             fsck --repair, when no node that has them will come back",
            report.repairable
        );
    }
    if report.is_clean {
        let how = if flags.deep {
            "clean"
        } else {
            "clean (lengths and names; --deep compares the bytes)"
        };
        say!("{how}");
    } else {
        say!("{} findings", report.findings);
    }
    code
}

fn told(finding: &Finding) -> String {
    let mut text = format!("{:<18}", finding.code);
    match (&finding.path, &finding.ino) {
        (Some(path), _) if path.is_empty() => text.push_str("the root"),
        (Some(path), _) => text.push_str(path),
        (None, Some(ino)) => text.push_str(&format!("inode {ino}")),
        (None, None) => {}
    }
    if let Some(chunk) = finding.chunk {
        text.push_str(&format!(" chunk {chunk}"));
    }
    if let Some(object) = &finding.object {
        text.push_str(&format!(" {object}"));
    }
    format!("{}: {}", text.trim_end(), finding.what)
}

fn more(count: u64, listed: usize, what: &str) {
    let listed = u64::try_from(listed).unwrap_or(u64::MAX);
    if count > listed {
        say!("  … and {} more {what}", count - listed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [
            ("0s", 0),
            ("90", 90),
            ("15min", 900),
            ("1h", 3600),
            ("2d", 172_800),
        ] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "h",
            "1.5h",
            "-1s",
            "1w",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
