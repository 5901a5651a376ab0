//! What was acknowledged is there again when the coordinator's machine lost power, and when everything was killed at once.

use super::files::{SOON, is_long};
use fastcache_tests::{
    Busy, Bytes, Cluster, Http, Node, Plane, serial, wait_until, write_and_close,
};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::Duration;

/// What was acknowledged and not on the coordinator's stable storage is there again: nodes had kept it.
#[test]
fn power_cut_of_the_coordinators_machine_loses_no_name() {
    const EACH: u64 = 40;
    let _one = serial();
    // It puts nothing on stable storage by itself, as in the last 50 ms before any power cut.
    let mut cluster = Cluster::start(2, &["--lease", "8", "--log-sync-ms", "60000"]);
    let (nodes, coordinator) = (&cluster.nodes, &mut cluster.coordinator);
    let [a, b] = [&nodes[0], &nodes[1]];
    for name in ["renamed", "removed", "changed"] {
        write_and_close(a.at(name), &Bytes::of(1).range(0, 5_000)).expect("write");
    }
    let port = coordinator.port();
    let stats = |of: &str, what: &str| {
        let stats = Http::on(port).ask("GET", "/api/stats", &[], b"").json();
        stats[of][what].as_u64().expect("a number")
    };
    let positions = || {
        let of = |what| stats("namespace", what);
        (of("log_position"), of("synced_position"))
    };
    nodes.iter().for_each(Node::flush);
    wait_until("all of it is on stable storage", SOON, || {
        let (dir, before) = (File::open(a.mount()), positions());
        dir.and_then(|d| d.sync_all()).expect("fsync");
        std::thread::sleep(Duration::from_millis(300));
        before == positions() && before.0 == before.1
    });
    let before = coordinator.copy_state();
    let (_, stable) = positions();

    // Each needs what the other did.
    fs::create_dir(a.at("dir")).expect("mkdir");
    fs::create_dir(b.at("dir/sub")).expect("mkdir");
    fs::rename(a.at("dir"), a.at("moved")).expect("rename");
    fs::rename(b.at("renamed"), b.at("moved/sub/here")).expect("rename");
    fs::remove_file(a.at("removed")).expect("unlink");
    write_and_close(b.at("changed"), &Bytes::of(2).range(0, 9_000)).expect("write");
    for n in 0..EACH {
        for (node, at) in nodes.iter().zip(["a", "b"]) {
            let name = format!("moved/sub/{at}{n}");
            write_and_close(node.at(&name), &Bytes::of(n).range(0, 3_000)).expect("write");
        }
    }
    // One that the other node wrote last.
    write_and_close(a.at("moved/sub/b0"), &Bytes::of(77).range(0, 4_000)).expect("write");
    let (last, synced) = positions();
    assert_eq!(
        synced, stable,
        "nothing was put on stable storage meanwhile"
    );
    coordinator.kill();
    coordinator.lose_power(&before);
    coordinator.start();

    let mut expected: Vec<String> = (0..EACH)
        .flat_map(|n| [format!("a{n}"), format!("b{n}")])
        .chain(["here".to_owned()])
        .collect();
    expected.sort();
    let names = |node: &Node, dir: &str| {
        let listed = fs::read_dir(node.at(dir)).unwrap_or_else(|e| panic!("{dir}: {e}"));
        let name = |e: std::io::Result<fs::DirEntry>| e.map(|e| e.file_name());
        let names = listed.map(|e| name(e).expect("an entry").to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    for node in nodes {
        assert_eq!(names(node, "moved/sub"), expected, "{}", node.logs());
        assert_eq!(names(node, ""), ["changed", "moved"]);
        let contents = |name: &str, seed: u64, len: usize| {
            let got = fs::read(node.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let differs = Bytes::of(seed).first_difference(0, &got);
            assert_eq!((got.len(), differs), (len, None), "{name}");
        };
        for n in 0..EACH {
            contents(&format!("moved/sub/a{n}"), n, 3_000);
            if n > 0 {
                contents(&format!("moved/sub/b{n}"), n, 3_000);
            }
        }
        contents("moved/sub/b0", 77, 4_000);
        contents("moved/sub/here", 1, 5_000);
        contents("changed", 2, 9_000);
    }
    assert_eq!(stats("coordinator", "changes_lost"), 0);
    let restored = stats("coordinator", "changes_restored");
    assert!(
        restored >= 4 * EACH && restored <= last - stable,
        "{restored}"
    );
    // What comes then is as ever.
    for (node, at) in nodes.iter().zip(["a", "b"]) {
        write_and_close(node.at(at), &Bytes::of(5).range(0, 100)).expect("write");
    }
    assert_eq!(names(a, ""), ["a", "b", "changed", "moved"]);
    let (code, report) = a.verdict(&["fsck"]);
    assert_eq!(code, 0, "{report}");
}

#[test]
fn everything_killed_at_once_and_started_again() {
    let _one = serial();
    let mut cluster = Cluster::start(3, &["--lease", "4"]);
    let rounds = if is_long() { 10 } else { 1 };
    for round in 0..rounds {
        let (nodes, coordinator) = (&cluster.nodes, Mutex::new(&mut cluster.coordinator));
        // fsynced and never closed; what is written behind that is nobody's promise.
        let open = |n: usize| -> File {
            let mut options = OpenOptions::new();
            let options = options.create(true).write(true).truncate(true);
            options
                .open(nodes[n].at(&format!("open{n}")))
                .expect("open")
        };
        let bytes = Bytes::of(77 + round).range(0, 200_000);
        let synced: Vec<File> = (0..3).map(open).collect();
        for file in &synced {
            file.write_all_at(&bytes, 0).expect("write");
            file.sync_all().expect("fsync");
            file.write_all_at(b"more", 200_000).expect("write");
        }
        let busy = Busy::prepare(nodes);
        busy.run(|busy| {
            let so_far = busy.count();
            wait_until("more is written", SOON, || busy.count() > so_far + 60);
            for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
                for node in nodes {
                    assert!(node.kill(plane), "{plane:?}");
                }
                if plane == Plane::Supervisor {
                    coordinator.lock().expect("lock").kill();
                }
            }
        });
        drop(synced);
        coordinator.lock().expect("lock").start();
        std::thread::scope(|scope| {
            for node in nodes {
                scope.spawn(|| node.up());
            }
        });
        busy.expect_all();
        for node in nodes {
            for n in 0..3 {
                let got = fs::read(node.at(&format!("open{n}"))).expect("read");
                assert!(got.starts_with(&bytes), "open{n} was fsynced");
            }
            node.wait_for_return();
        }
    }
}
