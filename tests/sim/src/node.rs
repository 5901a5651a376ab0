//! A node of the simulated world: the data plane's store and file system on a device in memory, and its agent.

use crate::agent::Agent;
use crate::cloud::Cloud;
use crate::peers::{Ends, Others};
use crate::wire::Wires;
use fastcache_api::control::{DataAnswer, DataCall, SLOT_BYTES};
use fastcache_api::{Attr, ChunkKey, Cred, Errno, Ino, Kind, NewInode, grpc};
use fastcache_cache::{FileSystem, KernelNotify, Link};
use fastcache_chunkstore::{Store, StoreOptions};
use fastcache_coordinator::{Coordinator, RemoteNamespace, carrier};
use fastcache_peer::{Cluster, Token};
use fastcache_reactor::sim::{Device, Medium, Moods};
use fastcache_reactor::{Arena, IoBuf, boot_nanos, spawn};
use fastcache_types::BLOCK;
use futures_channel::oneshot;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Of a device, bytes.
const DEVICE_BYTES: u64 = 32 << 20;
/// Chunk size, bytes: small, so that a file has many.
pub const CHUNK: usize = 64 << 10;
/// Slots of an arena: more than fetches may hold at once.
const SLOTS: usize = 48;
/// Messages of the data plane at once.
const BATCH: usize = 64;
/// Flags of open(2).
const O_RDONLY: u32 = 0;
const O_CREAT_RDWR: u32 = 0o102;

/// What all nodes have in common.
pub struct Shared {
    /// A directory that nobody else uses.
    pub dir: PathBuf,
    /// Where the coordinator and the agents run.
    pub tokio: Handle,
    /// Where nodes register.
    pub coordinator: Coordinator,
    /// Between them and the coordinator.
    pub wires: Arc<Wires>,
    /// Between the nodes.
    pub ends: Arc<Ends>,
    /// The object store.
    pub cloud: Arc<Cloud>,
}

/// A node.
pub struct Node {
    /// Its data plane.
    pub fs: FileSystem,
    /// Who the others are, as it knows.
    pub cluster: Arc<Cluster>,
    agent: Arc<Agent>,
    tokio: Handle,
    client: u64,
}

/// A kernel that has nothing cached.
struct Kernel;

impl KernelNotify for Kernel {
    fn inval_inode(&self, _ino: Ino) {}
    fn inval_attr(&self, _ino: Ino) {}
    fn inval_entry(&self, _parent: Ino, _name: &[u8]) {}
    fn inval_names(&self) {}
    fn can_inval_names(&self) -> bool {
        true
    }
    fn barrier(&self, done: Box<dyn FnOnce() + Send>) {
        done();
    }
}

fn clock() -> Duration {
    Duration::from_nanos(boot_nanos())
}

/// What a step of a scenario must not fail with.
pub fn must<T, E: std::fmt::Debug>(what: &str, done: Result<T, E>) -> T {
    match done {
        Ok(done) => done,
        Err(error) => panic!("{what}: {error:?}"),
    }
}

impl Node {
    /// Starts node `number`, and returns when the coordinator has registered it.
    pub async fn start(shared: &Shared, number: usize) -> Node {
        let id = format!("node-{number:04}");
        // What a store is opened on has to be there; the device takes its place.
        let path = shared.dir.join(&id);
        let file = must("a file", File::create(&path));
        must("a file", file.set_len(DEVICE_BYTES));
        let moods = Moods {
            transfer_us: 20..200,
            flush_us: 100..1000,
            ..Moods::default()
        };
        Device::new(Medium::new(DEVICE_BYTES), moods).attach(&path);
        let options = StoreOptions {
            path,
            capacity_bytes: DEVICE_BYTES,
            format: false,
            force: false,
            crc_budget_bytes: 1 << 20,
        };
        let (store, recovered) = must("a store", Store::open(options).await);
        let client = number as u64 + 1;
        let link = Link::new(vec![0], client);
        let arena = must("an arena", Arena::new(SLOTS, SLOT_BYTES));
        let fs = FileSystem::new(store.clone(), link.clone(), arena.clone());
        let chunk_size = must("a chunk size", u32::try_from(CHUNK));
        fs.set_chunk_size(chunk_size);
        fs.set_has_coordinator(true);
        fs.set_notify(Box::new(Kernel));
        let cluster = Arc::new(Cluster::new(must(
            "a token",
            Token::new(b"the token of a simulated world"),
        )));
        fs.set_peers(Box::new(Others {
            cluster: Arc::clone(&cluster),
            ends: Arc::clone(&shared.ends),
            number,
        }));
        shared.ends.add(&id, number, &fs);
        spawn(async move { store.background().await }).detach();
        let background = fs.clone();
        spawn(async move { background.background().await }).detach();

        let (data, mut asked) = mpsc::unbounded_channel();
        let agent = Agent::new(
            id.clone(),
            link.clone(),
            arena.clone(),
            data,
            Arc::clone(&shared.cloud),
        );
        let agent = Arc::new(agent);
        let serving = fs.clone();
        spawn(async move {
            while let Some((call, answer)) = asked.recv().await {
                let fs = serving.clone();
                spawn(async move {
                    let _ = answer.send(fs.serve(call).await);
                })
                .detach();
            }
        })
        .detach();
        fs.begin_session(arena);
        link.attach(0, 1);
        let (calls, messages) = mpsc::unbounded_channel();
        let outgoing = link.clone();
        spawn(async move {
            while let Some(batch) = outgoing.outgoing(0, 1, BATCH).await {
                for message in batch {
                    // Ends with the world.
                    let _ = calls.send(message);
                }
            }
        })
        .detach();

        let end = carrier::to(shared.coordinator.clone());
        let carrier = shared.wires.carrier(number, end);
        let told = grpc::Node {
            peer_id: id,
            peer_address: format!("10.0.{}.{}:8082", number / 250, 1 + number % 250),
            ..Default::default()
        };
        let (registered, is_registered) = oneshot::channel();
        let starting = Arc::clone(&agent);
        shared.tokio.spawn(async move {
            let connected =
                RemoteNamespace::connect_over(carrier, "coordinator", told, None, clock).await;
            let (remote, notices) = must("a session", connected);
            starting.begin(client + 1_000_000, remote, messages);
            tokio::spawn(Arc::clone(&starting).pass_on(notices));
            let _ = registered.send(());
        });
        must("a session", is_registered.await);
        fs.hold_again(&recovered.kept);
        fs.recover(recovered.pending).await;
        Node {
            fs,
            cluster,
            agent,
            tokio: shared.tokio.clone(),
            client,
        }
    }

    fn credentials() -> Cred {
        Cred { uid: 0, gid: 0 }
    }

    /// Makes a directory.
    pub async fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        let new = NewInode {
            kind: Kind::Dir,
            mode: 0o755,
            rdev: 0,
            cred: Node::credentials(),
            target: Vec::new(),
            chunk_size: 0,
        };
        must("mkdir", self.fs.make(parent, name.as_bytes(), new).await)
            .attr
            .ino
    }

    /// Makes a file, writes it and closes it.
    pub async fn write_new(&self, parent: Ino, name: &str, bytes: &[u8]) -> Ino {
        let cred = Node::credentials();
        let made = self
            .fs
            .create(parent, name.as_bytes(), 0o644, cred, O_CREAT_RDWR);
        let (entry, opened) = must("create", made.await);
        let ino = entry.attr.ino;
        for (n, piece) in bytes.chunks(CHUNK).enumerate() {
            let mut buf = IoBuf::alloc(piece.len());
            buf.copy_from_slice(piece);
            let offset = (n * CHUNK) as u64;
            let (written, _) = self.fs.write(ino, opened.fh, offset, buf, false).await;
            must("write", written);
        }
        must("flush", self.fs.flush(ino, opened.fh).await);
        must("release", self.fs.release(ino, opened.fh).await);
        ino
    }

    /// What stat(2) says of a name.
    pub async fn stat(&self, parent: Ino, name: &str) -> Result<Attr, Errno> {
        self.fs
            .lookup(parent, name.as_bytes())
            .await
            .map(|e| e.attr)
    }

    /// Opens, reads and closes a whole file.
    pub async fn read(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        let opened = self.fs.open(ino, O_RDONLY, false).await?;
        let mut all = Vec::new();
        loop {
            let buf = IoBuf::alloc(CHUNK.next_multiple_of(BLOCK));
            let at = all.len() as u64;
            let (read, buf) = self.fs.read(ino, opened.fh, at, CHUNK, buf).await;
            let n = read?;
            all.extend_from_slice(&buf[..n]);
            if n == 0 {
                break;
            }
        }
        self.fs.release(ino, opened.fh).await?;
        Ok(all)
    }

    /// Entries of a directory, with attributes; how many there are.
    pub async fn list(&self, ino: Ino) -> usize {
        let (mut found, mut after) = (0, 0);
        loop {
            let page = must("readdir", self.fs.readdir(ino, after, 1024, true).await);
            found += page.entries.len();
            match page.entries.last() {
                Some(last) if !page.is_end => after = last.cookie,
                _ => return found,
            }
        }
    }

    /// Brings everything that is dirty to the cloud, and drops what is clean of a file from the store.
    pub async fn upload_and_evict(&self, ino: Ino) {
        let mut dirty: Vec<ChunkKey> = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            let (bodies, next) = self.fs.store().inventory(at);
            dirty.extend(bodies.iter().filter(|b| b.is_dirty()).map(|b| b.key()));
            from = next;
        }
        let (done, is_done) = oneshot::channel();
        let (agent, client) = (Arc::clone(&self.agent), self.client + 1_000_000);
        self.tokio.spawn(async move {
            let _ = done.send(agent.upload(client, dirty).await);
        });
        must("upload", must("upload", is_done.await));
        let call = DataCall::Evict {
            ino: Some(ino),
            pinned: Vec::new(),
        };
        match self.fs.serve(call).await {
            Ok(DataAnswer::Evicted { chunks, .. }) => assert!(chunks > 0, "nothing was evicted"),
            other => panic!("{other:?}"),
        }
    }
}
