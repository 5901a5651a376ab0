//! A node in a simulated reactor, and the agent attached to it.

use crate::agent::Agent;
use fastcache_api::control::{DataAnswer, DataCall};
use fastcache_api::{Cred, Errno, Ino};
use fastcache_cache::{FileSystem, Link, SetAttrRequest};
use fastcache_chunkstore::{Store, StoreOptions, Usage};
use fastcache_reactor::race::try_schedules;
use fastcache_reactor::{Arena, IoBuf, Task, sleep};
use fastcache_types::BLOCK;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Schedules tried of each model.
const RUNS: usize = 2_000;
/// Of the smallest store, bytes.
const DEVICE_BYTES: u64 = 16 << 20;
/// Chunk size, bytes.
pub const CHUNK: usize = 2 * BLOCK;
/// Slots of the arena, and their size.
const SLOTS: usize = 4;
const SLOT_BYTES: usize = 4 * BLOCK;
/// Most looks for something that must happen: far more than it takes.
const LOOKS: usize = 10_000;
/// Most flushes until all room is back.
const FLUSHES: usize = 100;

#[derive(Clone)]
pub struct Node {
    pub fs: FileSystem,
    pub agent: Rc<Agent>,
    pub arena: Arena,
    /// Of the empty store.
    empty: Usage,
}

/// Runs `model` on an empty node.
pub fn try_node(model: impl AsyncFn(&Node) + Send + Sync + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let device = std::fs::File::create(&path).unwrap();
    device.set_len(DEVICE_BYTES).unwrap();
    try_schedules(RUNS, async move || {
        let node = start(&path).await;
        model(&node).await;
    });
}

async fn start(path: &Path) -> Node {
    let options = StoreOptions {
        path: path.to_owned(),
        capacity_bytes: DEVICE_BYTES,
        format: false,
        force: false,
        crc_budget_bytes: 64 << 10,
    };
    let (store, _) = Store::open(options).await.unwrap();
    let empty = store.usage();
    let link = Link::new(vec![0], 1);
    let arena = Arena::new(SLOTS, SLOT_BYTES).unwrap();
    let fs = FileSystem::new(store, link.clone(), arena.clone());
    fs.set_chunk_size(CHUNK as u32);
    // The tests count flights, and the clock of readahead is not theirs.
    fs.set_read_ahead(0);
    let agent = Rc::new(Agent::default());
    agent.attach(&link, &arena, 1);
    Node {
        fs,
        agent,
        arena,
        empty,
    }
}

/// Waits for something that does not wake whoever waits for it.
pub async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if is_true() {
            return;
        }
        sleep(Duration::ZERO).await;
    }
    panic!("never happened: {what}");
}

pub async fn all<T>(tasks: impl IntoIterator<Item = Task<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await);
    }
    results
}

impl Node {
    /// Makes a file and opens it.
    pub async fn create(&self, name: &str) -> Ino {
        let cred = Cred { uid: 0, gid: 0 };
        let name = name.as_bytes();
        let made = self.fs.create(Ino::ROOT, name, 0o644, cred, 0o102).await;
        made.unwrap().0.attr.ino
    }

    pub async fn read(&self, ino: Ino, len: usize) -> Result<Vec<u8>, Errno> {
        let buf = IoBuf::alloc(len.next_multiple_of(BLOCK));
        let (result, buf) = self.fs.read(ino, 0, 0, len, buf).await;
        result.map(|n| buf[..n].to_vec())
    }

    pub async fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut buf = IoBuf::alloc(data.len());
        buf.copy_from_slice(data);
        self.fs.write(ino, 0, offset, buf, false).await.0.map(drop)
    }

    pub async fn truncate(&self, ino: Ino, size: u64) -> Result<(), Errno> {
        let request = SetAttrRequest {
            size: Some(size),
            ..SetAttrRequest::default()
        };
        self.fs.setattr(ino, request).await.map(drop)
    }

    /// Brings what is dirty to the cloud and marks it clean.
    pub async fn upload(&self) {
        self.agent.upload(&self.fs, &self.arena).await;
    }

    /// Drops the clean chunks of a file from the store.
    pub async fn evict(&self, ino: Ino) -> u64 {
        let call = DataCall::Evict {
            ino: Some(ino),
            pinned: Vec::new(),
        };
        match self.fs.serve(call).await {
            Ok(DataAnswer::Evicted { chunks, .. }) => chunks,
            other => panic!("Evict: {other:?}"),
        }
    }

    /// Nothing is under way any more, and what was lent is back.
    pub async fn at_rest(&self) {
        until("fetches end", || self.fs.stats().fetching_chunks == 0).await;
        until("slots come back", || self.arena.free() == SLOTS).await;
    }

    /// Removes all chunks: then all room is free.
    pub async fn emptied(&self) {
        let store = self.fs.store();
        loop {
            let keys: Vec<_> = store.inventory(0).0.iter().map(|b| b.key()).collect();
            if keys.is_empty() {
                break;
            }
            store.remove(&keys).await.unwrap();
        }
        for _ in 0..FLUSHES {
            store.flush().await.unwrap();
            if store.usage() == self.empty {
                return;
            }
            // Whoever drops the last handle of a chunk may still be about to.
            sleep(Duration::ZERO).await;
        }
        assert_eq!(store.usage(), self.empty, "all room comes back");
    }
}
