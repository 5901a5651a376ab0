//! Promise: a node works the same with a coordinator in a process of its own (gRPC) as with the embedded one.

use fastcache_tests::{Bytes, Coordinator, Http, Node, Plane, Setup, serial, temp_dir, wait_until};
use std::time::{Duration, Instant};

#[test]
fn a_node_with_a_coordinator_of_its_own_process() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let (mut coordinator, flags) = Coordinator::start_with_folder(bucket.path());
    let node = Node::start(Setup {
        flags,
        ..Setup::default()
    });

    std::fs::create_dir_all(node.at("a/b/c")).expect("mkdir");
    for n in 0..50 {
        std::fs::write(
            node.at(&format!("a/b/c/{n}")),
            Bytes::of(n).range(0, 50_000),
        )
        .expect("write");
    }
    std::fs::write(node.at("large"), Bytes::of(99).range(0, 20 << 20)).expect("write");
    node.flush();

    // kill -9: what was acknowledged is in its log.
    coordinator.kill();
    coordinator.start();
    node.evict();
    for n in 0..50 {
        let got = std::fs::read(node.at(&format!("a/b/c/{n}"))).expect("read");
        assert_eq!(
            (got.len(), Bytes::of(n).first_difference(0, &got)),
            (50_000, None)
        );
    }
    std::fs::rename(node.at("a/b/c"), node.at("moved")).expect("changes work again");
    assert_eq!(
        std::fs::read_dir(node.at("moved")).expect("list").count(),
        50
    );
    let got = std::fs::read(node.at("large")).expect("read");
    assert_eq!(
        (got.len(), Bytes::of(99).first_difference(0, &got)),
        (20 << 20, None)
    );
}

/// What `up` says of a node that must not start with these flags.
#[track_caller]
fn refusal(node: &Node, flags: &[&str]) -> String {
    let out = node.try_up_with(flags);
    let said = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    let said = said.concat();
    assert!(!out.status.success(), "{flags:?}: the node started: {said}");
    assert!(!node.is_mounted(), "{flags:?}: something is mounted");
    said
}

#[test]
fn a_second_node_with_the_id_of_another_is_refused_and_the_first_is_back_at_once() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let (mut coordinator, flags) = Coordinator::start_with_folder(bucket.path());
    let setup = || Setup {
        capacity: Some("256MiB"),
        flags: flags.clone(),
        ..Setup::default()
    };
    let (first, second) = (Node::prepare(setup()), Node::prepare(setup()));
    first.up_with(&["--peer-id=one"]);
    std::fs::write(first.at("file"), b"of the first").expect("write");
    let is_refused = || {
        let said = refusal(&second, &["--peer-id=one"]);
        for words in [
            "another node is registered as one",
            "--peer-id",
            "directory",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    };
    is_refused();
    assert_eq!(
        std::fs::read(first.at("file")).expect("read"),
        b"of the first"
    );
    // All of it killed: its place is kept, and it is back without a wait for a lease.
    first.kill_all();
    is_refused();
    let since = Instant::now();
    first.up_with(&["--peer-id=one"]);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(
        std::fs::read(first.at("file")).expect("read"),
        b"of the first"
    );
    // The coordinator, too.
    assert!(first.kill(Plane::Supervisor) && first.kill(Plane::Agent));
    coordinator.kill();
    coordinator.start();
    is_refused();
    first.up_with(&["--peer-id=one"]);
    second.up_with(&["--peer-id=two"]);
    assert_eq!(
        std::fs::read(second.at("file")).expect("read"),
        b"of the first"
    );
}

#[test]
fn a_node_with_another_bucket_than_its_coordinators_is_refused() {
    let _one = serial();
    let (ours, empty, theirs) = (temp_dir("bucket"), temp_dir("empty"), temp_dir("theirs"));
    let (coordinator, _) = Coordinator::start_with_folder(ours.path());
    // Another file system's.
    let (other, _) = Coordinator::start_with_folder(theirs.path());
    let folder = |dir: &tempfile::TempDir| format!("--cloud-dir={}", dir.path().display());
    // Its own, as it was at an earlier time.
    let copy = temp_dir("copy");
    let node = Node::prepare(Setup {
        flags: vec![
            format!("--coordinator={}", coordinator.address()),
            "--cloud-provider=dir".to_owned(),
        ],
        ..Setup::default()
    });
    let prefix = [&*folder(&ours), "--cloud-prefix=team"];
    let table: [(&[&str], &str); 3] = [
        (&[&folder(&empty)], "holds no file system"),
        (&prefix, "holds no file system"),
        (&[&folder(&theirs)], "holds the file system"),
    ];
    for (flags, want) in table {
        let said = refusal(&node, flags);
        for words in [
            "is not the bucket of this node's coordinator",
            "--cloud-prefix",
            want,
        ] {
            assert!(said.contains(words), "{flags:?}: {words}: {said}");
        }
    }
    drop(other);
    node.up_with(&[&folder(&ours)]);
    std::fs::write(node.at("file"), b"ours").expect("write");
    node.flush();
    assert_eq!(node.state_xattr("file"), "persisted");
    node.down();

    let mut coordinator = coordinator;
    fastcache_tests::run(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(ours.path().join("."))
            .arg(copy.path()),
    );
    coordinator.kill();
    coordinator.start();
    let said = refusal(&node, &[&folder(&copy)]);
    assert!(said.contains("a copy of it that ends with epoch"), "{said}");
}

#[test]
fn a_coordinator_that_goes_to_another_bucket_is_noticed_by_its_node() {
    let _one = serial();
    let (ours, other) = (temp_dir("bucket"), temp_dir("other"));
    let (mut coordinator, flags) = Coordinator::start_with_folder(ours.path());
    let node = Node::start(Setup {
        flags,
        ..Setup::default()
    });
    std::fs::write(node.at("before"), b"before").expect("write");
    node.flush();
    coordinator.kill();
    let other = other.path().display().to_string();
    coordinator.start_again_with(&["--cloud-provider", "dir", "--cloud-dir", &other]);
    let stopped = || {
        let (code, status) = node.verdict(&["status"]);
        let problems = status["problems"].as_array().expect("problems");
        let found = problems.iter().find(|p| p["code"] == "history_stopped");
        found.map(|p| (code, p["what"].as_str().unwrap_or("").to_owned()))
    };
    let what = "the node says that the bucket is another";
    wait_until(what, Duration::from_secs(60), || stopped().is_some());
    let (code, text) = stopped().expect("still");
    assert_eq!(code, 1);
    assert!(
        text.contains("is not the bucket of this node's coordinator"),
        "{text}"
    );
    // The file system works, and nothing of it is said to be safe.
    std::fs::write(node.at("after"), b"after").expect("write");
    assert_ne!(node.state_xattr("before"), "persisted");
    assert_ne!(node.state_xattr("after"), "persisted");
    let out = node.try_ctl(&["flush", "--wait"]);
    assert!(
        !out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}

/// What a node's health says: status, and the word for it. `None` while nobody listens.
fn health(node: &Node, path: &str) -> Option<(u16, String)> {
    let answer = Http::on(node.port()).try_ask("GET", path, &[], b"").ok()?;
    let word = answer.json()["status"].as_str().unwrap_or("").to_owned();
    Some((answer.status, word))
}

/// It is neither ready nor to be restarted, because it has no coordinator.
#[track_caller]
fn expect_registering(node: &Node) {
    let registering = |status| Some((status, "registering".to_owned()));
    assert_eq!(health(node, "/api/health"), registering(503));
    assert_eq!(health(node, "/api/health/live"), registering(200));
    let out = node.try_ctl(&["status"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("the coordinator 127.0.0.1:"),
        "{said}"
    );
}

#[test]
fn a_node_that_is_started_before_its_coordinator_waits_for_it_as_long_as_that_takes() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let (mut coordinator, flags) = Coordinator::start_with_folder(bucket.path());
    coordinator.kill();
    let setup = || Setup {
        flags: flags.clone(),
        ..Setup::default()
    };
    let (node, given_up) = (Node::prepare(setup()), Node::prepare(setup()));
    let since = Instant::now();
    std::thread::scope(|scope| {
        let up = scope.spawn(|| node.try_up());
        let other = scope.spawn(|| given_up.try_up());
        for node in [&node, &given_up] {
            wait_until("it says that it registers", Duration::from_secs(20), || {
                health(node, "/api/health").is_some_and(|(_, word)| word == "registering")
            });
            expect_registering(node);
        }
        // One that nobody wants any more is stopped like any other.
        given_up.ctl(&["down"]);
        let out = other.join().expect("up");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains("stopped before"),
            "{said}"
        );
        // Longer than a start may take otherwise.
        while since.elapsed() < Duration::from_secs(35) {
            assert!(!up.is_finished(), "{:?}", up.join());
            expect_registering(&node);
            std::thread::sleep(Duration::from_secs(1));
        }
        coordinator.start();
        let out = up.join().expect("up");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "{}: {said}\n{}",
            out.status,
            node.logs()
        );
        assert!(
            said.contains("waiting: the coordinator 127.0.0.1:"),
            "{said}"
        );
    });
    assert_eq!(health(&node, "/api/health"), Some((200, "ok".to_owned())));
    assert!(!given_up.is_mounted());
    std::fs::write(node.at("file"), b"hello").expect("write");
    assert_eq!(std::fs::read(node.at("file")).expect("read"), b"hello");
}

#[test]
fn an_agent_that_is_killed_while_its_coordinator_is_away_registers_when_that_comes() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let (mut coordinator, flags) = Coordinator::start_with_folder(bucket.path());
    let node = Node::start(Setup {
        flags,
        ..Setup::default()
    });
    std::fs::write(node.at("before"), Bytes::of(1).range(0, 5 << 20)).expect("write");
    node.flush();
    let stays = || [Plane::Supervisor, Plane::Data].map(|plane| node.pid(plane));
    let before = stays();
    coordinator.kill();
    assert!(node.kill(Plane::Agent));
    wait_until("the next agent registers", Duration::from_secs(20), || {
        health(&node, "/api/health").is_some_and(|(_, word)| word == "registering")
    });
    // Longer than the lease.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(12) {
        expect_registering(&node);
        std::thread::sleep(Duration::from_secs(1));
    }
    coordinator.start();
    wait_until("it is well again", Duration::from_secs(30), || {
        health(&node, "/api/health").is_some_and(|(status, _)| status == 200)
    });
    node.wait_for_return();
    assert_eq!(stays(), before, "nothing was restarted but the agent");
    let got = std::fs::read(node.at("before")).expect("read");
    assert_eq!(
        (got.len(), Bytes::of(1).first_difference(0, &got)),
        (5 << 20, None)
    );
    std::fs::write(node.at("after"), b"after").expect("write");
}
