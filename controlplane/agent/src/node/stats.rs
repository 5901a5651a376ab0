//! What can be counted of a node, and what is in its cache.

use super::Node;
use crate::link::lock;
use crate::lru::Pinned;
use crate::types::{Backlog, CachedChunk, CloudCounters, NamespaceStats, NodeStats, PinStats};
use fastcache_api::control::{DataAnswer, DataCall};
use fastcache_api::{ChunkId, Errno, Ino, NsAnswer, NsOp, NsReply};
use fastcache_cloud::Cloud;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest [`Node::stats`] waits for the data plane.
const STATS_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for one core of the data plane to tell its counters, before another one is asked.
const STATS_LANE_WAIT: Duration = Duration::from_millis(500);

impl Node {
    /// What still has to be uploaded.
    pub fn backlog(&self) -> Backlog {
        let (chunks, bytes, oldest) = {
            let queue = lock(&self.inner.queue);
            let (chunks, bytes) = queue.left(None);
            (chunks, bytes, queue.oldest())
        };
        Backlog {
            chunks,
            bytes,
            oldest_dirty_age: oldest.map(|since| since.elapsed()),
            failing: lock(&self.inner.breaker).error(),
        }
    }

    /// Everything countable.
    pub async fn stats(&self) -> NodeStats {
        let inner = &self.inner;
        let asked = async {
            let session = inner.link.current()?;
            // A core that is stuck does not answer; another one says so.
            for _ in 0..session.lane_count() {
                let asked = session.call(session.any_lane(), DataCall::Stats);
                match tokio::time::timeout(STATS_LANE_WAIT, asked).await {
                    Ok(Ok(DataAnswer::Stats(stats))) => return Some(*stats),
                    Ok(_) => return None,
                    Err(_) => {}
                }
            }
            None
        };
        let data = tokio::time::timeout(STATS_WAIT, asked).await.ok().flatten();
        let statfs = inner.namespace.call(inner.request(NsOp::Statfs));
        let namespace = match tokio::time::timeout(STATS_WAIT, statfs).await {
            Ok(NsReply {
                result: Ok(NsAnswer::Statfs(s)),
                ..
            }) => Some(NamespaceStats {
                inodes: s.inodes,
                bytes: s.bytes,
            }),
            _ => None,
        };
        let history = match &namespace {
            Some(_) => tokio::time::timeout(STATS_WAIT, inner.history(None)).await,
            None => Ok(Err(Errno::EIO)),
        };
        let pinned: Pinned = lock(&inner.cache).pinned();
        let c = &inner.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NodeStats {
            data,
            pins: PinStats {
                files: pinned.files,
                chunks: pinned.chunks,
                bytes: pinned.bytes,
                most_bytes: pinned.most_bytes,
            },
            backlog: self.backlog(),
            cloud: CloudCounters {
                puts: count(&c.puts),
                put_bytes: count(&c.put_bytes),
                gets: count(&c.gets),
                get_bytes: count(&c.get_bytes),
                errors: count(&c.errors),
                deletes: count(&c.deletes),
            },
            namespace,
            history: history.ok().and_then(Result::ok),
            peer_id: inner.peer_id.clone(),
            coordinator: inner.config.coordinator.clone(),
            uptime: inner.started.elapsed(),
            has_cloud: inner.cloud.is_some(),
            is_breaker_open: lock(&inner.breaker).is_open(),
            reads_stopped: inner.cloud.as_ref().and_then(Cloud::reads_stopped),
            uploads_in_flight: count(&c.uploading),
            fetches_in_flight: u64::try_from(
                inner
                    .config
                    .fetch_parallel
                    .saturating_sub(inner.fetches.available_permits()),
            )
            .unwrap_or(u64::MAX),
        }
    }

    /// Chunks and bytes of pinned files that are here, of one file or all.
    pub fn pinned_here(&self, ino: Option<Ino>) -> (u64, u64) {
        let cache = lock(&self.inner.cache);
        match ino {
            None => (cache.pinned().chunks, cache.pinned().bytes),
            Some(ino) if cache.is_pinned(ino) => cache.of_file(ino),
            Some(_) => (0, 0),
        }
    }

    /// Chunks in this node's cache in order of `ChunkId`, after one, at most `max`.
    pub fn cached(&self, after: Option<ChunkId>, max: usize) -> Vec<CachedChunk> {
        lock(&self.inner.cache).listed(after, max)
    }
}
