//! Sealing: data and headers to the device, then the records to the journal, then (already) in the index.
//!
//! Order: data and header are written before the record that names them is queued; the index has the change as soon as
//! the record is queued, and the caller hears of it when the record is written.

use crate::body::{BlockRun, BodyFacts, ChunkBody, ChunkMeta, Runs, check_runs};
use crate::checkpoint::{commit_max, usable_bytes};
use crate::crc::crc_blocks;
use crate::device::join;
use crate::error::StoreError;
use crate::header;
use crate::record::{encode_put, encode_seal, put_bytes, seal_bytes};
use crate::store::{Inner, Seal, Store};
use fastcache_reactor::{IoBuf, Task, spawn};
use fastcache_types::{BLOCK, BLOCK_U64, ChunkKey, Extent, Ino, blocks_of};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use smallvec::SmallVec;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

/// Chunks of one seal that are written at the same time.
const CHUNKS_IN_FLIGHT: usize = 16;
/// Up to this many bytes, header and data are copied together and written at once; above, two writes are cheaper.
const COPY_MAX: usize = 128 << 10;
/// Bytes of records of one submission, when the ring is large: several seals share a group.
const SUBMISSION_BYTES: usize = 128 << 10;

/// A chunk to be sealed.
#[derive(Debug)]
pub struct SealChunk {
    /// Which; the version is a fresh one.
    pub key: ChunkKey,
    /// Valid bytes; the last block is padded with zeros.
    pub len: u32,
    /// Not yet in the cloud.
    pub is_dirty: bool,
    /// A copy for another node: the next start tells of it, unless [`Store::unkeep`] came first. Not dirty.
    pub is_kept: bool,
    /// The SEAL record of its file is still to come. Until then a restart drops this body and restores the one it
    /// replaced.
    pub is_pending: bool,
    /// The bytes.
    pub data: SealData,
}

/// The bytes of a chunk to be sealed.
#[derive(Debug)]
pub enum SealData {
    /// In RAM: whole blocks, up to `len` rounded up.
    Inline {
        /// The bytes.
        buf: IoBuf,
    },
    /// On the device. Runs that follow each other are joined. They name allocated blocks, which become the chunk's, or blocks of a body of the same chunk whose
    /// handle the caller holds, which both own from now on.
    Placed {
        /// Where, in order.
        runs: Vec<BlockRun>,
        /// CRC32C of each block up to `len`; 0 for holes.
        crcs: Vec<u32>,
    },
}

/// A file to be sealed.
#[derive(Debug)]
pub struct SealFile {
    /// The file.
    pub ino: Ino,
    /// What the coordinator has to be told; kept until [`Store::committed`].
    pub commit: Vec<u8>,
}

/// What was sealed.
#[derive(Debug)]
pub struct Sealed {
    /// In the order of the chunks. A clean chunk never replaces a dirty one, nor itself: then this is what was there.
    pub bodies: Vec<Arc<ChunkBody>>,
    /// Number of the SEAL record; 0 without a file.
    pub number: u64,
    /// What the chunks replaced.
    pub replaced: Vec<ChunkKey>,
    /// Bodies that the store has not any more because of this seal: sealed and final ones, and pending ones. While a handle
    /// lives its blocks stay, and the chunk can be sealed again.
    pub dead: Vec<Arc<ChunkBody>>,
}

/// A chunk with its places, which the store has allocated.
struct Prepared {
    facts: BodyFacts,
    is_pending: bool,
    crcs: Vec<u32>,
    /// Inline data that is still to be written.
    buf: Option<IoBuf>,
    is_inline: bool,
    /// Header and data follow each other.
    is_contiguous: bool,
}

impl Prepared {
    /// What the store allocated for it.
    fn lent(&self) -> impl Iterator<Item = Extent> {
        let data = if self.is_inline {
            &self.facts.runs[..]
        } else {
            &[]
        };
        std::iter::once(self.facts.header_extent()).chain(data.iter().map(|r| r.extent))
    }
}

/// A task that goes on when nobody waits for it any more.
struct Unstoppable<T>(Option<Task<T>>);

impl<T> Future for Unstoppable<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Some(task) => {
                let result = Pin::new(task).poll(cx);
                if result.is_ready() {
                    self.0 = None;
                }
                result
            }
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Unstoppable<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl Store {
    /// Seals chunks and, with the same journal append, a file. Headers and inline data are written first, in parallel;
    /// returns when the records are in the journal (no flush). Many chunks take several appends; then those before the
    /// last are pending until the file's SEAL record, which is in the last.
    ///
    /// Goes on to its end even if the future is dropped.
    ///
    /// # Errors
    /// `Full`, `Device`, `Invalid`, `CommitTooLong`: nothing was sealed, and the allocated blocks of placed chunks are
    /// still the caller's. A sealed chunk survives the process only when the store is not [volatile](Store::is_volatile).
    pub async fn seal(
        &self,
        chunks: Vec<SealChunk>,
        file: Option<SealFile>,
    ) -> Result<Sealed, StoreError> {
        let store = self.clone();
        Unstoppable(Some(spawn(
            async move { store.seal_all(chunks, file).await },
        )))
        .await
    }

    async fn seal_all(
        &self,
        chunks: Vec<SealChunk>,
        file: Option<SealFile>,
    ) -> Result<Sealed, StoreError> {
        self.inner.check(&chunks, file.as_ref())?;
        let mut prepared = self.inner.prepare(chunks)?;
        let written = stream::iter(prepared.iter_mut())
            .map(|chunk| self.inner.write_chunk(chunk))
            .buffer_unordered(CHUNKS_IN_FLIGHT)
            // All of them end, so that no write is under way to blocks that are given back.
            .fold(Ok(()), |all, one| std::future::ready(all.and(one)));
        if let Err(error) = written.await {
            self.inner.give_back(&prepared);
            return Err(error);
        }
        self.record(prepared, file).await
    }

    /// Records written chunks.
    async fn record(
        &self,
        mut prepared: Vec<Prepared>,
        file: Option<SealFile>,
    ) -> Result<Sealed, StoreError> {
        let inner = &*self.inner;
        let mut sealed = Sealed {
            bodies: Vec::with_capacity(prepared.len()),
            number: 0,
            replaced: Vec::new(),
            dead: Vec::new(),
        };
        // Places of the chunks, in the order in which they are recorded: the file's own come last.
        let mut order: Vec<usize> = (0..prepared.len()).collect();
        let last = file.as_ref().map(|f| f.ino);
        order.sort_by_key(|&at| {
            let ino = prepared[at].facts.key.ino;
            (Some(ino) == last, ino)
        });
        let mut fresh = Vec::with_capacity(prepared.len());
        for (at, chunk) in prepared.iter().enumerate() {
            match ChunkBody::adopt(chunk.facts.clone(), &inner.pool) {
                Ok(body) => fresh.push(body),
                Err(error) => {
                    inner.give_back(&prepared[at..]);
                    return Err(error);
                }
            }
        }
        let mut out: Vec<Option<Arc<ChunkBody>>> = vec![None; prepared.len()];
        let room = inner.journal.submission_max().min(SUBMISSION_BYTES);
        let seal_len = file
            .as_ref()
            .map_or(0, |f| crate::record::seal_bytes(f.commit.len()));
        let seal_len = usize::try_from(seal_len).unwrap_or(usize::MAX);
        let mut ticket = 0;
        let mut rest = order.as_slice();
        let mut file = file;
        loop {
            // The next submission: chunks of one file that fit, and the SEAL record with the file's last.
            let ino = rest.first().map(|&at| prepared[at].facts.key.ino);
            let mut bytes = 0;
            let mut count = 0;
            for &at in rest {
                let facts = &prepared[at].facts;
                let len = usize::try_from(put_bytes(facts.runs.len())).unwrap_or(usize::MAX);
                if Some(facts.key.ino) != ino || bytes + len > room {
                    break;
                }
                bytes += len;
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            rest = later;
            let is_own = ino.is_none() || ino == last;
            let with_file = if rest.is_empty()
                && is_own
                && bytes + seal_len <= inner.journal.submission_max()
            {
                file.take()
            } else {
                None
            };
            // Without its SEAL record in the same submission, a chunk of the file is pending.
            let is_early = is_own && file.is_some();
            let total = bytes + with_file.as_ref().map_or(0, |_| seal_len);
            if total > 0 {
                let admission = self.admit(total).await;
                let mut records = Vec::with_capacity(total);
                let ino = ino.or(last).unwrap_or(Ino::ROOT);
                let mut stripe = inner.index.of(ino);
                for &at in now {
                    let body = &fresh[at];
                    let id = body.key().id();
                    let current = stripe.current.get(&id).cloned();
                    let is_pending = prepared[at].is_pending || is_early;
                    if let Some(current) = &current
                        && !body.is_dirty()
                        && !is_pending
                        && (current.is_dirty()
                            || stripe.pending.contains_key(&id)
                            || (current.key() == body.key()
                                && (current.is_kept() || !body.is_kept())))
                    {
                        out[at] = Some(current.clone());
                        continue;
                    }
                    let facts = &prepared[at].facts;
                    let is_spilled = facts.extents().any(|e| inner.device.spill.touches(e));
                    encode_put(&mut records, facts, is_pending, is_spilled);
                    if let Some(current) = &current {
                        inner.index.count_out(current);
                        if current.key() != body.key() {
                            sealed.replaced.push(current.key());
                        }
                    }
                    inner.index.count_in(body);
                    stripe.put(body.clone(), is_pending, &mut sealed.dead);
                    out[at] = Some(body.clone());
                }
                if let Some(file) = with_file {
                    stripe.confirm(file.ino, &mut sealed.dead);
                    let mut seals = inner.seals();
                    sealed.number = seals.next_number;
                    seals.next_number += 1;
                    seals.bytes += seal_bytes(file.commit.len());
                    encode_seal(&mut records, file.ino, sealed.number, &file.commit);
                    let commit = file.commit.into();
                    seals.pending.insert(
                        sealed.number,
                        Seal {
                            ino: file.ino,
                            commit,
                        },
                    );
                    ticket = inner.journal.enqueue(&inner.pool.space, &records);
                    drop(seals);
                } else if !records.is_empty() {
                    ticket = inner.journal.enqueue(&inner.pool.space, &records);
                }
                drop(stripe);
                drop(admission);
            }
            if rest.is_empty() && file.is_none() {
                break;
            }
        }
        self.kick();
        for (chunk, body) in prepared.iter_mut().zip(&out) {
            if body
                .as_ref()
                .is_some_and(|b| b.header_extent() == chunk.facts.header_extent())
            {
                let crcs = std::mem::take(&mut chunk.crcs).into_boxed_slice();
                let meta = Arc::new(ChunkMeta { crcs });
                inner
                    .pool
                    .crcs
                    .insert(chunk.facts.header, chunk.facts.key, meta);
            }
        }
        self.wait_written(ticket).await;
        sealed.bodies = out.into_iter().flatten().collect();
        Ok(sealed)
    }
}

/// Joins runs that are consecutive both in the chunk and on the device.
fn coalesced(runs: &[BlockRun]) -> Runs {
    let mut out = Runs::new();
    for run in runs {
        match out.last_mut() {
            Some(last)
                if last.first + last.extent.len == run.first
                    && last.extent.end() == run.extent.start =>
            {
                last.extent.len += run.extent.len;
            }
            _ => out.push(*run),
        }
    }
    out
}

impl Inner {
    /// Whether the call is one that can be carried out.
    fn check(&self, chunks: &[SealChunk], file: Option<&SealFile>) -> Result<(), StoreError> {
        let mut bytes = 0;
        for chunk in chunks {
            let blocks = blocks_of(chunk.len) as usize;
            match &chunk.data {
                SealData::Inline { buf } => {
                    check_runs(chunk.len, &[])?;
                    if buf.len() != blocks * BLOCK {
                        return Err(StoreError::Invalid(
                            "inline data is not as long as its chunk",
                        ));
                    }
                    bytes += put_bytes(1);
                }
                SealData::Placed { runs, crcs } => {
                    check_runs(chunk.len, runs)?;
                    if crcs.len() != blocks {
                        return Err(StoreError::Invalid(
                            "a placed chunk needs one checksum a block",
                        ));
                    }
                    bytes += put_bytes(runs.len());
                }
            }
        }
        let area = self.superblock.geometry.checkpoints[0];
        if let Some(file) = file {
            let most = commit_max(area, self.journal.submission_max());
            if file.commit.len() > most {
                return Err(StoreError::CommitTooLong {
                    bytes: file.commit.len(),
                    most,
                });
            }
            bytes += 2 * seal_bytes(file.commit.len());
        }
        // The index must fit in a checkpoint.
        let held = self.pool.space.index_bytes.load(Ordering::Relaxed) + 2 * self.seals().bytes;
        if held + bytes > usable_bytes(area) {
            return Err(StoreError::Full);
        }
        Ok(())
    }

    /// Finds places for headers and inline data; all or nothing.
    fn prepare(&self, chunks: Vec<SealChunk>) -> Result<Vec<Prepared>, StoreError> {
        let mut prepared = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            match self.place(chunk) {
                Some(chunk) => prepared.push(chunk),
                None => {
                    self.give_back(&prepared);
                    return Err(StoreError::Full);
                }
            }
        }
        Ok(prepared)
    }

    /// Frees what `prepare` allocated.
    fn give_back(&self, prepared: &[Prepared]) {
        for e in prepared.iter().flat_map(Prepared::lent) {
            self.pool.space.release(e);
        }
    }

    fn place(&self, chunk: SealChunk) -> Option<Prepared> {
        let SealChunk {
            key,
            len,
            is_dirty,
            is_kept,
            is_pending,
            data,
        } = chunk;
        let space = &self.pool.space;
        let header_of = |runs: &Runs| {
            space
                .allocate(header::blocks(len, runs.len()), is_dirty)
                .map(|e| e.start)
        };
        let mut is_contiguous = false;
        let is_inline = matches!(data, SealData::Inline { .. });
        let (header, runs, crcs, buf) = match data {
            SealData::Placed { runs, crcs } => {
                let runs = coalesced(&runs);
                (header_of(&runs)?, runs, crcs, None)
            }
            SealData::Inline { buf } => {
                let crcs = crc_blocks(&buf);
                let data = blocks_of(len);
                let head = header::blocks(len, 1);
                if let Some(e) = space.allocate(head + data, false) {
                    is_contiguous = true;
                    let extent = Extent {
                        start: e.start + head,
                        len: data,
                    };
                    let runs = (data > 0).then_some(BlockRun { first: 0, extent });
                    // Without data the header has no run; it still fits in one block.
                    (e.start, runs.into_iter().collect(), crcs, Some(buf))
                } else {
                    let pieces = match data {
                        0 => SmallVec::new(),
                        data => space.allocate_pieces(data)?,
                    };
                    let mut first = 0;
                    let mut runs = Runs::new();
                    for extent in pieces {
                        runs.push(BlockRun { first, extent });
                        first += extent.len;
                    }
                    let Some(header) = header_of(&runs) else {
                        for run in &runs {
                            space.release(run.extent);
                        }
                        return None;
                    };
                    (header, runs, crcs, Some(buf))
                }
            }
        };
        let facts = BodyFacts {
            key,
            len,
            is_dirty,
            is_kept,
            header,
            runs,
        };
        Some(Prepared {
            facts,
            is_pending,
            crcs,
            buf,
            is_inline,
            is_contiguous,
        })
    }

    /// Writes a chunk's header, and its data where that is inline.
    async fn write_chunk(&self, chunk: &mut Prepared) -> Result<(), StoreError> {
        let facts = &chunk.facts;
        let head = facts.header_extent();
        let head_bytes = head.len as usize * BLOCK;
        let data_bytes = chunk.buf.as_ref().map_or(0, |b| b.len());
        let is_one_write = chunk.is_contiguous && data_bytes <= COPY_MAX;
        let mut header = IoBuf::alloc(head_bytes + if is_one_write { data_bytes } else { 0 });
        let stamp = self.next_stamp();
        let store = self.journal.store;
        header::encode(&mut header[..head_bytes], store, stamp, facts, &chunk.crcs);
        if is_one_write && let Some(data) = &chunk.buf {
            header[head_bytes..].copy_from_slice(data);
        }
        let header_write = self.device.write_or_keep(head.start, header);
        let data = chunk.buf.take().filter(|_| !is_one_write);
        let Some(mut data) = data else {
            return header_write.await.0;
        };
        let mut writes: SmallVec<[_; 4]> = SmallVec::new();
        for run in &facts.runs {
            let piece = data.split_to(run.extent.len as usize * BLOCK);
            writes.push(self.device.write_or_keep(run.extent.start, piece));
        }
        let (head, pieces) = futures_util::join!(header_write, join_all(writes));
        let mut result = head.0;
        let mut whole = None;
        for (r, piece) in pieces {
            result = result.and(r);
            whole = Some(join(whole, piece));
        }
        debug_assert_eq!(whole.map_or(0, |b| b.len()) as u64 % BLOCK_U64, 0);
        result
    }
}
