//! The data plane's side of the control socket, without the socket: calls that wait for answers, and what is to be
//! sent. The node crate moves frames between this and the agent's connections.
//!
//! Calls that were not answered when the agent went away are sent again to the next one: changes carry an
//! `OpId`, so none happens twice. Fetches are the exception: their slot died with the session, so they fail with
//! ENOTCONN and the caller takes a new slot.

use crate::{Result, lock};
use event_listener::Event;
use fastcache_api::control::{DataAnswer, DataEvent, NodeAnswer, NodeCall, ToAgent};
use fastcache_api::{Errno, Ino, NsOp, NsReply, NsRequest, OpId, Time};
use fastcache_reactor::sync::{AtomicU64, Mutex};
use futures_channel::oneshot;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a call waits for an answer, agent restarts included, before it fails with EIO. Above what the agent itself
/// allows: 30 s for the object store, 60 s for the coordinator.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(75);
/// How long the agent may take to hear of the end.
const LEFT_MAX: Duration = Duration::from_secs(2);
/// Most calls in flight on one lane; further ones wait. Below the coordinator's window of remembered answers (4096).
const CALLS_MAX: usize = 1024;
/// Most events queued for an agent that is away; older ones are dropped, because a new session takes the inventory anew.
const EVENTS_MAX: usize = 65_536;

/// What is to be sent on a lane.
pub type Outgoing = ToAgent;

struct Pending {
    call: NodeCall,
    answer: oneshot::Sender<Result<NodeAnswer>>,
}

#[derive(Default)]
struct Lane {
    state: Mutex<LaneState>,
    /// Something is in the outbox, or the connection changed.
    outbox_changed: Event,
    /// A call ended: there is room.
    room: Event,
}

#[derive(Default)]
struct LaneState {
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    outbox: VecDeque<ToAgent>,
    /// Number of the connection that is served; 0 when there is none.
    connection: u64,
}

/// Calls to the agent and news for it. Clones share it.
#[derive(Clone)]
pub struct Link {
    inner: Arc<LinkInner>,
}

struct LinkInner {
    lanes: Vec<Lane>,
    cpus: Vec<usize>,
    client: u64,
    next_seq: AtomicU64,
    is_connected: Event,
    /// Calls about the namespace so far.
    ns_calls: AtomicU64,
}

impl Link {
    /// A link with one lane for each of these processors, in this order. `client` is this run's random number for
    /// [`OpId`]s.
    pub fn new(cpus: Vec<usize>, client: u64) -> Link {
        Link {
            inner: Arc::new(LinkInner {
                lanes: (0..cpus.len().max(1)).map(|_| Lane::default()).collect(),
                cpus,
                client,
                next_seq: AtomicU64::new(1),
                is_connected: Event::new(),
                ns_calls: AtomicU64::new(0),
            }),
        }
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.inner.lanes.len()
    }

    /// Whether the lane of this core has a connection.
    pub fn is_connected(&self) -> bool {
        lock(&self.here().state).connection != 0
    }

    /// Waits until the lane of this core has a connection.
    pub async fn connected(&self) {
        loop {
            let listener = self.inner.is_connected.listen();
            if self.is_connected() {
                return;
            }
            listener.await;
        }
    }

    fn here(&self) -> &Lane {
        let core = fastcache_reactor::remote().core();
        let lane = self.inner.cpus.iter().position(|c| *c == core).unwrap_or(0);
        &self.inner.lanes[lane]
    }

    /// A lane got a connection: everything unanswered goes out again. `connection` is not 0.
    pub fn attach(&self, lane: usize, connection: u64) {
        let lane = &self.inner.lanes[lane];
        let failed = {
            let mut state = lock(&lane.state);
            let failed = take_fetches(&mut state);
            state.connection = connection;
            state
                .outbox
                .retain(|m| !matches!(m, ToAgent::Call(..) | ToAgent::Answer(..)));
            let again: Vec<ToAgent> = state
                .pending
                .iter()
                .map(|(id, p)| ToAgent::Call(*id, p.call.clone()))
                .collect();
            for m in again.into_iter().rev() {
                state.outbox.push_front(m);
            }
            failed
        };
        fail(failed);
        lane.outbox_changed.notify(usize::MAX);
        self.inner.is_connected.notify(usize::MAX);
    }

    /// The lane's connection is gone.
    pub fn detach(&self, lane: usize, connection: u64) {
        let lane = &self.inner.lanes[lane];
        let failed = {
            let mut state = lock(&lane.state);
            if state.connection != connection {
                return;
            }
            state.connection = 0;
            take_fetches(&mut state)
        };
        fail(failed);
        lane.outbox_changed.notify(usize::MAX);
    }

    /// The next messages to send on a lane, at most `max`; waits for one. `None` when `connection` is no longer the
    /// lane's.
    pub async fn outgoing(&self, lane: usize, connection: u64, max: usize) -> Option<Vec<ToAgent>> {
        let lane = &self.inner.lanes[lane];
        loop {
            let listener = lane.outbox_changed.listen();
            {
                let mut state = lock(&lane.state);
                if state.connection != connection {
                    return None;
                }
                if !state.outbox.is_empty() {
                    let n = state.outbox.len().min(max);
                    return Some(state.outbox.drain(..n).collect());
                }
            }
            listener.await;
        }
    }

    /// An answer came on a lane. Unknown ids are answers to calls that gave up.
    pub fn answered(&self, lane: usize, id: u64, answer: Result<NodeAnswer>) {
        let lane = &self.inner.lanes[lane];
        let pending = lock(&lane.state).pending.remove(&id);
        if let Some(p) = pending {
            let _ = p.answer.send(answer);
            lane.room.notify(1);
        }
    }

    /// Queues the answer to a call of the agent.
    pub fn answer(&self, lane: usize, id: u64, answer: Result<DataAnswer>) {
        self.push(lane, ToAgent::Answer(id, answer));
    }

    /// Queues news about a file.
    pub fn event(&self, ino: Ino, event: DataEvent) {
        let lanes = self.inner.lanes.len() as u64;
        let lane = usize::try_from(ino.0 % lanes).unwrap_or(0);
        self.push(lane, ToAgent::Event(event));
    }

    fn push(&self, lane: usize, message: ToAgent) {
        let lane = &self.inner.lanes[lane];
        {
            let mut state = lock(&lane.state);
            if state.connection == 0 || state.outbox.len() > EVENTS_MAX {
                return;
            }
            state.outbox.push_back(message);
        }
        lane.outbox_changed.notify(1);
    }

    /// Asks the agent. EIO when there is no answer in time.
    pub async fn call(&self, call: NodeCall) -> Result<NodeAnswer> {
        let lane = self.here();
        let (send, receive) = oneshot::channel();
        let mut send = Some(send);
        let id = loop {
            let listener = lane.room.listen();
            {
                let mut state = lock(&lane.state);
                if state.pending.len() < CALLS_MAX
                    && let Some(answer) = send.take()
                {
                    state.next_id += 1;
                    let id = state.next_id;
                    if state.connection != 0 {
                        state.outbox.push_back(ToAgent::Call(id, call.clone()));
                    }
                    state.pending.insert(id, Pending { call, answer });
                    break id;
                }
            }
            listener.await;
        };
        lane.outbox_changed.notify(1);
        match fastcache_reactor::timeout(CALL_DEADLINE, receive).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Errno::EIO),
            Err(_) => {
                let gone = lock(&lane.state).pending.remove(&id);
                lane.room.notify(1);
                if let Some(p) = gone {
                    tracing::warn!(target: "control", call = ?Name(&p.call), "no answer from the agent within {} s: EIO", CALL_DEADLINE.as_secs());
                }
                Err(Errno::EIO)
            }
        }
    }

    /// Whether the agent answers at all.
    pub async fn answers(&self, within: Duration) -> bool {
        let asked = fastcache_reactor::timeout(within, self.call(NodeCall::Ping)).await;
        matches!(asked, Ok(Ok(NodeAnswer::Done)))
    }

    /// Tells the agent, if it is there, that nothing is used any more that it told.
    pub async fn left(&self) {
        if fastcache_reactor::timeout(LEFT_MAX, self.call(NodeCall::Left))
            .await
            .is_err()
        {
            tracing::info!(target: "control", "the agent could not be told of the end: other nodes may wait for the lease of this one");
        }
    }

    /// Calls about the namespace so far.
    pub(crate) fn ns_calls(&self) -> u64 {
        self.inner.ns_calls.load(Ordering::Relaxed)
    }

    /// Asks the namespace, stamped with the time now.
    pub async fn ns(&self, op: NsOp) -> Result<NsReply> {
        let id = op.is_change().then(|| self.next_id());
        self.ns_as(id, op, crate::wall_now()).await
    }

    /// The number of a change. Who asks for it again under the same one has it done once.
    pub(crate) fn next_id(&self) -> OpId {
        OpId {
            client: self.inner.client,
            seq: self.inner.next_seq.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Asks the namespace for a change of this number, stamped `now`; for a read there is no number.
    pub(crate) async fn ns_as(&self, id: Option<OpId>, op: NsOp, now: Time) -> Result<NsReply> {
        self.inner.ns_calls.fetch_add(1, Ordering::Relaxed);
        match self.call(NodeCall::Ns(NsRequest { id, now, op })).await? {
            NodeAnswer::Ns(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }
}

fn take_fetches(state: &mut LaneState) -> Vec<Pending> {
    let ids: Vec<u64> = state
        .pending
        .iter()
        .filter(|(_, p)| matches!(p.call, NodeCall::Fetch { .. }))
        .map(|(id, _)| *id)
        .collect();
    ids.into_iter()
        .filter_map(|id| state.pending.remove(&id))
        .collect()
}

fn fail(pending: Vec<Pending>) {
    for p in pending {
        let _ = p.answer.send(Err(Errno::ENOTCONN));
    }
}

struct Name<'a>(&'a NodeCall);

impl std::fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(text.get(..80).unwrap_or(&text))
    }
}

/// An answer of a kind that the question does not have: a broken agent, not the caller's fault.
pub(crate) fn unexpected(answer: &impl std::fmt::Debug) -> Errno {
    tracing::error!(target: "control", ?answer, "the agent answered something else than was asked");
    Errno::EIO
}

/// Takes the answer of one kind out of a reply, or EIO.
macro_rules! expect_answer {
    ($reply:expr, $pattern:pat => $value:expr) => {
        match $reply.result {
            Ok($pattern) => Ok($value),
            Ok(other) => Err($crate::link::unexpected(&other)),
            Err(errno) => Err(errno),
        }
    };
}
pub(crate) use expect_answer;
