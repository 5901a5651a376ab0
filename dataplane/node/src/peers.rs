//! Other nodes: the file system's misses go to them through the client of `fastcache-peer`, and its server reads from the file
//! system's store. Here the two are put together; who is asked, and for how long, is decided here, too.

use crate::repair::Repair;
use crate::replicate::Replicator;
use anyhow::{Context, Result};
use event_listener::EventListener;
use fastcache_api::control::{PeerNode, PeersStats};
use fastcache_api::{ChunkId, ChunkKey, Errno};
use fastcache_cache::{FileSystem, PeerMiss, PeerSource, PeerTier};
use fastcache_peer::{
    AskError, Chunks, Cluster, Identity, Part, Peer, PeerAt, Status, Token, first_home_among,
    homes_among,
};
use fastcache_reactor::{Fd, IoBuf, Remote, spawn};
use fastcache_types::BLOCK;
use futures_util::future::{LocalBoxFuture, join_all};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take for a whole chunk.
const FETCH_MAX: Duration = Duration::from_secs(10);
/// How long it may take to fetch one from the cloud: as long as the agent may.
const BRING_MAX: Duration = Duration::from_secs(40);
/// How long it may take to say whether it has one.
const HAS_MAX: Duration = Duration::from_secs(2);
/// How long it may take for a part of one.
const PART_MAX: Duration = Duration::from_secs(5);
/// Most nodes that are asked at once whether they have a chunk that its homes do not have.
const SEARCH_MAX: usize = 64;

/// Binds the port for other nodes.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        format!("cannot listen for other nodes on {address}: choose another --listen, or stop who has it")
    })
}

/// Puts the file system and the other nodes together, and serves them on all cores.
pub fn start(fs: &FileSystem, listener: TcpListener, token: Token, cores: Vec<Remote>) {
    let cluster = Arc::new(Cluster::new(token));
    let replicator = Replicator::new(Arc::clone(&cluster));
    replicator.start(fs, &cores);
    let repair = Repair::start(Arc::clone(&cluster), fs, cores.first());
    let nodes = Nodes {
        cluster: Arc::clone(&cluster),
        replicator,
        repair,
    };
    fs.set_peers(Box::new(nodes));
    let listener = Fd::from(OwnedFd::from(listener));
    let chunks = LocalChunks(fs.clone());
    spawn(fastcache_peer::listen(cluster, listener, cores, chunks)).detach();
}

/// What other nodes are given.
#[derive(Clone)]
struct LocalChunks(FileSystem);

impl Chunks for LocalChunks {
    fn find(&self, key: ChunkKey) -> Option<usize> {
        self.0.chunk_len(key)
    }

    async fn bring(&self, key: ChunkKey) -> Option<usize> {
        self.0.bring_for_peer(key).await
    }

    async fn put(
        &self,
        owner: &str,
        key: ChunkKey,
        len: usize,
        buf: IoBuf,
    ) -> std::result::Result<(), Status> {
        let kept = self.0.put_for_peer(owner, key, len, buf).await;
        kept.map_err(|errno| match errno {
            Errno::EAGAIN => Status::Busy,
            _ => Status::Failed,
        })
    }

    fn hold(&self, owner: &str, key: ChunkKey) -> std::result::Result<usize, Status> {
        let held = self.0.hold_for_peer(owner, key);
        held.ok_or_else(|| match self.0.may_keep_for_peer(key) {
            true => Status::NotFound,
            false => Status::Busy,
        })
    }

    async fn take(&self, owner: &str, key: ChunkKey) -> std::result::Result<usize, Status> {
        let taken = self.0.take_for_peer(owner, key).await;
        taken.map_err(|errno| match errno {
            Errno::ENOENT => Status::NotFound,
            _ => Status::Busy,
        })
    }

    fn release(&self, owner: &str, key: ChunkKey) {
        self.0.release_for_peer(owner, key);
    }

    async fn read(
        &self,
        key: ChunkKey,
        offset: usize,
        buf: IoBuf,
    ) -> (std::result::Result<Part, Status>, IoBuf) {
        let Ok(first) = u32::try_from(offset / BLOCK) else {
            return (Err(Status::Failed), buf);
        };
        let (read, buf) = self.0.read_for_peer(key, first, buf).await;
        let part = match read {
            Ok(total) => Ok(Part { total }),
            Err(Errno::ENOENT) => Err(Status::NotFound),
            Err(_) => Err(Status::Failed),
        };
        (part, buf)
    }
}

/// The others, for the file system.
struct Nodes {
    cluster: Arc<Cluster>,
    replicator: Arc<Replicator>,
    repair: Arc<Repair>,
}

impl Nodes {
    fn source(&self, peer: &Arc<Peer>) -> Box<dyn PeerSource> {
        Box::new(Source {
            cluster: Arc::clone(&self.cluster),
            peer: Arc::clone(peer),
        })
    }
}

impl PeerTier for Nodes {
    fn set(&self, me: String, file_system: u64, peers: &[PeerNode]) {
        let at = |p: &PeerNode| match p.address.parse() {
            Ok(address) => Some(PeerAt {
                id: p.id.clone(),
                address,
            }),
            Err(error) => {
                tracing::error!(target: "peer", node = p.id, address = p.address, %error, "not an address: this node is not asked");
                None
            }
        };
        let others: Vec<PeerAt> = peers.iter().filter_map(at).collect();
        self.cluster.set(
            Identity {
                id: me,
                file_system,
            },
            &others,
        );
    }

    fn homes(&self, id: ChunkId) -> Vec<Box<dyn PeerSource>> {
        let peers = self.cluster.peers();
        let homes = homes_among(id, &peers, self.cluster.me().as_ref());
        homes.iter().map(|at| self.source(&peers[*at])).collect()
    }

    fn keeper(&self, id: ChunkId) -> Option<Box<dyn PeerSource>> {
        let peers = self.cluster.peers();
        let first = first_home_among(id, &peers, self.cluster.me().as_ref())?;
        peers.get(first).map(|peer| self.source(peer))
    }

    fn search(
        &self,
        key: ChunkKey,
    ) -> LocalBoxFuture<'_, std::result::Result<Box<dyn PeerSource>, PeerMiss>> {
        Box::pin(async move {
            let peers = self.cluster.peers();
            let homes = homes_among(key.id(), &peers, self.cluster.me().as_ref());
            let others = peers.iter().enumerate();
            let others: Vec<&Arc<Peer>> = others
                .filter(|(at, _)| !homes.contains(at))
                .map(|(_, peer)| peer)
                .collect();
            let mut miss = PeerMiss::Absent;
            for some in others.chunks(SEARCH_MAX) {
                let asked = some.iter().map(|peer| self.cluster.has(peer, key, HAS_MAX));
                let answers = join_all(asked).await;
                for (peer, has) in some.iter().zip(answers) {
                    match has {
                        Ok(_) => return Ok(self.source(peer)),
                        Err(AskError::NotFound) => {}
                        Err(_) => miss = PeerMiss::Failed,
                    }
                }
            }
            Err(miss)
        })
    }

    fn is_live(&self, id: &str) -> bool {
        self.cluster.peers().iter().any(|p| p.id == id)
    }

    fn sealed(&self, keys: Vec<ChunkKey>) {
        self.replicator.add(keys, true);
    }

    fn settled(&self, keys: &[ChunkKey]) {
        self.replicator.remove(keys);
    }

    fn copies(&self, key: ChunkKey) -> usize {
        self.replicator.copies(key)
    }

    fn hurry(&self, keys: &[ChunkKey]) {
        self.replicator.hurry(keys);
    }

    fn give(&self, key: ChunkKey) -> LocalBoxFuture<'_, bool> {
        Box::pin(self.replicator.give_away(key))
    }

    fn copies_changed(&self) -> EventListener {
        self.replicator.copies_changed()
    }

    fn stats(&self) -> PeersStats {
        let mut stats = self.cluster.stats();
        self.replicator.fill(&mut stats);
        self.repair.fill(&mut stats);
        stats
    }
}

/// One of the others.
struct Source {
    cluster: Arc<Cluster>,
    peer: Arc<Peer>,
}

impl PeerSource for Source {
    fn name(&self) -> &str {
        &self.peer.id
    }

    fn patience(&self) -> Duration {
        self.peer.patience()
    }

    fn bring(&self, key: ChunkKey) -> LocalBoxFuture<'_, std::result::Result<(), PeerMiss>> {
        Box::pin(async move {
            match self.cluster.bring(&self.peer, key, BRING_MAX).await {
                Ok(_) => Ok(()),
                Err(AskError::NotFound) => Err(PeerMiss::Absent),
                Err(_) => Err(PeerMiss::Failed),
            }
        })
    }

    fn answers(&self, key: ChunkKey) -> LocalBoxFuture<'_, bool> {
        Box::pin(async move {
            let has = self.cluster.has(&self.peer, key, HAS_MAX).await;
            matches!(has, Ok(_) | Err(AskError::NotFound))
        })
    }

    fn fetch(
        &self,
        key: ChunkKey,
        expected: usize,
        buf: IoBuf,
    ) -> LocalBoxFuture<'_, std::result::Result<(IoBuf, usize), PeerMiss>> {
        Box::pin(async move {
            let fetched = self
                .cluster
                .fetch(&self.peer, key, expected, buf, FETCH_MAX)
                .await;
            fetched.map_err(|error| match error {
                AskError::NotFound => PeerMiss::Absent,
                error => {
                    tracing::debug!(target: "peer", peer = ?self.peer, %key, %error, "a node did not give a chunk");
                    PeerMiss::Failed
                }
            })
        })
    }

    fn part(
        &self,
        key: ChunkKey,
        offset: usize,
        buf: IoBuf,
    ) -> LocalBoxFuture<'_, std::result::Result<IoBuf, PeerMiss>> {
        Box::pin(async move {
            let got = self.cluster.get(&self.peer, key, offset, buf, PART_MAX);
            match got.await {
                Ok((mut buf, len, _)) => {
                    buf[len..].fill(0);
                    Ok(buf)
                }
                Err(AskError::NotFound) => Err(PeerMiss::Absent),
                Err(error) => {
                    tracing::debug!(target: "peer", peer = ?self.peer, %key, offset, %error, "a node did not give a part of a chunk");
                    Err(PeerMiss::Failed)
                }
            }
        })
    }
}
