//! Who is one of the nodes: an id belongs to one of them, and a restart of the coordinator is a delay.

use crate::support::{Server, acknowledge_all, change, chmod, entry, lookup, make, named, within};
use fastcache_api::Errno;
use fastcache_api::grpc::Node;
use fastcache_coordinator::{Namespace, RemoteError, RemoteNamespace};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_coordinator_is_a_delay() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 1000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let (b, b_revoked) = {
        let acking = acknowledge_all(a_revoked);
        let b = server.connect("b").await;
        drop(acking);
        b
    };
    let acking = acknowledge_all(b_revoked);
    let f = entry(&a.call(change(make("f"))).await).ino;
    let address = server.end().await;
    let calling = tokio::spawn(async move {
        let reply = a.call(chmod(f, 0o611)).await;
        (a, reply)
    });
    let server = Server::start(dir.path(), 1000, Some(address)).await;
    let (a, reply) = within(calling).await.unwrap();
    assert_eq!(entry(&reply).mode, 0o611);
    let b = Namespace::Remote(b);
    assert_eq!(entry(&within(b.call(lookup("f"))).await).mode, 0o611);
    drop(a);
    b.close(false).await;
    assert_eq!(b.call(lookup("f")).await.result, Err(Errno::EIO));
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_goes_or_moves_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // No heartbeat within this test: a quarter of the lease.
    let server = Server::start(dir.path(), 300_000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let mut versions = a.peers_version();
    let acking = acknowledge_all(a_revoked);
    let (b, _b_revoked) = server.connect("b").await;
    within(versions.changed()).await.unwrap();
    within(async { while a.peers().await.unwrap().len() < 2 {} }).await;
    let addresses = async || {
        let peers = a.peers().await.unwrap().into_iter();
        let addresses = peers.map(|p| p.node.unwrap().peer_address);
        addresses.collect::<Vec<_>>()
    };
    // What was told already is not told again: only b's move is news.
    tokio::time::sleep(Duration::from_millis(200)).await;
    versions.mark_unchanged();
    b.set_peer_address("10.0.0.2:8082");
    within(b.heartbeat()).await.unwrap();
    within(versions.changed()).await.unwrap();
    assert_eq!(addresses().await, ["", "10.0.0.2:8082"]);
    b.set_activity(7, "uring");
    within(b.heartbeat()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!versions.has_changed().unwrap(), "the list is the same");
    let b_told = a.peers().await.unwrap().remove(1).node.unwrap();
    assert_eq!((b_told.load, &*b_told.transport), (7, "uring"));
    let (_c, _c_revoked) = server.connect("c").await;
    within(versions.changed()).await.unwrap();
    assert_eq!(addresses().await.len(), 3);
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_version_is_told_both() {
    use fastcache_api::NS_VERSION;
    use fastcache_api::grpc::RegisterRequest;
    use fastcache_api::grpc::coordinator_client::CoordinatorClient;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    let address = format!("http://{}", server.address);
    let mut client = within(CoordinatorClient::connect(address)).await.unwrap();
    for theirs in [NS_VERSION + 1, NS_VERSION - 1, 0, u32::MAX] {
        let request = RegisterRequest {
            node: Some(named("a")),
            ns_version: theirs,
            previous_session: 0,
        };
        let refused = within(client.register(request)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        let text = refused.message();
        for said in [format!("version {NS_VERSION} "), format!("node {theirs}:")] {
            assert!(text.contains(&said), "{said}: {text}");
        }
    }
    assert!(
        server.coordinator.peers().is_empty(),
        "nobody was registered"
    );
    let (_a, _revocations) = server.connect("a").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_there_before_its_coordinator_registers_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let (tell, mut told) = mpsc::unbounded_channel();
    let connecting = tokio::spawn(async move {
        let node = named("a");
        let address = address.to_string();
        let tell = move |why: &str| drop(tell.send((std::time::Instant::now(), why.to_owned())));
        RemoteNamespace::connect_telling(&address, node, None, tell).await
    });
    // Five attempts, each wait twice as long as the one before; then slowly.
    let mut at = Vec::new();
    for _ in 0..5 {
        let (when, why) = within(told.recv()).await.unwrap();
        assert!(!why.is_empty());
        at.push(when);
    }
    let waits: Vec<_> = at.windows(2).map(|w| w[1] - w[0]).collect();
    for (wait, least) in waits.iter().zip([100, 200, 400, 800]) {
        assert!(*wait >= Duration::from_millis(least), "{waits:?}");
    }
    assert!(!connecting.is_finished());
    let server = Server::start(dir.path(), 10_000, Some(address)).await;
    let (_remote, _notices) = within(connecting).await.unwrap().unwrap();
    assert_eq!(server.coordinator.peers().len(), 1);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_belongs_to_one_live_node() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 2000, None).await;
    let (a, revocations) = server.connect("a").await;
    let node = named("a");
    let address = server.address.to_string();
    let other = RemoteNamespace::connect(&address, node, None);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), other)
            .await
            .is_err()
    );
    // Gone without a word: its stream ended, and the id is free at once.
    drop((a, revocations));
    let (_again, _revocations) = server.connect("a").await;
    let bad = named("no id");
    let refused = RemoteNamespace::connect(&address, bad, None).await;
    assert!(matches!(refused, Err(RemoteError::Refused { .. })));
    let nowhere = RemoteNamespace::connect("no address", Node::default(), None).await;
    assert!(matches!(nowhere, Err(RemoteError::Address(_))));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_refused_to_another_node_until_its_own_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 2000, None).await;
    let address = server.address.to_string();
    let connect = |identity: &str| {
        let node = Node {
            peer_id: "a".to_owned(),
            identity: identity.to_owned(),
            ..Default::default()
        };
        let address = address.clone();
        within(async move { RemoteNamespace::connect(&address, node, None).await })
    };
    let (a, notices) = connect("here").await.unwrap();
    let others = |refused: Result<_, RemoteError>| match refused.map(drop) {
        Err(RemoteError::Refused { why, .. }) => {
            assert!(why.contains("another node is registered as a"), "{why}");
            assert!(why.contains("--peer-id"), "{why}");
        }
        other => panic!("{other:?}"),
    };
    others(connect("there").await);
    // Its process is killed, and the coordinator started again: it is waited for.
    drop((a, notices));
    others(connect("there").await);
    let (_a, _notices) = connect("here").await.unwrap();
    let address = server.end().await;
    let server = Server::start(dir.path(), 2000, Some(address)).await;
    others(connect("there").await);
    let (_, peers, _) = server.http("GET", "/api/peers", None).await;
    assert!(!peers.to_string().contains("here"), "{peers}");
    server.end().await;
}
