//! Where a chunk comes from that is not here: other nodes in the order of its homes; then the cloud, through its first home,
//! which fetches it once for everybody, or through the agent; and last of all any other node.
//!
//! Each is asked when the one before has nothing or takes longer than usual (a hedge); the first that has the bytes wins, and
//! the others are told that nobody waits for them any more.

use crate::{FileSystem, Result, count, lock, lock_read};
use event_listener::EventListener;
use fastcache_api::control::{PeerNode, PeersStats};
use fastcache_api::{ChunkKey, Errno};
use fastcache_chunkstore::{ChunkBody, StoreError};
use fastcache_reactor::{Instant, IoBuf, now, sleep, spawn, timeout};
use fastcache_types::{BLOCK, CHUNK_MAX, ChunkId};
use futures_channel::oneshot;
use futures_util::future::{Either, LocalBoxFuture, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A source that is asked because another one takes long needs a slot of its own: so many stay free for others.
const SLOTS_SPARED: usize = 8;

/// Least patience with a node for what nobody waits for yet: a hedge may cost a read of the cloud.
const AHEAD_PATIENCE: Duration = Duration::from_millis(200);
/// How long the first home of a chunk may take to fetch it from the cloud before it is looked whether it is there at all.
const BRING_PATIENCE: Duration = Duration::from_millis(500);
/// How long it may take when it is: the cloud is read once for everybody, and a slow one all the more.
const BRING_MAX: Duration = Duration::from_secs(10);
/// How long a chunk that is not in the cloud is tried for while nodes that may have it cannot be reached.
const UNREACHABLE_MAX: Duration = Duration::from_secs(10);
/// First pause between two tries; doubled after each.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const UNREACHABLE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why another node gave no chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerMiss {
    /// It does not have it.
    Absent,
    /// It could not be asked, or did not answer.
    Failed,
}

/// Another node, to be asked for chunks.
pub trait PeerSource {
    /// Its id.
    fn name(&self) -> &str;

    /// How long it may take before somebody else is asked, too.
    fn patience(&self) -> Duration;

    /// Has it fetch a chunk from the cloud and keep it, for everybody. Bounded in time.
    fn bring(&self, key: ChunkKey) -> LocalBoxFuture<'_, std::result::Result<(), PeerMiss>>;

    /// Whether it answers at all. Bounded in time.
    fn answers(&self, key: ChunkKey) -> LocalBoxFuture<'_, bool>;

    /// The whole chunk into `buf`, which has room for the largest: the buffer, and how many bytes there are. `expected` is
    /// how many there should be. Bounded in time. What comes is verified as it was sent.
    fn fetch(
        &self,
        key: ChunkKey,
        expected: usize,
        buf: IoBuf,
    ) -> LocalBoxFuture<'_, std::result::Result<(IoBuf, usize), PeerMiss>>;

    /// Fills `buf` (whole blocks) with the bytes of a chunk from `offset` (whole blocks) on; zeros past its end. Bounded in time.
    /// What comes is verified as it was sent.
    fn part(
        &self,
        key: ChunkKey,
        offset: usize,
        buf: IoBuf,
    ) -> LocalBoxFuture<'_, std::result::Result<IoBuf, PeerMiss>>;
}

/// The other nodes.
pub trait PeerTier: Send + Sync {
    /// Who this node is and which others there are, as the agent says.
    fn set(&self, me: String, file_system: u64, peers: &[PeerNode]);

    /// The homes of a chunk but for this node, in the order in which they are to be asked.
    fn homes(&self, id: ChunkId) -> Vec<Box<dyn PeerSource>>;

    /// Who fetches a chunk from the cloud for everybody: its first home. `None` when that is this node.
    fn keeper(&self, id: ChunkId) -> Option<Box<dyn PeerSource>>;

    /// Asks all nodes but the homes whether they have a chunk, and answers one that does. `Failed` when none does, but not
    /// all could be asked. Bounded in time.
    fn search(
        &self,
        key: ChunkKey,
    ) -> LocalBoxFuture<'_, std::result::Result<Box<dyn PeerSource>, PeerMiss>>;

    /// Whether a node is one of the others now.
    fn is_live(&self, id: &str) -> bool;

    /// These versions were committed and are not in the cloud.
    fn sealed(&self, keys: Vec<ChunkKey>);

    /// These versions are in the cloud, or no layout names them any more.
    fn settled(&self, keys: &[ChunkKey]);

    /// How many other nodes have a version of a chunk on their devices, by what they said over connections that are up still.
    fn copies(&self, key: ChunkKey) -> usize;

    /// Somebody waits for copies of these versions: they come before others, and before a pause after a failure is over.
    fn hurry(&self, keys: &[ChunkKey]);

    /// Has one of the nodes that have a copy, each as likely as the others, take a chunk over: it uploads it and copies it anew.
    /// False when none did. When one did, this node confirms no copies of it any more, and releases none. Bounded in time.
    fn give(&self, key: ChunkKey) -> LocalBoxFuture<'_, bool>;

    /// Hears of the next change of what [`PeerTier::copies`] says, or of what is in the cloud.
    fn copies_changed(&self) -> EventListener;

    /// Counters.
    fn stats(&self) -> PeersStats;
}

/// One of those that are asked.
enum Source {
    Peer(Box<dyn PeerSource>),
    /// A node that is to fetch it first.
    Keeper(Box<dyn PeerSource>),
    Agent,
}

type Fetched<E> = std::result::Result<(IoBuf, usize), E>;

/// Why one of them gave nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Miss {
    /// It has nothing.
    Absent,
    /// A node that may have it could not be asked.
    Unreachable,
    /// The agent failed.
    Agent(Errno),
}

impl From<PeerMiss> for Miss {
    fn from(miss: PeerMiss) -> Miss {
        match miss {
            PeerMiss::Absent => Miss::Absent,
            PeerMiss::Failed => Miss::Unreachable,
        }
    }
}

/// Has a node fetch a chunk from the cloud for everybody, and waits for it as long as it answers.
async fn has_brought(peer: &dyn PeerSource, key: ChunkKey) -> std::result::Result<(), Miss> {
    let stands_still = std::pin::pin!(async {
        let began = now();
        while began.elapsed() < BRING_MAX {
            sleep(BRING_PATIENCE).await;
            if !peer.answers(key).await {
                break;
            }
        }
    });
    match select(peer.bring(key), stands_still).await {
        Either::Left((brought, _)) => brought.map_err(Miss::from),
        Either::Right(((), _)) => Err(Miss::Unreachable),
    }
}

impl FileSystem {
    /// Brings the bytes of a chunk from the first tier that has them; padded with zeros to whole blocks.
    /// `is_ahead`: nobody waited for it when it was begun. `homes_lack_it`: they said so just now.
    pub(crate) async fn fetch(
        &self,
        key: ChunkKey,
        is_ahead: bool,
        mut homes_lack_it: bool,
    ) -> Result<(IoBuf, usize)> {
        let until = now() + UNREACHABLE_MAX;
        let mut pause = UNREACHABLE_PAUSE;
        loop {
            let tier = self.inner.peers.get();
            let homes = tier.map(|tier| tier.homes(key.id())).unwrap_or_default();
            let Some(tier) = tier.filter(|_| !homes.is_empty()) else {
                match self.fetch_from_agent(key).await {
                    // The list of nodes is another one for the agent, which leaves it to them to say so.
                    Err(Errno::ENOENT) if self.may_be_elsewhere(key) && now() + pause < until => {
                        sleep(pause).await;
                        pause = UNREACHABLE_PAUSE_MAX.min(pause * 2);
                        continue;
                    }
                    Err(Errno::ENOENT) => return Err(Errno::EIO),
                    fetched => return fetched,
                }
            };
            let mut sources: VecDeque<Source> = homes
                .into_iter()
                .filter(|_| !homes_lack_it)
                .map(Source::Peer)
                .collect();
            homes_lack_it = false;
            sources.extend(tier.keeper(key.id()).map(Source::Keeper));
            sources.push_back(Source::Agent);
            let miss = match self.race(key, sources, is_ahead).await {
                Ok(fetched) => return Ok(fetched),
                Err(miss) => miss,
            };
            // Neither its homes nor the cloud: whoever wrote it may have it still.
            let found = match tier.search(key).await {
                Ok(source) => self.fetch_from_peer(&*source, key).await,
                Err(miss) => Err(miss.into()),
            };
            let is_unreachable = match (found, miss) {
                (Ok(fetched), _) => return Ok(fetched),
                (_, Miss::Agent(error)) => return Err(error),
                (found, miss) => {
                    miss == Miss::Unreachable || matches!(found, Err(Miss::Unreachable))
                }
            };
            if !(is_unreachable || self.may_be_elsewhere(key)) || now() + pause >= until {
                return Err(Errno::EIO);
            }
            sleep(pause).await;
            pause = UNREACHABLE_PAUSE_MAX.min(pause * 2);
        }
    }

    /// Whether a node may have a chunk that this one does not know yet, or that does not listen: then it is in the cloud before
    /// long. Not when the file may have other contents by now, nor when it has: a commit that was refused says so.
    fn may_be_elsewhere(&self, key: ChunkKey) -> bool {
        self.is_shared()
            && self.inner.inodes.get(key.ino).is_some_and(|inode| {
                let state = lock(&inode.state);
                let chunk_size = state.attr.as_ref().map_or(0, |attr| attr.chunk_size);
                let named = state.layout.as_ref().filter(|_| chunk_size > 0);
                // Who writes it knows its contents, whatever else of it was revoked.
                !state.is_conflict
                    && (self.is_trusted(&state) || self.may_write(&state))
                    && named
                        .and_then(|layout| layout.chunk(key.index, chunk_size))
                        .is_some_and(|(version, _)| version == key.version)
            })
    }

    /// Asks one source after the other, each when the one before has failed or takes long. One that fails after its time was
    /// over changes nothing: the next one was asked for that, and has a time of its own.
    async fn race(
        &self,
        key: ChunkKey,
        mut sources: VecDeque<Source>,
        is_ahead: bool,
    ) -> Fetched<Miss> {
        let least = match is_ahead {
            true => AHEAD_PATIENCE,
            false => Duration::ZERO,
        };
        let mut running = FuturesUnordered::new();
        let mut miss = Miss::Absent;
        let mut next_at: Option<Instant> = None;
        let mut newest = 0;
        loop {
            if running.is_empty() || next_at.is_some_and(|at| now() >= at) {
                let is_hedge = !running.is_empty();
                let slots = lock_read(&self.inner.arena).free();
                if is_hedge && slots <= SLOTS_SPARED {
                    next_at = None;
                } else if let Some(source) = sources.pop_front() {
                    if is_hedge {
                        count(&self.inner.counters.peer_hedges, 1);
                    }
                    next_at = match &source {
                        Source::Peer(peer) => Some(now() + peer.patience().max(least)),
                        // It gives up by itself.
                        Source::Keeper(_) | Source::Agent => None,
                    };
                    newest += 1;
                    let number = newest;
                    running.push(async move { (number, self.ask(source, key).await) });
                } else if running.is_empty() {
                    return Err(miss);
                } else {
                    next_at = None;
                }
            }
            let left = next_at.map(|at| at.duration_since(now()));
            let done = match left {
                Some(left) => timeout(left, running.next()).await.ok(),
                None => Some(running.next().await),
            };
            match done {
                Some(Some((_, Ok(fetched)))) => return Ok(fetched),
                Some(Some((number, Err(why)))) => {
                    // What the agent says counts more than that a node could not be asked, and that more than nothing.
                    if !matches!((miss, why), (Miss::Agent(_), _) | (_, Miss::Absent)) {
                        miss = why;
                    }
                    if number == newest {
                        // The next one at once.
                        next_at = Some(now());
                    }
                }
                // None is running any more, or one takes long.
                Some(None) | None => {}
            }
        }
    }

    async fn ask(&self, source: Source, key: ChunkKey) -> Fetched<Miss> {
        match source {
            Source::Peer(peer) => self.fetch_from_peer(&*peer, key).await,
            Source::Keeper(peer) => {
                has_brought(&*peer, key).await?;
                self.fetch_from_peer(&*peer, key).await
            }
            Source::Agent => {
                // Goes on when nobody waits: the agent writes into the slot until it has answered.
                let (send, receive) = oneshot::channel();
                let fs = self.clone();
                spawn(async move {
                    let _ = send.send(fs.fetch_from_agent(key).await);
                })
                .detach();
                match receive.await.unwrap_or(Err(Errno::EIO)) {
                    Err(Errno::ENOENT) => Err(Miss::Absent),
                    fetched => fetched.map_err(Miss::Agent),
                }
            }
        }
    }

    async fn fetch_from_peer(&self, peer: &dyn PeerSource, key: ChunkKey) -> Fetched<Miss> {
        let arena = lock_read(&self.inner.arena).clone();
        let mut slot = arena.take().await;
        let buf = std::mem::replace(&mut slot.buf, IoBuf::alloc(0));
        match peer.fetch(key, self.expected_len(key), buf).await {
            Ok((mut buf, len)) if len > 0 && len <= buf.len().min(CHUNK_MAX) => {
                let whole = len.next_multiple_of(BLOCK);
                buf[len..whole].fill(0);
                count(&self.inner.counters.peer_chunks, 1);
                count(&self.inner.counters.peer_bytes, len as u64);
                Ok((buf, len))
            }
            Ok((_, len)) => {
                tracing::error!(target: "peer", %key, len, node = peer.name(), "another node has a chunk of an impossible length");
                Err(Miss::Unreachable)
            }
            Err(miss) => {
                if miss == PeerMiss::Absent {
                    count(&self.inner.counters.peer_absent, 1);
                }
                Err(miss.into())
            }
        }
    }

    /// Bytes that a chunk should have, as far as is known here; a chunk that was cut has more.
    pub(crate) fn expected_len(&self, key: ChunkKey) -> usize {
        let known = self.inner.inodes.get(key.ino).and_then(|inode| {
            let state = lock(&inode.state);
            let chunk_size = state.attr.as_ref()?.chunk_size;
            state.layout.as_ref()?.chunk(key.index, chunk_size)
        });
        match known {
            Some((version, valid)) if version == key.version => valid as usize,
            _ => CHUNK_MAX,
        }
    }

    pub(crate) fn peer_stats(&self) -> PeersStats {
        let c = &self.inner.counters;
        let get = |n: &fastcache_reactor::sync::AtomicU64| n.load(Ordering::Relaxed);
        let (held_chunks, held_bytes) = self.inner.holds.levels();
        PeersStats {
            held_chunks,
            held_bytes,
            peer_fetched_chunks: get(&c.peer_chunks),
            peer_fetched_bytes: get(&c.peer_bytes),
            peer_absent: get(&c.peer_absent),
            peer_hedges: get(&c.peer_hedges),
            peer_parts: get(&c.peer_parts),
            peer_part_bytes: get(&c.peer_part_bytes),
            given_chunks: get(&c.given_chunks),
            taken_chunks: get(&c.taken_chunks),
            ..self
                .inner
                .peers
                .get()
                .map(|tier| tier.stats())
                .unwrap_or_default()
        }
    }

    /// For other nodes: the length of a chunk, when this version of it is [here](FileSystem::find_chunk).
    pub fn chunk_len(&self, key: ChunkKey) -> Option<usize> {
        Some(self.find_chunk(key)?.len() as usize)
    }

    /// This version of a chunk, when it is in the store; or was, and what replaced it is not committed.
    pub fn find_chunk(&self, key: ChunkKey) -> Option<Arc<ChunkBody>> {
        self.inner.store.find(key).or_else(|| {
            let inode = self.inner.inodes.get(key.ino)?;
            let state = lock(&inode.state);
            let mut kept = state.commits.iter().flat_map(|c| &c.kept);
            kept.find(|body| body.key() == key).cloned()
        })
    }

    /// For other nodes, as the first home of a chunk: fetches it into the store, with one flight for all who ask. Its length,
    /// when it is here then.
    pub async fn bring_for_peer(&self, key: ChunkKey) -> Option<usize> {
        if self.chunk_len(key).is_none() {
            let agent_stands = std::pin::pin!(async {
                loop {
                    sleep(BRING_PATIENCE).await;
                    if !self.inner.link.answers(BRING_PATIENCE).await {
                        break;
                    }
                }
            });
            let fetching = std::pin::pin!(self.promote_now(key, true));
            let fetched = match select(fetching, agent_stands).await {
                Either::Left((fetched, _)) => fetched,
                Either::Right(((), _)) => Err(Errno::ETIMEDOUT),
            };
            if let Err(error) = fetched {
                tracing::debug!(target: "peer", %key, %error, "a chunk could not be fetched for another node");
            }
        }
        self.chunk_len(key)
    }

    /// For other nodes: fills `buf` (whole blocks) from block `first` of a chunk on, verified; the chunk's length. ENOENT when
    /// this version is not here (any more), EIO when it cannot be read and is nowhere else.
    pub async fn read_for_peer(
        &self,
        key: ChunkKey,
        first: u32,
        buf: IoBuf,
    ) -> (Result<usize>, IoBuf) {
        let Some(body) = self.find_chunk(key) else {
            return (Err(Errno::ENOENT), buf);
        };
        let (result, buf) = self.inner.store.read(&body, first, buf).await;
        match result {
            Ok(()) => {
                self.inner.space.accessed(key.id());
                (Ok(body.len() as usize), buf)
            }
            Err(error @ StoreError::Invalid(_)) => {
                tracing::error!(target: "peer", %key, first, %error, "another node's request cannot be read");
                (Err(Errno::EIO), buf)
            }
            Err(error) => match self.drop_unreadable(&body, &error).await {
                true => (Err(Errno::ENOENT), buf),
                false => (Err(Errno::EIO), buf),
            },
        }
    }
}
