//! Namespace operations: what a node asks of the coordinator, and what it is told.
//!
//! Names are bytes (1 to 255, no `/`, no NUL). All sizes and offsets are bytes. Permission checks by
//! user and group are the kernel's (`default_permissions`); the rules of the tree are the coordinator's.

mod answer;
mod contents;
mod inode;

pub use answer::*;
pub use contents::*;
pub use inode::*;

use crate::{Ino, OpId, Time, Version};
use serde::{Deserialize, Serialize};

/// Longest name of a directory entry, bytes (POSIX NAME_MAX).
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, bytes (PATH_MAX - 1).
pub const SYMLINK_MAX: usize = 4095;
/// The extended attribute of a file whose chunks no node evicts; its value says nothing.
pub const PIN_XATTR: &[u8] = b"user.fastcache.pin";
/// Longest value of an extended attribute, bytes (Linux XATTR_SIZE_MAX).
pub const XATTR_VALUE_MAX: usize = 65536;
/// Longest name of an extended attribute, bytes (Linux XATTR_NAME_MAX).
pub const XATTR_NAME_MAX: usize = 255;
/// Most bytes of the names of one inode's extended attributes, each with its NUL (Linux XATTR_LIST_MAX): more could
/// not be listed.
pub const XATTR_LIST_MAX: usize = 65536;
/// Most bytes of one inode's extended attributes, names and values: they are read and written as one by backups.
pub const XATTR_TOTAL_MAX: usize = 1 << 20;
/// Most links to one inode.
pub const LINK_MAX: u32 = 1_000_000;
/// Largest file, bytes: 2^32 chunks would be more, but offsets are signed 64-bit in the kernel.
pub const FILE_SIZE_MAX: u64 = 1 << 50;

/// How a rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it (rename(2)).
    Replace,
    /// Fail with EEXIST (RENAME_NOREPLACE).
    NoReplace,
    /// Swap both (RENAME_EXCHANGE); ENOENT when there is no target.
    Exchange,
}

/// How an extended attribute treats an existing value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// EEXIST if it exists (XATTR_CREATE).
    Create,
    /// ENODATA if it does not (XATTR_REPLACE).
    Replace,
}

/// An operation of the namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NsOp {
    // ---- reads ----
    /// Find a name. Answer: `Entry`; ENOENT, ENOTDIR. `..` of a directory is found, too.
    Lookup {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Attributes. Answer: `Attr`.
    GetAttr {
        /// Inode.
        ino: Ino,
    },
    /// A file's attributes and whole layout. Answer: `Opened`.
    Open {
        /// Inode.
        ino: Ino,
        /// Ask for the write lease, too.
        write: bool,
    },
    /// Target of a symbolic link. Answer: `Bytes`; EINVAL when it is none.
    Readlink {
        /// Inode.
        ino: Ino,
    },
    /// List a directory. Answer: `Dir`.
    Readdir {
        /// Directory.
        ino: Ino,
        /// Entries after this cookie; 0 or 2 for the first.
        after: u64,
        /// At most this many entries (1 to 4096).
        max: u32,
        /// With attributes.
        plus: bool,
    },
    /// Value of an extended attribute. Answer: `Bytes`; ENODATA.
    GetXattr {
        /// Inode.
        ino: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Names of the extended attributes. Answer: `Names`.
    ListXattr {
        /// Inode.
        ino: Ino,
    },
    /// Counts of the file system. Answer: `Statfs`.
    Statfs,
    /// Wait until everything acknowledged so far is on stable storage. Answer: `Done`.
    Sync,
    /// Cloud refs of a file's chunks, all or one version of one chunk. Answer: `CloudRefs`.
    CloudRefs {
        /// Inode.
        ino: Ino,
        /// Only this chunk and version.
        only: Option<(u32, Version)>,
    },
    /// Where a path leads from the root: names without `/`, symbolic links not followed. Answer: `Entry`.
    Resolve {
        /// The names, from the root.
        path: Vec<Vec<u8>>,
    },
    /// A path of an inode (one of them, where there are several links). Answer: `Bytes`, with `/` between names.
    PathOf {
        /// Inode.
        ino: Ino,
    },

    // ---- changes: each is a log record ----
    /// Make an inode with a name. `parent` of `None` makes an orphan (no name yet, see `LinkReplace`).
    /// Answer: `Entry`; EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG.
    Make {
        /// Directory and name.
        at: Option<(Ino, Vec<u8>)>,
        /// What it is to be.
        new: NewInode,
    },
    /// Change attributes. Answer: `Attr`.
    SetAttr {
        /// Inode.
        ino: Ino,
        /// The changes.
        set: SetAttr,
    },
    /// Remove a name that is not a directory's. Answer: `Unlinked`; EISDIR, ENOENT.
    Unlink {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Remove an empty directory. Answer: `Unlinked`; ENOTEMPTY, ENOTDIR, ENOENT.
    Rmdir {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Rename. Answer: `Unlinked` when a target was replaced, else `Done`.
    Rename {
        /// Old directory.
        parent: Ino,
        /// Old name.
        name: Vec<u8>,
        /// New directory.
        new_parent: Ino,
        /// New name.
        new_name: Vec<u8>,
        /// What happens to an existing target.
        mode: RenameMode,
    },
    /// A further name for an inode that is not a directory. Answer: `Entry`; EPERM for a directory.
    Link {
        /// Inode.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Give an orphan file made by `Make` its name, replacing a file of that name at once (REST PUT).
    /// Answer: `Unlinked` when something was replaced, else `Done`; EISDIR when the name is a directory's.
    LinkReplace {
        /// The orphan.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Set an extended attribute. Answer: `Done`; EEXIST, ENODATA by `mode`; ENOSPC when the inode would have more
    /// than [`XATTR_TOTAL_MAX`] or [`XATTR_LIST_MAX`].
    SetXattr {
        /// Inode.
        ino: Ino,
        /// Name.
        name: Vec<u8>,
        /// Value.
        value: Vec<u8>,
        /// What happens to an existing value.
        mode: XattrMode,
    },
    /// Remove an extended attribute. Answer: `Done`; ENODATA.
    RemoveXattr {
        /// Inode.
        ino: Ino,
        /// Name.
        name: Vec<u8>,
    },
    /// Commit a file's new contents. Answer: `Attr`; ESTALE when `base` is not the inode's layout version,
    /// ENOENT when the inode is gone.
    Commit(Commit),
    /// Chunks are in the object store. Refs of chunks that no layout names (yet) are kept with the inode.
    /// Answer: `Done`. Inodes that are gone are skipped, and their objects queued for deletion.
    Persisted {
        /// The chunks.
        chunks: Vec<PersistedChunk>,
    },
    /// These orphans are open nowhere: drop them. Answer: `Done`. Inodes with links are left alone.
    Reap {
        /// Inodes.
        inos: Vec<Ino>,
    },
    /// Drop every orphan but these (a data plane that started knows what it has open). Answer: `Done`.
    ReapAllBut {
        /// Inodes that are still open.
        open: Vec<Ino>,
    },
    /// A range of versions of one's own. Answer: `Versions`.
    AllocVersions {
        /// How many.
        count: u32,
    },
    /// Take up to `max` objects off the deletion queue whose inode or version is gone for good.
    /// Answer: `Garbage`. The objects are to be deleted then; they are forgotten here.
    TakeGarbage {
        /// At most this many.
        max: u32,
        /// Only numbers up to this. The coordinator lowers it to what a snapshot in the bucket covers.
        upto: u64,
    },

    // ---- the whole, for `gc` and `fsck`; here because the order of operations is the format of the log ----
    /// Check the inodes after one, in order of their numbers; the first page also looks for orphans that are no
    /// inodes. A read. Answer: `Audit`.
    Audit {
        /// After this inode; 0 for the first.
        after: Ino,
        /// At most this many (1 to 1024).
        max: u32,
    },
    /// Cloud refs of all inodes, in order of their chunk keys. A read. Answer: `AllRefs`.
    AllRefs {
        /// After this chunk.
        after: Option<crate::ChunkKey>,
        /// At most this many (1 to 10,000).
        max: u32,
    },
    /// Objects that wait in the deletion queue, and stay there. A read. Answer: `QueuedGarbage`.
    QueuedGarbage {
        /// After this number; 0 for the first.
        after: u64,
        /// At most this many (1 to 10,000).
        max: u32,
    },
    /// Objects of chunk versions that no layout names: their refs are dropped where there are any, and they go to the
    /// deletion queue. Those whose version a layout names are left alone. A change. Answer: `Discarded`.
    Discard {
        /// Each chunk with its object.
        objects: Vec<(crate::ChunkKey, String)>,
    },

    // ---- the history in the bucket ----
    /// An epoch begins: the first record of every start of a coordinator, made by itself and refused from anybody
    /// else. The first one of all makes the root.
    Begin {
        /// Number of the file system; the first one given stays.
        file_system: u64,
    },
    /// How far the history in the bucket is, and whether it covers an inode. A read. Answer: `History`.
    History {
        /// The inode, and with it the directories its path leads through.
        ino: Option<Ino>,
    },
    /// Wait until the log is in the bucket up to a position. A read. Answer: `History`, also when that is not so
    /// after 5 s, or cannot be: the caller looks, and asks again.
    Persist {
        /// The position; 0: everything acknowledged so far.
        upto: u64,
    },

    // ---- under a condition (REST `If-Match`): the check and the change are one ----
    /// [`NsOp::LinkReplace`] when the name is what is expected, else ESTALE. A change.
    LinkReplaceIf {
        /// The orphan.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
        /// The inode and layout version the name has to lead to; `None`: there must be no such name.
        expected: Option<(Ino, Version)>,
    },
    /// [`NsOp::Unlink`] when the name is what is expected, else ESTALE. A change.
    UnlinkIf {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Vec<u8>,
        /// The inode and layout version the name has to lead to.
        expected: (Ino, Version),
    },

    // ---- chunks that were lost before they were uploaded ----
    /// Spares, in order of inode and chunk: what a chunk was when it was last persisted, where what it is now is not. A
    /// read. Answer: `Spares`.
    Spares {
        /// After this chunk.
        after: Option<crate::ChunkId>,
        /// At most this many (1 to 10,000).
        max: u32,
    },
    /// These chunk versions are nowhere: where a layout names one of them, without a cloud ref and with a spare, it names
    /// the spare again. A change. Answer: `Reverted`. Only whoever knows that no device has them may ask for it.
    Revert {
        /// The lost versions.
        chunks: Vec<crate::ChunkKey>,
    },

    // ---- by attribute ----
    /// Inodes that have an extended attribute of this name, in order of their numbers. A read. Answer: `WithXattr`.
    WithXattr {
        /// The name.
        name: Vec<u8>,
        /// After this attribute of this inode.
        after: Option<(Ino, Vec<u8>)>,
        /// Look at so many attributes at most (1 to 256).
        max: u32,
    },
}

impl NsOp {
    /// Whether it changes the namespace, and so is a log record and wants an [`OpId`].
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            NsOp::Lookup { .. }
                | NsOp::GetAttr { .. }
                | NsOp::Open { .. }
                | NsOp::Readlink { .. }
                | NsOp::Readdir { .. }
                | NsOp::GetXattr { .. }
                | NsOp::ListXattr { .. }
                | NsOp::Statfs
                | NsOp::Sync
                | NsOp::CloudRefs { .. }
                | NsOp::Resolve { .. }
                | NsOp::PathOf { .. }
                | NsOp::Audit { .. }
                | NsOp::AllRefs { .. }
                | NsOp::QueuedGarbage { .. }
                | NsOp::History { .. }
                | NsOp::Persist { .. }
                | NsOp::Spares { .. }
                | NsOp::WithXattr { .. }
        )
    }
}

/// A question to the namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NsRequest {
    /// Set for every change; a second request with the same id gets the first one's answer.
    pub id: Option<OpId>,
    /// The wall clock at the asker: what the change stamps.
    pub now: Time,
    /// The operation.
    pub op: NsOp,
}
