//! `coordinator`: the cluster's registry and namespace.

use crate::agent::Stop;
use crate::cli::CoordinatorFlags;
use anyhow::Context;
use fastcache_coordinator::{Coordinator, Options, serve};
use tokio::net::TcpListener;

/// Runs the coordinator until a signal ends it.
pub async fn run(flags: CoordinatorFlags) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let listener = TcpListener::bind(&flags.listen)
        .await
        .with_context(|| format!("cannot listen on {}", flags.listen))?;
    std::fs::create_dir_all(&flags.state_dir)
        .with_context(|| format!("cannot make {}", flags.state_dir.display()))?;
    let coordinator = Coordinator::open(&flags.state_dir, Options::default())?;
    tracing::info!(
        target: "registry",
        address = %listener.local_addr()?,
        state_dir = %flags.state_dir.display(),
        version = env!("CARGO_PKG_VERSION"),
        "coordinator runs"
    );
    serve(coordinator, listener, async move { stop.asked().await })
        .await
        .context("the coordinator's listener failed")
}
