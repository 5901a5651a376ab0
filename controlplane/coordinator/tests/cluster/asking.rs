//! What nodes are asked about: nobody waits for one that cannot answer.

use crate::support::{Server, acknowledge_all, named, within};
use fastcache_api::Ino;
use fastcache_coordinator::{Held, RemoteNamespace};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_asked_what_they_have_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    let (_a, a_revoked) = server.connect("a").await;
    let acking = acknowledge_all(a_revoked);
    let (_b, _b_revoked) = server.connect("b").await;
    let coordinator = &server.coordinator;
    // Each has opened its stream a moment after it was let in.
    let held = within(async {
        loop {
            let held = coordinator.held(Ino(7)).await;
            if held.len() > 1 {
                return held;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let held = held.await;
    let one = Held {
        chunks: 1,
        bytes: 100,
    };
    assert_eq!(held, [("a".to_owned(), one), ("b".to_owned(), one)].into());
    assert!(within(coordinator.held(Ino(8))).await.is_empty());
    // One that registered by REST listens to nobody, and is not waited for; one that listens and is silent is, for a second.
    let deaf = json!({"peer_id": "deaf"});
    assert_eq!(
        server
            .http("POST", "/api/peers/register", Some(deaf))
            .await
            .0,
        200
    );
    let since = Instant::now();
    assert_eq!(within(coordinator.held(Ino(7))).await.len(), 2);
    assert!(since.elapsed() < Duration::from_millis(900));
    let node = named("silent");
    let address = server.address.to_string();
    let (_silent, _notices) = within(RemoteNamespace::connect(&address, node, None))
        .await
        .unwrap();
    within(async {
        loop {
            let since = Instant::now();
            assert_eq!(coordinator.held(Ino(7)).await.len(), 2);
            if since.elapsed() >= Duration::from_secs(1) {
                break;
            }
        }
    })
    .await;
    server.end().await;
    acking.abort();
}
