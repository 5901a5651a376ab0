//! What the coordinator answers.

use super::{Attr, CloudRef, DirEntry, Layout};
use crate::{Errno, Ino, Version};
use serde::{Deserialize, Serialize};

/// What came of an operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NsAnswer {
    /// Nothing to tell.
    Done,
    /// An inode found or made, with its attributes.
    Entry(Attr),
    /// Attributes.
    Attr(Attr),
    /// Attributes and contents.
    Opened {
        /// Attributes.
        attr: Attr,
        /// Contents.
        layout: Layout,
    },
    /// A value.
    Bytes(Vec<u8>),
    /// Names.
    Names(Vec<Vec<u8>>),
    /// Part of a listing.
    Dir {
        /// The entries, in cookie order.
        entries: Vec<DirEntry>,
        /// Nothing comes after these.
        is_end: bool,
    },
    /// A name went away.
    Unlinked {
        /// The inode it named.
        ino: Ino,
        /// No name is left: the inode is an orphan until it is reaped.
        is_orphan: bool,
    },
    /// Counts.
    Statfs(Statfs),
    /// Cloud refs: chunk index, version, place.
    CloudRefs(Vec<(u32, Version, CloudRef)>),
    /// `count` versions from `first` on belong to the asker.
    Versions {
        /// The first.
        first: Version,
        /// How many.
        count: u32,
    },
    /// Object keys to delete.
    Garbage(Vec<String>),
    /// Part of the inodes.
    Audit {
        /// The inodes.
        inodes: Vec<crate::Audited>,
        /// What is wrong and belongs to none of them.
        flaws: Vec<crate::Flaw>,
        /// Nothing comes after these.
        is_end: bool,
        /// The namespace's epoch: no inode or version of a later one exists.
        epoch: u64,
        /// The log position this tells of.
        position: u64,
    },
    /// Part of the cloud refs.
    AllRefs {
        /// The refs.
        refs: Vec<crate::AuditedRef>,
        /// Nothing comes after these.
        is_end: bool,
    },
    /// Part of the deletion queue: number and object key.
    QueuedGarbage {
        /// The objects.
        objects: Vec<(u64, String)>,
        /// Nothing comes after these.
        is_end: bool,
    },
    /// How many objects were queued for deletion.
    Discarded(u64),
    /// How far the history in the bucket is.
    History(HistoryStatus),
    /// Part of the spares.
    Spares {
        /// The spares.
        spares: Vec<crate::Spare>,
        /// Nothing comes after these.
        is_end: bool,
    },
    /// The chunks that are as they were when they were persisted, by file: none for a file that has none.
    Reverted(Vec<(Ino, Vec<u32>)>),
    /// Part of the inodes that have an attribute.
    WithXattr {
        /// The inodes.
        inos: Vec<Ino>,
        /// The last attribute looked at; `None`: there are no more.
        last: Option<(Ino, Vec<u8>)>,
    },
}

/// Counts of the whole file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Statfs {
    /// Inodes that exist.
    pub inodes: u64,
    /// Bytes of all files, without holes.
    pub bytes: u64,
}

/// What the coordinator does about the history in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryState {
    /// Nothing: it was given no bucket.
    #[default]
    Off,
    /// It has not reached the bucket yet since its start.
    Claiming,
    /// It writes the log there.
    Shipping,
    /// Never again in this run: somebody else writes this history, or the bucket has another one.
    Stopped,
}

/// How far the history in the bucket is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HistoryStatus {
    /// What the coordinator does about it.
    pub state: HistoryState,
    /// Number of the file system; the objects of the history carry it.
    pub file_system: u64,
    /// The last record of the log.
    pub log_position: u64,
    /// The last record that is in the bucket.
    pub shipped_position: u64,
    /// The last record of the last whole snapshot in the bucket. An object that a record up to here dropped is named
    /// by nothing that could be rebuilt.
    pub snapshot_position: u64,
    /// How long the oldest record that is not in the bucket has been waiting, ms; `None` when there is none.
    pub lag_ms: Option<u64>,
    /// Why it is stopped, or why the last write to the bucket failed.
    pub error: Option<String>,
    /// The inode that was asked about, with its path and cloud refs, is in the bucket as it is now.
    pub is_covered: bool,
}

/// The answer, with what else the asker may now know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NsReply {
    /// What came of it.
    pub result: Result<NsAnswer, Errno>,
    /// New attributes of every inode a change touched, parents included (of those that still exist).
    pub touched: Vec<Attr>,
    /// The log position that holds the change (0 for reads).
    pub log_position: u64,
    /// How long what is told here may be cached, ms from when the request was sent; `None`: until revoked.
    pub lease_ms: Option<u32>,
}
