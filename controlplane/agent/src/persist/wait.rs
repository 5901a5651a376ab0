//! Waiting for the cloud: until what is dirty now is persisted, its bytes and then the records that name them.

use crate::link::lock;
use crate::node::Inner;
use crate::types::Durability;
use fastcache_api::control::{NodeAnswer, Waited};
use fastcache_api::{Errno, Ino};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tracing::error;

/// How often a file may be neither persisted nor queued before it is an error.
const LOST_MAX: u32 = 50;
/// Between two looks when nothing happens.
const LOOK: Duration = Duration::from_millis(100);
/// The data plane is told so often that it still waits; less than it waits for an answer (75 s), also with the time that
/// the coordinator may take to answer on top.
const SLICE: Duration = Duration::from_secs(10);

impl Inner {
    /// Waits until what a file (or everything) holds now is persisted: its bytes, and then the records of the
    /// namespace that name them. `Ok` also when it was written again meanwhile; EIO when a chunk is nowhere to be
    /// uploaded from, ENOTSUP when the records never get into the bucket.
    pub(crate) async fn wait_persisted(
        &self,
        ino: Option<Ino>,
        deadline: Option<Instant>,
    ) -> Result<(), Errno> {
        self.wait_on(ino, &mut None, deadline).await
    }

    /// The same, for a while: `Done`, or how far it is.
    pub(crate) async fn wait_a_while(
        &self,
        ino: Option<Ino>,
        mut waited: Option<Waited>,
    ) -> Result<NodeAnswer, Errno> {
        let puts = || self.counters.puts.load(Ordering::Relaxed);
        let left = |waited: Option<Waited>| {
            let waited = waited.unwrap_or_default();
            lock(&self.queue).left_before(ino, waited.mark)
        };
        let before = (waited, puts(), left(waited).0);
        let shipped = async || self.history(None).await.map_or(0, |h| h.shipped_position);
        let shipped_before = shipped().await;
        match self
            .wait_on(ino, &mut waited, Some(Instant::now() + SLICE))
            .await
        {
            Ok(()) => Ok(NodeAnswer::Done),
            Err(Errno::ETIMEDOUT) => {
                let (now, is_failing) = left(waited);
                let is_recording = waited.is_some_and(|w| w.record.is_some());
                let has_moved = if is_recording {
                    before.0.is_none_or(|w| w.record.is_none()) || shipped().await > shipped_before
                } else {
                    // Others may be before it in the queue; what fails by itself is not helped by them.
                    now < before.2 || (!is_failing && puts() > before.1)
                };
                Ok(NodeAnswer::Waiting {
                    waited: waited.unwrap_or_default(),
                    has_moved,
                })
            }
            Err(errno) => Err(errno),
        }
    }

    /// Goes on with a wait, or begins one.
    async fn wait_on(
        &self,
        ino: Option<Ino>,
        waited: &mut Option<Waited>,
        deadline: Option<Instant>,
    ) -> Result<(), Errno> {
        let mut changed = self.queue_changed.subscribe();
        let waited = {
            let mut queue = lock(&self.queue);
            queue.hurry(ino);
            waited.get_or_insert_with(|| Waited {
                mark: queue.mark(),
                ..Waited::default()
            })
        };
        lock(&self.breaker).hurry(Instant::now());
        self.upload_wake.notify_one();
        let mut lost = 0;
        let mut was_synced = true;
        while waited.record.is_none() {
            if self.is_bucket_another() {
                error!(target: "cloud", "nothing is persisted: the bucket is not the coordinator's");
                return Err(Errno::ENOTSUP);
            }
            let (is_synced, is_left) = {
                let mut queue = lock(&self.queue);
                if queue.is_synced() && !was_synced {
                    queue.hurry(ino);
                    self.upload_wake.notify_one();
                }
                was_synced = queue.is_synced();
                (was_synced, queue.is_left(ino, waited.mark))
            };
            if is_synced && !is_left {
                let is_uploaded = match ino {
                    Some(ino) => self.is_uploaded(ino).await,
                    None => Ok(true),
                };
                match is_uploaded {
                    Ok(true) => break,
                    Ok(false) if lock(&self.queue).left(ino).0 > 0 => {
                        // Written again meanwhile; or heard of only after the mark, for news come another way than the
                        // question. A second mark covers that.
                        if std::mem::replace(&mut waited.is_second, true) {
                            break;
                        }
                        let mut queue = lock(&self.queue);
                        queue.hurry(ino);
                        waited.mark = queue.mark();
                        drop(queue);
                        self.upload_wake.notify_one();
                        continue;
                    }
                    // Another node wrote it since, and uploads it.
                    Ok(false) if self.leases.is_shared() => {}
                    Ok(false) => lost += 1,
                    Err(Errno::ENOENT) => return Ok(()),
                    Err(errno) => return Err(errno),
                }
                if lost > LOST_MAX {
                    error!(target: "cloud", ?ino, "a chunk is neither persisted nor on the device");
                    return Err(Errno::EIO);
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Errno::ETIMEDOUT);
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.cancelled() => return Err(Errno::EIO),
            }
        }
        self.wait_recorded(&mut waited.record, deadline).await
    }

    async fn is_uploaded(&self, ino: Ino) -> Result<bool, Errno> {
        let state = self.file_state(ino).await?;
        let mut chunks = state.chunks.iter();
        Ok(chunks.all(|c| c.state == Durability::Persisted))
    }
}
