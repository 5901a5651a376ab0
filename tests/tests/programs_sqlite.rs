//! Promise: SQLite keeps what it committed, in both of its journal modes, when its writer is killed, and when both planes
//! are. With a rollback journal two nodes share a database.
//!
//! Method: a writer says each transaction's number after it was committed; it is killed at some moment; then the
//! integrity check passes, every number that was said is there, and no transaction is there by half.
//!
//! `FASTCACHE_PROGRAMS_LONG=1` (make test-programs): more rounds.

use fastcache_tests::{Cluster, Node, Plane, drop_page_cache, run, serial};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Inserts transactions of ten rows and an update each, and prints each number when it is committed.
const WRITER: &str = r#"
import sqlite3, sys
name, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(name, isolation_level=None, timeout=60)
assert db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
db.execute("PRAGMA synchronous=FULL")
db.execute("PRAGMA wal_autocheckpoint=50")
db.execute("CREATE TABLE IF NOT EXISTS t(n INTEGER, row INTEGER, filler BLOB, PRIMARY KEY(n, row))")
db.execute("CREATE TABLE IF NOT EXISTS total(n INTEGER)")
if not db.execute("SELECT count(*) FROM total").fetchone()[0]:
    db.execute("INSERT INTO total VALUES (0)")
n = first
while True:
    n += 1
    db.execute("BEGIN IMMEDIATE")
    for row in range(10):
        db.execute("INSERT INTO t VALUES (?, ?, randomblob(700))", (n, row))
    db.execute("UPDATE total SET n = n + 1")
    if n % 5 == 0:
        db.execute("DELETE FROM t WHERE n = ?", (n - 3,))
        db.execute("UPDATE total SET n = n - 1")
    db.execute("COMMIT")
    print(n, flush=True)
"#;

const CHECK: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
last = int(sys.argv[2])
assert [r[0] for r in db.execute("PRAGMA integrity_check")] == ["ok"]
there = [r for r in db.execute("SELECT n, count(*) FROM t GROUP BY n ORDER BY n")]
assert all(count == 10 for _, count in there), "a transaction is there by half"
numbers = {n for n, _ in there}
end = max(numbers)
assert end >= last, f"{last} was committed, {end} is the last that is there"
deleted = {n - 3 for n in range(5, end + 1, 5)}
assert numbers == set(range(1, end + 1)) - deleted, "transactions are missing in between"
assert db.execute("SELECT n FROM total").fetchone()[0] == len(numbers)
print(end)
"#;

/// One of several writers of a database, each with rows of its own. Prints each number when it is committed.
const SHARING: &str = r#"
import sqlite3, sys
name, mode, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
db = sqlite3.connect(name, isolation_level=None, timeout=100)
assert db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
db.execute("PRAGMA synchronous=FULL")
first = db.execute("SELECT coalesce(max(n), 0) FROM t WHERE who = ?", (who,)).fetchone()[0]
for n in range(first + 1, first + count + 1):
    db.execute("BEGIN IMMEDIATE")
    for row in range(10):
        db.execute("INSERT INTO t VALUES (?, ?, ?, randomblob(700))", (who, n, row))
    db.execute("UPDATE total SET n = n + 10")
    db.execute("COMMIT")
    print(n, flush=True)
    assert db.execute("SELECT n FROM total").fetchone()[0] % 10 == 0
"#;

/// Of a database of several: `who=last` for what each is known to have committed.
const CHECK_SHARED: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=100)
assert [r[0] for r in db.execute("PRAGMA integrity_check")] == ["ok"]
rows = list(db.execute("SELECT who, n, count(*) FROM t GROUP BY who, n"))
assert all(count == 10 for _, _, count in rows), "a transaction is there by half"
for known in sys.argv[2:]:
    who, last = map(int, known.split("="))
    numbers = sorted(n for w, n, _ in rows if w == who)
    assert numbers == list(range(1, len(numbers) + 1)), (who, "transactions are missing in between")
    assert len(numbers) >= last, f"{who}: {last} was committed, {len(numbers)} are there"
assert db.execute("SELECT n FROM total").fetchone()[0] == 10 * len(rows)
"#;

fn check(at: &Path, name: &str, last: u64) -> u64 {
    let out = run(Command::new("timeout")
        .args(["120", "python3", "-c", CHECK, name, &last.to_string()])
        .current_dir(at));
    out.trim().parse().expect("a number")
}

/// Starts the writer, waits until it has said `count` numbers, calls `kill` and waits for the writer's end. The last
/// number it said.
fn write_and_kill(
    at: &Path,
    name: &str,
    mode: &str,
    first: u64,
    count: u64,
    kill: impl FnOnce(u32),
) -> u64 {
    let mut writer = Command::new("python3")
        .args(["-c", WRITER, name, mode, &first.to_string()])
        .current_dir(at)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3");
    let mut lines = BufReader::new(writer.stdout.take().expect("stdout")).lines();
    let mut last = first;
    let mut kill = Some(kill);
    while let Some(Ok(line)) = lines.next() {
        last = line.parse().expect("a number");
        if last >= first + count
            && let Some(kill) = kill.take()
        {
            kill(writer.id());
        }
    }
    assert!(kill.is_none(), "the writer ended by itself after {last}");
    writer.wait().expect("wait");
    last
}

#[test]
fn sqlite_keeps_what_it_committed_when_it_or_the_node_is_killed() {
    let _one = serial();
    let node = Node::start_default();
    let (rounds, count) = if std::env::var_os("FASTCACHE_PROGRAMS_LONG").is_some() {
        (10, 200)
    } else {
        (2, 40)
    };
    for mode in ["wal", "delete", "truncate"] {
        let name = format!("{mode}.db");
        let mut last = 0;
        for round in 0..rounds {
            last = write_and_kill(node.mount(), &name, mode, last, count + round, |writer| {
                run(Command::new("kill").args(["-9", &writer.to_string()]));
            });
            last = check(node.mount(), &name, last);
        }
        last = write_and_kill(node.mount(), &name, mode, last, count, |_| {
            assert!(node.kill(Plane::Data) && node.kill(Plane::Agent));
        });
        node.wait_for_return();
        last = check(node.mount(), &name, last);
        node.flush();
        node.evict();
        drop_page_cache();
        check(node.mount(), &name, last);
        println!("{mode}: {last} transactions");
    }
}

#[test]
fn a_database_with_a_rollback_journal_is_shared_by_two_nodes() {
    let _one = serial();
    let cluster = Cluster::start(2, &[]);
    let mounts: Vec<&Path> = cluster.nodes.iter().map(Node::mount).collect();
    let is_long = std::env::var_os("FASTCACHE_PROGRAMS_LONG").is_some();
    let count: u64 = if is_long { 300 } else { 30 };
    for mode in ["delete", "truncate", "persist"] {
        let name = format!("shared-{mode}.db");
        let tables = "CREATE TABLE t(who INTEGER, n INTEGER, row INTEGER, filler BLOB, PRIMARY KEY(who, n, row)); \
                      CREATE TABLE total(n INTEGER); INSERT INTO total VALUES (0);";
        let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])";
        run(Command::new("timeout")
            .args(["60", "python3", "-c", script, &name, tables])
            .current_dir(mounts[0]));
        let start = |who: usize, count: u64| {
            let limit = if is_long { "600" } else { "120" };
            let mut command = Command::new("timeout");
            command.args([limit, "python3", "-c", SHARING, &name, mode]);
            command.args([who.to_string(), count.to_string()]);
            command.current_dir(mounts[who % 2]).stdout(Stdio::piped());
            command.spawn().expect("python3")
        };
        // One of each node that goes on to its end, and one that is killed, with its transaction half done or not.
        let lasting = [0, 1].map(|who| start(who, count));
        let mut killed = 0;
        for round in 0..3 {
            let mut writer = start(2, u64::MAX >> 1);
            let lines = BufReader::new(writer.stdout.take().expect("stdout")).lines();
            for line in lines.take(2 + round) {
                killed = line.expect("a line").parse().expect("a number");
            }
            let children = format!("/proc/{0}/task/{0}/children", writer.id());
            let python = std::fs::read_to_string(children).expect("children");
            run(Command::new("kill").args(["-9", python.trim()]));
            writer.wait().expect("wait");
        }
        for writer in lasting {
            let out = writer.wait_with_output().expect("wait");
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success(), "{mode}: {}: {said}", out.status);
            assert_eq!(said.lines().count() as u64, count);
        }
        for mount in &mounts {
            drop_page_cache();
            let known = [(0, count), (1, count), (2, killed)];
            run(Command::new("timeout")
                .args(["120", "python3", "-c", CHECK_SHARED, &name])
                .args(known.map(|(who, last)| format!("{who}={last}")))
                .current_dir(mount));
        }
        println!("{mode}: {count} transactions each, and {killed} of one that was killed");
    }
}
