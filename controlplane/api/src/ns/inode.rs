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
