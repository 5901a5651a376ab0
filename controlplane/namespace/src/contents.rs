//! What files contain: commits, objects of chunks, and the spares that bring a lost chunk back.
//!
//! A chunk that is in the object store and is written again has its old version there until the new one is. That one is
//! the chunk's *spare*: its cloud ref stays, and the table of spares says which it is. So that a chunk whose new version
//! is lost with the device it was on can be what it was (`NsOp::Revert`), and is not an error.
//!
//! - There is a spare only where the layout names a version that has no cloud ref. When that one gets its ref, or the
//!   chunk goes, the spare goes to the deletion queue.
//! - A spare has a cloud ref, and is never the version that the layout names.
//! - Which version is the later one is not known of two numbers: it is the order of the commits that counts.
//! - What a truncation cut off inside a chunk does not come back: the spare's valid bytes shrink with the chunk's. A
//!   chunk that one commit cuts off and writes anew was replaced as a whole, as by any other write.

use crate::change::kill_suid;
use crate::keys;
use crate::kv::Kv;
use crate::state::{Done, Fault, SpareValue, State, decode};
use fastcache_api::{
    Attr, ChunkId, ChunkKey, CloudRef, Commit, Errno, FILE_SIZE_MAX, Ino, Kind, Layout, NsAnswer,
    PersistedChunk, Run, Spare, Time, Version,
};
use std::collections::BTreeMap;

/// Chunks of a commit that are looked up one by one for objects they replace; beyond, the file's objects are listed.
const LOOKUPS_MAX: u64 = 1024;
/// Most spares of a page.
const SPARES_MAX: u32 = 10_000;

/// A cloud ref with its chunk index and version.
type Ref = (u32, Version, CloudRef);

impl<K: Kv> State<'_, K> {
    pub(crate) fn commit(&mut self, commit: &Commit, now: Time) -> Done<NsAnswer> {
        let mut attr = self.attr(commit.ino)?;
        if attr.kind != Kind::File {
            return Err(Errno::EINVAL.into());
        }
        if attr.layout_version == commit.version {
            return Ok(NsAnswer::Attr(attr));
        }
        if attr.layout_version != commit.base {
            // The writer could not know of a revert. It lost nothing that was written later.
            match self.reverted(commit.ino)? {
                Some((from, to)) if to == attr.layout_version && from == commit.version => {
                    return Ok(NsAnswer::Attr(attr));
                }
                Some((from, to)) if to == attr.layout_version && from == commit.base => {}
                _ => return Err(Errno::ESTALE.into()),
            }
        }
        check_runs(commit, attr.chunk_size)?;
        let old = self.layout(commit.ino)?;
        let mut layout = old.clone();
        if let Some(size) = commit.truncate {
            layout.truncate(size, attr.chunk_size);
        }
        layout.lay(&commit.runs, attr.chunk_size);
        self.replace(commit, &attr, &old, &layout)?;
        self.put_layout(commit.ino, &layout)?;
        self.account(&mut attr, &layout);
        attr.size = commit.size;
        attr.mtime = commit.mtime;
        attr.ctime = attr.ctime.max(now);
        attr.layout_version = commit.version;
        if commit.kill_suid {
            kill_suid(&mut attr);
        }
        Ok(NsAnswer::Attr(self.put_attr(attr)?))
    }

    /// Notes how much a file allocates with a layout.
    fn account(&mut self, attr: &mut Attr, layout: &Layout) {
        let allocated = layout.allocated(attr.chunk_size);
        self.counters.bytes = self.counters.bytes.saturating_sub(attr.allocated) + allocated;
        attr.allocated = allocated;
    }

    /// Versions that the file named and names no more: their objects are spares, or garbage. Others stay, since a chunk
    /// can be persisted before the commit that names it.
    fn replace(&mut self, commit: &Commit, attr: &Attr, old: &Layout, new: &Layout) -> Done<()> {
        let (ino, chunk_size) = (commit.ino, attr.chunk_size);
        let indexes = commit.runs.iter().map(|r| u64::from(r.count)).sum::<u64>();
        let mut refs: Vec<Ref> = Vec::new();
        let mut spares: Vec<(u32, SpareValue)> = Vec::new();
        if commit.truncate.is_some() || indexes > LOOKUPS_MAX {
            refs = self.cloud_refs(ino, None)?;
            spares = self.spares(ino)?;
        } else {
            for run in &commit.runs {
                for index in run.first..run.first.saturating_add(run.count) {
                    let of_chunk = self.cloud_refs_of(ino, index)?;
                    // Only what has no ref itself has a spare, and a spare has a ref: mostly, nothing is looked up.
                    if let Some((version, _)) = old.chunk(index, chunk_size)
                        && !of_chunk.is_empty()
                        && of_chunk.iter().all(|(_, v, _)| *v != version)
                        && let Some(spare) = self.spare(ino, index)?
                    {
                        spares.push((index, spare));
                    }
                    refs.extend(of_chunk);
                }
            }
        }
        // Runs may overlap, and come in any order.
        refs.sort_unstable_by_key(|(index, version, _)| (*index, *version));
        refs.dedup_by_key(|(index, version, _)| (*index, *version));
        spares.sort_unstable();
        spares.dedup();
        // Of a chunk that goes on, what the truncation leaves of it.
        let kept = |index: u32, valid: u32| match commit.truncate {
            Some(size) => match size.saturating_sub(u64::from(index) * u64::from(chunk_size)) {
                0 => valid,
                rest => valid.min(u32::try_from(rest).unwrap_or(u32::MAX)),
            },
            None => valid,
        };
        let has_ref = |index: u32, version: Version| {
            refs.binary_search_by_key(&(index, version), |(i, v, _)| (*i, *v))
                .is_ok()
        };
        let mut stay: Vec<(u32, SpareValue)> = Vec::new();
        let mut go: Vec<(u32, Version)> = Vec::new();
        for (index, version, _) in &refs {
            let Some((_, valid)) = old
                .chunk(*index, chunk_size)
                .filter(|(named, _)| named == version)
            else {
                continue;
            };
            match new.chunk(*index, chunk_size) {
                Some((named, _)) if named == *version => {}
                Some((named, _)) if !has_ref(*index, named) => {
                    stay.push((*index, (*version, kept(*index, valid))));
                }
                _ => go.push((*index, *version)),
            }
        }
        for (index, (version, valid)) in &spares {
            match new.chunk(*index, chunk_size) {
                Some((named, _)) if named == *version => self.remove_spare(ino, *index),
                Some((named, _)) if !has_ref(*index, named) => {
                    let less = kept(*index, *valid);
                    if less != *valid {
                        stay.push((*index, (*version, less)));
                    }
                }
                _ => {
                    self.remove_spare(ino, *index);
                    go.push((*index, *version));
                }
            }
        }
        for (index, spare) in stay {
            self.put_spare(ino, index, spare)?;
        }
        go.sort_unstable();
        for (index, version, at) in refs {
            if go.binary_search(&(index, version)).is_ok() {
                self.remove_cloud_ref(ino, index, version, at);
            }
        }
        Ok(())
    }

    pub(crate) fn persisted(&mut self, chunks: &[PersistedChunk]) -> Done<NsAnswer> {
        // Of the last file with a spare: many chunks of a file come at once.
        let mut file = None;
        for chunk in chunks {
            match self.attr(chunk.key.ino) {
                Ok(attr) => {
                    self.put_cloud_ref(chunk.key, &chunk.at)?;
                    self.outlive_spare(chunk.key, &attr, &mut file)?;
                }
                Err(Fault::Refused(Errno::ENOENT)) => self.add_garbage(chunk.at.object.clone()),
                Err(e) => return Err(e),
            }
        }
        Ok(NsAnswer::Done)
    }

    /// A version is in the object store: if it is the one the layout names, the chunk needs no spare any more.
    fn outlive_spare(
        &mut self,
        key: ChunkKey,
        attr: &Attr,
        file: &mut Option<(Ino, Layout)>,
    ) -> Done<()> {
        let Some((version, _)) = self.spare(key.ino, key.index)? else {
            return Ok(());
        };
        let layout = match file {
            Some((of, layout)) if *of == key.ino => layout,
            _ => {
                let layout = self.layout(key.ino)?;
                &mut file.insert((key.ino, layout)).1
            }
        };
        let is_named = layout
            .chunk(key.index, attr.chunk_size)
            .is_some_and(|(named, _)| named == key.version);
        if is_named {
            self.remove_spare(key.ino, key.index);
            self.drop_ref(key.ino, key.index, version)?;
        }
        Ok(())
    }

    /// Drops the cloud ref of a version, and queues its object for deletion.
    fn drop_ref(&mut self, ino: Ino, index: u32, version: Version) -> Done<()> {
        for (index, version, at) in self.cloud_refs(ino, Some((index, version)))? {
            self.remove_cloud_ref(ino, index, version, at);
        }
        Ok(())
    }

    /// Answers [`fastcache_api::NsOp::Spares`].
    pub(crate) fn list_spares(&self, after: Option<ChunkId>, max: u32) -> Done<NsAnswer> {
        let max = max.clamp(1, SPARES_MAX) as usize;
        let from = after.map_or_else(Vec::new, |id| {
            let mut from = keys::spare(id.ino, id.index);
            from.push(0);
            from
        });
        let pairs = self.kv.scan(&keys::all_spares(), &from, max)?;
        let is_end = pairs.len() < max;
        let mut spares = Vec::with_capacity(pairs.len());
        let mut file: Option<(Ino, Attr, Layout)> = None;
        for (key, value) in pairs {
            let (Some(ino), Some(index)) =
                (keys::number_at(&key, 1).map(Ino), keys::parse_spare(&key))
            else {
                continue;
            };
            let (version, valid): SpareValue = decode(&key, &value)?;
            if file.as_ref().is_none_or(|(of, _, _)| *of != ino) {
                file = Some((ino, self.attr(ino)?, self.layout(ino)?));
            }
            let named = file
                .as_ref()
                .and_then(|(_, attr, layout)| layout.chunk(index, attr.chunk_size))
                .map_or(Version::NONE, |(named, _)| named);
            let named = ChunkKey {
                ino,
                index,
                version: named,
            };
            spares.push(Spare {
                named,
                version,
                valid,
            });
        }
        Ok(NsAnswer::Spares { spares, is_end })
    }

    /// Does [`fastcache_api::NsOp::Revert`].
    pub(crate) fn revert(&mut self, chunks: &[ChunkKey], now: Time) -> Done<NsAnswer> {
        let mut files: BTreeMap<Ino, Vec<ChunkKey>> = BTreeMap::new();
        for key in chunks {
            files.entry(key.ino).or_default().push(*key);
        }
        let mut told = Vec::new();
        for (ino, mut lost) in files {
            let attr = match self.attr(ino) {
                Ok(attr) if attr.kind == Kind::File => attr,
                Ok(_) | Err(Fault::Refused(Errno::ENOENT)) => continue,
                Err(e) => return Err(e),
            };
            lost.sort_unstable();
            lost.dedup();
            let indexes = self.revert_file(attr, &lost, now)?;
            if !indexes.is_empty() {
                told.push((ino, indexes));
            }
        }
        Ok(NsAnswer::Reverted(told))
    }

    /// The chunks of one file; which of them came back.
    fn revert_file(&mut self, mut attr: Attr, lost: &[ChunkKey], now: Time) -> Done<Vec<u32>> {
        let (ino, chunk_size) = (attr.ino, attr.chunk_size);
        let mut layout = self.layout(ino)?;
        let mut indexes = Vec::new();
        for key in lost {
            let Some((named, had)) = layout.chunk(key.index, chunk_size) else {
                continue;
            };
            if named != key.version || !self.cloud_refs(ino, Some((key.index, named)))?.is_empty() {
                continue;
            }
            let Some((version, valid)) = self.spare(ino, key.index)? else {
                continue;
            };
            let refs = self.cloud_refs(ino, Some((key.index, version)))?;
            let Some((_, _, at)) = refs.first() else {
                continue;
            };
            let begin = u64::from(key.index) * u64::from(chunk_size);
            let in_file = u32::try_from(attr.size.saturating_sub(begin)).unwrap_or(u32::MAX);
            let valid = valid.min(at.len).min(had).min(in_file);
            if valid == 0 {
                // A chunk without bytes would read as zeros, which it never was.
                continue;
            }
            layout.lay(
                &[Run {
                    first: key.index,
                    count: 1,
                    version,
                    valid,
                }],
                chunk_size,
            );
            self.remove_spare(ino, key.index);
            // The file ended with bytes that this chunk had grown by: it ends without them, not with zeros.
            if valid < had && attr.size <= begin + u64::from(had) {
                attr.size = begin + u64::from(valid);
            }
            indexes.push(key.index);
        }
        if indexes.is_empty() {
            return Ok(indexes);
        }
        self.put_layout(ino, &layout)?;
        self.account(&mut attr, &layout);
        let before = attr.layout_version;
        attr.layout_version = self.next_versions(1);
        // Of several reverts in a row, a writer may know what was before the first.
        let from = match self.reverted(ino)? {
            Some((from, to)) if to == before => from,
            _ => before,
        };
        self.put_reverted(ino, from, attr.layout_version)?;
        attr.mtime = now;
        attr.ctime = now;
        self.put_attr(attr)?;
        Ok(indexes)
    }
}

/// Refuses contents that cannot be: they would make a layout that nobody can read.
fn check_runs(commit: &Commit, chunk_size: u32) -> Result<(), Errno> {
    if commit.size > FILE_SIZE_MAX {
        return Err(Errno::EFBIG);
    }
    let is_sound =
        |r: &Run| r.count > 0 && r.first.checked_add(r.count).is_some() && r.valid <= chunk_size;
    if commit.runs.iter().all(is_sound) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}
