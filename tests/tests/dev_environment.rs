//! Promise: `make dev-setup dev-start` gives three nodes with one file system, `run-client-N` adds one, `dev-stop` leaves
//! nothing behind; and neither does a start that fails.

use fastcache_tests::{Http, output_of, program, repository, serial, temp_dir, wait_until};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Ports from the coordinator's on: four nodes, and where they listen for each other.
const PORTS: u16 = 15;

/// An environment of its own; stopped also when the test fails.
struct Dev {
    home: TempDir,
    port: u16,
}

impl Dev {
    fn new() -> Dev {
        let _built = program("fastcache-ctl");
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let port = (0..1000)
            .map(|_| rand::random_range(10_000..30_000))
            .find(|first| (*first..first + PORTS).all(free))
            .expect("free ports in a row");
        Dev {
            home: temp_dir("dev"),
            port,
        }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("dev")
    }

    fn mount(&self, node: u16) -> PathBuf {
        self.home.path().join(format!("mnt{node}"))
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["600", "make", "-s", "-C"])
            .arg(repository())
            .arg(target)
            .arg(format!("DEV_DIR={}", self.dir().display()))
            .arg(format!("DEV_MOUNT={}/mnt", self.home.path().display()))
            .arg(format!("DEV_PORT={}", self.port))
            .arg("DEV_CAPACITY=256MiB");
        command
    }

    /// Whether it succeeded, and what it said.
    fn make(&self, target: &str) -> (bool, String) {
        let out = output_of(&mut self.command(target));
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        println!("make {target}: {}\n{text}", out.status);
        (out.status.success(), text)
    }

    #[track_caller]
    fn done(&self, target: &str) -> String {
        let (is_done, text) = self.make(target);
        assert!(is_done, "make {target}:\n{text}");
        text
    }

    /// Mounts, and processes that name the folder.
    fn left(&self) -> Vec<String> {
        let home = self.home.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mut left: Vec<String> = mounts
            .lines()
            .filter(|line| line.contains(&home))
            .map(str::to_owned)
            .collect();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(&home) && words.contains("fastcache-") {
                left.push(words);
            }
        }
        left
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.make("dev-stop");
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| e.to_string())
}

/// In the foreground until it is asked to end.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn three_nodes_and_one_more_and_nothing_afterwards() {
    let _one = serial();
    let dev = Dev::new();
    let (is_done, said) = dev.make("dev-start");
    assert!(!is_done && said.contains("make dev-setup"), "{said}");
    dev.done("dev-setup");
    let token = text(&dev.dir().join("token"));
    assert_eq!(token.len(), 64, "{token}");
    dev.done("dev-setup");
    assert_eq!(text(&dev.dir().join("token")), token, "the same again");

    let said = dev.done("dev-start");
    for hint in ["try:", "make dev-stop", "/api/peers"] {
        assert!(said.contains(hint), "{said}");
    }
    std::fs::write(dev.mount(1).join("hello"), b"hello").expect("write on node 1");
    for node in 2..=3 {
        assert_eq!(text(&dev.mount(node).join("hello")), "hello", "node {node}");
    }
    let peers = Http::on(dev.port).ask("GET", "/api/peers", &[], b"").text();
    for node in 1..=3 {
        let address = format!("\"peer_address\":\"127.0.0.1:{}\"", dev.port + 10 + node);
        assert!(peers.contains(&address), "they have one token: {peers}");
    }
    let again = dev.done("dev-start");
    assert_eq!(again.matches("already running").count(), 4, "{again}");

    // One that is missing comes back, with the others as they are.
    let ctl = program("fastcache-ctl");
    let down = output_of(
        Command::new(&ctl)
            .args(["down", "--dir"])
            .arg(dev.dir().join("client-2")),
    );
    assert!(down.status.success(), "{down:?}");
    let again = dev.done("dev-start");
    assert_eq!(again.matches("already running").count(), 3, "{again}");
    assert_eq!(text(&dev.mount(2).join("hello")), "hello");

    let mut fourth = Foreground(
        dev.command("run-client-4")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("make run-client-4"),
    );
    wait_until("node 4 has the file", Duration::from_secs(120), || {
        text(&dev.mount(4).join("hello")) == "hello"
    });
    dev.done("dev-stop");
    wait_until("run-client-4 ends", Duration::from_secs(10), || {
        matches!(fourth.0.try_wait(), Ok(Some(_)))
    });
    assert_eq!(dev.left(), Vec::<String>::new());
    dev.done("dev-stop");
    let (is_done, said) = dev.make("run-client-0");
    assert!(!is_done && said.contains("run-client-N"), "{said}");
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_why() {
    let _one = serial();
    let dev = Dev::new();
    dev.done("dev-setup");
    let taken = TcpListener::bind(("127.0.0.1", dev.port + 2)).expect("the port of node 2");
    let (is_done, said) = dev.make("dev-start");
    let port = (dev.port + 2).to_string();
    assert!(!is_done && said.contains(&port), "{said}");
    assert!(said.contains("node 2 did not start"), "{said}");
    assert_eq!(dev.left(), Vec::<String>::new());
    drop(taken);
    let taken = TcpListener::bind(("127.0.0.1", dev.port)).expect("the coordinator's");
    let (is_done, said) = dev.make("dev-start");
    assert!(
        !is_done && said.contains("cannot listen on") && said.contains("--listen"),
        "{said}"
    );
    assert_eq!(dev.left(), Vec::<String>::new());
    drop(taken);

    // After kill -9 of everything the next start finds a dead mount, and the end takes one away.
    dev.done("dev-start");
    std::fs::write(dev.mount(3).join("hello"), b"hello").expect("write on node 3");
    let kill_all = || {
        let dir = dev.dir().display().to_string();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let Ok(pid) = name.parse() else { continue };
            if words.contains(&dir) && words.contains("fastcache-") {
                // SIGKILL of processes that this test started: they name its folder.
                let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    };
    kill_all();
    dev.done("dev-start");
    assert_eq!(text(&dev.mount(1).join("hello")), "hello");
    kill_all();
    dev.done("dev-stop");
    assert_eq!(dev.left(), Vec::<String>::new());
}
