//! The agent of a simulated node, on tokio. The session with the coordinator, its leases and its calls are those of
//! `fastcache-coordinator`'s [`RemoteNamespace`]; here is what moves messages between it and the data plane, as
//! `fastcache-ctl` does over its socket, and what asks the coordinator now and then.

use crate::cloud::Cloud;
use fastcache_api::control::{DataAnswer, DataCall, NodeAnswer, NodeCall, PeerNode, ToAgent};
use fastcache_api::{
    ChunkKey, CloudRef, Errno, NsAnswer, NsOp, NsReply, NsRequest, OpId, PersistedChunk, Time,
};
use fastcache_cache::Link;
use fastcache_chunkstore::crc_all;
use fastcache_coordinator::{Lease, Notice, RemoteNamespace, Revocation};
use fastcache_reactor::Arena;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};

/// How often the list of nodes is asked for. As in the agent.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often it is asked for objects to delete. As in the agent.
const GARBAGE: Duration = Duration::from_secs(5);
/// Objects at once.
const TAKE: u32 = 1000;

/// A call of the data plane, and where its answer goes.
pub type DataCalls = mpsc::UnboundedSender<(DataCall, oneshot::Sender<Result<DataAnswer, Errno>>)>;

/// An agent.
pub struct Agent {
    /// Its node's id.
    pub id: String,
    /// The data plane's end of the socket.
    pub link: Link,
    /// Memory that both have.
    pub arena: Arena,
    /// To the data plane.
    pub data: DataCalls,
    /// The object store.
    pub cloud: Arc<Cloud>,
    remote: OnceLock<RemoteNamespace>,
    seq: AtomicU64,
    is_shared: AtomicBool,
    turn: Mutex<()>,
}

impl Agent {
    /// Without a session yet.
    pub fn new(id: String, link: Link, arena: Arena, data: DataCalls, cloud: Arc<Cloud>) -> Agent {
        Agent {
            id,
            link,
            arena,
            data,
            cloud,
            remote: OnceLock::new(),
            seq: AtomicU64::new(1),
            is_shared: AtomicBool::new(false),
            turn: Mutex::default(),
        }
    }

    /// It is registered: from now on it serves.
    pub fn begin(
        self: &Arc<Self>,
        client: u64,
        remote: RemoteNamespace,
        mut calls: mpsc::UnboundedReceiver<ToAgent>,
    ) {
        assert!(self.remote.set(remote).is_ok(), "one session a node");
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(message) = calls.recv().await {
                if let ToAgent::Call(id, call) = message {
                    let agent = Arc::clone(&agent);
                    tokio::spawn(async move {
                        let answer = agent.serve(call).await;
                        agent.link.answered(0, id, answer);
                    });
                }
            }
        });
        let agent = Arc::clone(self);
        tokio::spawn(async move { agent.tell_peers().await });
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(GARBAGE).await;
                let upto = u64::MAX;
                agent
                    .change(client, NsOp::TakeGarbage { max: TAKE, upto })
                    .await;
            }
        });
    }

    fn remote(&self) -> &RemoteNamespace {
        match self.remote.get() {
            Some(remote) => remote,
            None => panic!("{} is not registered", self.id),
        }
    }

    async fn read(&self, op: NsOp) -> NsReply {
        let request = NsRequest {
            id: None,
            now: Time::default(),
            op,
        };
        self.remote().call(request).await
    }

    async fn change(&self, client: u64, op: NsOp) -> NsReply {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let request = NsRequest {
            id: Some(OpId { client, seq }),
            now: Time::default(),
            op,
        };
        self.remote().call(request).await
    }

    async fn ask(&self, call: DataCall) -> Result<DataAnswer, Errno> {
        let (send, receive) = oneshot::channel();
        assert!(self.data.send((call, send)).is_ok(), "no data plane");
        receive.await.unwrap_or(Err(Errno::EIO))
    }

    async fn serve(&self, call: NodeCall) -> Result<NodeAnswer, Errno> {
        match call {
            NodeCall::Ns(request) => Ok(NodeAnswer::Ns(self.remote().call(request).await)),
            NodeCall::Fetch { key, slot } => self.fetch(key, slot).await,
            NodeCall::Fsync { .. } => {
                self.read(NsOp::Sync).await.result?;
                Ok(NodeAnswer::Done)
            }
            NodeCall::Ping | NodeCall::Left => Ok(NodeAnswer::Done),
            NodeCall::Lock(op) => self.remote().lock(&op).await.map(NodeAnswer::Lock),
            NodeCall::Persist { .. } => Err(Errno::EIO),
            NodeCall::State { .. } => Ok(NodeAnswer::State("dirty".to_owned())),
        }
    }

    async fn fetch(&self, key: ChunkKey, slot: u32) -> Result<NodeAnswer, Errno> {
        let only = Some((key.index, key.version));
        let refs = match self
            .read(NsOp::CloudRefs { ino: key.ino, only })
            .await
            .result?
        {
            NsAnswer::CloudRefs(refs) => refs,
            other => panic!("{other:?}"),
        };
        // A node that wrote it may have it still.
        let (_, _, at) = refs.into_iter().next().ok_or(Errno::ENOENT)?;
        let bytes = self.cloud.get(&at.object).await.ok_or(Errno::EIO)?;
        let place = u64::from(slot) * self.arena.slot_bytes() as u64;
        let written = rustix::io::pwrite(self.arena.fd(), &bytes, place);
        assert_eq!(written, Ok(bytes.len()), "a slot takes a chunk");
        Ok(NodeAnswer::Fetched {
            len: at.len,
            crc32c: at.crc32c,
        })
    }

    /// Brings these chunks to the cloud, and tells the coordinator and the data plane.
    pub async fn upload(&self, client: u64, keys: Vec<ChunkKey>) -> Result<(), Errno> {
        let mut chunks = Vec::new();
        for key in &keys {
            let call = DataCall::ReadChunk {
                key: *key,
                is_patient: false,
            };
            let (slot, len, crc32c) = match self.ask(call).await? {
                DataAnswer::Slot { slot, len, crc32c } => (slot, len, crc32c),
                other => panic!("{other:?}"),
            };
            let mut bytes = vec![0; len as usize];
            let place = u64::from(slot) * self.arena.slot_bytes() as u64;
            let read = rustix::io::pread(self.arena.fd(), &mut bytes, place);
            assert_eq!((read, crc_all(&bytes)), (Ok(bytes.len()), crc32c), "{key}");
            drop(self.arena.reclaim(slot));
            let object = key.to_string();
            self.cloud.put(object.clone(), bytes);
            let at = CloudRef {
                object,
                offset: 0,
                len,
                crc32c,
                etag: None,
            };
            chunks.push(PersistedChunk { key: *key, at });
        }
        self.change(client, NsOp::Persisted { chunks })
            .await
            .result?;
        self.ask(DataCall::MarkClean { keys }).await.map(|_| ())
    }

    /// Tells the data plane which nodes there are, whenever that changes.
    async fn tell_peers(&self) {
        let mut version = self.remote().peers_version();
        let owner = self.remote().owner();
        let mut told = Vec::new();
        loop {
            version.borrow_and_update();
            let file_system = owner.borrow().0;
            if let Ok(peers) = self.remote().peers().await {
                let live = peers.into_iter().filter(|p| p.is_live);
                let others = live.filter_map(|p| p.node).filter(|n| n.peer_id != self.id);
                let mut peers: Vec<PeerNode> = others
                    .map(|n| PeerNode {
                        id: n.peer_id,
                        address: n.peer_address,
                    })
                    .collect();
                peers.sort();
                if told != peers {
                    let call = DataCall::Peers {
                        me: self.id.clone(),
                        file_system,
                        peers: peers.clone(),
                    };
                    if self.ask(call).await.is_ok() {
                        told = peers;
                    }
                }
            }
            tokio::select! {
                biased;
                _ = version.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Passes on what the coordinator says. As the agent does: leases and revocations of everything one after the other, the
    /// rest side by side, and each is acknowledged when the data plane has obeyed.
    pub async fn pass_on(self: Arc<Self>, mut notices: mpsc::Receiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            match notice {
                Notice::Lease(lease) => self.lengthen(lease).await,
                // Nobody asks where a file is.
                Notice::Asked(_) => {}
                Notice::Revoked(revoked) if revoked.everything => self.forget_all(revoked).await,
                Notice::Revoked(revoked) => {
                    let agent = Arc::clone(&self);
                    tokio::spawn(async move { agent.forget(revoked).await });
                }
            }
        }
    }

    async fn lengthen(&self, lease: Lease) {
        let _turn = self.turn.lock().await;
        self.is_shared.store(lease.is_shared, Ordering::Relaxed);
        let call = DataCall::Lease {
            until_ns: u64::try_from(lease.until.as_nanos()).ok(),
            is_shared: lease.is_shared,
        };
        if self.ask(call).await.is_ok() {
            // The session may be over meanwhile.
            let _ = lease.heard.send(());
        }
    }

    async fn forget_all(&self, revoked: Revocation) {
        let _turn = self.turn.lock().await;
        let call = DataCall::Forget {
            is_shared: revoked.is_shared || self.is_shared.load(Ordering::Relaxed),
            and_commit: revoked.is_shared,
        };
        if self.ask(call).await.is_ok() {
            revoked.ack().await;
        }
    }

    async fn forget(&self, mut revoked: Revocation) {
        let inos = std::mem::take(&mut revoked.hand_over);
        if !inos.is_empty() && self.ask(DataCall::HandOver { inos }).await.is_err() {
            return;
        }
        let call = DataCall::Invalidate {
            touched: std::mem::take(&mut revoked.touched),
            entries: std::mem::take(&mut revoked.entries),
            inos: std::mem::take(&mut revoked.inos),
        };
        if self.ask(call).await.is_ok() {
            revoked.ack().await;
        }
    }
}
