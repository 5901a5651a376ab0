//! Goal: what an earlier agent told is forgotten, by the kernel too, before the coordinator hears that it is. Method: an agent that
//! comes before its data plane.

use super::data_plane::DataPlane;
use super::until;
use crate::{AgentConfig, Node};
use fastcache_api::control::DataCall;
use fastcache_coordinator::{Coordinator, Options};
use std::net::Ipv4Addr;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_that_comes_later_is_asked_to_forget() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::open(&dir.path().join("names"), Options::default()).unwrap();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ever = std::future::pending();
    tokio::spawn(fastcache_coordinator::serve(
        coordinator,
        listener,
        None,
        ever,
    ));
    let config = AgentConfig {
        socket: dir.path().join("data.sock"),
        state_dir: dir.path().join("state"),
        coordinator: Some(address),
        ..AgentConfig::default()
    };
    let node = Node::start(config).await.unwrap();
    // The coordinator has its agent, and its first lease is on its way.
    let registered = async {
        while node.heartbeat().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let soon = tokio::time::timeout(Duration::from_secs(10), registered);
    soon.await.unwrap();
    assert!(!node.wait_connected(Duration::from_millis(100)).await);

    let data = DataPlane::start(&dir.path().join("data.sock"));
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    until("it is asked to forget", || {
        let seen = data.seen();
        seen.iter()
            .any(|call| matches!(call, DataCall::ForgetEarlier))
    })
    .await;
    // The lease that it began with stays.
    let seen = data.seen();
    assert!(
        !seen
            .iter()
            .any(|call| matches!(call, DataCall::Forget { .. }))
    );
}
