//! Promise: a program that waits for another tier can be ended, and a signal that it handles does not break its calls.
//!
//! The agent is stopped (SIGSTOP), so that whatever is not on this node's NVMe waits. Of direct reads the kernel itself
//! waits for the end, without asking (docs/semantics.md).

use fastcache_tests::{Bytes, Node, Plane, output_of, serial, wait_until};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may go on after it was told to end: a second of patience, and this machine's.
const END_MAX: Duration = Duration::from_secs(15);
/// How long it may take to get to the call that waits.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The agent, stopped until this is dropped.
struct Stopped<'a>(&'a Node);

impl<'a> Stopped<'a> {
    /// Returns when each of its threads stands: the signal only asks for that, and a thread that still runs answers.
    fn new(node: &'a Node) -> Stopped<'a> {
        let pid = node.pid(Plane::Agent).expect("an agent");
        signal(pid, "STOP");
        let stopped = Stopped(node);
        wait_until("the agent stands", WAIT_MAX, || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
            threads.flatten().all(|thread| {
                // A thread that ended meanwhile has no state.
                std::fs::read_to_string(thread.path().join("stat"))
                    .ok()
                    .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('T')))
                    .unwrap_or(true)
            })
        });
        stopped
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.0.pid(Plane::Agent) {
            signal(pid, "CONT");
        }
    }
}

fn signal(pid: u32, name: &str) {
    let out = output_of(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]));
    assert!(out.status.success(), "kill -{name} {pid}: {out:?}");
}

/// A Python program in the mount: it says that it is ready, and goes on when it is told to.
struct Program(Child);

impl Program {
    /// Starts `before`, which may use everything, and then `after`, once the agent is stopped.
    fn start(node: &Node, before: &str, after: &str) -> Program {
        let script = format!("{before}\nprint('ready', flush=True)\ninput()\n{after}");
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .current_dir(node.mount())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().expect("its output");
        let is_ready = stdout.read_exact(&mut ready);
        assert!(
            is_ready.is_ok() && &ready == b"ready\n",
            "{:?}",
            child.wait_with_output()
        );
        Program(child)
    }

    /// Lets it go on into the call that waits.
    fn go(&mut self) {
        let stdin = self.0.stdin.as_mut().expect("its input");
        stdin.write_all(b"\n").expect("it listens");
        let mut last = None;
        wait_until("the program waits", WAIT_MAX, || {
            assert_eq!(self.0.try_wait().expect("wait"), None, "it does not wait");
            let now = self.waits_in();
            let is_same = now.is_some() && now == last;
            last = now;
            is_same
        });
    }

    /// The system call that it sleeps in, with its arguments; not the one that waits for `go`.
    fn waits_in(&self) -> Option<String> {
        let line = std::fs::read_to_string(format!("/proc/{}/syscall", self.id())).ok()?;
        let mut words = line.split(' ');
        let is_call = words.next()?.parse().is_ok_and(|n: i64| n >= 0);
        let is_of_stdin = words.next()? == "0x0";
        (is_call && !is_of_stdin).then_some(line)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end, with a limit.
    fn end_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("wait") {
                return Some(status);
            }
            if start.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What waits while the agent is stopped: what goes before, and the call.
const WAITS: [(&str, &str, &str); 3] = [
    (
        "a read of bytes that are elsewhere",
        "import os\nfd = os.open('file', os.O_RDONLY)",
        "os.pread(fd, 100, 0)",
    ),
    (
        "a look at a name",
        "import os",
        "os.stat('never-looked-up')",
    ),
    (
        "an fsync",
        "import os\nfd = os.open('synced', os.O_WRONLY | os.O_CREAT)\nos.write(fd, b'x')",
        "os.fsync(fd)",
    ),
];
/// Looks at a name as a C program does, with an alarm ten times a second, and tells errno.
const LOOK_ONCE: &str = "
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
n = libc.access(b'never-looked-up-either', 0)
error = ctypes.get_errno()
signal.setitimer(signal.ITIMER_REAL, 0)
print(n, os.strerror(error), flush=True)
";

#[test]
fn a_program_that_waits_for_another_tier_can_be_ended() {
    let _one = serial();
    let node = Node::start_default();
    let bytes = Bytes::of(1).range(0, 100_000);
    std::fs::write(node.at("file"), &bytes).expect("write");
    node.flush();
    node.evict();

    // kill -9, and the default action of Ctrl-C.
    for (what, before, call) in WAITS {
        for name in ["KILL", "INT"] {
            let before =
                format!("import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n{before}");
            let mut program = Program::start(&node, &before, call);
            let stopped = Stopped::new(&node);
            program.go();
            signal(program.id(), name);
            let start = Instant::now();
            let status = program.end_within(END_MAX);
            println!("{what}: SIG{name} ended it after {:?}", start.elapsed());
            drop(stopped);
            let status = status.unwrap_or_else(|| panic!("{what}: SIG{name} did not end it"));
            assert!(!status.success(), "{status}");
            // What it was waiting for comes; nobody may find it half done.
            assert_eq!(std::fs::read(node.at("file")).expect("read"), bytes);
            node.flush();
            node.evict();
        }
    }

    // A program that handles SIGTERM gets its call back, after a while.
    let (_, before, call) = WAITS[1];
    let before = format!(
        "{before}\nimport signal\ndef term(*_): raise SystemExit(7)\nsignal.signal(signal.SIGTERM, term)"
    );
    let mut program = Program::start(&node, &before, call);
    let stopped = Stopped::new(&node);
    program.go();
    signal(program.id(), "TERM");
    let status = program.end_within(END_MAX);
    drop(stopped);
    let code = status.and_then(|s| s.code());
    assert_eq!(code, Some(7), "SIGTERM did not reach the program");

    // The others leave the call alone: it goes on, and comes to its end.
    let before = "import ctypes, os, signal\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                  signal.signal(signal.SIGALRM, lambda *_: None)\nsignal.siginterrupt(signal.SIGALRM, True)";
    let mut program = Program::start(&node, before, LOOK_ONCE);
    let stopped = Stopped::new(&node);
    program.go();
    let early = program.end_within(Duration::from_secs(2));
    drop(stopped);
    assert_eq!(early, None, "SIGALRM ended the call");
    let status = program.end_within(Duration::from_secs(40));
    let out = program.0.wait_with_output().expect("its output");
    assert!(status.is_some_and(|s| s.success()), "{status:?}: {out:?}");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(said.trim(), "-1 No such file or directory");
}
