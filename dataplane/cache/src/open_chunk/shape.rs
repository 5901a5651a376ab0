//! What a chunk is made of when it is sealed, and how it loses parts: given up, cut, punched.

use super::{Contents, Gather, OpenChunk, OpenState, Slot, is_in, to_u32};
use crate::{FileSystem, Result, lock};
use fastcache_chunkstore::BlockRun;
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, Extent};

impl FileSystem {
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

    /// Ranges of blocks that hold data: on the device, gathered, or on their way from one to the other. `None` when the chunk
    /// is no longer open.
    pub(crate) fn data_ranges(chunk: &OpenChunk) -> Option<Vec<(usize, usize)>> {
        let state = lock(&chunk.state);
        if state.is_closed {
            return None;
        }
        let mut ranges = state.inflight.clone();
        if let Some(g) = state.gather.as_ref().filter(|g| g.start < g.end) {
            ranges.push((g.start / BLOCK, g.end.div_ceil(BLOCK)));
        }
        for (block, slot) in state.slots.iter().enumerate() {
            if slot.dev == Slot::HOLE {
                continue;
            }
            match ranges.last_mut() {
                Some((_, end)) if *end == block => *end += 1,
                _ => ranges.push((block, block + 1)),
            }
        }
        Some(ranges)
    }
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
