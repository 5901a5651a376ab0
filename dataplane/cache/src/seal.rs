//! Sealing: from open chunks to versions that never change, to the coordinator.
//!
//! `close` seals a file: data, headers, and one journal append with its chunks and the commit. From then on it
//! survives a kill of both processes. The commit reaches the coordinator in the background, in order, and is
//! sent again until it is answered; `fsync` waits for it.

use crate::inode::{Inode, PendingCommit, Unsealed};
use crate::link::{expect_answer, unexpected};
use crate::open_chunk::{Contents, OpenChunk, device_error};
use crate::{FileSystem, Result, count, lock};
use event_listener::Event;
use fastcache_api::control::{DataEvent, LocalChunk, NodeAnswer, NodeCall};
use fastcache_api::{ChunkKey, Commit, Errno, Ino, Kind, NsAnswer, NsOp, Run, Time, Version};
use fastcache_chunkstore::{ChunkBody, PendingSeal, SealChunk, SealData, SealFile};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Versions asked for at once: enough for a second of small files.
const VERSIONS_BATCH: u32 = 65_536;
/// Versions left when the next ones are asked for.
const VERSIONS_LOW: u64 = 8_192;
/// Pause before a commit that found no agent or coordinator is sent again.
const COMMIT_PAUSE: Duration = Duration::from_millis(500);
/// How long an operation waits for commits on their way, a restart of the agent included.
const COMMITS_MAX: Duration = Duration::from_secs(60);
/// Files with changes older than this are sealed although they are open.
const SEAL_AGE: Duration = Duration::from_secs(10);

/// Versions that belong to this node.
#[derive(Default)]
pub(crate) struct Versions {
    range: Mutex<(u64, u64)>,
    is_asking: std::sync::atomic::AtomicBool,
    more: Event,
}

impl FileSystem {
    /// A version nobody else has.
    pub(crate) async fn next_version(&self) -> Result<Version> {
        loop {
            let listener = self.inner.versions.more.listen();
            let (got, is_low) = {
                let mut range = lock(&self.inner.versions.range);
                let got = (range.0 < range.1).then(|| {
                    range.0 += 1;
                    Version(range.0 - 1)
                });
                (got, range.1 - range.0 < VERSIONS_LOW)
            };
            let must_ask = is_low && !self.inner.versions.is_asking.swap(true, Ordering::AcqRel);
            match got {
                Some(version) => {
                    if must_ask {
                        let fs = self.clone();
                        fastcache_reactor::spawn(async move { fs.ask_versions().await }).detach();
                    }
                    return Ok(version);
                }
                None if must_ask => self.ask_versions().await,
                None => {
                    let waited =
                        fastcache_reactor::timeout(Duration::from_secs(30), listener).await;
                    waited.map_err(|_| Errno::EIO)?;
                }
            }
        }
    }

    async fn ask_versions(&self) {
        let op = NsOp::AllocVersions {
            count: VERSIONS_BATCH,
        };
        match self.inner.link.ns(op).await.and_then(|r| r.result) {
            Ok(NsAnswer::Versions { first, count }) => {
                // What is left of the old range is given up: versions are plenty.
                *lock(&self.inner.versions.range) = (first.0, first.0 + u64::from(count));
            }
            Ok(other) => {
                unexpected(&other);
            }
            Err(error) => {
                tracing::warn!(target: "control", %error, "no versions from the coordinator");
                fastcache_reactor::sleep(COMMIT_PAUSE).await;
            }
        }
        self.inner
            .versions
            .is_asking
            .store(false, Ordering::Release);
        self.inner.versions.more.notify(usize::MAX);
    }

    /// `close`: seals what the file has open. An error of an earlier commit is told here, once.
    pub async fn flush(&self, ino: Ino, _fh: u64) -> Result<()> {
        let Some(inode) = self.inner.inodes.get(ino) else {
            return Ok(());
        };
        self.seal_file(&inode, false).await?;
        lock(&inode.state).commit_error.take().map_or(Ok(()), Err)
    }

    /// `fsync`: sealed, on stable storage here, committed, and at the level the agent is set to.
    pub async fn fsync(&self, ino: Ino, _fh: u64, _datasync: bool) -> Result<()> {
        if let Some(inode) = self.inner.inodes.get(ino) {
            self.seal_file(&inode, true).await?;
            self.commits_done(&inode).await?;
            if lock(&inode.state).is_orphan {
                return Ok(());
            }
        }
        match self.inner.link.call(NodeCall::Fsync { ino }).await? {
            NodeAnswer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until everything sealed so far is acknowledged; tells the error of a commit that was refused.
    pub(crate) async fn commits_done(&self, inode: &Inode) -> Result<()> {
        self.commits_sent(inode).await?;
        lock(&inode.state).commit_error.take().map_or(Ok(()), Err)
    }

    /// Waits until everything sealed so far is answered, one way or the other.
    pub(crate) async fn commits_sent(&self, inode: &Inode) -> Result<()> {
        let last = lock(&inode.state).commits.back().map(|c| c.number);
        let Some(last) = last else { return Ok(()) };
        let waiting = async {
            loop {
                let listener = inode.changed.listen();
                if lock(&inode.state)
                    .commits
                    .front()
                    .is_none_or(|c| c.number > last)
                {
                    return;
                }
                listener.await;
            }
        };
        let waited = fastcache_reactor::timeout(COMMITS_MAX, waiting).await;
        waited.map_err(|_| Errno::EIO)
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
        self.inner
            .store
            .flush()
            .await
            .map_err(|e| device_error(&e))?;
        result
    }

    /// Seals files that were dirty for long, so that their bytes go on their way. Called now and then.
    pub(crate) async fn seal_aged(&self) {
        let now = fastcache_reactor::now();
        for inode in self.inner.inodes.all() {
            let is_due = {
                let state = lock(&inode.state);
                state
                    .unsealed
                    .since
                    .is_some_and(|s| now.duration_since(s) >= SEAL_AGE)
            };
            if is_due && let Err(error) = self.seal_file(&inode, false).await {
                tracing::error!(target: "cache", ino = %inode.ino, %error, "an open file could not be sealed; it is tried again");
            }
        }
    }

    /// Seals all open chunks of a file and its commit in one journal append.
    pub(crate) async fn seal_file(&self, inode: &Arc<Inode>, is_durable: bool) -> Result<()> {
        {
            let state = lock(&inode.state);
            if !state.unsealed.is_dirty && state.open_chunks.is_empty() && !is_durable {
                return Ok(());
            }
        }
        let _one_at_a_time = inode.seal_lock.lock().await;
        let sealed = self.seal_locked(inode).await;
        if sealed.is_ok() && is_durable {
            self.inner
                .store
                .flush()
                .await
                .map_err(|e| device_error(&e))?;
        }
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
        // Everything a writer has been told is done is in `chunks` or was sealed before: take the rest as it is now.
        let (commit, before, now) = {
            let mut state = lock(&inode.state);
            let before = std::mem::take(&mut state.unsealed);
            let (size, mtime, now) = match &state.attr {
                Some(a) => (a.size, a.mtime, a.ctime),
                None => (0, Time::now(), Time::now()),
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
        let bytes = postcard::to_stdvec(&commit).map_err(|_| Errno::EIO)?;
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
        let sealed = match sealed {
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
            if let Some(attr) = &mut state.attr {
                attr.layout_version = version;
            }
            state.commits.push_back(PendingCommit {
                commit,
                number: sealed.number,
                now,
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
            state.unsealed.runs.push(run);
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

    /// Sends a file's commits, oldest first, until none is left.
    async fn send_commits(&self, inode: &Arc<Inode>) {
        loop {
            let (op, now, number) = {
                let mut state = lock(&inode.state);
                match state.commits.front() {
                    Some(c) => (NsOp::Commit(c.commit.clone()), c.now, c.number),
                    None => {
                        state.is_committing = false;
                        break;
                    }
                }
            };
            let reply = self.inner.link.ns_at(op, now).await;
            let (attr, refused) = match reply {
                Ok(reply) => {
                    let deadline = self.deadline_of(reply.lease_ms);
                    match expect_answer!(reply, NsAnswer::Attr(a) | NsAnswer::Entry(a) => a) {
                        Ok(attr) => (Some((attr, deadline)), None),
                        Err(e) => (None, Some(e)),
                    }
                }
                Err(e) => (None, Some(e)),
            };
            if matches!(refused, Some(Errno::EIO | Errno::ETIMEDOUT | Errno::EAGAIN)) {
                if self.inner.is_stopping.load(Ordering::Relaxed) {
                    lock(&inode.state).is_committing = false;
                    break;
                }
                fastcache_reactor::sleep(COMMIT_PAUSE).await;
                continue;
            }
            if let Err(error) = self.inner.store.committed(inode.ino, number).await {
                tracing::error!(target: "nvme", %error, "a commit could not be noted; it is sent again after a restart, harmlessly");
            }
            self.inner
                .counters
                .uncommitted_files
                .fetch_sub(1, Ordering::Relaxed);
            let mut state = lock(&inode.state);
            state.commits.pop_front();
            if let Some((attr, deadline)) = attr {
                state.learn(&attr, deadline);
            }
            if let Some(error) = refused {
                let is_gone = error == Errno::ENOENT;
                if !is_gone {
                    count(&self.inner.counters.conflict_files, 1);
                    tracing::error!(target: "cache", ino = %inode.ino, %error, "the coordinator refused a commit: somebody else changed the file");
                    state.commit_error = Some(Errno::EIO);
                }
                state.attr = None;
                state.layout = None;
                state.is_orphan |= is_gone;
            }
            drop(state);
            inode.changed.notify(usize::MAX);
        }
        inode.changed.notify(usize::MAX);
        self.inner.inodes.drop_if_idle(inode.ino);
    }

    /// After a restart: commits that were sealed and never acknowledged. Returns when all are.
    pub async fn recover(&self, pending: Vec<PendingSeal>) {
        for seal in pending {
            match postcard::from_bytes::<Commit>(&seal.commit) {
                Ok(commit) => {
                    let inode = self.inner.inodes.get_or_insert(seal.ino);
                    let now = commit.mtime;
                    let pending = PendingCommit {
                        commit,
                        number: seal.number,
                        now,
                    };
                    lock(&inode.state).commits.push_back(pending);
                    count(&self.inner.counters.uncommitted_files, 1);
                }
                Err(error) => {
                    tracing::error!(target: "nvme", ino = %seal.ino, %error, "a SEAL record holds no commit this version can read; it is kept");
                }
            }
        }
        for inode in self.inner.inodes.all() {
            self.forget_committed(&inode).await;
            {
                let mut state = lock(&inode.state);
                if state.commits.is_empty() || std::mem::replace(&mut state.is_committing, true) {
                    continue;
                }
            }
            tracing::info!(target: "cache", ino = %inode.ino, "a file was closed but not committed before the restart: committing it now");
            self.send_commits(&inode).await;
        }
    }

    /// Of commits found on the device, those up to the one the coordinator has are done: only the note was missing.
    async fn forget_committed(&self, inode: &Inode) {
        let ino = inode.ino;
        let answer = match self.inner.link.ns(NsOp::GetAttr { ino }).await {
            Ok(reply) => reply.result,
            Err(error) => Err(error),
        };
        let Ok(NsAnswer::Attr(attr)) = answer else {
            return;
        };
        let done: Vec<u64> = {
            let mut state = lock(&inode.state);
            let upto = state
                .commits
                .iter()
                .rposition(|c| c.commit.version == attr.layout_version);
            let upto = upto.map_or(0, |at| at + 1);
            state.commits.drain(..upto).map(|c| c.number).collect()
        };
        for number in done {
            if let Err(error) = self.inner.store.committed(ino, number).await {
                tracing::error!(target: "nvme", %error, "a commit could not be noted");
            }
            self.inner
                .counters
                .uncommitted_files
                .fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Drops everything of an orphan: open chunks, sealed chunks, what is unsealed.
    pub(crate) async fn drop_chunks(&self, inode: &Arc<Inode>) {
        let _one_at_a_time = inode.seal_lock.lock().await;
        let chunks: Vec<Arc<OpenChunk>> =
            lock(&inode.state).open_chunks.values().cloned().collect();
        for chunk in &chunks {
            self.discard(chunk).await;
        }
        {
            let mut state = lock(&inode.state);
            state.open_chunks.clear();
            state.unsealed = Unsealed::default();
        }
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
        is_pending,
        data,
    })
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
    let later = std::mem::replace(&mut state.unsealed, before);
    state.unsealed.is_dirty = true;
    state.unsealed.kill_suid |= later.kill_suid;
    state.unsealed.runs.extend(later.runs);
    state.unsealed.truncate = match (state.unsealed.truncate, later.truncate) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}
