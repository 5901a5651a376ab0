//! A node's control plane as its callers see it (REST, the command line), and what its parts share.

use crate::bucket::{self, Bucket};
use crate::check;
use crate::config::AgentConfig;
use crate::durability::HAD_PEERS;
use crate::error::AgentError;
use crate::garbage;
use crate::lanes::Lanes;
use crate::leases::{self, Leases};
use crate::link::{self, Link, lock, unexpected};
use crate::load;
use crate::lru::{Lru, Pinned};
use crate::metrics;
use crate::namespace::NamespaceHandle;
use crate::order::Ticks;
use crate::peers;
use crate::persist::{self, breaker::Breaker, queue::Pace, queue::Queue};
use crate::pins;
use crate::types::{
    Backlog, CachedChunk, CloudCounters, FlushProgress, NamespaceStats, NodeStats, PinStats,
    ShutdownReport, Starting,
};
use crate::victims;
use bytes::Bytes;
use fastcache_api::control::{DataAnswer, DataCall, FsyncLevel, SLOT_BYTES};
use fastcache_api::{Attr, ChunkId, Errno, Ino, NsAnswer, NsOp, NsReply, NsRequest, OpId, Time};
use fastcache_cloud::Cloud;
use rand::Rng;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Longest a change waits for a data plane that is away to be told; it is told when it comes back.
const INVALIDATE_WAIT: Duration = Duration::from_secs(2);
/// Longest [`Node::stats`] waits for the data plane.
const STATS_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for one core of the data plane to tell its counters, before another one is asked.
const STATS_LANE_WAIT: Duration = Duration::from_millis(500);
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
    /// Opens the namespace and the object store, and starts connecting to the data plane (for ever, in the
    /// background). Returns before the data plane is there. An object store that cannot be reached now is said
    /// in the log and tried again; one that does not exist or refuses is an error.
    pub async fn start(config: AgentConfig) -> Result<Node, AgentError> {
        Node::start_telling(config, |_| ()).await
    }

    /// [`Node::start`]; `tell` hears what it is at, when that changes.
    pub async fn start_telling(
        config: AgentConfig,
        tell: impl Fn(Starting) + Send + Sync,
    ) -> Result<Node, AgentError> {
        config.check()?;
        metrics::install();
        leave_dead_directory();
        std::fs::create_dir_all(&config.state_dir).map_err(|source| AgentError::State {
            path: config.state_dir.clone(),
            source,
        })?;
        let peer_id = config.keep_peer_id()?;
        let cloud = open_cloud(&config).await?;
        let lanes = match config.coordinator {
            Some(_) => Lanes::start().map_err(AgentError::Thread)?,
            None => Lanes::here(),
        };
        let opening = NamespaceHandle::open(&config, &peer_id, cloud.clone(), &tell);
        let (namespace, notices) = lanes.within(opening).await?;
        let owner = bucket::expect_same(&namespace, cloud.as_ref()).await?;
        let node = Node::start_on(config, peer_id, namespace, cloud.clone(), lanes);
        if let (Some(owner), Some(cloud)) = (owner, cloud) {
            let task = bucket::watch_loop(node.inner.clone(), cloud, owner);
            lock(&node.inner.tasks).spawn(task);
        }
        if let Some(notices) = notices {
            let task = leases::notice_loop(node.inner.clone(), notices);
            lock(&node.inner.tasks).spawn_on(task, node.inner.lanes.handle());
        }
        Ok(node)
    }

    /// [`Node::start`] on a namespace that is open.
    pub(crate) fn start_on(
        config: AgentConfig,
        peer_id: String,
        namespace: NamespaceHandle,
        cloud: Option<Cloud>,
        lanes: Lanes,
    ) -> Node {
        let pace = Pace {
            quiet: config.upload_quiet,
            longest: config.upload_max_delay,
        };
        let is_settled = !namespace.is_unsettled();
        let had_peers = config.state_dir.join(HAD_PEERS).exists();
        let (finished, to_record) = mpsc::channel(persist::RECORD_QUEUE);
        let is_embedded = namespace.owner().is_none();
        let is_watched = !is_embedded && cloud.is_some();
        let bucket = if is_watched {
            Bucket::Unknown
        } else {
            Bucket::Same
        };
        let inner = Arc::new(Inner {
            uploads: Arc::new(Semaphore::new(config.upload_parallel)),
            fetches: Semaphore::new(config.fetch_parallel),
            config,
            peer_id,
            client: rand::rng().random(),
            op_seq: AtomicU64::new(1),
            namespace,
            cloud: cloud.clone(),
            lanes,
            link: Link::new(),
            leases: Leases::new(is_embedded),
            cache: Mutex::default(),
            queue: Mutex::new(Queue::new(pace)),
            breaker: Mutex::default(),
            bucket: Mutex::new(bucket),
            pressed_until: Mutex::default(),
            missed: Mutex::default(),
            queue_changed: watch::Sender::new(()),
            upload_wake: Notify::new(),
            victims_wake: Notify::new(),
            victims_turn: tokio::sync::Mutex::default(),
            pins_known: watch::Sender::new(false),
            garbage_wake: Notify::new(),
            is_settled: watch::Sender::new(is_settled),
            checking: Semaphore::new(1),
            capacity_bytes: AtomicU64::new(0),
            peer_address: Mutex::default(),
            has_peers: AtomicBool::new(false),
            had_peers: AtomicBool::new(had_peers),
            are_peers_told: watch::Sender::new(false),
            level_told: Mutex::default(),
            nameless: Mutex::default(),
            looking: Semaphore::new(1),
            are_all_peers: AtomicBool::new(false),
            counters: Counters::default(),
            stop: CancellationToken::new(),
            has_data_plane_left: AtomicBool::new(false),
            started: Instant::now(),
            tasks: Mutex::new(JoinSet::new()),
        });
        {
            let mut tasks = lock(&inner.tasks);
            tasks.spawn_on(link::supervise(inner.clone()), inner.lanes.handle());
            tasks.spawn(pins::learn(inner.clone()));
            tasks.spawn(victims::victims_loop(inner.clone()));
            tasks.spawn(peers::tell_loop(inner.clone()));
            tasks.spawn(load::tell_loop(inner.clone()));
            if !is_settled {
                tasks.spawn(check::settle_loop(inner.clone()));
            }
            if let Some(cloud) = cloud {
                tasks.spawn(persist::upload_loop(inner.clone(), cloud.clone(), finished));
                tasks.spawn(persist::record_loop(inner.clone(), to_record));
                tasks.spawn(garbage::collect_loop(inner.clone(), cloud));
            }
        }
        info!(target: "control", peer_id = inner.peer_id, "agent started");
        Node { inner }
    }

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

    /// Bytes of a file through all tiers: at most `len` (and at most 4 MiB), fewer at the end, none past it.
    pub async fn read_file(&self, ino: Ino, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let len = len.min(u32::try_from(SLOT_BYTES).unwrap_or(u32::MAX));
        let link = &self.inner.link;
        let mut is_again = false;
        let slot = loop {
            let session = link.session(link::RECONNECT_WAIT).await?;
            let call = DataCall::ReadFile { ino, offset, len };
            match session.call_for_slot(session.lane_of(ino), call).await {
                Err(Errno::ENOTCONN) if !is_again => {
                    is_again = true;
                    link.left(&session).await;
                }
                Err(Errno::ENOTCONN) => return Err(Errno::EIO),
                done => break done?,
            }
        };
        if slot.len > len {
            return Err(Errno::EIO);
        }
        Ok(Bytes::from(slot.copy_out()?))
    }

    /// Writes bytes (at most 4 MiB a call) into a file, as an application would. Visible after [`Node::seal`].
    /// Not tried again when the data plane breaks: what was written before is lost with it, so the caller
    /// starts over.
    pub async fn write_file(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if data.len() > SLOT_BYTES {
            return Err(Errno::EINVAL);
        }
        let broken = |errno| {
            if errno == Errno::ENOTCONN {
                Errno::EIO
            } else {
                errno
            }
        };
        let session = self.inner.link.session(link::RECONNECT_WAIT).await?;
        let lane = session.lane_of(ino);
        let empty = session
            .call_for_slot(lane, DataCall::TakeSlot)
            .await
            .map_err(broken)?;
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let write = || {
            let slot = empty.fill(data)?;
            Ok(DataCall::WriteFile {
                ino,
                offset,
                slot,
                len,
            })
        };
        match session.call_made(lane, write).await.map_err(broken)? {
            DataAnswer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Seals and commits what was written, of one file or all, as `close` would; with `is_durable` as `fsync` of
    /// level `local` would. When it returns, the persist queue knows what became dirty by it.
    pub async fn seal(&self, ino: Option<Ino>, is_durable: bool) -> Result<(), Errno> {
        let link = &self.inner.link;
        link.tell(ino, DataCall::Seal { ino, is_durable }).await?;
        if ino.is_none()
            && let Some(session) = link.current()
        {
            // News of other lanes may still be under way: an answer on each lane is behind them.
            for lane in 0..session.lane_count() {
                let _ = session.call(lane, DataCall::Stats).await;
            }
        }
        Ok(())
    }

    /// Gives up a file that was made without a name and will not get one: its chunks and its inode go, now or when
    /// the data plane is back (which drops the nameless of the run before).
    pub async fn abandon(&self, ino: Ino) -> Result<(), Errno> {
        self.inner
            .link
            .tell(Some(ino), DataCall::Abandon { ino })
            .await
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

    /// Sends a list of victims now and waits until the data plane has it.
    pub(crate) async fn tell_victims(&self) {
        if let Some(session) = self.inner.link.current() {
            self.inner.send_victims(&session, None).await;
        }
    }

    /// Chunks in this node's cache in order of `ChunkId`, after one, at most `max`.
    pub fn cached(&self, after: Option<ChunkId>, max: usize) -> Vec<CachedChunk> {
        lock(&self.inner.cache).listed(after, max)
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

/// Started from within a mount whose data plane was killed (a natural place to type `up`), this process has a
/// working directory that answers ENOTCONN, and libraries that ask for it fail: go to the root then.
fn leave_dead_directory() {
    if let Err(error) = std::env::current_dir() {
        warn!(target: "control", %error, "the working directory is dead; going on from /");
        let _ = std::env::set_current_dir("/");
    }
}

/// Opens and checks the object store.
pub(crate) async fn open_cloud(config: &AgentConfig) -> Result<Option<Cloud>, AgentError> {
    let refused = |e: fastcache_cloud::CloudError| AgentError::Cloud(e.to_string());
    let Some(cloud) = Cloud::open(&config.cloud).map_err(refused)? else {
        warn!(target: "cloud",
            "no cloud tier (--cloud-provider none): nothing is uploaded, everything stays dirty");
        return Ok(None);
    };
    match cloud.check().await {
        Ok(()) => info!(target: "cloud", place = cloud.place(), "object store is ready"),
        Err(error) if error.is_passing() => {
            warn!(target: "cloud", %error, "object store is away; uploads wait for it");
        }
        Err(error) => return Err(refused(error)),
    }
    Ok(Some(cloud))
}
