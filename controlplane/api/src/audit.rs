//! What `gc` and `fsck` are told of the namespace: every inode with what is wrong with it, every cloud ref.

use crate::{Attr, ChunkKey, CloudRef, Layout};
use serde::{Deserialize, Serialize};

/// Something about an inode that cannot be, unless the namespace is damaged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flaw {
    /// For programs: `attributes`, `link_count`, `lost_name`, `dangling_name`, `orphan`,
    /// `unreachable`, `layout`, `symlink`.
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
