//! The end of a node: seal, upload within a bound, data plane, agent; and what is left is said.

use crate::cli::DownFlags;
use crate::client::{ANSWER_MAX, Client};
use crate::node_file::{NodeFile, is_ours, signal};
use anyhow::{Result, bail};
use fastcache_agent::rest::types::{FlushBody, QueueBody};
use hyper::Method;
use indicatif::HumanBytes;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a plane may take to stop before it is killed.
const PLANE_MAX: Duration = Duration::from_secs(30);
/// What a supervisor needs beyond the uploads and both planes.
const MARGIN: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Where the supervisor leaves word for `down`.
const WORD: &str = "run/stopped.json";

/// What a stop leaves.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Left {
    /// Chunks that are not in the cloud.
    pub dirty_chunks: u64,
    /// Their bytes.
    pub dirty_bytes: u64,
    /// Whether the node could be asked.
    pub is_known: bool,
}

impl Left {
    /// Leaves word in the node's directory.
    pub fn write(&self, dir: &Path) {
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = std::fs::write(dir.join(WORD), text);
        }
    }

    /// Says it.
    pub fn say(&self, dir: &Path) {
        if !self.is_known {
            println!("stopped; the agent could not say what is not in the cloud yet. What is dirty is kept in {} and uploaded after the next `up`", dir.display());
        } else if self.dirty_chunks > 0 {
            println!(
                "stopped; {} in {} chunks are not in the cloud yet: they are kept in {} and uploaded after the next `up`",
                HumanBytes(self.dirty_bytes),
                self.dirty_chunks,
                dir.display()
            );
        } else {
            println!("stopped; everything is in the cloud");
        }
    }
}

/// Stops both planes in order; uploads go on for at most `bound`.
pub async fn planes(node: &NodeFile, client: &Client, bound: Duration) -> Left {
    let mut left = Left::default();
    if bound > Duration::ZERO && is_ours(node.data_pid) && is_ours(node.agent_pid) {
        let sealed = client.ask::<FlushBody>(Method::POST, "/api/admin/flush?wait=false", ANSWER_MAX);
        if let Err(error) = sealed.await {
            tracing::warn!(target: "control", %error, "not everything could be sealed before the end");
        }
        let until = Instant::now() + bound;
        loop {
            match client.ask::<QueueBody>(Method::GET, "/api/admin/backlog", ANSWER_MAX).await {
                Ok(q) => {
                    left = Left { dirty_chunks: q.dirty_chunks, dirty_bytes: q.dirty_bytes, is_known: true };
                    if q.dirty_chunks == 0 || q.failing.is_some() || Instant::now() > until {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(target: "control", %error, "the agent does not say what is left");
                    left.is_known = false;
                    break;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    stop_one(node.data_pid, "the data plane").await;
    stop_one(node.agent_pid, "the agent").await;
    left
}

async fn stop_one(pid: u32, name: &str) {
    if !signal(pid, Signal::TERM) {
        return;
    }
    let until = Instant::now() + PLANE_MAX;
    while is_running(pid) {
        if Instant::now() > until {
            tracing::error!(target: "control", pid, "{name} does not stop: killing it");
            signal(pid, Signal::KILL);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Alive, and not a zombie that waits for its parent.
fn is_running(pid: u32) -> bool {
    is_ours(pid)
        && std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|s| !s.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// Runs `down`.
pub async fn down(flags: &DownFlags) -> Result<()> {
    let node = NodeFile::need(&flags.dir)?;
    let bound = flags.stop_timeout.map_or(node.stop_timeout_s, u64::from);
    let left = if node.is_supervised() {
        let word = flags.dir.join(WORD);
        let _ = std::fs::remove_file(&word);
        signal(node.supervisor_pid, Signal::TERM);
        let until = Instant::now() + Duration::from_secs(bound.max(node.stop_timeout_s)) + PLANE_MAX * 2 + MARGIN;
        while is_running(node.supervisor_pid) {
            if Instant::now() > until {
                bail!("the supervisor (process {}) does not stop; its log is {}", node.supervisor_pid, flags.dir.join("log/supervisor.log").display());
            }
            tokio::time::sleep(LOOK).await;
        }
        std::fs::read(&word).ok().and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default()
    } else {
        let key = flags.api_key.as_ref().map(|k| k.expose().to_owned());
        let left = planes(&node, &Client::at(node.port, key), Duration::from_secs(bound)).await;
        NodeFile::remove(&flags.dir);
        left
    };
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&left)?);
    } else {
        left.say(&flags.dir);
    }
    Ok(())
}
