//! What a file holds, and where its chunks are. How a layout changes is in `layout.rs`.

use crate::{Ino, Time, Version};
use serde::{Deserialize, Serialize};

/// Consecutive chunks with one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Index of the first chunk.
    pub first: u32,
    /// How many chunks; at least 1.
    pub count: u32,
    /// Their version; never `Version::NONE` (a hole has no run).
    pub version: Version,
    /// Valid bytes of the *last* chunk of the run (the others are whole); the rest reads as zeros.
    pub valid: u32,
}

/// A file's contents: runs in order of `first`, without overlap. What no run covers reads as zeros.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Layout {
    /// The runs, sorted by `first`.
    pub runs: Vec<Run>,
}

/// A file's new contents, as the holder of its write lease commits them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Commit {
    /// The file.
    pub ino: Ino,
    /// The layout version this change was made from.
    pub base: Version,
    /// The layout version after it. A commit whose `version` the inode already has is answered as done.
    pub version: Version,
    /// The smallest size the file had since `base`: chunks beyond it are dropped and the chunk that holds it
    /// is valid up to it only, before `runs` are laid over.
    pub truncate: Option<u64>,
    /// New chunks. A run with `Version::NONE` punches a hole (its chunks are dropped).
    pub runs: Vec<Run>,
    /// The size now, bytes.
    pub size: u64,
    /// Modification time now.
    pub mtime: Time,
    /// Clear setuid, and setgid where the group may execute.
    pub kill_suid: bool,
    /// Reserve: when the base does not match (the lease was lost), make a conflict file beside it
    /// instead of failing with ESTALE.
    pub conflict_file: bool,
}

/// Where a persisted chunk is in the object store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloudRef {
    /// Key of the object, without the configured prefix.
    pub object: String,
    /// Offset of the chunk in the object, bytes.
    pub offset: u64,
    /// Length of the chunk, bytes.
    pub len: u32,
    /// CRC32C of the chunk's bytes.
    pub crc32c: u32,
    /// The object's ETag, where the store gives one.
    pub etag: Option<String>,
}

/// One persisted chunk, as the agent reports it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PersistedChunk {
    /// The chunk.
    pub key: crate::ChunkKey,
    /// Where it is.
    pub at: CloudRef,
}
