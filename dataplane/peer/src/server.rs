//! Answering other nodes, from what is on this one.

use crate::client::keep_alive;
use crate::cluster::{Cluster, Peer};
use crate::frame::{FrameError, HEADER_BYTES, Header, Kind, PAYLOAD_MAX, Status};
use crate::handshake::{self, Identity};
use crate::stream::{Broken, Held, Incoming, Out, Outbox, hang_up};
use async_lock::{Semaphore, SemaphoreGuardArc};
use fastcache_reactor::{Fd, Instant, IoBuf, PAGE, Remote, Task, now, pool, sleep, spawn, timeout};
use fastcache_types::{BLOCK, CHUNK_MAX, ChunkKey};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long the handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Connections at once; more are closed at once. A cluster of 1000 nodes with 16 cores each has 16,000 of them.
const CONNECTIONS_MAX: u64 = 20_000;
/// Requests of one connection in service; the next is read when one of them is answered.
const SERVING_MAX: usize = 64;
/// Chunks that one connection may have fetched from the cloud, or taken over, at once; further ones are refused, and who asks
/// fetches them, or keeps them.
const BRINGING_MAX: usize = 32;
/// Bytes of replicas that come in on one core at once; further ones are refused.
const REPLICAS_BYTES: usize = 8 * CHUNK_MAX;
/// Replicas of one connection of which only parts came; a further one takes the place of the one that waits longest. A core of
/// another node gives two at once.
const PARTIAL_MAX: usize = 4;
/// How long one waits for its next part: as long as who gives it waits for an answer.
const PARTIAL_TIME: Duration = Duration::from_secs(10);
/// Bytes of one core that are read for others, or wait to be sent to them, in parts of [`PAYLOAD_MAX`]: few enough to leave
/// most of the core's buffers to its own programs.
const PARTS_MAX: usize = 24;
/// Those of one node: as many reads as a device needs at once to be fast (1 MiB each: 1.1 GB/s with 4, 2.0 with 16), and others
/// have theirs while it stands still.
const PARTS_SHARE: usize = 12;
/// A part up to this length is small: it does not wait for large ones.
pub(crate) const SMALL: usize = 64 << 10;
/// Small parts of one core at once.
const SMALL_MAX: usize = 64;
/// Those of one node.
const SMALL_SHARE: usize = 32;
/// How long the socket may take for a part; then the connection ends, and who asked asks somebody else.
const SEND_TIME: Duration = Duration::from_secs(2);
/// What the server of one core takes for chunks, bytes: parts that go out, and replicas that come in.
pub const CORE_BYTES: u64 =
    (PARTS_MAX * PAYLOAD_MAX + SMALL_MAX * (SMALL + PAGE) + REPLICAS_BYTES) as u64;
/// Pause after a failed accept, so that a lasting error does not burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A part of a chunk that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Bytes of the whole chunk.
    pub total: usize,
}

/// The chunks of this node.
pub trait Chunks: Clone + Send + 'static {
    /// Bytes of a chunk, when this version of it is here.
    fn find(&self, key: ChunkKey) -> Option<usize>;

    /// Fetches a chunk from the next tier and keeps it; its bytes, when it is here then. Bounded in time.
    fn bring(&self, key: ChunkKey) -> impl Future<Output = Option<usize>>;

    /// Keeps a chunk of `len` bytes (in `buf`, padded with zeros to whole blocks) for the node `owner` until it is released, and
    /// returns when it is on stable storage. Comes to its end also when nobody waits for the answer any more.
    ///
    /// The error is `Busy` (no room, or something else in its place) or `Failed`.
    fn put(
        &self,
        owner: &str,
        key: ChunkKey,
        len: usize,
        buf: IoBuf,
    ) -> impl Future<Output = Result<(), Status>>;

    /// Keeps a replica that may be here until it is released; its bytes, when it is on stable storage here.
    ///
    /// The error is `NotFound`, or `Busy` where it would not be taken in either.
    fn hold(&self, owner: &str, key: ChunkKey) -> Result<usize, Status>;

    /// Makes a replica that is kept for `owner` this node's own; its bytes, when it is on stable storage as that. Bounded in
    /// time. Comes to its end also when nobody waits for the answer any more.
    ///
    /// The error is `NotFound` or `Busy`.
    fn take(&self, owner: &str, key: ChunkKey) -> impl Future<Output = Result<usize, Status>>;

    /// A replica need not be kept any more.
    fn release(&self, owner: &str, key: ChunkKey);

    /// Fills `buf` (whole blocks) with the verified bytes of a chunk from `offset` (whole blocks) on; zeros past its end.
    ///
    /// The error is `NotFound` or `Failed`.
    fn read(
        &self,
        key: ChunkKey,
        offset: usize,
        buf: IoBuf,
    ) -> impl Future<Output = (Result<Part, Status>, IoBuf)>;
}

/// Parts that may be read, or wait to be sent, at the same time.
struct Room {
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

impl Room {
    fn new(large: usize, small: usize) -> Arc<Room> {
        Arc::new(Room {
            large: Arc::new(Semaphore::new(large)),
            small: Arc::new(Semaphore::new(small)),
        })
    }

    async fn take(&self, len: usize) -> SemaphoreGuardArc {
        match len <= SMALL {
            true => self.small.acquire_arc().await,
            false => self.large.acquire_arc().await,
        }
    }
}

thread_local! {
    /// Parts that this core may still read for others.
    static PARTS: Arc<Room> = Room::new(PARTS_MAX, SMALL_MAX);
    /// The same for one node, by its id.
    static SHARES: RefCell<HashMap<String, Weak<Room>>> = RefCell::default();
    /// Bytes of the replicas that come in on this core.
    static COMING: Cell<usize> = const { Cell::new(0) };
}

/// What this core has taken for replicas that come in.
#[cfg(test)]
pub(crate) fn coming_bytes() -> usize {
    COMING.get()
}

/// What all connections of a node on this core may hold of [`PARTS`].
fn share_of(node: &str) -> Arc<Room> {
    SHARES.with_borrow_mut(|shares| {
        if let Some(share) = shares.get(node).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Room::new(PARTS_SHARE, SMALL_SHARE);
        shares.insert(node.to_owned(), Arc::downgrade(&share));
        share
    })
}

/// Bytes of [`COMING`], given back when dropped. Stays on its core, as [`Serving`] does.
struct Coming(usize);

impl Coming {
    fn take(bytes: usize) -> Option<Coming> {
        let all = COMING.get() + bytes;
        (all <= REPLICAS_BYTES).then(|| {
            COMING.set(all);
            Coming(bytes)
        })
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        COMING.set(COMING.get() - self.0);
    }
}

/// The core for a connection that comes in on this processor, as a place in `cores`, which are (processor, connections that it
/// serves): the one of that processor, unless it serves two more than another one; then one that serves the fewest.
fn core_for(comes_in: Option<usize>, cores: &[(usize, usize)]) -> Option<usize> {
    let fewest = cores.iter().map(|&(_, n)| n).min()?;
    let is_own = |&(cpu, n): &(usize, usize)| Some(cpu) == comes_in && n <= fewest + 1;
    let own = cores.iter().position(is_own);
    own.or_else(|| cores.iter().position(|&(_, n)| n == fewest))
}

/// Accepts connections for ever, on the core that calls, and serves them on all of `cores`: each where the kernel has its
/// packets, so that a request wakes no other processor, as far as that leaves all about as many.
pub async fn listen<C: Chunks>(cluster: Arc<Cluster>, listener: Fd, cores: Vec<Remote>, chunks: C) {
    // Each connection has a clone of its core's mark.
    let cores: Vec<(Remote, Arc<()>)> = cores.into_iter().map(|c| (c, Arc::default())).collect();
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(target: "peer", %error, "accept failed");
                fastcache_reactor::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let open = cluster.served.connections.fetch_add(1, Ordering::Relaxed);
        let served = Counted(Arc::clone(&cluster));
        if open >= CONNECTIONS_MAX {
            tracing::warn!(target: "peer", open, "too many connections: one is closed at once");
            continue;
        }
        keep_alive(&stream);
        let chunks = chunks.clone();
        let comes_in = rustix::net::sockopt::socket_incoming_cpu(stream.as_fd());
        let comes_in = comes_in.ok().and_then(|cpu| usize::try_from(cpu).ok());
        let serving = |(core, mark): &(Remote, Arc<()>)| (core.core(), Arc::strong_count(mark));
        let all: Vec<_> = cores.iter().map(serving).collect();
        if let Some((core, mark)) = core_for(comes_in, &all).and_then(|at| cores.get(at)) {
            let mark = Arc::clone(mark);
            core.spawn(move || async move {
                serve(&served.0, stream, chunks).await;
                drop((served, mark));
            });
        }
    }
}

/// A connection that is open.
struct Counted(Arc<Cluster>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.served.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn name_of(stream: &Fd) -> String {
    match rustix::net::getpeername(stream.as_fd()) {
        Ok(Some(address)) => std::net::SocketAddr::try_from(address)
            .map_or_else(|_| "?".to_owned(), |a| a.to_string()),
        _ => "?".to_owned(),
    }
}

/// One connection, from its handshake to its end.
pub(crate) async fn serve<C: Chunks>(cluster: &Arc<Cluster>, stream: Fd, chunks: C) {
    let from = name_of(&stream);
    let mut incoming = Incoming::new(stream.clone());
    let me = cluster.me();
    let shaken = timeout(
        HANDSHAKE_TIME,
        handshake::accept(&stream, &mut incoming, &cluster.token, me.as_ref()),
    );
    let other = match shaken.await {
        Ok(Ok(other)) => other,
        Ok(Err(error)) => {
            cluster.served.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "peer", from, %error, "a connection was refused");
            hang_up(&stream);
            return;
        }
        Err(_) => {
            cluster.served.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "peer", from, "a connection did not say who it is: closed");
            hang_up(&stream);
            return;
        }
    };
    tracing::info!(target: "peer", node = other.id, from, "a node connected");
    let connection = Rc::new(Serving {
        cluster: Arc::clone(cluster),
        share: share_of(&other.id),
        other,
        chunks,
        outbox: Arc::default(),
        tasks: RefCell::default(),
        turns: Arc::new(Semaphore::new(SERVING_MAX)),
        bringing: Arc::new(Semaphore::new(BRINGING_MAX)),
        replicas: RefCell::default(),
        is_sweeping: Cell::new(false),
    });
    let (writer, sends) = (Rc::clone(&connection), stream.clone());
    let _writer = spawn(async move {
        if let Err(error) = writer.outbox.run(&sends, Some(SEND_TIME)).await {
            tracing::debug!(target: "peer", %error, "answers cannot be sent");
        }
        // What answers hold goes at once: who reads the requests may wait for it, and for that alone.
        writer.outbox.close();
        writer.tasks.take();
        hang_up(&sends);
    });
    let ended = connection.receive(&mut incoming).await;
    if let Err(error) = ended {
        cluster.served.broken.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(target: "peer", node = connection.other.id, from, %error, "the connection of a node broke");
    } else {
        tracing::info!(target: "peer", node = connection.other.id, from, "a node closed its connection");
    }
    connection.outbox.close();
    connection.tasks.take();
    connection.replicas.take();
    hang_up(&stream);
}

struct Serving<C> {
    cluster: Arc<Cluster>,
    other: Identity,
    chunks: C,
    outbox: Arc<Outbox>,
    /// What is in service, by its request; dropped when it is cancelled.
    tasks: RefCell<HashMap<u64, Task<()>>>,
    turns: Arc<Semaphore>,
    share: Arc<Room>,
    bringing: Arc<Semaphore>,
    /// Those of which parts came.
    replicas: RefCell<HashMap<ChunkKey, Replica>>,
    /// Somebody looks for those that nobody goes on with.
    is_sweeping: Cell<bool>,
}

/// A replica that comes in.
struct Replica {
    buf: IoBuf,
    total: usize,
    /// Bytes of it that came.
    got: usize,
    /// When the last part came.
    since: Instant,
    room: Coming,
}

impl<C: Chunks> Serving<C> {
    async fn receive(self: &Rc<Self>, incoming: &mut Incoming) -> Result<(), Broken> {
        while let Some(header) = incoming.header().await? {
            if self.outbox.is_closed() {
                return Err(Broken::stalled());
            }
            match header.kind {
                Kind::Has => {
                    let turn = self.turns.acquire_arc().await;
                    let total = self.chunks.find(header.key);
                    self.say(&header, total.ok_or(Status::NotFound), Some(Box::new(turn)));
                }
                Kind::Get => {
                    let turn = self.turns.acquire_arc().await;
                    let this = Rc::clone(self);
                    self.serve(
                        header,
                        async move { this.get(&header, Box::new(turn)).await },
                    )?;
                }
                Kind::Bring => match self.bringing.try_acquire_arc() {
                    Some(turn) => {
                        let this = Rc::clone(self);
                        let bring = async move {
                            let total = this.chunks.bring(header.key).await;
                            let held: Held = Some(Box::new(turn));
                            this.say(&header, total.ok_or(Status::NotFound), held);
                        };
                        self.serve(header, bring)?;
                    }
                    None => self.say(&header, Err(Status::Busy), None),
                },
                Kind::Put => self.part(incoming, header).await?,
                Kind::Hold => {
                    let total = self.chunks.hold(&self.other.id, header.key);
                    self.say(&header, total, None);
                }
                Kind::Take => match self.bringing.try_acquire_arc() {
                    Some(turn) => {
                        let this = Rc::clone(self);
                        spawn(async move {
                            let taken = this.chunks.take(&this.other.id, header.key).await;
                            this.say(&header, taken, Some(Box::new(turn)));
                        })
                        .detach();
                    }
                    None => self.say(&header, Err(Status::Busy), None),
                },
                Kind::Release => {
                    self.replicas.borrow_mut().remove(&header.key);
                    self.chunks.release(&self.other.id, header.key);
                }
                Kind::Cancel => {
                    let task = self.tasks.borrow_mut().remove(&header.request);
                    drop(task);
                }
                _ => return Err(FrameError::Unknown.into()),
            }
        }
        Ok(())
    }

    /// Takes a part of a replica out of the stream. The last one is answered when the device has the whole.
    async fn part(self: &Rc<Self>, incoming: &mut Incoming, header: Header) -> Result<(), Broken> {
        let turn = self.turns.acquire_arc().await;
        let (offset, total) = (header.offset as usize, header.total as usize);
        let known = self.replicas.borrow_mut().remove(&header.key);
        let replica = match known {
            Some(replica) if offset > 0 && replica.got == offset && replica.total == total => {
                Some(replica)
            }
            // What came of it before is of no use.
            known if offset == 0 => {
                drop(known);
                self.begin(total)
            }
            // Given up meanwhile.
            _ => None,
        };
        let Some(mut replica) = replica else {
            incoming.skip(&header).await?;
            self.say(&header, Err(Status::Busy), Some(Box::new(turn)));
            return Ok(());
        };
        let payload = header.payload as usize;
        let mut part = replica.buf.split_off(offset);
        let rest = part.split_off(payload);
        // Who stands still in the middle of it must not keep the room.
        let came = timeout(PARTIAL_TIME, incoming.payload(&header, part)).await;
        let mut part = came.unwrap_or_else(|_| Err(Broken::stalled()))?;
        crate::stream::join(&mut part, rest);
        crate::stream::join(&mut replica.buf, part);
        replica.got = offset + payload;
        if replica.got < total {
            replica.since = now();
            self.replicas.borrow_mut().insert(header.key, replica);
            self.see_to_abandoned();
            self.say(&header, Ok(total), Some(Box::new(turn)));
            return Ok(());
        }
        // Neither a cancellation nor the end of the connection stops it: half of it may be done.
        let this = Rc::clone(self);
        spawn(async move {
            let Replica { buf, room, .. } = replica;
            let kept = this.chunks.put(&this.other.id, header.key, total, buf);
            let kept = kept.await.map(|()| total);
            drop(room);
            this.say(&header, kept, Some(Box::new(turn)));
        })
        .detach();
        Ok(())
    }

    /// Room for a replica of which nothing came yet. One that was given up makes way for it.
    fn begin(&self, total: usize) -> Option<Replica> {
        let mut replicas = self.replicas.borrow_mut();
        if replicas.len() >= PARTIAL_MAX {
            let oldest = replicas.iter().min_by_key(|(_, replica)| replica.since);
            let oldest = oldest.map(|(key, _)| *key);
            if let Some(key) = oldest {
                replicas.remove(&key);
            }
        }
        let len = total.next_multiple_of(BLOCK);
        Coming::take(len).map(|room| Replica {
            buf: IoBuf::alloc(len),
            total,
            got: 0,
            since: now(),
            room,
        })
    }

    /// Drops replicas of which no part comes any more.
    fn see_to_abandoned(self: &Rc<Self>) {
        if self.is_sweeping.replace(true) {
            return;
        }
        let this = Rc::downgrade(self);
        spawn(async move {
            loop {
                sleep(PARTIAL_TIME).await;
                let Some(this) = this.upgrade() else { return };
                let mut replicas = this.replicas.borrow_mut();
                replicas.retain(|_, r| r.since.elapsed() < PARTIAL_TIME);
                if replicas.is_empty() {
                    this.is_sweeping.set(false);
                    return;
                }
            }
        })
        .detach();
    }

    /// Serves a request in a task of its own, which its cancellation ends, and its deadline: who stands still cannot cancel.
    fn serve(
        self: &Rc<Self>,
        header: Header,
        work: impl Future<Output = ()> + 'static,
    ) -> Result<(), FrameError> {
        if self.tasks.borrow().contains_key(&header.request) {
            return Err(FrameError::Bounds("the number of a request"));
        }
        let this = Rc::clone(self);
        let limit = Duration::from_millis(u64::from(header.timeout_ms));
        let task = spawn(async move {
            match limit.is_zero() {
                true => work.await,
                false => {
                    let _ = timeout(limit, work).await;
                }
            }
            // Itself, which is at its end.
            let own = this.tasks.borrow_mut().remove(&header.request);
            if let Some(own) = own {
                own.detach();
            }
        });
        self.tasks.borrow_mut().insert(header.request, task);
        Ok(())
    }

    /// An answer without bytes.
    fn say(&self, to: &Header, result: Result<usize, Status>, held: Held) {
        let (status, total) = match result {
            Ok(total) => (Status::Ok, total),
            Err(status) => (status, 0),
        };
        if status == Status::NotFound {
            self.cluster.served.absent.fetch_add(1, Ordering::Relaxed);
        }
        let header = Header {
            status,
            key: to.key,
            offset: to.offset,
            total: u32::try_from(total).unwrap_or(0),
            ..Header::new(Kind::Answer, to.request)
        };
        self.outbox.push(Out::Header(header.encode()), held);
    }

    async fn get(&self, asked: &Header, turn: Box<SemaphoreGuardArc>) {
        let Some(total) = self.chunks.find(asked.key) else {
            self.say(asked, Err(Status::NotFound), Some(turn));
            return;
        };
        let (offset, length) = (asked.offset as usize, asked.length as usize);
        let length = length.min(total.saturating_sub(offset));
        if length == 0 {
            self.say(asked, Ok(total), Some(turn));
            return;
        }
        let own = self.share.take(length).await;
        let room = PARTS.with(Arc::clone).take(length).await;
        let span = length.next_multiple_of(BLOCK);
        // The header goes right in front of the bytes, which start on a page, so that both leave in one write.
        let mut front = memory_for(PAGE + span);
        let mut bytes = front.split_off(PAGE);
        let rest = bytes.split_off(span);
        let (result, mut bytes) = self.chunks.read(asked.key, offset, bytes).await;
        drop(rest);
        match result {
            Ok(part) if part.total == total => {}
            Ok(_) => return self.say(asked, Err(Status::Failed), Some(turn)),
            Err(status) => return self.say(asked, Err(status), Some(turn)),
        }
        drop(bytes.split_off(length));
        let header = Header {
            key: asked.key,
            offset: asked.offset,
            total: u32::try_from(total).unwrap_or(0),
            ..Header::new(Kind::Answer, asked.request).with_payload(&bytes)
        };
        let mut frame = front.split_off(PAGE - HEADER_BYTES);
        frame.copy_from_slice(&header.encode());
        crate::stream::join(&mut frame, bytes);
        let served = &self.cluster.served;
        served.parts.fetch_add(1, Ordering::Relaxed);
        served.bytes.fetch_add(length as u64, Ordering::Relaxed);
        if let Some(peer) = self.peer() {
            peer.counters
                .out_bytes
                .fetch_add(length as u64, Ordering::Relaxed);
        }
        self.outbox
            .push(Out::Whole(frame), Some(Box::new((turn, own, room))));
    }

    /// The node in the list, when it is in it.
    fn peer(&self) -> Option<Arc<Peer>> {
        let peers = self.cluster.peers();
        peers.iter().find(|p| p.id == self.other.id).cloned()
    }
}

/// Memory for a part and its header: of the core's registered buffers, which are on large pages, unless it is small.
fn memory_for(len: usize) -> IoBuf {
    debug_assert!(len <= PAGE + PAYLOAD_MAX);
    if len <= PAGE + SMALL {
        return IoBuf::alloc(len);
    }
    match pool().try_get() {
        Some(mut buf) if buf.len() >= len && buf.is_aligned() => {
            drop(buf.split_off(len));
            buf
        }
        _ => IoBuf::alloc(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_served_where_they_come_in_while_that_leaves_about_as_many_to_each() {
        assert_eq!(core_for(Some(0), &[]), None);
        assert_eq!(core_for(None, &[(0, 2), (1, 1)]), Some(1));
        assert_eq!(core_for(Some(3), &[(2, 1), (3, 2)]), Some(1));
        assert_eq!(core_for(Some(3), &[(2, 1), (3, 3)]), Some(0));
        assert_eq!(
            core_for(Some(7), &[(2, 1), (3, 0)]),
            Some(1),
            "not a core of this node"
        );
        // A card with one queue: all come in on one processor.
        let mut cores = [(0, 0), (1, 0), (2, 0)];
        for _ in 0..30 {
            let at = core_for(Some(0), &cores).unwrap();
            cores[at].1 += 1;
        }
        let most = cores.iter().map(|&(_, n)| n).max();
        assert!(most <= Some(12), "{cores:?}");
    }
}
