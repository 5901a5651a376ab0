//! Promise: both transports do the same, say which they are, and a mount whose data plane does not answer can be released.
//!
//! FUSE over io_uring is switched on in the kernel for the time of a test and put back. A kernel without it fails these
//! tests only where FASTCACHE_TEST_TRANSPORT=uring asks for it; else it is said that they did not run.

use fastcache_tests::{
    Bytes, Node, Plane, Setup, UringOff, UringOn, output_of, serial, wait_until,
};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take that must not hang.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether FUSE over io_uring can be tested; says so where not.
fn has_uring() -> bool {
    if UringOn::is_possible() {
        return true;
    }
    let wanted = std::env::var("FASTCACHE_TEST_TRANSPORT").unwrap_or_default();
    assert_ne!(wanted, "uring", "this kernel has no FUSE over io_uring");
    println!(
        "NOT TESTED: this kernel has no FUSE over io_uring (Linux 6.14 and CONFIG_FUSE_IO_URING)"
    );
    false
}

fn node_on(transport: &str, more: &[&str]) -> Node {
    let flags = [&["--fuse-transport", transport][..], more].concat();
    Node::start(Setup {
        flags: flags.into_iter().map(str::to_owned).collect(),
        ..Setup::default()
    })
}

fn transport_of(node: &Node) -> (String, String) {
    let status = node.json(&["status"]);
    let text = |name| {
        let found = find(&status, name).and_then(|v| v.as_str());
        found
            .unwrap_or_else(|| panic!("{name}: {status:#}"))
            .to_owned()
    };
    (text("transport"), text("transport_why"))
}

/// The value of a key, wherever it is.
fn find<'a>(value: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    let object = value.as_object()?;
    object
        .get(name)
        .or_else(|| object.values().find_map(|inner| find(inner, name)))
}

fn signal(pid: u32, name: &str) {
    let out = output_of(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]));
    assert!(out.status.success(), "kill -{name} {pid}: {out:?}");
}

/// A Python program in the mount that says lines and goes on when it is told to.
struct Talk {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Talk {
    fn start(node: &Node, script: &str) -> Talk {
        let mut child = Command::new("python3")
            .args(["-c", script])
            .current_dir(node.mount())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let stdout = BufReader::new(child.stdout.take().expect("its output"));
        let (say, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        Talk { child, lines }
    }

    fn hear(&self, want: &str) {
        let line = self.lines.recv_timeout(LIMIT);
        assert_eq!(line.as_deref(), Ok(want));
    }

    fn go(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("its input");
        stdin.write_all(b"\n").expect("it listens");
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn io_uring_carries_a_node_through_its_life() {
    let _one = serial();
    if !has_uring() {
        return;
    }
    let node = node_on("uring", &[]);
    let (transport, why) = transport_of(&node);
    assert_eq!(
        (transport.as_str(), why.as_str()),
        ("uring", "it was asked for")
    );

    let bytes = Bytes::of(7).range(0, 9_000_001);
    std::fs::write(node.at("file"), &bytes).expect("write");
    node.flush();
    node.evict();
    assert!(std::fs::read(node.at("file")).expect("a miss") == bytes);
    fastcache_tests::drop_page_cache();
    assert!(std::fs::read(node.at("file")).expect("a hit") == bytes);

    // A kill fails who waits, and the next data plane mounts again and has it all.
    node.kill(Plane::Data);
    wait_until("the node is back", LIMIT, || {
        std::fs::read(node.at("file")).is_ok_and(|read| read == bytes)
    });
    assert_eq!(transport_of(&node).0, "uring");
    node.down();
}

#[test]
fn every_processor_is_served_whatever_cores_the_data_plane_has() {
    let _one = serial();
    if !has_uring() {
        return;
    }
    let node = node_on("uring", &["--cores", "0"]);
    let cpus = std::thread::available_parallelism()
        .expect("processors")
        .get();
    for cpu in 0..cpus {
        let path = node.at(&format!("of-{cpu}"));
        let out = output_of(
            Command::new("timeout")
                .args(["20", "taskset", "-c", &cpu.to_string(), "sh", "-c"])
                .arg("head -c 3000000 /dev/urandom > \"$0\" && sync \"$0\" && cmp \"$0\" \"$0\" && stat \"$0\"")
                .arg(&path),
        );
        assert!(out.status.success(), "on processor {cpu}: {out:?}");
    }
    node.down();
}

#[test]
fn where_it_is_switched_off_a_demand_is_refused_and_auto_goes_on() {
    let _one = serial();
    if !has_uring() {
        return;
    }
    let refused = Node::prepare(Setup {
        flags: vec!["--fuse-transport".to_owned(), "uring".to_owned()],
        ..Setup::default()
    });
    let off = UringOff::new();
    let out = refused.try_up();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "{out:?}");
    assert!(
        said.contains("echo Y > /sys/module/fuse/parameters/enable_uring"),
        "{said}"
    );

    let node = node_on("auto", &[]);
    let (transport, why) = transport_of(&node);
    assert_eq!(transport, "dev");
    assert!(why.contains("switched off"), "{why}");
    drop(off);
    node.down();
}

/// Waiters of one processor, several times what a queue begins with, and then hits on the same processor.
const WAITERS: &str = "
import os, threading, time
os.sched_setaffinity(0, {0})
threading.stack_size(256 << 10)
fd = os.open('file', os.O_RDONLY)
def wait(n):
    try: os.stat('never-%d' % n)
    except FileNotFoundError: pass
print('ready', flush=True)
input()
waiters = [threading.Thread(target=wait, args=(n,)) for n in range(400)]
for w in waiters: w.start()
time.sleep(1)
for _ in range(100):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert len(os.pread(fd, 100000, 0)) == 100000
print('hits', flush=True)
input()
for w in waiters: w.join()
print('done', flush=True)
";

/// Most memory that 400 requests which wait may take, KiB.
const WAITERS_KIB: u64 = 48 << 10;

#[test]
fn requests_that_wait_do_not_stop_hits() {
    let _one = serial();
    let possible = has_uring();
    for transport in ["dev", "uring"] {
        if transport == "uring" && !possible {
            continue;
        }
        let node = node_on(transport, &[]);
        std::fs::write(node.at("file"), Bytes::of(1).range(0, 100_000)).expect("write");
        node.flush();
        let mut program = Talk::start(&node, WAITERS);
        program.hear("ready");
        let before = memory_kib(&node);
        let agent = node.pid(Plane::Agent).expect("an agent");
        signal(agent, "STOP");
        program.go();
        let hits = program.lines.recv_timeout(LIMIT);
        let after = memory_kib(&node);
        signal(agent, "CONT");
        assert_eq!(hits.as_deref(), Ok("hits"), "{transport}: hits waited");
        program.go();
        program.hear("done");
        println!("{transport}: {before} KiB before, {after} KiB with 400 waiting");
        assert!(
            after < before + WAITERS_KIB,
            "{transport}: {before} to {after} KiB"
        );
        node.down();
    }
}

/// Resident memory of the data plane.
fn memory_kib(node: &Node) -> u64 {
    let pid = node.pid(Plane::Data).expect("a data plane");
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).expect("its memory")
}

#[test]
fn a_stopped_data_plane_is_released_by_force() {
    let _one = serial();
    let possible = has_uring();
    for transport in ["dev", "uring"] {
        if transport == "uring" && !possible {
            continue;
        }
        let node = node_on(transport, &[]);
        std::fs::write(node.at("file"), b"sealed before").expect("write");
        let data = node.pid(Plane::Data).expect("a data plane");
        signal(data, "STOP");
        // They wait for an answer that does not come, one of them in a way that SIGKILL does not end.
        let mut stuck: Vec<Child> = (0..4)
            .map(|n| {
                Command::new("stat")
                    .arg(node.at(&format!("never-{n}")))
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("stat")
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        for child in &mut stuck {
            assert_eq!(
                child.try_wait().expect("wait"),
                None,
                "{transport}: it does not wait"
            );
        }
        signal(stuck[0].id(), "KILL");

        let start = Instant::now();
        let out = node.try_ctl(&["down", "--force"]);
        let took = start.elapsed();
        if !out.status.success() || took > LIMIT {
            // Whatever comes of the test, nobody stays behind.
            signal(data, "KILL");
        }
        assert!(out.status.success(), "{transport}: {out:?}");
        assert!(took < LIMIT, "{transport}: it took {took:?}");
        for mut child in stuck {
            wait_until("who was stuck goes on", Duration::from_secs(10), || {
                child.try_wait().expect("wait").is_some()
            });
        }
        assert!(!node.is_mounted());
        println!("{transport}: released after {took:?}");
        node.up();
        assert_eq!(
            std::fs::read(node.at("file")).expect("read"),
            b"sealed before"
        );
        node.down();
    }
}
