//! Promise: `/openapi.json` of both servers says what they do. Method: schemathesis makes requests from it, right and
//! wrong ones, and compares every answer with it; nothing may be a server error.
//!
//! `FASTCACHE_CONTRACT_SECONDS` is how long each server is asked (20 unless set; `make test-rest` takes longer). The long
//! form makes other requests each time, the short one the same.

use fastcache_tests::{Coordinator, Http, Node, Setup, output_of, repository, seed, serial};
use std::path::Path;
use std::process::Command;

const KEY: &str = "contract-key";
/// Seconds for each server.
const SECONDS: &str = "20";

/// Runs schemathesis against a server. `excluded` are operations of which it is told nothing.
fn agrees(what: &str, port: u16, dir: &Path, excluded: &[&str]) {
    let seconds = std::env::var("FASTCACHE_CONTRACT_SECONDS").unwrap_or(SECONDS.to_owned());
    let mut command = Command::new("timeout");
    command.args(["-s", "INT", "3600"]);
    command.arg(repository().join(".venv/bin/schemathesis"));
    // its cache and reports go to the test's folder
    command.current_dir(dir);
    command.arg("--config-file");
    command.arg(repository().join("tests/schemathesis.toml"));
    command.arg("run");
    command.arg(format!("http://127.0.0.1:{port}/openapi.json"));
    command.args(["--header", &format!("X-API-Key: {KEY}")]);
    command.args(["--phases", "examples,coverage,fuzzing"]);
    command.args([
        "--max-time",
        &seconds,
        "--continue-on-failure",
        "--no-shrink",
    ]);
    command.args(["--request-timeout", "30", "--warnings", "off"]);
    command.args(["--suppress-health-check", "all"]);
    let seed = seed("FASTCACHE_CONTRACT_SEED", "FASTCACHE_CONTRACT_SECONDS");
    command.args(["--seed", &seed.to_string()]);
    for id in excluded {
        command.args(["--exclude-operation-id", id]);
    }
    let out = output_of(&mut command);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{what}: {}\n{text}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    println!("{what}:\n{text}");
    let http = Http::on(port);
    assert_eq!(
        http.ask("GET", "/api/health", &[], b"").status,
        200,
        "{what} serves on"
    );
}

#[test]
fn the_node_does_what_its_openapi_says() {
    let _one = serial();
    let flags = vec!["--api-key".to_owned(), KEY.to_owned()];
    let node = Node::start(Setup {
        flags,
        ..Setup::default()
    });
    let http = Http::on(node.port()).with("X-API-Key", KEY);
    for path in ["a", "dir/b", "0"] {
        let put = http.ask("PUT", &format!("/api/files/{path}"), &[], b"0123456789");
        assert_eq!(put.status, 200, "{}", put.text());
    }
    // One of two parameters is wanted, which a document cannot say: 400 is right.
    agrees("node", node.port(), node.outside(), &["adminEvict"]);
    assert!(std::fs::read_dir(node.mount()).is_ok(), "the mount answers");
}

#[test]
fn the_coordinator_does_what_its_openapi_says() {
    let _one = serial();
    let coordinator = Coordinator::start_with(&["--api-key", KEY]);
    agrees("coordinator", coordinator.port(), coordinator.dir(), &[]);
}
