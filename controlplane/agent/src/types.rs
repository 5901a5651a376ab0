//! What a [`Node`](crate::Node) tells its callers: REST, the command line.

use fastcache_api::control::DataStats;
use fastcache_api::{ChunkKey, HistoryStatus, Version};
use serde::Serialize;
use std::time::Duration;

/// Where a file, or a chunk, is safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// On this node only.
    Dirty,
    /// On this node and so many peers.
    Replicated(u32),
    /// In the object store.
    Persisted,
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Durability::Dirty => f.write_str("dirty"),
            Durability::Replicated(n) => write!(f, "replicated {n}"),
            Durability::Persisted => f.write_str("persisted"),
        }
    }
}

/// One chunk of a file, as [`FileState`] tells it.
#[derive(Clone, Debug)]
pub struct ChunkState {
    /// Its index.
    pub index: u32,
    /// Its version.
    pub version: Version,
    /// Valid bytes.
    pub len: u32,
    /// Where it is safe.
    pub state: Durability,
    /// Key of its object, once persisted.
    pub object: Option<String>,
    /// The object's ETag, where the store gives one.
    pub etag: Option<String>,
}

/// Durability of a committed file.
#[derive(Clone, Debug)]
pub struct FileState {
    /// The worst of its chunks; `Persisted` for a file without any.
    pub state: Durability,
    /// Bytes.
    pub size: u64,
    /// Its chunks; holes are not listed.
    pub chunks: Vec<ChunkState>,
}

/// What still has to be uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Dirty chunks.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest has been dirty.
    pub oldest_dirty_age: Option<Duration>,
    /// The last upload error while uploads fail; `None` when they work.
    pub failing: Option<String>,
}

/// How far a flush is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlushProgress {
    /// Chunks of what was asked that are still to be uploaded; 0 when the flush is done.
    pub chunks_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
}

/// Counters of the object store since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CloudCounters {
    /// Objects written.
    pub puts: u64,
    /// Their bytes.
    pub put_bytes: u64,
    /// Objects read.
    pub gets: u64,
    /// Their bytes.
    pub get_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Objects deleted.
    pub deletes: u64,
}

/// Counts of the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamespaceStats {
    /// Inodes that exist.
    pub inodes: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Pinned files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PinStats {
    /// Files.
    pub files: u64,
    /// Chunks of theirs in this node's store.
    pub chunks: u64,
    /// What those take of the device, bytes.
    pub bytes: u64,
    /// Most they may take; beyond it they are evicted as any others, bytes.
    pub most_bytes: u64,
}

/// Everything countable about a node.
#[derive(Clone, Debug)]
pub struct NodeStats {
    /// The data plane's counters; `None` when it is away.
    pub data: Option<DataStats>,
    /// Pinned files.
    pub pins: PinStats,
    /// The persist queue.
    pub backlog: Backlog,
    /// Cloud requests.
    pub cloud: CloudCounters,
    /// The namespace; `None` when the coordinator is away.
    pub namespace: Option<NamespaceStats>,
    /// The namespace's history in the bucket; `None` when the coordinator is away.
    pub history: Option<HistoryStatus>,
    /// This node's name.
    pub peer_id: String,
    /// The coordinator's address; `None`: embedded.
    pub coordinator: Option<String>,
    /// Since the agent started.
    pub uptime: Duration,
    /// Whether there is a cloud tier.
    pub has_cloud: bool,
    /// Uploads failed so often in a row that they are paused, but for probes.
    pub is_breaker_open: bool,
    /// What the object store last said, while reads of it are stopped, but for probes, because they kept failing.
    pub reads_stopped: Option<String>,
    /// Uploads under way.
    pub uploads_in_flight: u64,
    /// Cloud reads under way.
    pub fetches_in_flight: u64,
}

/// A chunk in this node's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedChunk {
    /// The chunk.
    pub key: ChunkKey,
    /// Its length, bytes.
    pub len: u32,
    /// What it takes of the device, bytes.
    pub device_bytes: u32,
    /// Not yet in the object store.
    pub is_dirty: bool,
}

/// What a node that has not started yet is at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Starting {
    /// Its object store and its namespace are being opened.
    #[default]
    Opening,
    /// It registers with its coordinator, as long as that takes.
    Registering {
        /// `HOST:PORT`.
        coordinator: String,
        /// What went wrong last, if anything has.
        why: Option<String>,
    },
}

/// What was left when a node stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Chunks that are not in the object store; they are on the device, and the queue goes on at the next start.
    pub dirty_chunks: u64,
    /// Their bytes.
    pub dirty_bytes: u64,
}
