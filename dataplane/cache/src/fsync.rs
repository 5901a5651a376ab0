//! `fsync` at the level the agent says. Level `peers`: what of the file is not in the cloud is on other nodes' devices, or in the
//! cloud, whichever is first, when it returns.
//!
//! Copies are on their way since the commit; the cloud is hurried when they cannot be had, or take longer than an upload would
//! wait anyway. Nothing is asked again and again: each copy that was made or lost, and each upload, is told to who waits.

use crate::link::unexpected;
use crate::{FileSystem, Result, lock};
use fastcache_api::control::{FsyncLevel, LATENCY_BOUNDS_US, Latency, NodeAnswer, NodeCall};
use fastcache_api::{ChunkId, ChunkKey, Ino};
use fastcache_reactor::sync::AtomicU64;
use fastcache_reactor::{Instant, sleep};
use futures_util::future::{Either, select};
use std::cell::Cell;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long copies may take before the cloud is hurried: as long as an upload waits for quiet.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the fsyncs of one level took.
#[derive(Default, Debug)]
struct Took {
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// How long fsyncs took, by level.
#[derive(Default, Debug)]
pub(crate) struct Fsyncs([Took; FsyncLevel::ALL.len()]);

impl Fsyncs {
    fn note(&self, level: FsyncLevel, time: Duration) {
        let Some(took) = self.0.get(level as usize) else {
            return;
        };
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(bucket) = took.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        took.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Of all levels.
    pub(crate) fn latencies(&self) -> Vec<Latency> {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let all = FsyncLevel::ALL.iter().zip(&self.0);
        let of = |(level, took): (&FsyncLevel, &Took)| Latency {
            operation: level.name().to_owned(),
            buckets: took.buckets.iter().map(get).collect(),
            sum_us: get(&took.sum_us),
        };
        all.map(of).collect()
    }
}

/// Where chunks are that had to leave this node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopiedTo {
    /// All on other nodes' devices.
    Nodes,
    /// Some of them in the cloud.
    Cloud,
}

/// What an fsync of level `peers` waits for still.
struct Left {
    chunks: Cell<usize>,
    /// Some of them got to the cloud before they got to enough nodes.
    is_by_cloud: Cell<bool>,
}

impl Left {
    fn all(keys: &[ChunkKey]) -> Left {
        Left {
            chunks: Cell::new(keys.len()),
            is_by_cloud: Cell::new(false),
        }
    }
}

impl FileSystem {
    /// Waits for the level of a file whose bytes are on this device and whose commits are answered. `since`: when it was asked
    /// for. EIO when neither other nodes nor the cloud took anything for long.
    pub(crate) async fn reach_level(&self, ino: Ino, since: Instant) -> Result<()> {
        // What is written from now on is not waited for.
        let keys = self.dirty_of(ino);
        let level = match self.with_the_cloud(fsync(ino, false)).await? {
            NodeAnswer::Synced { level } => level,
            NodeAnswer::Copies { copies } => {
                let copies = usize::try_from(copies).unwrap_or(usize::MAX);
                self.copied_or_persisted(ino, keys, copies).await?;
                FsyncLevel::Peers
            }
            other => return Err(unexpected(&other)),
        };
        self.inner.fsyncs.note(level, since.elapsed());
        Ok(())
    }

    /// Has these chunks copied before others; what ends when each is on another node's device, or in the cloud. `None`
    /// when one of them can have no copy.
    pub(crate) fn copies_begun(
        &self,
        keys: Vec<ChunkKey>,
    ) -> Option<impl Future<Output = CopiedTo> + '_> {
        let tier = self.inner.peers.get()?;
        if keys.is_empty() || keys.iter().any(|key| tier.homes(key.id()).is_empty()) {
            return None;
        }
        tier.hurry(&keys);
        Some(async move {
            let left = Left::all(&keys);
            self.copied(&keys, 1, &left).await;
            match left.is_by_cloud.get() {
                true => CopiedTo::Cloud,
                false => CopiedTo::Nodes,
            }
        })
    }

    pub(crate) fn dirty_of(&self, ino: Ino) -> Vec<ChunkKey> {
        let chunks = self.inner.store.chunks_of(ino);
        let dirty = chunks.iter().filter(|body| body.is_dirty());
        dirty.map(|body| body.key()).collect()
    }

    /// How many other nodes have each chunk of a file that is not in the cloud.
    pub(crate) fn copies_of(&self, ino: Ino) -> Vec<(ChunkKey, u32)> {
        let tier = self.inner.peers.get();
        let copies = |key| tier.map_or(0, |tier| tier.copies(key));
        let keys = self.dirty_of(ino).into_iter();
        keys.map(|key| (key, u32::try_from(copies(key)).unwrap_or(u32::MAX)))
            .collect()
    }

    async fn copied_or_persisted(
        &self,
        ino: Ino,
        keys: Vec<ChunkKey>,
        copies: usize,
    ) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let tier = self.inner.peers.get();
        let mut has_homes = false;
        if let Some(tier) = tier {
            tier.hurry(&keys);
            has_homes = keys.iter().all(|k| tier.homes(k.id()).len() >= copies);
        }
        let left = Left::all(&keys);
        let mut copied = pin!(self.copied(&keys, copies, &left));
        let mut patience = if has_homes { PATIENCE } else { Duration::ZERO };
        loop {
            let (before, pause) = (left.chunks.get(), patience);
            let persisted = pin!(async {
                sleep(pause).await;
                self.with_the_cloud(fsync(ino, true)).await
            });
            match select(copied.as_mut(), persisted).await {
                Either::Left(_) if left.is_by_cloud.get() => {
                    // The record that says so has to be stable, too.
                    return self.with_the_cloud(fsync(ino, false)).await.map(|_| ());
                }
                Either::Left(_) => return Ok(()),
                Either::Right((Ok(NodeAnswer::Synced { .. }), _)) => return Ok(()),
                Either::Right((Ok(other), _)) => return Err(unexpected(&other)),
                Either::Right((Err(errno), _)) if left.chunks.get() == before => {
                    return Err(errno);
                }
                // The cloud takes nothing, but other nodes do.
                Either::Right((Err(_), _)) => patience = Duration::ZERO,
            }
        }
    }

    /// Whether the file may have anything in the place of a chunk.
    fn may_be_named(&self, id: ChunkId) -> bool {
        let Some(inode) = self.inner.inodes.get(id.ino) else {
            return true;
        };
        let state = lock(&inode.state);
        if state.is_orphan {
            return false;
        }
        match (&state.attr, &state.layout) {
            (Some(attr), Some(layout)) if self.is_trusted(&state) || self.may_write(&state) => {
                layout.chunk(id.index, attr.chunk_size).is_some()
            }
            _ => true,
        }
    }

    /// Waits until all of these, or what took their places, are on so many other nodes or in the cloud.
    async fn copied(&self, keys: &[ChunkKey], copies: usize, left: &Left) {
        let Some(tier) = self.inner.peers.get() else {
            return std::future::pending().await;
        };
        let has_copies = |key: ChunkKey| tier.copies(key) >= copies;
        let is_safe = |key: &ChunkKey| {
            let is_over = match self.inner.store.get(key.id()) {
                _ if has_copies(*key) || self.inner.given.has_left(*key) => return true,
                Some(body) if body.is_dirty() => return has_copies(body.key()),
                // Clean: it is in the cloud. What took its place may have come from the device of another node.
                Some(body) => body.key() == *key,
                None => !self.may_be_named(key.id()),
            };
            // In the cloud, or nothing that the file has any more.
            left.is_by_cloud.set(left.is_by_cloud.get() || is_over);
            is_over
        };
        let mut waiting = keys.to_vec();
        loop {
            let changed = tier.copies_changed();
            while waiting.pop_if(|key| is_safe(key)).is_some() {}
            if waiting.is_empty() {
                // A node that had the first may be gone by now.
                waiting.extend(keys.iter().filter(|key| !is_safe(key)));
            }
            left.chunks.set(left.chunks.get().min(waiting.len()));
            if waiting.is_empty() {
                return;
            }
            changed.await;
        }
    }
}

fn fsync(ino: Ino, is_cloud: bool) -> impl Fn(Option<fastcache_api::control::Waited>) -> NodeCall {
    move |waited| NodeCall::Fsync {
        ino,
        waited,
        is_cloud,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_by_level() {
        let fsyncs = Fsyncs::default();
        fsyncs.note(FsyncLevel::Peers, Duration::from_micros(25));
        fsyncs.note(FsyncLevel::Peers, Duration::from_secs(100));
        let all = fsyncs.latencies();
        let sums: Vec<_> = all.iter().map(|l| (&l.operation[..], l.sum_us)).collect();
        assert_eq!(sums, [("local", 0), ("peers", 100_000_025), ("cloud", 0)]);
        let buckets = &all[FsyncLevel::Peers as usize].buckets;
        assert_eq!((buckets[0], buckets[LATENCY_BOUNDS_US.len()]), (1, 1));
        assert_eq!(buckets.iter().sum::<u64>(), 2);
    }
}
