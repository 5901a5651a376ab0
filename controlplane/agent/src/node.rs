//! A node's control plane as its callers see it.

use crate::config::AgentConfig;
use crate::error::AgentError;
use crate::types::{Backlog, CachedChunk, FileState, FlushProgress, NodeStats, ShutdownReport};
use bytes::Bytes;
use fastcache_api::{Attr, ChunkId, Errno, Ino, NsOp, NsReply};
use std::sync::Arc;
use std::time::Duration;

/// A running agent. Clones are handles on the same one.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: AgentConfig,
}

impl Node {
    /// Opens the namespace and the object store, and starts connecting to the data plane (for ever, in the
    /// background). Returns before the data plane is there.
    pub async fn start(config: AgentConfig) -> Result<Node, AgentError> {
        Ok(Node {
            inner: Arc::new(Inner { config }),
        })
    }

    /// Waits until the data plane is connected, at most `bound`. Whether it is.
    pub async fn wait_connected(&self, bound: Duration) -> bool {
        let _ = bound;
        false
    }

    /// Stops taking work, uploads what can be within the bound, and tells what is left.
    pub async fn shutdown(&self, upload_bound: Duration) -> ShutdownReport {
        let _ = upload_bound;
        ShutdownReport::default()
    }

    /// An operation of the namespace on behalf of this node (REST, command line). After a change returns, no cache
    /// of this node shows what was before. Errors of the operation are the `Err`; `Ok` has `result: Ok`.
    pub async fn ns(&self, op: NsOp) -> Result<NsReply, Errno> {
        let _ = op;
        Err(Errno::ENOSYS)
    }

    /// Attributes of what a path leads to from the root (symbolic links are not followed).
    pub async fn resolve(&self, path: &[Vec<u8>]) -> Result<Attr, Errno> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// Bytes of a file through all tiers: at most `len` (and at most 4 MiB), fewer at the end, none past it.
    pub async fn read_file(&self, ino: Ino, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let _ = (ino, offset, len);
        Err(Errno::ENOSYS)
    }

    /// Writes bytes (at most 4 MiB a call) into a file, as an application would. Visible after [`Node::seal`].
    pub async fn write_file(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let _ = (ino, offset, data);
        Err(Errno::ENOSYS)
    }

    /// Seals and commits what was written, of one file or all, as `close` would; with `is_durable` as `fsync` of
    /// level `local` would.
    pub async fn seal(&self, ino: Option<Ino>, is_durable: bool) -> Result<(), Errno> {
        let _ = (ino, is_durable);
        Err(Errno::ENOSYS)
    }

    /// Durability of a file: of its committed contents.
    pub async fn file_state(&self, ino: Ino) -> Result<FileState, Errno> {
        let _ = ino;
        Err(Errno::ENOSYS)
    }

    /// Seals, and uploads at once, one file or all. With `wait` returns when everything is persisted; without, how
    /// much is left (ask again for progress). ENOTSUP when there is no cloud tier.
    pub async fn flush(&self, ino: Option<Ino>, wait: bool) -> Result<FlushProgress, Errno> {
        let _ = (ino, wait);
        Err(Errno::ENOSYS)
    }

    /// What still has to be uploaded.
    pub fn backlog(&self) -> Backlog {
        Backlog::default()
    }

    /// Evicts clean chunks of one file or all, and the kernel's pages of them. Chunks, bytes.
    pub async fn evict(&self, ino: Option<Ino>) -> Result<(u64, u64), Errno> {
        let _ = ino;
        Err(Errno::ENOSYS)
    }

    /// Everything countable.
    pub async fn stats(&self) -> NodeStats {
        NodeStats {
            data: None,
            backlog: self.backlog(),
            cloud: crate::types::CloudCounters::default(),
            namespace: None,
            peer_id: String::new(),
            coordinator: self.inner.config.coordinator.clone(),
            uptime: Duration::ZERO,
        }
    }

    /// Chunks in this node's cache in order of `ChunkId`, after one, at most `max`.
    pub fn cached(&self, after: Option<ChunkId>, max: usize) -> Vec<CachedChunk> {
        let _ = (after, max);
        Vec::new()
    }

    /// What it was started with.
    pub fn config(&self) -> &AgentConfig {
        &self.inner.config
    }

    /// This node's name.
    pub fn peer_id(&self) -> &str {
        ""
    }

    /// Whether the data plane is connected now.
    pub fn is_data_connected(&self) -> bool {
        false
    }
}
