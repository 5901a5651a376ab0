//! Locks across nodes: `fcntl` and `flock` exclude, go with who holds them, and show what was written under them.

use fastcache_tests::{Cluster, Node, Plane, serial, wait_until};
use std::fs::{File, OpenOptions};
use std::process::Command;
use std::time::Duration;

/// Length of a lease, seconds: a test waits for one to end.
const LEASE: &str = "3";
/// More than a lease and what follows take on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// Two nodes with short leases.
fn short_leases() -> Cluster {
    Cluster::start(2, &["--lease", LEASE])
}

/// Python with two folders, `A` and `B`: the same one on two nodes.
fn in_python(cluster: &Cluster, script: &str) {
    const PRELUDE: &str = r#"
import fcntl, os, sys, time, signal, errno, struct
A, B = sys.argv[1:3]
def opened(where, name="f"): return os.open(os.path.join(where, name), os.O_RDWR | os.O_CREAT, 0o644)
def fails(lock, fd, *args):
    try: lock(fd, *args)
    except OSError as e:
        assert e.errno in (errno.EAGAIN, errno.EACCES), e
        return True
    return False
def posix(fd, kind=fcntl.LOCK_EX, start=0, length=0):
    fcntl.lockf(fd, kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB, length, start)
def flock(fd, kind=fcntl.LOCK_EX): fcntl.flock(fd, kind | fcntl.LOCK_NB)
def ofd(fd, kind=fcntl.F_WRLCK, start=0, length=0): fcntl.fcntl(fd, 37, struct.pack("hhqqi", kind, 0, start, length, 0))
def until(what, condition, seconds=20):
    begin = time.time()
    while not condition():
        assert time.time() - begin < seconds, what
        time.sleep(0.05)
"#;
    let [a, b] = &cluster.nodes[..2] else {
        panic!("two nodes")
    };
    fastcache_tests::run(
        Command::new("timeout")
            .args(["90", "python3", "-c"])
            .arg(format!("{PRELUDE}{script}"))
            .args([a.mount(), b.mount()]),
    );
}

#[test]
fn locks_exclude_across_nodes_and_go_with_who_holds_them() {
    let _one = serial();
    let cluster = short_leases();
    in_python(
        &cluster,
        r#"
for lock in posix, flock, ofd:
    a, b = opened(A), opened(B)
    lock(a)
    assert fails(lock, b), lock
    os.close(a)
    until((lock, "the close gave it up"), lambda: not fails(lock, b))
    os.close(b)
# Ranges, and who is in the way.
a, b = opened(A), opened(B)
# What the last close gave up comes with the kernel's RELEASE, which close does not wait for.
until("the close of b gave it up", lambda: not fails(posix, a, fcntl.LOCK_EX, 0, 100))
posix(b, start=100, length=100)
assert fails(posix, b, fcntl.LOCK_EX, 99, 1)
held = struct.unpack("hhqqi", fcntl.fcntl(b, fcntl.F_GETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)))
assert held[0] == fcntl.F_WRLCK and held[2:4] == (0, 100), held
posix(a, fcntl.LOCK_UN, 50, 50)
posix(b, fcntl.LOCK_EX, 50, 50)
posix(b, fcntl.LOCK_UN)
posix(a, fcntl.LOCK_SH)
posix(b, fcntl.LOCK_SH)
assert fails(posix, b), "no upgrade while another reads"
posix(a, fcntl.LOCK_UN); posix(b, fcntl.LOCK_UN)
# A waiting lock is given when its holder unlocks, or dies.
for end in "unlock", "kill":
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        fd = opened(A); posix(fd); flock(fd); os.write(w, b"1"); time.sleep(1)
        if end == "unlock":
            posix(fd, fcntl.LOCK_UN); flock(fd, fcntl.LOCK_UN); os._exit(0)
        time.sleep(60); os._exit(1)
    os.read(r, 1)
    if end == "kill": os.kill(pid, signal.SIGKILL)
    begin = time.time()
    fcntl.lockf(b, fcntl.LOCK_EX)
    fcntl.flock(b, fcntl.LOCK_EX)
    assert time.time() - begin < 10, end
    os.waitpid(pid, 0)
    posix(b, fcntl.LOCK_UN); flock(b, fcntl.LOCK_UN)
# A signal ends the waiting.
posix(a)
pid = os.fork()
if pid == 0:
    class Alarm(Exception): pass
    def alarm(*_): raise Alarm
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    begin = time.time()
    try: fcntl.lockf(b, fcntl.LOCK_EX)
    except Alarm: os._exit(0 if time.time() - begin < 3 else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
posix(a, fcntl.LOCK_UN)
# Two that wait for each other: one is told.
posix(a, start=0, length=1)
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    posix(b, start=1, length=1); os.write(w, b"1")
    try: fcntl.lockf(b, fcntl.LOCK_EX, 1, 0); os._exit(0)
    except OSError as e: os._exit(0 if e.errno == errno.EDEADLK else 1)
os.read(r, 1)
time.sleep(0.3)
try: fcntl.lockf(a, fcntl.LOCK_EX, 1, 1)
except OSError as e: assert e.errno == errno.EDEADLK, e
posix(a, fcntl.LOCK_UN)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
# What was written under a lock is there for the next one to take it, without a close.
a, b = opened(A, "counter"), opened(B, "counter")
os.write(a, b"0")
pids = []
for fd in a, b:
    pid = os.fork()
    if pid == 0:
        for _ in range(30):
            fcntl.lockf(fd, fcntl.LOCK_EX)
            n = int(os.pread(fd, 20, 0) or b"0")
            os.pwrite(fd, str(n + 1).encode(), 0)
            fcntl.lockf(fd, fcntl.LOCK_UN)
        os._exit(0)
    pids.append(pid)
for pid in pids: assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert os.pread(a, 20, 0) == b"60", os.pread(a, 20, 0)
"#,
    );
}

#[test]
fn locks_outlive_the_agent_and_the_coordinator_and_end_with_the_node() {
    let _one = serial();
    let mut cluster = short_leases();
    let lock = |n: &Node| {
        let path = n.at("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path);
        file.expect("open")
    };
    let try_lock = |file: &File| {
        rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    };
    let held = lock(&cluster.nodes[0]);
    assert!(try_lock(&held));
    cluster.nodes[0].kill(Plane::Agent);
    cluster.nodes[0].wait_for_return();
    let wanted = lock(&cluster.nodes[1]);
    assert!(!try_lock(&wanted), "its agent was killed");
    cluster.coordinator.kill();
    cluster.coordinator.start();
    assert!(!try_lock(&wanted), "the coordinator was killed");
    // With the data plane go its files and their locks.
    cluster.nodes[0].kill(Plane::Data);
    wait_until("the lock is free", SOON, || try_lock(&wanted));
    drop(held);

    // A node that is gone gives up nothing: its locks last as long as its lease.
    cluster.nodes[0].wait_for_return();
    drop(wanted);
    let held = lock(&cluster.nodes[0]);
    wait_until("the close gave it up", SOON, || try_lock(&held));
    let wanted = lock(&cluster.nodes[1]);
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        cluster.nodes[0].kill(plane);
    }
    assert!(!try_lock(&wanted), "its node was killed");
    wait_until("the lease is over", SOON, || try_lock(&wanted));
    drop(held);
}
