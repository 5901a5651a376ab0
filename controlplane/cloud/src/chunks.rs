//! Chunks to the store and back: deadlines, retries out of a budget, second requests for slow reads, a circuit breaker
//! for reads, and the comparison with what was uploaded.

use crate::observe::Watch;
use crate::traffic::{Breaker, Budget, Latencies};
use crate::{CALL_DEADLINE, Cloud, CloudError, META_CRC, META_LEN};
use bytes::Bytes;
use fastcache_api::CloudRef;
use futures_util::future::{Either, select};
use metrics::{counter, gauge};
use object_store::path::Path;
use object_store::{Attribute, GetOptions, ObjectStore, PutOptions, PutPayload};
use rand::Rng;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

/// Retries within one call, about 9 s of pauses: with 30 % of all requests failing, two calls of 100,000 fail. The queue
/// of uploads tries for ever, with longer pauses.
const RETRIES: u32 = 8;
/// Pause before the first retry and longest pause; doubles in between, with jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a read waits for the store to come back while reads are stopped. Shorter than a call's deadline: with the
/// store gone for good, misses must not each cost that.
const STOPPED_WAIT: Duration = Duration::from_secs(3);

/// What is known of the store's state, shared by all that use it.
pub(crate) struct Traffic {
    watch: Arc<Watch>,
    retries: Mutex<Budget>,
    hedges: Mutex<Budget>,
    latencies: Mutex<Latencies>,
    reads: Mutex<Breaker>,
    works: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    pub(crate) fn new() -> Traffic {
        Traffic {
            watch: Arc::default(),
            retries: Mutex::new(Budget::retries()),
            hedges: Mutex::new(Budget::hedges()),
            latencies: Mutex::default(),
            reads: Mutex::default(),
            works: Notify::new(),
        }
    }

    pub(crate) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Lets a read go on, as soon as reads are not stopped.
    async fn admit(&self) -> Result<(), CloudError> {
        let give_up = Instant::now() + STOPPED_WAIT;
        loop {
            let works = self.works.notified();
            let now = Instant::now();
            let at = match lock(&self.reads).admit(now) {
                Ok(()) => return Ok(()),
                Err(at) => at,
            };
            if now >= give_up {
                return Err(CloudError::Transient(format!(
                    "reads are stopped until the store answers again; it last said: {}",
                    lock(&self.reads).error()
                )));
            }
            tokio::select! {
                () = works => {}
                () = tokio::time::sleep_until(at.min(give_up)) => {}
            }
        }
    }

    fn worked(&self) {
        if lock(&self.reads).worked() {
            info!(target: "cloud", "the object store answers again; reads go on");
            gauge!("fastcache_cloud_reads_stopped").set(0.0);
            self.works.notify_waiters();
        }
    }

    fn read_failed(&self, error: &CloudError) {
        // Any other answer is one: the store is there.
        if !matches!(error, CloudError::Transient(_)) {
            return;
        }
        let text = error.to_string();
        if lock(&self.reads).failed(&text, Instant::now()) {
            warn!(target: "cloud", error = text,
                "reads of the object store keep failing: stopping them, and probing until they work");
            gauge!("fastcache_cloud_reads_stopped").set(1.0);
        }
    }

    /// Waits before try `n + 1`; `false` when there is to be none.
    async fn again(&self, op: &'static str, n: u32, deadline: Instant) -> bool {
        let full = PAUSE.0.saturating_mul(1 << n.min(16)).min(PAUSE.1);
        let at = Instant::now() + full.mul_f64(rand::rng().random_range(0.5..=1.0));
        let at = self.watch.paused_until().map_or(at, |until| at.max(until));
        if n >= RETRIES || at >= deadline || !lock(&self.retries).take() {
            return false;
        }
        counter!("fastcache_cloud_retries_total", "op" => op).increment(1);
        tokio::time::sleep_until(at).await;
        true
    }
}

impl Cloud {
    /// What the store last said, while reads of chunks are stopped because they kept failing; `None`: they go on.
    pub fn reads_stopped(&self) -> Option<String> {
        let reads = lock(&self.traffic.reads);
        reads.is_open().then(|| reads.error().to_owned())
    }

    /// Writes an object, with its checksum and length as metadata. Returns its ETag, where the store gives one.
    ///
    /// # Errors
    /// See [`CloudError`]; after a transient one it may have been written. `Throttled` at once: who has a queue waits
    /// there.
    pub async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        crc32c: u32,
    ) -> Result<Option<String>, CloudError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        lock(&self.traffic.retries).earn();
        let mut n = 0;
        loop {
            let tried =
                tokio::time::timeout_at(deadline, self.put_once(key, bytes.clone(), crc32c));
            match tried.await {
                Ok(Ok(etag)) => {
                    self.traffic.worked();
                    return Ok(etag);
                }
                Ok(Err(error @ CloudError::Transient(_))) => {
                    if !self.traffic.again("put", n, deadline).await {
                        return Err(error);
                    }
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(too_late(key)),
            }
            n += 1;
        }
    }

    async fn put_once(
        &self,
        key: &str,
        bytes: Bytes,
        crc32c: u32,
    ) -> Result<Option<String>, CloudError> {
        let mut options = PutOptions::default();
        if self.has_attributes {
            let crc = format!("{crc32c:08x}");
            let length = bytes.len().to_string();
            let attributes = &mut options.attributes;
            attributes.insert(Attribute::Metadata(META_CRC.into()), crc.into());
            attributes.insert(Attribute::Metadata(META_LEN.into()), length.into());
        }
        let payload = PutPayload::from_bytes(bytes);
        let done = self.once.put_opts(&Path::from(key), payload, options).await;
        done.map(|r| r.e_tag).map_err(|e| CloudError::about(key, e))
    }

    /// Reads the bytes of a chunk, which are those that were uploaded: their length and checksum are compared with what
    /// the namespace says, whole objects and parts of them alike, in every kind of store.
    ///
    /// # Errors
    /// See [`CloudError`]; `Altered` names the object.
    pub async fn get_chunk(&self, at: &CloudRef) -> Result<Bytes, CloudError> {
        self.traffic.admit().await?;
        let deadline = Instant::now() + CALL_DEADLINE;
        lock(&self.traffic.retries).earn();
        lock(&self.traffic.hedges).earn();
        if let Some(until) = self.paused_until() {
            tokio::time::sleep_until(until.min(deadline)).await;
        }
        let mut n = 0;
        let done = loop {
            let error = match tokio::time::timeout_at(deadline, self.get_hedged(at)).await {
                Ok(Ok(bytes)) => break Ok(bytes),
                Ok(Err(error)) => error,
                Err(_) => break Err(too_late(&at.object)),
            };
            // Altered once may have been the network.
            let may_pass =
                error.is_passing() || (n == 0 && matches!(error, CloudError::Altered(_)));
            if !may_pass || !self.traffic.again("get", n, deadline).await {
                break Err(error);
            }
            n += 1;
        };
        match &done {
            Ok(_) => self.traffic.worked(),
            Err(error) => self.traffic.read_failed(error),
        }
        done
    }

    /// A read, and another one beside it when it takes longer than most: a request can hang in one bad server of many.
    async fn get_hedged(&self, at: &CloudRef) -> Result<Bytes, CloudError> {
        let traffic = &self.traffic;
        let first = pin!(self.get_once(at));
        let delay = lock(&traffic.latencies).hedge_delay();
        let first = match select(first, pin!(tokio::time::sleep(delay))).await {
            Either::Left((done, _)) => return done,
            Either::Right(((), first)) => first,
        };
        if !lock(&traffic.hedges).take() {
            return first.await;
        }
        counter!("fastcache_cloud_hedges_total").increment(1);
        let second = pin!(self.get_once(at));
        match select(first, second).await {
            Either::Left((Ok(bytes), _)) => Ok(bytes),
            Either::Right((Ok(bytes), _)) => {
                counter!("fastcache_cloud_hedges_won_total").increment(1);
                Ok(bytes)
            }
            Either::Left((Err(_), other)) => other.await,
            Either::Right((Err(_), other)) => other.await,
        }
    }

    async fn get_once(&self, at: &CloudRef) -> Result<Bytes, CloudError> {
        let began = Instant::now();
        let end = at.offset.saturating_add(u64::from(at.len));
        let options = GetOptions {
            // A whole object without a range: then one that is longer than it was is seen, too.
            range: (at.offset > 0).then(|| (at.offset..end).into()),
            ..GetOptions::default()
        };
        let path = Path::from(at.object.as_str());
        let got = self
            .once
            .get_opts(&path, options)
            .await
            .map_err(|e| CloudError::about(&at.object, e))?;
        let altered = |how: String| CloudError::Altered(format!("object {} {how}", at.object));
        let told = got.range.end.saturating_sub(got.range.start);
        if got.range.start != at.offset || told != u64::from(at.len) {
            // Before any of it is in memory: whatever is there now may be of any length.
            return Err(altered(format!(
                "gives {told} bytes from {} on where {} from {} on were uploaded",
                got.range.start, at.len, at.offset
            )));
        }
        let bytes = got
            .bytes()
            .await
            .map_err(|e| CloudError::about(&at.object, e))?;
        if u64::try_from(bytes.len()) != Ok(told) {
            return Err(altered(format!("gave {} bytes of {told}", bytes.len())));
        }
        let crc32c = crc_fast::crc32_iscsi(&bytes);
        if crc32c != at.crc32c {
            return Err(altered(format!(
                "has the checksum {crc32c:08x} where {:08x} was uploaded",
                at.crc32c
            )));
        }
        lock(&self.traffic.latencies).add(began.elapsed());
        Ok(bytes)
    }
}

fn too_late(key: &str) -> CloudError {
    CloudError::Transient(format!("object {key}: no answer within {CALL_DEADLINE:?}"))
}
