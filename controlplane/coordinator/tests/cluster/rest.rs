//! REST says what there is; with a key nothing but health is open.

use crate::support::{Server, change, make, named, read, with_leases_taken, within};
use fastcache_api::grpc::Node;
use fastcache_api::{ApiKey, Ino, NsOp};
use fastcache_coordinator::{RemoteError, RemoteNamespace};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_nothing_but_health_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let key = Some(ApiKey::new("right"));
    let server = Server::start_with_key(dir.path(), 10_000, None, key).await;
    assert_eq!(server.http("GET", "/api/health", None).await.0, 200);
    for path in ["/api/peers", "/metrics", "/openapi.json", "/nothing"] {
        let (status, error, text) = server.http("GET", path, None).await;
        assert_eq!(
            (status, &error["error"]["code"]),
            (401, &json!("unauthorized"))
        );
        assert!(!text.contains("right"), "{text}");
    }
    let node = json!({"peer_id": "n1"});
    let refused = server.http("POST", "/api/peers/register", Some(node)).await;
    assert_eq!(refused.0, 401);
    let address = server.address.to_string();
    for key in [None, Some("wrong"), Some("")] {
        let node = named("n1");
        let refused = within(RemoteNamespace::connect(&address, node, key)).await;
        assert!(
            matches!(&refused, Err(RemoteError::Refused { why, .. }) if why.contains("--api-key")),
            "{:?}",
            refused.err()
        );
    }
    let unsendable = RemoteNamespace::connect(&address, Node::default(), Some("\n")).await;
    assert!(matches!(unsendable, Err(RemoteError::Key)));
    let node = named("n1");
    let (remote, notices) = within(RemoteNamespace::connect(&address, node, Some("right")))
        .await
        .unwrap();
    let mut revocations = with_leases_taken(notices);
    within(revocations.recv()).await.unwrap().ack().await;
    let root = read(NsOp::GetAttr { ino: Ino::ROOT });
    assert!(within(remote.call(root)).await.result.is_ok());
    within(remote.heartbeat()).await.unwrap();
    drop(remote);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_tells_nodes_files_and_counters() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    assert_eq!(server.http("GET", "/api/health", None).await.0, 200);
    let node = json!({"peer_id": "n1", "rest_address": "h:8081", "capacity_bytes": 100});
    let (status, registered, _) = server
        .http("POST", "/api/peers/register", Some(node.clone()))
        .await;
    assert_eq!((status, &registered["lease_ms"]), (200, &json!(10_000)));
    let (status, error, _) = server.http("POST", "/api/peers/register", Some(node)).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (409, &json!("peer_id_taken"))
    );
    let how = json!({"peer_id": "n1", "session": registered["session"], "used_bytes": 7,
        "load": 12, "transport": "dev"});
    assert_eq!(
        server.http("PUT", "/api/peers/status", Some(how)).await.0,
        200
    );
    let unknown = json!({"peer_id": "n1", "session": 1});
    assert_eq!(
        server
            .http("PUT", "/api/peers/status", Some(unknown))
            .await
            .0,
        404
    );
    let (_, peers, _) = server.http("GET", "/api/peers", None).await;
    assert_eq!(peers["peers"][0]["peer_id"], json!("n1"));
    assert_eq!(peers["peers"][0]["used_bytes"], json!(7));
    assert_eq!(peers["peers"][0]["state"], json!("live"));
    assert_eq!(peers["peers"][0]["load"], json!(12));
    assert_eq!(peers["peers"][0]["transport"], json!("dev"));

    let session = registered["session"].as_u64().unwrap();
    server
        .coordinator
        .call(session, change(make("a file")))
        .await
        .unwrap()
        .result
        .unwrap();
    let at = "/api/files/location?path=a%20file";
    let here = json!({"peer_id": "n1"});
    assert_eq!(server.http("PUT", at, Some(here)).await.0, 200);
    let (status, place, _) = server.http("GET", at, None).await;
    assert_eq!((status, &place["peers"][0]["peer_id"]), (200, &json!("n1")));
    let gone = json!({"peer_id": "n1", "present": false});
    assert_eq!(server.http("PUT", at, Some(gone)).await.0, 200);
    assert_eq!(server.http("GET", at, None).await.1["peers"], json!([]));
    let stranger = json!({"peer_id": "n2"});
    assert_eq!(server.http("PUT", at, Some(stranger)).await.0, 404);
    for (path, expected) in [
        ("nothing", 404),
        ("%ff", 404),
        ("/a%20file", 400),
        ("../x", 400),
        ("a//b", 400),
        ("", 400),
        ("%00", 400),
    ] {
        let at = format!("/api/files/location?path={path}");
        let (status, error, _) = server.http("GET", &at, None).await;
        assert_eq!(status, expected, "{path}");
        assert!(error["error"]["message"].is_string());
    }
    assert_eq!(server.http("GET", "/api/files/location", None).await.0, 400);
    let (status, error, _) = server
        .http("POST", "/api/peers/register", Some(json!([])))
        .await;
    assert!((400..500).contains(&status) && error["error"]["code"].is_string());
    let (status, error, _) = server.http("DELETE", "/api/peers", None).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (405, &json!("method_not_allowed"))
    );
    let (status, error, _) = server.http("GET", "/nothing", None).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("not_found"))
    );
    let (_, stats, _) = server.http("GET", "/api/stats", None).await;
    assert_eq!(stats["namespace"]["inodes"], json!(2));
    assert_eq!(stats["coordinator"]["peers_live"], json!(1));
    let (_, _, text) = server.http("GET", "/metrics", None).await;
    assert!(text.contains("\nfastcache_namespace_inodes 2\n"), "{text}");
    for held in ["cache_bytes", "write_buffer_bytes"] {
        let line = format!("\nfastcache_namespace_{held} ");
        assert!(text.contains(&line), "{text}");
    }
    server.end().await;
}
