//! Asking other nodes: one connection a core and node, many requests on it at once, answers in any order.

mod connection;

pub(crate) use connection::Connection;

use crate::cluster::{Cluster, Peer, lock};
use crate::frame::{HEADER_BYTES, Header, Kind, PAYLOAD_MAX, Status};
use crate::handshake::{self, Refusal};
use crate::server::SMALL;
use crate::stream::{Broken, Incoming, join};
use connection::Question;
use event_listener::Event;
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::{Fd, Instant, IoBuf, now, spawn, timeout};
use fastcache_types::{BLOCK, ChunkKey};
use futures_util::future::try_join_all;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long connecting and the handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Pause after a connection that could not be made; doubled after each, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a node gave no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AskError {
    /// It does not have it.
    #[error("it is not there")]
    NotFound,
    /// It has too much to do.
    #[error("it has too much to do")]
    Busy,
    /// Its device failed.
    #[error("it cannot read or keep it")]
    Failed,
    /// It could not be connected to, a moment ago or now.
    #[error("there is no connection")]
    Down,
    /// The connection ended before the answer.
    #[error("the connection broke")]
    Cut,
    /// It took too long.
    #[error("it did not answer in time")]
    Deadline,
    /// Its answers contradict each other.
    #[error("its answers do not fit together")]
    Nonsense,
}

/// The connection of one core to one node.
#[derive(Default)]
pub(crate) struct Place {
    state: Mutex<State>,
    changed: Event,
}

#[derive(Default)]
enum State {
    /// None, and none will be tried before a time.
    Down {
        until: Instant,
        pause: Duration,
    },
    /// None was ever tried.
    #[default]
    New,
    Connecting,
    Up(Arc<Connection>),
}

impl Place {
    fn up(&self) -> Option<Arc<Connection>> {
        match &*lock(&self.state) {
            State::Up(connection) if !connection.is_over() => Some(Arc::clone(connection)),
            _ => None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up().is_some()
    }

    pub(crate) fn hang_up(&self) {
        if let State::Up(connection) = &*lock(&self.state) {
            connection.end();
        }
    }

    fn set(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify(usize::MAX);
    }
}

impl Cluster {
    /// The connection of this core, made when there is none.
    async fn connection(self: &Arc<Self>, peer: &Arc<Peer>) -> Result<Arc<Connection>, AskError> {
        let core = fastcache_reactor::remote().core();
        let place = Arc::clone(lock(&peer.places).entry(core).or_default());
        let mut has_tried = false;
        loop {
            let listener = place.changed.listen();
            {
                let mut state = lock(&place.state);
                let pause = match &*state {
                    State::Up(connection) if !connection.is_over() => {
                        return Ok(Arc::clone(connection));
                    }
                    State::Connecting => None,
                    State::Down { .. } if has_tried => return Err(AskError::Down),
                    State::Down { until, pause } => {
                        if now() < *until {
                            return Err(AskError::Down);
                        }
                        Some(*pause)
                    }
                    State::Up(_) | State::New => Some(Duration::ZERO),
                };
                if let Some(pause) = pause {
                    *state = State::Connecting;
                    let (this, peer, place) = (self.clone(), peer.clone(), place.clone());
                    spawn(async move { this.dial(&peer, &place, pause).await }).detach();
                }
            }
            has_tried = true;
            listener.await;
        }
    }

    async fn dial(self: Arc<Self>, peer: &Arc<Peer>, place: &Arc<Place>, pause: Duration) {
        let made = match timeout(CONNECT_MAX, self.shake(peer)).await {
            Ok(made) => made,
            Err(_) => Err(Refusal::Broken(Broken::Io(
                std::io::ErrorKind::TimedOut.into(),
            ))),
        };
        match made {
            Ok((stream, incoming)) => {
                tracing::info!(target: "peer", ?peer, "connected");
                peer.changes.fetch_add(1, Ordering::Relaxed);
                let connection = Connection::start(stream, incoming, peer.clone());
                place.set(State::Up(connection));
            }
            Err(error) => {
                peer.failed();
                // Said once, until there was a connection again.
                if pause.is_zero() {
                    tracing::warn!(target: "peer", ?peer, %error, "no connection; trying on");
                } else {
                    tracing::debug!(target: "peer", ?peer, %error, "no connection");
                }
                let pause = (pause * 2).clamp(RETRY.0, RETRY.1);
                place.set(State::Down {
                    until: now() + pause,
                    pause,
                });
            }
        }
    }

    async fn shake(&self, peer: &Peer) -> Result<(Fd, Incoming), Refusal> {
        let Some(me) = self.me() else {
            return Err(Refusal::ByUs("this node is not told who it is".to_owned()));
        };
        let stream = Fd::connect(peer.address).await.map_err(Broken::Io)?;
        keep_alive(&stream);
        let mut incoming = Incoming::new(stream.clone());
        let other = handshake::connect(&stream, &mut incoming, &self.token, &me).await?;
        if other.id != peer.id {
            let why = format!("node {} is there, not {}", other.id, peer.id);
            return Err(Refusal::ByUs(why));
        }
        Ok((stream, incoming))
    }

    async fn ask(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        question: Question,
        deadline: Duration,
    ) -> Result<connection::Answered, AskError> {
        peer.counters.requests.fetch_add(1, Ordering::Relaxed);
        let asked = async {
            let connection = self.connection(peer).await?;
            connection.ask(question, deadline).await
        };
        let answered = match timeout(deadline, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(AskError::Deadline),
        };
        if matches!(
            answered,
            Err(AskError::Cut | AskError::Deadline | AskError::Nonsense | AskError::Failed)
        ) {
            peer.failed();
        }
        answered
    }

    /// Asks a node for the bytes of a chunk from `offset` (whole blocks) on, as many as `buf` has room for (at most
    /// [`PAYLOAD_MAX`]). Answers the buffer, how many bytes came, and how many the chunk has. The buffer is lost after an
    /// error. When the future is dropped, the other node is told.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn get(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        offset: usize,
        buf: IoBuf,
        deadline: Duration,
    ) -> Result<(IoBuf, usize, usize), AskError> {
        let since = now();
        let length = buf.len().min(PAYLOAD_MAX);
        let header = Header {
            key,
            offset: u32::try_from(offset).map_err(|_| AskError::Nonsense)?,
            length: u32::try_from(length).map_err(|_| AskError::Nonsense)?,
            ..Header::new(Kind::Get, 0)
        };
        let question = Question {
            header,
            buf: Some(buf),
            frame: None,
        };
        let answered = self.ask(peer, question, deadline).await?;
        let (got, total) = (answered.payload, answered.total);
        let Some(buf) = answered.buf else {
            return Err(AskError::Nonsense);
        };
        if got != length.min(total.saturating_sub(offset)) {
            peer.failed();
            tracing::error!(target: "peer", ?peer, %key, offset, length, got, total, "an answer has another length than was asked for");
            return Err(AskError::Nonsense);
        }
        peer.counters.took(since.elapsed(), got <= SMALL);
        peer.counters
            .in_bytes
            .fetch_add(got as u64, Ordering::Relaxed);
        Ok((buf, got, total))
    }

    /// Asks a node for a whole chunk, of which `expected` bytes are expected, into `buf`, which has room for the largest.
    /// Answers the buffer and the chunk's length. The buffer is lost after an error.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn fetch(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        expected: usize,
        buf: IoBuf,
        deadline: Duration,
    ) -> Result<(IoBuf, usize), AskError> {
        let room = buf.len();
        let until = now() + deadline;
        let mut rest = buf;
        let mut whole = rest.split_to(0);
        let mut wanted = expected.clamp(1, room).next_multiple_of(BLOCK).min(room);
        let mut total = None;
        // Twice at most: what was expected, and what it turned out to have beyond.
        for _ in 0..2 {
            let mut asked = Vec::new();
            let mut at = whole.len();
            while at < wanted {
                let part = rest.split_to((wanted - at).min(PAYLOAD_MAX));
                let (from, left) = (at, until.duration_since(now()));
                at += part.len();
                asked.push(self.get(peer, key, from, part, left));
            }
            for (part, _, of) in try_join_all(asked).await? {
                if *total.get_or_insert(of) != of {
                    return Err(AskError::Nonsense);
                }
                join(&mut whole, part);
            }
            match total {
                Some(total) if total > room => return Err(AskError::Nonsense),
                Some(total) if total <= whole.len() => {
                    join(&mut whole, rest);
                    return Ok((whole, total));
                }
                Some(total) => wanted = total.next_multiple_of(BLOCK).min(room),
                None => return Err(AskError::Nonsense),
            }
        }
        Err(AskError::Nonsense)
    }

    /// Asks a node whether it has a chunk; its length, when it does.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn has(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        deadline: Duration,
    ) -> Result<usize, AskError> {
        self.ask_about(peer, Kind::Has, key, deadline).await
    }

    /// Asks a node to fetch a chunk from the cloud and to keep it, for everybody who asks; its length, when it has it then.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn bring(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        deadline: Duration,
    ) -> Result<usize, AskError> {
        self.ask_about(peer, Kind::Bring, key, deadline).await
    }

    /// Asks a node to keep a replica that it may have until it is released; its length, when it has it.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn hold(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        deadline: Duration,
    ) -> Result<usize, AskError> {
        self.ask_about(peer, Kind::Hold, key, deadline).await
    }

    /// Asks a node that keeps a replica for this one to make it its own; its length, when it has.
    ///
    /// # Errors
    /// See [`AskError`]. A node that did not answer may have done it.
    pub async fn take(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        deadline: Duration,
    ) -> Result<usize, AskError> {
        self.ask_about(peer, Kind::Take, key, deadline).await
    }

    /// Tells a node that it need not keep a replica any more. Lost where no core has a connection now.
    pub fn release(&self, peer: &Peer, key: ChunkKey) {
        let own = fastcache_reactor::remote().core();
        let connection = {
            let places = lock(&peer.places);
            let up = |(core, place): (&usize, &Arc<Place>)| Some((*core, place.up()?));
            // Another core may have given it.
            let all = places.iter().filter_map(up);
            all.min_by_key(|(core, _)| (*core != own, *core))
        };
        if let Some((_, connection)) = connection {
            connection.tell(&Header {
                key,
                ..Header::new(Kind::Release, 0)
            });
        }
    }

    /// Gives a node a part of a replica of `total` bytes: `frame` is [`HEADER_BYTES`] of room and then the bytes, whole blocks
    /// but for the last part. The parts come in order; the last returns when the node's device has the whole replica.
    ///
    /// # Errors
    /// See [`AskError`]. After one the replica has to begin again.
    ///
    /// # Panics
    /// When the part is longer than [`PAYLOAD_MAX`].
    pub async fn put(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        key: ChunkKey,
        total: usize,
        offset: usize,
        frame: IoBuf,
        deadline: Duration,
    ) -> Result<(), AskError> {
        let header = Header {
            key,
            total: u32::try_from(total).map_err(|_| AskError::Nonsense)?,
            offset: u32::try_from(offset).map_err(|_| AskError::Nonsense)?,
            ..Header::new(Kind::Put, 0).with_payload(&frame[HEADER_BYTES..])
        };
        let bytes = u64::from(header.payload);
        let question = Question {
            header,
            buf: None,
            frame: Some(frame),
        };
        self.ask(peer, question, deadline).await?;
        peer.counters.out_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn ask_about(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        kind: Kind,
        key: ChunkKey,
        deadline: Duration,
    ) -> Result<usize, AskError> {
        let header = Header {
            key,
            ..Header::new(kind, 0)
        };
        let question = Question {
            header,
            buf: None,
            frame: None,
        };
        let answered = self.ask(peer, question, deadline).await?;
        Ok(answered.total)
    }
}

/// What a status means to who asked.
fn meaning(status: Status) -> Result<(), AskError> {
    match status {
        Status::Ok => Ok(()),
        Status::NotFound => Err(AskError::NotFound),
        Status::Busy => Err(AskError::Busy),
        Status::Failed => Err(AskError::Failed),
        _ => Err(AskError::Nonsense),
    }
}

/// Bytes that nobody acknowledges end a connection after this, also of a node that is gone without a word, milliseconds.
const SILENCE_MS: u32 = 10_000;

/// Lets the kernel find out about a node that is gone without a word.
pub(crate) fn keep_alive(stream: &Fd) {
    use rustix::net::sockopt;
    let fd = stream.as_fd();
    let set = sockopt::set_tcp_nodelay(fd, true)
        .and_then(|()| sockopt::set_socket_keepalive(fd, true))
        .and_then(|()| sockopt::set_tcp_keepidle(fd, Duration::from_secs(5)))
        .and_then(|()| sockopt::set_tcp_keepintvl(fd, Duration::from_secs(2)))
        .and_then(|()| sockopt::set_tcp_keepcnt(fd, 3))
        .and_then(|()| sockopt::set_tcp_user_timeout(fd, SILENCE_MS));
    if let Err(error) = set {
        tracing::debug!(target: "peer", %error, "a socket option cannot be set");
    }
}
