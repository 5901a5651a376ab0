//! The tables: one letter, then big-endian numbers, so that keys sort as their numbers do.
//!
//! | table | key | value |
//! |---|---|---|
//! | `a` | inode | [`Attr`](fastcache_api::Attr) |
//! | `s` | inode | target of a symbolic link |
//! | `d` | directory, name | [`Dirent`](crate::state::Dirent) |
//! | `c` | directory, cookie | name, inode, kind: the order of listings |
//! | `p` | inode, directory, name | nothing: which names an inode has |
//! | `l` | inode | [`Layout`](fastcache_api::Layout) |
//! | `x` | inode, name | value of an extended attribute |
//! | `r` | inode, chunk index, version | [`CloudRef`](fastcache_api::CloudRef) |
//! | `k` | inode, chunk index | version and valid bytes of the [spare](crate::contents) |
//! | `t` | inode | the layout versions before and after the last revert |
//! | `o` | inode | nothing: orphans |
//! | `g` | number | object key to delete |
//! | `q` | client, sequence number | the reply that was given |
//! | `m` | nothing | [`Counters`](crate::state::Counters) |
//! | `f` | nothing | number of the file system |

use fastcache_api::{Ino, OpId, Version};

fn key(table: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
    let mut k = Vec::with_capacity(1 + numbers.len() * 8 + rest.len());
    k.push(table);
    for n in numbers {
        k.extend_from_slice(&n.to_be_bytes());
    }
    k.extend_from_slice(rest);
    k
}

pub(crate) fn attr(ino: Ino) -> Vec<u8> {
    key(b'a', &[ino.0], &[])
}
pub(crate) fn target(ino: Ino) -> Vec<u8> {
    key(b's', &[ino.0], &[])
}
pub(crate) fn dirent(parent: Ino, name: &[u8]) -> Vec<u8> {
    key(b'd', &[parent.0], name)
}
pub(crate) fn cookie(parent: Ino, cookie: u64) -> Vec<u8> {
    key(b'c', &[parent.0, cookie], &[])
}
pub(crate) fn cookies(parent: Ino) -> Vec<u8> {
    key(b'c', &[parent.0], &[])
}
pub(crate) fn dirents(parent: Ino) -> Vec<u8> {
    key(b'd', &[parent.0], &[])
}
pub(crate) fn link(ino: Ino, parent: Ino, name: &[u8]) -> Vec<u8> {
    key(b'p', &[ino.0, parent.0], name)
}
pub(crate) fn links(ino: Ino) -> Vec<u8> {
    key(b'p', &[ino.0], &[])
}
pub(crate) fn layout(ino: Ino) -> Vec<u8> {
    key(b'l', &[ino.0], &[])
}
pub(crate) fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    key(b'x', &[ino.0], name)
}
pub(crate) fn xattrs() -> Vec<u8> {
    vec![b'x']
}
pub(crate) fn attrs() -> Vec<u8> {
    vec![b'a']
}
pub(crate) fn all_cloud_refs() -> Vec<u8> {
    vec![b'r']
}
pub(crate) fn cloud_refs(ino: Ino) -> Vec<u8> {
    key(b'r', &[ino.0], &[])
}
pub(crate) fn cloud_refs_of(ino: Ino, index: u32) -> Vec<u8> {
    let mut k = cloud_refs(ino);
    k.extend_from_slice(&index.to_be_bytes());
    k
}
pub(crate) fn cloud_ref(ino: Ino, index: u32, version: Version) -> Vec<u8> {
    let mut k = cloud_refs_of(ino, index);
    k.extend_from_slice(&version.0.to_be_bytes());
    k
}
pub(crate) fn spare(ino: Ino, index: u32) -> Vec<u8> {
    key(b'k', &[ino.0], &index.to_be_bytes())
}
pub(crate) fn spares(ino: Ino) -> Vec<u8> {
    key(b'k', &[ino.0], &[])
}
pub(crate) fn all_spares() -> Vec<u8> {
    vec![b'k']
}
pub(crate) fn reverted(ino: Ino) -> Vec<u8> {
    key(b't', &[ino.0], &[])
}
pub(crate) fn orphan(ino: Ino) -> Vec<u8> {
    key(b'o', &[ino.0], &[])
}
pub(crate) fn orphans() -> Vec<u8> {
    vec![b'o']
}
pub(crate) fn garbage(number: u64) -> Vec<u8> {
    key(b'g', &[number], &[])
}
pub(crate) fn all_garbage() -> Vec<u8> {
    vec![b'g']
}
pub(crate) fn reply(id: OpId) -> Vec<u8> {
    key(b'q', &[id.client, id.seq], &[])
}
pub(crate) fn counters() -> Vec<u8> {
    vec![b'm']
}
pub(crate) fn layouts() -> Vec<u8> {
    vec![b'l']
}
pub(crate) fn file_system() -> Vec<u8> {
    vec![b'f']
}

/// Chunk index and version at the end of a cloud ref's key.
pub(crate) fn parse_cloud_ref(key: &[u8]) -> Option<(u32, Version)> {
    let tail = key.get(9..)?;
    let index = u32::from_be_bytes(*tail.first_chunk::<4>()?);
    let version = u64::from_be_bytes(*tail.get(4..)?.first_chunk::<8>()?);
    Some((index, Version(version)))
}

/// Chunk index at the end of a spare's key.
pub(crate) fn parse_spare(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*key.get(9..)?.first_chunk::<4>()?))
}

/// Inode and name of an extended attribute's key.
pub(crate) fn parse_xattr(key: &[u8]) -> Option<(Ino, &[u8])> {
    Some((Ino(number_at(key, 1)?), key.get(9..)?))
}

/// The number behind the first `skip` bytes of a key.
pub(crate) fn number_at(key: &[u8], skip: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*key.get(skip..)?.first_chunk::<8>()?))
}
