//! How a node starts: what it opens, and which parts run then.

use super::{Counters, Inner, Node};
use crate::bucket::{self, Bucket};
use crate::check;
use crate::config::AgentConfig;
use crate::durability::HAD_PEERS;
use crate::error::AgentError;
use crate::garbage;
use crate::lanes::Lanes;
use crate::leases::{self, Leases};
use crate::link::{self, Link, lock};
use crate::load;
use crate::metrics;
use crate::namespace::NamespaceHandle;
use crate::peers;
use crate::persist::{self, queue::Pace, queue::Queue};
use crate::pins;
use crate::types::Starting;
use crate::victims;
use fastcache_cloud::Cloud;
use rand::Rng;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

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
