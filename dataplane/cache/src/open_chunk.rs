//! A chunk that is being written: which of its blocks are where, what is gathered in memory, what is in flight.
//!
//! Blocks that this version wrote (`is_owned`) may be overwritten in place; blocks inherited from the sealed base
//! are never touched: a write to them goes to a new place. Whoever reads or writes blocks marks them in
//! flight first (writers) or waits until nobody has (readers), under the lock, and does the I/O without it.

use crate::{FileSystem, Result, lock};
use event_listener::Event;
use fastcache_api::{Errno, Ino};
use fastcache_chunkstore::{BlockRun, ChunkBody, crc_block, crc_blocks};
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, Extent};
use std::sync::{Arc, Mutex};

/// Where small and unaligned writes of one chunk gather, bytes. Larger gains little: the device is at full speed.
pub(crate) const GATHER_MAX: usize = 256 << 10;
/// Times a read that met a changed block is tried again before it is an error.
const READ_TRIES: usize = 4;

/// Where one block is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Block of the device; `Slot::HOLE` when it reads as zeros.
    dev: u32,
    crc: u32,
    /// Written by this version.
    is_owned: bool,
}

impl Slot {
    const HOLE: u32 = u32::MAX;
    const EMPTY: Slot = Slot {
        dev: Slot::HOLE,
        crc: 0,
        is_owned: false,
    };
}

/// Bytes that wait in memory: `buf[..end - start]` is the chunk's range `start..end`.
pub(crate) struct Gather {
    pub start: usize,
    pub end: usize,
    pub buf: IoBuf,
}

pub(crate) struct OpenChunk {
    pub ino: Ino,
    pub index: u32,
    pub state: Mutex<OpenState>,
    /// Something in `state` changed that others may wait for.
    pub changed: Event,
}

#[derive(Default)]
pub(crate) struct OpenState {
    slots: Vec<Slot>,
    /// Valid bytes.
    pub len: usize,
    /// Keeps the inherited blocks from being freed; held, never read.
    _base: Option<Arc<ChunkBody>>,
    /// Room that was taken ahead: chunk blocks from `.0` on lie in the extent.
    reserve: Option<(usize, Extent)>,
    pub gather: Option<Gather>,
    /// Block ranges being written.
    pub inflight: Vec<(usize, usize)>,
    /// Writers wait.
    pub is_sealing: bool,
    /// Sealed or dropped: look the chunk up again.
    pub is_closed: bool,
    /// Anything was written since it was opened.
    pub is_dirty: bool,
}

/// What a sealed chunk is made of.
pub(crate) enum Contents {
    /// Nothing but zeros.
    Hole,
    /// Never left memory; padded to whole blocks.
    Inline(IoBuf),
    /// On the device.
    Placed(Vec<BlockRun>, Vec<u32>),
}

impl OpenState {
    pub fn is_busy(&self, from: usize, to: usize) -> bool {
        self.inflight.iter().any(|(a, b)| *a < to && from < *b)
    }

    fn gather_overlaps(&self, from: usize, to: usize) -> bool {
        self.gather
            .as_ref()
            .is_some_and(|g| g.start < to * BLOCK && from * BLOCK < g.end.next_multiple_of(BLOCK))
    }

    fn slot(&self, block: usize) -> Slot {
        self.slots.get(block).copied().unwrap_or(Slot::EMPTY)
    }

    fn unmark(&mut self, from: usize, to: usize) {
        if let Some(at) = self.inflight.iter().position(|r| *r == (from, to)) {
            self.inflight.swap_remove(at);
        }
    }

    /// Every block of a whole chunk was written by this version.
    pub fn is_complete(&self, chunk_size: usize) -> bool {
        self.len == chunk_size
            && self.gather.is_none()
            && self.inflight.is_empty()
            && self.slots.len() == chunk_size / BLOCK
            && self.slots.iter().all(|s| s.is_owned)
    }
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl OpenChunk {
    /// A chunk with nothing in it.
    pub fn empty(ino: Ino, index: u32) -> OpenChunk {
        OpenChunk {
            ino,
            index,
            state: Mutex::default(),
            changed: Event::new(),
        }
    }

    /// A chunk that starts as the first `valid` bytes of a sealed one. `tail` holds the last, partial block of
    /// them when bytes beyond `valid` in it are not zero.
    pub fn over(
        ino: Ino,
        index: u32,
        base: Arc<ChunkBody>,
        crcs: &[u32],
        valid: usize,
        tail: Option<IoBuf>,
    ) -> OpenChunk {
        // The block that `tail` holds has no place yet: what the old one has behind `valid` must not come back.
        let placed = if tail.is_some() {
            valid / BLOCK
        } else {
            valid.div_ceil(BLOCK)
        };
        let mut slots = vec![Slot::EMPTY; placed];
        for run in base.runs() {
            for i in 0..run.extent.len {
                let block = (run.first + i) as usize;
                if let (Some(slot), Some(crc)) = (slots.get_mut(block), crcs.get(block)) {
                    *slot = Slot {
                        dev: run.extent.start + i,
                        crc: *crc,
                        is_owned: false,
                    };
                }
            }
        }
        let gather = tail.map(|buf| Gather {
            start: valid / BLOCK * BLOCK,
            end: valid,
            buf,
        });
        let state = OpenState {
            slots,
            len: valid,
            _base: Some(base),
            gather,
            ..Default::default()
        };
        OpenChunk {
            ino,
            index,
            state: Mutex::new(state),
            changed: Event::new(),
        }
    }
}

/// Why a large write cannot go out yet.
enum Hindrance {
    /// Somebody seals, or writes the same blocks.
    Busy,
    /// Small writes to the same blocks wait in memory.
    Gathered,
    /// The store has no room.
    Full,
}

/// What a small write does next.
enum Next {
    /// Somebody seals, or writes the same block.
    Wait,
    /// The gather buffer is elsewhere: write it out.
    Flush,
    /// This many bytes were taken and the buffer is full.
    Full(usize),
    /// Old bytes of this block are needed in front of the new ones.
    Preload(Slot),
}

/// A chunk was sealed or dropped while somebody waited for it: look it up again.
pub(crate) struct Closed;

impl FileSystem {
    /// Waits until nothing of the chunk is in flight, and writes what is gathered.
    pub(crate) async fn settle(&self, chunk: &OpenChunk) -> Result<()> {
        loop {
            self.flush_gather(chunk).await?;
            let listener = chunk.changed.listen();
            {
                let state = lock(&chunk.state);
                if state.inflight.is_empty() && state.gather.is_none() {
                    return Ok(());
                }
                if state.inflight.is_empty() {
                    continue;
                }
            }
            listener.await;
        }
    }

    /// Writes whole blocks from `first` on. `Err(Closed)` inside `Ok` asks the caller to look the chunk up again.
    pub(crate) async fn write_direct(
        &self,
        chunk: &OpenChunk,
        first: usize,
        buf: IoBuf,
    ) -> (Result<std::result::Result<(), Closed>>, IoBuf) {
        let count = buf.len() / BLOCK;
        let end = first + count;
        let extents = loop {
            let listener = chunk.changed.listen();
            let hindrance = {
                let mut state = lock(&chunk.state);
                if state.is_closed {
                    return (Ok(Err(Closed)), buf);
                }
                if state.is_sealing || state.is_busy(first, end) {
                    Hindrance::Busy
                } else if state.gather_overlaps(first, end) {
                    Hindrance::Gathered
                } else if let Some(extents) = self.allocate_for(&mut state, first, count) {
                    state.inflight.push((first, end));
                    break extents;
                } else {
                    Hindrance::Full
                }
            };
            let done = match hindrance {
                Hindrance::Busy => {
                    listener.await;
                    Ok(())
                }
                Hindrance::Gathered => self.flush_gather(chunk).await,
                Hindrance::Full => self.make_room(to_u32(count)).await,
            };
            if let Err(e) = done {
                return (Err(e), buf);
            }
        };
        let (result, buf) = self.place(chunk, first, end * BLOCK, buf, extents).await;
        (result.map(Ok), buf)
    }

    /// Adds bytes to the gather buffer, writing it out when it is full or elsewhere. Answers how many were taken;
    /// 0 asks the caller to look the chunk up again.
    pub(crate) async fn write_gather(
        &self,
        chunk: &OpenChunk,
        offset: usize,
        data: &[u8],
        chunk_size: usize,
    ) -> Result<usize> {
        let start = offset / BLOCK * BLOCK;
        let first = start / BLOCK;
        loop {
            let listener = chunk.changed.listen();
            let next = {
                let mut guard = lock(&chunk.state);
                let state = &mut *guard;
                if state.is_closed {
                    return Ok(0);
                }
                if state.is_sealing || state.is_busy(first, first + 1) {
                    Next::Wait
                } else if let Some(g) = &mut state.gather {
                    let at = offset.wrapping_sub(g.start);
                    if offset >= g.start && offset <= g.end && at < GATHER_MAX {
                        let n = data.len().min(GATHER_MAX - at);
                        grow(g, at + n, chunk_size);
                        g.buf[at..at + n].copy_from_slice(&data[..n]);
                        g.end = g.end.max(offset + n);
                        state.len = state.len.max(offset + n);
                        state.is_dirty = true;
                        if at + n < GATHER_MAX {
                            return Ok(n);
                        }
                        Next::Full(n)
                    } else {
                        Next::Flush
                    }
                } else {
                    let slot = state.slot(first);
                    if slot.dev == Slot::HOLE || (offset == start && data.len() >= BLOCK) {
                        let buf = IoBuf::alloc(first_gather(data.len() + (offset - start)));
                        state.gather = Some(Gather {
                            start,
                            end: offset,
                            buf,
                        });
                        continue;
                    }
                    // Hold the block while its old bytes are read.
                    state.inflight.push((first, first + 1));
                    Next::Preload(slot)
                }
            };
            match next {
                Next::Wait => listener.await,
                Next::Flush => self.flush_gather(chunk).await?,
                Next::Full(n) => {
                    self.flush_gather(chunk).await?;
                    return Ok(n);
                }
                Next::Preload(slot) => {
                    let buf = IoBuf::alloc(first_gather(data.len() + BLOCK));
                    let read = self.read_slot(slot, buf).await;
                    let mut state = lock(&chunk.state);
                    state.unmark(first, first + 1);
                    if let Ok(buf) = read {
                        if state.gather.is_none() && !state.is_closed {
                            let end = (start + BLOCK).min(state.len).max(offset);
                            state.gather = Some(Gather { start, end, buf });
                        }
                        drop(state);
                        chunk.changed.notify(usize::MAX);
                    } else {
                        drop(state);
                        chunk.changed.notify(usize::MAX);
                        return Err(Errno::EIO);
                    }
                }
            }
        }
    }

    /// Reads one block into the front of `buf`, verified; the rest of `buf` stays.
    async fn read_slot(&self, slot: Slot, mut buf: IoBuf) -> Result<IoBuf> {
        let rest = buf.split_off(BLOCK);
        let (result, mut buf) = self.inner.store.read_blocks(slot.dev, buf).await;
        result.map_err(|e| device_error(&e))?;
        if crc_block(&buf) != slot.crc {
            tracing::error!(target: "nvme", block = slot.dev, "checksum of an open chunk's block does not match");
            return Err(Errno::EIO);
        }
        buf.unsplit(rest).map_err(|_| Errno::EIO)?;
        Ok(buf)
    }

    /// Writes the gather buffer out, if there is one.
    pub(crate) async fn flush_gather(&self, chunk: &OpenChunk) -> Result<()> {
        let (mut gather, first, end, tail, len, extents) = loop {
            let listener = chunk.changed.listen();
            let count = {
                let mut state = lock(&chunk.state);
                let Some(g) = &state.gather else {
                    return Ok(());
                };
                let (first, end) = (g.start / BLOCK, g.end.div_ceil(BLOCK));
                if first == end {
                    state.gather = None;
                    return Ok(());
                }
                if state.is_busy(first, end) {
                    None
                } else if let Some(extents) = self.allocate_for(&mut state, first, end - first) {
                    let Some(g) = state.gather.take() else {
                        return Ok(());
                    };
                    state.inflight.push((first, end));
                    let is_partial = !g.end.is_multiple_of(BLOCK) && state.len > g.end;
                    let tail = state.slot(end - 1);
                    let tail = (is_partial && tail.dev != Slot::HOLE).then_some(tail);
                    break (g, first, end, tail, state.len, extents);
                } else {
                    Some(end - first)
                }
            };
            match count {
                None => listener.await,
                Some(count) => self.make_room(to_u32(count)).await?,
            }
        };
        if let Some(slot) = tail {
            // Bytes behind the gathered ones in the last block are still the old ones.
            match self.read_slot(slot, IoBuf::alloc(BLOCK)).await {
                Ok(old) => {
                    let at = gather.end - gather.start;
                    let stop = at.next_multiple_of(BLOCK).min(len - gather.start);
                    let from = gather.end % BLOCK;
                    gather.buf[at..stop].copy_from_slice(&old[from..from + (stop - at)]);
                    gather.end = gather.start + stop;
                }
                Err(e) => {
                    let mut state = lock(&chunk.state);
                    let freed = unused_blocks(&state, first, &extents);
                    state.unmark(first, end);
                    state.gather = Some(gather);
                    drop(state);
                    chunk.changed.notify(usize::MAX);
                    self.release_blocks(freed);
                    return Err(e);
                }
            }
        }
        let bytes = (end - first) * BLOCK;
        let used = gather.end - gather.start;
        gather.buf[used..bytes].fill(0);
        let rest = gather.buf.split_off(bytes);
        let (result, buf) = self
            .place(chunk, first, gather.end, gather.buf, extents)
            .await;
        if result.is_err() {
            let mut buf = buf;
            let _ = buf.unsplit(rest);
            let mut state = lock(&chunk.state);
            if state.gather.is_none() {
                state.gather = Some(Gather {
                    start: gather.start,
                    end: gather.end,
                    buf,
                });
            }
        }
        result
    }

    /// Writes blocks `first..` (marked in flight) to their places and makes them the chunk's; ends the flight.
    async fn place(
        &self,
        chunk: &OpenChunk,
        first: usize,
        len: usize,
        buf: IoBuf,
        extents: Vec<Extent>,
    ) -> (Result<()>, IoBuf) {
        let end = first + buf.len() / BLOCK;
        let crcs = crc_blocks(&buf);
        let (result, buf) = self.write_extents(&extents, buf).await;
        let mut freed = Vec::new();
        {
            let mut state = lock(&chunk.state);
            if result.is_ok() {
                if state.slots.len() < end {
                    state.slots.resize(end, Slot::EMPTY);
                }
                let places = extents.iter().flat_map(|e| e.start..e.end());
                for ((block, dev), crc) in (first..end).zip(places).zip(crcs) {
                    let new = Slot {
                        dev,
                        crc,
                        is_owned: true,
                    };
                    let old = std::mem::replace(&mut state.slots[block], new);
                    if old.is_owned && old.dev != dev {
                        freed.push(old.dev);
                    }
                }
                state.len = state.len.max(len);
                state.is_dirty = true;
            } else {
                freed = unused_blocks(&state, first, &extents);
            }
            state.unmark(first, end);
        }
        chunk.changed.notify(usize::MAX);
        self.release_blocks(freed);
        (result, buf)
    }

    fn release_blocks(&self, blocks: Vec<u32>) {
        for start in blocks {
            self.inner.store.release(Extent { start, len: 1 });
        }
    }

    /// Places for `count` blocks from `first` on, in order: the blocks this version already has, the room it reserved,
    /// else new room. `None` when the store is full.
    fn allocate_for(
        &self,
        state: &mut OpenState,
        first: usize,
        count: usize,
    ) -> Option<Vec<Extent>> {
        let chunk_blocks = self.chunk_blocks();
        let is_owned = |state: &OpenState, b: usize| state.slot(b).is_owned;
        if state.reserve.is_none()
            && count >= RESERVE_MIN_BLOCKS
            && first + count <= chunk_blocks
            && (first..first + count).all(|b| !is_owned(state, b))
            && self.is_roomy()
        {
            let extent = self.inner.store.allocate(to_u32(chunk_blocks - first));
            state.reserve = extent.map(|e| (first, e));
        }
        let mut out: Vec<Extent> = Vec::new();
        let push = |out: &mut Vec<Extent>, dev: u32| match out.last_mut() {
            Some(e) if e.end() == dev => e.len += 1,
            _ => out.push(Extent { start: dev, len: 1 }),
        };
        // What must be newly found, so that all of it is found or nothing.
        let missing = (first..first + count)
            .filter(|b| !is_owned(state, *b) && reserved(state, *b).is_none())
            .count();
        let mut fresh = if missing == 0 {
            Vec::new()
        } else {
            self.inner.store.allocate_pieces(to_u32(missing))?.to_vec()
        };
        fresh.reverse();
        for b in first..first + count {
            let slot = state.slot(b);
            let dev = if slot.is_owned {
                slot.dev
            } else if let Some(dev) = reserved(state, b) {
                dev
            } else {
                let piece = fresh.last_mut()?;
                let dev = piece.start;
                piece.start += 1;
                piece.len -= 1;
                if piece.len == 0 {
                    fresh.pop();
                }
                dev
            };
            push(&mut out, dev);
        }
        Some(out)
    }

    async fn write_extents(&self, extents: &[Extent], mut buf: IoBuf) -> (Result<()>, IoBuf) {
        if let [one] = extents {
            let (result, buf) = self.inner.store.write_blocks(one.start, buf).await;
            return (result.map_err(|e| device_error(&e)), buf);
        }
        let writes = extents.iter().map(|e| {
            let piece = buf.split_to(e.len as usize * BLOCK);
            let store = self.inner.store.clone();
            let start = e.start;
            async move { store.write_blocks(start, piece).await }
        });
        let done = futures_util::future::join_all(writes.collect::<Vec<_>>()).await;
        join(
            done.into_iter()
                .map(|(r, b)| (r.map_err(|e| device_error(&e)), b)),
            buf,
        )
    }

    /// Fills `buf` (whole blocks) from block `first` on. `Err(Closed)` asks the caller to look the chunk up again.
    pub(crate) async fn read_open(
        &self,
        chunk: &OpenChunk,
        first: usize,
        mut buf: IoBuf,
    ) -> (Result<std::result::Result<(), Closed>>, IoBuf) {
        let end = first + buf.len() / BLOCK;
        for _ in 0..READ_TRIES {
            let slots = loop {
                let listener = chunk.changed.listen();
                let must_flush = {
                    let state = lock(&chunk.state);
                    if state.is_closed {
                        return (Ok(Err(Closed)), buf);
                    }
                    if let Some(g) = &state.gather
                        && g.start <= first * BLOCK
                        && g.end >= (end * BLOCK).min(state.len)
                    {
                        let at = first * BLOCK - g.start;
                        let n = buf.len().min((g.end - g.start).saturating_sub(at));
                        if n > 0 {
                            buf[..n].copy_from_slice(&g.buf[at..at + n]);
                        }
                        buf[n..].fill(0);
                        return (Ok(Ok(())), buf);
                    }
                    if state.is_busy(first, end) {
                        false
                    } else if state.gather_overlaps(first, end) {
                        true
                    } else {
                        break (first..end).map(|b| state.slot(b)).collect::<Vec<_>>();
                    }
                };
                if must_flush {
                    if let Err(e) = self.flush_gather(chunk).await {
                        return (Err(e), buf);
                    }
                } else {
                    listener.await;
                }
            };
            let (result, back) = self.read_slots(&slots, buf).await;
            buf = back;
            match result {
                Err(e) => return (Err(e), buf),
                Ok(true) => return (Ok(Ok(())), buf),
                // A block was given up and used again between the look and the read.
                Ok(false) => {}
            }
        }
        tracing::error!(target: "nvme", ino = %chunk.ino, index = chunk.index, "an open chunk's checksum does not match");
        (Err(Errno::EIO), buf)
    }

    /// Reads what the slots name; `false` when a checksum does not match.
    async fn read_slots(&self, slots: &[Slot], mut buf: IoBuf) -> (Result<bool>, IoBuf) {
        let mut reads = Vec::new();
        let mut at = 0;
        while at < slots.len() {
            let dev = slots[at].dev;
            let mut n = 1;
            while at + n < slots.len()
                && (dev == Slot::HOLE && slots[at + n].dev == Slot::HOLE
                    || dev != Slot::HOLE && slots[at + n].dev == dev + to_u32(n))
            {
                n += 1;
            }
            let mut piece = buf.split_to(n * BLOCK);
            let store = self.inner.store.clone();
            reads.push(async move {
                if dev == Slot::HOLE {
                    piece.fill(0);
                    return (Ok(()), piece);
                }
                store.read_blocks(dev, piece).await
            });
            at += n;
        }
        let done = futures_util::future::join_all(reads).await;
        let (result, buf) = join(
            done.into_iter()
                .map(|(r, b)| (r.map_err(|e| device_error(&e)), b)),
            buf,
        );
        let is_right = result.is_ok()
            && buf
                .chunks_exact(BLOCK)
                .zip(slots)
                .all(|(b, s)| s.dev == Slot::HOLE || crc_block(b) == s.crc);
        (result.map(|()| is_right), buf)
    }

    /// Stops the chunk (settled, writers held) and answers what it is made of. The reserve that was not used is freed.
    pub(crate) async fn take_contents(&self, chunk: &OpenChunk) -> Result<(Contents, u32)> {
        loop {
            let listener = chunk.changed.listen();
            let must_flush = {
                let mut guard = lock(&chunk.state);
                let state = &mut *guard;
                state.is_sealing = true;
                if !state.inflight.is_empty() {
                    false
                } else if let Some(g) = &state.gather {
                    let is_all = g.start == 0 && g.end == state.len;
                    let is_alone = state.slots.iter().all(|s| s.dev == Slot::HOLE);
                    if is_all && is_alone && state.reserve.is_none() {
                        let len = g.end;
                        let mut copy = IoBuf::alloc(len.next_multiple_of(BLOCK));
                        copy[..len].copy_from_slice(&g.buf[..len]);
                        return Ok((Contents::Inline(copy), to_u32(len)));
                    }
                    true
                } else {
                    let (contents, unused) = placed(state);
                    let len = to_u32(state.len);
                    drop(guard);
                    for e in unused {
                        self.inner.store.release(e);
                    }
                    return Ok((contents, len));
                }
            };
            if must_flush {
                self.flush_gather(chunk).await?;
            } else {
                listener.await;
            }
        }
    }

    /// Gives the chunk up: its own blocks are freed, whoever waits looks again.
    pub(crate) async fn discard(&self, chunk: &OpenChunk) {
        loop {
            let listener = chunk.changed.listen();
            {
                let mut state = lock(&chunk.state);
                state.is_sealing = true;
                if state.inflight.is_empty() {
                    state.gather = None;
                    state.is_closed = true;
                    let freed = owned_extents(&mut state, 0);
                    drop(state);
                    for e in freed {
                        self.inner.store.release(e);
                    }
                    chunk.changed.notify(usize::MAX);
                    return;
                }
            }
            listener.await;
        }
    }

    /// Cuts the chunk to `len` bytes (less than a chunk, more than 0). What lies behind reads as zeros from now on.
    pub(crate) async fn trim(&self, chunk: &OpenChunk, len: usize) -> Result<()> {
        self.settle(chunk).await?;
        let last = len / BLOCK;
        let slot = lock(&chunk.state).slot(last);
        let mut tail = None;
        if !len.is_multiple_of(BLOCK) && slot.dev != Slot::HOLE {
            let mut buf = self.read_slot(slot, IoBuf::alloc(BLOCK)).await?;
            buf[len % BLOCK..].fill(0);
            tail = Some(Gather {
                start: last * BLOCK,
                end: len,
                buf,
            });
        }
        let freed = {
            let mut state = lock(&chunk.state);
            if state.len <= len {
                return Ok(());
            }
            // The gathered block has no place any more: what the old one has behind `len` must not come back.
            let kept = if tail.is_some() {
                last
            } else {
                len.div_ceil(BLOCK)
            };
            let freed = owned_extents(&mut state, kept);
            state.slots.truncate(kept);
            state.len = len;
            state.gather = tail;
            state.is_dirty = true;
            freed
        };
        for e in freed {
            self.inner.store.release(e);
        }
        Ok(())
    }

    /// Makes whole blocks read as zeros.
    pub(crate) async fn punch_blocks(
        &self,
        chunk: &OpenChunk,
        first: usize,
        end: usize,
    ) -> Result<()> {
        self.settle(chunk).await?;
        let mut freed = Vec::new();
        {
            let mut guard = lock(&chunk.state);
            let state = &mut *guard;
            let reserve = state.reserve;
            for b in first..end.min(state.slots.len()) {
                let slot = std::mem::replace(&mut state.slots[b], Slot::EMPTY);
                if slot.is_owned && !is_in(reserve, slot.dev) {
                    freed.push(slot.dev);
                }
            }
            state.is_dirty = true;
        }
        self.release_blocks(freed);
        Ok(())
    }

    /// Byte ranges of the chunk that hold data, block by block: whether `block` does.
    pub(crate) fn has_data(chunk: &OpenChunk, block: usize) -> bool {
        let state = lock(&chunk.state);
        state.slot(block).dev != Slot::HOLE || state.gather_overlaps(block, block + 1)
    }
}

/// Writes of this many blocks or more reserve the rest of the chunk in one piece: 64 KiB.
const RESERVE_MIN_BLOCKS: usize = 16;

fn is_in(reserve: Option<(usize, Extent)>, dev: u32) -> bool {
    reserve.is_some_and(|(_, e)| dev >= e.start && dev < e.end())
}

/// Of the places that were chosen for blocks `first..`, those that the chunk does not have: to be given back after a
/// failure.
fn unused_blocks(state: &OpenState, first: usize, extents: &[Extent]) -> Vec<u32> {
    extents
        .iter()
        .flat_map(|e| e.start..e.end())
        .enumerate()
        .filter(|(i, dev)| {
            let slot = state.slot(first + i);
            !(is_in(state.reserve, *dev) || slot.is_owned && slot.dev == *dev)
        })
        .map(|(_, dev)| dev)
        .collect()
}

/// The reserved place of a block.
fn reserved(state: &OpenState, block: usize) -> Option<u32> {
    let (first, extent) = state.reserve?;
    let at = to_u32(block.checked_sub(first)?);
    (at < extent.len).then(|| extent.start + at)
}

/// Takes what this version owns from block `from` on, with what it reserved when that is everything.
fn owned_extents(state: &mut OpenState, from: usize) -> Vec<Extent> {
    let reserve = state.reserve;
    let mut freed: Vec<Extent> = state
        .slots
        .iter()
        .skip(from)
        .filter(|s| s.is_owned && !is_in(reserve, s.dev))
        .map(|s| Extent {
            start: s.dev,
            len: 1,
        })
        .collect();
    if from == 0
        && let Some((_, e)) = state.reserve.take()
    {
        freed.push(e);
        state.slots.clear();
    }
    freed
}

/// The block map of a settled chunk, and the reserved room it does not use.
fn placed(state: &mut OpenState) -> (Contents, Vec<Extent>) {
    let blocks = state.len.div_ceil(BLOCK);
    let mut runs: Vec<BlockRun> = Vec::new();
    let mut crcs = vec![0; blocks];
    for (b, slot) in state.slots.iter().enumerate().take(blocks) {
        if slot.dev == Slot::HOLE {
            continue;
        }
        crcs[b] = slot.crc;
        match runs.last_mut() {
            Some(r) if r.extent.end() == slot.dev && r.first + r.extent.len == to_u32(b) => {
                r.extent.len += 1;
            }
            _ => runs.push(BlockRun {
                first: to_u32(b),
                extent: Extent {
                    start: slot.dev,
                    len: 1,
                },
            }),
        }
    }
    let mut unused = Vec::new();
    if let Some((first, e)) = state.reserve.take() {
        for i in 0..e.len {
            let dev = e.start + i;
            if state.slot(first + i as usize).dev == dev {
                continue;
            }
            match unused.last_mut() {
                Some(Extent { start, len }) if *start + *len == dev => *len += 1,
                _ => unused.push(Extent { start: dev, len: 1 }),
            }
        }
    }
    let contents = if runs.is_empty() {
        Contents::Hole
    } else {
        Contents::Placed(runs, crcs)
    };
    (contents, unused)
}

/// Puts pieces of a buffer together again; the first error wins.
pub(crate) fn join(
    pieces: impl Iterator<Item = (Result<()>, IoBuf)>,
    rest: IoBuf,
) -> (Result<()>, IoBuf) {
    let mut result = Ok(());
    let mut whole: Option<IoBuf> = None;
    for (r, b) in pieces {
        if result.is_ok() {
            result = r;
        }
        match &mut whole {
            None => whole = Some(b),
            Some(w) => {
                assert!(w.unsplit(b).is_ok(), "pieces of one buffer, in order");
            }
        }
    }
    let Some(mut whole) = whole else {
        return (result, rest);
    };
    if !rest.is_empty() {
        assert!(
            whole.unsplit(rest).is_ok(),
            "the rest of the buffer behind its pieces"
        );
    }
    (result, whole)
}

/// The errno for a store error; logged where it is turned into one.
pub(crate) fn device_error(error: &fastcache_chunkstore::StoreError) -> Errno {
    tracing::error!(target: "nvme", %error, "the store failed");
    match error {
        fastcache_chunkstore::StoreError::Full => Errno::ENOSPC,
        _ => Errno::EIO,
    }
}

fn first_gather(len: usize) -> usize {
    len.next_multiple_of(16 << 10).min(GATHER_MAX)
}

/// Makes the gather buffer hold at least `len` bytes, doubling up to GATHER_MAX.
fn grow(gather: &mut Gather, len: usize, chunk_size: usize) {
    if gather.buf.len() >= len {
        return;
    }
    let want = len
        .max(gather.buf.len() * 4)
        .next_multiple_of(BLOCK)
        .min(GATHER_MAX)
        .min(chunk_size);
    let mut buf = IoBuf::alloc(want.max(len.next_multiple_of(BLOCK)));
    let used = gather.end - gather.start;
    buf[..used].copy_from_slice(&gather.buf[..used]);
    gather.buf = buf;
}
