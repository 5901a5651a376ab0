//! What the data plane asks and tells: namespace operations, fetches, fsync, states; events.

use crate::link::{Session, lock, unexpected};
use crate::node::Inner;
use fastcache_api::control::{DataAnswer, DataCall, DataEvent, NodeAnswer, NodeCall, Waited};
use fastcache_api::{ChunkKey, CloudRef, Errno, Ino, NsAnswer, NsOp};
use fastcache_cloud::CloudError;
use metrics::{counter, histogram};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// Longest a fetch may take, waiting for its turn included; then the read fails with EIO.
const FETCH_DEADLINE: Duration = Duration::from_secs(40);
/// How long a read waits for another node to upload what it closed; uploads begin after 30 s at the latest.
const ELSEWHERE_WAIT: Duration = Duration::from_secs(35);
/// How often it looks.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(30);
/// How long "writers wait" lasts when it is not said again.
const PRESSURE_LASTS: Duration = Duration::from_secs(2);
/// Invalidations remembered for a data plane that is away; beyond, the oldest go.
const MISSED_MAX: usize = 1024;

impl Inner {
    /// Answers one call of the data plane.
    pub(crate) async fn serve(
        &self,
        session: &Session,
        call: NodeCall,
    ) -> Result<NodeAnswer, Errno> {
        match call {
            NodeCall::Ns(request) => {
                if matches!(request.op, NsOp::Open { .. }) {
                    self.wait_settled().await;
                }
                Ok(NodeAnswer::Ns(self.namespace_call(request).await))
            }
            NodeCall::Fetch { key, slot } => {
                match tokio::time::timeout(FETCH_DEADLINE, self.fetch(session, key, slot)).await {
                    Ok(done) => done,
                    Err(_) => {
                        warn!(target: "cloud", %key, "fetch took longer than {FETCH_DEADLINE:?}");
                        counter!("fastcache_fetch_errors_total").increment(1);
                        Err(Errno::EIO)
                    }
                }
            }
            NodeCall::Fsync {
                ino,
                waited,
                is_cloud,
            } => self.fsync(ino, waited, is_cloud).await,
            NodeCall::Persist { ino, waited } => self.persist_now(ino, waited).await,
            NodeCall::Ping => Ok(NodeAnswer::Done),
            NodeCall::Left => {
                self.has_data_plane_left.store(true, Ordering::Relaxed);
                Ok(NodeAnswer::Done)
            }
            NodeCall::Lock(op) => self.namespace.lock(&op).await.map(NodeAnswer::Lock),
            NodeCall::State { ino } => Ok(NodeAnswer::State(
                self.state_with_copies(ino).await?.state.to_string(),
            )),
        }
    }

    async fn fetch(
        &self,
        session: &Session,
        key: ChunkKey,
        slot: u32,
    ) -> Result<NodeAnswer, Errno> {
        let fetched = self.fetch_bytes(key).await;
        let (bytes, crc32c) = match fetched {
            Ok(fetched) => fetched,
            Err(errno) => {
                counter!("fastcache_fetch_errors_total").increment(1);
                return Err(errno);
            }
        };
        session.fill(slot, &bytes)?;
        let len = u32::try_from(bytes.len()).map_err(|_| Errno::EIO)?;
        Ok(NodeAnswer::Fetched { len, crc32c })
    }

    /// Where a chunk version is in the object store, if it is.
    async fn cloud_ref(&self, key: ChunkKey) -> Result<Option<CloudRef>, Errno> {
        let refs = self
            .cloud_refs(key.ino, Some((key.index, key.version)))
            .await?;
        let is_it = |(i, v, _): &(u32, _, CloudRef)| (*i, *v) == (key.index, key.version);
        Ok(refs.into_iter().find(is_it).map(|(_, _, at)| at))
    }

    /// Whether the file's layout names a chunk version now.
    async fn is_in_layout(&self, key: ChunkKey) -> Result<bool, Errno> {
        let open = self.request(NsOp::Open {
            ino: key.ino,
            write: false,
        });
        match self.namespace.call(open).await.result? {
            NsAnswer::Opened { attr, layout } => {
                let named = layout.chunk(key.index, attr.chunk_size);
                Ok(named.is_some_and(|(version, _)| version == key.version))
            }
            _ => Err(Errno::EIO),
        }
    }

    async fn fetch_bytes(&self, key: ChunkKey) -> Result<(bytes::Bytes, u32), Errno> {
        let mut found = self.cloud_ref(key).await?;
        if found.is_none() {
            // Without other nodes it is lost.
            self.peers_told().await;
        }
        let since = Instant::now();
        loop {
            if found.is_none() && self.has_peers.load(Ordering::Relaxed) {
                // A node that wrote it may have it still: the data plane asks, and says so when none has.
                return Err(Errno::ENOENT);
            }
            if found.is_some() || !self.leases.is_shared() || since.elapsed() >= ELSEWHERE_WAIT {
                break;
            }
            // Another node has it, and uploads it before long.
            tokio::time::sleep(ELSEWHERE_PAUSE).await;
            if !self.is_in_layout(key).await? {
                break;
            }
            found = self.cloud_ref(key).await?;
        }
        let Some(at) = found else {
            let path = self
                .namespace
                .call(self.request(NsOp::PathOf { ino: key.ino }));
            let path = match path.await.result {
                Ok(NsAnswer::Bytes(path)) => String::from_utf8_lossy(&path).into_owned(),
                _ => String::new(),
            };
            error!(target: "cloud", %key, path,
                "a chunk is on no device and in no object: it was lost before it was uploaded; the read fails");
            return Err(Errno::EIO);
        };
        let Some(cloud) = &self.cloud else {
            error!(target: "cloud", %key, object = at.object,
                "the chunk is in an object store, and this node has none (--cloud-provider none)");
            return Err(Errno::EIO);
        };
        let _turn = self.fetches.acquire().await.map_err(|_| Errno::EIO)?;
        let began = Instant::now();
        match cloud.get_chunk(&at).await {
            Ok(bytes) => {
                let len = u64::from(at.len);
                self.counters.gets.fetch_add(1, Ordering::Relaxed);
                self.counters.get_bytes.fetch_add(len, Ordering::Relaxed);
                counter!("fastcache_cloud_gets_total").increment(1);
                counter!("fastcache_cloud_get_bytes_total").increment(len);
                histogram!("fastcache_cloud_get_duration_seconds")
                    .record(began.elapsed().as_secs_f64());
                Ok((bytes, at.crc32c))
            }
            Err(why) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                counter!("fastcache_cloud_errors_total", "op" => "get").increment(1);
                if matches!(why, CloudError::Altered(_)) {
                    counter!("fastcache_checksum_errors_total", "tier" => "cloud").increment(1);
                    error!(target: "cloud", %key, object = at.object, error = %why,
                        "an object in the store was altered; the read fails");
                } else {
                    error!(target: "cloud", %key, object = at.object, error = %why,
                        "cannot read an object; the read fails");
                }
                Err(Errno::EIO)
            }
        }
    }

    /// The device of the data plane may lose it: the cloud is the only place.
    async fn persist_now(
        &self,
        ino: Option<Ino>,
        waited: Option<Waited>,
    ) -> Result<NodeAnswer, Errno> {
        if self.cloud.is_none() {
            error!(target: "cloud", "the device fails and there is no object store (--cloud-provider none): nothing can be made safe");
            return Err(Errno::EIO);
        }
        self.wait_a_while(ino, waited).await.map_err(|errno| {
            warn!(target: "cloud", ?ino, %errno, "the device fails and the object store cannot have it: EIO");
            Errno::EIO
        })
    }

    /// Takes in news. Called by the lanes' readers, in order per file; does not block.
    pub(crate) fn on_event(&self, event: DataEvent) {
        match event {
            DataEvent::Stored(chunks) => {
                let now = Instant::now();
                let mut has_dirty = false;
                let ticks = self.ticks();
                {
                    let mut cache = lock(&self.cache);
                    let mut queue = lock(&self.queue);
                    for chunk in &chunks {
                        cache.store(chunk, ticks);
                        if chunk.is_dirty {
                            queue.add(chunk.key, chunk.len, now);
                            has_dirty = true;
                        }
                    }
                }
                if has_dirty {
                    self.upload_wake.notify_one();
                }
            }
            DataEvent::Accessed(ids) => lock(&self.cache).touch(&ids, self.ticks()),
            DataEvent::Gone(keys) => {
                let now = Instant::now();
                {
                    let mut cache = lock(&self.cache);
                    let mut queue = lock(&self.queue);
                    for key in keys {
                        cache.forget(key);
                        queue.gone(key, now);
                    }
                }
                self.queue_changed.send_replace(());
            }
            DataEvent::Pressure {
                used_bytes: _,
                is_blocked,
            } => {
                if is_blocked {
                    *lock(&self.pressed_until) = Some(Instant::now() + PRESSURE_LASTS);
                    self.upload_wake.notify_one();
                }
                self.victims_wake.notify_one();
            }
        }
    }

    /// A session begins: before its first message.
    pub(crate) fn session_begins(self: &Arc<Self>, session: &Session) {
        self.has_data_plane_left.store(false, Ordering::Relaxed);
        self.data_plane_listens(session);
        self.capacity_bytes
            .store(session.hello.capacity_bytes, Ordering::Relaxed);
        lock(&self.cache).begin_inventory(session.hello.capacity_bytes, self.pins_most_bytes());
        lock(&self.queue).begin_inventory();
    }

    /// Tells a new session what it missed, and learns what it stores.
    pub(crate) async fn synchronise(&self, session: &Arc<Session>) -> Result<(), Errno> {
        let missed = std::mem::take(&mut *lock(&self.missed));
        for (at, call) in missed.iter().enumerate() {
            if let Err(errno) = session.call(0, call.clone()).await {
                lock(&self.missed).splice(0..0, missed[at..].iter().cloned());
                return Err(errno);
            }
        }
        self.leases.begin(session, || self.publish(session)).await?;
        let mut from = None;
        let (mut count, mut dirty) = (0u64, 0u64);
        loop {
            let (chunks, next) = match session.call(0, DataCall::Inventory { from }).await? {
                DataAnswer::Inventory { chunks, next } => (chunks, next),
                other => return Err(unexpected(&other)),
            };
            let (now, ticks) = (Instant::now(), self.ticks());
            {
                let mut cache = lock(&self.cache);
                let mut queue = lock(&self.queue);
                for chunk in &chunks {
                    if cache.take_stock(chunk, ticks) {
                        count += 1;
                        if chunk.is_dirty {
                            dirty += 1;
                            queue.add(chunk.key, chunk.len, now);
                        }
                    }
                }
            }
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        lock(&self.cache).end_inventory();
        lock(&self.queue).end_inventory();
        info!(target: "control", chunks = count, dirty, "learned what the data plane stores");
        self.queue_changed.send_replace(());
        self.upload_wake.notify_one();
        self.victims_wake.notify_one();
        Ok(())
    }

    /// Remembers an invalidation for when the data plane is back.
    pub(crate) fn missed(&self, call: DataCall) {
        let mut missed = lock(&self.missed);
        if missed.len() >= MISSED_MAX {
            missed.remove(0);
        }
        missed.push(call);
    }
}
