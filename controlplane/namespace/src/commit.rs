//! Contents of files: layouts, cloud refs, and what is left to delete.
//!
//! A layout is stored run by run, and a commit reads and writes only the runs it can change: those that its own
//! runs and its truncation overlap, and one neighbour on each side, with which new runs may join.

use crate::change::{Applied, kill_suid};
use crate::store::{Order, Store};
use crate::tx::{Tx, decode, encode, get_attr, scan_all, scan_range};
use crate::{NsError, Result, keys};
use fastcache_api::{
    Attr, CloudRef, Commit, Errno, FILE_SIZE_MAX, Ino, Kind, Layout, NsAnswer, PersistedChunk, Run,
    Version,
};
use std::collections::BTreeMap;

fn run_of(key: &[u8], value: &[u8]) -> Result<Run> {
    let first = keys::u32_at(key, 9)
        .ok_or_else(|| NsError::Damaged("the key of a run cannot be decoded".into()))?;
    let (count, version, valid): (u32, Version, u32) = decode(value, "a run")?;
    Ok(Run { first, count, version, valid })
}

/// Chunk index and version of a cloud ref's key.
pub(crate) fn cloud_key(key: &[u8]) -> Result<(u32, Version)> {
    match (keys::u32_at(key, 9), keys::u64_at(key, 13)) {
        (Some(index), Some(version)) => Ok((index, Version(version))),
        _ => Err(NsError::Damaged("the key of a cloud ref cannot be decoded".into())),
    }
}

/// The whole layout of a file.
pub(crate) fn layout<S: Store + ?Sized>(store: &S, ino: Ino) -> Result<Layout> {
    let mut runs = Vec::new();
    for (key, value) in scan_all(store, &keys::key(keys::RUN, ino.0))? {
        runs.push(run_of(&key, &value)?);
    }
    Ok(Layout { runs })
}

/// The runs that touch the chunks `lo..=hi`, with a neighbour on each side.
fn window<S: Store + ?Sized>(store: &S, ino: Ino, lo: u32, hi: u32) -> Result<Layout> {
    let start = keys::run(ino, 0);
    let mut runs = Vec::new();
    // The last two that begin before `lo`: one may reach into it, and one may end just before.
    for (key, value) in store.scan(&start, &keys::run(ino, lo), Order::Down, 2)? {
        runs.push(run_of(&key, &value)?);
    }
    runs.reverse();
    let end = match hi.checked_add(2) {
        Some(end) => keys::run(ino, end),
        None => keys::after(&keys::key(keys::RUN, ino.0)),
    };
    for (key, value) in scan_range(store, keys::run(ino, lo), &end)? {
        runs.push(run_of(&key, &value)?);
    }
    Ok(Layout { runs })
}

fn check(commit: &Commit, attr: &Attr) -> Result<()> {
    match attr.kind {
        Kind::File => {}
        Kind::Dir => return Err(Errno::EISDIR.into()),
        _ => return Err(Errno::EINVAL.into()),
    }
    if commit.size > FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    let is_run = |r: &Run| {
        r.count > 0
            && r.first.checked_add(r.count - 1).is_some_and(|last| last < u32::MAX)
            && (r.version == Version::NONE || (1..=attr.chunk_size).contains(&r.valid))
    };
    if commit.version == Version::NONE
        || commit.mtime.nsec >= 1_000_000_000
        || !commit.runs.iter().all(is_run)
    {
        return Err(Errno::EINVAL.into());
    }
    Ok(())
}

pub(crate) fn commit<S: Store + ?Sized>(tx: &mut Tx<'_, S>, commit: &Commit) -> Result<Applied> {
    let mut attr = tx.attr(commit.ino)?;
    check(commit, &attr)?;
    if attr.layout_version == commit.version {
        return Ok(Applied { answer: NsAnswer::Attr(attr), given: 0, is_known: true });
    }
    if attr.layout_version != commit.base {
        return Err(Errno::ESTALE.into());
    }
    let ino = commit.ino;
    // A truncation changes the chunk that holds the new end and all after it.
    let cut = commit.truncate.and_then(|size| {
        u32::try_from(size / u64::from(attr.chunk_size)).ok().map(|index| (index, u32::MAX))
    });
    let laid = commit.runs.iter().map(|r| (r.first, r.first + (r.count - 1)));
    let span = laid.chain(cut).reduce(|(a, b), (c, d)| (a.min(c), b.max(d)));
    if let Some((lo, hi)) = span {
        let old = window(&tx.over, ino, lo, hi)?;
        let mut new = old.clone();
        if let Some(size) = commit.truncate {
            new.truncate(size, attr.chunk_size);
        }
        new.lay(&commit.runs, attr.chunk_size);
        write_runs(tx, ino, &old, &new)?;
        drop_refs(tx, &attr, (lo, hi), &old, &new)?;
    }
    tx.counters.statfs.bytes =
        (tx.counters.statfs.bytes + commit.size).saturating_sub(attr.size);
    attr.size = commit.size;
    attr.mtime = commit.mtime;
    attr.ctime = tx.now;
    attr.layout_version = commit.version;
    if commit.kill_suid {
        kill_suid(&mut attr);
    }
    tx.put_attr(attr)?;
    Ok(NsAnswer::Attr(tx.attr(ino)?).into())
}

/// Writes the runs in which two windows differ.
fn write_runs<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    ino: Ino,
    old: &Layout,
    new: &Layout,
) -> Result<()> {
    let was: BTreeMap<u32, &Run> = old.runs.iter().map(|r| (r.first, r)).collect();
    let is: BTreeMap<u32, &Run> = new.runs.iter().map(|r| (r.first, r)).collect();
    for first in was.keys().filter(|first| !is.contains_key(first)) {
        tx.over.remove(keys::run(ino, *first));
    }
    for (first, run) in is {
        if was.get(&first) != Some(&run) {
            tx.over.put(keys::run(ino, first), encode(&(run.count, run.version, run.valid))?);
        }
    }
    Ok(())
}

/// Queues the objects of chunks that the old layout named and the new one does not. Refs that neither names are
/// kept: their chunk may have been uploaded before its commit came. They go with the inode.
fn drop_refs<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    attr: &Attr,
    (lo, hi): (u32, u32),
    old: &Layout,
    new: &Layout,
) -> Result<()> {
    let from = keys::cloud(attr.ino, lo, Version::NONE);
    let to = match hi.checked_add(1) {
        Some(end) => keys::cloud(attr.ino, end, Version::NONE),
        None => keys::after(&keys::key(keys::CLOUD, attr.ino.0)),
    };
    for (key, value) in scan_range(&tx.over, from, &to)? {
        let (index, version) = cloud_key(&key)?;
        let named = |l: &Layout| l.chunk(index, attr.chunk_size).map(|(v, _)| v) == Some(version);
        if named(old) && !named(new) {
            let at: CloudRef = decode(&value, "a cloud ref")?;
            tx.over.remove(key);
            tx.discard_object(&at.object);
        }
    }
    Ok(())
}

pub(crate) fn persisted<S: Store + ?Sized>(
    tx: &mut Tx<'_, S>,
    chunks: &[PersistedChunk],
) -> Result<NsAnswer> {
    for PersistedChunk { key, at } in chunks {
        match get_attr(&tx.over, key.ino) {
            Ok(_) => {}
            Err(NsError::Rule(_)) => {
                tx.discard_object(&at.object);
                continue;
            }
            Err(e) => return Err(e),
        }
        let place = keys::cloud(key.ino, key.index, key.version);
        if let Some(bytes) = tx.over.get(&place)? {
            let before: CloudRef = decode(&bytes, "a cloud ref")?;
            if before.object != at.object {
                tx.discard_object(&before.object);
            }
        }
        tx.over.put(place, encode(at)?);
    }
    Ok(NsAnswer::Done)
}

/// Drops an orphan with all it has. Inodes with names, and unknown ones, are left alone.
pub(crate) fn reap<S: Store + ?Sized>(tx: &mut Tx<'_, S>, ino: Ino) -> Result<()> {
    let orphan = keys::key(keys::ORPHAN, ino.0);
    if tx.over.get(&orphan)?.is_none() {
        return Ok(());
    }
    let attr = tx.attr(ino)?;
    for (key, value) in scan_all(&tx.over, &keys::key(keys::CLOUD, ino.0))? {
        let at: CloudRef = decode(&value, "a cloud ref")?;
        tx.over.remove(key);
        tx.discard_object(&at.object);
    }
    for table in [keys::RUN, keys::XATTR] {
        for (key, _) in scan_all(&tx.over, &keys::key(table, ino.0))? {
            tx.over.remove(key);
        }
    }
    tx.over.remove(keys::key(keys::SYMLINK, ino.0));
    tx.over.remove(keys::key(keys::ATTR, ino.0));
    tx.over.remove(orphan);
    tx.counters.statfs.inodes = tx.counters.statfs.inodes.saturating_sub(1);
    if attr.kind == Kind::File {
        tx.counters.statfs.bytes = tx.counters.statfs.bytes.saturating_sub(attr.size);
    }
    Ok(())
}
