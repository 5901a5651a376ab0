//! Promise: locks behave as on any local file system: at fork, at close, between processes, and when their holder dies
//! (docs/semantics.md).
//!
//! Each case is a small Python program, since what is asked is what fork(2) and close(2) do to the locks of a process.

use fastcache_tests::{run, serial, shared_folder};
use std::process::Command;

/// What all cases begin with: `locked(kind)` asks from another process whether it could have the lock.
const PRELUDE: &str = r#"
import fcntl, os, struct, sys, time, signal, errno
OFD_SETLK, OFD_SETLKW = 37, 38
path = "file"
open(path, "a").close()
def opened():
    return os.open(path, os.O_RDWR)
def flock(fd, how=fcntl.LOCK_EX):
    fcntl.flock(fd, how | fcntl.LOCK_NB)
def posix(fd, kind=fcntl.F_WRLCK, start=0, length=0):
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi4x", kind, 0, start, length, 0))
def ofd(fd, kind=fcntl.F_WRLCK, start=0, length=0):
    fcntl.fcntl(fd, OFD_SETLK, struct.pack("hhqqi4x", kind, 0, start, length, 0))
def fails(how, *args):
    try:
        how(*args)
    except OSError as e:
        assert e.errno in (errno.EAGAIN, errno.EACCES), e
        return True
    return False
def in_child(what):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if what() else 1)
        except BaseException as e:
            print(e, file=sys.stderr)
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), status
    return status == 0
def taken(how):
    "Whether another process cannot have the lock through a descriptor of its own."
    return in_child(lambda: fails(how, opened()))
"#;

#[track_caller]
fn case(name: &str, script: &str) {
    let _one = serial();
    let (_, here) = shared_folder(name);
    run(Command::new("timeout")
        .args(["60", "python3", "-c"])
        .arg(format!("{PRELUDE}{script}"))
        .current_dir(here));
}

#[test]
fn flock_belongs_to_the_open_file_and_is_inherited_by_fork() {
    case(
        "flock",
        r#"
a, b = opened(), opened()
flock(a)
assert fails(flock, b), "two descriptions of one process exclude each other"
assert taken(flock)
copy = os.dup(a)
os.close(a)
assert taken(flock), "the duplicate still holds it"
assert in_child(lambda: not fails(flock, copy)), "a child has the same description"
assert taken(flock)
# A child that unlocks, unlocks for its parent.
assert in_child(lambda: flock(copy, fcntl.LOCK_UN) is None)
assert not taken(flock)
flock(copy, fcntl.LOCK_SH)
assert taken(flock)
flock(b, fcntl.LOCK_SH)
assert fails(flock, copy), "no upgrade while another reads"
os.close(b)
flock(copy)
# A child keeps it when the parent closes.
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(w); os.read(r, 1); os._exit(0)
os.close(copy); os.close(r)
assert taken(flock), "the child still has it open"
os.close(w); os.waitpid(pid, 0)
assert not taken(flock)
"#,
    );
}

#[test]
fn fcntl_locks_belong_to_the_process_and_go_with_any_close() {
    case(
        "fcntl",
        r#"
a, b = opened(), opened()
posix(a, start=0, length=100)
assert not fails(posix, b), "one process never excludes itself"
assert taken(posix)
assert in_child(lambda: fails(posix, a)), "a child does not inherit it"
in_child(lambda: os.close(a) is None)
assert taken(posix), "a close in the child does not matter"
os.close(b)
assert not taken(posix), "any close of the file drops all locks of the process"
# Ranges.
posix(a, start=0, length=100)
posix(a, start=200, length=100)
posix(a, fcntl.F_UNLCK, 50, 10)
free = lambda s, l: in_child(lambda: not fails(posix, opened(), fcntl.F_WRLCK, s, l))
assert free(50, 10) and free(100, 100) and free(300, 0)
assert not free(49, 1) and not free(60, 1) and not free(0, 0) and not free(299, 10)
posix(a, fcntl.F_RDLCK, 0, 0)
assert in_child(lambda: not fails(posix, opened(), fcntl.F_RDLCK, 0, 0)), "readers share"
assert taken(posix)
"#,
    );
}

#[test]
fn ofd_locks_belong_to_the_open_file_and_survive_other_closes() {
    case(
        "ofd",
        r#"
a, b = opened(), opened()
ofd(a, start=0, length=100)
assert fails(ofd, b), "two descriptions of one process exclude each other"
os.close(opened())
assert taken(ofd), "the close of another description does not matter"
assert in_child(lambda: not fails(ofd, a, fcntl.F_WRLCK, 0, 100)), "a child has the same description"
assert fails(posix, b, fcntl.F_WRLCK, 0, 10), "they exclude those of processes, too"
posix(b, start=100, length=10)
os.close(a)
assert not fails(ofd, b, fcntl.F_WRLCK, 0, 100)
"#,
    );
}

#[test]
fn a_waiting_lock_is_given_when_the_holder_dies_and_a_deadlock_is_told() {
    case(
        "waiting",
        r#"
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    a = opened(); posix(a); flock(a)
    os.write(w, b"1"); time.sleep(60); os._exit(0)
os.read(r, 1)
a = opened()
assert fails(posix, a) and fails(flock, a)
# A signal ends the waiting.
def alarm(*_): raise TimeoutError
signal.signal(signal.SIGALRM, alarm)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    fcntl.lockf(a, fcntl.LOCK_EX)
    assert False, "it was given"
except TimeoutError:
    pass
os.kill(pid, signal.SIGKILL)
begin = time.time()
fcntl.lockf(a, fcntl.LOCK_EX)
fcntl.flock(a, fcntl.LOCK_EX)
assert time.time() - begin < 10
os.waitpid(pid, 0)
# Two processes that wait for each other: one is told EDEADLK.
posix(a, fcntl.F_UNLCK)
posix(a, start=0, length=1)
pid = os.fork()
if pid == 0:
    posix(a, start=1, length=1)
    os.write(w, b"2")
    try:
        fcntl.lockf(a, fcntl.LOCK_EX, 1, 0)
        os._exit(0)
    except OSError as e:
        os._exit(0 if e.errno == errno.EDEADLK else 1)
os.read(r, 1)
time.sleep(0.2)
try:
    fcntl.lockf(a, fcntl.LOCK_EX, 1, 1)
except OSError as e:
    assert e.errno == errno.EDEADLK, e
posix(a, fcntl.F_UNLCK)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"#,
    );
}
