//! What an agent is told at start.

use crate::error::AgentError;
use fastcache_api::control::{FsyncLevel, SLOT_BYTES};
use fastcache_api::placement::HOMES;
use fastcache_cloud::{CloudConfig, Secret};
use fastcache_coordinator::{HistoryOptions, replace_file};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Most copies that an fsync of level `peers` can wait for: a node may be one of a chunk's homes itself.
#[allow(clippy::cast_possible_truncation, reason = "a small number")]
pub const FSYNC_COPIES_MAX: u32 = HOMES as u32 - 1;

/// Largest body of a REST `PUT` unless configured otherwise, bytes.
pub const PUT_LIMIT_DEFAULT: u64 = 100 << 20;

/// Configuration of an agent. [`AgentConfig::default`] has the defaults of the command line.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The data plane's control socket.
    pub socket: PathBuf,
    /// Directory for the peer id and, without a coordinator, the namespace.
    pub state_dir: PathBuf,
    /// `HOST:PORT` of the coordinator; `None`: an embedded one in `state_dir`.
    pub coordinator: Option<String>,
    /// Name of this node; `None`: drawn once and kept in `state_dir`.
    pub peer_id: Option<String>,
    /// Address REST listens on.
    pub listen: IpAddr,
    /// Port REST listens on.
    pub port: u16,
    /// Bytes of one chunk of new files: a multiple of 4096, at most 4 MiB.
    pub chunk_size: u32,
    /// Key every REST endpoint but health wants.
    pub api_key: Option<Secret>,
    /// The cloud tier.
    pub cloud: CloudConfig,
    /// What `fsync` waits for; `None`: `Local` while this node is alone, `Peers` as soon as there is another one.
    pub fsync: Option<FsyncLevel>,
    /// On how many other nodes' devices a file is when an fsync of level `Peers` returns without the cloud: 1 to
    /// [`FSYNC_COPIES_MAX`].
    pub fsync_copies: u32,
    /// Address of this pod, for other nodes.
    pub pod_ip: Option<String>,
    /// How long an object stays when nothing names it any more, where the namespace is embedded.
    pub garbage_grace: Duration,
    /// Most uploads at once; fewer while the store asks for fewer.
    pub upload_parallel: usize,
    /// Cloud reads at once.
    pub fetch_parallel: usize,
    /// A chunk is uploaded when it was not written again for this long.
    pub upload_quiet: Duration,
    /// And at most this long after it became dirty.
    pub upload_max_delay: Duration,
    /// Largest body of a REST `PUT`, bytes.
    pub put_limit: u64,
}

/// Most uploads at once that can be asked for: each holds a chunk of 4 MiB in memory.
pub const UPLOADS_MAX: usize = 64;

impl Default for AgentConfig {
    fn default() -> AgentConfig {
        AgentConfig {
            socket: PathBuf::from("/run/fastcache/data.sock"),
            state_dir: PathBuf::from("/var/lib/fastcache"),
            coordinator: None,
            peer_id: None,
            listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 8081,
            chunk_size: 4 << 20,
            api_key: None,
            cloud: CloudConfig::None,
            fsync: None,
            fsync_copies: 1,
            pod_ip: None,
            garbage_grace: HistoryOptions::default().garbage_grace,
            upload_parallel: 8,
            fetch_parallel: 16,
            upload_quiet: Duration::from_secs(1),
            upload_max_delay: Duration::from_secs(30),
            put_limit: PUT_LIMIT_DEFAULT,
        }
    }
}

impl AgentConfig {
    /// Refuses what cannot work, with a sentence.
    pub(crate) fn check(&self) -> Result<(), AgentError> {
        let max = u32::try_from(SLOT_BYTES).unwrap_or(u32::MAX);
        if self.chunk_size == 0 || !self.chunk_size.is_multiple_of(4096) || self.chunk_size > max {
            return Err(AgentError::Config(format!(
                "a chunk size of {} bytes is not possible; choose a multiple of 4096, at most 4 MiB",
                self.chunk_size
            )));
        }
        if self.upload_parallel == 0 || self.fetch_parallel == 0 {
            return Err(AgentError::Config(
                "uploads and fetches at once must each be at least 1".to_owned(),
            ));
        }
        let has_cloud = !matches!(self.cloud, CloudConfig::None);
        let wrong = match self.fsync {
            Some(FsyncLevel::Cloud) if !has_cloud => {
                "--fsync cloud needs an object store; set --cloud-provider, or another level"
            }
            Some(FsyncLevel::Peers) if !has_cloud && self.coordinator.is_none() => {
                "--fsync peers needs other nodes or an object store; set --coordinator or --cloud-provider, or another level"
            }
            _ if !(1..=FSYNC_COPIES_MAX).contains(&self.fsync_copies) => {
                "--fsync-copies is 1 or 2: a chunk has three homes, and its own node may be one of them"
            }
            _ => return Ok(()),
        };
        Err(AgentError::Config(wrong.to_owned()))
    }

    /// The name of this node, where it has one already.
    pub(crate) fn known_peer_id(&self) -> Option<String> {
        let kept = || std::fs::read_to_string(self.state_dir.join("peer-id")).ok();
        let id = self.peer_id.clone().or_else(kept)?;
        Some(id.trim().to_owned())
    }

    /// The configured name of this node, or the one drawn at its first start.
    pub(crate) fn keep_peer_id(&self) -> Result<String, AgentError> {
        if let Some(id) = &self.peer_id {
            return Ok(id.clone());
        }
        self.drawn_once("peer-id", || {
            format!("node-{:012x}", rand::random::<u64>() >> 16)
        })
    }

    /// What tells this node from another one of the same name: it goes with `state_dir`.
    pub(crate) fn keep_identity(&self) -> Result<String, AgentError> {
        self.drawn_once("identity", || format!("{:032x}", rand::random::<u128>()))
    }

    /// What a file of `state_dir` says; drawn when there is none.
    fn drawn_once(&self, name: &str, draw: impl Fn() -> String) -> Result<String, AgentError> {
        let path = self.state_dir.join(name);
        let failed = |source| AgentError::State {
            path: path.clone(),
            source,
        };
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let drawn = draw();
        // A power cut must not make it another node.
        replace_file(&path, format!("{drawn}\n").as_bytes()).map_err(failed)?;
        Ok(drawn)
    }
}
