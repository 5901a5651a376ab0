//! Sealing: from open chunks to versions that never change, to the coordinator.
//!
//! `close` seals a file: data, headers, and one journal append with its chunks and the commit. From then on it
//! survives a kill of both processes. The commit reaches the coordinator in the background, in order, and is
//! sent again until it is answered; `fsync` waits for it.

use crate::conflict::may_write_through;
use crate::inode::{Inode, InodeState, PendingCommit, Unsealed};
use crate::open_chunk::{Contents, OpenChunk, device_error};
use crate::{FileSystem, Result, count, lock};
use fastcache_api::control::{DataEvent, LocalChunk};
use fastcache_api::{ChunkKey, Commit, Errno, Ino, Kind, Run, Version};
use fastcache_chunkstore::{ChunkBody, SealChunk, SealData, SealFile};
use std::sync::Arc;
use std::time::Duration;

/// Longest that a seal waits for the commits before it; another node that does not answer holds them up for one lease.
const COMMITS_MAX: Duration = Duration::from_secs(10);
/// Files with changes older than this are sealed although they are open.
const SEAL_AGE: Duration = Duration::from_secs(10);

impl FileSystem {
    /// `close`: seals what the file has open, and commits it where there are other nodes, which may open the file next. An
    /// error of an earlier commit is told here, once through each handle that could write then.
    pub async fn flush(&self, ino: Ino, fh: u64) -> Result<()> {
        let Some(inode) = self.inner.inodes.get(ino) else {
            return Ok(());
        };
        self.commits_before(&inode).await;
        self.seal_file(&inode, false).await?;
        let waited = match self.is_shared() {
            true => self.commits_sent(&inode).await?,
            false => None,
        };
        self.safe_somewhere(&inode).await?;
        // Who could not write has lost nothing, though he waited.
        let waited = waited.filter(|_| may_write_through(fh));
        self.tell_refused(&inode, waited, fh)
    }

    /// Waits for the commits of what was sealed before, where another node may read that: this one is to have it until then. A
    /// commit waits until the other one's kernel has dropped a page, which may be being read: for what it commits.
    async fn commits_before(&self, inode: &Inode) {
        if self.is_shared() {
            let _ = fastcache_reactor::timeout(COMMITS_MAX, self.commits_answered(inode)).await;
        }
    }

    /// `fsync`: sealed, on stable storage here, committed, and at the level the agent is set to.
    pub async fn fsync(&self, ino: Ino, fh: u64, _datasync: bool) -> Result<()> {
        let since = fastcache_reactor::now();
        if let Some(inode) = self.inner.inodes.get(ino) {
            self.commits_before(&inode).await;
            self.seal_file(&inode, true).await?;
            let waited = self.commits_sent(&inode).await?;
            self.tell_refused(&inode, waited, fh)?;
            if lock(&inode.state).is_orphan {
                return Ok(());
            }
            self.safe_somewhere(&inode).await?;
        }
        self.reach_level(ino, since).await
    }

    /// sync(2) and shutdown: every file with changes.
    pub async fn sync_all(&self) -> Result<()> {
        let mut result = Ok(());
        for inode in self.inner.inodes.all() {
            if lock(&inode.state).has_local_changes()
                && let Err(e) = self.seal_file(&inode, false).await
            {
                result = Err(e);
            }
        }
        self.flush_device().await?;
        self.all_safe_somewhere().await?;
        result
    }

    /// Seals files that were dirty for long, so that their bytes go on their way. Called now and then.
    pub(crate) async fn seal_aged(&self) {
        let now = fastcache_reactor::now();
        let is_due = |state: &InodeState| {
            let since = state.unsealed.since;
            since.is_some_and(|s| now.duration_since(s) >= SEAL_AGE)
        };
        for inode in self.inner.inodes.those(is_due) {
            if let Err(error) = self.seal_file(&inode, false).await {
                tracing::error!(target: "cache", ino = %inode.ino, %error, "an open file could not be sealed; it is tried again");
            }
        }
    }

    /// Seals all open chunks of a file and its commit in one journal append.
    pub(crate) async fn seal_file(&self, inode: &Arc<Inode>, is_durable: bool) -> Result<()> {
        {
            let state = lock(&inode.state);
            // A seal that is under way is waited for: of a truncation alone nothing else shows before its commit does.
            let is_changed = state.unsealed.is_dirty || state.is_sealing;
            if !is_changed && state.open_chunks.is_empty() && !is_durable {
                return Ok(());
            }
        }
        let _one_at_a_time = inode.seal_lock.lock().await;
        let sealed = self.seal_locked(inode).await;
        if sealed.is_ok() && is_durable {
            self.flush_device().await?;
        }
        self.note_volatile(inode);
        sealed
    }

    async fn seal_locked(&self, inode: &Arc<Inode>) -> Result<()> {
        let chunks: Vec<Arc<OpenChunk>> = {
            let state = lock(&inode.state);
            if state.is_orphan || !state.unsealed.is_dirty {
                return Ok(());
            }
            state.open_chunks.values().cloned().collect()
        };
        let version = self.next_version().await?;
        let mut taken = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            match self.take_contents(chunk).await {
                Ok((contents, len)) => taken.push((contents, len)),
                Err(e) => {
                    resume(&chunks);
                    return Err(e);
                }
            }
        }
        let mut runs = Vec::new();
        let mut seals = Vec::new();
        for (chunk, (contents, len)) in chunks.iter().zip(taken) {
            let run = run_of(chunk.index, version, &contents, len);
            runs.push(run);
            seals.extend(seal_chunk(chunk, version, contents, len, false));
        }
        // Everything a writer was told before the seal began is in `chunks` or was sealed before: take the rest as it is
        // now. Chunks that were opened meanwhile are for the next seal.
        let (commit, before, now) = {
            let mut state = lock(&inode.state);
            let before = std::mem::take(&mut state.unsealed);
            state.is_sealing = true;
            if state.open_chunks.len() > chunks.len() {
                state.unsealed.is_dirty = true;
                state.unsealed.since = Some(fastcache_reactor::now());
            }
            let (size, mtime, now) = match &state.attr {
                Some(a) => (a.size, a.mtime, a.ctime),
                None => (0, crate::wall_now(), crate::wall_now()),
            };
            let mut all = before.runs.clone();
            all.extend(runs.iter().copied());
            let commit = Commit {
                ino: inode.ino,
                base: state.sealed_version,
                version,
                truncate: before.truncate,
                runs: all,
                size,
                mtime,
                kill_suid: before.kill_suid,
                conflict_file: true,
            };
            (commit, before, now)
        };
        let Ok(bytes) = postcard::to_stdvec(&commit) else {
            resume(&chunks);
            restore(inode, before);
            return Err(Errno::EIO);
        };
        let room = seals.iter().map(|s| s.len.div_ceil(4096) + 3).sum::<u32>();
        let sealed = match self.make_room_for_seal(room, &seals).await {
            Ok(()) => {
                let file = SealFile {
                    ino: inode.ino,
                    commit: bytes,
                };
                self.inner
                    .store
                    .seal(seals, Some(file))
                    .await
                    .map_err(|e| device_error(&e))
            }
            Err(e) => Err(e),
        };
        let mut sealed = match sealed {
            Ok(sealed) => sealed,
            Err(e) => {
                resume(&chunks);
                restore(inode, before);
                return Err(e);
            }
        };
        {
            let mut state = lock(&inode.state);
            let chunk_size = state.attr.as_ref().map_or(1 << 22, |a| a.chunk_size);
            if let Some(layout) = &mut state.layout {
                layout.lay(&runs, chunk_size);
            }
            for chunk in &chunks {
                state.open_chunks.remove(&chunk.index);
            }
            state.sealed_version = version;
            state.is_sealing = false;
            if let Some(attr) = &mut state.attr {
                attr.layout_version = version;
            }
            state.commits.push_back(PendingCommit {
                commit,
                number: sealed.number,
                now,
                replaced: [before.replaced, sealed.replaced.clone()].concat(),
                kept: take_unsafe(&mut sealed.dead),
            });
            if !std::mem::replace(&mut state.is_committing, true) {
                let (fs, inode) = (self.clone(), Arc::clone(inode));
                fastcache_reactor::spawn(async move { fs.send_commits(&inode).await }).detach();
            }
        }
        count(&self.inner.counters.uncommitted_files, 1);
        close(&chunks);
        self.tell_stored(&sealed.bodies, &sealed.replaced);
        Ok(())
    }

    /// Seals one complete chunk ahead of its file, in the background: its upload can begin, its blocks can leave.
    pub(crate) fn seal_early(&self, inode: &Arc<Inode>, chunk: &Arc<OpenChunk>) {
        let (fs, inode, chunk) = (self.clone(), Arc::clone(inode), Arc::clone(chunk));
        fastcache_reactor::spawn(async move {
            let _one_at_a_time = inode.seal_lock.lock().await;
            if lock(&chunk.state).is_closed {
                return;
            }
            if let Err(error) = fs.seal_one(&inode, &chunk).await {
                resume(std::slice::from_ref(&chunk));
                tracing::warn!(target: "cache", ino = %inode.ino, index = chunk.index, %error, "a full chunk could not be sealed ahead; close does it");
            }
        })
        .detach();
    }

    async fn seal_one(&self, inode: &Arc<Inode>, chunk: &Arc<OpenChunk>) -> Result<()> {
        let version = self.next_version().await?;
        let (contents, len) = self.take_contents(chunk).await?;
        let run = run_of(chunk.index, version, &contents, len);
        let seals: Vec<SealChunk> = seal_chunk(chunk, version, contents, len, true)
            .into_iter()
            .collect();
        self.make_room_for_seal(3, &seals).await?;
        let sealed = self
            .inner
            .store
            .seal(seals, None)
            .await
            .map_err(|e| device_error(&e))?;
        {
            let mut state = lock(&inode.state);
            let chunk_size = state.attr.as_ref().map_or(1 << 22, |a| a.chunk_size);
            if let Some(layout) = &mut state.layout {
                layout.lay(&[run], chunk_size);
            }
            // A file that is written over and over while it is open must not have a commit that grows and grows.
            let runs = &mut state.unsealed.runs;
            let is_same = |r: &Run| r.first == run.first && r.count == 1;
            let old = runs.iter().rposition(is_same).map(|at| runs.remove(at));
            runs.push(run);
            let replaced = sealed.replaced.iter().copied();
            let is_named = |key: &ChunkKey| old.is_none_or(|old| old.version != key.version);
            state.unsealed.replaced.extend(replaced.filter(is_named));
            state.open_chunks.remove(&chunk.index);
        }
        close(std::slice::from_ref(chunk));
        self.tell_stored(&sealed.bodies, &sealed.replaced);
        Ok(())
    }

    pub(crate) fn tell_stored(&self, bodies: &[Arc<ChunkBody>], replaced: &[ChunkKey]) {
        let Some(ino) = bodies.first().map(|b| b.key().ino) else {
            return;
        };
        if !replaced.is_empty() {
            self.inner
                .link
                .event(ino, DataEvent::Gone(replaced.to_vec()));
        }
        let stored = bodies.iter().map(|b| local_chunk(b)).collect();
        self.inner.link.event(ino, DataEvent::Stored(stored));
    }

    /// Drops what is open and unsealed of an orphan, and what that was. For who has the seal lock.
    pub(crate) async fn drop_unsealed(&self, inode: &Inode) -> Unsealed {
        let chunks: Vec<Arc<OpenChunk>> =
            lock(&inode.state).open_chunks.values().cloned().collect();
        for chunk in &chunks {
            self.discard(chunk).await;
        }
        let mut state = lock(&inode.state);
        state.open_chunks.clear();
        std::mem::take(&mut state.unsealed)
    }

    /// Drops everything of an orphan: open chunks, sealed chunks, what is unsealed.
    pub(crate) async fn drop_chunks(&self, inode: &Arc<Inode>) {
        let _one_at_a_time = inode.seal_lock.lock().await;
        let unsealed = self.drop_unsealed(inode).await;
        self.need_no_replicas(&unsealed.replaced);
        let keys: Vec<ChunkKey> = self
            .inner
            .store
            .chunks_of(inode.ino)
            .iter()
            .map(|b| b.key())
            .collect();
        if !keys.is_empty() {
            self.drop_keys(inode.ino, &keys).await;
        }
    }

    pub(crate) async fn drop_keys(&self, ino: Ino, keys: &[ChunkKey]) {
        self.need_no_replicas(keys);
        self.drop_from_store(ino, keys).await;
    }

    /// Drops chunks here alone: what other nodes have of them stays.
    pub(crate) async fn drop_from_store(&self, ino: Ino, keys: &[ChunkKey]) {
        if let Err(error) = self.inner.store.remove(keys).await {
            tracing::error!(target: "nvme", %error, "chunks could not be dropped; a later start does it");
        }
        self.inner.link.event(ino, DataEvent::Gone(keys.to_vec()));
        self.inner.space.freed.notify(usize::MAX);
    }

    /// Whether an inode is a regular file.
    pub(crate) fn is_file(inode: &Inode) -> bool {
        lock(&inode.state)
            .attr
            .as_ref()
            .is_some_and(|a| a.kind == Kind::File)
    }
}

/// The versions that a commit names.
pub(crate) fn keys_of(commit: &Commit) -> Vec<ChunkKey> {
    let of = |run: &Run| {
        let (ino, version) = (commit.ino, run.version);
        let indexes = run.first..run.first.saturating_add(run.count);
        indexes.map(move |index| ChunkKey {
            ino,
            index,
            version,
        })
    };
    let written = commit
        .runs
        .iter()
        .filter(|run| run.version != Version::NONE);
    written.flat_map(of).collect()
}

pub(crate) fn local_chunk(body: &ChunkBody) -> LocalChunk {
    LocalChunk {
        key: body.key(),
        len: body.len(),
        device_bytes: u32::try_from(body.device_bytes()).unwrap_or(u32::MAX),
        is_dirty: body.is_dirty(),
    }
}

/// Whether a chunk may be sealed ahead of its file.
pub(crate) fn ready_for_early_seal(chunk: &OpenChunk, chunk_size: usize) -> bool {
    let state = lock(&chunk.state);
    !state.is_sealing && !state.is_closed && state.is_complete(chunk_size)
}

fn run_of(index: u32, version: Version, contents: &Contents, len: u32) -> Run {
    let version = if matches!(contents, Contents::Hole) {
        Version::NONE
    } else {
        version
    };
    Run {
        first: index,
        count: 1,
        version,
        valid: len,
    }
}

fn seal_chunk(
    chunk: &OpenChunk,
    version: Version,
    contents: Contents,
    len: u32,
    is_pending: bool,
) -> Option<SealChunk> {
    let data = match contents {
        Contents::Hole => return None,
        Contents::Inline(buf) => SealData::Inline { buf },
        Contents::Placed(runs, crcs) => SealData::Placed { runs, crcs },
    };
    let key = ChunkKey {
        ino: chunk.ino,
        index: chunk.index,
        version,
    };
    Some(SealChunk {
        key,
        len,
        is_dirty: true,
        is_kept: false,
        is_pending,
        data,
    })
}

/// Those that may be nowhere but here.
fn take_unsafe(dead: &mut Vec<Arc<ChunkBody>>) -> Vec<Arc<ChunkBody>> {
    dead.retain(|body| body.is_dirty() || body.is_kept());
    std::mem::take(dead)
}

/// Lets writers go on after a seal that failed.
fn resume(chunks: &[Arc<OpenChunk>]) {
    for chunk in chunks {
        lock(&chunk.state).is_sealing = false;
        chunk.changed.notify(usize::MAX);
    }
}

/// Ends the open chunks that were sealed; their waiters find the sealed ones.
fn close(chunks: &[Arc<OpenChunk>]) {
    for chunk in chunks {
        let mut state = lock(&chunk.state);
        state.is_closed = true;
        state.gather = None;
        drop(state);
        chunk.changed.notify(usize::MAX);
    }
}

/// Puts back what a failed seal had taken.
fn restore(inode: &Inode, before: Unsealed) {
    let mut state = lock(&inode.state);
    state.is_sealing = false;
    let later = std::mem::replace(&mut state.unsealed, before);
    state.unsealed.is_dirty = true;
    state.unsealed.kill_suid |= later.kill_suid;
    state.unsealed.runs.extend(later.runs);
    state.unsealed.replaced.extend(later.replaced);
    state.unsealed.truncate = match (state.unsealed.truncate, later.truncate) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}
