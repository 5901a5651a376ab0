//! `rebuild`, and `--rebuild` of `up`, `coordinator` and the agent: the namespace from the bucket alone.

use crate::cli::RebuildFlags;
use crate::output::{bytes, say};
use crate::settings::{AgentSettings, Defaults, FileConfig, UsageError, environment};
use anyhow::Context;
use fastcache_cloud::{Cloud, CloudConfig};
use fastcache_coordinator::{RebuildError, RebuildOptions, Rebuilt, Step};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::Path;

/// Files that are named one by one when their contents are not in the bucket.
const NAMED_MAX: usize = 20;

/// `rebuild`.
pub async fn run(flags: RebuildFlags) -> anyhow::Result<()> {
    let file = FileConfig::read(flags.agent.config.as_deref())?;
    let defaults = match &flags.dir {
        Some(dir) => Defaults::of_up(&std::path::absolute(dir).context("--dir")?),
        None => Defaults::default(),
    };
    let settings = AgentSettings::resolve(&flags.agent, &file, &environment, &defaults)?;
    let options = RebuildOptions {
        replace: flags.force,
        accept_loss: flags.accept_loss,
    };
    let cloud = bucket(&settings.to_config().cloud)?;
    let rebuilt = rebuild(&cloud, &settings.state_dir, options).await?;
    if flags.json {
        let answer = json!({
            "state_dir": settings.state_dir,
            "file_system": format!("{:016x}", rebuilt.file_system),
            "position": rebuilt.position,
            "epoch": rebuilt.epoch,
            "inodes": rebuilt.inodes,
            "bytes": rebuilt.bytes,
            "incomplete": rebuilt.incomplete.iter().map(|(ino, path)| json!({
                "ino": ino.to_string(),
                "path": path,
            })).collect::<Vec<_>>(),
            "put_aside": rebuilt.put_aside,
            "lost_behind": rebuilt.lost_behind,
        });
        say!("{answer:#}");
        return Ok(());
    }
    say!("{}", summary(&rebuilt, &settings.state_dir));
    Ok(())
}

/// For `--rebuild`: rebuilds a state directory that has no namespace; one that has stays as it is.
pub async fn if_empty(cloud: &CloudConfig, state_dir: &Path) -> anyhow::Result<()> {
    let cloud = bucket(cloud)?;
    match rebuild(&cloud, state_dir, RebuildOptions::default()).await {
        Ok(rebuilt) => {
            eprintln!("{}", summary(&rebuilt, state_dir));
            Ok(())
        }
        Err(error) if matches!(error.downcast_ref(), Some(RebuildError::NotEmpty(_))) => {
            tracing::info!(target: "history", state_dir = %state_dir.display(), "the namespace is there: nothing to rebuild");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn bucket(config: &CloudConfig) -> anyhow::Result<Cloud> {
    Cloud::open(config)?.ok_or_else(|| {
        UsageError(
            "there is nothing to rebuild from without a cloud: choose a --cloud-provider"
                .to_owned(),
        )
        .into()
    })
}

async fn rebuild(
    cloud: &Cloud,
    state_dir: &Path,
    options: RebuildOptions,
) -> anyhow::Result<Rebuilt> {
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("cannot make {}", state_dir.display()))?;
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:32} {pos} of {len}") {
            bar.set_style(style);
        }
        bar
    });
    let told = |step: Step| {
        let show = |what: &'static str, done: u64, of: u64| {
            if let Some(bar) = &bar {
                bar.set_message(what);
                bar.set_length(of);
                bar.set_position(done);
            }
        };
        match step {
            Step::Listed { snapshot, segments } => {
                tracing::info!(target: "history", snapshot, segments, "rebuilding");
            }
            Step::Parts { done, of } => show("snapshot", done, of),
            Step::Segments { done, of } => show("log", done, of),
            Step::Warning(text) => eprintln!("{text}"),
        }
    };
    let done = fastcache_coordinator::rebuild(cloud, state_dir, options, told).await;
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    Ok(done?)
}

fn summary(rebuilt: &Rebuilt, state_dir: &Path) -> String {
    let mut text = format!(
        "rebuilt {} inodes, {} of files, up to record {} of the history, in {}",
        rebuilt.inodes,
        bytes(rebuilt.bytes),
        rebuilt.position,
        state_dir.display()
    );
    if let Some(aside) = &rebuilt.put_aside {
        text.push_str(&format!(
            "\nwhat was there before is in {}",
            aside.display()
        ));
    }
    if let Some(why) = &rebuilt.lost_behind {
        text.push_str(&format!("\nwhat came after is lost: {why}"));
    }
    if !rebuilt.incomplete.is_empty() {
        text.push_str(&format!(
            "\n{} files have contents that were never uploaded. Where no node's device has those parts, they are again what \
             they were when they were last persisted; reading what never was fails with EIO:",
            rebuilt.incomplete.len()
        ));
        for (ino, path) in rebuilt.incomplete.iter().take(NAMED_MAX) {
            text.push_str(&format!("\n  {path} (inode {ino})"));
        }
        if rebuilt.incomplete.len() > NAMED_MAX {
            text.push_str("\n  … (all with rebuild --json)");
        }
    }
    text
}
