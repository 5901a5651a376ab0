//! What was written under a lease that was lost, when somebody else has written the file since: it becomes a file beside it.
//!
//! From the first refusal on nobody writes the file here, and who hands it over to another node does not wait: nothing of it
//! is committed any more. Whoever was writing is let finish, and all of it is sealed. The commits stay on the device until the
//! file beside has their bytes; then everything that is known of the file goes at once, and writers go on with what it is now.

use crate::inode::{Inode, InodeState};
use crate::link::expect_answer;
use crate::write::At;
use crate::{FileSystem, Result, count, lock};
use fastcache_api::ns::NAME_MAX;
use fastcache_api::{Cred, Errno, Ino, Kind, NewInode, NsAnswer, NsOp, Version};
use fastcache_chunkstore::ChunkBody;
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, REQUEST_MAX};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long writers wait for a conflict to be over before they get EIO. Less than a lease: the pages that they have locked may
/// be what another node's change waits for.
const CONFLICT_WAIT: Duration = Duration::from_secs(2);
/// Names that are tried for the file beside.
const NAMES: u32 = 100;
/// After so many reads that failed, the chunks that were not written here are read as the file has them now: the
/// versions that it had then may be nowhere any more.
const READ_TRIES: u32 = 3;
/// After so many, what cannot be read is left out: a commit that was found after a power cut may be of chunks that are gone.
const READS_MAX: u32 = 5;

/// The file that what was refused is copied to.
pub(crate) struct Beside {
    ino: Ino,
    parent: Ino,
    name: Vec<u8>,
    failed_reads: u32,
}

/// The handles of a file that were open when what was written through them was refused.
pub(crate) struct RefusedHandles {
    /// The last one that was given out by then.
    upto: u64,
    /// Those of them that know it.
    told: Vec<u64>,
}

impl RefusedHandles {
    /// What was written through any handle up to this one.
    pub fn upto(upto: u64) -> RefusedHandles {
        RefusedHandles {
            upto,
            told: Vec::new(),
        }
    }

    /// Whether a handle is to be told. It is once.
    pub fn tell(&mut self, fh: u64) -> bool {
        let is_new = may_write_through(fh) && fh <= self.upto && !self.told.contains(&fh);
        if is_new {
            self.told.push(fh);
        }
        is_new
    }
}

/// The number of the `n`-th handle that is given out, from 1 on: in order, and it tells whether it is open to write, and whether
/// past the kernel's pages.
pub(crate) fn handle_number(n: u64, is_write: bool, is_direct: bool) -> u64 {
    n << 2 | u64::from(is_direct) << 1 | u64::from(is_write)
}

/// What is written through a handle is not in the kernel's pages.
pub(crate) fn is_past_pages(fh: u64) -> bool {
    fh & 2 == 2
}

/// Whether a handle can have been written through; of one without a number nobody knows.
pub(crate) fn may_write_through(fh: u64) -> bool {
    fh == 0 || fh & 1 == 1
}

/// The `n`-th name for the contents of this version.
fn conflict_name(name: &[u8], version: Version, n: u32) -> Vec<u8> {
    let suffix = match n {
        0 => format!(".conflict-{:x}", version.0),
        n => format!(".conflict-{:x}-{}", version.0, n + 1),
    };
    let kept = name.len().min(NAME_MAX - suffix.len());
    [&name[..kept], suffix.as_bytes()].concat()
}

impl FileSystem {
    /// Waits until nothing of a file is being saved beside it. EIO when that takes long.
    pub(crate) async fn conflict_over(&self, inode: &Inode) -> Result<()> {
        let over = async {
            loop {
                let listener = inode.changed.listen();
                if !lock(&inode.state).is_conflict {
                    return;
                }
                listener.await;
            }
        };
        let over = fastcache_reactor::timeout(CONFLICT_WAIT, over).await;
        over.map_err(|_| Errno::EIO)
    }

    /// Saves what was written here in a file beside, when a commit was refused, and forgets it here. After an error everything
    /// is as it was, but that nobody writes: to be tried again with the same `beside`.
    ///
    /// Boxed: what it makes is committed in turn.
    pub(crate) fn resolve_conflict<'f>(
        &'f self,
        inode: &'f Arc<Inode>,
        refused: Errno,
        beside: &'f mut Option<Beside>,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + 'f>> {
        Box::pin(self.resolve(inode, refused, beside))
    }

    async fn resolve(
        &self,
        inode: &Arc<Inode>,
        refused: Errno,
        beside: &mut Option<Beside>,
    ) -> Result<()> {
        lock(&inode.state).is_conflict = true;
        inode.changed.notify(usize::MAX);
        {
            let _nobody_writes = inode.writers.write().await;
            self.seal_file(inode, false).await?;
            if lock(&inode.state).is_orphan {
                let _one_at_a_time = inode.seal_lock.lock().await;
                let unsealed = self.drop_unsealed(inode).await;
                self.need_no_replicas(&unsealed.replaced);
            }
        }
        let name = match self.save_beside(inode, beside).await {
            Ok(name) => Some(name),
            // It has no name that a file could be beside.
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        let numbers: Vec<u64> = {
            let state = lock(&inode.state);
            if state.has_unsealed() {
                return Err(Errno::EAGAIN);
            }
            state.commits.iter().map(|c| c.number).collect()
        };
        let named = self.named_of_replaced(inode).await?;
        for body in &named {
            self.seal_as(body, true, false).await?;
        }
        for number in &numbers {
            self.note_committed(inode, *number).await;
        }
        *beside = None;
        count(&self.inner.counters.conflict_files, 1);
        match name.as_deref().map(String::from_utf8_lossy) {
            Some(name) => {
                tracing::error!(target: "cache", ino = %inode.ino, error = %refused, %name, "another node wrote a file that was written here while the lease was lost; what was written here is in a file beside it");
            }
            None => {
                tracing::error!(target: "cache", ino = %inode.ino, error = %refused, "another node wrote a file that was written here while the lease was lost, and it has no name that a file could be beside: what was written here is dropped");
            }
        }
        let over = {
            let mut state = lock(&inode.state);
            let commits = std::mem::take(&mut state.commits);
            let (over, left): (VecDeque<_>, _) = commits
                .into_iter()
                .partition(|c| numbers.contains(&c.number));
            state.commits = left;
            state.refused_upto = numbers.last().copied().unwrap_or(state.refused_upto);
            if state.opens > 0 {
                match self.last_handle() {
                    0 => state.commit_error = Some(Errno::EIO),
                    upto => state.refused_handles = Some(Box::new(RefusedHandles::upto(upto))),
                }
            }
            state.kills_suid = false;
            state.is_conflict = false;
            self.forget_written(inode, &mut state);
            over
        };
        for commit in &over {
            self.copies_follow(commit, Some(refused));
        }
        inode.changed.notify(usize::MAX);
        Ok(())
    }

    /// What the versions that are refused took the place of here, as far as the file still has it: it may be nowhere else.
    async fn named_of_replaced(&self, inode: &Inode) -> Result<Vec<Arc<ChunkBody>>> {
        let (kept, chunk_size) = {
            let state = lock(&inode.state);
            let kept = state.commits.iter().flat_map(|c| c.kept.iter().cloned());
            let chunk_size = state.attr.as_ref().map(|attr| attr.chunk_size);
            (kept.collect::<Vec<_>>(), chunk_size)
        };
        if kept.is_empty() {
            return Ok(kept);
        }
        let layout = match self.named_layout(inode.ino).await {
            Ok(layout) => layout,
            Err(Errno::ENOENT | Errno::ESTALE) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let chunk_size = chunk_size.ok_or(Errno::EAGAIN)?;
        let is_named = |body: &Arc<ChunkBody>| {
            let key = body.key();
            let named = layout.chunk(key.index, chunk_size);
            named.is_some_and(|(version, _)| version == key.version)
        };
        Ok(kept.into_iter().filter(is_named).collect())
    }

    /// Copies a file as it is here to a file beside it, whose name it answers. ENOENT when it has no name.
    async fn save_beside(
        &self,
        inode: &Arc<Inode>,
        beside: &mut Option<Beside>,
    ) -> Result<Vec<u8>> {
        if lock(&inode.state).layout.is_none() {
            self.load(inode, false).await?;
        }
        if beside.is_none() {
            *beside = Some(self.make_beside(inode).await?);
        }
        let to = beside.as_mut().ok_or(Errno::EAGAIN)?;
        match self.copy_contents(inode, to).await {
            Ok(()) => Ok(to.name.clone()),
            Err(Errno::ENOENT | Errno::ESTALE) => {
                // Somebody removed it.
                *beside = None;
                Err(Errno::EAGAIN)
            }
            Err(error) => Err(error),
        }
    }

    async fn make_beside(&self, inode: &Inode) -> Result<Beside> {
        let ino = inode.ino;
        let (attr, version) = {
            let state = lock(&inode.state);
            (state.told().ok_or(Errno::EAGAIN)?, state.sealed_version)
        };
        let link = &self.inner.link;
        let path = expect_answer!(link.ns(NsOp::PathOf { ino }).await?, NsAnswer::Bytes(b) => b)?;
        let mut path: Vec<Vec<u8>> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        let name = path.pop().ok_or(Errno::ENOENT)?;
        let parent = match path.is_empty() {
            true => Ino::ROOT,
            false => {
                let reply = link.ns(NsOp::Resolve { path }).await?;
                let found = expect_answer!(reply, NsAnswer::Entry(a) => a.ino);
                // Moved in between.
                found.map_err(retried)?
            }
        };
        let new = NewInode {
            kind: Kind::File,
            mode: attr.mode,
            rdev: 0,
            cred: Cred {
                uid: attr.uid,
                gid: attr.gid,
            },
            target: Vec::new(),
            chunk_size: 0,
        };
        for n in 0..NAMES {
            let name = conflict_name(&name, version, n);
            let made = match self.make(parent, &name, new.clone()).await {
                Ok(made) => made.attr.ino,
                // Of a try before a restart, which may have been the last one.
                Err(Errno::EEXIST) => continue,
                Err(error) => return Err(retried(error)),
            };
            // The lookup that making it counted.
            self.forget(made, 1);
            if let Some(notify) = self.inner.notify.get() {
                notify.inval_names();
                notify.inval_attr(parent);
            }
            return Ok(Beside {
                ino: made,
                parent,
                name,
                failed_reads: 0,
            });
        }
        Err(Errno::EEXIST)
    }

    /// Removes a file that was to be the file beside, and is not needed: the commit was accepted after all.
    pub(crate) async fn drop_beside(&self, beside: &mut Option<Beside>) {
        if let Some(Beside { parent, name, .. }) = beside.take()
            && let Err(error) = self.unlink(parent, &name).await
        {
            let name = String::from_utf8_lossy(&name);
            tracing::warn!(target: "cache", %parent, %name, %error, "a conflict file that is not needed stays: its file has everything");
        }
    }

    /// Copies what is sealed here of a file.
    async fn copy_contents(&self, from: &Arc<Inode>, to: &mut Beside) -> Result<()> {
        let attr = lock(&from.state).told().ok_or(Errno::EAGAIN)?;
        let target = self.inner.inodes.get_or_insert(to.ino);
        let mut at = 0;
        while at < attr.size && attr.chunk_size > 0 {
            let want = usize::try_from(attr.size - at).unwrap_or(usize::MAX);
            let want = want.min(REQUEST_MAX);
            let buf = IoBuf::alloc(want.next_multiple_of(BLOCK));
            let (read, mut buf) = self.read_span(from, at, buf, attr.chunk_size).await;
            if let Err(error) = read {
                to.failed_reads += 1;
                if to.failed_reads > READS_MAX && self.inner.link.is_connected() {
                    tracing::error!(target: "cache", ino = %from.ino, offset = at, len = want, %error, "what was written here is nowhere any more, and is zeros in the conflict file");
                    at += want as u64;
                    continue;
                }
                if to.failed_reads.is_multiple_of(READ_TRIES) {
                    lock(&from.state).layout = None;
                }
                return Err(retried(error));
            }
            let _rest = buf.split_off(want);
            if buf.iter().any(|byte| *byte != 0) {
                let written = self.write_at(&target, At::Offset(at), buf, false, true);
                written.await.0?;
            }
            at += want as u64;
        }
        {
            let _turn = self.turn_to_write(&target).await?;
            self.truncate_open(&target, attr.size, false).await?;
        }
        self.seal_file(&target, false).await?;
        self.commits_done(&target).await
    }
}

/// An error that does not say that the file has no name.
fn retried(error: Errno) -> Errno {
    match error {
        Errno::ENOENT | Errno::ESTALE => Errno::EAGAIN,
        error => error,
    }
}

impl InodeState {
    /// Whether anything was written since the last seal.
    fn has_unsealed(&self) -> bool {
        self.unsealed.is_dirty || self.is_sealing || !self.open_chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_has_a_name_of_its_own_that_is_not_too_long() {
        let version = Version(0x2a);
        assert_eq!(conflict_name(b"a.txt", version, 0), b"a.txt.conflict-2a");
        assert_eq!(conflict_name(b"a.txt", version, 1), b"a.txt.conflict-2a-2");
        let long = conflict_name(&[b'x'; NAME_MAX], version, 0);
        assert_eq!(long.len(), NAME_MAX);
        assert!(long.ends_with(b".conflict-2a"));
    }
}
