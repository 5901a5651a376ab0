//! Memory that a core gives to answering other nodes, and how much of it one node may have.

use crate::frame::PAYLOAD_MAX;
use async_lock::{Semaphore, SemaphoreGuardArc};
use fastcache_reactor::{IoBuf, PAGE, pool};
use fastcache_types::CHUNK_MAX;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// Bytes of replicas that come in on one core at once; further ones are refused.
const REPLICAS_BYTES: usize = 8 * CHUNK_MAX;
/// Bytes of one core that are read for others, or wait to be sent to them, in parts of [`PAYLOAD_MAX`]: few enough to leave
/// most of the core's buffers to its own programs.
const PARTS_MAX: usize = 24;
/// Those of one node: as many reads as a device needs at once to be fast (1 MiB each: 1.1 GB/s with 4, 2.0 with 16), and others
/// have theirs while it stands still.
const PARTS_SHARE: usize = 12;
/// A part up to this length is small: it does not wait for large ones.
pub(crate) const SMALL: usize = 64 << 10;
/// Small parts of one core at once.
const SMALL_MAX: usize = 64;
/// Those of one node.
const SMALL_SHARE: usize = 32;
/// What the server of one core takes for chunks, bytes: parts that go out, and replicas that come in.
pub const CORE_BYTES: u64 =
    (PARTS_MAX * PAYLOAD_MAX + SMALL_MAX * (SMALL + PAGE) + REPLICAS_BYTES) as u64;

/// Parts that may be read, or wait to be sent, at the same time.
pub(super) struct Room {
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

impl Room {
    fn new(large: usize, small: usize) -> Arc<Room> {
        Arc::new(Room {
            large: Arc::new(Semaphore::new(large)),
            small: Arc::new(Semaphore::new(small)),
        })
    }

    pub async fn take(&self, len: usize) -> SemaphoreGuardArc {
        match len <= SMALL {
            true => self.small.acquire_arc().await,
            false => self.large.acquire_arc().await,
        }
    }
}

thread_local! {
    /// Parts that this core may still read for others.
    pub(super) static PARTS: Arc<Room> = Room::new(PARTS_MAX, SMALL_MAX);
    /// The same for one node, by its id.
    static SHARES: RefCell<HashMap<String, Weak<Room>>> = RefCell::default();
    /// Bytes of the replicas that come in on this core.
    static COMING: Cell<usize> = const { Cell::new(0) };
}

/// What this core has taken for replicas that come in.
#[cfg(test)]
pub(crate) fn coming_bytes() -> usize {
    COMING.get()
}

/// What all connections of a node on this core may hold of [`PARTS`].
pub(super) fn share_of(node: &str) -> Arc<Room> {
    SHARES.with_borrow_mut(|shares| {
        if let Some(share) = shares.get(node).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Room::new(PARTS_SHARE, SMALL_SHARE);
        shares.insert(node.to_owned(), Arc::downgrade(&share));
        share
    })
}

/// Bytes of [`COMING`], given back when dropped. Stays on its core, as a connection does.
pub(super) struct Coming(usize);

impl Coming {
    pub fn take(bytes: usize) -> Option<Coming> {
        let all = COMING.get() + bytes;
        (all <= REPLICAS_BYTES).then(|| {
            COMING.set(all);
            Coming(bytes)
        })
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        COMING.set(COMING.get() - self.0);
    }
}

/// Memory for a part and its header: of the core's registered buffers, which are on large pages, unless it is small.
pub(super) fn memory_for(len: usize) -> IoBuf {
    debug_assert!(len <= PAGE + PAYLOAD_MAX);
    if len <= PAGE + SMALL {
        return IoBuf::alloc(len);
    }
    match pool().try_get() {
        Some(mut buf) if buf.len() >= len && buf.is_aligned() => {
            drop(buf.split_off(len));
            buf
        }
        _ => IoBuf::alloc(len),
    }
}
