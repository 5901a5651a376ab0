//! The write-through queue at work: dirty chunks go to the object store, and are recorded and marked clean.
//!
//! Two loops. [`upload_loop`] takes what is due from the [`queue`] and uploads it, so many at once; a slot of the
//! arena is held only while a chunk is copied out of it, never across a request or a pause. [`record_loop`]
//! gathers finished uploads, tells the namespace, then the data plane. A chunk leaves the queue when both
//! know. Killed anywhere in between, the next start finds the chunk dirty and does it again.

pub(crate) mod breaker;
mod limit;
pub(crate) mod queue;
#[cfg(test)]
mod queue_tests;
mod wait;

use crate::link::lock;
use crate::node::Inner;
use bytes::Bytes;
use fastcache_api::control::DataCall;
use fastcache_api::{
    ChunkKey, CloudRef, Errno, Ino, NsAnswer, NsOp, NsReply, NsRequest, PersistedChunk,
};
use fastcache_cloud::{Cloud, CloudError};
use limit::Limit;
use metrics::{counter, histogram};
use queue::Next;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// Finished uploads recorded with one operation.
const RECORD_BATCH: usize = 256;
/// Finished uploads that may wait to be recorded; then uploads wait.
pub(crate) const RECORD_QUEUE: usize = 1024;
/// Pauses between tries to record.
const RECORD_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The object of a chunk version.
pub(crate) fn object_key(key: ChunkKey) -> String {
    format!("chunks/{:x}/{}-{:x}", key.ino.0, key.index, key.version.0)
}

/// How an upload ended.
enum Outcome {
    Done(PersistedChunk),
    /// The device has this version no more.
    NotHere,
    /// The next version is being written.
    Rewritten,
    /// The data plane went away: the next inventory brings the chunk back.
    Disconnected,
    /// The chunk cannot be read here.
    Unreadable(Errno),
    Refused(CloudError),
}

/// Uploads what is due until the node stops.
pub(crate) async fn upload_loop(
    inner: Arc<Inner>,
    cloud: Cloud,
    finished: mpsc::Sender<PersistedChunk>,
) {
    let parallel = inner.config.upload_parallel;
    let limit = Arc::new(Mutex::new(Limit::new(parallel)));
    if !inner.may_write().await {
        return;
    }
    loop {
        let permit = tokio::select! {
            permit = inner.uploads.clone().acquire_owned() => permit,
            () = inner.stop.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        let (key, is_patient) = loop {
            let now = Instant::now();
            let in_flight = parallel.saturating_sub(inner.uploads.available_permits() + 1);
            let wait = match lock(&inner.breaker).may_begin(in_flight, now) {
                Err(wait) => wait,
                Ok(()) if inner.link.current().is_none() => None,
                Ok(()) if inner.is_bucket_another() => None,
                Ok(()) if !lock(&limit).may_begin(in_flight) => None,
                Ok(()) if cloud.paused_until().is_some() => cloud.paused_until(),
                Ok(()) => match inner.next_upload(now) {
                    (Next::Take(key), is_patient) => break (key, is_patient),
                    (Next::At(at), _) => Some(at),
                    (Next::Idle, _) => None,
                },
            };
            let wait = wait.unwrap_or_else(|| now + Duration::from_secs(1));
            tokio::select! {
                () = inner.upload_wake.notified() => {}
                () = tokio::time::sleep_until(wait) => {}
                () = inner.stop.cancelled() => return,
            }
        };
        let (inner, cloud, finished) = (inner.clone(), cloud.clone(), finished.clone());
        let limit = limit.clone();
        tokio::spawn(async move {
            inner.counters.uploading.fetch_add(1, Ordering::Relaxed);
            let outcome = tokio::select! {
                outcome = upload(&inner, &cloud, key, is_patient) => outcome,
                () = inner.stop.cancelled() => return,
            };
            lock(&limit).after(&outcome, Instant::now());
            inner.settle(key, outcome, &finished).await;
            inner.counters.uploading.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
            inner.upload_wake.notify_one();
        });
    }
}

async fn upload(inner: &Inner, cloud: &Cloud, key: ChunkKey, is_patient: bool) -> Outcome {
    let (bytes, crc32c) = match read_chunk(inner, key, is_patient).await {
        Ok(read) => read,
        Err(Errno::ENOENT) => return Outcome::NotHere,
        Err(Errno::EAGAIN) => return Outcome::Rewritten,
        Err(Errno::ENOTCONN) => return Outcome::Disconnected,
        Err(error) => return Outcome::Unreadable(error),
    };
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let object = object_key(key);
    let began = Instant::now();
    match cloud.put(&object, bytes, crc32c).await {
        Ok(etag) => {
            inner.counters.puts.fetch_add(1, Ordering::Relaxed);
            inner
                .counters
                .put_bytes
                .fetch_add(u64::from(len), Ordering::Relaxed);
            counter!("fastcache_cloud_puts_total").increment(1);
            counter!("fastcache_cloud_put_bytes_total").increment(u64::from(len));
            histogram!("fastcache_cloud_put_duration_seconds")
                .record(began.elapsed().as_secs_f64());
            Outcome::Done(PersistedChunk {
                key,
                at: CloudRef {
                    object,
                    offset: 0,
                    len,
                    crc32c,
                    etag,
                },
            })
        }
        Err(error) => Outcome::Refused(error),
    }
}

/// A chunk's bytes, copied out of the arena and verified.
async fn read_chunk(inner: &Inner, key: ChunkKey, is_patient: bool) -> Result<(Bytes, u32), Errno> {
    let session = inner.link.current().ok_or(Errno::ENOTCONN)?;
    let lane = session.any_lane();
    let slot = session
        .call_for_slot(lane, DataCall::ReadChunk { key, is_patient })
        .await?;
    let (bytes, crc32c) = (slot.copy_out()?, slot.crc32c);
    drop(slot);
    if crc_fast::crc32_iscsi(&bytes) != crc32c {
        error!(target: "control", %key, "a chunk's bytes changed on their way to the agent");
        counter!("fastcache_checksum_errors_total", "tier" => "arena").increment(1);
        return Err(Errno::EIO);
    }
    Ok((Bytes::from(bytes), crc32c))
}

impl Inner {
    /// What to upload next, and whether it may wait for somebody who writes its next version.
    fn next_upload(&self, now: Instant) -> (Next, bool) {
        let mut queue = lock(&self.queue);
        let (_, dirty) = queue.left(None);
        let is_pressed = lock(&self.pressed_until).is_some_and(|until| now < until);
        let capacity = self.capacity_bytes.load(Ordering::Relaxed);
        let is_urgent = is_pressed || dirty > capacity / 4;
        let next = queue.next(now, is_urgent);
        let is_patient = match next {
            Next::Take(key) => !is_urgent && queue.is_patient(key, now),
            _ => false,
        };
        (next, is_patient)
    }

    async fn settle(
        &self,
        key: ChunkKey,
        outcome: Outcome,
        finished: &mpsc::Sender<PersistedChunk>,
    ) {
        let now = Instant::now();
        match outcome {
            Outcome::Done(chunk) => {
                if lock(&self.breaker).worked() {
                    info!(target: "cloud", "the object store works again; uploads go on");
                    lock(&self.queue).forgive();
                }
                // Ends with an error only when the node stops.
                let _ = finished.send(chunk).await;
            }
            Outcome::NotHere => {
                debug!(target: "cloud", %key, "not uploaded: this version is gone");
                let mut queue = lock(&self.queue);
                queue.failed(key, Duration::ZERO, now);
                queue.gone(key, now);
                drop(queue);
                self.queue_changed.send_replace(());
            }
            Outcome::Rewritten => lock(&self.queue).postpone(key, now),
            Outcome::Disconnected => lock(&self.queue).failed(key, Duration::ZERO, now),
            Outcome::Unreadable(errno) => {
                counter!("fastcache_upload_read_errors_total").increment(1);
                let mut queue = lock(&self.queue);
                // Once: `status` goes on saying it.
                if queue.failures(key) == 0 {
                    error!(target: "cloud", %key, %errno, "cannot read a dirty chunk to upload it");
                }
                let pause = breaker::pause(queue.failures(key));
                queue.failed(key, pause, now);
            }
            Outcome::Refused(error) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                counter!("fastcache_cloud_errors_total", "op" => "put").increment(1);
                let text = error.to_string();
                let is_first = lock(&self.breaker).error().is_none();
                if lock(&self.breaker).failed(text.clone(), now) {
                    warn!(target: "cloud", %key, error = text,
                        "uploads keep failing: pausing them, and probing until they work");
                } else if is_first {
                    warn!(target: "cloud", %key, error = text, "upload failed; trying again");
                }
                let mut queue = lock(&self.queue);
                let pause = breaker::pause(queue.failures(key));
                queue.failed(key, pause, now);
            }
        }
    }
}

/// Records finished uploads until the node stops.
pub(crate) async fn record_loop(inner: Arc<Inner>, mut finished: mpsc::Receiver<PersistedChunk>) {
    let mut batch = Vec::with_capacity(RECORD_BATCH);
    loop {
        let got = tokio::select! {
            got = finished.recv_many(&mut batch, RECORD_BATCH) => got,
            () = inner.stop.cancelled() => return,
        };
        if got == 0 {
            return;
        }
        let chunks = std::mem::take(&mut batch);
        tokio::select! {
            () = record(&inner, chunks) => {}
            () = inner.stop.cancelled() => return,
        }
    }
}

async fn record(inner: &Inner, chunks: Vec<PersistedChunk>) {
    let keys: Vec<ChunkKey> = chunks.iter().map(|c| c.key).collect();
    let mut reply = record_refs(inner, chunks).await;
    let now = Instant::now();
    let told = match &mut reply.result {
        Ok(_) => {
            let (gone, kept) = inner.split_gone(&reply, &keys).await;
            if !gone.is_empty() {
                debug!(target: "cloud", chunks = gone.len(), "uploaded chunks of deleted files");
                for keys in gone.chunk_by(|a, b| a.ino == b.ino) {
                    let drop = DataCall::Drop {
                        keys: keys.to_vec(),
                    };
                    if let Err(errno) = inner.link.tell(Some(keys[0].ino), drop).await {
                        debug!(target: "cloud", %errno, "the data plane could not drop them");
                    }
                }
            }
            match kept.is_empty() {
                true => Ok(()),
                false => {
                    inner
                        .link
                        .tell(None, DataCall::MarkClean { keys: kept })
                        .await
                }
            }
        }
        Err(errno) => {
            error!(target: "cloud", %errno, chunks = keys.len(),
                "the namespace refused to record uploaded chunks; uploading them again");
            Err(*errno)
        }
    };
    {
        let mut cache = lock(&inner.cache);
        let mut queue = lock(&inner.queue);
        for key in keys {
            if told.is_ok() {
                cache.mark_clean(key);
                queue.done(key);
            } else {
                let pause = breaker::pause(queue.failures(key));
                queue.failed(key, pause, now);
            }
        }
    }
    inner.queue_changed.send_replace(());
    let is_pressed = lock(&inner.pressed_until).is_some_and(|until| now < until);
    if is_pressed || inner.is_filling() {
        inner.victims_wake.notify_one();
    }
}

/// Tells the namespace, again and again while it is away.
async fn record_refs(inner: &Inner, chunks: Vec<PersistedChunk>) -> NsReply {
    let request: NsRequest = inner.request(NsOp::Persisted { chunks });
    let mut pause = RECORD_PAUSE.0;
    loop {
        let reply = inner.namespace.call(request.clone()).await;
        match reply.result {
            Err(Errno::EIO | Errno::ETIMEDOUT | Errno::ENOTCONN | Errno::EAGAIN) => {
                warn!(target: "cloud", "the namespace is away; uploaded chunks wait to be recorded");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECORD_PAUSE.1);
            }
            _ => return reply,
        }
    }
}

impl Inner {
    /// Which of the chunks belong to inodes that exist no more.
    async fn split_gone(
        &self,
        reply: &NsReply,
        keys: &[ChunkKey],
    ) -> (Vec<ChunkKey>, Vec<ChunkKey>) {
        let told: BTreeSet<Ino> = reply.touched.iter().map(|a| a.ino).collect();
        let asked: BTreeSet<Ino> = keys
            .iter()
            .map(|k| k.ino)
            .filter(|ino| !told.contains(ino))
            .collect();
        let mut gone = BTreeSet::new();
        for ino in asked {
            let reply = self
                .namespace
                .call(self.request(NsOp::GetAttr { ino }))
                .await;
            if reply.result == Err(Errno::ENOENT) {
                gone.insert(ino);
            }
        }
        keys.iter().partition(|k| gone.contains(&k.ino))
    }

    /// Cloud refs of a file, of one version of one chunk or all.
    pub(crate) async fn cloud_refs(
        &self,
        ino: Ino,
        only: Option<(u32, fastcache_api::Version)>,
    ) -> Result<Vec<(u32, fastcache_api::Version, CloudRef)>, Errno> {
        match self
            .namespace
            .call(self.request(NsOp::CloudRefs { ino, only }))
            .await
            .result?
        {
            NsAnswer::CloudRefs(refs) => Ok(refs),
            _ => Err(Errno::EIO),
        }
    }
}
