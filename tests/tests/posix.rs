//! Promise: it behaves as a POSIX file system: what pjdfstest says of a local file system, it says of the mount.
//!
//! The suite runs on the local file system and on the mount, with the same configuration, once as root (it switches to
//! other users by itself) and once as a user without privileges. Every test that passes there must pass here.

use fastcache_tests::{Node, output_of, repository, serial};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// What the suite cannot test on any FUSE file system: it asks pathconf(3) for the limit, and glibc knows that of file
/// systems in the kernel only. The namespace has the limit, and its test: `a_file_has_a_million_names_at_most`.
const NOT_TESTABLE: &[&str] = &["link::link_count_max"];
/// Tests that pass on ext4 as root. Fewer mean that the suite did not run as it should.
const PASSES_MIN: usize = 380;
/// As a user; the rest needs root.
const USER_PASSES_MIN: usize = 150;
/// The user, and his group; tests/setup/install.sh adds both.
const USER: &str = "tests";

const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.02
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

/// What became of each test, by its name, with what it said.
type Results = BTreeMap<String, (String, String)>;

fn id(flag: &str) -> u32 {
    let out = output_of(Command::new("id").args([flag, USER]));
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("there is no user {USER}: tests/setup/install.sh adds it"))
}

/// Runs the suite in a folder.
fn results(suite: &Path, config: &Path, dir: &Path, user: Option<(u32, u32)>) -> Results {
    std::fs::create_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut command = Command::new("timeout");
    command
        .arg("300")
        .arg(suite)
        .env("RUST_BACKTRACE", "0")
        .arg("-c")
        .arg(config)
        .arg("-p")
        .arg(dir)
        .args(["-s", "/dev/shm"])
        .current_dir(dir);
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(dir, Some(uid), Some(gid)).expect("chown");
        command.uid(uid).gid(gid);
    }
    let out = output_of(&mut command);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let mut results = Results::new();
    for (at, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, result @ ("ok" | "FAILED" | "skipped")] = words.as_slice()
            && name.contains("::")
        {
            let why = lines.get(at + 1).map_or("", |l| l.trim());
            results.insert((*name).to_owned(), ((*result).to_owned(), why.to_owned()));
        }
    }
    assert!(!results.is_empty(), "the suite did not run:\n{text}");
    results
}

/// Compares the suite on the local file system with the suite on the mount.
fn compare(node: &Node, name: &str, user: Option<(u32, u32)>, passes_min: usize) {
    let suite = repository().join("target/tools/bin/pjdfstest");
    assert!(
        suite.exists(),
        "pjdfstest is not built: tests/setup/install.sh"
    );
    // Where a user can get at it.
    let suite_copy = node.outside().join("suite");
    std::fs::copy(suite, &suite_copy).expect("a copy of the suite");
    let config = node.outside().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG).expect("the configuration");
    let there = results(&suite_copy, &config, &node.outside().join(name), user);
    let here = results(&suite_copy, &config, &node.at(name), user);
    let of = |r: &Results, what: &str| r.values().filter(|(result, _)| result == what).count();
    for (where_, r) in [("local", &there), ("mount", &here)] {
        println!(
            "{name}, {where_}: {} passed, {} failed, {} skipped",
            of(r, "ok"),
            of(r, "FAILED"),
            of(r, "skipped")
        );
    }
    assert!(
        of(&there, "ok") >= passes_min,
        "only {} tests pass on the local file system: is {} a full Linux file system?",
        of(&there, "ok"),
        node.outside().display()
    );
    let worse: Vec<String> = there
        .iter()
        .filter(|(test, (result, _))| result == "ok" && !NOT_TESTABLE.contains(&test.as_str()))
        .filter_map(|(test, _)| match here.get(test) {
            Some((result, _)) if result == "ok" => None,
            Some((result, why)) => Some(format!("  {test} {result}: {why}")),
            None => Some(format!("  {test} did not run")),
        })
        .chain(
            // What fails in both, or only here, is no less wrong.
            here.iter()
                .filter(|(test, (result, _))| {
                    result == "FAILED" && there.get(*test).is_none_or(|(r, _)| r != "ok")
                })
                .map(|(test, (_, why))| format!("  {test} FAILED: {why}")),
        )
        .collect();
    assert!(
        worse.is_empty(),
        "{} tests pass on the local file system and not on the mount:\n{}",
        worse.len(),
        worse.join("\n")
    );
}

#[test]
fn what_passes_on_a_local_file_system_passes_here() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::set_permissions(node.outside(), std::fs::Permissions::from_mode(0o755))
        .expect("chmod");
    compare(&node, "root", None, PASSES_MIN);
    let user = (id("-u"), id("-g"));
    compare(&node, "user", Some(user), USER_PASSES_MIN);
}
