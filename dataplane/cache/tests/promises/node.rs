//! A node for a test: reactor, store, file system, and the agent attached to it.

use crate::agent::Agent;
use fastcache_api::control::{DataAnswer, DataCall, SLOT_BYTES};
use fastcache_api::{ChunkKey, Cred, Errno, Ino};
use fastcache_cache::{FileSystem, KernelNotify, Link, SetAttrRequest};
use fastcache_chunkstore::{PendingSeal, Store, StoreError, StoreOptions};
use fastcache_reactor::{Arena, Config, IoBuf, Task};
use fastcache_types::BLOCK;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Size of the store, bytes.
pub const STORE_BYTES: u64 = 64 << 20;
/// Chunk size where a test does not say otherwise, bytes.
pub const CHUNK: usize = 64 << 10;
/// Longest that anything a test waits for may take; far more than it does.
const PATIENCE: Duration = Duration::from_secs(50);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// Slots of the arena: more than fetches may hold at once.
const SLOTS: usize = 32;
/// Name of the store's file.
pub const STORE_FILE: &str = "store";

pub struct Node {
    pub fs: FileSystem,
    pub link: Link,
    pub arena: Arena,
    pub agent: Rc<Agent>,
}

/// Runs `main` as a reactor of its own. Everything left of it is dropped at the end, as abruptly as a process can end
/// without the kernel's help.
pub fn on_reactor<T, F: Future<Output = T>>(main: impl FnOnce() -> F) -> T {
    let config = Config {
        pool_buffers: 2,
        ..Config::default()
    };
    fastcache_reactor::run(config, main).unwrap()
}

/// Waits for a condition; panics when it does not come true.
pub async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = fastcache_reactor::now();
    while !is_true() {
        assert!(since.elapsed() < PATIENCE, "never happened: {what}");
        fastcache_reactor::sleep(LOOK).await;
    }
}

/// Ends what hangs.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match fastcache_reactor::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("hangs: {what}"),
    }
}

/// Opens the store in `dir` and starts a file system on it. The agent is not attached yet: what was closed and not
/// committed is handed out first.
pub async fn start_detached(
    dir: &Path,
    agent: &Rc<Agent>,
    client: u64,
) -> (Node, Vec<PendingSeal>) {
    let options = StoreOptions {
        path: dir.join(STORE_FILE),
        capacity_bytes: STORE_BYTES,
        format: false,
        force: false,
        crc_budget_bytes: 1 << 20,
    };
    let since = fastcache_reactor::now();
    let (store, recovered) = loop {
        match Store::open(options.clone()).await {
            // The reactor before may still hold its descriptor for a moment.
            Err(StoreError::Busy) if since.elapsed() < PATIENCE => {
                fastcache_reactor::sleep(LOOK).await
            }
            opened => break opened.unwrap(),
        }
    };
    let link = Link::new(vec![0], client);
    let arena = Arena::new(SLOTS, SLOT_BYTES).unwrap();
    let fs = FileSystem::new(store, link.clone(), arena.clone());
    fs.hold_again(&recovered.kept);
    fs.set_chunk_size(CHUNK as u32);
    // The tests count fetches; those of readahead set it.
    fs.set_read_ahead(0);
    let agent = Rc::clone(agent);
    let node = Node {
        fs,
        link,
        arena,
        agent,
    };
    (node, recovered.pending)
}

/// Starts a node and recovers what the one before left behind.
pub async fn start(dir: &Path, agent: &Rc<Agent>, client: u64) -> Node {
    let (node, pending) = start_detached(dir, agent, client).await;
    node.agent.attach(&node.link, &node.arena, 1);
    soon("recovery", node.fs.recover(pending)).await;
    node
}

/// Runs `main` on a reactor of its own, with a node of its own.
pub fn on_node<T>(main: impl AsyncFnOnce(Node, Rc<Agent>) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        main(node, Rc::clone(&agent)).await
    })
}

/// The kernel, as far as it is told what to forget.
#[derive(Clone, Default)]
pub struct Kernel(Arc<Mutex<Vec<String>>>);

impl Kernel {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    /// What it was told since the last call.
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl KernelNotify for Kernel {
    fn inval_inode(&self, ino: Ino) {
        self.note(format!("inode {ino}"));
    }
    fn inval_attr(&self, ino: Ino) {
        self.note(format!("attributes {ino}"));
    }
    fn inval_entry(&self, parent: Ino, name: &[u8]) {
        self.note(format!("entry {parent} {}", name.escape_ascii()));
    }
    fn inval_names(&self) {
        self.note("names".to_owned());
    }
    fn can_inval_names(&self) -> bool {
        true
    }
    fn barrier(&self, done: Box<dyn FnOnce() + Send>) {
        done();
    }
}

impl Node {
    /// From now on there are other nodes.
    pub async fn share(&self) {
        let lease = DataCall::Lease {
            until_ns: None,
            is_shared: true,
        };
        self.fs.serve(lease).await.unwrap();
    }

    /// Another node is going to change a file, or has.
    pub async fn revoke(&self, ino: Ino) {
        let call = DataCall::Invalidate {
            touched: Vec::new(),
            entries: Vec::new(),
            inos: vec![ino],
        };
        soon("invalidate", self.fs.serve(call)).await.unwrap();
    }

    /// Makes a file and opens it.
    pub async fn create(&self, name: &str) -> Ino {
        let cred = Cred { uid: 0, gid: 0 };
        let made = self
            .fs
            .create(Ino::ROOT, name.as_bytes(), 0o644, cred, 0o102)
            .await;
        made.unwrap().0.attr.ino
    }

    /// Reads `len` bytes, fewer at the end.
    pub async fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut buf = IoBuf::alloc(len.next_multiple_of(BLOCK));
        // What is in the buffer must not matter.
        buf.fill(0xee);
        let whole = buf.len();
        let (result, buf) = soon("read", self.fs.read(ino, 0, offset, len, buf)).await;
        assert_eq!(buf.len(), whole, "the buffer comes back whole");
        result.map(|n| buf[..n].to_vec())
    }

    /// Writes from memory that starts `skew` bytes behind a page.
    pub async fn write_skewed(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        skew: usize,
    ) -> Result<(), Errno> {
        let mut whole = IoBuf::alloc(skew + data.len());
        let mut buf = whole.split_off(skew);
        buf.copy_from_slice(data);
        let (result, buf) = soon("write", self.fs.write(ino, 0, offset, buf, false)).await;
        assert_eq!(buf.len(), data.len(), "the buffer comes back whole");
        assert!(&buf[..] == data, "a write changes its buffer");
        assert!(whole.unsplit(buf).is_ok(), "it is the same buffer");
        result.map(|n| assert_eq!(n as usize, data.len(), "no short writes"))
    }

    pub async fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.write_skewed(ino, offset, data, 0).await
    }

    pub async fn truncate(&self, ino: Ino, size: u64) -> Result<(), Errno> {
        let request = SetAttrRequest {
            size: Some(size),
            ..SetAttrRequest::default()
        };
        let (attr, _) = soon("truncate", self.fs.setattr(ino, request)).await?;
        assert_eq!(attr.size, size);
        Ok(())
    }

    pub async fn flush(&self, ino: Ino) -> Result<(), Errno> {
        soon("flush", self.fs.flush(ino, 0)).await
    }

    pub async fn fsync(&self, ino: Ino) -> Result<(), Errno> {
        soon("fsync", self.fs.fsync(ino, 0, false)).await
    }

    /// Brings what is dirty to the cloud and marks it clean.
    pub async fn upload(&self) {
        soon("upload", self.agent.upload(&self.fs, &self.arena)).await;
    }

    /// Makes a file that is in the cloud and no longer in the store.
    pub async fn cold_file(&self, name: &str, data: &[u8]) -> Ino {
        let ino = self.create(name).await;
        self.write(ino, 0, data).await.unwrap();
        self.fsync(ino).await.unwrap();
        self.upload().await;
        let here = self.keys_of(ino).len();
        assert!(here > 0, "{name} was not sealed");
        assert_eq!(self.evict(ino).await, here as u64);
        assert!(self.keys_of(ino).is_empty());
        ino
    }

    /// The chunks of a file that are in the store.
    pub fn keys_of(&self, ino: Ino) -> Vec<ChunkKey> {
        let here = self.fs.store().chunks_of(ino);
        here.iter().map(|body| body.key()).collect()
    }

    /// Has it keep a chunk for another node.
    pub async fn keep_for(&self, owner: &str, key: ChunkKey, bytes: &[u8]) -> Result<(), Errno> {
        let mut buf = IoBuf::alloc(bytes.len().next_multiple_of(BLOCK));
        buf.fill(0);
        buf[..bytes.len()].copy_from_slice(bytes);
        let put = self.fs.put_for_peer(owner, key, bytes.len(), buf);
        soon("put", put).await
    }

    /// Closes a file in a task of its own.
    pub fn closing(&self, ino: Ino) -> Task<Result<(), Errno>> {
        let fs = self.fs.clone();
        fastcache_reactor::spawn(async move { fs.flush(ino, 0).await })
    }

    /// Drops the clean chunks of a file from the store; answers how many.
    pub async fn evict(&self, ino: Ino) -> u64 {
        match self
            .fs
            .serve(DataCall::Evict {
                ino: Some(ino),
                pinned: Vec::new(),
            })
            .await
        {
            Ok(DataAnswer::Evicted { chunks, .. }) => chunks,
            other => panic!("Evict: {other:?}"),
        }
    }
}

/// Bytes that differ from place to place and from seed to seed, none of them 0.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let byte = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1;
    (0..len as u64)
        .map(|i| byte(seed.wrapping_mul(0x1_0000_0001) + i))
        .collect()
}

/// Compares without printing megabytes.
#[track_caller]
pub fn assert_same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    if let Some(at) = got.iter().zip(want).position(|(g, w)| g != w) {
        let differ = got.iter().zip(want).filter(|(g, w)| g != w).count();
        panic!(
            "{what}: byte {at} is {:#x}, not {:#x} ({differ} of {} bytes differ)",
            got[at],
            want[at],
            got.len()
        );
    }
}
