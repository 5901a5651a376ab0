//! Inodes and their names: what they are, and how they are made and changed.

use crate::{Ino, Time, Version};
use serde::{Deserialize, Serialize};

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
    /// Bytes of a file that are not holes, in whole blocks ([`Layout::allocated`](super::Layout::allocated)); else 0.
    pub allocated: u64,
    /// Last access, as set by utimens or creation (reads do not update it).
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Bytes of one chunk of this file; fixed when it was created. A multiple of 4096.
    pub chunk_size: u32,
    /// The version of the layout: what the last [`NsOp::Commit`](super::NsOp::Commit) set; `Version::NONE` before the first.
    pub layout_version: Version,
    /// The log position of the last change of this inode; a later one is newer. Never 0.
    pub seq: u64,
}

/// One directory entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
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

/// Who makes a new inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cred {
    /// Owner of what is made.
    pub uid: u32,
    /// Group of what is made, unless its directory has the setgid bit.
    pub gid: u32,
}

/// Attribute changes; `None` leaves a thing as it is. The size is not here: it belongs to [`NsOp::Commit`](super::NsOp::Commit).
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
