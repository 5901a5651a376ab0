//! Promise: an operator is told whether a node is well, what is wrong where it is not, and what to do; metrics are
//! what the documentation says.

use fastcache_tests::{
    Bytes, Cloud, Cluster, Fault, FaultProxy, Node, Plane, S3, Setup, drop_page_cache, output_of,
    program, repository, run, serial, wait_until,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn get(node: &Node, path: &str) -> String {
    run(Command::new("curl").args([
        "-sS",
        "--fail",
        "--max-time",
        "20",
        &format!("{}{path}", node.url()),
    ]))
}

/// Codes of the problems `status` tells, and its exit code.
fn problems(node: &Node) -> (i32, Vec<String>, Value) {
    let (code, status) = node.verdict(&["status"]);
    let codes = status["problems"].as_array().expect("problems");
    let codes = codes
        .iter()
        .map(|p| p["code"].as_str().expect("a code").to_owned());
    (code, codes.collect(), status)
}

#[test]
fn reads_of_the_cloud_that_are_stopped_are_told_and_go_on() {
    let _one = serial();
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let node = Node::start(Setup {
        cloud: Cloud::S3(s3.through(&proxy)),
        ..Setup::default()
    });
    // As many misses at once as stop the reads: each is tried for some seconds.
    let files: Vec<_> = (0..12).map(|n| node.at(&format!("file-{n}"))).collect();
    for file in &files {
        std::fs::write(file, b"cold").expect("write");
    }
    node.flush();
    node.evict();
    drop_page_cache();
    assert_eq!(problems(&node).0, 0);
    proxy.set(Fault::Refuse);
    std::thread::scope(|scope| {
        let read = |file| move || std::fs::read(file);
        let reads: Vec<_> = files.iter().map(|f| scope.spawn(read(f))).collect();
        for read in reads {
            let error = read
                .join()
                .expect("a reader")
                .expect_err("no cloud, no bytes");
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
    });
    let (code, codes, status) = problems(&node);
    assert_eq!(code, 1, "{status:#}");
    assert!(codes.contains(&"reads_stopped".to_owned()), "{status:#}");
    let out = node.try_ctl(&["status"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        text.contains("CRITICAL: reads of the object store are stopped"),
        "{text}"
    );
    let health: Value = serde_json::from_str(&get(&node, "/api/health")).expect("JSON");
    assert_eq!(health["are_cloud_reads_stopped"], true, "{health}");
    let metrics = get(&node, "/metrics");
    for line in [
        "fastcache_cloud_reads_stopped 1",
        "fastcache_problem{code=\"reads_stopped\"} 1",
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "no {line} in\n{metrics}"
        );
    }
    proxy.set(Fault::Pass);
    wait_until("reads work again", Duration::from_secs(60), || {
        std::fs::read(&files[0]).is_ok_and(|bytes| bytes == b"cold")
    });
    let (code, codes, _) = problems(&node);
    assert_eq!((code, codes), (0, vec![]));
}

#[test]
fn status_tells_health_hits_dirt_and_what_to_do() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(node.at("a"), Bytes::of(1).range(0, 9_000_000)).expect("write");
    let (code, codes, status) = problems(&node);
    assert_eq!((code, codes.len()), (0, 0), "{status:#}");
    assert_eq!(status["health"], "ok");
    node.flush();
    node.evict();
    std::fs::read(node.at("a")).expect("read");
    let text = node.ctl(&["status"]);
    for line in [
        "health      ok",
        "nvme ",
        "hit rate    nvme ",
        "dirty       nothing: everything is in the cloud",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(text.lines().count() <= 24, "one screen:\n{text}");
    let alone = node.json(&["status", "--cluster"]);
    assert_eq!(alone["coordinator"], "embedded", "{alone:#}");
    let nodes = alone["nodes"].as_array().expect("nodes");
    assert_eq!((nodes.len(), &nodes[0]["state"]), (1, &Value::from("live")));
    assert_eq!(nodes[0]["is_self"], true, "{alone:#}");

    // The cloud goes away: a warning, then critical; and well again by itself.
    let cloud = node.dir().join("cloud");
    let aside = node.dir().join("cloud-aside");
    std::fs::rename(&cloud, &aside).expect("rename");
    std::fs::write(&cloud, b"no directory").expect("write");
    std::fs::write(node.at("b"), Bytes::of(2).range(0, 5_000_000)).expect("write");
    wait_until("uploads are paused", Duration::from_secs(90), || {
        problems(&node).1.contains(&"uploads_paused".to_owned())
    });
    let (code, _, status) = problems(&node);
    assert_eq!(
        (code, &status["health"]),
        (1, &Value::from("critical")),
        "{status:#}"
    );
    let out = node.try_ctl(&["status"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(
        text.contains("CRITICAL: uploads are paused") && text.contains("do: "),
        "{text}"
    );
    assert!(
        status["oldest_dirty_age_seconds"]
            .as_f64()
            .or(status["queue"]["oldest_dirty_age_seconds"].as_f64())
            > Some(0.5)
    );
    let metrics = get(&node, "/metrics");
    for line in [
        "fastcache_health 2",
        "fastcache_breaker_open 1",
        "fastcache_problem{code=\"uploads_paused\"} 1",
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "no {line} in\n{metrics}"
        );
    }
    std::fs::remove_file(&cloud).expect("remove");
    std::fs::rename(&aside, &cloud).expect("rename");
    node.flush();
    assert_eq!(problems(&node).0, 0);

    // A data plane that is stopped, but alive, answers nothing.
    let pid = node
        .pid(Plane::Data)
        .and_then(|p| i32::try_from(p).ok())
        .expect("a data plane");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop");
    let (code, codes, status) = problems(&node);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("continue");
    assert_eq!(
        (code, codes),
        (1, vec!["data_plane_away".to_owned()]),
        "{status:#}"
    );
    wait_until("well again", Duration::from_secs(10), || {
        problems(&node).0 == 0
    });
}

#[test]
fn stats_follows_what_happens() {
    let _one = serial();
    let node = Node::start_default();
    let file = node.at("a");
    let is_over = AtomicBool::new(false);
    let (text, most) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0;
            while !is_over.load(Ordering::Relaxed) {
                writes += 1;
                std::fs::write(&file, Bytes::of(writes).range(0, 3_000_000)).expect("write");
                std::thread::sleep(Duration::from_millis(100));
            }
            3_000_000 * writes
        });
        let text = node.ctl(&["stats", "--count", "3", "--interval", "1", "--json"]);
        is_over.store(true, Ordering::Relaxed);
        (text, writer.join().expect("the writer"))
    });
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines.iter().all(|l| l["seconds"].as_f64() > Some(0.9)),
        "{text}"
    );
    let written: u64 = lines
        .iter()
        .filter_map(|l| l["written_bytes"].as_u64())
        .sum();
    assert!(
        (3_000_000..=most).contains(&written),
        "{written} bytes written\n{text}"
    );
    let once = node.ctl(&["stats", "--once"]);
    assert_eq!(once.lines().count(), 2, "{once}");
    assert!(once.starts_with("   req/s"), "{once}");
}

/// Names of the metrics in the documentation, with their types.
fn documented() -> BTreeMap<String, String> {
    let doc = std::fs::read_to_string(repository().join("docs/operations.md"))
        .expect("docs/operations.md");
    // Behind it is the coordinator's.
    let (doc, _) = doc
        .split_once("The coordinator has a `/metrics` of its own")
        .expect("the table of the coordinator");
    doc.lines()
        .filter(|l| l.starts_with("| `fastcache_"))
        .map(|l| {
            let cells: Vec<&str> = l.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
        })
        .collect()
}

/// Metrics with their types. Each has a value, and every value is announced.
fn announced(text: &str) -> BTreeMap<String, String> {
    let told: BTreeMap<String, String> = text
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE "))
        .map(|l| {
            let (name, kind) = l.split_once(' ').expect("a type");
            (name.to_owned(), kind.to_owned())
        })
        .collect();
    let named: BTreeSet<String> = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(|l| {
            let name = l.split(['{', ' ']).next().expect("a name");
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s));
            base.filter(|b| told.contains_key(*b))
                .unwrap_or(name)
                .to_owned()
        })
        .collect();
    assert_eq!(named, told.keys().cloned().collect());
    told
}

#[test]
fn metrics_are_what_the_documentation_says() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(node.at("a"), Bytes::of(1).range(0, 5_000_000)).expect("write");
    node.flush();
    node.evict();
    std::fs::read(node.at("a")).expect("read");
    // The first scrape is a request that the second one tells of.
    get(&node, "/metrics");
    let text = get(&node, "/metrics");
    let alone = announced(&text);
    // Some are about other nodes, each by its name.
    let cluster = Cluster::start(2, &["--lease", "4"]);
    let mut among = BTreeMap::new();
    wait_until("it knows the other node", Duration::from_secs(30), || {
        among = announced(&get(&cluster.nodes[0], "/metrics"));
        among.contains_key("fastcache_peer_connections")
    });
    let told: BTreeMap<_, _> = alone.into_iter().chain(among).collect();
    assert_eq!(told, documented());
    // One upload is counted once.
    let value = |line: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(line));
        found
            .unwrap_or_else(|| panic!("no {line} in\n{text}"))
            .trim()
            .parse::<f64>()
            .expect("a number")
    };
    assert!((value("fastcache_cloud_puts_total ") - 2.0).abs() < 0.1);
    assert!((value("fastcache_cloud_put_bytes_total ") - 5e6).abs() < 0.1);
    assert!((value("fastcache_cloud_put_duration_seconds_count ") - 2.0).abs() < 0.1);
    assert!(value("fastcache_hits_total{tier=\"cloud\"} ") >= 2.0);
    assert!(value("fastcache_fuse_request_duration_seconds_count{operation=\"write\"} ") >= 5.0);
    assert!(
        value("fastcache_fuse_request_duration_seconds_bucket{operation=\"write\",le=\"+Inf\"} ")
            >= 5.0
    );
}

#[test]
fn tune_tells_everybody_and_changes_only_when_asked() {
    let _one = serial();
    let node = Node::start(Setup::default());
    let dev = std::fs::metadata(node.mount()).expect("stat").dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let now = || {
        std::fs::read_to_string(&file)
            .expect("readahead")
            .trim()
            .to_owned()
    };
    assert_eq!(now(), "4096", "the data plane sets it");
    std::fs::write(&file, "128").expect("set readahead");

    let limits = |apply: bool| {
        let how = if apply { "--apply" } else { "--check" };
        let mut command = Command::new(program("fastcache-ctl"));
        command
            .args(["tune", how, "--json", "--mount"])
            .arg(node.mount());
        let out = output_of(&mut command);
        let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let ahead = value
            .as_array()
            .and_then(|all| {
                all.iter().find(|l| {
                    l["name"]
                        .as_str()
                        .is_some_and(|n| n.starts_with("readahead"))
                })
            })
            .cloned()
            .expect("readahead is looked at");
        (out.status.code(), ahead)
    };
    let (code, ahead) = limits(false);
    assert_eq!(
        (code, &ahead["is_good"]),
        (Some(1), &Value::Bool(false)),
        "{ahead:#}"
    );
    assert_eq!(ahead["now"], "128");
    assert_eq!(now(), "128", "only looked");
    // Somebody without privilege is told the same.
    let copy = std::env::temp_dir().join(format!("fastcache-ctl-{}", std::process::id()));
    std::fs::copy(program("fastcache-ctl"), &copy).expect("copy");
    let out = output_of(
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&copy)
            .args(["tune", "--mount"])
            .arg(node.mount()),
    );
    std::fs::remove_file(&copy).expect("remove");
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(
        out.status.code(),
        Some(1),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(
        text.contains("SLOW  readahead of") && text.contains("now:     echo 4096 >"),
        "{text}"
    );

    // Other limits of this machine are none of this test's business: they are put back.
    let shared = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let chosen = std::fs::read_to_string(shared).ok();
    let chosen = chosen
        .as_deref()
        .and_then(|t| t.split_once('[')?.1.split_once(']'))
        .map(|(c, _)| c.to_owned());
    let (_, ahead) = limits(true);
    if let Some(chosen) = chosen {
        std::fs::write(shared, chosen).expect("put back");
    }
    assert_eq!(ahead["is_good"], Value::Bool(true), "{ahead:#}");
    assert_eq!(ahead["applied"], "changed from 128 to 4096");
    assert_eq!(now(), "4096");
}
