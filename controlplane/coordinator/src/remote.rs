//! The namespace behind a coordinator: registration, heartbeat, calls, revocations.
//!
//! One task keeps the session ([`keeper`]): it registers, sends heartbeats and hands on what the watch stream brings. One stream
//! has the calls ([`line`]). When the
//! session is lost (the stream breaks, no heartbeat was answered for one lease, the coordinator does not know it), what
//! was learned is good until its lease ends. The node registers again; what was learned before the new session is void then,
//! and the user gets a [`Revocation`] of `everything` before it hears of the new lease. The first revocation of all is one of
//! `everything`, too: a data plane may hold what an earlier agent told it.
//!
//! Heartbeats renew the lease, as long as the user answers: each renewed [`Lease`] is a notice of its own, behind the
//! revocations that came before it, and its answer is what the next heartbeat tells.
//!
//! What the coordinator has not on stable storage yet, the node keeps (`remote/kept.rs`).
//!
//! A reply can be overtaken by a revocation on the stream. So a reply that was under way when one came in carries
//! a lease of 0: it may be used, not cached.

mod keeper;
mod kept;
mod line;
mod notice;

pub use notice::{Lease, Notice, Question, Revocation};

use keeper::Keeper;
use line::Line;

use crate::Carrier;
use crate::grpc::MESSAGE_MAX;
use fastcache_api::grpc::coordinator_client::CoordinatorClient;
use fastcache_api::grpc::{CallReply, HeartbeatRequest, LockRequest, Node};
use fastcache_api::locks::{LockAnswer, LockOp};
use fastcache_api::{API_KEY_HEADER, Errno, NsReply, NsRequest, grpc};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// How long a call is tried before it fails with EIO: a coordinator that is away for half a minute is waited for.
pub const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Attempts to register that follow each other fast.
const FAST_ATTEMPTS: u32 = 5;
/// Wait after the first failed attempt; doubled after each until [`SLOW_WAIT`].
const FAST_WAIT: Duration = Duration::from_millis(100);
/// Wait between attempts after the fast ones.
const SLOW_WAIT: Duration = Duration::from_secs(2);
/// Longest wait between two tries of one call.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// Longest wait for a connection, a heartbeat's or an acknowledgement's answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A connection on which nothing comes is probed after this, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Revocations that may wait for the user; beyond, the session is given up.
const REVOCATIONS_WAITING: usize = 1024;

/// Session numbers that are none: not registered now, and never again.
const NONE: u64 = 0;
const CLOSED: u64 = u64::MAX;

type Client = CoordinatorClient<InterceptedService<Carrier, ShowKey>>;

/// Sends the API key with every call.
#[derive(Clone)]
struct ShowKey(Option<MetadataValue<Ascii>>);

impl Interceptor for ShowKey {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert(API_KEY_HEADER, key.clone());
        }
        Ok(request)
    }
}

/// Why a coordinator cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Not an address.
    #[error("{0:?} is not a coordinator's address (host:port)")]
    Address(String),
    /// Not a key.
    #[error("the API key cannot be sent: it may only have printable ASCII characters")]
    Key,
    /// It refuses this node, and would again.
    #[error("the coordinator {coordinator} refuses this node: {why}")]
    Refused {
        /// Its address.
        coordinator: String,
        /// What it said.
        why: String,
    },
}

struct Shared {
    client: Client,
    line: Line,
    coordinator: String,
    /// The session now, or [`NONE`], or [`CLOSED`].
    session: watch::Sender<u64>,
    /// Revocations that came in: replies that were under way then are not to be cached.
    revoked: AtomicU64,
    /// File system and epoch of the last registration.
    owner: watch::Sender<(u64, u64)>,
    node: Mutex<Node>,
    /// Changes with the list of nodes.
    peers_version: watch::Sender<u64>,
    kept: kept::Records,
    lost: tokio::sync::Notify,
}

impl Shared {
    /// How this node is, for heartbeats.
    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn_peers(&self, version: u64) {
        self.peers_version.send_if_modified(|known| {
            let is_new = *known != version;
            *known = version;
            is_new
        });
    }
}

/// A coordinator's namespace, as a registered node uses it. Ends its session when dropped.
pub struct RemoteNamespace {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for RemoteNamespace {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RemoteNamespace {
    /// Registers `node` with the coordinator at `host:port`. Returns when that has worked: it tries 5 times fast, then
    /// every 2 s for ever, logging each time. The receiver gets the notices; the first revokes `everything`. `key` is
    /// what the coordinator wants as its `--api-key`.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub async fn connect(
        coordinator: &str,
        node: Node,
        key: Option<&str>,
    ) -> Result<(RemoteNamespace, mpsc::Receiver<Notice>), RemoteError> {
        RemoteNamespace::connect_telling(coordinator, node, key, |_| ()).await
    }

    /// The same; `tell` hears why this node is not registered yet, after each attempt that failed.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub async fn connect_telling(
        coordinator: &str,
        node: Node,
        key: Option<&str>,
        tell: impl Fn(&str) + Send + Sync,
    ) -> Result<(RemoteNamespace, mpsc::Receiver<Notice>), RemoteError> {
        let wrong = || RemoteError::Address(coordinator.to_owned());
        let endpoint = Endpoint::from_shared(format!("http://{coordinator}"))
            .map_err(|_| wrong())?
            .connect_timeout(ANSWER_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let carrier = crate::carrier::over(endpoint.connect_lazy());
        RemoteNamespace::over_telling(carrier, coordinator, node, key, boot_time, tell).await
    }

    /// [`RemoteNamespace::connect`], where `carrier` has the messages and `clock` stands for CLOCK_BOOTTIME. In a simulated
    /// world neither is this machine's.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub async fn connect_over(
        carrier: Carrier,
        coordinator: &str,
        node: Node,
        key: Option<&str>,
        clock: fn() -> Duration,
    ) -> Result<(RemoteNamespace, mpsc::Receiver<Notice>), RemoteError> {
        RemoteNamespace::over_telling(carrier, coordinator, node, key, clock, |_| ()).await
    }

    async fn over_telling(
        carrier: Carrier,
        coordinator: &str,
        node: Node,
        key: Option<&str>,
        clock: fn() -> Duration,
        tell: impl Fn(&str) + Send + Sync,
    ) -> Result<(RemoteNamespace, mpsc::Receiver<Notice>), RemoteError> {
        let key = match key.map(MetadataValue::try_from).transpose() {
            Ok(mut key) => {
                if let Some(key) = &mut key {
                    key.set_sensitive(true);
                }
                key
            }
            Err(_) => return Err(RemoteError::Key),
        };
        let client = CoordinatorClient::with_interceptor(carrier, ShowKey(key))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let shared = Arc::new(Shared {
            client,
            line: Line::new(),
            coordinator: coordinator.to_owned(),
            session: watch::Sender::new(NONE),
            revoked: AtomicU64::new(0),
            owner: watch::Sender::new((0, 0)),
            node: Mutex::new(node),
            peers_version: watch::Sender::new(0),
            kept: kept::Records::default(),
            lost: tokio::sync::Notify::new(),
        });
        let (sender, receiver) = mpsc::channel(REVOCATIONS_WAITING);
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            sender,
            clock,
        };
        // The queue is empty: it takes this one.
        let forgotten = keeper.revoke_everything().await;
        let first = keeper.register(NONE, tell).await?;
        let task = tokio::spawn(keeper.keep(first, forgotten)).abort_handle();
        Ok((RemoteNamespace { shared, task }, receiver))
    }

    /// How the node is, for the next heartbeat.
    pub fn set_status(&self, capacity_bytes: u64, used_bytes: u64, dirty_bytes: u64) {
        let mut node = self.shared.node();
        node.capacity_bytes = capacity_bytes;
        node.used_bytes = used_bytes;
        node.dirty_bytes = dirty_bytes;
    }

    /// What the node does, for the next heartbeat: requests a second, and how they come.
    pub fn set_activity(&self, load: u64, transport: &str) {
        let mut node = self.shared.node();
        node.load = load;
        transport.clone_into(&mut node.transport);
    }

    /// Where other nodes reach this one's data plane; empty: they do not. For the next heartbeat.
    pub fn set_peer_address(&self, address: &str) {
        address.clone_into(&mut self.shared.node().peer_address);
    }

    /// Changes when the list of nodes does, at once.
    pub fn peers_version(&self) -> watch::Receiver<u64> {
        self.shared.peers_version.subscribe()
    }

    /// The file system and the epoch under which the coordinator writes its history, as of the last registration.
    pub fn owner(&self) -> watch::Receiver<(u64, u64)> {
        self.shared.owner.subscribe()
    }

    /// The coordinator knows this node now.
    pub fn is_connected(&self) -> bool {
        !matches!(*self.shared.session.borrow(), NONE | CLOSED)
    }

    /// Sends a heartbeat now. What went wrong, for people.
    pub async fn heartbeat(&self) -> Result<(), String> {
        let session = self.session()?;
        let node = self.shared.node().clone();
        let mut client = self.shared.client.clone();
        let asked = client.heartbeat(HeartbeatRequest {
            session,
            node: Some(node),
            is_heard: false,
        });
        let reply = answer(asked).await?;
        self.shared.learn_peers(reply.peers_version);
        Ok(())
    }

    /// The nodes, as the coordinator knows them. What went wrong, for people.
    pub async fn peers(&self) -> Result<Vec<grpc::Peer>, String> {
        let session = self.session()?;
        let mut client = self.shared.client.clone();
        let asked = client.peers(grpc::PeersRequest { session });
        Ok(answer(asked).await?.peers)
    }

    fn session(&self) -> Result<u64, String> {
        match *self.shared.session.borrow() {
            NONE | CLOSED => Err("this node is not registered with the coordinator now".to_owned()),
            session => Ok(session),
        }
    }

    /// For an ordered end, when nothing is used any more that the coordinator told: no other node waits for this one's lease.
    /// Calls fail from then on.
    pub async fn leave(&self) {
        let session = self.session();
        self.close();
        let Ok(session) = session else { return };
        let mut client = self.shared.client.clone();
        let left = answer(client.leave(grpc::LeaveRequest { session })).await;
        if let Err(why) = left {
            tracing::warn!(target: "control", why, "the coordinator does not know that this node has ended: others may wait for its lease");
        }
    }

    /// Ends the session's task; calls fail from then on.
    pub fn close(&self) {
        self.task.abort();
        self.shared.session.send_replace(CLOSED);
    }

    /// Does one operation. When the coordinator cannot be reached, the same request is sent again for [`CALL_DEADLINE`];
    /// then the answer is EIO, and a change may or may not have happened.
    pub async fn call(&self, request: NsRequest) -> NsReply {
        let failed = NsReply {
            result: Err(Errno::EIO),
            touched: Vec::new(),
            log_position: 0,
            lease_ms: Some(0),
        };
        let bytes = match postcard::to_stdvec(&request) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(target: "control", %error, "a namespace request cannot be encoded");
                return failed;
            }
        };
        match tokio::time::timeout(CALL_DEADLINE, self.call_until_answered(bytes)).await {
            Ok(Ok(reply)) => {
                self.make_room().await;
                reply
            }
            Ok(Err(status)) => {
                tracing::error!(target: "control", %status, "the coordinator cannot answer a request");
                failed
            }
            Err(_) => {
                let coordinator = &self.shared.coordinator;
                tracing::error!(target: "control", coordinator, "the coordinator did not answer for {CALL_DEADLINE:?}");
                failed
            }
        }
    }

    /// One operation on locks. EIO when the coordinator does not answer in time.
    ///
    /// # Errors
    /// See above.
    pub async fn lock(&self, op: &LockOp) -> Result<LockAnswer, Errno> {
        let bytes = postcard::to_stdvec(op).map_err(|_| Errno::EIO)?;
        let asked = self.lock_until_answered(bytes);
        match tokio::time::timeout(CALL_DEADLINE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => {
                tracing::error!(target: "control", %status, "the coordinator cannot answer about a lock");
                Err(Errno::EIO)
            }
            Err(_) => Err(Errno::EIO),
        }
    }

    async fn lock_until_answered(&self, op: Vec<u8>) -> Result<LockAnswer, Status> {
        let shared = &self.shared;
        let mut sessions = shared.session.subscribe();
        let mut wait = FAST_WAIT / 10;
        loop {
            let session = sessions.wait_for(|s| *s != NONE).await;
            let session = session.map_or(CLOSED, |s| *s);
            if session == CLOSED {
                return Err(Status::cancelled("this node's session is closed"));
            }
            let op = op.clone();
            match shared
                .client
                .clone()
                .lock(LockRequest { session, op })
                .await
            {
                Ok(reply) => {
                    return postcard::from_bytes(&reply.into_inner().answer)
                        .map_err(|e| Status::internal(format!("not an answer: {e}")));
                }
                Err(status) if is_for_good(status.code()) => return Err(status),
                Err(status) => {
                    if status.code() == Code::Unauthenticated && *shared.session.borrow() == session
                    {
                        shared.lost.notify_one();
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_WAIT);
                }
            }
        }
    }

    async fn call_until_answered(&self, request: Vec<u8>) -> Result<NsReply, Status> {
        let shared = &self.shared;
        let mut sessions = shared.session.subscribe();
        let mut wait = FAST_WAIT / 10;
        loop {
            // The sender is in `shared`.
            let session = sessions
                .wait_for(|s| *s != NONE)
                .await
                .map_or(CLOSED, |s| *s);
            if session == CLOSED {
                return Err(Status::cancelled("this node's session is closed"));
            }
            let revoked = shared.revoked.load(Ordering::Acquire);
            let asked = shared.line.ask(&shared.client, session, request.clone());
            match asked.await {
                Ok(reply) => {
                    let CallReply {
                        reply,
                        kept,
                        stable,
                        ..
                    } = reply;
                    if !shared.kept.learn(kept, stable) {
                        continue;
                    }
                    let mut reply: NsReply = postcard::from_bytes(&reply)
                        .map_err(|e| Status::internal(format!("not a reply: {e}")))?;
                    if shared.revoked.load(Ordering::Acquire) != revoked {
                        reply.lease_ms = Some(0);
                    }
                    return Ok(reply);
                }
                Err(status) if is_for_good(status.code()) => return Err(status),
                Err(status) => {
                    tracing::debug!(target: "control", %status, "a call is tried again");
                    if status.code() == Code::Unauthenticated && *shared.session.borrow() == session
                    {
                        shared.lost.notify_one();
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_WAIT);
                }
            }
        }
    }
}

/// An answer within [`ANSWER_WITHIN`].
async fn answer<T>(
    asked: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(format!("the coordinator said: {}", status.message())),
        Err(_) => Err(format!(
            "the coordinator did not answer within {ANSWER_WITHIN:?}"
        )),
    }
}

/// Whether the same request would get the same answer again.
fn is_for_good(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::OutOfRange
    )
}

/// CLOCK_BOOTTIME: unlike the clock of timers it goes on while the machine sleeps, and so do leases.
fn boot_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        t.tv_sec.unsigned_abs(),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}
