//! What `gc` and `fsck` tell, as JSON: a stream of lines, the last of which is a report or an error. For the server
//! and for `fastcache-ctl`, which reads them. Inodes are hexadecimal strings, because JSON numbers end at 2^53.

use serde::{Deserialize, Serialize};

/// Most findings of a kind that are listed; beyond it they are counted.
pub const LISTED_MAX: usize = 1000;

/// One line of the stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// How far it is.
    Progress(Progress),
    /// The end of `gc`.
    Gc(Box<GcReport>),
    /// The end of `fsck`.
    Fsck(Box<FsckReport>),
    /// The end: it could not be checked.
    Error(String),
}

/// How far a stage is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// `objects`, `references`, `namespace`, `chunks`, `reading`, `confirming`, `deleting`, `repairing`.
    pub stage: String,
    /// So many are done.
    pub done: u64,
    /// Of so many, where it is known.
    pub total: Option<u64>,
}

/// An object that nothing names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// Its key.
    pub object: String,
    /// Its bytes.
    pub bytes: u64,
    /// How old it is, by the store's clock, seconds.
    pub age_seconds: u64,
    /// `file_gone`: its file was deleted. `not_named`: its file has other contents. `stale_ref`: its upload was
    /// recorded after its version had been replaced.
    pub why: String,
}

/// What `gc` found and did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcReport {
    /// Objects under `chunks/`.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Of those, what cloud refs name and layouts use.
    pub named: u64,
    /// Wait in the deletion queue already.
    pub queued: u64,
    /// Not named, and younger than the grace time: left alone.
    pub young: u64,
    /// Not named, and on this node's device or in its upload queue: left alone.
    pub in_flight: u64,
    /// Not named, of files that exist, while other nodes may be uploading them: left alone.
    pub held_back: u64,
    /// Keys that are none of ours, under `chunks/`: never touched.
    pub foreign: Vec<String>,
    /// How many of those there are.
    pub foreign_objects: u64,
    /// Leaks.
    pub leaks: u64,
    /// Their bytes.
    pub leak_bytes: u64,
    /// The first of them.
    pub listed: Vec<Leak>,
    /// Given to the deletion queue; 0 in a dry run.
    pub discarded: u64,
    /// Whether it only looked.
    pub is_dry_run: bool,
    /// Why nothing was deleted although it was asked for.
    pub refused: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// For programs: `missing_object`, `wrong_length`, `wrong_checksum`, `lost_chunk`, `repaired_chunk`, `no_object`, `stray_chunk`,
    /// `unreadable_chunk`, `accounting`, `leak`, `ref_without_inode`, `unreadable_object`, or the code of a
    /// [`fastcache_api::Flaw`].
    pub code: String,
    /// What is wrong, for people.
    pub what: String,
    /// A path of the file.
    pub path: Option<String>,
    /// Its inode, hexadecimal.
    pub ino: Option<String>,
    /// Index of the chunk.
    pub chunk: Option<u32>,
    /// Key of the object.
    pub object: Option<String>,
}

/// What `fsck` found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FsckReport {
    /// Nothing is wrong.
    pub is_clean: bool,
    /// Inodes looked at.
    pub inodes: u64,
    /// Cloud refs looked at.
    pub refs: u64,
    /// Objects under `chunks/`.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Chunks in this node's store.
    pub local_chunks: u64,
    /// Bytes that were read and compared with their checksums (`--deep`).
    pub read_bytes: u64,
    /// Refs of versions that no layout names: `gc` finds out what they are.
    pub unnamed_refs: u64,
    /// Lost chunks that `--repair` brings back as they were when they were last persisted.
    pub repairable: u64,
    /// Lost chunks that came back so.
    pub repaired: u64,
    /// What is wrong, or was.
    pub findings: u64,
    /// The first of them.
    pub listed: Vec<Finding>,
    /// How long it took.
    pub seconds: f64,
}
