//! Promise: SQLite keeps what it committed, in both of its journal modes, when its writer is killed, and when both planes
//! are.
//!
//! Method: a writer says each transaction's number after it was committed; it is killed at some moment; then the
//! integrity check passes, every number that was said is there, and no transaction is there by half.
//!
//! `FASTCACHE_PROGRAMS_LONG=1` (make test-programs): more rounds.

use fastcache_tests::{Node, Plane, drop_page_cache, run, serial};
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
