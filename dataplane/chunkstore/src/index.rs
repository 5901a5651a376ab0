//! Which chunks the store holds: stripes by file, each behind a lock that is held for nanoseconds and never across I/O.
//!
//! A change of a stripe and the queueing of its journal record happen under the same lock, so that the journal has the
//! changes of one chunk in the order in which they happened.

use crate::body::ChunkBody;
use crate::slots::{Body, Slots};
use fastcache_reactor::sync::{AtomicU64, Mutex, MutexGuard};
use fastcache_types::{ChunkId, ChunkKey, Ino};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Stripes of the index.
pub(crate) const STRIPES: usize = 256;

impl Body for Arc<ChunkBody> {
    fn key(&self) -> ChunkKey {
        ChunkBody::key(self)
    }
    fn clean(&self) {
        self.set_clean();
    }
}

/// The chunks of some files.
pub(crate) type Stripe = Slots<Arc<ChunkBody>>;

/// All chunks.
pub(crate) struct Index {
    stripes: Box<[Mutex<Stripe>]>,
    pub(crate) chunks: AtomicU64,
    pub(crate) dirty_chunks: AtomicU64,
    pub(crate) dirty_bytes: AtomicU64,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            chunks: AtomicU64::new(0),
            dirty_chunks: AtomicU64::new(0),
            dirty_bytes: AtomicU64::new(0),
        }
    }

    /// Takes what recovery found: no id twice, the ids of a stripe in order. Nothing else is here yet.
    pub(crate) fn fill(&self, bodies: impl Iterator<Item = Arc<ChunkBody>>) {
        let mut by_stripe: Vec<Vec<Arc<ChunkBody>>> = vec![Vec::new(); STRIPES];
        for body in bodies {
            self.count_in(&body);
            by_stripe[Index::stripe_of(body.key().ino)].push(body);
        }
        for (at, bodies) in by_stripe.into_iter().enumerate() {
            self.stripe(at).current = bodies.into_iter().collect();
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "8 bits")]
    pub(crate) fn stripe_of(ino: Ino) -> usize {
        (ino.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize
    }

    pub(crate) fn stripe(&self, at: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, ino: Ino) -> MutexGuard<'_, Stripe> {
        self.stripe(Index::stripe_of(ino))
    }

    pub(crate) fn get(&self, id: ChunkId) -> Option<Arc<ChunkBody>> {
        self.of(id.ino).current.get(&id).cloned()
    }

    /// A body became the current one of its id.
    pub(crate) fn count_in(&self, body: &ChunkBody) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
        if body.is_dirty() {
            self.dirty_chunks.fetch_add(1, Ordering::Relaxed);
            self.dirty_bytes
                .fetch_add(body.device_bytes(), Ordering::Relaxed);
        }
    }

    /// A body is no longer the current one of its id.
    pub(crate) fn count_out(&self, body: &ChunkBody) {
        self.chunks.fetch_sub(1, Ordering::Relaxed);
        if body.is_dirty() {
            self.count_clean(body);
        }
    }

    /// A current body that was dirty is clean now.
    pub(crate) fn count_clean(&self, body: &ChunkBody) {
        self.dirty_chunks.fetch_sub(1, Ordering::Relaxed);
        self.dirty_bytes
            .fetch_sub(body.device_bytes(), Ordering::Relaxed);
    }
}
