//! Recounts what a store keeps count of, for tests.

use crate::body::ChunkBody;
use crate::index::STRIPES;
use crate::store::Store;
use fastcache_types::Extent;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Store {
    /// Checks that every block is in one state and that the levels agree. `held` are bodies with handles outside that the
    /// store has replaced; blocks that were allocated and not sealed may be anybody's.
    ///
    /// # Panics
    /// When a block is in two states or in none, or a level is wrong.
    pub fn audit(&self, held: &[Arc<ChunkBody>]) {
        let mut blocks = BTreeSet::new();
        let mut take = |body: &Arc<ChunkBody>| {
            for e in body.extents() {
                blocks.extend(e.start..e.end());
            }
        };
        let (mut chunks, mut dirty, mut dirty_bytes) = (0, 0, 0);
        for at in 0..STRIPES {
            let stripe = self.inner.index.stripe(at);
            for body in stripe.current.values() {
                chunks += 1;
                if body.is_dirty() {
                    dirty += 1;
                    dirty_bytes += body.device_bytes();
                }
                take(body);
            }
            stripe.pending.values().flatten().for_each(&mut take);
        }
        held.iter().for_each(&mut take);
        let owned: Vec<Extent> = blocks
            .into_iter()
            .map(|start| Extent { start, len: 1 })
            .collect();
        self.inner.pool.space.check(&owned);
        let u = self.usage();
        assert_eq!(
            u.capacity_bytes,
            u.used_bytes + u.free_bytes + u.reserved_bytes + u.quarantined_bytes
        );
        assert_eq!(
            (u.chunks, u.dirty_chunks, u.dirty_bytes),
            (chunks, dirty, dirty_bytes)
        );
    }
}
