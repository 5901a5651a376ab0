//! INTERRUPT: requests that wait, and whose process is told to end.
//!
//! The kernel sends one INTERRUPT when any signal comes for a process that waits for an answer, and then lets the
//! process wait on, also when it is killed. An answer EINTR at once would be wrong: on a local file system a signal
//! that a program handles (SIGCHLD, SIGALRM, the SIGURG of Go's scheduler) never ends a read of a file, and few programs
//! expect it. So the signals that are pending are looked at, and again until the request is finished:
//!
//! | pending | the request is given up |
//! |---|---|
//! | one that kills the process | at once |
//! | SIGHUP, SIGINT, SIGQUIT or SIGTERM that the process handles | after [`PATIENCE`] |
//! | others | never |
//!
//! Given up means: EINTR is sent now (over io_uring: as soon as no operation uses the request's memory any more), and what
//! the request comes to later is thrown away. Only requests that change
//! nothing are given up (a late change could overtake a newer one), and writes while they wait for room.

use crate::mount::Connection;
use crate::opcode::Opcode;
use crate::reply::out_header;
use fastcache_api::Errno;
use fastcache_reactor::{sleep, spawn};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How long a request may still be answered after a signal that its process handles.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How often the signals of a process are looked at.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Parts of the table, so that cores seldom meet.
const STRIPES: usize = 16;
/// The kernel counts requests in steps of this.
const STEP: u64 = 2;
/// Interrupts remembered of requests that another core has read and not noted yet.
const EARLY_MAX: usize = 64;
/// How long they are remembered. The other core needs microseconds; most are of requests that are finished.
const EARLY_FOR: Duration = Duration::from_secs(1);

/// What is to be done with an interrupted request now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is finished, or given up.
    Gone,
    /// Look again after [`LOOK`].
    Wait,
}

/// Requests in work that can be given up, of all cores of a mount.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    stripes: [Mutex<HashMap<u64, Waiter>>; STRIPES],
    early: Mutex<VecDeque<(u64, Instant)>>,
    /// `early` is not empty.
    has_early: AtomicBool,
}

/// How a request that is given up gets its answer.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// EINTR is written to the device that it came from.
    Device(Arc<OwnedFd>),
    /// Its own task is told, and answers.
    Task(Arc<Hint>),
}

/// Tells a task that its request is given up.
#[derive(Debug)]
pub(super) struct Hint {
    is_given: AtomicBool,
    task: Waker,
}

impl Hint {
    /// For the task of this waker.
    pub(super) fn new(task: Waker) -> Arc<Hint> {
        Arc::new(Hint {
            is_given: AtomicBool::new(false),
            task,
        })
    }

    /// Whether the request is given up.
    pub(super) fn is_given(&self) -> bool {
        self.is_given.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
struct Waiter {
    /// The thread that waits; 0 where this process cannot see it.
    thread: u32,
    way: Way,
    interrupted: Option<Instant>,
    is_given_up: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a request may be given up: it changes nothing, or (WRITE) nothing yet.
pub(super) fn can_be_given_up(opcode: u32) -> bool {
    matches!(
        Opcode::from_number(opcode),
        Some(
            Opcode::Lookup
                | Opcode::Getattr
                | Opcode::Readlink
                | Opcode::Open
                | Opcode::Read
                | Opcode::Write
                | Opcode::Statfs
                | Opcode::Fsync
                | Opcode::Getxattr
                | Opcode::Listxattr
                | Opcode::Readdir
                | Opcode::Readdirplus
                | Opcode::Fsyncdir
                | Opcode::Lseek
                | Opcode::Syncfs
        )
    )
}

impl Waiting {
    fn stripe(&self, unique: u64) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        let n = usize::try_from(unique / STEP % STRIPES as u64).unwrap_or(0);
        lock(&self.stripes[n])
    }

    /// Notes a request that waits. True when its INTERRUPT has come already: see [`Waiting::look`].
    pub(super) fn enter(&self, unique: u64, thread: u32, way: Way) -> bool {
        let mut stripe = self.stripe(unique);
        let is_early = self.has_early.load(Ordering::Acquire) && self.take_early(unique);
        stripe.insert(
            unique,
            Waiter {
                thread,
                way,
                interrupted: is_early.then(Instant::now),
                is_given_up: false,
            },
        );
        is_early
    }

    fn take_early(&self, unique: u64) -> bool {
        let mut early = lock(&self.early);
        while early
            .front()
            .is_some_and(|(_, at)| at.elapsed() > EARLY_FOR)
        {
            early.pop_front();
        }
        let at = early.iter().position(|(u, _)| *u == unique);
        let is_early = at.and_then(|at| early.remove(at)).is_some();
        self.has_early.store(!early.is_empty(), Ordering::Release);
        is_early
    }

    /// The request is finished. True when it was given up: it has its answer, nothing more may be sent.
    pub(super) fn leave(&self, unique: u64) -> bool {
        self.stripe(unique)
            .remove(&unique)
            .is_some_and(|w| w.is_given_up)
    }

    /// An INTERRUPT came. True when the request is in work here: see [`Waiting::look`].
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        let mut stripe = self.stripe(unique);
        if let Some(waiter) = stripe.get_mut(&unique) {
            waiter.interrupted.get_or_insert_with(Instant::now);
            return true;
        }
        // Finished, or not noted yet; the lock of the stripe is held, so that `enter` sees it.
        let mut early = lock(&self.early);
        if early.len() == EARLY_MAX {
            early.pop_front();
        }
        early.push_back((unique, Instant::now()));
        self.has_early.store(true, Ordering::Release);
        false
    }

    /// Looks at the signals of an interrupted request's process, and gives the request up when it is time.
    pub(super) fn look(&self, unique: u64) -> Verdict {
        let (thread, since) = match self.stripe(unique).get(&unique) {
            Some(w) if !w.is_given_up => (w.thread, w.interrupted),
            _ => return Verdict::Gone,
        };
        let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
        if !is_due(Signals::of(thread), waited) {
            return Verdict::Wait;
        }
        let mut stripe = self.stripe(unique);
        if let Some(waiter) = stripe.get_mut(&unique)
            && !waiter.is_given_up
        {
            waiter.is_given_up = true;
            match &waiter.way {
                Way::Device(device) => {
                    let header = out_header(unique, Some(Errno::EINTR), 0);
                    // The kernel may have taken the request back; then nobody waits for an answer either.
                    let _ = rustix::io::write(device, header.as_bytes());
                }
                Way::Task(hint) => {
                    hint.is_given.store(true, Ordering::Release);
                    hint.task.wake_by_ref();
                }
            }
        }
        Verdict::Gone
    }
}

/// Looks after an interrupted request, on this core, until it is finished or given up.
pub(super) fn watch(connection: Arc<Connection>, unique: u64) {
    spawn(async move {
        while connection.waiting.look(unique) == Verdict::Wait {
            sleep(LOOK).await;
        }
    })
    .detach();
}

/// What is pending for a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Signals {
    /// It is dying.
    Fatal,
    /// Asked to end; it handles that itself.
    End,
    /// Anything else, or nothing any more.
    Other,
    /// It is not visible from here (another PID namespace).
    Unknown,
}

/// Bit of a signal in the masks of `/proc`.
const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

impl Signals {
    fn of(thread: u32) -> Signals {
        if thread == 0 {
            return Signals::Unknown;
        }
        match std::fs::read_to_string(format!("/proc/{thread}/status")) {
            Ok(status) => Signals::in_status(&status),
            Err(_) => Signals::Unknown,
        }
    }

    /// From the text of `/proc/PID/status`.
    fn in_status(status: &str) -> Signals {
        const END: u64 =
            bit(libc::SIGHUP) | bit(libc::SIGINT) | bit(libc::SIGQUIT) | bit(libc::SIGTERM);
        let mask = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
                .unwrap_or(0)
        };
        let pending = mask("SigPnd") | mask("ShdPnd");
        // A signal whose default action ends the process is SIGKILL to each of its threads.
        if pending & bit(libc::SIGKILL) != 0 {
            Signals::Fatal
        } else if pending & END & !mask("SigBlk") != 0 {
            Signals::End
        } else {
            Signals::Other
        }
    }
}

/// Whether a request that was interrupted so long ago is given up.
fn is_due(signals: Signals, waited: Duration) -> bool {
    match signals {
        Signals::Fatal => true,
        Signals::End | Signals::Unknown => waited >= PATIENCE,
        Signals::Other => false,
    }
}

#[cfg(test)]
mod tests {
    //! Who is given up, and what becomes of requests that are finished or interrupted at the same time.

    use super::*;
    use std::io::Read as _;

    fn device() -> (Arc<OwnedFd>, std::io::PipeReader) {
        let (read, write) = std::io::pipe().unwrap();
        (Arc::new(write.into()), read)
    }

    #[test]
    fn only_what_ends_the_process_ends_the_wait() {
        let status = |pending: u64, shared: u64, blocked: u64| {
            Signals::in_status(&format!(
                "Name:\tx\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n"
            ))
        };
        assert_eq!(status(bit(libc::SIGKILL), 0, 0), Signals::Fatal);
        assert_eq!(status(0, bit(libc::SIGTERM), 0), Signals::End);
        assert_eq!(
            status(0, bit(libc::SIGINT), bit(libc::SIGINT)),
            Signals::Other
        );
        assert_eq!(
            status(bit(libc::SIGURG), bit(libc::SIGCHLD), 0),
            Signals::Other
        );
        assert!(is_due(Signals::Fatal, Duration::ZERO));
        assert!(!is_due(Signals::End, Duration::ZERO) && is_due(Signals::End, PATIENCE));
        assert!(!is_due(Signals::Other, PATIENCE * 100));
    }

    #[test]
    fn a_request_is_answered_once() {
        let waiting = Waiting::default();
        let (device, mut answers) = device();
        // Thread 0 is not visible: it is given up after the patience.
        assert!(!waiting.enter(10, 0, Way::Device(Arc::clone(&device))));
        assert!(!waiting.enter(12, 0, Way::Device(Arc::clone(&device))));
        assert!(waiting.interrupt(10));
        assert_eq!(waiting.look(10), Verdict::Wait);
        std::thread::sleep(PATIENCE);
        assert_eq!(waiting.look(10), Verdict::Gone);
        let mut answer = [0; crate::reply::OUT_HEADER];
        answers.read_exact(&mut answer).unwrap();
        assert_eq!(answer, out_header(10, Some(Errno::EINTR), 0).as_bytes());
        assert_eq!(waiting.look(10), Verdict::Gone);
        assert!(waiting.leave(10), "it has its answer");
        assert!(!waiting.leave(12), "nobody interrupted it");
        assert!(waiting.stripes.iter().all(|s| lock(s).is_empty()));
    }

    #[test]
    fn a_task_is_told_that_its_request_is_given_up() {
        struct Woken(AtomicBool);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let hint = Hint::new(Waker::from(Arc::clone(&woken)));
        let waiting = Waiting::default();
        assert!(!waiting.enter(30, 0, Way::Task(Arc::clone(&hint))));
        assert!(waiting.interrupt(30));
        assert!(!hint.is_given());
        std::thread::sleep(PATIENCE);
        assert_eq!(waiting.look(30), Verdict::Gone);
        assert!(hint.is_given() && woken.0.load(Ordering::Relaxed));
        assert!(waiting.leave(30));
    }

    #[test]
    fn an_interrupt_that_comes_first_is_not_lost() {
        let waiting = Waiting::default();
        let (device, _answers) = device();
        assert!(!waiting.interrupt(20));
        assert!(waiting.enter(20, 0, Way::Device(device)));
        assert!(!waiting.leave(20));
        for unique in 0..1000 {
            assert!(!waiting.interrupt(unique));
        }
        assert_eq!(lock(&waiting.early).len(), EARLY_MAX);
    }
}
