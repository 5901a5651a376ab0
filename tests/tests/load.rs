//! Promise: whatever programs do side by side, the mount holds what a local file system would hold; and it still does
//! after everything was evicted, after the node was stopped and started again, and after every disk but the bucket is lost.
//!
//! Each worker is a process (`fastcache-load`); every other one has no privileges. A failure prints the worker's last
//! operations and its command line, which does the same again on two empty folders.

use fastcache_tests::load::{Task, compare_now, same_times};
use fastcache_tests::{
    Node, Setup, assert_same_tree, drop_page_cache, lose_everything, number, output_of, seed,
    serial, temp_dir,
};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The user of every other worker; tests/setup/install.sh adds it.
const USER: &str = "tests";
/// Processes at work at the same time.
const WORKERS: u64 = 6;
/// Operations of each in a round of the short form.
const OPS: u64 = 1_500;
/// Rounds of the short form.
const ROUNDS: u64 = 2;

fn user_id() -> u32 {
    let out = output_of(Command::new("id").args(["-u", USER]));
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("there is no user {USER}: tests/setup/install.sh adds it"))
}

fn start(task: &Task, user: u32) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastcache-load"));
    command
        .args([task.seed, task.worker, task.workers, task.ops].map(|n| n.to_string()))
        .args([&task.mount, &task.model])
        .stderr(Stdio::piped());
    if user != 0 {
        command.uid(user).gid(user);
    }
    command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"))
}

/// One round: all workers at once, with evictions in between.
fn round(node: &Node, seed: u64, model: &Path) {
    let user = user_id();
    let tasks: Vec<(Task, u32)> = (0..WORKERS)
        .map(|worker| {
            let task = Task {
                seed,
                worker,
                workers: WORKERS,
                ops: number("FASTCACHE_LOAD_OPS", OPS),
                mount: node.at("load"),
                model: model.to_owned(),
            };
            (task, if worker % 2 == 1 { user } else { 0 })
        })
        .collect();
    for (task, user) in &tasks {
        task.prepare(*user);
    }
    let mut children: Vec<(&Task, Child)> = tasks.iter().map(|(t, u)| (t, start(t, *u))).collect();
    let mut stories = Vec::new();
    while !children.is_empty() {
        std::thread::sleep(Duration::from_millis(300));
        let mut left = Vec::new();
        for (task, mut child) in children {
            match child.try_wait() {
                Ok(None) => left.push((task, child)),
                _ => {
                    let out = child.wait_with_output().expect("a worker's end");
                    if !out.status.success() {
                        stories.push(format!(
                            "{task:?}: {}\n{}",
                            out.status,
                            String::from_utf8_lossy(&out.stderr)
                        ));
                    }
                }
            }
        }
        children = left;
        if !children.is_empty() {
            node.ctl(&["flush"]);
            node.evict();
        }
    }
    assert!(stories.is_empty(), "seed {seed}:\n{}", stories.join("\n"));
}

#[test]
fn a_load_of_all_operations_leaves_what_a_local_file_system_has() {
    let _one = serial();
    let outside = temp_dir("load");
    let model = outside.path().join("model");
    std::fs::create_dir(&model).expect("mkdir");
    let node = Node::start(Setup {
        // Small chunks and a small store: many boundaries, and room is short.
        flags: ["--chunk-size", "1"].map(str::to_owned).to_vec(),
        capacity: Some("1GiB"),
        limit: Duration::from_secs(number("FASTCACHE_LOAD_SECONDS", 600)),
        ..Setup::default()
    });
    // The workers without privileges have to get there.
    for dir in [outside.path(), node.outside()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    std::fs::create_dir(node.at("load")).expect("mkdir");
    let first = seed("FASTCACHE_LOAD_SEED", "FASTCACHE_LOAD_ROUNDS");
    println!("FASTCACHE_LOAD_SEED={first}");
    for seed in first..first + number("FASTCACHE_LOAD_ROUNDS", ROUNDS) {
        let mount = node.at("load");
        let compare = |when: &str| {
            compare_now(&model, &mount, None)
                .unwrap_or_else(|e| panic!("seed {seed}, {when}: {e}"));
        };
        round(&node, seed, &model);
        compare("at the end of the load");
        same_times(&model, &mount);
        drop_page_cache();
        assert_same_tree(&model, &mount);
        node.flush();
        node.evict();
        compare("after everything was evicted");
        assert_same_tree(&model, &mount);
        node.evict();
        node.down();
        node.up();
        compare("after a restart");
        assert_same_tree(&model, &mount);
        // Said to be persisted, all of it: no disk of the node is needed for it.
        node.flush();
        lose_everything(&node);
        node.up_with(&["--rebuild"]);
        compare("after a rebuild from the bucket");
        drop_page_cache();
        assert_same_tree(&model, &mount);
    }
}
