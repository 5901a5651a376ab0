//! Commits on their way to the coordinator: sent in order in the background, again until they are answered, and
//! found again on the device after a restart.

use crate::inode::{Inode, InodeState, PendingCommit};
use crate::link::{CALL_DEADLINE, expect_answer};
use crate::{FileSystem, Result, count, lock};
use fastcache_api::{ChunkKey, Commit, Errno, Ino, Layout, NsAnswer, NsOp, OpId, Run, Version};
use fastcache_chunkstore::{ChunkBody, PendingSeal};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Pause before a commit that found no agent or coordinator is sent again.
const COMMIT_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause before what was refused is tried to be saved again; the first is [`COMMIT_PAUSE`], each twice the one before.
const SAVE_PAUSE_MAX: Duration = Duration::from_secs(30);

impl FileSystem {
    /// Waits until everything sealed so far is acknowledged; tells the error of a commit that was refused.
    pub(crate) async fn commits_done(&self, inode: &Inode) -> Result<()> {
        let waited = self.commits_sent(inode).await?;
        self.tell_refused(inode, waited, 0)
    }

    /// Tells who waited for this commit that it was refused; whoever had the file open to write it then that one was, each
    /// once; and where handles have no numbers (0), whoever comes first.
    pub(crate) fn tell_refused(&self, inode: &Inode, waited: Option<u64>, fh: u64) -> Result<()> {
        let mut state = lock(&inode.state);
        let is_refused = waited.is_some_and(|number| number <= state.refused_upto);
        if fh != 0 {
            let refused = state.refused_handles.as_mut();
            let is_told = refused.is_some_and(|refused| refused.tell(fh));
            return if is_refused || is_told {
                Err(Errno::EIO)
            } else {
                Ok(())
            };
        }
        match state.commit_error.take() {
            Some(error) => Err(error),
            None if is_refused => Err(Errno::EIO),
            None => Ok(()),
        }
    }

    /// Waits until everything sealed so far is answered, one way or the other, and what was refused is saved; the number of
    /// the last commit that it waited for.
    pub(crate) async fn commits_sent(&self, inode: &Inode) -> Result<Option<u64>> {
        self.commits_over(inode, |_| false).await
    }

    /// Waits until everything sealed so far is answered. What was refused need not be saved yet: for who stops others that
    /// save it, or another node that waits.
    pub(crate) async fn commits_answered(&self, inode: &Inode) -> Result<()> {
        let over = self.commits_over(inode, |state| state.is_conflict).await;
        over.map(|_| ())
    }

    async fn commits_over(
        &self,
        inode: &Inode,
        is_over: impl Fn(&InodeState) -> bool,
    ) -> Result<Option<u64>> {
        let last = lock(&inode.state).commits.back().map(|c| c.number);
        let Some(last) = last else { return Ok(None) };
        let waiting = async {
            loop {
                let listener = inode.changed.listen();
                {
                    let state = lock(&inode.state);
                    if is_over(&state) || state.commits.front().is_none_or(|c| c.number > last) {
                        return;
                    }
                }
                listener.await;
            }
        };
        match fastcache_reactor::timeout(CALL_DEADLINE, waiting).await {
            Ok(()) => Ok(Some(last)),
            Err(_) => Err(Errno::EIO),
        }
    }

    /// Sends a file's commits, oldest first, until none is left.
    pub(crate) async fn send_commits(&self, inode: &Arc<Inode>) {
        let mut beside = None;
        let mut pause = COMMIT_PAUSE;
        // Of the commit that is being sent: one that was asked for before and perhaps done keeps it.
        let mut id: Option<(u64, OpId)> = None;
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
            let of_it = id.filter(|(of, _)| *of == number);
            let (_, op_id) =
                *id.insert(of_it.unwrap_or_else(|| (number, self.inner.link.next_id())));
            let reply = self.inner.link.ns_as(Some(op_id), op, now).await;
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
            let is_gone = refused == Some(Errno::ENOENT);
            if let Some(refused) = refused.filter(|_| !is_gone) {
                let Err(error) = self.resolve_conflict(inode, refused, &mut beside).await else {
                    continue;
                };
                // Kept here until it can be saved.
                tracing::error!(target: "cache", ino = %inode.ino, %error, "what was written here while the lease was lost could not be saved in a file beside it; it is tried again");
                if self.inner.is_stopping.load(Ordering::Relaxed) {
                    lock(&inode.state).is_committing = false;
                    break;
                }
                fastcache_reactor::sleep(pause).await;
                pause = (2 * pause).min(SAVE_PAUSE_MAX);
                continue;
            }
            self.drop_beside(&mut beside).await;
            self.note_committed(inode, number).await;
            if let Some(size) = cut
                && !is_gone
            {
                self.drop_cut_off(inode, size).await;
            }
            let mut state = lock(&inode.state);
            let done = state.commits.pop_front();
            if let Some((attr, grant)) = attr {
                state.is_conflict = false;
                state.learn(&attr, self.inner.lease.holds(grant, inode.ino));
            }
            state.is_orphan |= is_gone;
            if is_gone && state.commits.is_empty() {
                self.forget_written(inode, &mut state);
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

    /// A commit is over, and not found on the device any more.
    pub(crate) async fn note_committed(&self, inode: &Inode, number: u64) {
        if let Err(error) = self.inner.store.committed(inode.ino, number).await {
            tracing::error!(target: "nvme", %error, "a commit could not be noted; it is sent again after a restart, harmlessly");
        }
        self.inner
            .counters
            .uncommitted_files
            .fetch_sub(1, Ordering::Relaxed);
    }

    /// What was written here is not what the file has: it is asked for again, by the kernel too.
    pub(crate) fn forget_written(&self, inode: &Inode, state: &mut InodeState) {
        state.attr = None;
        state.layout = None;
        state.is_kernel_stale = true;
        state.pages.all_wrong();
        if let Some(notify) = self.inner.notify.get() {
            notify.inval_inode(inode.ino);
            state.pages.told();
        }
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
                        kept: Vec::new(),
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

    /// Of commits found on the device, those up to the one the coordinator has are done: only the note was missing. So are
    /// those up to one of which its layout names a chunk.
    async fn forget_committed(&self, inode: &Inode) {
        let ino = inode.ino;
        let answer = match self.inner.link.ns(NsOp::GetAttr { ino }).await {
            Ok(reply) => reply.result,
            Err(error) => Err(error),
        };
        let Ok(NsAnswer::Attr(attr)) = answer else {
            return;
        };
        let version = attr.layout_version;
        let is_refused = {
            let state = lock(&inode.state);
            let is_known = state.commits.iter().any(|c| c.commit.version == version);
            !is_known
                && state
                    .commits
                    .front()
                    .is_some_and(|c| c.commit.base != version)
        };
        // A power cut can take the seal that the coordinator has, with the notes of those before it.
        let layout = match is_refused {
            true => self.named_layout(ino).await.ok(),
            false => None,
        };
        let is_named = |commit: &Commit| {
            let layout = layout.as_ref();
            layout.is_some_and(|layout| names_a_run(layout, commit, attr.chunk_size))
        };
        let done: Vec<u64> = {
            let mut state = lock(&inode.state);
            let is_done = |c: &PendingCommit| c.commit.version == version || is_named(&c.commit);
            let upto = state.commits.iter().rposition(is_done);
            let upto = upto.map_or(0, |at| at + 1);
            state.commits.drain(..upto).map(|c| c.number).collect()
        };
        if done.is_empty() {
            return;
        }
        // Who closes the file, or hands it over, may wait for them already.
        inode.changed.notify(usize::MAX);
        for number in done {
            self.note_committed(inode, number).await;
        }
    }

    /// A file's layout as the coordinator has it now.
    pub(crate) async fn named_layout(&self, ino: Ino) -> Result<Layout> {
        let write = false;
        let reply = self.inner.link.ns(NsOp::Open { ino, write }).await?;
        expect_answer!(reply, NsAnswer::Opened { layout, .. } => layout)
    }
}

/// Whether a layout names a chunk that came with this commit and no other.
fn names_a_run(layout: &Layout, commit: &Commit, chunk_size: u32) -> bool {
    let is_named = |run: &Run| {
        let mut chunks = run.first..run.first.saturating_add(run.count);
        run.version != Version::NONE
            && chunks.any(|index| {
                let named = layout.chunk(index, chunk_size);
                named.is_some_and(|(version, _)| version == run.version)
            })
    };
    commit.runs.iter().any(is_named)
}
