//! A node in a simulated world: the store on its device, the file system, and the agent at the other end of a link that
//! takes its time, loses answers and is replaced now and then.

use crate::agent::{Agent, inventory};
use async_lock::Mutex;
use fastcache_api::Errno;
use fastcache_api::control::{DataAnswer, DataCall, NodeAnswer, SLOT_BYTES, ToAgent};
use fastcache_cache::{FileSystem, Link};
use fastcache_chunkstore::{PendingSeal, Store, StoreError, StoreOptions, crc_all};
use fastcache_reactor::sim::random;
use fastcache_reactor::{Arena, sleep, spawn};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Of the device, bytes.
pub const DEVICE_BYTES: u64 = 16 << 20;
/// Chunk size, bytes.
pub const CHUNK: usize = 32 << 10;
/// Slots of an arena: more than fetches may hold at once.
const SLOTS: usize = 32;
/// Tries to bring everything to the cloud before whoever waits for it is told that it does not work.
const UPLOADS: usize = 5;

pub struct Node {
    pub fs: FileSystem,
    pub agent: Rc<Agent>,
    link: Link,
    /// The arena of the session with the agent; uploads and the end of a session exclude each other.
    arena: Mutex<Arena>,
    connection: Cell<u64>,
    /// The device may refuse.
    is_sick: bool,
}

fn options(path: &Path) -> StoreOptions {
    StoreOptions {
        path: path.to_owned(),
        capacity_bytes: DEVICE_BYTES,
        format: false,
        force: false,
        crc_budget_bytes: 64 << 10,
    }
}

/// Opens the store at `path`, and what it found uncommitted.
pub async fn open(path: &Path) -> Result<(Store, Vec<PendingSeal>), StoreError> {
    let (store, recovered) = Store::open(options(path)).await?;
    store.audit(&[]);
    Ok((store, recovered.pending))
}

fn new_arena() -> Arena {
    Arena::new(SLOTS, SLOT_BYTES).unwrap()
}

/// Starts a file system on an open store, and attaches the agent.
pub async fn start(
    store: Store,
    pending: Vec<PendingSeal>,
    agent: &Rc<Agent>,
    client: u64,
    is_sick: bool,
) -> Rc<Node> {
    agent.persists.borrow_mut().clear();
    let link = Link::new(vec![0], client);
    let arena = new_arena();
    let fs = FileSystem::new(store.clone(), link.clone(), arena.clone());
    fs.set_chunk_size(CHUNK as u32);
    let node = Rc::new(Node {
        fs,
        agent: Rc::clone(agent),
        link,
        arena: Mutex::new(arena.clone()),
        connection: Cell::new(0),
        is_sick,
    });
    node.attach(arena);
    spawn(async move { store.background().await }).detach();
    node.fs.recover(pending).await;
    let fs = node.fs.clone();
    spawn(async move { fs.background().await }).detach();
    let persisting = Rc::clone(&node);
    spawn(async move { persisting.persist().await }).detach();
    node
}

impl Node {
    /// Serves a new connection.
    fn attach(self: &Rc<Self>, arena: Arena) {
        let connection = self.connection.get() + 1;
        self.connection.set(connection);
        self.link.attach(0, connection);
        let node = Rc::clone(self);
        spawn(async move {
            while let Some(messages) = node.link.outgoing(0, connection, 64).await {
                for message in messages {
                    let (node, arena) = (Rc::clone(&node), arena.clone());
                    match message {
                        ToAgent::Call(..) => {
                            spawn(async move { node.answer(&arena, connection, message).await })
                                .detach();
                        }
                        other => node.agent.take(&node.link, &arena, connection, other),
                    }
                }
            }
        })
        .detach();
    }

    /// Answers a call some time later. When the connection is gone by then, the call may have been done or not.
    async fn answer(&self, arena: &Arena, connection: u64, message: ToAgent) {
        let us = match random(16) {
            0 => random(200_000),
            _ => random(2_000),
        };
        sleep(Duration::from_micros(us)).await;
        if self.connection.get() == connection {
            self.agent.take(&self.link, arena, connection, message);
        } else if random(2) == 0 {
            let nobody = Link::new(vec![0], 0);
            self.agent.take(&nobody, arena, connection, message);
        }
    }

    /// The agent goes away, and another one comes.
    pub async fn restart_agent(self: &Rc<Self>) {
        let mut arena = self.arena.lock().await;
        self.link.detach(0, self.connection.get());
        self.connection.set(self.connection.get() + 1);
        sleep(Duration::from_micros(random(1_500_000))).await;
        *arena = new_arena();
        self.agent.persists.borrow_mut().clear();
        self.fs.begin_session(arena.clone());
        self.attach(arena.clone());
    }

    /// Brings what is dirty to the cloud, marks it clean, and names what may go.
    pub async fn upload(&self) {
        let mut keys = Vec::new();
        for chunk in inventory(&self.fs).await {
            let key = chunk.key;
            if !chunk.is_dirty {
                continue;
            }
            sleep(Duration::from_micros(random(3_000))).await;
            let arena = self.arena.lock().await;
            let call = DataCall::ReadChunk {
                key,
                is_patient: false,
            };
            let (slot, len, crc32c) = match self.fs.serve(call).await {
                Ok(DataAnswer::Slot { slot, len, crc32c }) => (slot, len, crc32c),
                // A newer version took its place meanwhile.
                Err(Errno::ENOENT) => continue,
                Err(Errno::EIO) if self.is_sick => continue,
                other => panic!("ReadChunk of {key}: {other:?}"),
            };
            let mut bytes = vec![0; len as usize];
            let at = u64::from(slot) * arena.slot_bytes() as u64;
            let read = rustix::io::pread(arena.fd(), &mut bytes, at).unwrap();
            self.fs.release_slot(slot);
            assert_eq!((read, crc_all(&bytes)), (bytes.len(), crc32c), "{key}");
            let before = self.agent.cloud.borrow_mut().insert(key, bytes.clone());
            assert!(before.is_none_or(|b| b == bytes), "{key} changed");
            keys.push(key);
        }
        let cleaned = self.fs.serve(DataCall::MarkClean { keys }).await;
        assert!(cleaned.is_ok() || self.is_sick, "{cleaned:?}");
        let ids = inventory(&self.fs).await;
        let ids = ids.iter().map(|c| c.key.id()).collect();
        self.fs.serve(DataCall::Victims { ids }).await.unwrap();
    }

    /// Answers those who wait for the cloud, and uploads now and then.
    async fn persist(&self) {
        let mut idle = 0;
        loop {
            sleep(Duration::from_millis(20)).await;
            idle += 1;
            let waiting = std::mem::take(&mut *self.agent.persists.borrow_mut());
            if waiting.is_empty() && idle < 100 {
                continue;
            }
            idle = 0;
            let mut answer = Err(Errno::EIO);
            for _ in 0..UPLOADS {
                self.upload().await;
                if waiting.is_empty() || self.is_uploaded() {
                    answer = Ok(NodeAnswer::Done);
                    break;
                }
            }
            for (id, _) in waiting {
                self.link.answered(0, id, answer.clone());
            }
        }
    }

    /// Whether everything is in the cloud.
    fn is_uploaded(&self) -> bool {
        let cloud = self.agent.cloud.borrow();
        let all = self.fs.store();
        let mut from = Some(0);
        while let Some(at) = from {
            let (bodies, next) = all.inventory(at);
            if bodies
                .iter()
                .any(|b| b.is_dirty() && !cloud.contains_key(&b.key()))
            {
                return false;
            }
            from = next;
        }
        true
    }
}
