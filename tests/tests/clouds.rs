//! Promise: what is written to a node comes back from the cloud it names, whichever it is, and a cloud that cannot be used
//! is said at start with what to do.
//!
//! Short form: moto (S3) and Azurite. `FASTCACHE_CLOUDS=s3s` and `=ceph` add those servers (`make test-clouds`,
//! `make test-ceph`).

#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_tests::{
    Azurite, Bytes, Ceph, Fault, FaultProxy, Node, Plane, S3, S3s, Setup, drop_page_cache, serial,
    sha256_file, wait_until,
};
use std::time::Duration;

const CHUNK: usize = 4 << 20;
/// Empty, tiny, one chunk, a byte more, several chunks and a part.
const SIZES: [usize; 6] = [0, 1, 70_000, CHUNK, CHUNK + 1, 5 * CHUNK + 12_345];

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

fn s3_flags(endpoint: &str, bucket: &str, keys: (&str, &str)) -> Vec<String> {
    flags(&[
        ("cloud-provider", "s3"),
        ("s3-bucket", bucket),
        ("s3-endpoint", endpoint),
        ("s3-access-key", keys.0),
        ("s3-secret-key", keys.1),
    ])
}

fn azure_flags(azurite: &Azurite, container: &str, key: &str) -> Vec<String> {
    flags(&[
        ("cloud-provider", "azure"),
        ("azure-account", azurite.account()),
        ("azure-container", container),
        ("azure-endpoint", &azurite.endpoint()),
        ("azure-key", key),
    ])
}

fn node(flags: Vec<String>) -> Node {
    Node::start(Setup {
        flags,
        capacity: Some("256MiB"),
        ..Setup::default()
    })
}

/// Writes, uploads, evicts, reads back and compares; then again after a restart.
fn comes_back(node: &Node) {
    let files: Vec<(String, usize)> = SIZES
        .iter()
        .map(|len| (format!("file-{len}"), *len))
        .collect();
    let sums: Vec<String> = files
        .iter()
        .enumerate()
        .map(|(seed, (name, len))| {
            let copy = node.outside().join(name);
            std::fs::write(&copy, Bytes::of(seed as u64).range(0, *len)).unwrap();
            std::fs::copy(&copy, node.at(name)).unwrap();
            sha256_file(&copy)
        })
        .collect();
    node.flush();
    let compare = |when: &str| {
        node.evict();
        drop_page_cache();
        for ((name, _), want) in files.iter().zip(&sums) {
            assert_eq!(&sha256_file(&node.at(name)), want, "{name} {when}");
        }
    };
    compare("after eviction");
    for (name, _) in &files {
        assert_eq!(node.state_xattr(name), "persisted", "{name}");
    }
    node.down();
    node.up();
    compare("after a restart");
    node.down();
}

/// A node that must not start: what `up` says of it.
#[track_caller]
fn refusal(flags: Vec<String>) -> String {
    let node = Node::prepare(Setup {
        flags,
        capacity: Some("256MiB"),
        ..Setup::default()
    });
    let out = node.try_up();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(!out.status.success(), "the node started: {text}");
    assert!(!node.is_mounted(), "something is mounted all the same");
    text
}

#[test]
fn what_is_written_comes_back_from_s3_below_a_prefix() {
    let _one = serial();
    let s3 = S3::start();
    let mut with = s3_flags(&s3.endpoint(), s3.bucket(), ("AKIATESTS", "s3cr3t"));
    with.extend(flags(&[("cloud-prefix", "/team/one/")]));
    let node = node(with);
    comes_back(&node);
    let objects = s3.objects();
    assert!(
        objects
            .iter()
            .any(|(key, _)| key.starts_with("team/one/chunks/")),
        "{objects:?}"
    );
    for (key, _) in objects {
        assert!(
            key.starts_with("team/one/"),
            "{key} is not below the prefix"
        );
    }
}

#[test]
fn what_is_written_comes_back_from_azure() {
    let _one = serial();
    let azurite = Azurite::start();
    comes_back(&node(azure_flags(
        &azurite,
        azurite.container(),
        azurite.key(),
    )));
}

/// Whether a server that costs time to install is asked for.
fn is_asked_for(name: &str) -> bool {
    std::env::var("FASTCACHE_CLOUDS").is_ok_and(|names| names.split(',').any(|n| n == name))
}

#[test]
fn what_is_written_comes_back_from_a_server_that_checks_signatures() {
    if !is_asked_for("s3s") {
        return;
    }
    let _one = serial();
    let s3s = S3s::start();
    comes_back(&node(s3_flags(&s3s.endpoint(), s3s.bucket(), s3s.keys())));
    let said = refusal(s3_flags(
        &s3s.endpoint(),
        s3s.bucket(),
        (s3s.keys().0, "wrong"),
    ));
    assert!(said.contains("refuses these credentials"), "{said}");
    assert!(!said.contains("wrong"), "{said}");
}

#[test]
fn what_is_written_comes_back_from_ceph() {
    if !is_asked_for("ceph") {
        return;
    }
    let _one = serial();
    let ceph = Ceph::start();
    comes_back(&node(s3_flags(
        &ceph.endpoint(),
        ceph.bucket(),
        ceph.keys(),
    )));
    let said = refusal(s3_flags(
        &ceph.endpoint(),
        ceph.bucket(),
        (ceph.keys().0, "wrong"),
    ));
    assert!(said.contains("refuses these credentials"), "{said}");
    let said = refusal(s3_flags(&ceph.endpoint(), "not-there", ceph.keys()));
    assert!(said.contains("create it"), "{said}");
}

#[test]
fn a_missing_bucket_and_refused_credentials_are_said_at_start() {
    let _one = serial();
    let s3 = S3::start();
    let said = refusal(s3_flags(
        &s3.endpoint(),
        "not-there",
        ("AKIATESTS", "s3cr3t"),
    ));
    assert!(
        said.contains("bucket not-there") && said.contains("create it"),
        "{said}"
    );
    assert!(!said.contains("s3cr3t"), "{said}");
    let azurite = Azurite::start();
    let said = refusal(azure_flags(&azurite, "not-there", azurite.key()));
    assert!(
        said.contains("container not-there") && said.contains("create it"),
        "{said}"
    );
    let said = refusal(azure_flags(&azurite, azurite.container(), "d3Jvbmc="));
    assert!(said.contains("refuses these credentials"), "{said}");
}

#[test]
fn a_node_starts_without_its_cloud_and_uploads_when_it_comes() {
    let _one = serial();
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let secret = "s3cr3t-on-no-command-line";
    let node = node(s3_flags(
        &proxy.endpoint(),
        s3.bucket(),
        ("AKIATESTS", secret),
    ));
    // Once it was there: a new file system has to see that the bucket holds no other.
    node.down();
    proxy.set(Fault::Refuse);
    node.up();
    let said = node.logs();
    assert!(said.contains("cannot be reached"), "{said}");
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        let pid = node.pid(plane).unwrap();
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(
            !String::from_utf8_lossy(&words).contains(secret),
            "{plane:?}"
        );
    }
    std::fs::write(node.at("file"), [7; 100_000]).unwrap();
    let has_chunks = || s3.objects().iter().any(|(key, _)| key.contains("chunks/"));
    assert!(!has_chunks());
    proxy.set(Fault::Pass);
    wait_until("it is uploaded", Duration::from_secs(60), || {
        node.state_xattr("file") == "persisted"
    });
    assert!(has_chunks());
    assert!(!node.logs().contains(secret), "a secret is in a log");
}
