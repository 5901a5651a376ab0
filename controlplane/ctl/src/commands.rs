//! What an operator asks of a node, told to people or programs. A file for each group of commands; `state`, `flush` and
//! `evict` are here.

pub mod check;
pub mod cluster;
pub mod stats;
pub mod status;
pub mod tune;
pub mod warm;

use crate::cli::{EvictFlags, FlushFlags, StateFlags};
use crate::client::{CallError, Target};
use crate::output::{bytes, duration, say};
use fastcache_agent::rest::types::{EvictBody, FlushBody, QueueBody, StateBody};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often progress is asked for.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long `flush --wait` puts up with a node that is away: its supervisor restarts planes within seconds.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Exit code of a command that found something wrong.
pub const NOT_WELL: u8 = 1;
/// Exit code of a check that could not be made.
pub const NOT_CHECKED: u8 = 2;

/// A document on a line of its own.
fn print_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// `state PATH`.
pub async fn state(flags: &StateFlags) -> anyhow::Result<()> {
    let target = Target::find(&flags.node)?;
    let path = target.query_path(&flags.path)?;
    let state: StateBody = target
        .api
        .get(&format!("/api/admin/state?path={path}"))
        .await?;
    if flags.node.json {
        return print_json(&state);
    }
    say!(
        "{}: {}, {} in {} chunks (inode {})",
        state.path,
        state.state,
        bytes(state.size),
        state.chunks.len(),
        state.ino
    );
    for chunk in &state.chunks {
        let etag = chunk
            .etag
            .as_ref()
            .map(|e| format!("  {e}"))
            .unwrap_or_default();
        say!(
            "{:>6}  {:<12}{:>10}  {}{etag}",
            chunk.index,
            chunk.state,
            bytes(u64::from(chunk.len_bytes)),
            chunk.object.as_deref().unwrap_or("-"),
        );
    }
    Ok(())
}

/// `flush [PATH] [--wait]`.
pub async fn flush(flags: &FlushFlags) -> anyhow::Result<()> {
    let target = Target::find(&flags.node)?;
    let path = match &flags.path {
        Some(path) => target.query_path(path)?,
        None => String::new(),
    };
    let start = Instant::now();
    let body = if flags.wait {
        wait_for_flush(&target, &path, flags.node.json).await?
    } else {
        target
            .api
            .post(&format!("/api/admin/flush?path={path}"), None)
            .await?
    };
    if flags.node.json {
        return print_json(&body);
    }
    if body.chunks_left == 0 {
        say!("persisted ({})", duration(start.elapsed()));
    } else {
        say!(
            "{} in {} chunks are on their way",
            bytes(body.bytes_left),
            body.chunks_left
        );
    }
    Ok(())
}

/// Waits until everything asked for is persisted, and shows how far it is on a terminal.
async fn wait_for_flush(target: &Target, path: &str, is_quiet: bool) -> anyhow::Result<FlushBody> {
    let bar = (!is_quiet && std::io::stderr().is_terminal()).then(bar);
    let mut told: Option<String> = None;
    let mut away: Option<Instant> = None;
    let query = format!("/api/admin/flush?path={path}&wait=true");
    let done = 'call: loop {
        let waiting = target.api.post(&query, None);
        tokio::pin!(waiting);
        let result = loop {
            tokio::select! {
                result = &mut waiting => break result,
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    let queue: Result<QueueBody, CallError> =
                        target.api.get("/api/admin/backlog").await;
                    match &bar {
                        Some(bar) => show(bar, queue),
                        None => tell_failing(&mut told, queue),
                    }
                }
            }
        };
        match result {
            Ok(body) => break 'call Ok(body),
            Err(error) if error.is_passing() => {
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY_MAX {
                    break 'call Err(error);
                }
                tracing::debug!(%error, "asked again");
                tokio::time::sleep(PROGRESS_EVERY).await;
            }
            Err(error) => break 'call Err(error),
        }
    };
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    done.map_err(Into::into)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    let template = "{bar:32} {bytes} of {total_bytes}  {binary_bytes_per_sec}  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Without a terminal: why it takes long, each reason once.
fn tell_failing(told: &mut Option<String>, queue: Result<QueueBody, CallError>) {
    if let Ok(QueueBody {
        failing: Some(error),
        ..
    }) = queue
        && told.as_ref() != Some(&error)
    {
        eprintln!("uploads fail, and are tried again: {error}");
        *told = Some(error);
    }
}

/// The queue counts down: the most there ever was is the whole.
fn show(bar: &ProgressBar, queue: Result<QueueBody, CallError>) {
    match queue {
        Ok(queue) => {
            let whole = bar
                .length()
                .unwrap_or(0)
                .max(bar.position().saturating_add(queue.dirty_bytes));
            bar.set_length(whole);
            bar.set_position(whole - queue.dirty_bytes.min(whole));
            bar.set_message(
                queue
                    .failing
                    .map(|e| format!("uploads fail: {e}"))
                    .unwrap_or_default(),
            );
        }
        Err(error) => bar.set_message(error.to_string()),
    }
}

/// `evict PATH` or `evict --all`.
pub async fn evict(flags: &EvictFlags) -> anyhow::Result<()> {
    let target = Target::find(&flags.node)?;
    let query = match &flags.path {
        // the root is everything
        Some(path) => match target.query_path(path)? {
            path if path.is_empty() => "all=true".to_owned(),
            path => format!("path={path}"),
        },
        None => "all=true".to_owned(),
    };
    let body: EvictBody = target
        .api
        .post(&format!("/api/admin/evict?{query}"), None)
        .await?;
    if flags.node.json {
        return print_json(&body);
    }
    say!("evicted {} chunks ({})", body.chunks, bytes(body.bytes));
    if body.pinned_chunks > 0 {
        say!(
            "{} chunks ({}) stay: their files are pinned",
            body.pinned_chunks,
            bytes(body.pinned_bytes)
        );
    }
    Ok(())
}
