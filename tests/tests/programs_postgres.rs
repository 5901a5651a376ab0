//! Promise: PostgreSQL runs on the mount, and what it committed survives kill -9 of it and of both planes.
//!
//! Method: pgbench for load; beside it one client notes which of its inserts were acknowledged. After each crash the
//! server starts again on what is there; then: every acknowledged row, the sums of pgbench, checksums of all pages and
//! amcheck of all tables and indexes, a dump of everything.
//!
//! `FASTCACHE_PROGRAMS_LONG=1` (make test-programs): ten times the data, more rounds.

use fastcache_tests::{Node, Plane, drop_page_cache, output_of, run, serial, wait_until};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// One connection for each of them, and some to spare.
const CLIENTS: &str = "4";

fn is_long() -> bool {
    std::env::var_os("FASTCACHE_PROGRAMS_LONG").is_some()
}

/// The newest PostgreSQL that Debian installed.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut bins: Vec<PathBuf> = versions
        .filter_map(|e| Some(e.ok()?.path().join("bin")))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    bins.sort();
    bins.pop()
        .expect("PostgreSQL is not installed: tests/setup/install.sh")
}

/// A server of its own user on the mount.
struct Postgres<'n> {
    node: &'n Node,
    bin: PathBuf,
    server: Option<Child>,
}

impl<'n> Postgres<'n> {
    fn new(node: &'n Node) -> Postgres<'n> {
        // The server is not root and has to get through the folders above.
        let set_mode = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("chmod");
        };
        set_mode(node.outside(), 0o711);
        for folder in [node.outside().join("pg"), node.at("pg")] {
            std::fs::create_dir(&folder).expect("mkdir");
            run(Command::new("chown").arg("postgres:").arg(&folder));
        }
        let postgres = Postgres {
            node,
            bin: programs(),
            server: None,
        };
        let data = postgres.data();
        run(postgres
            .program("initdb")
            .args([
                "--auth=trust",
                "--data-checksums",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(data));
        postgres
    }

    fn data(&self) -> PathBuf {
        self.node.at("pg/data")
    }

    /// Sockets and logs: not on the mount, which goes away in between.
    fn outside(&self) -> PathBuf {
        self.node.outside().join("pg")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(self.bin.join(name))
            .env("PGHOST", self.outside())
            .env("PGDATABASE", "postgres")
            .env("PGUSER", "postgres")
            .current_dir("/");
        command
    }

    fn start(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.outside().join("log"))
            .expect("the log");
        let mut command = self.program("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.outside());
        // Every commit is on stable storage before it is acknowledged; a small log, so that checkpoints happen.
        for setting in [
            "listen_addresses=",
            "fsync=on",
            "max_wal_size=64MB",
            "shared_buffers=16MB",
        ] {
            command.args(["-c", setting]);
        }
        command
            .stderr(log.try_clone().expect("dup"))
            .stdout(log)
            .process_group(0);
        self.server = Some(command.spawn().expect("postgres"));
        wait_until("PostgreSQL answers", LIMIT, || {
            if let Some(status) = self.server.as_mut().and_then(|s| s.try_wait().ok()?) {
                panic!("PostgreSQL ended: {status}\n{}", self.log());
            }
            output_of(self.program("pg_isready").arg("-q"))
                .status
                .success()
        });
    }

    fn log(&self) -> String {
        output_of(
            Command::new("tail")
                .args(["-n", "40"])
                .arg(self.outside().join("log")),
        )
        .stdout
        .iter()
        .map(|b| char::from(*b))
        .collect()
    }

    /// kill -9 of the server and of everything it started.
    fn kill(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let mut pids = children_of(server.id());
        pids.push(server.id());
        for pid in &pids {
            // The server may have ended by itself.
            let _ = output_of(Command::new("kill").args(["-9", &pid.to_string()]));
        }
        server.wait().expect("wait");
        wait_until("its processes are gone", LIMIT, || {
            pids.iter()
                .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        });
    }

    fn sql(&self, statement: &str) -> String {
        run(self
            .program("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement]))
        .trim_end()
        .to_owned()
    }

    /// Everything that was acknowledged is there, and everything that is there is sound.
    fn check(&self, acknowledged: u64, when: &str) {
        let rows = self.sql(&format!(
            "SELECT count(*) FROM acknowledged WHERE n <= {acknowledged}"
        ));
        assert_eq!(
            rows,
            acknowledged.to_string(),
            "{when}: committed rows are lost"
        );
        let sums = self.sql(
            "SELECT count(DISTINCT s) FROM (
                 SELECT sum(abalance) s FROM pgbench_accounts UNION ALL SELECT sum(bbalance) FROM pgbench_branches
                 UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
                 UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) t",
        );
        assert_eq!(sums, "1", "{when}: the sums of pgbench differ");
        run(self.program("pg_amcheck").args([
            "--install-missing",
            "--heapallindexed",
            "--parent-check",
            "postgres",
        ]));
        run(self
            .program("pg_dumpall")
            .arg("-f")
            .arg(self.outside().join("dump")));
        println!(
            "{when}: {acknowledged} rows, {} transactions of pgbench",
            self.sql("SELECT count(*) FROM pgbench_history")
        );
    }

    /// pgbench until it is stopped or its server is gone.
    fn load(&self) -> Child {
        self.program("pgbench")
            .args(["-n", "-c", CLIENTS, "-T", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbench")
    }

    /// Inserts the numbers from `from` on, one transaction each, until the server is gone or `is_enough`; the last that
    /// was acknowledged.
    fn insert(&self, from: u64, mut is_enough: impl FnMut(u64) -> bool) -> u64 {
        let mut client = self
            .program("psql")
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql");
        let mut stdin = client.stdin.take().expect("stdin");
        let mut answers = BufReader::new(client.stdout.take().expect("stdout")).lines();
        let mut last = from;
        loop {
            let next = last + 1;
            let statement = format!(
                "INSERT INTO acknowledged VALUES ({next}, repeat('x', 500)) RETURNING n;\n"
            );
            if stdin.write_all(statement.as_bytes()).is_err() {
                break;
            }
            match answers.next() {
                Some(Ok(line)) if line == next.to_string() => last = next,
                _ => break,
            }
            if is_enough(last - from) {
                break;
            }
        }
        drop(stdin);
        let _ = client.wait();
        last
    }
}

impl Drop for Postgres<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let out = output_of(Command::new("ps").args(["-o", "pid=", "--ppid", &parent.to_string()]));
    String::from_utf8_lossy(&out.stdout)
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[test]
fn postgresql_loses_no_committed_transaction() {
    let _one = serial();
    let node = Node::start_default();
    let (scale, rounds, inserts) = if is_long() {
        ("10", 5, 2_000)
    } else {
        ("1", 1, 150)
    };
    let mut postgres = Postgres::new(&node);
    postgres.start();
    run(postgres.program("pgbench").args(["-i", "-q", "-s", scale]));
    postgres.sql("CREATE TABLE acknowledged(n bigint PRIMARY KEY, filler text)");
    let mut last = 0;

    for round in 1..=rounds {
        let mut load = postgres.load();
        last = postgres.insert(last, |n| n >= inserts);
        postgres.kill();
        load.wait().expect("pgbench");
        postgres.start();
        postgres.check(last, &format!("round {round}, after kill -9 of PostgreSQL"));

        // Both planes at once, while transactions are on their way.
        let mut load = postgres.load();
        last = postgres.insert(last, |n| {
            if n == inserts {
                assert!(node.kill(Plane::Data) && node.kill(Plane::Agent));
            }
            n >= 100 * inserts
        });
        postgres.kill();
        load.wait().expect("pgbench");
        node.wait_for_return();
        postgres.start();
        postgres.check(
            last,
            &format!("round {round}, after kill -9 of both planes"),
        );
    }

    // And from the cloud, after an ordered stop.
    let pid = postgres.server.as_ref().map(Child::id).expect("it runs");
    run(Command::new("kill").args(["-INT", &pid.to_string()]));
    let status = postgres
        .server
        .take()
        .expect("it runs")
        .wait()
        .expect("wait");
    assert!(status.success(), "{status}");
    node.flush();
    node.evict();
    drop_page_cache();
    run(postgres
        .program("pg_checksums")
        .args(["--check", "-D"])
        .arg(postgres.data()));
    postgres.start();
    postgres.check(last, "from the cloud");
}
