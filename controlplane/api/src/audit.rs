//! What `gc` and `fsck` are told of the namespace: every inode with what is wrong with it, every cloud ref.

use crate::{Attr, ChunkKey, CloudRef, Layout, Version};
use serde::{Deserialize, Serialize};

/// Something about an inode that cannot be, unless the namespace is damaged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flaw {
    /// For programs: `attributes`, `link_count`, `lost_name`, `dangling_name`, `orphan`,
    /// `unreachable`, `layout`, `symlink`, `spare`.
    pub code: String,
    /// For people.
    pub text: String,
}

/// One inode, checked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Audited {
    /// Its attributes.
    pub attr: Attr,
    /// Without a name, but still open somewhere or about to be reaped.
    pub is_orphan: bool,
    /// A file's contents; empty for anything else.
    pub layout: Layout,
    /// What is wrong with it; empty when it is sound.
    pub flaws: Vec<Flaw>,
}

/// Whether a cloud ref is of use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RefUse {
    /// The file's layout names this version.
    Named,
    /// The file exists, and its layout names another version or none: replaced, or uploaded ahead of its commit.
    Unnamed,
    /// There is no such inode: the namespace is damaged.
    NoInode,
    /// The spare of its chunk: what comes back if the version that the layout names is lost.
    Spare,
}

/// A cloud ref with its chunk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditedRef {
    /// The chunk.
    pub key: ChunkKey,
    /// Where its bytes are.
    pub at: CloudRef,
    /// Whether it is of use.
    pub used: RefUse,
}

/// What a chunk was when it was last persisted, while the version that the layout names is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spare {
    /// The version that the layout names.
    pub named: ChunkKey,
    /// The version that is in the object store.
    pub version: Version,
    /// Its valid bytes.
    pub valid: u32,
}
