//! Goal: the coordinator has the locks that the data plane holds. Method: a coordinator of this process, and a data plane
//! that does not look at one of its lanes for a while.

use super::data_plane::DataPlane;
use super::until;
use crate::{AgentConfig, Node};
use fastcache_api::Ino;
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::locks::{Lock, LockAnswer, LockOp};
use fastcache_coordinator::{Coordinator, Options};
use std::net::Ipv4Addr;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_whose_grant_is_on_its_way_is_brought_along() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::open(&dir.path().join("names"), Options::default()).unwrap();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(fastcache_coordinator::serve(
        coordinator.clone(),
        listener,
        None,
        std::future::pending(),
    ));
    let data = DataPlane::start(&dir.path().join("data.sock"));
    let config = AgentConfig {
        socket: dir.path().join("data.sock"),
        state_dir: dir.path().join("state"),
        coordinator: Some(address),
        ..AgentConfig::default()
    };
    let node = Node::start(config).await.unwrap();
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    let ino = Ino(7);
    let lock = Lock {
        owner: 1,
        is_flock: false,
        start: 0,
        end: 9,
        is_exclusive: true,
        pid: 1,
    };
    let waits = false;
    data.pause_calls(true);
    let asking = {
        let data = data.clone();
        let set = NodeCall::Lock(LockOp::Set { ino, lock, waits });
        tokio::task::spawn_blocking(move || data.call(set))
    };
    until("the lock is granted", || coordinator.stats().locks == 1).await;
    let restoring = {
        let inner = node.inner().clone();
        let session = inner.link.current().unwrap();
        tokio::spawn(async move { inner.restore_locks(&session).await })
    };
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
