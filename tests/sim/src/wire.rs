//! The network of the simulated world: how long messages take, which are lost, who is cut off; and what was sent.
//!
//! A lost message is sent again, as TCP does, after its least timeout, doubled each time. One generator for each direction of
//! each node, so that what one node does changes nothing for the others.

use bytes::Bytes;
use fastcache_coordinator::Carrier;
use http_body::{Body as HttpBody, Frame, SizeHint};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::{Status, codegen::http::Response};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// How long a message takes that is not lost, milliseconds.
const TAKES_MS: std::ops::RangeInclusive<u64> = 1..=3;
/// Of so many messages one is lost.
const LOST_ONE_IN: u32 = 500;
/// When TCP sends the first time again (Linux: TCP_RTO_MIN).
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// The stream of revocations among the methods.
const WATCH: &str = "Watch";
/// The stream of namespace operations; each counts as a request, under this name.
const CALLS: &str = "Calls";
const CALL: &str = "Call";
/// Before each message of a gRPC body: whether it is compressed, and how long it is (big-endian).
const PREFIX_BYTES: usize = 5;

/// The wires between the nodes and their coordinator.
pub struct Wires {
    state: Mutex<State>,
}

struct State {
    to: Vec<StdRng>,
    from: Vec<StdRng>,
    is_cut: Vec<bool>,
    sent: BTreeMap<String, u64>,
    lost: u64,
}

fn takes(rng: &mut StdRng, lost: &mut u64) -> Duration {
    let mut time = Duration::from_millis(rng.random_range(TAKES_MS));
    let mut again = AGAIN_AFTER;
    while rng.random_ratio(1, LOST_ONE_IN) {
        *lost += 1;
        time += again;
        again *= 2;
    }
    time
}

impl Wires {
    /// For this many nodes.
    pub fn new(nodes: usize, seed: u64) -> Arc<Wires> {
        let rngs = |direction: u64| {
            let rng = |n| StdRng::seed_from_u64(seed ^ ((2 * n + direction) << 40));
            (0..nodes as u64).map(rng).collect()
        };
        Arc::new(Wires {
            state: Mutex::new(State {
                to: rngs(0),
                from: rngs(1),
                is_cut: vec![false; nodes],
                sent: BTreeMap::new(),
                lost: 0,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing reaches the node, and nothing comes from it.
    pub fn cut(&self, node: usize) {
        self.state().is_cut[node] = true;
    }

    /// Whether it is cut off.
    pub fn is_cut(&self, node: usize) -> bool {
        self.state().is_cut[node]
    }

    /// Requests to the coordinator so far, by method.
    pub fn sent(&self) -> BTreeMap<String, u64> {
        self.state().sent.clone()
    }

    /// Messages that were lost, and sent again.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    /// A message travels to the coordinator.
    async fn go(&self, node: usize, method: &str) {
        let time = self.forth(node, method, 1);
        self.travel(node, time).await;
    }

    fn forth(&self, node: usize, method: &str, messages: u64) -> Option<Duration> {
        let mut state = self.state();
        let State {
            to,
            sent,
            lost,
            is_cut,
            ..
        } = &mut *state;
        *sent.entry(method.to_owned()).or_default() += messages;
        (!is_cut[node]).then(|| takes(&mut to[node], lost))
    }

    /// One travels back.
    async fn come(&self, node: usize) {
        let time = self.back(node);
        self.travel(node, time).await;
    }

    fn back(&self, node: usize) -> Option<Duration> {
        let mut state = self.state();
        let State {
            from, lost, is_cut, ..
        } = &mut *state;
        (!is_cut[node]).then(|| takes(&mut from[node], lost))
    }

    async fn travel(&self, node: usize, time: Option<Duration>) {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
        if self.is_cut(node) {
            std::future::pending().await
        }
    }

    fn stream(self: &Arc<Self>, node: usize, body: Body, is_forth: bool) -> Body {
        Body::new(Stream {
            body,
            wires: Arc::clone(self),
            node,
            is_forth,
            under_way: VecDeque::new(),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }

    /// The wire of a node to what answers at the other end.
    pub fn carrier(self: &Arc<Self>, node: usize, end: Carrier) -> Carrier {
        let wires = Arc::clone(self);
        BoxCloneSyncService::new(tower::service_fn(
            move |request: tonic::codegen::http::Request<Body>| {
                let (wires, end) = (Arc::clone(&wires), end.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    let method = path.rsplit('/').next().unwrap_or_default();
                    wires.go(node, method).await;
                    let request = match method {
                        CALLS => request.map(|body| wires.stream(node, body, true)),
                        _ => request,
                    };
                    let response = end.oneshot(request).await?;
                    wires.come(node).await;
                    Ok(match method {
                        WATCH | CALLS => response.map(|body| wires.stream(node, body, false)),
                        _ => response,
                    }) as Result<Response<Body>, Status>
                }
            },
        ))
    }
}

/// A body whose pieces travel one behind the other, each for a time of its own.
struct Stream {
    body: Body,
    wires: Arc<Wires>,
    node: usize,
    /// To the coordinator: what a node asks.
    is_forth: bool,
    /// What is on its way, and when it is there.
    under_way: VecDeque<(Instant, Result<Frame<Bytes>, Status>)>,
    sleep: Pin<Box<Sleep>>,
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut is_over = false;
        loop {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let time = match this.is_forth {
                        true => this.wires.forth(this.node, CALL, messages(&frame)),
                        false => this.wires.back(this.node),
                    };
                    let Some(time) = time else {
                        return Poll::Pending;
                    };
                    let before = this.under_way.back().map(|(at, _)| *at);
                    let at = (Instant::now() + time).max(before.unwrap_or_else(Instant::now));
                    this.under_way.push_back((at, frame));
                }
                Poll::Ready(None) => {
                    is_over = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        let Some((at, _)) = this.under_way.front() else {
            return match is_over {
                true => Poll::Ready(None),
                false => Poll::Pending,
            };
        };
        this.sleep.as_mut().reset(*at);
        ready!(this.sleep.as_mut().poll(cx));
        if this.wires.is_cut(this.node) {
            return Poll::Pending;
        }
        Poll::Ready(this.under_way.pop_front().map(|(_, frame)| frame))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// How many messages a piece of a gRPC body has; it has whole ones.
fn messages(frame: &Result<Frame<Bytes>, Status>) -> u64 {
    let mut bytes = match frame.as_ref().map(Frame::data_ref) {
        Ok(Some(data)) => &data[..],
        _ => return 0,
    };
    let mut count = 0;
    while let Some(([_, len @ ..], rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() {
        count += 1;
        bytes = rest.get(u32::from_be_bytes(*len) as usize..).unwrap_or(&[]);
    }
    count
}
