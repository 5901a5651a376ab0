//! What the agent asks of the data plane.

use crate::inode::InodeState;
use crate::open_chunk::device_error;
use crate::pages::Dropping;
use crate::seal::local_chunk;
use crate::write::At;
use crate::{FileSystem, Result, lock, lock_read};
use fastcache_api::control::{DataAnswer, DataCall, DataStats, SLOT_BYTES};
use fastcache_api::{Attr, ChunkKey, Errno, Ino};
use fastcache_chunkstore::crc_all;
use fastcache_reactor::{IoBuf, Slot};
use fastcache_types::{BLOCK, ChunkId};
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;

impl FileSystem {
    /// Does what a call asks. Runs as a task of its own for each call.
    pub async fn serve(&self, call: DataCall) -> Result<DataAnswer> {
        match call {
            DataCall::Inventory { from } => {
                let (bodies, next) = self.inner.store.inventory(from.unwrap_or(0));
                let chunks = bodies.iter().map(|b| local_chunk(b)).collect();
                Ok(DataAnswer::Inventory { chunks, next })
            }
            DataCall::ReadChunk { key, is_patient } => self.read_for_upload(key, is_patient).await,
            DataCall::MarkClean { keys } => {
                self.inner
                    .store
                    .mark_clean(&keys)
                    .await
                    .map_err(|e| device_error(&e))?;
                self.need_no_replicas(&keys);
                self.give_up_spilled(&keys);
                self.inner.space.freed.notify(usize::MAX);
                Ok(DataAnswer::Done)
            }
            DataCall::Drop { keys } => {
                if let Some(key) = keys.first() {
                    self.drop_keys(key.ino, &keys).await;
                }
                Ok(DataAnswer::Done)
            }
            DataCall::Victims { ids } => {
                self.inner.space.set_victims(ids);
                self.inner.space.freed.notify(usize::MAX);
                Ok(DataAnswer::Done)
            }
            DataCall::Evict { ino, pinned } => Ok(self.evict(ino, pinned).await),
            DataCall::Promote { key } => {
                self.promote_now(key, false).await?;
                Ok(DataAnswer::Done)
            }
            DataCall::Invalidate {
                touched,
                entries,
                inos,
            } => {
                self.invalidate(&touched, &entries, &inos).await;
                Ok(DataAnswer::Done)
            }
            DataCall::Lease {
                until_ns,
                is_shared,
            } => {
                self.set_lease(until_ns, is_shared);
                Ok(DataAnswer::Done)
            }
            DataCall::Locks => {
                // What was granted in an answer that came before this call is noted by then.
                self.answers_sent().await;
                Ok(DataAnswer::Locks(self.inner.locks.all()))
            }
            DataCall::Forget {
                is_shared,
                and_commit,
            } => {
                self.forget_everything(is_shared, and_commit).await;
                Ok(DataAnswer::Done)
            }
            DataCall::ForgetEarlier => {
                self.forget_earlier().await;
                Ok(DataAnswer::Done)
            }
            DataCall::HoldOpen { inos } => {
                self.hold_open(&inos).await?;
                Ok(DataAnswer::Done)
            }
            DataCall::HandOver { inos } => {
                // Also of those that are not known here yet: the answer that makes them known may be on its way.
                for ino in &inos {
                    self.inner.lease.revoked(*ino);
                }
                for ino in inos {
                    if let Some(inode) = self.inner.inodes.get(ino) {
                        self.hand_over(&inode).await;
                    }
                }
                Ok(DataAnswer::Done)
            }
            DataCall::TakeSlot => {
                let slot = self.slot().await;
                Ok(DataAnswer::Slot {
                    slot: slot.lend(),
                    len: 0,
                    crc32c: 0,
                })
            }
            DataCall::ReadFile { ino, offset, len } => self.read_to_slot(ino, offset, len).await,
            DataCall::WriteFile {
                ino,
                offset,
                slot,
                len,
            } => self.write_from_slot(ino, offset, slot, len).await,
            DataCall::Seal { ino, is_durable } => {
                self.seal_for_agent(ino, is_durable).await?;
                Ok(DataAnswer::Done)
            }
            DataCall::Abandon { ino } => {
                self.orphaned(ino);
                Ok(DataAnswer::Done)
            }
            DataCall::Peers {
                me,
                file_system,
                peers,
            } => {
                if let Some(tier) = self.inner.peers.get() {
                    tier.set(me, file_system, &peers);
                }
                Ok(DataAnswer::Done)
            }
            DataCall::Copies { ino } => Ok(DataAnswer::Copies(self.copies_of(ino))),
            DataCall::Stats => Ok(DataAnswer::Stats(Box::new(self.stats()))),
        }
    }

    async fn slot(&self) -> Slot {
        let arena = lock_read(&self.inner.arena).clone();
        arena.take().await
    }

    /// The agent gives a slot back.
    pub fn release_slot(&self, index: u32) {
        drop(lock_read(&self.inner.arena).reclaim(index));
    }

    async fn read_for_upload(&self, key: ChunkKey, is_patient: bool) -> Result<DataAnswer> {
        if is_patient && self.is_being_rewritten(key.id()) {
            return Err(Errno::EAGAIN);
        }
        let body = self
            .inner
            .store
            .get(key.id())
            .filter(|b| b.key() == key)
            .ok_or(Errno::ENOENT)?;
        let (slot, mut buf) = emptied(self.slot().await);
        let len = body.len() as usize;
        let rest = buf.split_off(len.next_multiple_of(BLOCK).min(buf.len()));
        let (result, mut buf) = self.inner.store.read(&body, 0, buf).await;
        if let Err(error) = result {
            // Whoever looks whether it is elsewhere needs a slot.
            drop((slot, buf, rest));
            return Err(self.upload_error(&body, &error).await);
        }
        let crc32c = crc_all(&buf[..len]);
        buf.unsplit(rest).map_err(|_| Errno::EIO)?;
        Ok(DataAnswer::Slot {
            slot: filled(slot, buf).lend(),
            len: body.len(),
            crc32c,
        })
    }

    /// Whether a next version of a chunk is open and has bytes already.
    fn is_being_rewritten(&self, id: ChunkId) -> bool {
        self.inner.inodes.get(id.ino).is_some_and(|inode| {
            let open = lock(&inode.state).open_chunks.get(&id.index).cloned();
            open.is_some_and(|chunk| lock(&chunk.state).is_dirty)
        })
    }

    async fn read_to_slot(&self, ino: Ino, offset: u64, len: u32) -> Result<DataAnswer> {
        let (slot, buf) = emptied(self.slot().await);
        let want = (len as usize).min(SLOT_BYTES);
        let (result, buf) = self.read(ino, 0, offset, want, buf).await;
        let n = result?;
        let crc32c = crc_all(&buf[..n]);
        let len = u32::try_from(n).map_err(|_| Errno::EIO)?;
        Ok(DataAnswer::Slot {
            slot: filled(slot, buf).lend(),
            len,
            crc32c,
        })
    }

    async fn write_from_slot(
        &self,
        ino: Ino,
        offset: u64,
        slot: u32,
        len: u32,
    ) -> Result<DataAnswer> {
        let taken = lock_read(&self.inner.arena).reclaim(slot);
        let (_slot, mut buf) = emptied(taken.ok_or(Errno::EINVAL)?);
        if len as usize > buf.len() {
            return Err(Errno::EINVAL);
        }
        let _rest = buf.split_off(len as usize);
        let inode = self.inner.inodes.get_or_insert(ino);
        let at = At::Offset(offset);
        self.write_at(&inode, at, buf, false, true).await.0?;
        Ok(DataAnswer::Done)
    }

    async fn seal_for_agent(&self, ino: Option<Ino>, is_durable: bool) -> Result<()> {
        let inodes = match ino {
            Some(ino) => self.inner.inodes.get(ino).into_iter().collect(),
            None => self.inner.inodes.all(),
        };
        for inode in &inodes {
            self.seal_file(inode, false).await?;
        }
        if is_durable {
            self.flush_device().await?;
        }
        for inode in inodes {
            self.commits_done(&inode).await?;
            self.safe_somewhere(&inode).await?;
            let ino = inode.ino;
            drop(inode);
            self.inner.inodes.drop_if_idle(ino);
        }
        Ok(())
    }

    async fn evict(&self, only: Option<Ino>, pinned: Vec<Ino>) -> DataAnswer {
        let pinned: HashSet<Ino> = pinned.into_iter().collect();
        let mut inos = BTreeSet::new();
        let mut ids: Vec<ChunkId> = Vec::new();
        match only {
            Some(ino) => {
                ids.extend(self.inner.store.chunks_of(ino).iter().map(|b| b.key().id()));
                inos.insert(ino);
            }
            None => {
                let mut from = 0;
                loop {
                    let (bodies, next) = self.inner.store.inventory(from);
                    ids.extend(bodies.iter().map(|b| b.key().id()));
                    match next {
                        Some(n) => from = n,
                        None => break,
                    }
                }
                inos.extend(self.inner.inodes.all().iter().map(|i| i.ino));
            }
        }
        let (mut chunks, mut bytes) = (0, 0);
        for id in ids {
            if pinned.contains(&id.ino) {
                continue;
            }
            if let Some(n) = self.evict_one(id) {
                chunks += 1;
                bytes += n;
                inos.insert(id.ino);
            }
        }
        self.inner.space.freed.notify(usize::MAX);
        if let Some(notify) = self.inner.notify.get() {
            for ino in inos {
                notify.inval_inode(ino);
            }
        }
        self.kernel_knows().await;
        DataAnswer::Evicted { chunks, bytes }
    }

    async fn invalidate(&self, touched: &[Attr], entries: &[(Ino, Vec<u8>)], inos: &[Ino]) {
        let notify = self.inner.notify.get();
        let lease = &self.inner.lease;
        let is_shared = lease.is_shared();
        for (parent, name) in entries {
            lease.revoked(*parent);
            match is_shared {
                // With it the lease on the directory is gone.
                true => self.inner.entries.forget(*parent),
                false => self.inner.entries.others_changed(lease, *parent, name),
            }
        }
        for attr in touched {
            lease.revoked(attr.ino);
            if let Some(inode) = self.inner.inodes.get(attr.ino) {
                let mut state = lock(&inode.state);
                // Where there are other nodes, no lease comes with it.
                let learned = if is_shared { 0 } else { lease.epoch() };
                state.may_have_missed |= is_shared;
                state.learn(attr, learned);
                state.xattrs = None;
            }
            // Without an entry it is a new inode whose name is still to come (REST PUT).
            if attr.nlink == 0 && !entries.is_empty() {
                // Another node's (only those name inodes) is reaped there, when nobody here has it open.
                let is_theirs = is_shared && !inos.is_empty();
                let inode = self.inner.inodes.get(attr.ino);
                if !is_theirs || inode.is_some_and(|i| lock(&i.state).opens > 0) {
                    self.orphaned(attr.ino);
                }
            }
        }
        for ino in inos {
            lease.revoked(*ino);
            self.inner.entries.forget(*ino);
            if let Some(inode) = self.inner.inodes.get(*ino) {
                {
                    // From now on it is asked for, by who reads and by who writes.
                    let mut state = lock(&inode.state);
                    state.learned = 0;
                    state.may_have_missed |= is_shared;
                }
                self.give_up_writing(&inode).await;
                let is_open_orphan = {
                    let mut state = lock(&inode.state);
                    if !state.has_local_changes() && !state.is_orphan {
                        state.attr = None;
                        state.layout = None;
                        state.learned = 0;
                    }
                    state.xattrs = None;
                    state.is_kernel_stale = true;
                    state.pages.all_wrong();
                    state.is_orphan && state.opens > 0
                };
                if is_open_orphan {
                    // The lease that comes with it keeps it from being reaped as long as it is open here.
                    let _ = self.hold(&inode).await;
                }
            }
        }
        if is_shared {
            self.answers_sent().await;
        }
        if let Some(n) = notify {
            let touched = touched.iter().map(|attr| attr.ino);
            let mut told = HashSet::new();
            let mut dropping = Vec::new();
            for ino in touched.chain(inos.iter().copied()) {
                if let Some(inode) = self.inner.inodes.get(ino) {
                    let mut state = lock(&inode.state);
                    dropping.push(Dropping::of(&inode, &mut state));
                    n.inval_inode(ino);
                } else {
                    n.inval_inode(ino);
                }
                told.insert(ino);
            }
            if is_shared && !entries.is_empty() {
                // Dropping a single name takes its directory's lock: see `name_valid`.
                n.inval_names();
            } else {
                for (parent, name) in entries {
                    n.inval_entry(*parent, name);
                }
            }
            self.kernel_dropped(told, dropping).await;
        }
    }

    /// Counters and levels now.
    pub fn stats(&self) -> DataStats {
        let usage = self.inner.store.usage();
        let errors = self.inner.store.errors();
        let health = self.inner.store.health();
        let arena = lock_read(&self.inner.arena).clone();
        let c = &self.inner.counters;
        let get = |n: &fastcache_reactor::sync::AtomicU64| n.load(Ordering::Relaxed);
        let mut stats = DataStats {
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            dirty_bytes: usage.dirty_bytes,
            chunks: usage.chunks,
            dirty_chunks: usage.dirty_chunks,
            nvme_hits: c.hits.iter().map(|h| get(&h.reads)).sum(),
            nvme_hit_bytes: c.hits.iter().map(|h| get(&h.bytes)).sum(),
            misses: get(&c.misses),
            fetched_chunks: get(&c.fetched_chunks),
            fetched_bytes: get(&c.fetched_bytes),
            evicted_chunks: get(&c.evicted_chunks),
            evicted_bytes: get(&c.evicted_bytes),
            written_bytes: get(&c.written_bytes),
            checksum_errors: errors.checksum_errors,
            device_errors: errors.device_errors,
            is_device_lost: health.is_lost,
            spilled_bytes: health.spilled_bytes,
            bad_bytes: health.bad_bytes,
            unreadable_chunks: self.unreadable_chunks(),
            write_stalls: get(&c.write_stalls),
            uncommitted_files: get(&c.uncommitted_files),
            namespace_calls: self.inner.link.ns_calls(),
            conflict_files: get(&c.conflict_files),
            ahead_chunks: get(&c.ahead_chunks),
            ahead_bytes: get(&c.ahead_bytes),
            ahead_used: get(&c.ahead_used),
            ahead_wasted: get(&c.ahead_wasted),
            ahead_failed: get(&c.ahead_failed),
            arena_slots: u64::try_from(arena.slots()).unwrap_or(0),
            arena_free: u64::try_from(arena.free()).unwrap_or(0),
            fetching_chunks: u64::try_from(self.inner.flights.count()).unwrap_or(0),
            peers: self.peer_stats(),
            fuse_requests: Vec::new(),
            fuse_latency: Vec::new(),
            fsync_latency: self.inner.fsyncs.latencies(),
            transport: String::new(),
            transport_why: String::new(),
            stuck_cores: Vec::new(),
            core_stalls: 0,
            memory: Default::default(),
            uptime_s: fastcache_reactor::now()
                .duration_since(self.inner.started)
                .as_secs(),
        };
        if let Some(fill) = self.inner.extra_stats.get() {
            fill(&mut stats);
        }
        stats
    }

    /// Everything sealed and committed, as far as the agent is there; for an ordered end.
    pub async fn write_back(&self) {
        if let Err(error) = self.sync_all().await {
            tracing::error!(target: "cache", %error, "not everything could be sealed at the end");
        }
        if self.inner.link.is_connected() {
            for inode in self.inner.inodes.all() {
                let _ = fastcache_reactor::timeout(
                    std::time::Duration::from_secs(5),
                    self.commits_done(&inode),
                )
                .await;
            }
            self.reap_orphans().await;
        }
    }

    /// The mount is off: nothing is used any more that the agent told, and it need not be held for this node. What is not
    /// committed needs the lease to its end.
    pub async fn leave(&self) {
        let uncommitted = self.inner.inodes.those(InodeState::is_uncommitted);
        if uncommitted.is_empty() {
            self.inner.link.left().await;
        }
    }

    /// Closes the store.
    pub async fn stop(&self) {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
        if let Err(error) = self.inner.store.close().await {
            tracing::error!(target: "nvme", %error, "the store could not be closed in order; the next start replays its journal");
        }
    }
}

/// A slot's memory, to be used and put back by `filled`.
fn emptied(mut slot: Slot) -> (Slot, IoBuf) {
    let buf = std::mem::replace(&mut slot.buf, IoBuf::alloc(0));
    (slot, buf)
}

fn filled(mut slot: Slot, buf: IoBuf) -> Slot {
    slot.buf = buf;
    slot
}
