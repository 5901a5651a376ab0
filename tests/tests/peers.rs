//! Promise: what one node has, another one reads from it: at once, before the cloud has it, with equal bytes; and a node that
//! is gone, slow or not let in costs time, never a wrong byte.

use fastcache_tests::{
    Bytes, Cluster, Coordinator, Fault, FaultProxy, Http, Node, Plane, S3, Setup, number, serial,
    wait_until,
};
use serde_json::Value;
use std::io::Write as _;
use std::time::Duration;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// How long nodes may take to hear of each other: a heartbeat, and room.
const HEARD_OF: Duration = Duration::from_secs(20);

/// Two nodes, their coordinator, and a bucket into which no chunk goes until it is let.
struct Two {
    first: Node,
    second: Node,
    proxy: FaultProxy,
    coordinator: Coordinator,
    _s3: S3,
}

fn setup(flags: &[String], token: &str) -> Setup {
    Setup {
        flags: [flags, &["--listen=127.0.0.1:0".to_owned()]].concat(),
        env: vec![
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("FASTCACHE_CLUSTER_TOKEN", token.to_owned()),
        ],
        capacity: Some("1GiB"),
        ..Setup::default()
    }
}

impl Two {
    fn start(tokens: [&str; 2]) -> Two {
        let s3 = S3::start();
        let proxy = FaultProxy::start(s3.port());
        let bucket = [
            "--cloud-provider",
            "s3",
            "--s3-region=us-east-1",
            "--s3-bucket",
            s3.bucket(),
        ];
        let straight = format!("--s3-endpoint={}", s3.endpoint());
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|n| (n, "test".to_owned()));
        // Nodes hear of each other with a heartbeat, a quarter of a lease.
        let flags = [&bucket[..], &[&straight, "--lease", "4"]].concat();
        let coordinator = Coordinator::start_in(&flags, &keys);
        let mut flags: Vec<String> = bucket.iter().map(|f| (*f).to_owned()).collect();
        flags.push(format!("--s3-endpoint={}", proxy.endpoint()));
        flags.push(format!("--coordinator={}", coordinator.address()));
        let [first, second] = std::thread::scope(|scope| {
            let start = |token| Node::start(setup(&flags, token));
            let starting = tokens.map(|token| scope.spawn(move || start(token)));
            starting.map(|node| node.join().expect("a node"))
        });
        let two = Two {
            first,
            second,
            proxy,
            coordinator,
            _s3: s3,
        };
        two.hold_uploads();
        for node in [&two.first, &two.second] {
            wait_until("the nodes know each other", HEARD_OF, || {
                known(node).len() == 1
            });
        }
        two
    }

    /// No chunk reaches the bucket from now on.
    fn hold_uploads(&self) {
        let fault = Fault::Status {
            code: 503,
            share: 1.0,
            retry_after_s: None,
        };
        self.proxy
            .set_where(fault, |r| r.is_put() && r.path.contains("/chunks/"));
    }

    /// Writes `file-0` and `file-1` on the first node, with so many of the bytes 0 and 1; they are on its device and in the bucket.
    fn write_to_cloud(&self, len: usize) {
        self.proxy.set(Fault::Pass);
        for n in 0..2 {
            write(&self.first, &format!("file-{n}"), n, len);
        }
        self.first.flush();
        wait_until("nothing is kept any more", HEARD_OF, || {
            self.second.stat("held_chunks") == 0
        });
    }
}

/// The other nodes that a node's data plane knows.
fn known(node: &Node) -> Vec<Value> {
    let status = node.json(&["status"]);
    let peers = &status["nvme"]["peers"]["peers"];
    peers.as_array().cloned().unwrap_or_default()
}

fn know_each_other(nodes: &[Node]) {
    for node in nodes {
        wait_until("the nodes know each other", HEARD_OF, || {
            known(node).len() == nodes.len() - 1
        });
    }
}

/// Writes a file with these bytes; when this returns every node can see it.
fn write(node: &Node, name: &str, number: u64, len: usize) {
    let mut file = std::fs::File::create(node.at(name)).expect("create");
    file.write_all(&Bytes::of(number).range(0, len))
        .expect("write");
    file.sync_all().expect("fsync");
}

#[track_caller]
fn expect(node: &Node, name: &str, number: u64, len: usize) {
    let got =
        std::fs::read(node.at(name)).unwrap_or_else(|e| panic!("{name}: {e}\n{}", node.logs()));
    assert_eq!(
        (got.len(), Bytes::of(number).first_difference(0, &got)),
        (len, None),
        "{name}"
    );
}

#[test]
fn a_file_closed_on_one_node_is_read_on_another_before_the_cloud_has_it() {
    let _one = serial();
    let two = Two::start([TOKEN; 2]);
    let files = [
        ("small", 100),
        ("block", 4096),
        ("odd", (4 << 20) + 12_345),
        ("large", 40 << 20),
    ];
    for (n, (name, len)) in (1..).zip(files) {
        write(&two.first, name, n, len);
    }
    for (n, (name, len)) in (1..).zip(files) {
        expect(&two.second, name, n, len);
    }
    let bytes: usize = files.iter().map(|(_, len)| len).sum();
    // Read, or copied before it was read.
    let came = two.second.stat("peer_fetched_bytes") + two.second.stat("held_bytes");
    assert!(came >= bytes as u64, "{came} of {bytes}");
    assert_eq!(two.second.stat("gets"), 0, "the cloud has none of it");
    assert_eq!(two.second.state_xattr("large"), "dirty");

    // What came is kept: with the other node gone it is read from here.
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        two.first.kill(plane);
    }
    for (n, (name, len)) in (1..).zip(files) {
        expect(&two.second, name, n, len);
    }
}

/// Waits until everything that is not in the cloud has its copies.
fn copied(node: &Node) {
    wait_until("everything is copied", HEARD_OF, || {
        node.stat("replicated_chunks") > 0 && node.stat("under_replicated_chunks") == 0
    });
}

#[test]
fn what_was_copied_outlives_the_node_that_wrote_it() {
    let _one = serial();
    let two = Two::start([TOKEN; 2]);
    let files = [("small", 100), ("large", 24 << 20)];
    for (n, (name, len)) in (1..).zip(files) {
        write(&two.first, name, n, len);
    }
    copied(&two.first);
    let bytes: u64 = files.iter().map(|(_, len)| *len as u64).sum();
    assert_eq!(two.second.stat("held_bytes"), bytes);
    assert_eq!(
        two.second.stat("dirty_chunks"),
        0,
        "another node uploads them"
    );

    // A home that was started again is asked, and keeps them on.
    two.second.kill(Plane::Data);
    two.second.wait_for_return();
    wait_until("it holds them again", HEARD_OF, || {
        two.second.stat("held_bytes") == bytes
    });

    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        two.first.kill(plane);
    }
    two.second.evict();
    for (n, (name, len)) in (1..).zip(files) {
        expect(&two.second, name, n, len);
    }
    assert_eq!(two.second.stat("held_bytes"), bytes, "they are not evicted");
    assert_eq!(two.second.stat("gets"), 0);
}

#[test]
fn a_node_with_another_token_is_not_let_in_and_reads_from_the_cloud() {
    let _one = serial();
    let two = Two::start([TOKEN, "another token of the same length"]);
    // Closed, not fsynced: that would wait for the other node or the cloud.
    let bytes = Bytes::of(7).range(0, 9 << 20);
    std::fs::write(two.first.at("file"), bytes).expect("write");
    // Nobody gives it these bytes, until the cloud has them.
    let path = two.second.at("file");
    let reader = std::thread::spawn(move || std::fs::read(path));
    wait_until("it asks", HEARD_OF, || {
        two.first.stat("refused_connections") > 0
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(!reader.is_finished(), "{:?}", reader.join());
    let said = two.first.logs();
    assert!(
        said.contains("does not know this cluster's token"),
        "{said}"
    );
    two.proxy.set(Fault::Pass);
    two.first.flush();
    let got = reader
        .join()
        .expect("a reader")
        .expect("it is in the cloud");
    assert_eq!(Bytes::of(7).first_difference(0, &got), None);
    expect(&two.second, "file", 7, 9 << 20);
    assert_eq!(two.second.stat("peer_fetched_bytes"), 0);
    assert_eq!(two.first.stat("served_bytes"), 0);
}

#[test]
fn what_three_nodes_read_at_once_comes_from_the_cloud_once() {
    let _one = serial();
    let cluster = Cluster::start_large(3);
    know_each_other(&cluster.nodes);
    let [first, others @ ..] = &cluster.nodes[..] else {
        panic!("three nodes")
    };
    let len = usize::try_from(number("FASTCACHE_SHARED_READ_MIB", 96)).expect("a size") << 20;
    write(first, "large", 3, len);
    first.flush();
    for node in others {
        wait_until("nothing is kept any more", HEARD_OF, || {
            node.stat("held_chunks") == 0
        });
    }
    for node in &cluster.nodes {
        node.evict();
    }
    std::thread::scope(|scope| {
        for node in &cluster.nodes {
            scope.spawn(|| expect(node, "large", 3, len));
        }
    });
    let all: u64 = cluster.nodes.iter().map(|n| n.stat("get_bytes")).sum();
    let most = len as u64 / 10 * 11;
    assert!((len as u64..=most).contains(&all), "{all} bytes of {len}");
}

#[test]
fn a_file_closed_on_one_node_is_read_on_all_others_at_once() {
    let _one = serial();
    let cluster = Cluster::start(3, &[]);
    know_each_other(&cluster.nodes);
    for (n, len) in [(1, 100), (2, 12 << 20)] {
        // Each writes one.
        for (at, node) in cluster.nodes.iter().enumerate() {
            let name = format!("{at}-{len}");
            std::fs::write(node.at(&name), Bytes::of(n).range(0, len)).expect("write");
            for other in &cluster.nodes {
                expect(other, &name, n, len);
            }
        }
    }
    let gets: u64 = cluster.nodes.iter().map(|n| n.stat("gets")).sum();
    assert_eq!(gets, 0, "the cloud was not asked");
}

#[test]
fn the_nodes_stand_side_by_side_with_how_they_are() {
    let _one = serial();
    let two = Two::start([TOKEN; 2]);
    let both = [&two.first, &two.second];
    write(&two.first, "file", 1, 9 << 20);
    expect(&two.second, "file", 1, 9 << 20);
    let name = |node: &Node| {
        let status = node.json(&["status"]);
        status["peer_id"].as_str().expect("a name").to_owned()
    };
    let names = both.map(name);
    let cluster = || two.first.json(&["status", "--cluster"]);
    wait_until("each tells what it does", HEARD_OF, || {
        for (n, node) in both.iter().enumerate() {
            std::fs::write(node.at(&format!("probe-{n}")), b"probe").expect("write");
        }
        let nodes = cluster()["nodes"].as_array().cloned().expect("nodes");
        nodes.len() == 2 && nodes.iter().all(|n| n["load"].as_u64() > Some(0))
    });
    let told = cluster();
    assert_eq!(told["coordinator"], Value::from(two.coordinator.address()));
    let nodes = told["nodes"].as_array().expect("nodes");
    for (node, name) in both.iter().zip(&names) {
        let line = nodes.iter().find(|n| n["id"] == **name).expect("its line");
        let here = node.json(&["status"]);
        assert_eq!(line["state"], "live", "{told:#}");
        for of_both in ["transport", "capacity_bytes"] {
            assert_eq!(line[of_both], here["nvme"][of_both], "{told:#}");
        }
        assert_eq!(line["version"], here["version"]);
        assert_eq!(
            line["is_self"],
            Value::from(std::ptr::eq(*node, &two.first))
        );
        assert!(line["last_heartbeat_ms"].as_u64() < Some(4000), "{told:#}");
        for place in ["address", "peer_address"] {
            assert!(
                line[place].as_str().is_some_and(|a| a.contains(':')),
                "{told:#}"
            );
        }
        for bytes in ["used_bytes", "dirty_bytes"] {
            assert!(line[bytes].is_u64(), "{told:#}");
        }
    }
    assert!(
        nodes
            .iter()
            .any(|n| n["used_bytes"].as_u64() > Some(9 << 20))
    );
    assert!(
        nodes.iter().any(|n| n["dirty_bytes"].as_u64() > Some(0)),
        "{told:#}"
    );

    // A table, one line each; and the same from wherever the coordinator is reached.
    let text = two.second.ctl(&["status", "--cluster"]);
    for (name, mark) in names.iter().zip(["", "*"]) {
        let line = text
            .lines()
            .find(|l| l.starts_with(name))
            .expect("its line");
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words.get(1) == Some(&"*"), mark == "*", "{text}");
        assert!(words.contains(&"live"), "{text}");
    }
    for heading in ["heard", "transport", "capacity", "dirty", "load"] {
        assert!(
            text.lines().nth(1).is_some_and(|l| l.contains(heading)),
            "{text}"
        );
    }
    let address = two.coordinator.address();
    let direct = fastcache_tests::run(
        std::process::Command::new(fastcache_tests::program("fastcache-ctl")).args([
            "status",
            "--cluster",
            "--json",
            "--coordinator",
            &address,
        ]),
    );
    let direct: Value = serde_json::from_str(&direct).expect("JSON");
    assert_eq!(
        direct["nodes"].as_array().map(Vec::len),
        Some(2),
        "{direct:#}"
    );

    // And each says what it has to do with the other.
    copied(&two.first);
    for (node, line) in [
        (&two.first, "1, 1 connected"),
        (&two.second, "kept here for other nodes"),
    ] {
        // Uploads are held, which it says by 1.
        let out = node.try_ctl(&["status"]);
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains(line), "no {line:?} in\n{text}");
        assert!(text.lines().any(|l| l.starts_with("copies ")), "{text}");
    }
}

/// What `/metrics` of a node has of a name and one other node; 0: nothing.
fn of_peer(node: &Node, name: &str, peer: &str) -> f64 {
    let text = Http::on(node.port())
        .ask("GET", "/metrics", &[], b"")
        .text();
    let begin = format!("{name}{{peer=\"{peer}\"}} ");
    let line = text.lines().find_map(|l| l.strip_prefix(&begin));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

#[test]
fn each_other_node_has_metrics_of_its_own_for_what_it_takes_and_what_fails() {
    let _one = serial();
    let two = Two::start([TOKEN; 2]);
    const LEN: usize = 32 << 20;
    two.write_to_cloud(LEN);
    two.second.evict();
    let id = two.first.json(&["status"])["peer_id"]
        .as_str()
        .expect("a name")
        .to_owned();
    let took = "fastcache_peer_request_duration_seconds";
    let seen = |of: &str| of_peer(&two.second, of, &id);
    let before = seen(&format!("{took}_count"));
    expect(&two.second, "file-0", 0, LEN);
    std::fs::metadata(two.second.at("file-1")).expect("its layout is known");
    assert!(
        seen(&format!("{took}_count")) > before,
        "answers with bytes"
    );
    assert!(seen(&format!("{took}_sum")) > 0.0);
    assert!(seen("fastcache_peer_requests_total") > 0.0);
    assert!(seen("fastcache_peer_in_bytes_total") > 0.0);
    let served = two.first.stat("served_bytes");
    assert!(served > 0);
    let errors = seen("fastcache_peer_errors_total");

    for plane in [Plane::Supervisor, Plane::Data] {
        two.first.kill(plane);
    }
    expect(&two.second, "file-1", 1, LEN);
    wait_until("what fails is counted for the node", HEARD_OF, || {
        seen("fastcache_peer_errors_total") > errors
    });
    let stranger = of_peer(&two.second, "fastcache_peer_errors_total", "nobody");
    assert_eq!(stranger, 0.0);
}

#[test]
fn a_node_that_stands_still_costs_the_hedge_delay() {
    let _one = serial();
    let two = Two::start([TOKEN; 2]);
    const LEN: usize = 16 << 20;
    two.write_to_cloud(LEN);
    two.second.evict();
    // There is a connection, and what is usual is known.
    expect(&two.second, "file-0", 0, LEN);
    assert!(two.second.stat("peer_fetched_bytes") > 0);
    std::fs::metadata(two.second.at("file-1")).expect("its layout is known");
    let data = two.first.pid(Plane::Data).expect("it runs");
    let signal = |signal| {
        let pid = i32::try_from(data)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), signal).expect("kill");
    };
    signal(rustix::process::Signal::STOP);
    let since = std::time::Instant::now();
    let read = std::panic::catch_unwind(|| expect(&two.second, "file-1", 1, LEN));
    let took = since.elapsed();
    signal(rustix::process::Signal::CONT);
    read.expect("the cloud has it");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(two.second.stat("peer_hedges") > 0);
}

#[test]
fn a_reader_that_waits_for_the_cloud_keeps_no_other_node_from_writing() {
    let _one = serial();
    let two = Two::start([TOKEN; 2]);
    const LEN: usize = 8 << 20;
    two.write_to_cloud(LEN);
    // The second one has this one's lease, and a page of it that must go.
    expect(&two.second, "file-1", 1, LEN);
    two.second.evict();
    two.first.evict();
    let unanswered = || {
        let port = two.coordinator.port();
        let stats = Http::on(port).ask("GET", "/api/stats", &[], b"").json();
        stats["coordinator"]["revocations_unanswered"].as_u64()
    };
    assert_eq!(unanswered(), Some(0));
    // Longer than a lease.
    let fault = Fault::Delay {
        delay: Duration::from_secs(8),
        share: 1.0,
    };
    two.proxy
        .set_where(fault, |r| r.is_get() && r.path.contains("/chunks/"));
    let path = two.second.at("file-1");
    let reader = std::thread::spawn(move || std::fs::read(path));
    std::thread::sleep(Duration::from_secs(1));
    let since = std::time::Instant::now();
    // All of it: nothing of what was there is needed.
    let written = std::fs::write(two.first.at("file-1"), Bytes::of(7).range(0, LEN));
    let took = since.elapsed();
    let is_over = reader.is_finished();
    // Before anything else: a node that is killed while its kernel waits for a read does not end.
    let read = reader.join().expect("a reader");
    written.expect("write");
    read.expect("it comes");
    assert!(!is_over, "the cloud is slow, {took:?}");
    assert!(took < Duration::from_secs(3), "less than a lease: {took:?}");
    expect(&two.second, "file-1", 7, LEN);
    assert_eq!(unanswered(), Some(0), "{}", two.second.logs());
}
