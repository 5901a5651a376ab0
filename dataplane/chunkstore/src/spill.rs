//! Blocks that the device refused to take. Their bytes stay in RAM, so that nothing that was written is lost while the
//! process lives; whoever promised more than that must bring them to the cloud first (see `Store::is_volatile`). Owns
//! those bytes, and the list of bad blocks, which are not used again before the next start.

use crate::space::RangeSet;
use event_listener::Event;
use fastcache_reactor::sync::{AtomicUsize, Mutex, MutexGuard};
use fastcache_reactor::timeout;
use fastcache_types::{BLOCK, BLOCK_U64, Extent};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most blocks kept (64 MiB): sixteen chunks on their way to the cloud. Beyond that writers wait.
const BLOCKS_MAX: usize = 16_384;
/// How long a writer waits for room, that is for uploads, before its error counts.
const ROOM_WAIT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    kept: BTreeMap<u32, Box<[u8]>>,
    bad: RangeSet,
}

/// The blocks that are in RAM alone.
#[derive(Default)]
pub(crate) struct Spill {
    state: Mutex<State>,
    /// Blocks kept, for a look without the lock.
    kept: AtomicUsize,
    /// Bad blocks, for a look without the lock.
    bad: AtomicUsize,
    /// Notified when blocks were given up.
    room: Event,
}

impl Spill {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.load(Ordering::Acquire) == 0
    }

    /// Bytes in RAM alone.
    pub(crate) fn bytes(&self) -> u64 {
        self.kept.load(Ordering::Relaxed) as u64 * BLOCK_U64
    }

    /// Bytes of the device that are not used any more.
    pub(crate) fn bad_bytes(&self) -> u64 {
        self.bad.load(Ordering::Relaxed) as u64 * BLOCK_U64
    }

    /// Keeps what could not be written from block `first` on; waits for room. Whether it is kept.
    pub(crate) async fn keep(&self, first: u32, bytes: &[u8]) -> bool {
        loop {
            let listener = self.room.listen();
            if self.try_keep(first, bytes) {
                return true;
            }
            if timeout(ROOM_WAIT, listener).await.is_err() {
                return false;
            }
        }
    }

    fn try_keep(&self, first: u32, bytes: &[u8]) -> bool {
        let mut guard = self.lock();
        let st = &mut *guard;
        if st.kept.len() + bytes.len() / BLOCK > BLOCKS_MAX {
            return false;
        }
        for (at, block) in (first..).zip(bytes.chunks_exact(BLOCK)) {
            st.kept.insert(at, block.into());
            let one = Extent { start: at, len: 1 };
            if st.bad.overlap(one).is_empty() {
                st.bad.insert(one);
                self.bad.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.kept.store(st.kept.len(), Ordering::Release);
        true
    }

    /// These blocks are on the device now, or nobody wants them any more.
    pub(crate) fn forget(&self, e: Extent) {
        if self.is_empty() {
            return;
        }
        let mut st = self.lock();
        for at in e.start..e.end() {
            st.kept.remove(&at);
        }
        self.kept.store(st.kept.len(), Ordering::Release);
        drop(st);
        self.room.notify(usize::MAX);
    }

    /// Whether a block of `e` is in RAM alone.
    pub(crate) fn touches(&self, e: Extent) -> bool {
        !self.is_empty() && self.lock().kept.range(e.start..e.end()).next().is_some()
    }

    /// Copies a block that is kept. Whether it is.
    pub(crate) fn copy(&self, block: u32, into: &mut [u8]) -> bool {
        match self.lock().kept.get(&block) {
            Some(bytes) => {
                into.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// The bad blocks of `e`.
    pub(crate) fn bad_in(&self, e: Extent) -> SmallVec<[Extent; 4]> {
        if self.bad.load(Ordering::Relaxed) == 0 {
            return SmallVec::new();
        }
        self.lock().bad.overlap(e)
    }
}
