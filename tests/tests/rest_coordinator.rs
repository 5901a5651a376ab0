//! Promise: the coordinator's REST tells the nodes and where files are; with `--api-key` neither it nor gRPC is open to
//! who does not show the key, and nodes that do work as before.

use fastcache_tests::{
    Coordinator, Http, Node, Setup, free_port, output_of, program, serial, temp_dir, wait_until,
};
use serde_json::json;
use std::process::Command;
use std::time::Duration;

const KEY: &str = "the-cluster-key";

fn node_of(coordinator: &Coordinator, more: &[&str]) -> Node {
    let address = coordinator.address();
    let mut flags = vec!["--coordinator", &address, "--peer-id", "n1"];
    flags.extend(more);
    let flags = flags.into_iter().map(str::to_owned);
    Node::start(Setup {
        flags: flags.chain(coordinator.bucket()).collect(),
        ..Setup::default()
    })
}

#[test]
fn with_a_key_only_who_shows_it_gets_in() {
    let _one = serial();
    let mut coordinator = Coordinator::start_with(&["--api-key", KEY]);
    let open = Http::on(coordinator.port());
    let keyed = open.clone().with("X-API-Key", KEY);
    let wrong = open.clone().with("X-API-Key", "the-cluster-kez");
    assert_eq!(open.ask("GET", "/api/health", &[], b"").status, 200);
    for (method, path) in [
        ("GET", "/api/peers"),
        ("GET", "/api/stats"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/api/peers/register"),
        ("PUT", "/api/peers/status"),
        ("GET", "/api/files/location?path=f"),
        ("PUT", "/api/files/location?path=f"),
        ("GET", "/no/such/path"),
        ("POST", "/no/such/path"),
    ] {
        for http in [&open, &wrong] {
            let answer = http.ask(method, path, &[], b"{}");
            assert_eq!(answer.status, 401, "{method} {path}");
            assert_eq!(answer.json()["error"]["code"], "unauthorized");
            assert!(!answer.text().contains(KEY));
        }
        assert_ne!(
            keyed.ask(method, path, &[], b"{}").status,
            401,
            "{method} {path}"
        );
    }

    // A node without the key, or with another one, is refused at its start and says what to do.
    for flags in [&[][..], &["--api-key", "the-cluster-kez"]] {
        let dir = temp_dir("refused");
        let out = output_of(
            Command::new("timeout")
                .arg("30")
                .arg(program("fastcache-ctl"))
                .arg("--socket")
                .arg(dir.path().join("data.sock"))
                .arg("--state-dir")
                .arg(dir.path().join("state"))
                .args(["--cloud-provider", "none", "--bind", "127.0.0.1"])
                .args(["--port", &free_port().to_string()])
                .args(["--coordinator", &coordinator.address()])
                .args(flags),
        );
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && out.status.code() != Some(124),
            "{}",
            out.status
        );
        assert!(said.contains("--api-key"), "{said}");
        assert!(!said.contains(KEY), "{said}");
    }

    // One with it works, also after the coordinator was killed.
    let node = node_of(&coordinator, &["--api-key", KEY]);
    std::fs::write(node.at("f"), "contents").expect("write");
    coordinator.kill();
    coordinator.start();
    std::fs::write(node.at("g"), "more").expect("write");
    assert_eq!(
        std::fs::read_to_string(node.at("f")).expect("read"),
        "contents"
    );
}

#[test]
fn nodes_and_files_are_told() {
    let _one = serial();
    let coordinator = Coordinator::start_with(&[]);
    let there = Http::on(coordinator.port());
    let node = node_of(&coordinator, &[]);
    let here = Http::on(node.port());
    let put = here.ask("PUT", "/api/files/dir/a%20file", &[], b"0123456789");
    assert_eq!(put.status, 200, "{}", put.text());

    // A second one registers by REST, and is heard of.
    let json_type = [("Content-Type", "application/json")];
    let body = json!({"peer_id": "n2", "rest_address": "10.0.0.2:8081", "capacity_bytes": 5});
    let second = there.ask(
        "POST",
        "/api/peers/register",
        &json_type,
        body.to_string().as_bytes(),
    );
    assert_eq!(second.status, 200, "{}", second.text());
    let session = second.json()["session"].clone();
    let taken = there.ask(
        "POST",
        "/api/peers/register",
        &json_type,
        body.to_string().as_bytes(),
    );
    assert_eq!(
        (taken.status, taken.json()["error"]["code"].as_str()),
        (409, Some("peer_id_taken"))
    );
    let beat = json!({"peer_id": "n2", "session": session, "rest_address": "10.0.0.2:8081", "used_bytes": 3});
    let beat = there.ask(
        "PUT",
        "/api/peers/status",
        &json_type,
        beat.to_string().as_bytes(),
    );
    assert_eq!(beat.status, 200, "{}", beat.text());

    // The node tells what the coordinator knows, itself first.
    let peers = here.ask("GET", "/api/peers", &[], b"").json();
    let ids: Vec<_> = peers["peers"]
        .as_array()
        .expect("peers")
        .iter()
        .map(|p| p["id"].clone())
        .collect();
    assert_eq!(ids, ["n1", "n2"]);
    assert_eq!(peers["peers"][0]["is_self"], json!(true));
    let second = here.ask("GET", "/api/peers/n2", &[], b"").json();
    assert_eq!(
        (&second["used_bytes"], &second["is_healthy"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(second["address"], json!("10.0.0.2:8081"));
    assert_eq!(here.ask("GET", "/api/peers/n3", &[], b"").status, 404);
    let own = here.ask("POST", "/api/peers/n1/heartbeat", &[], b"");
    assert_eq!((own.status, &own.json()["status"]), (200, &json!("ok")));
    let other = here.ask("POST", "/api/peers/n2/heartbeat", &[], b"");
    assert_eq!(other.status, 409, "{}", other.text());
    assert!(
        other.text().contains("10.0.0.2:8081"),
        "it says where: {}",
        other.text()
    );

    // Where a file is: who said so, and how much of it is in the cloud.
    node.flush();
    let at = "/api/files/location?path=dir/a%20file";
    let place = there.ask("GET", at, &[], b"").json();
    assert_eq!(place["peers"][0]["peer_id"], json!("n1"), "{place:#}");
    assert_eq!(place["held"][0]["peer_id"], json!("n1"), "{place:#}");
    assert_eq!(place["held"][0]["chunks"], json!(1), "{place:#}");
    node.evict();
    wait_until("it has nothing of it", Duration::from_secs(10), || {
        there.ask("GET", at, &[], b"").json()["held"] == json!([])
    });
    let held = there.ask("PUT", at, &json_type, br#"{"peer_id":"n1"}"#);
    assert_eq!(held.status, 200, "{}", held.text());
    let place = there.ask("GET", at, &[], b"").json();
    assert_eq!(
        (&place["size"], &place["cloud_chunks"]),
        (&json!(10), &json!(1))
    );
    assert_eq!(place["peers"][0]["peer_id"], json!("n1"));
    for (path, want) in [
        ("dir/nothing", 404),
        ("dir", 409),
        ("../x", 400),
        ("/dir/a%20file", 400),
        ("", 400),
    ] {
        let answer = there.ask("GET", &format!("/api/files/location?path={path}"), &[], b"");
        assert_eq!(answer.status, want, "{path}: {}", answer.text());
        assert!(answer.json()["error"]["message"].is_string());
    }
    assert_eq!(
        there.ask("GET", "/api/stats", &[], b"").json()["coordinator"]["peers"],
        json!(2)
    );
    assert!(
        there
            .ask("GET", "/metrics", &[], b"")
            .text()
            .contains("fastcache_coordinator_peers 2")
    );
    let answer = there.ask("PUT", "/api/peers/status", &json_type, &vec![b' '; 100_000]);
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (413, Some("too_large"))
    );
    let answer = there.ask("PUT", "/api/peers/status", &[], b"{}");
    assert_eq!(answer.status, 415, "{}", answer.text());
}
