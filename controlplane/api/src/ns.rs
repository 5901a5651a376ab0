//! Namespace operations: what a node asks of the coordinator, and what it is told.
//!
//! Names are bytes (1 to 255, no `/`, no NUL). All sizes and offsets are bytes. Permission checks by
//! user and group are the kernel's (`default_permissions`); the rules of the tree are the coordinator's.

use crate::{Errno, Ino, OpId, Time, Version};
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

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// Attributes of an inode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky (mask 0o7777).
    pub mode: u32,
    /// Number of hard links (for a directory 2 + its subdirectories).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for Char and Block, as the kernel encodes it (new_encode_dev).
    pub rdev: u32,
    /// Bytes. For a symbolic link the length of its target.
    pub size: u64,
    /// Bytes of a file that are not holes, in whole blocks ([`Layout::allocated`]); else 0.
    pub allocated: u64,
    /// Last access, as set by utimens or creation (reads do not update it).
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Bytes of one chunk of this file; fixed when it was created. A multiple of 4096.
    pub chunk_size: u32,
    /// The version of the layout: what the last [`NsOp::Commit`] set; `Version::NONE` before the first.
    pub layout_version: Version,
    /// The log position of the last change of this inode; a later one is newer. Never 0.
    pub seq: u64,
}

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

/// One directory entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
    #[serde(with = "in_one_piece")]
    pub name: Vec<u8>,
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Where a listing goes on after this entry. Cookies are unique in a directory for ever and at least 3
    /// (1 and 2 are `.` and `..`, which the coordinator does not list).
    pub cookie: u64,
    /// Attributes, when the listing asked for them.
    pub attr: Option<Attr>,
}

/// Bytes that travel as a sequence of bytes does, and are not encoded and decoded one by one.
mod in_one_piece {
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};
    use std::fmt;

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        from.deserialize_bytes(Bytes)
    }
}

/// Who makes a new inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cred {
    /// Owner of what is made.
    pub uid: u32,
    /// Group of what is made, unless its directory has the setgid bit.
    pub gid: u32,
}

/// Attribute changes; `None` leaves a thing as it is. The size is not here: it belongs to [`NsOp::Commit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits (0o7777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Change time; `None` takes the operation's time.
    pub ctime: Option<Time>,
    /// Clear setuid, and setgid where the group may execute (a write or chown by someone without privilege).
    pub kill_suid: bool,
}

/// What a new inode is to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewInode {
    /// What it is.
    pub kind: Kind,
    /// Permission bits; the umask is already applied.
    pub mode: u32,
    /// Device number for Char and Block, else 0.
    pub rdev: u32,
    /// Owner and group.
    pub cred: Cred,
    /// Target, for a symbolic link; else empty.
    pub target: Vec<u8>,
    /// Bytes of a chunk, for a file; else 0.
    pub chunk_size: u32,
}

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

/// Counts of the whole file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Statfs {
    /// Inodes that exist.
    pub inodes: u64,
    /// Bytes of all files, without holes.
    pub bytes: u64,
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_travels_as_a_sequence_of_bytes() {
        let entry = DirEntry {
            name: vec![b'x'; 200],
            ino: Ino(7),
            kind: Kind::Fifo,
            cookie: 9,
            attr: None,
        };
        let bytes = postcard::to_stdvec(&entry).unwrap();
        let one_by_one = (
            &entry.name,
            entry.ino,
            entry.kind,
            entry.cookie,
            &entry.attr,
        );
        assert_eq!(bytes, postcard::to_stdvec(&one_by_one).unwrap());
        assert_eq!(postcard::from_bytes::<DirEntry>(&bytes).unwrap(), entry);
        assert!(postcard::from_bytes::<DirEntry>(&bytes[..100]).is_err());
    }
}
