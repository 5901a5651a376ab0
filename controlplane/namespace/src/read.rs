//! The operations that change nothing.

use crate::store::{Order, Store};
use crate::tx::{Listed, a_link, decode, get_attr, get_dir, get_dirent, scan_all};
use crate::{NsError, Result, commit, counters, keys};
use fastcache_api::{Attr, DirEntry, Errno, Ino, Kind, NAME_MAX, NsAnswer, NsOp, Version};

/// Most entries of one answer to `Readdir`.
const READDIR_MAX: u32 = 4096;

/// Answers an operation from the state. EINVAL for one that changes something.
pub fn read<S: Store + ?Sized>(store: &S, op: &NsOp) -> Result<NsAnswer> {
    match op {
        NsOp::Lookup { parent, name } => lookup(store, *parent, name).map(NsAnswer::Entry),
        NsOp::GetAttr { ino } => get_attr(store, *ino).map(NsAnswer::Attr),
        NsOp::Open { ino, .. } => {
            let attr = get_attr(store, *ino)?;
            match attr.kind {
                Kind::File => {
                    let layout = commit::layout(store, *ino)?;
                    Ok(NsAnswer::Opened { attr, layout })
                }
                Kind::Dir => Err(Errno::EISDIR.into()),
                _ => Err(Errno::EINVAL.into()),
            }
        }
        NsOp::Readlink { ino } => match store.get(&keys::key(keys::SYMLINK, ino.0))? {
            Some(target) => Ok(NsAnswer::Bytes(target)),
            None => {
                get_attr(store, *ino)?;
                Err(Errno::EINVAL.into())
            }
        },
        NsOp::Readdir { ino, after, max, plus } => readdir(store, *ino, *after, *max, *plus),
        NsOp::GetXattr { ino, name } => match store.get(&keys::named(keys::XATTR, *ino, name))? {
            Some(value) => Ok(NsAnswer::Bytes(value)),
            None => {
                get_attr(store, *ino)?;
                Err(Errno::ENODATA.into())
            }
        },
        NsOp::ListXattr { ino } => {
            get_attr(store, *ino)?;
            let pairs = scan_all(store, &keys::key(keys::XATTR, ino.0))?;
            Ok(NsAnswer::Names(pairs.into_iter().map(|(k, _)| k[9..].to_vec()).collect()))
        }
        NsOp::Statfs => Ok(NsAnswer::Statfs(counters(store)?.statfs)),
        NsOp::Sync => Ok(NsAnswer::Done),
        NsOp::CloudRefs { ino, only } => cloud_refs(store, *ino, *only),
        NsOp::Resolve { path } => {
            let mut at = get_attr(store, Ino::ROOT)?;
            for name in path {
                at = lookup(store, at.ino, name)?;
            }
            Ok(NsAnswer::Entry(at))
        }
        NsOp::PathOf { ino } => path_of(store, *ino).map(NsAnswer::Bytes),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn lookup<S: Store + ?Sized>(store: &S, parent: Ino, name: &[u8]) -> Result<Attr> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if let Some(entry) = get_dirent(store, parent, name)? {
        return match get_attr(store, entry.ino) {
            Err(NsError::Rule(_)) => {
                Err(NsError::Damaged(format!("{} is listed and does not exist", entry.ino)))
            }
            other => other,
        };
    }
    let dir = get_dir(store, parent)?;
    match name {
        b"." => Ok(dir),
        b".." if parent == Ino::ROOT => Ok(dir),
        b".." => match a_link(store, parent)? {
            Some((up, _)) => get_attr(store, up),
            None => Err(Errno::ENOENT.into()),
        },
        _ => Err(Errno::ENOENT.into()),
    }
}

fn readdir<S: Store + ?Sized>(
    store: &S,
    ino: Ino,
    after: u64,
    max: u32,
    plus: bool,
) -> Result<NsAnswer> {
    get_dir(store, ino)?;
    let max = max.clamp(1, READDIR_MAX) as usize;
    let from = keys::key2(keys::COOKIE, ino.0, after.saturating_add(1));
    let to = keys::after(&keys::key(keys::COOKIE, ino.0));
    // One more than asked for tells whether this is the end.
    let mut pairs = store.scan(&from, &to, Order::Up, max + 1)?;
    let is_end = pairs.len() <= max;
    pairs.truncate(max);
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let Listed { name, ino, kind } = decode(&value, "a directory entry")?;
        let cookie = keys::u64_at(&key, 9)
            .ok_or_else(|| NsError::Damaged("a cookie cannot be decoded".into()))?;
        let attr = if plus { Some(get_attr(store, ino)?) } else { None };
        entries.push(DirEntry { name, ino, kind, cookie, attr });
    }
    Ok(NsAnswer::Dir { entries, is_end })
}

fn cloud_refs<S: Store + ?Sized>(
    store: &S,
    ino: Ino,
    only: Option<(u32, Version)>,
) -> Result<NsAnswer> {
    if let Some((index, version)) = only {
        let found = store.get(&keys::cloud(ino, index, version))?;
        return Ok(NsAnswer::CloudRefs(match found {
            Some(bytes) => vec![(index, version, decode(&bytes, "a cloud ref")?)],
            None => Vec::new(),
        }));
    }
    let mut out = Vec::new();
    for (key, value) in scan_all(store, &keys::key(keys::CLOUD, ino.0))? {
        let (index, version) = commit::cloud_key(&key)?;
        out.push((index, version, decode(&value, "a cloud ref")?));
    }
    Ok(NsAnswer::CloudRefs(out))
}

fn path_of<S: Store + ?Sized>(store: &S, ino: Ino) -> Result<Vec<u8>> {
    get_attr(store, ino)?;
    let mut names = Vec::new();
    let mut at = ino;
    while at != Ino::ROOT {
        let (up, name) = a_link(store, at)?.ok_or(Errno::ENOENT)?;
        names.push(name);
        at = up;
    }
    names.reverse();
    Ok(names.join(&b'/'))
}
