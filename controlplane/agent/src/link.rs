//! The connection to the data plane: sessions, their lanes, calls in both directions.
//!
//! Owns: the current session, and the supervisor that makes a new one whenever it breaks. Invariants: a session
//! lives and dies as a whole (when one lane breaks, all go); a lane's reader never waits for anything but
//! bytes, so that no call can wait for itself; a slot that reaches the agent is given back exactly once, also
//! when its asker is gone.

mod arena;
mod handshake;
mod socket;

use crate::node::Inner;
use arena::Arena;
use bytes::{Buf, BytesMut};
use fastcache_api::control::{
    CONTROL_VERSION, ClientHello, DataAnswer, DataCall, FRAME_MAX, NodeAnswer, NodeCall,
    SLOT_BYTES, ServerHello, ToAgent, ToData,
};
use fastcache_api::{Errno, Ino};
use rand::Rng;
use socket::{Ends, Reader, Writer};
use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Longest a call waits for the data plane to come back before it fails with EIO.
pub(crate) const RECONNECT_WAIT: Duration = Duration::from_secs(30);
/// Longest a call waits for its answer: a seal that waits for space, with room.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(300);
/// Messages waiting to be written to one lane.
const LANE_QUEUE: usize = 1024;
/// Calls of the data plane in service on one lane; it has no more FUSE requests than that in flight.
const SERVING_MAX: usize = 16_384;
/// Bytes gathered for one write to the socket.
const WRITE_BATCH: usize = 256 << 10;
/// Most lanes a data plane may ask for: one for each core.
const LANES_MAX: u32 = 1024;
/// First and longest pause between attempts to connect.
const CONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often it is said again that the data plane is away.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// The current session, if there is one.
pub(crate) struct Link {
    current: watch::Sender<Option<Arc<Session>>>,
}

/// One connection to one run of the data plane.
pub(crate) struct Session {
    /// What the data plane said first.
    pub(crate) hello: ServerHello,
    arena: Arena,
    lanes: Vec<Lane>,
    next_id: AtomicU64,
    next_lane: AtomicUsize,
    dead: CancellationToken,
}

type Pending = oneshot::Sender<Result<DataAnswer, Errno>>;

struct Lane {
    out: mpsc::Sender<ToData>,
    /// Slots to give back; at most as many as the arena has.
    releases: mpsc::UnboundedSender<u32>,
    pending: Mutex<HashMap<u64, Pending>>,
    serving: AtomicUsize,
}

/// Somebody waits for an answer. When they go away in mid-wait, a slot in an answer that is there already, or still
/// comes, goes back.
struct Asker<'l> {
    lane: &'l Lane,
    id: u64,
    answered: oneshot::Receiver<Result<DataAnswer, Errno>>,
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        lock(&self.lane.pending).remove(&self.id);
        self.answered.close();
        if let Ok(Ok(DataAnswer::Slot { slot, .. })) = self.answered.try_recv() {
            let _ = self.lane.releases.send(slot);
        }
    }
}

/// A slot the agent holds; given back when dropped.
pub(crate) struct Slot {
    session: Arc<Session>,
    lane: usize,
    slot: u32,
    /// Bytes in it.
    pub(crate) len: u32,
    /// CRC32C of them, as the data plane says.
    pub(crate) crc32c: u32,
    is_ours: bool,
}

impl Slot {
    /// Copies its bytes out.
    pub(crate) fn copy_out(&self) -> Result<Vec<u8>, Errno> {
        self.session
            .arena
            .read(self.slot, self.len)
            .ok_or(Errno::EIO)
    }

    /// Copies bytes into it, and hands it over to be named in a call. The data plane frees it.
    pub(crate) fn fill(mut self, bytes: &[u8]) -> Result<u32, Errno> {
        if !self.session.arena.write(self.slot, bytes) {
            return Err(Errno::EIO);
        }
        self.is_ours = false;
        Ok(self.slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.is_ours {
            // Fails only when the session is dead; its arena is then used by nobody.
            let _ = self.session.lanes[self.lane].releases.send(self.slot);
        }
    }
}

impl Session {
    /// The lane for news and calls about a file.
    pub(crate) fn lane_of(&self, ino: Ino) -> usize {
        let lanes = u64::try_from(self.lanes.len()).unwrap_or(1);
        usize::try_from(ino.0 % lanes).unwrap_or(0)
    }

    /// Some lane; a different one each time.
    pub(crate) fn any_lane(&self) -> usize {
        self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len()
    }

    /// How many lanes there are.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// Waits until the session is over.
    pub(crate) async fn ended(&self) {
        self.dead.cancelled().await;
    }

    /// Asks, and waits for the answer. ENOTCONN when the session broke meanwhile.
    pub(crate) async fn call(&self, lane: usize, call: DataCall) -> Result<DataAnswer, Errno> {
        self.call_made(lane, || Ok(call)).await
    }

    /// [`Session::call`] with a call that is made when it is certain to be sent: one that names a slot hands it
    /// over in that moment, and a caller that goes away before keeps it (and gives it back).
    pub(crate) async fn call_made(
        &self,
        lane: usize,
        make: impl FnOnce() -> Result<DataCall, Errno>,
    ) -> Result<DataAnswer, Errno> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let to = &self.lanes[lane];
        lock(&to.pending).insert(id, answer);
        let mut asker = Asker {
            lane: to,
            id,
            answered,
        };
        let asked = async {
            let place = to.out.reserve().await.map_err(|_| Errno::ENOTCONN)?;
            place.send(ToData::Call(id, make()?));
            (&mut asker.answered).await.map_err(|_| Errno::ENOTCONN)?
        };
        tokio::select! {
            done = tokio::time::timeout(ANSWER_DEADLINE, asked) => done.unwrap_or(Err(Errno::ETIMEDOUT)),
            () = self.dead.cancelled() => Err(Errno::ENOTCONN),
        }
    }

    /// Asks for something that is answered with a slot.
    pub(crate) async fn call_for_slot(
        self: &Arc<Self>,
        lane: usize,
        call: DataCall,
    ) -> Result<Slot, Errno> {
        match self.call(lane, call).await? {
            DataAnswer::Slot { slot, len, crc32c } => Ok(Slot {
                session: self.clone(),
                lane,
                slot,
                len,
                crc32c,
                is_ours: true,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Copies bytes into a slot the data plane handed out with a call of its own.
    pub(crate) fn fill(&self, slot: u32, bytes: &[u8]) -> Result<(), Errno> {
        if self.arena.write(slot, bytes) {
            Ok(())
        } else {
            Err(Errno::EIO)
        }
    }

    fn on_answer(&self, lane: usize, id: u64, result: Result<DataAnswer, Errno>) {
        let asker = lock(&self.lanes[lane].pending).remove(&id);
        let unclaimed = match asker {
            Some(asker) => asker.send(result).err(),
            None => Some(result),
        };
        if let Some(Ok(DataAnswer::Slot { slot, .. })) = unclaimed {
            let _ = self.lanes[lane].releases.send(slot);
        }
    }
}

impl Link {
    /// Not connected yet; [`supervise`] connects.
    pub(crate) fn new() -> Link {
        Link {
            current: watch::Sender::new(None),
        }
    }

    /// Changes with the session.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.current.subscribe()
    }

    /// The session now.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.current.borrow().clone()
    }

    /// The session, waiting for it up to `bound`. EIO after it.
    pub(crate) async fn session(&self, bound: Duration) -> Result<Arc<Session>, Errno> {
        let mut watcher = self.current.subscribe();
        let there = tokio::time::timeout(bound, watcher.wait_for(Option::is_some)).await;
        match there {
            Ok(Ok(session)) => session.clone().ok_or(Errno::EIO),
            _ => Err(Errno::EIO),
        }
    }

    /// A call that may be made twice without harm: made again once if the session broke.
    pub(crate) async fn call(&self, ino: Option<Ino>, call: DataCall) -> Result<DataAnswer, Errno> {
        let mut is_again = false;
        loop {
            let session = self.session(RECONNECT_WAIT).await?;
            let lane = ino.map_or_else(|| session.any_lane(), |ino| session.lane_of(ino));
            match session.call(lane, call.clone()).await {
                Err(Errno::ENOTCONN) if !is_again => {
                    is_again = true;
                    self.left(&session).await;
                }
                Err(Errno::ENOTCONN) => return Err(Errno::EIO),
                done => return done,
            }
        }
    }

    /// [`Link::call`] for what is answered with `Done`.
    pub(crate) async fn tell(&self, ino: Option<Ino>, call: DataCall) -> Result<(), Errno> {
        match self.call(ino, call).await? {
            DataAnswer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until `session` is no longer the current one.
    pub(crate) async fn left(&self, session: &Arc<Session>) {
        let mut watcher = self.current.subscribe();
        let is_other =
            |now: &Option<Arc<Session>>| !now.as_ref().is_some_and(|now| Arc::ptr_eq(now, session));
        let _ = tokio::time::timeout(RECONNECT_WAIT, watcher.wait_for(is_other)).await;
    }
}

/// An answer of the wrong kind: a bug of the other side, said and answered with EIO.
pub(crate) fn unexpected(answer: &DataAnswer) -> Errno {
    warn!(target: "control", ?answer, "the data plane gave an answer of the wrong kind");
    Errno::EIO
}

/// Keeps the node connected until it stops.
pub(crate) async fn supervise(inner: Arc<Inner>) {
    let mut pause = CONNECT_PAUSE.0;
    let mut said: Option<Instant> = None;
    while !inner.stop.is_cancelled() {
        match connect(&inner).await {
            Ok((session, streams)) => {
                pause = CONNECT_PAUSE.0;
                said = None;
                info!(target: "control", socket = %inner.config.socket.display(),
                    lanes = session.lanes.len(), slots = session.hello.slots,
                    capacity_bytes = session.hello.capacity_bytes, "connected to the data plane");
                live(&inner, session, streams).await;
                if !inner.stop.is_cancelled() {
                    warn!(target: "control", "lost the data plane; connecting again");
                }
            }
            Err(error) => {
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    said = Some(Instant::now());
                    warn!(target: "control", socket = %inner.config.socket.display(), %error,
                        "cannot connect to the data plane (is fastcache-data running?); trying on");
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = inner.stop.cancelled() => {}
                }
                pause = (pause * 2).min(CONNECT_PAUSE.1);
            }
        }
    }
}

type LaneParts = (Ends, mpsc::Receiver<ToData>, mpsc::UnboundedReceiver<u32>);

/// Opens all lanes. Nothing is read from them yet.
async fn connect(inner: &Arc<Inner>) -> io::Result<(Arc<Session>, Vec<LaneParts>)> {
    let socket = inner.config.socket.clone();
    let client = ClientHello {
        version: CONTROL_VERSION,
        agent: rand::rng().random(),
        lane: 0,
        chunk_size: inner.config.chunk_size,
        has_coordinator: inner.namespace.owner().is_some(),
        has_cloud: inner.cloud.is_some(),
    };
    let opened = tokio::task::spawn_blocking(move || open_lanes(&socket, &client)).await;
    let (hello, arena, streams) = opened.map_err(io::Error::other)??;
    let mut lanes = Vec::with_capacity(streams.len());
    let mut parts = Vec::with_capacity(streams.len());
    for stream in streams {
        let (out, outgoing) = mpsc::channel(LANE_QUEUE);
        let (releases, released) = mpsc::unbounded_channel();
        lanes.push(Lane {
            out,
            releases,
            pending: Mutex::default(),
            serving: AtomicUsize::new(0),
        });
        parts.push((socket::split(stream)?, outgoing, released));
    }
    let session = Session {
        hello,
        arena,
        lanes,
        next_id: AtomicU64::new(1),
        next_lane: AtomicUsize::new(0),
        dead: CancellationToken::new(),
    };
    Ok((Arc::new(session), parts))
}

type Opened = (ServerHello, Arena, Vec<UnixStream>);

fn open_lanes(socket: &Path, client: &ClientHello) -> io::Result<Opened> {
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let client = |lane| ClientHello {
        lane,
        ..client.clone()
    };
    let (first, hello, fd) = handshake::hello(socket)?;
    if hello.lanes == 0 || hello.lanes > LANES_MAX {
        return Err(bad("it asks for no lanes, or too many"));
    }
    let arena = Arena::map(fd, hello.slots)?;
    let mut streams = vec![handshake::answer(first, &client(0))?];
    for lane in 1..hello.lanes {
        // Only the arena that came with lane 0 is the session's; those of the others are offers nobody takes.
        let (stream, again, _offer) = handshake::hello(socket)?;
        if again.data != hello.data {
            return Err(bad("it was restarted while the lanes were opened"));
        }
        streams.push(handshake::answer(stream, &client(lane))?);
    }
    Ok((hello, arena, streams))
}

/// A session from its first message to its end.
async fn live(inner: &Arc<Inner>, session: Arc<Session>, parts: Vec<LaneParts>) {
    inner.session_begins(&session);
    let mut tasks = tokio::task::JoinSet::new();
    for (lane, ((read, write), outgoing, released)) in parts.into_iter().enumerate() {
        tasks.spawn(read_lane(inner.clone(), session.clone(), lane, read));
        tasks.spawn(write_lane(session.clone(), lane, write, outgoing, released));
    }
    let synchronise = async {
        let synced = inner.synchronise(&session).await;
        if let Err(error) = synced {
            warn!(target: "control", %error, "cannot learn what the data plane stores");
            session.dead.cancel();
        }
        inner.restore_locks(&session).await;
        session.dead.cancelled().await;
    };
    tokio::select! {
        () = synchronise => {}
        () = session.dead.cancelled() => {}
        () = inner.stop.cancelled() => {}
    }
    session.dead.cancel();
    inner.link.current.send_replace(None);
    tasks.shutdown().await;
    for lane in &session.lanes {
        lock(&lane.pending).clear();
    }
}

impl Inner {
    /// Makes a session the one that calls use.
    pub(crate) fn publish(&self, session: &Arc<Session>) {
        self.link.current.send_replace(Some(session.clone()));
    }
}

async fn read_lane(inner: Arc<Inner>, session: Arc<Session>, lane: usize, read: Reader) {
    let ended = read_frames(&inner, &session, lane, read).await;
    if let Err(error) = ended
        && !session.dead.is_cancelled()
        && !inner.stop.is_cancelled()
    {
        warn!(target: "control", lane, %error, "lane of the data plane broke");
    }
    session.dead.cancel();
}

async fn read_frames(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    lane: usize,
    mut read: Reader,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(message) = take_frame(&mut buffer)? {
            match message {
                ToAgent::Call(id, call) => serve(inner, session, lane, id, call),
                ToAgent::Answer(id, result) => session.on_answer(lane, id, result),
                ToAgent::Event(event) => inner.on_event(event),
            }
        }
        if read.read(&mut buffer).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by the data plane",
            ));
        }
    }
}

/// The next whole message in the buffer.
fn take_frame(buffer: &mut BytesMut) -> io::Result<Option<ToAgent>> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
    if len > FRAME_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message is too long",
        ));
    }
    if buffer.len() < 4 + len {
        buffer.reserve(4 + len - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    let body = buffer.split_to(len);
    postcard::from_bytes(&body)
        .map(Some)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("bad message: {e}")))
}

/// Serves one call of the data plane in a task of its own.
fn serve(inner: &Arc<Inner>, session: &Arc<Session>, lane: usize, id: u64, call: NodeCall) {
    let serving = &session.lanes[lane].serving;
    let is_full = serving.fetch_add(1, Ordering::Relaxed) >= SERVING_MAX;
    let place = match call {
        NodeCall::Ns(_) | NodeCall::Lock(_) | NodeCall::Ping => inner.lanes.handle(),
        _ => inner.lanes.others(),
    };
    let (inner, session) = (inner.clone(), session.clone());
    place.spawn(async move {
        // Until its answer is on its way: who brings the coordinator all locks has the data plane asked behind it.
        let mut restored = None;
        let result: Result<NodeAnswer, Errno> = if is_full {
            Err(Errno::EAGAIN)
        } else if matches!(call, NodeCall::Ns(_)) {
            // Never dropped half-way: the question comes again, and then has its answer.
            inner.serve(&session, call).await
        } else {
            let serving = async {
                if !matches!(call, NodeCall::Lock(_)) {
                    return inner.serve(&session, call).await;
                }
                let ask = || inner.serve(&session, call.clone());
                let (result, shared) = inner.leases.with_locks(ask).await;
                restored = Some(shared);
                result
            };
            tokio::select! {
                result = serving => result,
                () = session.dead.cancelled() => return,
            }
        };
        let to = &session.lanes[lane];
        let _ = to.out.send(ToData::Answer(id, result)).await;
        drop(restored);
        to.serving.fetch_sub(1, Ordering::Relaxed);
    });
}

async fn write_lane(
    session: Arc<Session>,
    lane: usize,
    write: Writer,
    mut outgoing: mpsc::Receiver<ToData>,
    mut released: mpsc::UnboundedReceiver<u32>,
) {
    let mut batch: Vec<u8> = Vec::new();
    loop {
        let first = tokio::select! {
            Some(slot) = released.recv() => ToData::ReleaseSlot(slot),
            Some(message) = outgoing.recv() => message,
            () = session.dead.cancelled() => return,
            else => return,
        };
        batch.clear();
        put_frame(&session, lane, &mut batch, first);
        while batch.len() < WRITE_BATCH {
            if let Ok(slot) = released.try_recv() {
                put_frame(&session, lane, &mut batch, ToData::ReleaseSlot(slot));
            } else if let Ok(message) = outgoing.try_recv() {
                put_frame(&session, lane, &mut batch, message);
            } else {
                break;
            }
        }
        if let Err(error) = write.write_all(&batch).await {
            debug!(target: "control", lane, %error, "cannot write to the data plane");
            session.dead.cancel();
            return;
        }
        if batch.capacity() > SLOT_BYTES {
            batch = Vec::new();
        }
    }
}

/// Appends one frame. A message that is too long becomes an error for who waits for it.
fn put_frame(session: &Session, lane: usize, batch: &mut Vec<u8>, message: ToData) {
    if encode(batch, &message) {
        return;
    }
    warn!(target: "control", "a message to the data plane is longer than {FRAME_MAX} bytes");
    match message {
        ToData::Call(id, _) => session.on_answer(lane, id, Err(Errno::EOVERFLOW)),
        ToData::Answer(id, _) => {
            encode(batch, &ToData::Answer(id, Err(Errno::EOVERFLOW)));
        }
        ToData::ReleaseSlot(_) => {}
    }
}

fn encode(batch: &mut Vec<u8>, message: &ToData) -> bool {
    let start = batch.len();
    batch.extend_from_slice(&[0; 4]);
    let is_whole = postcard::to_extend(message, Behind(batch)).is_ok();
    let len = batch.len() - start - 4;
    match u32::try_from(len) {
        Ok(head) if is_whole && len <= FRAME_MAX => {
            batch[start..start + 4].copy_from_slice(&head.to_le_bytes());
            true
        }
        _ => {
            batch.truncate(start);
            false
        }
    }
}

/// Takes bytes in behind those that are there.
struct Behind<'b>(&'b mut Vec<u8>);

impl Extend<u8> for Behind<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

/// Locks; a panic elsewhere while the lock was held does not make what it guards wrong here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
