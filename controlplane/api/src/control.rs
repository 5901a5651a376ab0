//! The control socket between the planes of one node: a Unix stream socket on which the data plane listens.
//!
//! The agent opens one connection ("lane") for each core of the data plane, so that a core's questions are
//! answered to that core. On each lane, both directions carry frames:
//!
//! ```text
//!  0        4                      4 + len
//!  ┌────────┬──────────────────────┐
//!  │ len u32│ postcard(message)    │   little-endian; len counts the message only, at most FRAME_MAX
//!  └────────┴──────────────────────┘
//! ```
//!
//! The data plane speaks first, with [`ServerHello`] (an arena's memfd rides on its first byte as SCM_RIGHTS),
//! the agent answers with [`ClientHello`]. Lane 0 comes first: it begins a session, and the arena that came with it
//! is the session's; those offered on the other lanes are not used. Then [`ToAgent`] and [`ToData`] flow. Payloads never travel in
//! frames: they are in slots of the arena. Every slot is handed out by the data plane. A new agent session (a new
//! `agent` number) makes the data plane close the lanes of the old one and make a new arena, so that a
//! process which still holds the old one can write into nothing that is used.
//!
//! Either side may go away at any moment. The data plane then keeps the calls it has not been answered and
//! sends them again to the next agent (changes carry an [`OpId`](crate::OpId), so none happens twice).

use crate::locks::{Lock, LockAnswer, LockOp};
use crate::{Attr, ChunkId, ChunkKey, Errno, Ino, NsReply, NsRequest};
use serde::{Deserialize, Serialize};

/// Version of this protocol. 1: first. 2: blocks in attributes; latencies and the arena in the counters. 3: who waits for
/// the cloud asks again and again. 4: stuck cores, why the FUSE transport is what it is, counters of readahead, pins. 5: memory.
/// 6: leases that end, several nodes, locks; peers. 7: fsync waits for other nodes.
pub const CONTROL_VERSION: u32 = 10;
/// Longest message, bytes: a 64 KiB extended attribute, 4096 directory entries with attributes, or a layout of
/// 200,000 runs, with room.
pub const FRAME_MAX: usize = 8 << 20;
/// Bytes of one arena slot: the largest chunk.
pub const SLOT_BYTES: usize = 4 << 20;

/// First message on a lane, from the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerHello {
    /// [`CONTROL_VERSION`] of the data plane.
    pub version: u32,
    /// Number of this run of the data plane (random).
    pub data: u64,
    /// How many lanes the agent is to open: one for each core.
    pub lanes: u32,
    /// Slots of the arena; slot `i` is bytes `i * SLOT_BYTES ..` of the memfd.
    pub slots: u32,
    /// Capacity of the store for chunks, bytes.
    pub capacity_bytes: u64,
    /// Address and port where it listens for other nodes (the address may be 0.0.0.0); `None`: it does not.
    pub peer_listen: Option<String>,
}

/// Second message on a lane, from the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientHello {
    /// [`CONTROL_VERSION`] of the agent.
    pub version: u32,
    /// Number of this run of the agent (random). The same on all its lanes.
    pub agent: u64,
    /// Which lane this is: 0 to `lanes` - 1.
    pub lane: u32,
    /// Chunk size of new files, bytes; a multiple of 4096, at most [`SLOT_BYTES`].
    pub chunk_size: u32,
    /// Whether there can be other nodes: locks are asked for at the coordinator.
    pub has_coordinator: bool,
    /// Whether there is a cloud tier. Without one dirty chunks stay dirty, and waiting for room is in vain.
    pub has_cloud: bool,
}

/// From the data plane to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToAgent {
    /// A question; answered by [`ToData::Answer`] with the same id on the same lane.
    Call(u64, NodeCall),
    /// The answer to [`ToData::Call`].
    Answer(u64, Result<DataAnswer, Errno>),
    /// News.
    Event(DataEvent),
}

/// From the agent to the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToData {
    /// A question; answered by [`ToAgent::Answer`] with the same id on the same lane.
    Call(u64, DataCall),
    /// The answer to [`ToAgent::Call`].
    Answer(u64, Result<NodeAnswer, Errno>),
    /// A slot is no longer used by the agent.
    ReleaseSlot(u32),
}

/// What the data plane asks the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NodeCall {
    /// A namespace operation. Answer: `Ns`.
    Ns(NsRequest),
    /// Bring a chunk from the next tier into a slot (handed out for this). Answer: `Fetched`; EIO when no tier has
    /// it or the deadline passed.
    Fetch {
        /// The chunk.
        key: ChunkKey,
        /// Where to put it.
        slot: u32,
    },
    /// `fsync` of a file whose bytes are on this node's device and whose commit is acknowledged: answer `Synced` when
    /// the level is reached (local: the log is stable; cloud: every chunk is persisted), `Waiting` when the
    /// cloud takes longer, `Copies` when the log is stable on another node and the bytes have yet to leave this one.
    Fsync {
        /// The file (or directory).
        ino: Ino,
        /// From the last `Waiting`.
        waited: Option<Waited>,
        /// Copies on other nodes cannot be had, or take long: level `peers` is to be reached as `cloud` is.
        is_cloud: bool,
    },
    /// The device may lose what was sealed: bring a file, or everything, to the cloud now. Answer: `Done` when every chunk
    /// is persisted, `Waiting` when it takes longer.
    Persist {
        /// The file.
        ino: Option<Ino>,
        /// From the last `Waiting`.
        waited: Option<Waited>,
    },
    /// Is the agent there? Answer: `Done`, at once.
    Ping,
    /// Something about locks across nodes. Answer: `Lock`; ENOSYS where there can be no other node.
    Lock(LockOp),
    /// The durability state of a committed file as text: `dirty`, `replicated N`, `persisted`. Answer: `State`.
    State {
        /// The file.
        ino: Ino,
    },
    /// An ordered end: the mount is off, and nothing is used any more that was learned. Answer: `Done`.
    Left,
}

/// The agent's answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NodeAnswer {
    /// Of the namespace.
    Ns(NsReply),
    /// The chunk is in the slot.
    Fetched {
        /// Its length, bytes.
        len: u32,
        /// CRC32C over all its bytes, as recorded when it was uploaded.
        crc32c: u32,
    },
    /// Done.
    Done,
    /// An `fsync` is at this level.
    Synced {
        /// The level.
        level: FsyncLevel,
    },
    /// An `fsync` of level `peers`: the log is on stable storage outside this node, and what of the file is not in the cloud
    /// has to be on other nodes' devices.
    Copies {
        /// On so many nodes, at least 1.
        copies: u32,
    },
    /// Of a lock.
    Lock(LockAnswer),
    /// Text.
    State(String),
    /// Not in the cloud yet: ask again.
    Waiting {
        /// To be brought along.
        waited: Waited,
        /// Whether the cloud took anything since the question.
        has_moved: bool,
    },
}

/// What an `fsync` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsyncLevel {
    /// The node's device, and the namespace's log on stable storage.
    Local,
    /// As `Local`, and copies on other nodes' devices or the object store, whichever is first; the log outside this node.
    Peers,
    /// The object store has every chunk of the file, and the log that names them.
    Cloud,
}

impl FsyncLevel {
    /// All of them, the weakest first.
    pub const ALL: [FsyncLevel; 3] = [FsyncLevel::Local, FsyncLevel::Peers, FsyncLevel::Cloud];

    /// As flags and metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FsyncLevel::Local => "local",
            FsyncLevel::Peers => "peers",
            FsyncLevel::Cloud => "cloud",
        }
    }
}

/// How far somebody who waits for the cloud has come. The agent's own; whoever asks brings it back, so that what is written
/// meanwhile is not waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// What was sealed before this number in the queue is waited for.
    pub mark: u64,
    /// The mark was taken a second time.
    pub is_second: bool,
    /// Once every chunk is in the cloud: the record of the namespace that has to follow.
    pub record: Option<u64>,
}

/// What the agent asks the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum DataCall {
    /// The chunks in the store, in an order of the data plane's own. Answer: `Inventory`.
    Inventory {
        /// Continue where the last answer's `next` said; `None` starts.
        from: Option<u64>,
    },
    /// Read one sealed version of a chunk into a slot, verified. Answer: `Slot`; ENOENT when that version is not
    /// here (any more), EIO when it cannot be read.
    ReadChunk {
        /// The chunk.
        key: ChunkKey,
        /// EAGAIN when somebody is writing the next version: this one need not be uploaded yet.
        is_patient: bool,
    },
    /// These chunks are in the cloud now: they are clean. Answer: `Done`, when the store's journal has it.
    MarkClean {
        /// The chunks.
        keys: Vec<ChunkKey>,
    },
    /// Forget these chunks, dirty or not: their file or version exists no more. Answer: `Done`.
    Drop {
        /// The chunks.
        keys: Vec<ChunkKey>,
    },
    /// The standing list of victims, first to go first. Replaces the old one. Answer: `Done`.
    Victims {
        /// Chunks that may be evicted when they are still clean and not in use.
        ids: Vec<ChunkId>,
    },
    /// Evict clean chunks, of one file or all, and drop the kernel's pages of those files. Answer: `Evicted`.
    Evict {
        /// Only this file.
        ino: Option<Ino>,
        /// But not of these files.
        pinned: Vec<Ino>,
    },
    /// Somebody else changed these things: drop what is cached, here and in the kernel. Answer: `Done`, after it
    /// is dropped.
    Invalidate {
        /// Inodes whose attributes changed; new ones where known. One without links, together with entries, lost its
        /// last name: the data plane drops and reaps it when nobody has it open.
        touched: Vec<Attr>,
        /// Directory entries that changed: (directory, name).
        entries: Vec<(Ino, Vec<u8>)>,
        /// Inodes whose attributes and contents are to be forgotten (revoked leases).
        inos: Vec<Ino>,
    },
    /// An empty slot, to be filled for `WriteFile`. Answer: `Slot` with `len` 0.
    TakeSlot,
    /// Read a file through the tiers. Answer: `Slot` with as many bytes as there were, 0 at the end.
    ReadFile {
        /// The file.
        ino: Ino,
        /// Offset, bytes.
        offset: u64,
        /// At most this many bytes (at most SLOT_BYTES).
        len: u32,
    },
    /// Write a slot's bytes into a file. The slot is free afterwards. Answer: `Done`.
    WriteFile {
        /// The file.
        ino: Ino,
        /// Offset, bytes.
        offset: u64,
        /// From this slot.
        slot: u32,
        /// This many bytes.
        len: u32,
    },
    /// Seal and commit what is dirty and open, of one file or all, as `close` would. Answer: `Done`.
    Seal {
        /// Only this file.
        ino: Option<Ino>,
        /// And put it on stable storage of the device.
        is_durable: bool,
    },
    /// Counters. Answer: `Stats`.
    Stats,
    /// How many other nodes have the chunks of a file that are not in the cloud, as this node knows. Answer: `Copies`.
    Copies {
        /// The file.
        ino: Ino,
    },
    /// Who this node is, and which other nodes are live; replaces what was said before. Answer: `Done`.
    Peers {
        /// This node's id.
        me: String,
        /// Number of the file system.
        file_system: u64,
        /// The others.
        peers: Vec<PeerNode>,
    },
    /// A file that the agent made and will not name (a REST PUT that was cut): drop its chunks and reap it.
    /// Answer: `Done`; what is dropped goes in the background.
    Abandon {
        /// The file.
        ino: Ino,
    },
    /// Fetch a chunk into the store. Answer: `Done` when it is there; ENOSPC when there is no room, errors of the fetch.
    Promote {
        /// The chunk.
        key: ChunkKey,
    },
    /// What the coordinator told in this session is good until then. Answer: `Done`.
    Lease {
        /// On CLOCK_BOOTTIME, nanoseconds; `None`: without end (the coordinator is the agent's own).
        until_ns: Option<u64>,
        /// There are other nodes: see `Forget`.
        is_shared: bool,
    },
    /// Nothing the coordinator ever told is good any more: the session is another one, or a second node comes.
    /// Answer: `Done`.
    Forget {
        /// There are other nodes: a file is written under a lease of its own, and `close` commits.
        is_shared: bool,
        /// What was written here is to be committed before the answer.
        and_commit: bool,
    },
    /// These files lost their last name, and go unless somebody has them open. Answer: `Done`, when a lease is held on
    /// those that are open here.
    HoldOpen {
        /// The files.
        inos: Vec<Ino>,
    },
    /// The locks that this node's programs hold, for a coordinator that does not know. Answer: `Locks`.
    Locks,
    /// Another node wants to write these files: commit what was written here, and ask before anything more is. What is
    /// cached of them stays. Answer: `Done`.
    HandOver {
        /// The files.
        inos: Vec<Ino>,
    },
    /// What earlier sessions told is asked for again, by the kernel too; the lease of this one stays. Answer: `Done`, when
    /// the kernel has dropped it.
    ForgetEarlier,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerNode {
    /// Its id.
    pub id: String,
    /// Address and port of its data plane, in numbers.
    pub address: String,
}

/// A chunk in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalChunk {
    /// The chunk.
    pub key: ChunkKey,
    /// Its length, bytes.
    pub len: u32,
    /// What it takes of the capacity, bytes.
    pub device_bytes: u32,
    /// Not yet in the cloud.
    pub is_dirty: bool,
}

/// The data plane's answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum DataAnswer {
    /// Done.
    Done,
    /// Part of the inventory.
    Inventory {
        /// Chunks.
        chunks: Vec<LocalChunk>,
        /// Where to go on; `None` at the end.
        next: Option<u64>,
    },
    /// Bytes in a slot; give it back with [`ToData::ReleaseSlot`].
    Slot {
        /// The slot.
        slot: u32,
        /// Bytes in it.
        len: u32,
        /// CRC32C of them (0 for an empty slot).
        crc32c: u32,
    },
    /// What was evicted.
    Evicted {
        /// Chunks.
        chunks: u64,
        /// Bytes of the device.
        bytes: u64,
    },
    /// Counters.
    Stats(Box<DataStats>),
    /// Locks that are held.
    Locks(Vec<(Ino, Lock)>),
    /// Dirty chunks of a file, and how many other nodes have each on their devices.
    Copies(Vec<(ChunkKey, u32)>),
}

/// News from the data plane, on any lane. Per chunk in order, because all news of one file go over one lane
/// (`ino % lanes`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum DataEvent {
    /// Chunks were sealed (dirty: to be uploaded) or promoted (clean).
    Stored(Vec<LocalChunk>),
    /// Chunks were read since the last such event.
    Accessed(Vec<ChunkId>),
    /// These versions of chunks are no longer in the store (evicted, replaced, dropped).
    Gone(Vec<ChunkKey>),
    /// The list of victims is short, or writers wait for space.
    Pressure {
        /// Bytes used of the capacity.
        used_bytes: u64,
        /// Writers wait: upload now, do not wait for quiet.
        is_blocked: bool,
    },
}

/// Upper bounds of the buckets of [`Latency`], microseconds; one more bucket takes what took longer.
pub const LATENCY_BOUNDS_US: [u64; 13] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000,
];

/// How long the requests of one operation took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The operation.
    pub operation: String,
    /// Requests by [`LATENCY_BOUNDS_US`], each counted once; one bucket more than there are bounds.
    pub buckets: Vec<u64>,
    /// Sum of all durations, microseconds.
    pub sum_us: u64,
}

/// Counters and levels of the data plane since it started. Bytes, operations, microseconds as named.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DataStats {
    /// Capacity for chunks, bytes.
    pub capacity_bytes: u64,
    /// Bytes allocated (headers and rounding included).
    pub used_bytes: u64,
    /// Bytes of sealed chunks that are not yet in the cloud.
    pub dirty_bytes: u64,
    /// Chunks in the store.
    pub chunks: u64,
    /// Of those, dirty.
    pub dirty_chunks: u64,
    /// Chunk reads answered by the NVMe store.
    pub nvme_hits: u64,
    /// Bytes of those.
    pub nvme_hit_bytes: u64,
    /// Chunk reads that had to fetch.
    pub misses: u64,
    /// Chunks fetched from a lower tier.
    pub fetched_chunks: u64,
    /// Bytes of those.
    pub fetched_bytes: u64,
    /// Chunks evicted.
    pub evicted_chunks: u64,
    /// Bytes of those.
    pub evicted_bytes: u64,
    /// Bytes written by applications.
    pub written_bytes: u64,
    /// Blocks whose checksum did not match when read.
    pub checksum_errors: u64,
    /// Device errors.
    pub device_errors: u64,
    /// The device takes no journal: nothing new is safe on it before the data plane starts again.
    pub is_device_lost: bool,
    /// Bytes that the device refused to write and that are in RAM until the cloud has them.
    pub spilled_bytes: u64,
    /// Bytes of the device that it refused to write and that are not used any more.
    pub bad_bytes: u64,
    /// Chunks that are not in the cloud and that the device does not give back.
    pub unreadable_chunks: u64,
    /// Times a writer waited for space or the dirty cap.
    pub write_stalls: u64,
    /// Sealed files whose commit the coordinator has not acknowledged.
    pub uncommitted_files: u64,
    /// Questions about the namespace that could not be answered by the data plane under its lease, and changes of it.
    pub namespace_calls: u64,
    /// Files that lost their lease and became conflict files.
    pub conflict_files: u64,
    /// Chunks that were asked for ahead of their readers.
    pub ahead_chunks: u64,
    /// Bytes of those.
    pub ahead_bytes: u64,
    /// Of the chunks, those that a reader came for.
    pub ahead_used: u64,
    /// Those that nobody came for: evicted, or their file was closed or changed.
    pub ahead_wasted: u64,
    /// Those that could not be fetched; their readers asked again.
    pub ahead_failed: u64,
    /// Slots of the arena.
    pub arena_slots: u64,
    /// Of those, neither held by the data plane nor lent to the agent.
    pub arena_free: u64,
    /// Chunks that are being fetched from a lower tier, or wait for their turn.
    pub fetching_chunks: u64,
    /// What was exchanged with other nodes.
    pub peers: PeersStats,
    /// FUSE requests, by operation name.
    pub fuse_requests: Vec<(String, u64)>,
    /// How long FUSE requests took, by operation name.
    pub fuse_latency: Vec<Latency>,
    /// How long fsyncs took that reached their level, by level.
    pub fsync_latency: Vec<Latency>,
    /// FUSE transport in use (`dev` or `uring`).
    pub transport: String,
    /// Why this one.
    pub transport_why: String,
    /// Seconds since the data plane started.
    pub uptime_s: u64,
    /// Cores that do not go on.
    pub stuck_cores: Vec<StuckCore>,
    /// Times that a core did not go on for a second.
    pub core_stalls: u64,
    /// The budget of memory of the data plane, and what is used of it.
    pub memory: MemoryStats,
}

/// Memory of the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// `--memory`, or what it is without it, bytes; 0: not known.
    pub budget_bytes: u64,
    /// Resident memory of the process, bytes; the memory that both planes share is in it as far as it was used.
    pub resident_bytes: u64,
    /// Inodes that the kernel was asked to give back because there were too many.
    pub pruned_inodes: u64,
    /// What the budget is divided into.
    pub parts: Vec<MemoryPart>,
}

/// A part of a budget of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// Its name: `buffers`, `requests`, `shared`, `process`, `index`, `inodes`, `writes`, `checksums`.
    pub name: String,
    /// What it may take, bytes.
    pub limit_bytes: u64,
    /// What it takes, bytes; `None` where that is not counted.
    pub used_bytes: Option<u64>,
}

/// A core of the data plane that does not go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckCore {
    /// Its number, from 0; the same as of its lane.
    pub core: u64,
    /// For how long, milliseconds.
    pub for_ms: u64,
    /// What it is doing, for people.
    pub doing: String,
}

/// What was exchanged with other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersStats {
    /// The nodes this one knows.
    pub peers: Vec<PeerStats>,
    /// Chunks that came from other nodes.
    pub peer_fetched_chunks: u64,
    /// Bytes of those.
    pub peer_fetched_bytes: u64,
    /// Small reads that other nodes answered with the bytes that were wanted alone.
    #[serde(default)]
    pub peer_parts: u64,
    /// Bytes of those.
    #[serde(default)]
    pub peer_part_bytes: u64,
    /// Misses for which another node had nothing.
    pub peer_absent: u64,
    /// Second and third sources that were asked because the one before took long.
    pub peer_hedges: u64,
    /// Chunks of this node that are not in the cloud and have all their copies on other nodes.
    pub replicated_chunks: u64,
    /// Those that do not have all of them.
    pub under_replicated_chunks: u64,
    /// Replicas that other nodes were given.
    pub given_replicas: u64,
    /// Times that a replica could not be given.
    pub replica_errors: u64,
    /// Chunks of nodes that are gone: kept here for them, or taken over, and not known to be in the cloud.
    pub repair_chunks: u64,
    /// Their bytes.
    pub repair_bytes: u64,
    /// Chunks of nodes that are gone that were taken over.
    pub repaired_chunks: u64,
    /// Chunks that other nodes took over because this one's store was full.
    #[serde(default)]
    pub given_chunks: u64,
    /// Chunks of other nodes' full stores that this one took over.
    #[serde(default)]
    pub taken_chunks: u64,
    /// Chunks that are kept for other nodes.
    pub held_chunks: u64,
    /// Their bytes.
    pub held_bytes: u64,
    /// Connections of other nodes that are open.
    pub served_connections: u64,
    /// Connections that were refused: token, version, file system, silence.
    pub refused_connections: u64,
    /// Connections of other nodes that broke.
    pub broken_connections: u64,
    /// Parts of chunks that other nodes were given.
    pub served_parts: u64,
    /// Bytes of those.
    pub served_bytes: u64,
    /// Requests of other nodes for what is not here.
    pub served_absent: u64,
}

/// What was exchanged with one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStats {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub address: String,
    /// Connections to it.
    pub connections: u64,
    /// Requests to it.
    pub requests: u64,
    /// Of these and of connections, those that failed; that it does not have a chunk is no failure.
    pub errors: u64,
    /// Bytes it gave.
    pub in_bytes: u64,
    /// Bytes it was given.
    pub out_bytes: u64,
    /// How long it took to answer with bytes.
    pub latency: Latency,
}
