//! The ordered end of a node: upload what can be, unmount, end both planes, tell what is left.

use super::mount_point::MountPoint;
use super::process;
use crate::client::{Api, CallError};
use crate::node_file::{Left, NodeFile, Phase};
use fastcache_agent::rest::types::{FlushBody, QueueBody};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where `down --stop-timeout` leaves its bound for the supervisor, below DIR.
pub const TIMEOUT_FILE: &str = "run/stop-timeout";
/// How long the data plane may take to write back, unmount and close its store.
const DATA_STOP: Duration = Duration::from_secs(30);
/// How long the agent may take.
const AGENT_STOP: Duration = Duration::from_secs(20);
/// How often the queue is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long sealing may take.
const SEAL_MAX: Duration = Duration::from_secs(30);

/// Stops what `node` names, and writes down that it is stopped.
pub async fn run(
    dir: &Path,
    node: &mut NodeFile,
    api: &Api,
    mount: &MountPoint,
    bound: Duration,
) -> anyhow::Result<()> {
    node.phase = Phase::Stopping;
    node.write(dir)?;
    let agent = node
        .agent_pid
        .filter(|p| process::is_plane(*p, "fastcache-ctl", &node.socket));
    let mut left = match agent {
        Some(_) => uploads(api, bound).await,
        None => None,
    };
    planes(node, mount).await?;
    if left.is_none() && agent.is_none() {
        // nobody could be asked
        tracing::warn!(target: "supervisor", "the agent was not there: what is dirty goes on at the next up");
    }
    node.left = left.take();
    node.phase = Phase::Stopped;
    node.supervisor_pid = None;
    node.write(dir)
}

/// Ends both planes, the data plane first, and cleans the mount point.
pub async fn planes(node: &mut NodeFile, mount: &MountPoint) -> anyhow::Result<()> {
    let data_pid = node.data_pid.take();
    if let Some(pid) = data_pid
        && process::is_plane(pid, "fastcache-data", &node.socket)
        && !process::terminate(pid, DATA_STOP).await
    {
        tracing::warn!(target: "supervisor", pid, "the data plane did not stop in time and was killed");
    }
    // one that was killed may be held by a thread that waits for the mount, and holds the device
    mount.abort();
    if let Some(pid) = data_pid
        && !process::threads_gone(pid, "fastcache-data").await
    {
        tracing::warn!(target: "supervisor", pid, "a thread of the data plane hangs in the kernel, and has its device");
    }
    mount.clean()?;
    mount.set_immutable(false);
    if let Some(pid) = node.agent_pid.take()
        && process::is_plane(pid, "fastcache-ctl", &node.socket)
        && !process::terminate(pid, AGENT_STOP).await
    {
        tracing::warn!(target: "supervisor", pid, "the agent did not stop in time and was killed");
    }
    Ok(())
}

/// Ends a node that does not stop: cuts the mount off, kills the data plane (also one that is stopped), and ends the agent.
/// What was sealed is on the device; what was not is lost, as after a kill.
pub async fn by_force(dir: &Path, node: &mut NodeFile, mount: &MountPoint) -> anyhow::Result<()> {
    mount.abort();
    if let Some(pid) = node.data_pid.take()
        && process::is_plane(pid, "fastcache-data", &node.socket)
    {
        anyhow::ensure!(
            process::kill(pid).await,
            "fastcache-data ({pid}) does not die, not even by SIGKILL: its device may hang in the kernel; its mount was cut off, and nobody waits for it"
        );
    }
    planes(node, mount).await?;
    node.left = None;
    node.phase = Phase::Stopped;
    node.supervisor_pid = None;
    node.write(dir)
}

/// Seals everything and waits for the uploads, at most `bound`. What is left; `None` when nobody could tell.
async fn uploads(api: &Api, bound: Duration) -> Option<Left> {
    let start = Instant::now();
    let sealed: Result<FlushBody, CallError> = api.post("/api/admin/flush", Some(SEAL_MAX)).await;
    let can_upload = match &sealed {
        Ok(_) => true,
        // no cloud tier: nothing to wait for
        Err(CallError::Refused { code, .. }) if code == "no_cloud" => false,
        Err(error) => {
            tracing::warn!(target: "supervisor", %error, "cannot flush before the stop");
            false
        }
    };
    let mut left = None;
    loop {
        let queue: QueueBody = match api.get("/api/admin/backlog").await {
            Ok(queue) => queue,
            Err(error) => {
                tracing::warn!(target: "supervisor", %error, "the agent does not tell what is dirty");
                return left;
            }
        };
        left = Some(Left {
            dirty_chunks: queue.dirty_chunks,
            dirty_bytes: queue.dirty_bytes,
        });
        if queue.dirty_chunks == 0 || !can_upload || start.elapsed() >= bound {
            return left;
        }
        tokio::time::sleep(POLL).await;
    }
}
