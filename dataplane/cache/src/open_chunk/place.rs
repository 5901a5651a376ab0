//! Where blocks go: large writes straight from the request's buffer, and the room that is taken for them.

use super::{Closed, OpenChunk, OpenState, Slot, device_error, is_in, join, to_u32};
use crate::{FileSystem, Result, lock};
use fastcache_chunkstore::crc_blocks;
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, Extent};

/// Writes of this many blocks or more reserve the rest of the chunk in one piece: 64 KiB.
const RESERVE_MIN_BLOCKS: usize = 16;

/// Why a large write cannot go out yet.
enum Hindrance {
    /// Somebody seals, or writes the same blocks.
    Busy,
    /// Small writes to the same blocks wait in memory.
    Gathered,
    /// The store has no room.
    Full,
}

impl FileSystem {
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

    /// Writes blocks `first..` (marked in flight) to their places and makes them the chunk's; ends the flight.
    pub(super) async fn place(
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

    pub(super) fn release_blocks(&self, blocks: Vec<u32>) {
        for start in blocks {
            self.inner.store.release(Extent { start, len: 1 });
        }
    }

    /// Places for `count` blocks from `first` on, in order: the blocks this version already has, the room it reserved,
    /// else new room. `None` when the store is full.
    pub(super) fn allocate_for(
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
}

/// Of the places that were chosen for blocks `first..`, those that the chunk does not have: to be given back after a
/// failure.
pub(super) fn unused_blocks(state: &OpenState, first: usize, extents: &[Extent]) -> Vec<u32> {
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
