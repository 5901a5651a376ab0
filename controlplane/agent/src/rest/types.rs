//! JSON bodies of REST, for the server and for `fastcache-ctl`, which reads them. Bytes and seconds as named;
//! inodes and versions are hexadecimal strings, because JSON numbers end at 2^53.

use crate::types::{Backlog, CloudCounters, NamespaceStats, PinStats};
use fastcache_api::control::DataStats;
use serde::{Deserialize, Serialize};

pub use fastcache_api::path::encode as encode_path;

/// Any error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs; never changes.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Answer to `PUT /api/files/{path}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutBody {
    /// The path.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Data chunks.
    pub chunks: u64,
    /// As in the `ETag` header.
    pub etag: String,
}

/// Answer to `GET /api/files/{path}/size`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SizeBody {
    /// Bytes.
    pub size: u64,
}

/// Answer to `GET /api/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealthBody {
    /// `ok` (200); `degraded` (503): its data plane is away; `starting` or `registering` (503, but 200 as
    /// `/api/health/live`): it has not started yet, and waits for its coordinator.
    pub status: String,
    /// What it waits for, for people, where it has not started yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Whether the data plane is connected.
    pub is_data_connected: bool,
    /// Whether reads of the object store are stopped because they kept failing: what is not cached gives EIO. No reason
    /// for 503: a restart of the node would not help.
    #[serde(default)]
    pub are_cloud_reads_stopped: bool,
    /// This node's name; empty at its first start, until it has one.
    pub peer_id: String,
    /// Version of fastcache.
    pub version: String,
}

/// A node in `GET /api/peers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerBody {
    /// Its name.
    pub id: String,
    /// `HOST:PORT` of its REST, where known.
    pub address: Option<String>,
    /// This node itself.
    pub is_self: bool,
    /// Whether the coordinator hears of it; of this node, whether its data plane is connected, too.
    pub is_healthy: bool,
    /// `HOST:PORT` for other nodes, where known.
    pub peer_address: Option<String>,
    /// Capacity of its store, bytes.
    pub capacity_bytes: u64,
    /// Used of it, bytes.
    pub used_bytes: u64,
    /// Not yet in the cloud, bytes.
    pub dirty_bytes: u64,
    /// Version of its software.
    pub version: String,
    /// Requests of the kernel that its data plane was asked a second, lately; absent without a coordinator of its own process.
    #[serde(default)]
    pub load: Option<u64>,
    /// How they come: `uring` or `dev`; empty while its data plane is away.
    #[serde(default)]
    pub transport: String,
    /// Milliseconds since the coordinator last heard of it; absent without a coordinator of its own process.
    pub last_heartbeat_ms: Option<u64>,
}

/// Answer to `POST /api/peers/{id}/heartbeat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeartbeatBody {
    /// This node.
    pub id: String,
    /// `ok`: the coordinator heard it.
    pub status: String,
}

/// Answer to `GET /api/peers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeersBody {
    /// Known nodes; this one first.
    pub peers: Vec<PeerBody>,
}

/// A chunk in `GET /api/cache`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CachedBody {
    /// Inode, hexadecimal.
    pub ino: String,
    /// Index in the file.
    pub index: u32,
    /// Version, hexadecimal.
    pub version: String,
    /// Valid bytes.
    pub len_bytes: u32,
    /// What it takes of the device.
    pub device_bytes: u32,
    /// Not yet in the object store.
    pub is_dirty: bool,
}

/// Answer to `GET /api/cache`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheBody {
    /// Chunks, by inode and index.
    pub chunks: Vec<CachedBody>,
    /// `?after=` of the next page; absent at the end.
    pub next: Option<String>,
}

/// The persist queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueueBody {
    /// Dirty chunks.
    pub dirty_chunks: u64,
    /// Their bytes.
    pub dirty_bytes: u64,
    /// How long the oldest has been dirty.
    pub oldest_dirty_age_seconds: Option<f64>,
    /// The last upload error while uploads fail.
    pub failing: Option<String>,
}

impl From<&Backlog> for QueueBody {
    fn from(b: &Backlog) -> QueueBody {
        QueueBody {
            dirty_chunks: b.chunks,
            dirty_bytes: b.bytes,
            oldest_dirty_age_seconds: b.oldest_dirty_age.map(|d| d.as_secs_f64()),
            failing: b.failing.clone(),
        }
    }
}

/// Pinned files.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PinnedBody {
    /// Files.
    pub pinned_files: u64,
    /// Chunks of theirs in this node's store.
    pub pinned_chunks: u64,
    /// What those take of the device, bytes.
    pub pinned_bytes: u64,
    /// Most they may take, bytes.
    pub pinned_most_bytes: u64,
}

impl From<&PinStats> for PinnedBody {
    fn from(p: &PinStats) -> PinnedBody {
        PinnedBody {
            pinned_files: p.files,
            pinned_chunks: p.chunks,
            pinned_bytes: p.bytes,
            pinned_most_bytes: p.most_bytes,
        }
    }
}

/// Requests to the object store since the agent started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct CloudBody {
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

impl From<&CloudCounters> for CloudBody {
    fn from(c: &CloudCounters) -> CloudBody {
        CloudBody {
            puts: c.puts,
            put_bytes: c.put_bytes,
            gets: c.gets,
            get_bytes: c.get_bytes,
            errors: c.errors,
            deletes: c.deletes,
        }
    }
}

/// Counts of the namespace.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct NamespaceBody {
    /// Inodes.
    pub inodes: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl From<&NamespaceStats> for NamespaceBody {
    fn from(n: &NamespaceStats) -> NamespaceBody {
        NamespaceBody {
            inodes: n.inodes,
            bytes: n.bytes,
        }
    }
}

/// Answer to `GET /api/cache/stats`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatsBody {
    /// Counters of the data plane since it started; absent when it is away.
    pub nvme: Option<DataStats>,
    /// Pinned files.
    pub pinned: PinnedBody,
    /// The persist queue.
    pub queue: QueueBody,
    /// Requests to the object store.
    pub cloud: CloudBody,
    /// The namespace; absent when the coordinator is away.
    pub namespace: Option<NamespaceBody>,
    /// How far the namespace's history in the bucket is; absent when the coordinator is away.
    pub history: Option<fastcache_api::HistoryStatus>,
}

/// Answer to `GET /api/admin/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusBody {
    /// Version of fastcache.
    pub version: String,
    /// This node's name.
    pub peer_id: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Since the agent started.
    pub uptime_seconds: f64,
    /// Whether the data plane is connected.
    pub is_data_connected: bool,
    /// `HOST:PORT`, or `embedded`.
    pub coordinator: String,
    /// Where objects go, without secrets.
    pub cloud_place: String,
    /// Bytes of a chunk of new files.
    pub chunk_size_bytes: u32,
    /// What an `fsync` waits for.
    pub fsync: String,
    /// What is wrong with the node, the worst first.
    pub problems: Vec<crate::health::Problem>,
    /// Counters.
    #[serde(flatten)]
    pub stats: StatsBody,
}

/// A chunk in [`StateBody`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkStateBody {
    /// Index in the file.
    pub index: u32,
    /// Version, hexadecimal.
    pub version: String,
    /// Valid bytes.
    pub len_bytes: u32,
    /// `dirty`, `replicated N` or `persisted`.
    pub state: String,
    /// Key of its object, once persisted.
    pub object: Option<String>,
    /// The object's ETag, where the store gives one.
    pub etag: Option<String>,
}

/// Answer to `GET /api/admin/state?path=`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StateBody {
    /// The path, as asked.
    pub path: String,
    /// Inode, hexadecimal.
    pub ino: String,
    /// `dirty`, `replicated N` or `persisted`: the worst of the chunks.
    pub state: String,
    /// Bytes.
    pub size: u64,
    /// Chunks with data.
    pub chunks: Vec<ChunkStateBody>,
}

/// Answer to `POST /api/admin/flush`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlushBody {
    /// Chunks of what was asked that are still to be uploaded.
    pub chunks_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// The whole queue.
    pub queue: QueueBody,
}

/// Answer to `POST /api/admin/evict`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct EvictBody {
    /// Chunks evicted.
    pub chunks: u64,
    /// Bytes of the device they took.
    pub bytes: u64,
    /// Chunks that stay because their files are pinned.
    pub pinned_chunks: u64,
    /// Bytes of the device those take.
    pub pinned_bytes: u64,
}

/// Answer to `POST /api/admin/unpin`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct UnpinBody {
    /// Files that were pinned and are not any more.
    pub files: u64,
}
