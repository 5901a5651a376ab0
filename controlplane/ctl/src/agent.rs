//! No subcommand: the node's agent, until a signal ends it.

use crate::cli::AgentFlags;
use crate::output::bytes;
use crate::rebuild;
use crate::settings::{AgentSettings, Defaults, FileConfig, UsageError, environment};
use anyhow::Context;
use fastcache_agent::{Node, rest};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long REST requests that run may take after a stop was asked for.
const REST_STOP: Duration = Duration::from_secs(5);

/// Runs the agent.
pub async fn run(flags: &AgentFlags) -> anyhow::Result<()> {
    let file = FileConfig::read(flags.config.as_deref())?;
    let settings = AgentSettings::resolve(flags, &file, &environment, &Defaults::default())?;
    let mut stop = Stop::new()?;
    let config = settings.to_config();
    // First: a registration takes as long as the coordinator is away, and somebody may ask meanwhile.
    let server = rest::listen(&config).await.context("REST")?;
    if flags.rebuild {
        if settings.coordinator.is_some() {
            let text = "--rebuild is for the coordinator: it keeps the namespace";
            return Err(UsageError(text.to_owned()).into());
        }
        rebuild::if_empty(&config.cloud, &settings.state_dir).await?;
    }
    let node = tokio::select! {
        node = Node::start_telling(config, server.telling()) => node?,
        () = stop.asked() => return Ok(()),
    };
    server.open(node.clone());
    tracing::info!(
        target: "rest",
        address = %server.address(),
        peer_id = node.peer_id(),
        version = env!("CARGO_PKG_VERSION"),
        "agent runs"
    );
    stop.asked().await;
    tracing::info!(target: "rest", "stopping");
    server.stop(REST_STOP).await;
    let left = tokio::select! {
        left = node.shutdown(settings.stop_timeout) => left,
        // asked twice: the queue goes on at the next start
        () = stop.asked() => return Ok(()),
    };
    if left.dirty_chunks > 0 {
        eprintln!(
            "{} in {} chunks are not in the cloud yet; they are kept on the device and go on at the \
             next start",
            bytes(left.dirty_bytes),
            left.dirty_chunks
        );
    }
    Ok(())
}

/// The signals that ask for an end.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    /// Takes the signals over from now on.
    pub fn new() -> std::io::Result<Stop> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
