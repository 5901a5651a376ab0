//! Promise: what was fsynced at level `peers` survives the loss of its node, device and all: it is on other nodes' devices, or
//! in the cloud, before fsync returns.

use fastcache_tests::{
    Bytes, HeldNodes, Http, Node, Plane, lose_everything, output_of, serial, wait_until,
};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an fsync may take that has somebody to take its bytes: far more than it does.
const SOON: Duration = Duration::from_secs(30);
/// How long one is watched that has nobody.
const WATCHED: Duration = Duration::from_secs(5);

/// How long it may take until a node is gone, and the others have done something about it: a minute without a heartbeat, ten
/// seconds and its turns, and room.
const GONE: Duration = Duration::from_secs(150);

const FILES: [(&str, usize); 4] = [
    ("small", 100),
    ("block", 4096),
    ("odd", (4 << 20) + 12_345),
    ("large", 24 << 20),
];

fn write_and_sync(file: &mut File, number: u64, len: usize) -> std::io::Result<()> {
    file.write_all(&Bytes::of(number).range(0, len))?;
    file.sync_all()
}

/// Writes and fsyncs a file in a thread of its own.
fn syncing(node: &Node, name: &str, number: u64, len: usize) -> JoinHandle<std::io::Result<()>> {
    let path = node.at(name);
    std::thread::spawn(move || write_and_sync(&mut File::create(path)?, number, len))
}

/// Waits until an fsync returns, and checks that it did so because of what was done last.
#[track_caller]
fn returned(node: &Node, fsync: JoinHandle<std::io::Result<()>>) {
    wait_until("the fsync returns", SOON, || fsync.is_finished());
    let synced = fsync.join().expect("a thread");
    synced.unwrap_or_else(|e| panic!("fsync: {e}\n{}", node.logs()));
}

#[track_caller]
fn expect(node: &Node, name: &str, number: u64, len: usize) {
    let got =
        std::fs::read(node.at(name)).unwrap_or_else(|e| panic!("{name}: {e}\n{}", node.logs()));
    let same = Bytes::of(number).first_difference(0, &got);
    assert_eq!((got.len(), same), (len, None), "{name}");
}

/// Fsyncs of a level that returned, as the node's metrics have it.
fn fsyncs(node: &Node, level: &str) -> u64 {
    let text = Http::on(node.port())
        .ask("GET", "/metrics", &[], b"")
        .text();
    let name = format!("fastcache_fsync_duration_seconds_count{{level=\"{level}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn what_was_fsynced_outlives_its_node_and_its_device() {
    let _one = serial();
    // Nothing is said of the level: there are other nodes.
    let held = HeldNodes::start(3, &[]);
    let (first, others) = held.nodes.split_first().expect("nodes");
    assert_eq!(first.json(&["status"])["fsync"], "peers");
    for (n, (name, len)) in (1..).zip(FILES) {
        let mut file = File::create(first.at(name)).expect("create");
        let began = Instant::now();
        write_and_sync(&mut file, n, len).expect("fsync");
        println!("{name}: {len} bytes and fsync took {:?}", began.elapsed());
        let state = first.state_xattr(name);
        assert!(
            ["replicated 1", "replicated 2"].contains(&state.as_str()),
            "{name}: {state}"
        );
        let told = first.json(&["state", &first.at(name).display().to_string()]);
        let told = told["state"].as_str().expect("a state").to_owned();
        assert!(told.starts_with("replicated "), "{name}: {told}");
    }
    assert_eq!(fsyncs(first, "peers"), FILES.len() as u64);
    assert_eq!(fsyncs(first, "local"), 0);

    lose_everything(first);
    for node in others {
        for (n, (name, len)) in (1..).zip(FILES) {
            expect(node, name, n, len);
        }
        assert_eq!(node.stat("gets"), 0, "the cloud has none of it");
    }
}

#[test]
fn without_another_node_it_waits_for_the_cloud() {
    let _one = serial();
    let held = HeldNodes::start(2, &["--fsync=peers"]);
    let [first, second] = &held.nodes[..] else {
        panic!("two nodes");
    };
    returned(first, syncing(first, "before", 1, 100_000));
    second.kill_all();
    let fsync = syncing(first, "file", 2, (4 << 20) + 5);

    // A program that waits can be ended.
    let script = "import os\nfd = os.open('other', os.O_WRONLY | os.O_CREAT)\nos.write(fd, b'x')\n\
                  print('ready', flush=True)\nos.fsync(fd)";
    let mut program = Command::new("python3")
        .args(["-c", script])
        .current_dir(first.mount())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut ready = [0; 6];
    let out = program.stdout.as_mut().expect("its output");
    out.read_exact(&mut ready).expect("it writes");

    std::thread::sleep(WATCHED);
    assert!(!fsync.is_finished(), "{:?}", fsync.join());
    assert_eq!(first.state_xattr("file"), "dirty");
    assert_eq!(program.try_wait().expect("wait"), None, "it waits, too");
    let pid = program.id().to_string();
    output_of(Command::new("kill").args(["-TERM", &pid]));
    let mut status = None;
    wait_until("the program ends", SOON, || {
        status = program.try_wait().expect("wait");
        status.is_some()
    });
    assert!(!fsync.is_finished(), "{:?}", fsync.join());

    held.let_uploads();
    returned(first, fsync);
    wait_until("it is said to be persisted", SOON, || {
        first.state_xattr("file") == "persisted"
    });
    expect(first, "file", 2, (4 << 20) + 5);
}

#[test]
fn two_copies_are_two_other_nodes_or_the_cloud() {
    let _one = serial();
    let held = HeldNodes::start(3, &["--fsync=peers", "--fsync-copies=2"]);
    let [first, second, third] = &held.nodes[..] else {
        panic!("three nodes");
    };
    returned(first, syncing(first, "two", 1, 9 << 20));
    assert_eq!(first.state_xattr("two"), "replicated 2");
    second.kill_all();
    let fsync = syncing(first, "one", 2, 1 << 20);
    wait_until("the third node has it", SOON, || {
        third.stat("held_chunks") == 4
    });
    std::thread::sleep(WATCHED);
    assert!(!fsync.is_finished(), "{:?}", fsync.join());
    assert_eq!(first.state_xattr("one"), "replicated 1");
    held.let_uploads();
    returned(first, fsync);
}

#[test]
fn a_node_that_is_gone_is_repaired_by_the_others() {
    let _one = serial();
    let held = HeldNodes::start(3, &[]);
    let (first, others) = held.nodes.split_first().expect("nodes");
    for (n, (name, len)) in (1..).zip(FILES) {
        returned(first, syncing(first, name, n, len));
    }
    let chunks = FILES.iter().map(|(_, len)| len.div_ceil(4 << 20) as u64);
    let chunks: u64 = chunks.sum();
    lose_everything(first);
    // Who has the only copies may be started again before anybody has missed their owner.
    for node in others {
        let before = node.pid(Plane::Data);
        assert!(node.kill(Plane::Data));
        // Nothing is written: of a file that is unlinked while a node is missed, chunks stay for a minute.
        wait_until("its data plane is back", SOON, || {
            node.pid(Plane::Data) != before && std::fs::metadata(node.at("small")).is_ok()
        });
    }

    // First they have the chunks for their own, with copies on each other: the cloud takes nothing yet.
    let sum = |name: &str| others.iter().map(|node| node.stat(name)).sum::<u64>();
    wait_until(
        "the node is gone, and its chunks are taken over",
        GONE,
        || {
            sum("repaired_chunks") >= chunks
                && sum("repair_chunks") >= chunks
                && sum("under_replicated_chunks") == 0
        },
    );
    for (name, _) in FILES {
        let states: Vec<String> = others.iter().map(|node| node.state_xattr(name)).collect();
        println!("{name}: {states:?}");
    }
    held.let_uploads();
    for (n, (name, len)) in (1..).zip(FILES) {
        for node in others {
            wait_until("it is persisted", GONE, || {
                node.state_xattr(name) == "persisted"
            });
        }
        let node = &others[0];
        node.evict();
        expect(node, name, n, len);
    }
    wait_until("nothing is left to be repaired", SOON, || {
        sum("repair_chunks") == 0 && sum("held_chunks") == 0 && sum("dirty_chunks") == 0
    });
    let done = sum("repaired_chunks");
    println!("{chunks} chunks, {done} times taken over");
    assert!(done < 2 * chunks, "they take turns: {done} of {chunks}");
}
