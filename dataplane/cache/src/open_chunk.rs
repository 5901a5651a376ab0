//! A chunk that is being written: which of its blocks are where, what is gathered in memory, what is in flight.
//!
//! Blocks that this version wrote (`is_owned`) may be overwritten in place; blocks inherited from the sealed base
//! are never touched: a write to them goes to a new place. Whoever reads or writes blocks marks them in
//! flight first (writers) or waits until nobody has (readers), under the lock, and does the I/O without it.
//!
//! `gather`: small writes. `place`: large writes, and where blocks go. `read`: reads. `shape`: truncation, holes, and
//! what a sealed chunk is made of.

mod gather;
mod place;
mod read;
mod shape;

use crate::memory::Weight;
use crate::{Result, lock};
use event_listener::Event;
use fastcache_api::{Errno, Ino};
use fastcache_chunkstore::{BlockRun, ChunkBody};
use fastcache_reactor::IoBuf;
use fastcache_reactor::sync::{AtomicU64, Mutex};
use fastcache_types::{BLOCK, Extent};
use std::sync::Arc;

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
    weight: Weight,
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

    /// What it takes of RAM.
    fn bytes(&self) -> usize {
        let gather = self.gather.as_ref().map_or(0, |g| g.buf.len() + BLOCK);
        size_of::<OpenChunk>() + self.slots.capacity() * size_of::<Slot>() + gather
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
    pub fn empty(ino: Ino, index: u32, open_bytes: &Arc<AtomicU64>) -> OpenChunk {
        OpenChunk::new(ino, index, OpenState::default(), open_bytes)
    }

    fn new(ino: Ino, index: u32, state: OpenState, open_bytes: &Arc<AtomicU64>) -> OpenChunk {
        OpenChunk {
            ino,
            index,
            weight: Weight::new(open_bytes, state.bytes()),
            state: Mutex::new(state),
            changed: Event::new(),
        }
    }

    /// Looks up what it takes of RAM, after it was written to.
    pub fn weigh(&self) {
        let bytes = lock(&self.state).bytes();
        self.weight.set(bytes);
    }

    /// Closes it if nobody has written to it, or is about to: whoever comes looks again.
    pub fn close_unchanged(&self) -> bool {
        let mut state = lock(&self.state);
        let is_in_use = state.is_dirty || state.is_sealing || !state.inflight.is_empty();
        state.is_closed |= !is_in_use;
        !is_in_use
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
        open_bytes: &Arc<AtomicU64>,
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
        OpenChunk::new(ino, index, state, open_bytes)
    }
}

/// A chunk was sealed or dropped while somebody waited for it: look it up again.
pub(crate) struct Closed;

fn is_in(reserve: Option<(usize, Extent)>, dev: u32) -> bool {
    reserve.is_some_and(|(_, e)| dev >= e.start && dev < e.end())
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
