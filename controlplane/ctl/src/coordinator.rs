//! `coordinator`: the cluster's registry and namespace.

use crate::agent::Stop;
use crate::cli::{AgentFlags, CoordinatorFlags, Provider};
use crate::rebuild;
use crate::settings::{AgentSettings, Defaults, FileConfig, UsageError, environment};
use anyhow::Context;
use fastcache_api::ApiKey;
use fastcache_cloud::{Cloud, CloudConfig};
use fastcache_coordinator::{Coordinator, HistoryConfig, HistoryOptions, Options, serve};
use std::time::Duration;
use tokio::net::TcpListener;

/// Runs the coordinator until a signal ends it.
pub async fn run(flags: CoordinatorFlags) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let listener = TcpListener::bind(&flags.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: choose another --listen, or stop who has it",
            flags.listen
        )
    })?;
    std::fs::create_dir_all(&flags.state_dir)
        .with_context(|| format!("cannot make {}", flags.state_dir.display()))?;
    let (bucket, garbage_grace) = bucket(&flags)?;
    if flags.rebuild {
        rebuild::if_empty(&bucket, &flags.state_dir).await?;
    }
    let history = Cloud::open(&bucket)?.map(|cloud| HistoryConfig {
        cloud,
        options: HistoryOptions {
            garbage_grace,
            ..HistoryOptions::default()
        },
    });
    if history.is_none() {
        tracing::warn!(target: "history",
            "no bucket: the namespace is on this disk alone, and nothing is ever persisted; name the nodes' bucket with \
             --cloud-provider and its flags");
    }
    let lease = Duration::from_secs(flags.lease);
    let options = Options {
        lease,
        stale_after: Options::default().stale_after.max(lease * 2),
        sync_every: Duration::from_millis(flags.log_sync_ms),
    };
    let coordinator = tokio::select! {
        started = Coordinator::start(&flags.state_dir, options, history) => started?,
        () = stop.asked() => return Ok(()),
    };
    tracing::info!(
        target: "registry",
        address = %listener.local_addr()?,
        state_dir = %flags.state_dir.display(),
        version = env!("CARGO_PKG_VERSION"),
        "coordinator runs"
    );
    let key = flags.api_key.as_ref().map(|key| ApiKey::new(key.expose()));
    serve(
        coordinator,
        listener,
        key,
        async move { stop.asked().await },
    )
    .await
    .context("the coordinator's listener failed")
}

/// The bucket, by the same rules as the agent's (none unless one is named), and how long unnamed objects stay in it.
fn bucket(flags: &CoordinatorFlags) -> Result<(CloudConfig, Duration), UsageError> {
    let file = FileConfig::read(flags.config.as_deref())?;
    let agent = AgentFlags {
        store: flags.store.clone(),
        ..AgentFlags::default()
    };
    let defaults = Defaults {
        provider: Provider::None,
        ..Defaults::default()
    };
    let settings = AgentSettings::resolve(&agent, &file, &environment, &defaults)?;
    let config = settings.to_config();
    Ok((config.cloud, config.garbage_grace))
}
