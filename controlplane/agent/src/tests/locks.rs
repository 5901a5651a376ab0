//! Goal: the coordinator has the locks that the data plane holds. Method: a coordinator of this process, and a data plane
//! that does not look at one of its lanes for a while, or waits for a lock.

use super::data_plane::DataPlane;
use super::until;
use crate::{AgentConfig, Node};
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::locks::{Lock, LockAnswer, LockOp};
use fastcache_api::{Errno, Ino};
use fastcache_coordinator::{Coordinator, Options};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

const INO: Ino = Ino(7);

fn lock_of(owner: u64) -> Lock {
    Lock {
        owner,
        is_flock: false,
        start: 0,
        end: 9,
        is_exclusive: true,
        pid: 1,
    }
}

/// An operation of the data plane, begun.
fn begin(data: &DataPlane, op: LockOp) -> tokio::task::JoinHandle<Result<NodeAnswer, Errno>> {
    let data = data.clone();
    tokio::task::spawn_blocking(move || data.call(NodeCall::Lock(op)))
}

/// A coordinator, a data plane and the node between them.
async fn start(dir: &Path) -> (Coordinator, DataPlane, Node) {
    let coordinator = Coordinator::open(&dir.join("names"), Options::default()).unwrap();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(fastcache_coordinator::serve(
        coordinator.clone(),
        listener,
        None,
        std::future::pending(),
    ));
    let data = DataPlane::start(&dir.join("data.sock"));
    let config = AgentConfig {
        socket: dir.join("data.sock"),
        state_dir: dir.join("state"),
        coordinator: Some(address),
        ..AgentConfig::default()
    };
    let node = Node::start(config).await.unwrap();
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    (coordinator, data, node)
}

/// Brings the coordinator all locks.
fn restore(node: &Node) -> tokio::task::JoinHandle<()> {
    let inner = node.inner().clone();
    let session = inner.link.current().unwrap();
    tokio::spawn(async move { inner.restore_locks(&session).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_whose_grant_is_on_its_way_is_brought_along() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, data, node) = start(dir.path()).await;
    data.pause_calls(true);
    let set = LockOp::Set {
        ino: INO,
        lock: lock_of(1),
        waits: false,
    };
    let asking = begin(&data, set);
    until("the lock is granted", || coordinator.stats().locks == 1).await;
    let restoring = restore(&node);
    // Time enough to bring a list that lacks it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    data.pause_calls(false);
    restoring.await.unwrap();
    assert!(matches!(
        asking.await.unwrap(),
        Ok(NodeAnswer::Lock(LockAnswer::Done))
    ));
    assert_eq!(coordinator.stats().locks, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_lock_keeps_nobody_from_bringing_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, data, node) = start(dir.path()).await;
    let set = |owner, waits| LockOp::Set {
        ino: INO,
        lock: lock_of(owner),
        waits,
    };
    let first = begin(&data, set(1, false)).await.unwrap();
    assert!(matches!(first, Ok(NodeAnswer::Lock(LockAnswer::Done))));
    // For two seconds, and then anew; of a coordinator that was restarted, until it has the first one back.
    let waiting = begin(&data, set(2, true));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let since = Instant::now();
    restore(&node).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(1));
    assert!(!waiting.is_finished(), "it asks again");
    assert_eq!(coordinator.stats().locks, 1);
    let second = waiting.await.unwrap();
    assert!(matches!(second, Ok(NodeAnswer::Lock(LockAnswer::Held(_)))));
}
