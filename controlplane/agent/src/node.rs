//! A node's control plane as its callers see it (REST, the command line), and what its parts share.

mod contents;
pub(crate) mod start;
mod stats;

use crate::bucket::Bucket;
use crate::config::AgentConfig;
use crate::lanes::Lanes;
use crate::leases::Leases;
use crate::link::{Link, lock, unexpected};
use crate::lru::Lru;
use crate::namespace::NamespaceHandle;
use crate::order::Ticks;
use crate::persist::{breaker::Breaker, queue::Queue};
use crate::types::{FlushProgress, ShutdownReport};
use fastcache_api::control::{DataAnswer, DataCall, FsyncLevel};
use fastcache_api::{Attr, Errno, Ino, NsAnswer, NsOp, NsReply, NsRequest, OpId, Time};
use fastcache_cloud::Cloud;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Longest a change waits for a data plane that is away to be told; it is told when it comes back.
const INVALIDATE_WAIT: Duration = Duration::from_secs(2);
/// Longest the parts of a node take to end once they were told to.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// A running agent. Clones are handles on the same one.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// What the parts of a node share. Locks are held for moments; where two are needed: `cache`, then `queue`.
pub(crate) struct Inner {
    pub(crate) config: AgentConfig,
    peer_id: String,
    /// This agent's number in [`OpId`]s.
    client: u64,
    op_seq: AtomicU64,
    pub(crate) namespace: NamespaceHandle,
    pub(crate) cloud: Option<Cloud>,
    pub(crate) lanes: Lanes,
    pub(crate) link: Link,
    pub(crate) leases: Leases,
    pub(crate) cache: Mutex<Lru>,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) breaker: Mutex<Breaker>,
    /// Whether the bucket is the coordinator's.
    pub(crate) bucket: Mutex<Bucket>,
    /// Writers wait for space until then, as far as is known.
    pub(crate) pressed_until: Mutex<Option<Instant>>,
    /// Invalidations the data plane has still to be told.
    pub(crate) missed: Mutex<Vec<DataCall>>,
    /// Something left the queue, or it was filled.
    pub(crate) queue_changed: watch::Sender<()>,
    pub(crate) upload_wake: Notify,
    pub(crate) victims_wake: Notify,
    /// One list of victims at a time, so that an older one never replaces a newer one.
    pub(crate) victims_turn: tokio::sync::Mutex<()>,
    /// Whether it is known which files are pinned.
    pub(crate) pins_known: watch::Sender<bool>,
    /// There is something in the deletion queue.
    pub(crate) garbage_wake: Notify,
    /// False while chunks that went with the disks, before a rebuild, may still come back as they were.
    pub(crate) is_settled: watch::Sender<bool>,
    /// One `gc` or `fsck` at a time.
    pub(crate) checking: Semaphore,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) fetches: Semaphore,
    pub(crate) capacity_bytes: AtomicU64,
    /// Where other nodes are told that the data plane is; empty: nowhere.
    pub(crate) peer_address: Mutex<String>,
    /// Whether the data plane has other nodes to ask.
    pub(crate) has_peers: AtomicBool,
    /// Whether it ever had, also before a restart.
    pub(crate) had_peers: AtomicBool,
    /// The data plane was told which other nodes there are.
    pub(crate) are_peers_told: watch::Sender<bool>,
    /// What an fsync waited for when that was told.
    pub(crate) level_told: Mutex<Option<FsyncLevel>>,
    /// Files without a name that are written now, to get one (REST PUT).
    pub(crate) nameless: Mutex<HashSet<Ino>>,
    /// Taken by who looks at every chunk for somebody else.
    pub(crate) looking: Semaphore,
    /// Whether the data planes of all live nodes reach each other.
    pub(crate) are_all_peers: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) stop: CancellationToken,
    /// The data plane has ended in order, and no other one has come.
    pub(crate) has_data_plane_left: AtomicBool,
    started: Instant,
    tasks: Mutex<JoinSet<()>>,
}

/// Counters of the object store.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) puts: AtomicU64,
    pub(crate) put_bytes: AtomicU64,
    pub(crate) gets: AtomicU64,
    pub(crate) get_bytes: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) deletes: AtomicU64,
    /// Uploads under way.
    pub(crate) uploading: AtomicU64,
}

impl Inner {
    /// This node's id.
    pub(crate) fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// The clock of the order of eviction.
    pub(crate) fn ticks(&self) -> Ticks {
        Ticks::try_from(self.started.elapsed().as_millis() / 100).unwrap_or(Ticks::MAX)
    }

    /// A request of this agent's own, with an id where it needs one.
    pub(crate) fn request(&self, op: NsOp) -> NsRequest {
        let id = op.is_change().then(|| OpId {
            client: self.client,
            seq: self.op_seq.fetch_add(1, Ordering::Relaxed),
        });
        NsRequest {
            id,
            now: Time::now(),
            op,
        }
    }

    /// Makes the data plane drop what a change made stale, and waits for it; when it is away, it is told
    /// before anything else when it comes back.
    pub(crate) async fn invalidate(&self, call: DataCall) {
        let told = match self.link.session(INVALIDATE_WAIT).await {
            Ok(session) => session.call(session.any_lane(), call.clone()).await,
            Err(errno) => Err(errno),
        };
        if let Err(errno) = told {
            warn!(target: "control", %errno, "the data plane is told of a change when it is back");
            self.missed(call);
        }
    }
}

impl Node {
    /// What the parts of the node share.
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Waits until the data plane is connected, at most `bound`. Whether it is.
    pub async fn wait_connected(&self, bound: Duration) -> bool {
        self.inner.link.session(bound).await.is_ok()
    }

    /// Seals, uploads what can be within the bound, stops everything, and tells what is left. The handle answers
    /// with errors afterwards.
    pub async fn shutdown(&self, upload_bound: Duration) -> ShutdownReport {
        let inner = &self.inner;
        let deadline = Instant::now() + upload_bound;
        if let Some(session) = inner.link.current() {
            let uploading = async {
                let sealed = tokio::time::timeout_at(deadline, self.seal(None, true)).await;
                if !matches!(sealed, Ok(Ok(()))) {
                    warn!(target: "control", "could not seal everything before stopping");
                }
                if inner.cloud.is_some() {
                    let _ = inner.wait_persisted(None, Some(deadline)).await;
                }
            };
            // A data plane that ends at the same time has sealed everything itself, and gives nothing to upload.
            tokio::select! {
                () = uploading => {}
                () = session.ended() => {}
            }
        }
        let (dirty_chunks, dirty_bytes) = lock(&inner.queue).left(None);
        inner.stop.cancel();
        let mut tasks = std::mem::take(&mut *lock(&inner.tasks));
        let ended = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_WAIT, ended).await;
        let is_unused = inner.has_data_plane_left.load(Ordering::Relaxed);
        let closed = inner.namespace.close(is_unused);
        if tokio::time::timeout(STOP_WAIT, closed).await.is_err() {
            warn!(target: "control", "the namespace did not answer before stopping");
        }
        ShutdownReport {
            dirty_chunks,
            dirty_bytes,
        }
    }

    /// An operation of the namespace on behalf of this node (REST, command line). After a change returns, no cache
    /// of this node shows what was before. Errors of the operation are the `Err`; `Ok` has `result: Ok`.
    pub async fn ns(&self, op: NsOp) -> Result<NsReply, Errno> {
        let entries = changed_entries(&op);
        let is_change = op.is_change();
        let reply = self.inner.namespace_call(self.inner.request(op)).await;
        if let Err(errno) = &reply.result {
            return Err(*errno);
        }
        if is_change && (!reply.touched.is_empty() || !entries.is_empty()) {
            let touched = reply.touched.clone();
            let call = DataCall::Invalidate {
                touched,
                entries,
                inos: Vec::new(),
            };
            self.inner.invalidate(call).await;
        }
        Ok(reply)
    }

    /// Attributes of what a path leads to from the root (symbolic links are not followed).
    pub async fn resolve(&self, path: &[Vec<u8>]) -> Result<Attr, Errno> {
        let op = if path.is_empty() {
            NsOp::GetAttr { ino: Ino::ROOT }
        } else {
            NsOp::Resolve {
                path: path.to_vec(),
            }
        };
        match self.ns(op).await?.result? {
            NsAnswer::Entry(attr) | NsAnswer::Attr(attr) => Ok(attr),
            _ => Err(Errno::EIO),
        }
    }

    /// Tells the coordinator at once how this node is; with an embedded one there is nobody to tell.
    pub async fn heartbeat(&self) -> Result<(), String> {
        self.inner.namespace.heartbeat().await
    }

    /// The nodes, as the coordinator knows them; with an embedded one there are none but this.
    pub async fn peers(&self) -> Result<Vec<fastcache_api::grpc::Peer>, String> {
        self.inner.namespace.peers().await
    }

    /// Seals, and uploads at once, one file or all. With `wait` returns when everything is persisted; without, how
    /// much is left (ask again for progress). ENOTSUP when there is no cloud tier.
    pub async fn flush(&self, ino: Option<Ino>, wait: bool) -> Result<FlushProgress, Errno> {
        let inner = &self.inner;
        if inner.cloud.is_none() {
            return Err(Errno::ENOTSUP);
        }
        self.seal(ino, false).await?;
        if wait {
            inner.wait_persisted(ino, None).await?;
        } else {
            lock(&inner.queue).hurry(ino);
            lock(&inner.breaker).hurry(Instant::now());
            inner.upload_wake.notify_one();
        }
        let (chunks_left, bytes_left) = lock(&inner.queue).left(ino);
        Ok(FlushProgress {
            chunks_left,
            bytes_left,
        })
    }

    /// Evicts clean chunks of one file or all, and the kernel's pages of them; not of pinned files. Chunks, bytes.
    pub async fn evict(&self, ino: Option<Ino>) -> Result<(u64, u64), Errno> {
        let pinned = match ino {
            Some(ino) if lock(&self.inner.cache).is_pinned(ino) => vec![ino],
            Some(_) => Vec::new(),
            None => lock(&self.inner.cache).pins(),
        };
        let call = DataCall::Evict { ino, pinned };
        match self.inner.link.call(ino, call).await? {
            DataAnswer::Evicted { chunks, bytes } => Ok((chunks, bytes)),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a list of victims now and waits until the data plane has it.
    pub(crate) async fn tell_victims(&self) {
        if let Some(session) = self.inner.link.current() {
            self.inner.send_victims(&session, None).await;
        }
    }

    /// What it was started with.
    pub fn config(&self) -> &AgentConfig {
        &self.inner.config
    }

    /// This node's name.
    pub fn peer_id(&self) -> &str {
        &self.inner.peer_id
    }

    /// Whether reads of the object store are stopped, but for probes, because they kept failing.
    pub fn are_cloud_reads_stopped(&self) -> bool {
        let cloud = self.inner.cloud.as_ref();
        cloud.is_some_and(|cloud| cloud.reads_stopped().is_some())
    }

    /// Whether the data plane is connected now.
    pub fn is_data_connected(&self) -> bool {
        self.inner.link.current().is_some()
    }
}

/// Directory entries an operation changes.
fn changed_entries(op: &NsOp) -> Vec<(Ino, Vec<u8>)> {
    match op {
        NsOp::Make {
            at: Some((parent, name)),
            ..
        } => vec![(*parent, name.clone())],
        NsOp::Unlink { parent, name }
        | NsOp::Rmdir { parent, name }
        | NsOp::Link { parent, name, .. }
        | NsOp::LinkReplace { parent, name, .. }
        | NsOp::LinkReplaceIf { parent, name, .. }
        | NsOp::UnlinkIf { parent, name, .. } => vec![(*parent, name.clone())],
        NsOp::Rename {
            parent,
            name,
            new_parent,
            new_name,
            ..
        } => {
            vec![(*parent, name.clone()), (*new_parent, new_name.clone())]
        }
        _ => Vec::new(),
    }
}
