//! A full store that the cloud does not relieve: dirty chunks that other nodes have copies of become a dirty chunk of one of
//! those, which uploads it, and leave this store. Uploads go on meanwhile: whoever is first makes room.
//!
//! A chunk leaves only when two other nodes have it on their devices, so that what was fsynced still outlives the loss of any one
//! node. Who takes it over copies it anew; until then the other one keeps its copy for this node, which does not release it.

use crate::{Adopted, FileSystem, LeftReplica, Result, count, lock};
use fastcache_api::{ChunkKey, Errno};
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::{Instant, now, sleep, spawn};
use futures_util::stream::{self, StreamExt};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Other nodes that have a chunk on their devices when it leaves.
const COPIES_MIN: usize = 2;
/// Chunks that are given at once.
const AT_ONCE: usize = 8;
/// Chunks of one pass; then it is looked whether anybody waits still.
const PASS_MAX: usize = 64;
/// Pause between passes in which nothing could be given.
const PAUSE: Duration = Duration::from_millis(500);
/// How long it is known of a chunk that it was given: longer than an fsync waits.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Most chunks of which that is known; an fsync of further ones waits for the cloud.
const KNOWN_MAX: usize = 1 << 16;
/// Chunks are taken over while less than this share of the store is dirty: the rest is for this node's own programs.
const TAKEN_PERCENT: u64 = 50;

/// What was given to other nodes, and what is being given.
#[derive(Default)]
pub(crate) struct Given {
    now: Mutex<HashSet<ChunkKey>>,
    done: Mutex<HashMap<ChunkKey, Instant>>,
}

impl Given {
    /// It is being given: no copy of it is taken in, for it would leave with it.
    pub(crate) fn is_leaving(&self, key: ChunkKey) -> bool {
        lock(&self.now).contains(&key)
    }

    /// Whether other nodes have it for their own.
    pub(crate) fn has_left(&self, key: ChunkKey) -> bool {
        lock(&self.done).contains_key(&key)
    }

    fn note(&self, key: ChunkKey) {
        let mut done = lock(&self.done);
        if done.len() >= KNOWN_MAX {
            done.retain(|_, since| since.elapsed() < KNOWN_FOR);
        }
        if done.len() < KNOWN_MAX {
            done.insert(key, now());
        }
    }
}

impl FileSystem {
    /// A writer waits for room and no upload makes any: has other nodes take chunks over until nobody waits. Returns at once.
    pub(crate) fn begin_to_give(&self) {
        if self.inner.peers.get().is_none() || self.inner.store.is_volatile() {
            return;
        }
        if self.inner.space.is_giving.swap(true, Ordering::AcqRel) {
            return;
        }
        let fs = self.clone();
        spawn(async move {
            let mut given = None;
            while fs.inner.space.waiting.load(Ordering::Relaxed) > 0 {
                // What has too few copies is tried anew where that may have changed; else after its own pause.
                given = Some(fs.give_some(given != Some(0)).await);
                if given == Some(0) {
                    sleep(PAUSE).await;
                }
            }
            fs.inner.space.is_giving.store(false, Ordering::Release);
        })
        .detach();
    }

    /// One pass; how many chunks were given. `hurries`: copies of what lacks them are made at once.
    async fn give_some(&self, hurries: bool) -> usize {
        let Some(tier) = self.inner.peers.get() else {
            return 0;
        };
        let (mut ready, mut lacking) = (Vec::new(), Vec::new());
        let mut from = Some(0);
        while let Some(at) = from.filter(|_| ready.len() < PASS_MAX) {
            let (bodies, next) = self.inner.store.inventory(at);
            let dirty = bodies.iter().filter(|body| body.is_dirty());
            for key in dirty.map(|body| body.key()) {
                // What is kept for another node, too, has to stay.
                if self.inner.holds.keeps(key) {
                    continue;
                }
                match tier.copies(key) >= COPIES_MIN {
                    true => ready.push(key),
                    false if lacking.len() < PASS_MAX => lacking.push(key),
                    false => {}
                }
            }
            from = next;
        }
        ready.truncate(PASS_MAX);
        if hurries {
            tier.hurry(&lacking);
        }
        let given = stream::iter(ready).map(async |key| self.give(key).await);
        let given = given.buffer_unordered(AT_ONCE);
        given
            .filter(|is_given| std::future::ready(*is_given))
            .count()
            .await
    }

    /// Gives one chunk. False when nobody takes it.
    async fn give(&self, key: ChunkKey) -> bool {
        let (given, tier) = (&self.inner.given, self.inner.peers.get());
        lock(&given.now).insert(key);
        let is_taken = match tier {
            // It may have waited for its turn, and a copy be gone.
            Some(tier) if tier.copies(key) >= COPIES_MIN => tier.give(key).await,
            _ => false,
        };
        if is_taken {
            given.note(key);
            count(&self.inner.counters.given_chunks, 1);
            self.drop_from_store(key.ino, &[key]).await;
        }
        lock(&given.now).remove(&key);
        is_taken
    }

    /// For other nodes: makes a replica that is kept for `owner` this node's own, to be uploaded and copied; its length, when it
    /// is on stable storage as that.
    ///
    /// # Errors
    /// ENOENT: it is not kept for that node, or nobody needs it any more. EAGAIN: there is no room, or the coordinator does not
    /// answer.
    pub async fn take_for_peer(&self, owner: &str, key: ChunkKey) -> Result<usize> {
        let body = self.inner.store.find(key).ok_or(Errno::ENOENT)?;
        if !self.is_kept_for(owner, key) {
            return Err(Errno::ENOENT);
        }
        let usage = self.inner.store.usage();
        let most = usage.capacity_bytes / 100 * TAKEN_PERCENT;
        if usage.dirty_bytes + u64::from(body.len()) > most {
            return Err(Errno::EAGAIN);
        }
        let of = LeftReplica {
            key,
            owner: owner.to_owned(),
            len: body.len(),
        };
        match self.adopt(&of).await {
            Adopted::Own => {
                count(&self.inner.counters.taken_chunks, 1);
                Ok(body.len() as usize)
            }
            Adopted::Needless => Err(Errno::ENOENT),
            Adopted::Later => Err(Errno::EAGAIN),
        }
    }
}
