//! A device that fails. What it refuses to take is on another node's device or in the cloud, whichever is first, before `close` or
//! `fsync` says that it is safe; what it cannot give back is fetched again, and where nothing else has it, said.

use crate::fsync::CopiedTo;
use crate::inode::Inode;
use crate::link::unexpected;
use crate::open_chunk::device_error;
use crate::{FileSystem, Result, lock};
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::{ChunkKey, Errno, Ino};
use fastcache_chunkstore::{ChunkBody, StoreError};
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::timeout;
use futures_util::future::{Either, select};
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// How long other nodes may take for what neither the device nor the cloud takes.
const COPIES_MAX: Duration = Duration::from_secs(60);
/// Most chunks remembered as unreadable; the count says "at least" beyond.
const UNREADABLE_MAX: usize = 4096;

/// Dirty chunks that the device does not give back.
#[derive(Default)]
pub(crate) struct Unreadable(Mutex<BTreeSet<ChunkKey>>);

/// How often a file was sealed where the device may lose it; `None` when nothing of it is only there.
fn volatile_seals(inode: &Inode) -> Option<u32> {
    let state = lock(&inode.state);
    (state.is_volatile && !state.is_orphan).then_some(state.volatile_seals)
}

/// What these seals left is in the cloud. What was sealed since is another matter.
fn safe_upto(inode: &Inode, seals: u32) {
    let mut state = lock(&inode.state);
    if state.volatile_seals == seals {
        state.is_volatile = false;
    }
}

impl FileSystem {
    /// Flushes the device. One that refuses is made good by [`FileSystem::safe_somewhere`].
    pub(crate) async fn flush_device(&self) -> Result<()> {
        match self.inner.store.flush().await {
            Err(_) if self.inner.store.is_volatile() => Ok(()),
            flushed => flushed.map_err(|e| device_error(&e)),
        }
    }

    /// Behind a seal: notes whether the device may lose it.
    pub(crate) fn note_volatile(&self, inode: &Inode) {
        if self.inner.store.is_volatile() {
            let mut state = lock(&inode.state);
            state.is_volatile = true;
            state.volatile_seals = state.volatile_seals.wrapping_add(1);
        }
    }

    /// What the device may lose of a file is elsewhere, with its commit, when this returns. EIO when neither other nodes nor the
    /// cloud take anything for a minute: nothing is lost then while the process lives, and uploads go on.
    pub(crate) async fn safe_somewhere(&self, inode: &Arc<Inode>) -> Result<()> {
        let Some(seals) = volatile_seals(inode) else {
            return Ok(());
        };
        self.commits_done(inode).await?;
        self.reach_others(Some(inode.ino), self.dirty_of(inode.ino))
            .await?;
        safe_upto(inode, seals);
        Ok(())
    }

    /// The same of every file, with one wait for all.
    pub(crate) async fn all_safe_somewhere(&self) -> Result<()> {
        let mut all = Vec::new();
        let mut result = Ok(());
        for inode in self.inner.inodes.all() {
            if let Some(seals) = volatile_seals(&inode) {
                match self.commits_done(&inode).await {
                    Ok(()) => all.push((inode, seals)),
                    Err(e) => result = Err(e),
                }
            }
        }
        if all.is_empty() {
            return result;
        }
        let dirty = all.iter().flat_map(|(inode, _)| self.dirty_of(inode.ino));
        self.reach_others(None, dirty.collect()).await?;
        for (inode, seals) in all {
            safe_upto(&inode, seals);
        }
        result
    }

    /// Races other nodes against the cloud for what the device may lose. `ino`: what the cloud is to have; `None`: everything.
    async fn reach_others(&self, ino: Option<Ino>, keys: Vec<ChunkKey>) -> Result<()> {
        let persisted = self.persist(ino);
        let Some(copied) = self.copies_begun(keys) else {
            return persisted.await;
        };
        match select(pin!(copied), pin!(persisted)).await {
            // Some of it got to the cloud before: with the record that says so, too.
            Either::Left((CopiedTo::Cloud, persisted)) => persisted.await,
            Either::Left((CopiedTo::Nodes, _)) | Either::Right((Ok(()), _)) => Ok(()),
            // There is no cloud, or it takes nothing: other nodes may.
            Either::Right((Err(error), copied)) => match timeout(COPIES_MAX, copied).await {
                Ok(CopiedTo::Nodes) => Ok(()),
                _ => Err(error),
            },
        }
    }

    async fn persist(&self, ino: Option<Ino>) -> Result<()> {
        let persisted = self.with_the_cloud(|waited| NodeCall::Persist { ino, waited });
        match persisted.await? {
            NodeAnswer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// These are in the cloud now: those that are in RAM because the device refused them make room.
    pub(crate) fn give_up_spilled(&self, keys: &[ChunkKey]) {
        if !self.inner.store.is_volatile() {
            return;
        }
        for key in keys {
            let body = self.inner.store.get(key.id());
            if body.is_some_and(|b| b.key() == *key && self.inner.store.is_spilled(&b)) {
                self.evict_one(key.id());
            }
        }
    }

    /// A chunk in the store cannot be read: when the cloud has it, it is dropped here and fetched again.
    /// Answers whether that is so; a chunk that is nowhere else stays for a later try. One that is dirty may be in the cloud
    /// all the same: the record that says so is lost with the journal, or by a power cut, and what the device had refused
    /// is nowhere else then.
    pub(crate) async fn drop_unreadable(&self, body: &ChunkBody, error: &StoreError) -> bool {
        let key = body.key();
        // A copy whose owner is there is given anew, and need not be kept.
        let may_be_alone = body.is_dirty() || self.left_replicas().iter().any(|of| of.key == key);
        if may_be_alone && !self.is_in_cloud(key).await {
            self.note_unreadable(key, error);
            return false;
        }
        tracing::warn!(target: "nvme", %key, %error, "a cached chunk cannot be read: it is fetched again");
        self.drop_keys(key.ino, &[key]).await;
        true
    }

    /// A dirty chunk cannot be read. Said once a chunk, and counted.
    fn note_unreadable(&self, key: ChunkKey, error: &StoreError) {
        let mut all = lock(&self.inner.unreadable.0);
        if all.len() < UNREADABLE_MAX && all.insert(key) {
            tracing::error!(target: "nvme", %key, %error, "a chunk that is not in the cloud yet cannot be read: its file gives EIO there; write it anew or restore it");
        }
    }

    /// Dirty chunks that could not be read and are still the current ones.
    pub(crate) fn unreadable_chunks(&self) -> u64 {
        let mut all = lock(&self.inner.unreadable.0);
        all.retain(|key| {
            let body = self.inner.store.get(key.id());
            body.is_some_and(|b| b.key() == *key && b.is_dirty())
        });
        u64::try_from(all.len()).unwrap_or(u64::MAX)
    }

    /// For uploads: the error of a dirty chunk's read. ENOENT when it need not be uploaded, because the cloud has it.
    pub(crate) async fn upload_error(&self, body: &ChunkBody, error: &StoreError) -> Errno {
        let is_dropped = body.is_dirty() && self.drop_unreadable(body, error).await;
        if is_dropped {
            Errno::ENOENT
        } else {
            Errno::EIO
        }
    }
}
