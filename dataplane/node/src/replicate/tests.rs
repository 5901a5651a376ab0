//! Goal: a copy is made once, and stays as long as it is needed. Method: two file systems with their stores and one connection;
//! what the agent and the coordinator would say is said by hand, or by nobody.

use super::*;
use crate::peers;
use fastcache_api::control::{DataCall, SLOT_BYTES};
use fastcache_api::{Ino, Version};
use fastcache_cache::Link;
use fastcache_chunkstore::{SealChunk, SealData, Store, StoreOptions};
use fastcache_peer::{Identity, PeerAt, Token};
use fastcache_reactor::{Arena, Config, remote, run, timeout};
use std::net::TcpListener;
use std::path::Path;

const SOON: Duration = Duration::from_secs(30);
const LEN: usize = (1 << 20) + 100;

fn key(version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(7),
        index: 3,
        version: Version(version),
    }
}

async fn file_system(dir: &Path, name: &str) -> FileSystem {
    let options = StoreOptions {
        path: dir.join(name),
        capacity_bytes: 64 << 20,
        format: false,
        force: false,
        crc_budget_bytes: 1 << 20,
    };
    let (store, _) = Store::open(options).await.unwrap();
    let arena = Arena::new(8, SLOT_BYTES).unwrap();
    let fs = FileSystem::new(store, Link::new(vec![0], 1), arena);
    fs.recover(Vec::new()).await;
    fs
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = now();
    while !is_true() {
        assert!(since.elapsed() < SOON, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// An owner and a home of its chunks.
struct Two {
    owner: FileSystem,
    home: FileSystem,
    replicator: Arc<Replicator>,
}

impl Two {
    async fn start(dir: &Path) -> Two {
        let token = || Token::new(b"0123456789abcdef").unwrap();
        let (owner, home) = (file_system(dir, "a").await, file_system(dir, "b").await);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        peers::start(&home, listener, token(), vec![remote()]);
        let told = DataCall::Peers {
            me: "b".to_owned(),
            file_system: 1,
            peers: Vec::new(),
        };
        home.serve(told).await.unwrap();
        let cluster = Arc::new(Cluster::new(token()));
        let me = Identity {
            id: "a".to_owned(),
            file_system: 1,
        };
        let id = "b".to_owned();
        cluster.set(me, &[PeerAt { id, address }]);
        let replicator = Replicator::new(cluster);
        replicator.start(&owner, &[remote()]);
        Two {
            owner,
            home,
            replicator,
        }
    }

    /// Seals a version in the owner's store, in the place of the one before.
    async fn seal(&self, key: ChunkKey) {
        let mut buf = IoBuf::alloc(LEN.next_multiple_of(BLOCK));
        buf.fill(0);
        buf[..LEN].fill(u8::try_from(key.version.0).unwrap());
        let chunk = SealChunk {
            key,
            len: u32::try_from(LEN).unwrap(),
            is_dirty: true,
            is_kept: false,
            is_pending: false,
            data: SealData::Inline { buf },
        };
        let store = self.owner.store();
        store.seal(vec![chunk], None).await.unwrap();
    }

    /// Homes that have it, and whether something is to be done about it at once.
    fn copies(&self, key: ChunkKey) -> Option<(usize, bool)> {
        let state = self.replicator.state();
        let copies = state.chunks.get(&key);
        copies.map(|c| (c.done.len(), c.is_busy))
    }

    fn held(&self) -> u64 {
        self.home.stats().peers.held_chunks
    }
}

fn reactor<F: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let config = Config {
        pool_buffers: 2,
        ..Config::default()
    };
    run(config, || async move {
        let bound = 3 * SOON;
        timeout(bound, test(path)).await.expect("the test hangs");
    })
    .unwrap();
}

#[test]
fn what_is_sealed_before_the_store_is_looked_through_is_copied_and_released() {
    reactor(|dir| async move {
        let two = Two::start(&dir).await;
        // Both are in the store when it is looked through; of one this is known already.
        two.seal(key(1)).await;
        two.replicator.add(vec![key(1)], true);
        until("it is copied", || two.copies(key(1)) == Some((1, false))).await;
        until("the store is looked through", || {
            two.replicator.state().has_looked
        })
        .await;
        // Long enough for whatever that begins.
        sleep(3 * LOOK).await;
        assert_eq!(two.copies(key(1)), Some((1, false)));
        two.replicator.add(vec![key(1)], true);
        assert_eq!(two.copies(key(1)), Some((1, false)));
        assert_eq!(two.replicator.given.load(Ordering::Relaxed), 1);
        two.replicator.remove(&[key(1)]);
        until("it is released", || two.held() == 0).await;
    });
}

#[test]
fn what_is_replaced_and_not_committed_keeps_its_copies() {
    reactor(|dir| async move {
        let two = Two::start(&dir).await;
        two.seal(key(1)).await;
        two.replicator.add(vec![key(1)], true);
        until("it is copied", || two.copies(key(1)) == Some((1, false))).await;
        until("the store is looked through", || {
            two.replicator.state().has_looked
        })
        .await;
        // The next version is sealed, and nobody can be asked whether it is committed. It is time to confirm.
        two.seal(key(2)).await;
        let soon = now();
        two.replicator.state().chunks.get_mut(&key(1)).unwrap().due = soon;
        until("it is confirmed", || {
            let state = two.replicator.state();
            let copies = state.chunks.get(&key(1)).expect("it is known still");
            copies.due > soon && !copies.is_busy
        })
        .await;
        assert_eq!(two.copies(key(1)), Some((1, false)));
        assert_eq!((two.held(), two.home.chunk_len(key(1))), (1, Some(LEN)));
        // It is committed.
        two.replicator.remove(&[key(1)]);
        two.replicator.add(vec![key(2)], true);
        until("the next is copied", || {
            two.copies(key(2)) == Some((1, false))
        })
        .await;
        assert_eq!((two.held(), two.home.chunk_len(key(2))), (1, Some(LEN)));
    });
}

#[test]
fn what_somebody_waits_for_comes_first_and_once() {
    reactor(|_| async move {
        let token = Token::new(b"0123456789abcdef").unwrap();
        let replicator = Replicator::new(Arc::new(Cluster::new(token)));
        replicator.add(vec![key(1), key(2), key(3)], true);
        replicator.hurry(&[key(3), key(4)]);
        let order: Vec<_> = std::iter::from_fn(|| replicator.state().take()).collect();
        assert_eq!(order, [key(3), key(1), key(2)]);
    });
}

#[test]
fn a_copy_counts_while_its_node_is_there() {
    reactor(|dir| async move {
        let two = Two::start(&dir).await;
        two.seal(key(1)).await;
        assert_eq!(two.replicator.copies(key(1)), 0);
        let changed = two.replicator.copies_changed();
        two.replicator.add(vec![key(1)], true);
        changed.await;
        until("it is copied", || two.replicator.copies(key(1)) == 1).await;
        let me = two.replicator.cluster.me().unwrap();
        two.replicator.cluster.set(me, &[]);
        assert_eq!(two.replicator.copies(key(1)), 0);
        let settled = two.replicator.copies_changed();
        two.replicator.remove(&[key(1)]);
        settled.await;
    });
}
