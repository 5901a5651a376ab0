//! Writes the log to the bucket, segment by segment, for as long as the engine lives.
//!
//! A write that fails is made again, for ever, with the same bytes: two tries of one segment have one name. Only what
//! is on stable storage here goes there, so that the bucket is never ahead of this disk.

use super::claim::{self, Claimant};
use super::format::{self, Manifest, OBJECT_MAX, SegmentName, SnapshotName};
use super::shape::Shape;
use super::snapshot;
use super::{HistoryConfig, HistoryError, HistoryOptions, cloud_error};
use crate::Engine;
use crate::engine::WeakEngine;
use bytes::Bytes;
use fastcache_api::HistoryState;
use fastcache_cloud::{Cloud, CloudError, Created};
use futures_util::StreamExt;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Objects deleted at once.
const DELETES: usize = 8;
/// A snapshot because of garbage waits this many times as long as the last snapshot took.
const GARBAGE_PATIENCE: u32 = 20;

/// Why a step did not work.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It may work later.
    Again(String),
    /// It never will in this run.
    Stopped(HistoryError),
}

impl Failed {
    pub(super) fn of(error: CloudError) -> Failed {
        Failed::Again(error.to_string())
    }
}

/// A segment that is not known to be in the bucket.
struct Pending {
    name: SegmentName,
    bytes: Bytes,
    is_written: bool,
}

/// What is known of the snapshots.
struct Snapshots {
    is_needed: bool,
    task: Option<JoinHandle<Result<(SnapshotName, Manifest), Failed>>>,
    began: Instant,
    /// When the last one ended, and how long it took.
    last: (Instant, Duration),
    last_bytes: u64,
    last_parts: u64,
    log_bytes: u64,
    log_segments: u64,
}

pub(crate) struct Shipper {
    engine: WeakEngine,
    cloud: Cloud,
    options: HistoryOptions,
    me: Claimant,
    is_claimed: bool,
    pending: Option<Pending>,
    shipped_at: Instant,
    snapshots: Snapshots,
    failures: u32,
}

impl Shipper {
    pub(super) fn new(engine: &Engine, config: HistoryConfig) -> Shipper {
        let HistoryConfig { cloud, options } = config;
        Shipper {
            engine: engine.downgrade(),
            cloud,
            options,
            me: engine.claimant(),
            is_claimed: false,
            pending: None,
            shipped_at: Instant::now(),
            snapshots: Snapshots {
                is_needed: false,
                task: None,
                began: Instant::now(),
                last: (Instant::now(), Duration::ZERO),
                last_bytes: 0,
                last_parts: 0,
                log_bytes: 0,
                log_segments: 0,
            },
            failures: 0,
        }
    }

    pub(super) fn place(&self) -> &str {
        self.cloud.place()
    }

    /// Works until the engine is gone, or another process writes this history.
    pub(super) async fn run(mut self) {
        while let Some(hurry) = self.engine.upgrade().map(|e| e.hurry()) {
            let step = self.step().await;
            let wait = match step {
                Ok(true) => continue,
                Ok(false) => LOOK,
                Err(Failed::Again(error)) => self.failed(error),
                Err(Failed::Stopped(error)) => {
                    tracing::error!(target: "history", %error, "the history in the bucket is not written any more");
                    if let Some(engine) = self.engine.upgrade() {
                        let mut progress = engine.progress();
                        progress.state = HistoryState::Stopped;
                        progress.error = Some(error.to_string());
                        drop(progress);
                        engine.history_moved();
                    }
                    break;
                }
            };
            if self.failures > 0 {
                tokio::time::sleep(wait).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = hurry.notified() => self.shipped_at -= self.options.segment_every,
                }
            }
        }
        if let Some(task) = self.snapshots.task.take() {
            task.abort();
        }
    }

    fn failed(&mut self, error: String) -> Duration {
        let (first, longest) = self.options.retry;
        if self.failures == 0 {
            tracing::warn!(target: "history", place = self.place(), error, "the log cannot be written to the bucket; trying again until it can");
        }
        let pause = first
            .saturating_mul(1 << self.failures.min(10))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        if let Some(engine) = self.engine.upgrade() {
            engine.progress().error = Some(error);
        }
        pause
    }

    fn worked(&mut self, engine: &Engine) {
        if self.failures > 0 {
            tracing::info!(target: "history", place = self.place(), "the log is written to the bucket again");
        }
        self.failures = 0;
        engine.progress().error = None;
    }

    /// One thing that is due. Whether there was one.
    async fn step(&mut self) -> Result<bool, Failed> {
        if !self.is_claimed {
            self.claim().await?;
            return Ok(true);
        }
        if self
            .snapshots
            .task
            .as_ref()
            .is_some_and(JoinHandle::is_finished)
            && let Some(task) = self.snapshots.task.take()
        {
            let done = task
                .await
                .unwrap_or_else(|e| Err(Failed::Again(e.to_string())));
            return self.snapshot_done(done?).await.map(|()| true);
        }
        if self.snapshots.task.is_none() && self.is_snapshot_due() {
            let Some(engine) = self.engine.upgrade() else {
                return Ok(false);
            };
            self.snapshots.began = Instant::now();
            let work = snapshot::write(engine, self.cloud.clone(), self.me.owner, self.options);
            self.snapshots.task = Some(tokio::spawn(work));
            return Ok(false);
        }
        if self.snapshots.is_needed {
            return Ok(false);
        }
        self.ship().await
    }

    /// Makes this process the writer, and finds out where the history stands.
    pub(super) async fn claim(&mut self) -> Result<(), Failed> {
        let shape = claim::claim(&self.cloud, &self.me).await?;
        let chain = shape.chain();
        let manifest = match chain.snapshot {
            Some(name) => Some(read_manifest(&self.cloud, name, self.me.owner.file_system).await?),
            None => None,
        };
        let Some(engine) = self.engine.upgrade() else {
            return Ok(());
        };
        let shipped = engine.shipped_note();
        let is_whole = chain.end >= shipped && engine.log_begins() <= shipped + 1;
        if !is_whole {
            tracing::info!(target: "history", place = self.place(), shipped, bucket = chain.end,
                "the bucket lacks a part of the history: writing a snapshot");
        }
        self.snapshots.is_needed = !is_whole;
        self.snapshots.log_segments = chain.segments.len() as u64;
        if let Some(manifest) = &manifest {
            self.snapshots.last_bytes = manifest.bytes;
            self.snapshots.last_parts = manifest.parts.len() as u64;
        }
        {
            let mut progress = engine.progress();
            progress.state = HistoryState::Shipping;
            if is_whole {
                progress.reached(shipped);
                if let Some(manifest) = manifest {
                    progress.snapshot = manifest.position;
                    progress.garbage = manifest.garbage;
                }
            }
        }
        self.is_claimed = true;
        self.worked(&engine);
        engine.history_moved();
        tracing::info!(target: "history", place = self.place(), epoch = self.me.owner.epoch, shipped, "the history in the bucket is this coordinator's");
        Ok(())
    }

    /// Writes the next segment, if it is time.
    async fn ship(&mut self) -> Result<bool, Failed> {
        if self.pending.is_none() {
            if self.shipped_at.elapsed() < self.options.segment_every {
                return Ok(false);
            }
            let Some(engine) = self.engine.upgrade() else {
                return Ok(false);
            };
            let from = engine.progress().shipped + 1;
            let limit = self.options.segment_bytes;
            let read = tokio::task::spawn_blocking(move || engine.log_records(from, limit)).await;
            let records = match read {
                Ok(Ok(records)) => records,
                Ok(Err(error)) => return Err(Failed::Again(error.to_string())),
                Err(error) => return Err(Failed::Again(error.to_string())),
            };
            if records.is_empty() {
                return Ok(false);
            }
            let name = SegmentName {
                first: from,
                last: from + records.len() as u64 - 1,
                epoch: self.me.owner.epoch,
            };
            let bytes = format::encode_segment(name, self.me.owner.file_system, &records).into();
            self.pending = Some(Pending {
                name,
                bytes,
                is_written: false,
            });
        }
        let Some(pending) = &mut self.pending else {
            return Ok(false);
        };
        if !pending.is_written {
            let key = pending.name.key();
            let created = self.cloud.create(&key, pending.bytes.clone()).await;
            if created.map_err(Failed::of)? == Created::Exists {
                // The answer of an earlier try was lost; anything else there is nobody's to write.
                let there = self
                    .cloud
                    .read(&key, OBJECT_MAX)
                    .await
                    .map_err(Failed::of)?;
                if there != pending.bytes {
                    let error = CloudError::Config(format!("{key} was written by something else"));
                    return Err(Failed::Stopped(cloud_error(self.cloud.place(), &error)));
                }
            }
            pending.is_written = true;
        }
        if let Err(failed) = claim::check_still(&self.cloud, &self.me).await {
            // It may have gone to another bucket, which was in the place of this one for a moment.
            pending.is_written = false;
            return Err(failed);
        }
        let (last, bytes) = (pending.name.last, pending.bytes.len() as u64);
        self.pending = None;
        self.snapshots.log_bytes += bytes;
        self.snapshots.log_segments += 1;
        self.shipped_at = Instant::now();
        let Some(engine) = self.engine.upgrade() else {
            return Ok(false);
        };
        engine.note_shipped(last, false).map_err(Failed::Again)?;
        engine.progress().reached(last);
        self.worked(&engine);
        engine.history_moved();
        // More may have come meanwhile, more than one segment takes.
        if engine.log_position() - last > 0 && bytes >= self.options.segment_bytes as u64 / 2 {
            self.shipped_at -= self.options.segment_every;
        }
        Ok(true)
    }

    fn is_snapshot_due(&self) -> bool {
        let s = &self.snapshots;
        let o = &self.options;
        if s.is_needed
            || s.log_bytes >= o.snapshot_bytes.max(s.last_bytes / 2)
            || s.log_segments >= o.snapshot_segments.max(s.last_parts * 16)
        {
            return true;
        }
        let (ended, took) = s.last;
        let patience = o.garbage_wait.max(took * GARBAGE_PATIENCE);
        ended.elapsed() >= patience
            && self.engine.upgrade().is_some_and(|engine| {
                let progress = engine.progress();
                let (snapshot, garbage, shipped) =
                    (progress.snapshot, progress.garbage, progress.shipped);
                drop(progress);
                shipped > snapshot && engine.counters().garbage > garbage
            })
    }

    async fn snapshot_done(&mut self, done: (SnapshotName, Manifest)) -> Result<(), Failed> {
        let (name, manifest) = done;
        claim::check_still(&self.cloud, &self.me).await?;
        let Some(engine) = self.engine.upgrade() else {
            return Ok(());
        };
        let shipped = engine.progress().shipped.max(name.position);
        // On stable storage before anything is deleted: a start that knew less would call this snapshot void.
        let noting = engine.clone();
        let noted = tokio::task::spawn_blocking(move || noting.note_shipped(shipped, true)).await;
        noted
            .map_err(|e| e.to_string())
            .and_then(|done| done)
            .map_err(Failed::Again)?;
        {
            let mut progress = engine.progress();
            progress.reached(shipped);
            progress.snapshot = name.position;
            progress.garbage = manifest.garbage;
        }
        let took = self.snapshots.began.elapsed();
        tracing::info!(target: "history", position = name.position, bytes = manifest.bytes, parts = manifest.parts.len(), ?took, "snapshot written");
        self.snapshots = Snapshots {
            is_needed: false,
            task: None,
            began: Instant::now(),
            last: (Instant::now(), took),
            last_bytes: manifest.bytes,
            last_parts: manifest.parts.len() as u64,
            log_bytes: 0,
            log_segments: 0,
        };
        // Begun before the snapshot: it would follow a gap, or repeat what the snapshot has.
        if self.pending.as_ref().is_some_and(|p| {
            p.name.first <= name.position && !p.is_written && shipped == name.position
        }) {
            self.pending = None;
        }
        self.worked(&engine);
        engine.history_moved();
        drop(engine);
        let shape: Shape = claim::list(&self.cloud).await?;
        let old = shape.expendable(self.options.snapshots_kept, self.me.owner.epoch);
        let cloud = &self.cloud;
        let deleted = futures_util::stream::iter(old)
            .map(|key| async move { cloud.delete(&key).await })
            .buffer_unordered(DELETES)
            .fold((0u64, 0u64), |(done, left), result| async move {
                match result {
                    Ok(()) => (done + 1, left),
                    Err(_) => (done, left + 1),
                }
            })
            .await;
        // What is left goes after the next snapshot.
        tracing::debug!(target: "history", deleted = deleted.0, left = deleted.1, "old objects of the history");
        Ok(())
    }
}

/// Reads a manifest and checks it against its name.
pub(super) async fn read_manifest(
    cloud: &Cloud,
    name: SnapshotName,
    file_system: u64,
) -> Result<Manifest, Failed> {
    let key = name.manifest();
    let bytes = cloud.read(&key, OBJECT_MAX).await.map_err(Failed::of)?;
    snapshot::decode_manifest(name, file_system, &bytes).map_err(|error| {
        Failed::Stopped(HistoryError::Cloud {
            place: cloud.place().to_owned(),
            error: format!("{key}: {error}"),
        })
    })
}

/// Used by the snapshot's writer, too.
pub(super) async fn create_whole(cloud: &Cloud, key: &str, bytes: Bytes) -> Result<(), Failed> {
    if cloud.create(key, bytes.clone()).await.map_err(Failed::of)? == Created::Exists {
        let there = cloud.read(key, OBJECT_MAX).await.map_err(Failed::of)?;
        if there != bytes {
            return Err(Failed::Again(format!(
                "{key} was written by something else"
            )));
        }
    }
    Ok(())
}
