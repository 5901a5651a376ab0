//! Keys of the state. Each table is one letter; numbers are big-endian, so that keys sort as numbers do.
//!
//! ```text
//!  a ino                    Attr
//!  s ino                    target of a symbolic link, raw
//!  d ino(dir) name          Dirent: inode, kind, cookie
//!  c ino(dir) cookie        Listed: name, inode, kind
//!  p ino ino(dir) name      (empty): a link to the inode, for paths and `..`
//!  r ino first              Run without `first`: (count, version, valid)
//!  x ino name               value of an extended attribute, raw
//!  f ino index version      CloudRef
//!  o ino                    (empty): an inode without a name
//!  g number                 key of an object to delete, raw
//!  u client seq             NsReply of a change
//!  w client                 position at which the client was last noted
//!  m                        Counters
//! ```

use fastcache_api::{Ino, Version};

pub(crate) const ATTR: u8 = b'a';
pub(crate) const SYMLINK: u8 = b's';
pub(crate) const DIRENT: u8 = b'd';
pub(crate) const COOKIE: u8 = b'c';
pub(crate) const PARENT: u8 = b'p';
pub(crate) const RUN: u8 = b'r';
pub(crate) const XATTR: u8 = b'x';
pub(crate) const CLOUD: u8 = b'f';
pub(crate) const ORPHAN: u8 = b'o';
pub(crate) const GARBAGE: u8 = b'g';
pub(crate) const REPLY: u8 = b'u';
pub(crate) const CLIENT: u8 = b'w';
pub(crate) const COUNTERS: &[u8] = b"m";

/// `table number`.
pub(crate) fn key(table: u8, number: u64) -> Vec<u8> {
    let mut k = Vec::with_capacity(9 + 24);
    k.push(table);
    k.extend_from_slice(&number.to_be_bytes());
    k
}

/// `table number number`.
pub(crate) fn key2(table: u8, a: u64, b: u64) -> Vec<u8> {
    let mut k = key(table, a);
    k.extend_from_slice(&b.to_be_bytes());
    k
}

/// `table ino name`.
pub(crate) fn named(table: u8, ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut k = key(table, ino.0);
    k.extend_from_slice(name);
    k
}

/// A link of an inode.
pub(crate) fn parent(ino: Ino, dir: Ino, name: &[u8]) -> Vec<u8> {
    let mut k = key2(PARENT, ino.0, dir.0);
    k.extend_from_slice(name);
    k
}

/// A run of a layout.
pub(crate) fn run(ino: Ino, first: u32) -> Vec<u8> {
    let mut k = key(RUN, ino.0);
    k.extend_from_slice(&first.to_be_bytes());
    k
}

/// A cloud ref, or with `version` 0 the first of a chunk.
pub(crate) fn cloud(ino: Ino, index: u32, version: Version) -> Vec<u8> {
    let mut k = key(CLOUD, ino.0);
    k.extend_from_slice(&index.to_be_bytes());
    k.extend_from_slice(&version.0.to_be_bytes());
    k
}

/// The first key after all that start with `prefix` (which never ends in 0xff all over: it starts with a letter).
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut k = prefix.to_vec();
    while let Some(last) = k.pop() {
        if last < 0xff {
            k.push(last + 1);
            break;
        }
    }
    k
}

/// The big-endian number at `at`.
pub(crate) fn u64_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

/// The big-endian number at `at`.
pub(crate) fn u32_at(key: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(at..at + 4)?.try_into().ok()?))
}
