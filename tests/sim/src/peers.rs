//! Chunks between the nodes of the simulated world. Whom a node asks, in what order and for how long, is decided by the code of
//! `fastcache-peer` and `fastcache-cache`; only the sockets between them are replaced, by calls that take time.

use crate::wire::Wires;
use event_listener::{Event, EventListener};
use fastcache_api::control::{PeerNode, PeersStats};
use fastcache_api::{ChunkId, ChunkKey};
use fastcache_cache::{FileSystem, PeerMiss, PeerSource, PeerTier};
use fastcache_peer::{Cluster, Identity, Peer, PeerAt, first_home_among, homes_among};
use fastcache_reactor::sim::random;
use fastcache_reactor::{IoBuf, now, sleep, timeout};
use fastcache_types::BLOCK;
use futures_util::future::LocalBoxFuture;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a message takes, microseconds.
const TAKES_US: (u64, u64) = (100, 2000);
/// Bytes a microsecond: 10 Gbit/s.
const BYTES_A_US: u64 = 1250;
/// Of so many messages one is lost, and sent again after the timeout of TCP.
const LOST_ONE_IN: u64 = 500;
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How long another node may take for a chunk, and for one that it has to fetch first. As in `fastcache-data`.
const FETCH_MAX: Duration = Duration::from_secs(10);
const BRING_MAX: Duration = Duration::from_secs(40);

/// The other ends: the data planes, by the ids of their nodes.
pub struct Ends {
    nodes: Mutex<BTreeMap<String, (usize, FileSystem)>>,
    wires: Arc<Wires>,
}

impl Ends {
    /// Nobody yet.
    pub fn new(wires: Arc<Wires>) -> Arc<Ends> {
        Arc::new(Ends {
            nodes: Mutex::default(),
            wires,
        })
    }

    /// A node can be reached.
    pub fn add(&self, id: &str, number: usize, fs: &FileSystem) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(id.to_owned(), (number, fs.clone()));
    }

    /// The data plane of a node, as long as both ends are on the network.
    async fn reach(&self, from: usize, id: &str) -> FileSystem {
        let found = {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            nodes.get(id).cloned()
        };
        travel(0).await;
        match found {
            Some((to, fs)) if !self.wires.is_cut(to) && !self.wires.is_cut(from) => fs,
            _ => std::future::pending().await,
        }
    }
}

async fn travel(bytes: usize) {
    let us = TAKES_US.0 + random(TAKES_US.1 - TAKES_US.0) + bytes as u64 / BYTES_A_US;
    sleep(Duration::from_micros(us)).await;
    if random(LOST_ONE_IN) == 0 {
        sleep(AGAIN_AFTER).await;
    }
}

/// The others, for one node's file system.
pub struct Others {
    /// Who this node is, and who the others are.
    pub cluster: Arc<Cluster>,
    /// Where they are.
    pub ends: Arc<Ends>,
    /// Number of this node.
    pub number: usize,
}

impl Others {
    fn source(&self, peer: &Arc<Peer>) -> Box<dyn PeerSource> {
        Box::new(Other {
            peer: Arc::clone(peer),
            ends: Arc::clone(&self.ends),
            from: self.number,
        })
    }

    fn homes_in(&self, id: ChunkId) -> (Arc<Vec<Arc<Peer>>>, Vec<usize>) {
        let peers = self.cluster.peers();
        let homes = homes_among(id, &peers, self.cluster.me().as_ref());
        (peers, homes)
    }
}

impl PeerTier for Others {
    fn set(&self, me: String, file_system: u64, peers: &[PeerNode]) {
        let at = |p: &PeerNode| match p.address.parse() {
            Ok(address) => PeerAt {
                id: p.id.clone(),
                address,
            },
            Err(error) => panic!("{} of {}: {error}", p.address, p.id),
        };
        let others: Vec<PeerAt> = peers.iter().map(at).collect();
        let me = Identity {
            id: me,
            file_system,
        };
        self.cluster.set(me, &others);
    }

    fn homes(&self, id: ChunkId) -> Vec<Box<dyn PeerSource>> {
        let (peers, homes) = self.homes_in(id);
        homes.iter().map(|at| self.source(&peers[*at])).collect()
    }

    fn keeper(&self, id: ChunkId) -> Option<Box<dyn PeerSource>> {
        let peers = self.cluster.peers();
        let first = first_home_among(id, &peers, self.cluster.me().as_ref())?;
        peers.get(first).map(|peer| self.source(peer))
    }

    fn search(&self, key: ChunkKey) -> LocalBoxFuture<'_, Result<Box<dyn PeerSource>, PeerMiss>> {
        Box::pin(async move {
            let (peers, homes) = self.homes_in(key.id());
            for (at, peer) in peers.iter().enumerate() {
                if homes.contains(&at) {
                    continue;
                }
                let asked = self.ends.reach(self.number, &peer.id);
                let Ok(fs) = timeout(FETCH_MAX, asked).await else {
                    return Err(PeerMiss::Failed);
                };
                let is_there = fs.chunk_len(key).is_some();
                travel(0).await;
                if is_there {
                    return Ok(self.source(peer));
                }
            }
            Err(PeerMiss::Absent)
        })
    }

    fn is_live(&self, id: &str) -> bool {
        self.cluster.peers().iter().any(|p| p.id == id)
    }

    // Copies of what is not in the cloud yet are not simulated.
    fn sealed(&self, _keys: Vec<ChunkKey>) {}

    fn settled(&self, _keys: &[ChunkKey]) {}

    fn copies(&self, _key: ChunkKey) -> usize {
        0
    }

    fn hurry(&self, _keys: &[ChunkKey]) {}

    fn give(&self, _key: ChunkKey) -> LocalBoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    fn copies_changed(&self) -> EventListener {
        Event::new().listen()
    }

    fn stats(&self) -> PeersStats {
        self.cluster.stats()
    }
}

struct Other {
    peer: Arc<Peer>,
    ends: Arc<Ends>,
    from: usize,
}

impl PeerSource for Other {
    fn name(&self) -> &str {
        &self.peer.id
    }

    fn patience(&self) -> Duration {
        self.peer.patience()
    }

    fn bring(&self, key: ChunkKey) -> LocalBoxFuture<'_, Result<(), PeerMiss>> {
        Box::pin(async move {
            let brought = timeout(BRING_MAX, async {
                let fs = self.ends.reach(self.from, &self.peer.id).await;
                let brought = fs.bring_for_peer(key).await;
                travel(0).await;
                brought
            });
            match brought.await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(PeerMiss::Absent),
                Err(_) => Err(PeerMiss::Failed),
            }
        })
    }

    fn answers(&self, _key: ChunkKey) -> LocalBoxFuture<'_, bool> {
        Box::pin(async move {
            let asked = self.ends.reach(self.from, &self.peer.id);
            let answers = timeout(FETCH_MAX, asked).await.is_ok();
            travel(0).await;
            answers
        })
    }

    fn fetch(
        &self,
        key: ChunkKey,
        _expected: usize,
        mut buf: IoBuf,
    ) -> LocalBoxFuture<'_, Result<(IoBuf, usize), PeerMiss>> {
        Box::pin(async move {
            let since = now();
            let fetched = timeout(FETCH_MAX, async {
                let fs = self.ends.reach(self.from, &self.peer.id).await;
                let Some(len) = fs.chunk_len(key) else {
                    travel(0).await;
                    return Err(PeerMiss::Absent);
                };
                let sent = IoBuf::alloc(len.next_multiple_of(BLOCK));
                let (read, sent) = fs.read_for_peer(key, 0, sent).await;
                travel(len).await;
                match read {
                    Ok(total) => {
                        buf[..total].copy_from_slice(&sent[..total]);
                        Ok((buf, total))
                    }
                    Err(_) => Err(PeerMiss::Absent),
                }
            });
            let fetched = fetched.await.unwrap_or(Err(PeerMiss::Failed));
            if fetched.is_ok() {
                self.peer.took(since.elapsed());
            }
            fetched
        })
    }

    fn part(
        &self,
        key: ChunkKey,
        offset: usize,
        mut buf: IoBuf,
    ) -> LocalBoxFuture<'_, Result<IoBuf, PeerMiss>> {
        Box::pin(async move {
            let asked = timeout(FETCH_MAX, async {
                let fs = self.ends.reach(self.from, &self.peer.id).await;
                let Some(len) = fs.chunk_len(key) else {
                    travel(0).await;
                    return Err(PeerMiss::Absent);
                };
                let first = u32::try_from(offset / BLOCK).map_err(|_| PeerMiss::Failed)?;
                let there = len.next_multiple_of(BLOCK).saturating_sub(offset);
                let sent = IoBuf::alloc(buf.len().min(there));
                let (read, sent) = fs.read_for_peer(key, first, sent).await;
                travel(sent.len()).await;
                read.map_err(|_| PeerMiss::Absent)?;
                buf.fill(0);
                buf[..sent.len()].copy_from_slice(&sent);
                Ok(buf)
            });
            asked.await.unwrap_or(Err(PeerMiss::Failed))
        })
    }
}
