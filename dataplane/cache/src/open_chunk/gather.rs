//! Small and unaligned writes: gathered in an aligned buffer, written when it is full, elsewhere, or at the end.

use super::place::unused_blocks;
use super::{Gather, OpenChunk, Slot, device_error, to_u32};
use crate::{FileSystem, Result, lock};
use fastcache_api::Errno;
use fastcache_chunkstore::crc_block;
use fastcache_reactor::IoBuf;
use fastcache_types::BLOCK;

/// Where small and unaligned writes of one chunk gather, bytes. Larger gains little: the device is at full speed.
const GATHER_MAX: usize = 256 << 10;

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
    pub(super) async fn read_slot(&self, slot: Slot, mut buf: IoBuf) -> Result<IoBuf> {
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
