//! Answering other nodes, from what is on this one.

mod bounds;

pub use bounds::CORE_BYTES;
pub(crate) use bounds::SMALL;
#[cfg(test)]
pub(crate) use bounds::coming_bytes;

use crate::cluster::{Cluster, Peer};
use crate::frame::{FrameError, HEADER_BYTES, Header, Kind, Status};
use crate::handshake::{self, Identity};
use crate::stream::{Broken, Held, Incoming, Out, Outbox, hang_up};
use async_lock::{Semaphore, SemaphoreGuardArc};
use bounds::{Coming, PARTS, Room, memory_for, share_of};
use fastcache_reactor::{Fd, Instant, IoBuf, PAGE, Task, now, sleep, spawn, timeout};
use fastcache_types::{BLOCK, ChunkKey};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Requests of one connection in service; the next is read when one of them is answered.
const SERVING_MAX: usize = 64;
/// Chunks that one connection may have fetched from the cloud, or taken over, at once; further ones are refused, and who asks
/// fetches them, or keeps them.
const BRINGING_MAX: usize = 32;
/// Replicas of one connection of which only parts came; a further one takes the place of the one that waits longest. A core of
/// another node gives two at once.
const PARTIAL_MAX: usize = 4;
/// How long one waits for its next part: as long as who gives it waits for an answer.
const PARTIAL_TIME: Duration = Duration::from_secs(10);
/// How long the socket may take for a part; then the connection ends, and who asked asks somebody else.
const SEND_TIME: Duration = Duration::from_secs(2);
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
