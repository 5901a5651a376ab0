//! Commits on their way to the coordinator: sent in order in the background, again until they are answered, and
//! found again on the device after a restart.

use crate::inode::{Inode, PendingCommit};
use crate::link::{CALL_DEADLINE, expect_answer};
use crate::{FileSystem, Result, count, lock};
use fastcache_api::{ChunkKey, Commit, Errno, NsAnswer, NsOp};
use fastcache_chunkstore::{ChunkBody, PendingSeal};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Pause before a commit that found no agent or coordinator is sent again.
const COMMIT_PAUSE: Duration = Duration::from_millis(500);

impl FileSystem {
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
        let waited = fastcache_reactor::timeout(CALL_DEADLINE, waiting).await;
        waited.map_err(|_| Errno::EIO)
    }

    /// Sends a file's commits, oldest first, until none is left.
    pub(crate) async fn send_commits(&self, inode: &Arc<Inode>) {
        loop {
            let (op, now, number, cut) = {
                let mut state = lock(&inode.state);
                match state.commits.front() {
                    Some(c) => {
                        let commit = c.commit.clone();
                        let cut = commit.truncate;
                        (NsOp::Commit(commit), c.now, c.number, cut)
                    }
                    None => {
                        state.is_committing = false;
                        state.is_conflict = false;
                        break;
                    }
                }
            };
            let asked = self.inner.lease.ask();
            let reply = self.inner.link.ns_at(op, now).await;
            let (attr, refused) = match reply {
                Ok(reply) => {
                    let grant = asked.answered(reply.lease_ms);
                    match expect_answer!(reply, NsAnswer::Attr(a) | NsAnswer::Entry(a) => a) {
                        Ok(attr) => (Some((attr, grant)), None),
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
            let mut is_counted = true;
            if refused == Some(Errno::ESTALE) {
                let (is_first, version) = {
                    let mut state = lock(&inode.state);
                    let version = state.sealed_version;
                    (!std::mem::replace(&mut state.is_conflict, true), version)
                };
                is_counted = is_first;
                if is_first {
                    self.save_conflict(inode, version).await;
                }
            }
            if let Err(error) = self.inner.store.committed(inode.ino, number).await {
                tracing::error!(target: "nvme", %error, "a commit could not be noted; it is sent again after a restart, harmlessly");
            }
            self.inner
                .counters
                .uncommitted_files
                .fetch_sub(1, Ordering::Relaxed);
            if let Some(size) = cut
                && refused.is_none()
            {
                self.drop_cut_off(inode, size).await;
            }
            let mut state = lock(&inode.state);
            let done = state.commits.pop_front();
            if let Some((attr, grant)) = attr {
                state.learn(&attr, self.inner.lease.holds(grant, inode.ino));
            }
            if let Some(error) = refused {
                let is_gone = error == Errno::ENOENT;
                if !is_gone && is_counted {
                    count(&self.inner.counters.conflict_files, 1);
                    tracing::error!(target: "cache", ino = %inode.ino, %error, "the coordinator refused a commit: somebody else changed the file");
                    state.commit_error = Some(Errno::EIO);
                }
                if state.commits.is_empty() {
                    state.attr = None;
                    state.layout = None;
                    state.is_kernel_stale = true;
                    if let Some(notify) = self.inner.notify.get() {
                        notify.inval_inode(inode.ino);
                    }
                }
                state.is_orphan |= is_gone;
            }
            drop(state);
            if let Some(done) = done {
                self.copies_follow(&done, refused);
            }
            inode.changed.notify(usize::MAX);
        }
        inode.changed.notify(usize::MAX);
        self.inner.inodes.drop_if_idle(inode.ino);
    }

    /// Drops the chunks that a committed truncation cut off, as far as they are in the cloud: no layout names them any more.
    /// Of the others the upload finds that out.
    async fn drop_cut_off(&self, inode: &Inode, size: u64) {
        let bodies = self.inner.store.chunks_of(inode.ino);
        let keys: Vec<ChunkKey> = {
            let state = lock(&inode.state);
            let (Some(attr), Some(layout)) = (&state.attr, &state.layout) else {
                return;
            };
            let chunk_size = attr.chunk_size;
            let keep = size.div_ceil(u64::from(chunk_size).max(1));
            let is_cut_off = |body: &ChunkBody| {
                let key = body.key();
                let named = layout.chunk(key.index, chunk_size).map(|(v, _)| v);
                u64::from(key.index) >= keep && !body.is_dirty() && named != Some(key.version)
            };
            let cut_off = bodies.iter().filter(|body| is_cut_off(body));
            cut_off.map(|body| body.key()).collect()
        };
        if !keys.is_empty() {
            self.drop_keys(inode.ino, &keys).await;
        }
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
                        replaced: Vec::new(),
                    };
                    lock(&inode.state).commits.push_back(pending);
                    count(&self.inner.counters.uncommitted_files, 1);
                }
                Err(error) => {
                    tracing::error!(target: "nvme", ino = %seal.ino, %error, "a SEAL record holds no commit this version can read; it is kept");
                }
            }
        }
        self.inner.has_recovered.store(true, Ordering::Release);
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
}
