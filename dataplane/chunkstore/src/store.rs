//! The store as its callers see it: what it holds, its space, and changes that need no data.

use crate::append::Flusher;
use crate::body::{ChunkBody, ChunkInfo, Pool};
use crate::device::Device;
use crate::error::StoreError;
use crate::index::{Index, STRIPES, Stripe};
use crate::journal::Journal;
use crate::record::Record;
use crate::slots::ids_of;
use crate::superblock::Superblock;
use fastcache_reactor::sync::{AtomicU64, Mutex, MutexGuard};
use fastcache_reactor::{IoBuf, sleep};
use fastcache_types::{BLOCK_U64, ChunkId, ChunkKey, Extent, Ino};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How often the background task looks whether freed space or records wait for a flush. Also bounds what a power cut takes
/// of what was only closed, and what a start verifies: see `tail.rs`.
const BACKGROUND_PERIOD: Duration = Duration::from_secs(1);
/// Keys for which `mark_clean` and `remove` ask the journal for room at once: a block each, because records of others
/// may come in between.
const KEYS_PER_ADMISSION: usize = 32;
/// Bytes of a CLEAN, REMOVE or COMMITTED record with its ticket, at most.
const SMALL_RECORD: usize = 36;
/// Bodies in a page of the inventory, at least (except the last).
const INVENTORY_PAGE: usize = 1024;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A block device, a partition, a file, or a directory (which gets one file).
    pub path: PathBuf,
    /// Size of the file that is made when there is none, bytes. Not for devices.
    pub capacity_bytes: u64,
    /// Erase what is there, if it is a store or nothing.
    pub format: bool,
    /// With `format`: erase whatever is there.
    pub force: bool,
    /// RAM for checksums of chunks, bytes.
    pub crc_budget_bytes: usize,
}

/// Levels of the store, bytes unless named otherwise. `used + free + reserved + quarantined` is the capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Of the data region.
    pub capacity_bytes: u64,
    /// Allocated: headers, data, rounding.
    pub used_bytes: u64,
    /// Chunks that are not yet in the cloud, with their headers.
    pub dirty_bytes: u64,
    /// Chunks, number.
    pub chunks: u64,
    /// Of those dirty, number.
    pub dirty_chunks: u64,
    /// What `allocate` and `allocate_pieces` can hand out now.
    pub free_bytes: u64,
    /// Free, but kept back for the headers of dirty chunks.
    pub reserved_bytes: u64,
    /// Freed, but not before the next flush.
    pub quarantined_bytes: u64,
    /// RAM that checksums take.
    pub crc_cache_bytes: u64,
}

/// How well the device takes writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// The journal cannot be written, or a flush failed: until the next start, nothing new survives the process here.
    pub is_lost: bool,
    /// Bytes that the device refused and that are in RAM alone.
    pub spilled_bytes: u64,
    /// Bytes of the device that it refused to write and that are not used any more.
    pub bad_bytes: u64,
}

/// Errors since the store was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorCounters {
    /// Blocks and headers that did not match their checksum.
    pub checksum_errors: u64,
    /// Reads, writes and flushes that the device failed.
    pub device_errors: u64,
}

/// An uncommitted SEAL record.
#[derive(Clone)]
pub(crate) struct Seal {
    pub(crate) ino: Ino,
    pub(crate) commit: Arc<[u8]>,
}

/// SEAL records without a COMMITTED record. Changed under its lock together with the journal's queue, as stripes are.
pub(crate) struct Seals {
    pub(crate) pending: BTreeMap<u64, Seal>,
    pub(crate) next_number: u64,
    /// What they take in a checkpoint.
    pub(crate) bytes: u64,
}

pub(crate) struct Inner {
    pub(crate) superblock: Superblock,
    pub(crate) device: Device,
    pub(crate) pool: Arc<Pool>,
    pub(crate) index: Index,
    pub(crate) journal: Journal,
    pub(crate) flusher: Flusher,
    seals: Mutex<Seals>,
    /// Chunks whose blocks are not reused: see [`Inner::lose_journal`].
    pub(crate) kept: Mutex<Vec<Arc<ChunkBody>>>,
    /// The last header's stamp: rises for ever, the generation is in its upper half.
    stamp: AtomicU64,
}

/// Chunks on a device. Clones share it; it may be used from every core, on reactor threads.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

impl Inner {
    pub(crate) fn new(
        superblock: Superblock,
        device: Device,
        pool: Arc<Pool>,
        index: Index,
        journal: Journal,
        seals: Seals,
    ) -> Inner {
        Inner {
            stamp: AtomicU64::new(u64::from(superblock.generation) << 32),
            superblock,
            device,
            pool,
            index,
            journal,
            flusher: Flusher::default(),
            seals: Mutex::new(seals),
            kept: Mutex::default(),
        }
    }

    pub(crate) fn seals(&self) -> MutexGuard<'_, Seals> {
        self.seals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uncommitted seals as they are now, the last ticket they have seen, and the next number.
    pub(crate) fn seals_snapshot(&self) -> (Vec<(u64, Seal)>, u64, u64) {
        let seals = self.seals();
        let ticket = self.journal.last();
        let all = seals.pending.iter().map(|(&n, s)| (n, s.clone())).collect();
        (all, ticket, seals.next_number)
    }

    pub(crate) fn next_stamp(&self) -> u64 {
        self.stamp.fetch_add(1, Ordering::Relaxed)
    }

    /// Removes a version from a locked stripe and keeps the counts right.
    fn take_out(&self, stripe: &mut Stripe, key: ChunkKey) -> Option<Arc<ChunkBody>> {
        let id = key.id();
        let was_current = stripe.current.get(&id).is_some_and(|b| b.key() == key);
        let body = stripe.remove(key)?;
        if was_current {
            self.index.count_out(&body);
            if let Some(prior) = stripe.current.get(&id) {
                self.index.count_in(prior);
            }
        }
        Some(body)
    }
}

impl Store {
    /// The sealed body of a chunk. No I/O.
    #[must_use]
    pub fn get(&self, id: ChunkId) -> Option<Arc<ChunkBody>> {
        self.inner.index.get(id)
    }

    /// This version of a chunk, sealed, also when a later one that waits for its file's SEAL record stands in front of it.
    /// No I/O.
    #[must_use]
    pub fn find(&self, key: ChunkKey) -> Option<Arc<ChunkBody>> {
        let id = key.id();
        let stripe = self.inner.index.of(key.ino);
        let prior = stripe.pending.get(&id).and_then(Option::as_ref);
        let current = stripe.current.get(&id);
        current
            .into_iter()
            .chain(prior)
            .find(|body| body.key() == key)
            .cloned()
    }

    /// One contiguous extent of exactly `blocks`, or `None`: then evict and [`Store::reclaim`].
    #[must_use]
    pub fn allocate(&self, blocks: u32) -> Option<Extent> {
        self.inner.pool.space.allocate(blocks, false)
    }

    /// As few extents as possible that add up to `blocks`; `None` takes nothing.
    #[must_use]
    pub fn allocate_pieces(&self, blocks: u32) -> Option<SmallVec<[Extent; 4]>> {
        self.inner.pool.space.allocate_pieces(blocks)
    }

    /// Gives back blocks that were allocated and never sealed; they are reusable at once, so that no write to them may
    /// be under way.
    pub fn release(&self, e: Extent) {
        let foreign = self.inner.pool.space.release(e);
        if foreign > 0 {
            tracing::error!(target: "nvme", ?e, foreign, "blocks were released that were not lent; they stay as they are");
        }
    }

    /// Writes `buf` (whole blocks) to allocated blocks from device block `first` on. What the device refuses is kept in
    /// RAM (see [`Store::is_volatile`]); an error only when there is no room for that either.
    pub async fn write_blocks(&self, first: u32, buf: IoBuf) -> (Result<(), StoreError>, IoBuf) {
        self.inner.device.write_or_keep(first, buf).await
    }

    /// Reads allocated blocks that were not sealed yet. The caller checks them: their checksums are his.
    pub async fn read_blocks(&self, first: u32, buf: IoBuf) -> (Result<(), StoreError>, IoBuf) {
        self.inner.device.read(first, buf).await
    }

    /// The commit of a SEAL record is known to the coordinator. The record is appended lazily; if it is lost, the next
    /// start hands the seal out once more.
    ///
    /// # Errors
    /// `Invalid` when no such record waits.
    pub async fn committed(&self, ino: Ino, number: u64) -> Result<(), StoreError> {
        let admission = self.admit(SMALL_RECORD).await;
        let mut seals = self.inner.seals();
        match seals.pending.get(&number) {
            Some(seal) if seal.ino == ino => {
                let bytes = crate::record::seal_bytes(seal.commit.len());
                seals.bytes -= bytes;
                seals.pending.remove(&number);
            }
            _ => {
                return Err(StoreError::Invalid(
                    "no such SEAL record waits for its commit",
                ));
            }
        }
        let mut record = Vec::new();
        Record::Committed { number }.encode(&mut record);
        self.inner.journal.enqueue(&self.inner.pool.space, &record);
        drop(seals);
        drop(admission);
        self.kick_if_long();
        Ok(())
    }

    /// Marks these versions clean: they are in the cloud. Returns those that are here; written to the journal, not
    /// flushed.
    ///
    /// # Errors
    /// None: a journal that is lost drops the record.
    pub async fn mark_clean(&self, keys: &[ChunkKey]) -> Result<Vec<ChunkKey>, StoreError> {
        let inner = &*self.inner;
        let mut marked = Vec::new();
        let mut ticket = 0;
        for keys in keys.chunks(KEYS_PER_ADMISSION) {
            let _admission = self
                .admit_blocks(u32::try_from(keys.len()).unwrap_or(u32::MAX))
                .await;
            for &key in keys {
                let mut stripe = inner.index.of(key.ino);
                let dirty = stripe
                    .current
                    .get(&key.id())
                    .filter(|b| b.key() == key && b.is_dirty())
                    .cloned();
                if !stripe.clean(key) {
                    continue;
                }
                if let Some(body) = dirty {
                    inner.index.count_clean(&body);
                }
                let mut record = Vec::with_capacity(SMALL_RECORD);
                Record::Clean(key).encode(&mut record);
                ticket = inner.journal.enqueue(&inner.pool.space, &record);
                marked.push(key);
            }
        }
        self.wait_written(ticket).await;
        Ok(marked)
    }

    /// These versions need not be kept for another node any more, as far as they are: one that was sealed as this node's own
    /// meanwhile stays as it is. Written to the journal, not flushed.
    pub async fn unkeep(&self, keys: &[ChunkKey]) {
        let inner = &*self.inner;
        let mut ticket = 0;
        for keys in keys.chunks(KEYS_PER_ADMISSION) {
            let blocks = u32::try_from(keys.len()).unwrap_or(u32::MAX);
            let _admission = self.admit_blocks(blocks).await;
            for &key in keys {
                let mut stripe = inner.index.of(key.ino);
                let current = stripe.current.get(&key.id());
                let is_kept = |b: &Arc<ChunkBody>| b.key() == key && b.is_kept() && !b.is_dirty();
                if !current.is_some_and(is_kept) {
                    continue;
                }
                stripe.clean(key);
                let mut record = Vec::with_capacity(SMALL_RECORD);
                Record::Clean(key).encode(&mut record);
                ticket = inner.journal.enqueue(&inner.pool.space, &record);
            }
        }
        self.wait_written(ticket).await;
    }

    /// Drops these versions, dirty or not. Returns what was dropped; written to the journal, not flushed. Blocks are
    /// freed when the last handle is gone and a flush followed.
    ///
    /// # Errors
    /// None: a journal that is lost drops the record.
    pub async fn remove(&self, keys: &[ChunkKey]) -> Result<Vec<ChunkInfo>, StoreError> {
        let inner = &*self.inner;
        let mut removed = Vec::new();
        let mut ticket = 0;
        for keys in keys.chunks(KEYS_PER_ADMISSION) {
            let _admission = self
                .admit_blocks(u32::try_from(keys.len()).unwrap_or(u32::MAX))
                .await;
            for &key in keys {
                let mut stripe = inner.index.of(key.ino);
                let Some(body) = inner.take_out(&mut stripe, key) else {
                    continue;
                };
                let mut record = Vec::with_capacity(SMALL_RECORD);
                Record::Remove(key).encode(&mut record);
                ticket = inner.journal.enqueue(&inner.pool.space, &record);
                drop(stripe);
                removed.push(ChunkInfo::of(&body));
            }
        }
        self.wait_written(ticket).await;
        Ok(removed)
    }

    /// Evicts a chunk if it is clean: its key and what it took, bytes. A pending chunk goes with the one it replaced,
    /// when that is clean, too: the cloud has both, whichever the file will name. The records are appended lazily, the
    /// blocks are free after the last handle is gone and a flush followed. `None` also when the journal is full.
    #[must_use]
    pub fn evict(&self, id: ChunkId) -> Option<(ChunkKey, u64)> {
        let inner = &*self.inner;
        if !inner.journal.takes_lazy() {
            return None;
        }
        let mut stripe = inner.index.of(id.ino);
        let body = stripe.current.get(&id)?;
        let prior = stripe.pending.get(&id).and_then(Option::as_ref);
        if body.is_dirty() || prior.is_some_and(|b| b.is_dirty()) {
            return None;
        }
        let key = body.key();
        let prior = prior.map(|b| b.key());
        let mut bytes = 0;
        for key in [Some(key), prior].into_iter().flatten() {
            let body = inner.take_out(&mut stripe, key)?;
            let mut record = Vec::with_capacity(SMALL_RECORD);
            Record::Remove(key).encode(&mut record);
            inner.journal.enqueue(&inner.pool.space, &record);
            bytes += body.device_bytes();
        }
        drop(stripe);
        self.kick_if_long();
        Some((key, bytes))
    }

    fn kick_if_long(&self) {
        if self.inner.journal.is_long() {
            self.kick();
        }
    }

    /// The sealed chunks of a file, by index.
    #[must_use]
    pub fn chunks_of(&self, ino: Ino) -> Vec<Arc<ChunkBody>> {
        let stripe = self.inner.index.of(ino);
        stripe.current.range(ids_of(ino)).cloned().collect()
    }

    /// A page of all sealed chunks, and where the next page starts. Start with 0.
    #[must_use]
    pub fn inventory(&self, from: u64) -> (Vec<Arc<ChunkBody>>, Option<u64>) {
        let mut page = Vec::new();
        let mut at = usize::try_from(from).unwrap_or(STRIPES);
        while at < STRIPES && page.len() < INVENTORY_PAGE {
            page.extend(self.inner.index.stripe(at).current.values().cloned());
            at += 1;
        }
        (page, (at < STRIPES).then_some(at as u64))
    }

    /// Levels now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let inner = &*self.inner;
        let levels = inner.pool.space.levels();
        Usage {
            capacity_bytes: levels.capacity * BLOCK_U64,
            used_bytes: levels.used * BLOCK_U64,
            dirty_bytes: inner.index.dirty_bytes.load(Ordering::Relaxed),
            chunks: inner.index.chunks.load(Ordering::Relaxed),
            dirty_chunks: inner.index.dirty_chunks.load(Ordering::Relaxed),
            free_bytes: (levels.free - levels.reserved) * BLOCK_U64,
            reserved_bytes: levels.reserved * BLOCK_U64,
            quarantined_bytes: levels.quarantined * BLOCK_U64,
            crc_cache_bytes: inner.pool.crcs.bytes() as u64,
        }
    }

    /// Changes the RAM for checksums, bytes; what is beyond it goes at once.
    pub fn set_crc_budget(&self, bytes: usize) {
        self.inner.pool.crcs.set_budget(bytes);
    }

    /// Errors since the store was opened.
    #[must_use]
    pub fn errors(&self) -> ErrorCounters {
        ErrorCounters {
            checksum_errors: self.inner.device.checksum_errors.load(Ordering::Relaxed),
            device_errors: self.inner.device.device_errors.load(Ordering::Relaxed),
        }
    }

    /// Whether what was sealed may not survive this process: the device refused some of it. Whoever is about to promise
    /// more brings it to the cloud first.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        let inner = &*self.inner;
        !inner.device.spill.is_empty() || inner.journal.is_lost()
    }

    /// Whether a part of a chunk is in RAM alone: once it is in the cloud it is better evicted.
    #[must_use]
    pub fn is_spilled(&self, body: &ChunkBody) -> bool {
        body.extents().any(|e| self.inner.device.spill.touches(e))
    }

    /// How well the device takes writes.
    #[must_use]
    pub fn health(&self) -> Health {
        let device = &self.inner.device;
        Health {
            is_lost: self.inner.journal.is_lost(),
            spilled_bytes: device.spill.bytes(),
            bad_bytes: device.spill.bad_bytes(),
        }
    }

    /// Makes the blocks of everything that was freed and has no handle any more allocatable: one flush.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub async fn reclaim(&self) -> Result<(), StoreError> {
        self.flush().await
    }

    /// For ever: writes lazy records and flushes, so that freed space becomes usable and what was sealed durable, at most
    /// once a second. To be spawned on one core.
    pub async fn background(&self) {
        loop {
            sleep(BACKGROUND_PERIOD).await;
            if self.inner.pool.space.quarantined() == 0 && !self.inner.journal.is_unflushed() {
                self.inner.journal.say_flushed();
                self.kick();
                continue;
            }
            match self.flush().await {
                // A lost journal frees without a flush, and was said when it was lost.
                Ok(()) | Err(StoreError::Sick) => {}
                Err(error) => tracing::error!(target: "nvme", %error, "flush failed"),
            }
        }
    }

    /// Writes a checkpoint and flushes, so that the next start is quick. The store can still be used afterwards.
    ///
    /// # Errors
    /// `Sick` or `Device`.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.checkpoint().await
    }
}
