//! What the kernel is told unasked: to forget attributes, pages and names.
//!
//! Delivered from threads of their own that serve no requests: dropping a page can wait for a READ or cause a
//! WRITE that a core must serve, and dropping a name takes the directory's lock, which a local change holds while a
//! core serves it. Callers queue and go on. What waits like that, a READ of a slow cloud say, holds up one thread, and
//! nothing but what is queued about the same inode.

use crate::handshake::Negotiated;
use crate::reply::OUT_HEADER;
use crate::wire::flags::{EXPIRE_ONLY, init, notify};
use crate::wire::{InvalEntryOut, InvalInodeOut, OutHeader, PruneOut};
use fastcache_api::Ino;
use fastcache_cache::KernelNotify;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use zerocopy::IntoBytes;

/// From how many undelivered notifications on a warning is logged. Equal ones are queued once, so the queue is bounded
/// by what the kernel caches, which it in turn bounds; dropping one would serve stale data.
const QUEUE_WARN: usize = 65_536;

/// Threads that deliver: so many inodes may wait for a READ before all others wait, too.
const THREADS: usize = 32;
/// The one more that delivers only what waits for nothing in the kernel.
const NEVER_WAITS: usize = THREADS;

/// The minor version whose kernels take INC_EPOCH (Linux 6.16).
const MINOR_WITH_EPOCH: u32 = 44;
/// The minor version whose kernels take PRUNE (Linux 6.18).
const MINOR_WITH_PRUNE: u32 = 45;
/// Inodes in one PRUNE: what the kernel takes in one piece.
const PRUNE_BATCH: usize = 512;

/// Something to tell the kernel.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Notice {
    Inode(Ino),
    /// From this offset on.
    Pages(Ino, u64),
    Attr(Ino),
    Entry(Ino, Vec<u8>),
    Names,
    Prune(Vec<Ino>),
}

impl Notice {
    /// The inode whose pages it may wait for.
    fn ino(&self) -> Option<Ino> {
        match self {
            Notice::Inode(ino) | Notice::Pages(ino, _) | Notice::Attr(ino) => Some(*ino),
            Notice::Entry(..) | Notice::Names | Notice::Prune(_) => None,
        }
    }

    /// Whether the kernel takes no lock of a page or a directory for it.
    fn never_waits(&self) -> bool {
        matches!(self, Notice::Attr(_) | Notice::Names)
    }
}

/// Called back when the last of what it is about has been delivered.
struct Barrier {
    left: usize,
    done: Box<dyn FnOnce() + Send>,
}

/// A place in the queue, or what is being delivered.
struct Queued {
    notice: Notice,
    /// Numbers of the barriers behind it.
    barriers: Vec<u64>,
}

#[derive(Default)]
struct Queue {
    queued: VecDeque<Queued>,
    /// The notices in `queued`: equal ones need not be queued again.
    waiting: HashSet<Notice>,
    /// Of each thread, by number.
    delivering: HashMap<usize, Queued>,
    barriers: HashMap<u64, Barrier>,
    next_barrier: u64,
    is_closed: bool,
}

impl Queue {
    /// The next one to deliver for a thread: the first that it may deliver, of an inode of which nothing is being delivered.
    fn next(&mut self, thread: usize) -> Option<(Notice, bool)> {
        let is_busy = |notice: &Notice| {
            let ino = notice.ino();
            ino.is_some() && self.delivering.values().any(|d| d.notice.ino() == ino)
        };
        let may_be = |notice: &Notice| thread != NEVER_WAITS || notice.never_waits();
        let is_next = |q: &Queued| may_be(&q.notice) && !is_busy(&q.notice);
        let at = self.queued.iter().position(is_next)?;
        let next = self.queued.remove(at)?;
        // Taken off before it is delivered: the same notice queued from now on may be about a later change.
        self.waiting.remove(&next.notice);
        let notice = next.notice.clone();
        self.delivering.insert(thread, next);
        Some((notice, !self.queued.is_empty()))
    }

    /// A thread has delivered. Who is to be called back.
    fn delivered(&mut self, thread: usize) -> Vec<Barrier> {
        let Some(delivered) = self.delivering.remove(&thread) else {
            return Vec::new();
        };
        let mut passed = Vec::new();
        for number in delivered.barriers {
            let Some(barrier) = self.barriers.get_mut(&number) else {
                continue;
            };
            barrier.left -= 1;
            if barrier.left == 0 {
                passed.extend(self.barriers.remove(&number));
            }
        }
        passed
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// For the thread that delivers what never waits.
    never_waits: Condvar,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a thread waits.
    fn condition(&self, thread: usize) -> &Condvar {
        match thread {
            NEVER_WAITS => &self.never_waits,
            _ => &self.changed,
        }
    }
}

/// Queues notifications for the kernel. Dropping it ends its threads when the queue is empty; they are not waited for,
/// since a notification can wait on a core.
pub struct Notifier {
    shared: Arc<Shared>,
    can_inval_names: bool,
    can_prune: bool,
}

impl Notifier {
    /// Starts the threads over a descriptor of the connection.
    pub(crate) fn start(device: OwnedFd, negotiated: Negotiated) -> io::Result<Notifier> {
        let deliver = move |message: &[u8], notice: &Notice| deliver(&device, message, notice);
        Notifier::start_with(negotiated, Arc::new(deliver))
    }

    fn start_with(negotiated: Negotiated, deliver: Arc<Deliver>) -> io::Result<Notifier> {
        let notifier = Notifier {
            shared: Arc::default(),
            can_inval_names: negotiated.minor >= MINOR_WITH_EPOCH,
            can_prune: negotiated.minor >= MINOR_WITH_PRUNE,
        };
        for thread in 0..=NEVER_WAITS {
            let (shared, deliver) = (Arc::clone(&notifier.shared), Arc::clone(&deliver));
            std::thread::Builder::new()
                .name(format!("fuse-notify-{thread}"))
                .spawn(move || deliver_all(thread, &shared, &*deliver, negotiated))?;
        }
        Ok(notifier)
    }

    /// Calls `done` behind what is queued or being delivered and `is_meant`.
    fn behind(&self, is_meant: impl Fn(&Notice) -> bool, done: Box<dyn FnOnce() + Send>) {
        let done = {
            let mut queue = self.shared.lock();
            let queue = &mut *queue;
            let number = queue.next_barrier;
            queue.next_barrier += 1;
            let mut left = 0;
            let all = queue.queued.iter_mut().chain(queue.delivering.values_mut());
            for queued in all.filter(|q| is_meant(&q.notice)) {
                queued.barriers.push(number);
                left += 1;
            }
            if left > 0 {
                queue.barriers.insert(number, Barrier { left, done });
                return;
            }
            done
        };
        done();
    }

    fn push(&self, notice: Notice) {
        let never_waits = notice.never_waits();
        let mut queue = self.shared.lock();
        if queue.waiting.insert(notice.clone()) {
            queue.queued.push_back(Queued {
                notice,
                barriers: Vec::new(),
            });
            if queue.queued.len() == QUEUE_WARN {
                tracing::warn!(target: "fuse", queued = QUEUE_WARN, "the kernel takes invalidations slowly");
            }
            drop(queue);
            self.shared.changed.notify_one();
            if never_waits {
                self.shared.never_waits.notify_one();
            }
        }
    }
}

impl KernelNotify for Notifier {
    fn inval_inode(&self, ino: Ino) {
        self.push(Notice::Inode(ino));
    }

    fn inval_pages(&self, ino: Ino, from: u64) {
        self.push(Notice::Pages(ino, from));
    }

    fn inval_attr(&self, ino: Ino) {
        self.push(Notice::Attr(ino));
    }

    fn inval_entry(&self, parent: Ino, name: &[u8]) {
        self.push(Notice::Entry(parent, name.to_vec()));
    }

    fn inval_names(&self) {
        if self.can_inval_names {
            self.push(Notice::Names);
        }
    }

    fn can_inval_names(&self) -> bool {
        self.can_inval_names
    }

    fn prune(&self, inos: Vec<Ino>) {
        if self.can_prune {
            for batch in inos.chunks(PRUNE_BATCH) {
                self.push(Notice::Prune(batch.to_vec()));
            }
        }
    }

    fn can_prune(&self) -> bool {
        self.can_prune
    }

    fn barrier(&self, done: Box<dyn FnOnce() + Send>) {
        self.behind(|_| true, done);
    }

    fn barrier_of(&self, inos: &HashSet<Ino>, done: Box<dyn FnOnce() + Send>) {
        // Names do not wait for pages.
        let is_meant = |notice: &Notice| notice.ino().is_none_or(|ino| inos.contains(&ino));
        self.behind(is_meant, done);
    }

    fn barrier_of_pages(&self, ino: Ino, done: Box<dyn FnOnce() + Send>) {
        self.behind(|notice| notice.ino() == Some(ino), done);
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        self.shared.never_waits.notify_all();
    }
}

/// Gives the kernel the bytes of a notification.
type Deliver = dyn Fn(&[u8], &Notice) + Send + Sync;

/// A thread: one notification after the other.
fn deliver_all(thread: usize, shared: &Shared, deliver: &Deliver, negotiated: Negotiated) {
    let mut message = Vec::new();
    loop {
        let (notice, has_more) = {
            let mut queue = shared.lock();
            loop {
                if let Some(next) = queue.next(thread) {
                    break next;
                }
                if queue.is_closed && queue.queued.is_empty() {
                    return;
                }
                queue = shared
                    .condition(thread)
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        };
        if has_more {
            shared.changed.notify_one();
        }
        encode(&notice, negotiated, &mut message);
        deliver(&message, &notice);
        let (passed, is_closed) = {
            let mut queue = shared.lock();
            (queue.delivered(thread), queue.is_closed)
        };
        if is_closed {
            shared.changed.notify_all();
            shared.never_waits.notify_all();
        }
        for barrier in passed {
            (barrier.done)();
        }
    }
}

/// Writes the notification's bytes.
fn encode(notice: &Notice, negotiated: Negotiated, message: &mut Vec<u8>) {
    message.clear();
    message.resize(OUT_HEADER, 0);
    let code = match notice {
        Notice::Inode(ino) | Notice::Pages(ino, _) | Notice::Attr(ino) => {
            let body = InvalInodeOut {
                ino: ino.0,
                // A negative offset leaves the pages alone.
                off: match notice {
                    Notice::Attr(_) => -1,
                    Notice::Pages(_, from) => i64::try_from(*from).unwrap_or(0),
                    _ => 0,
                },
                len: 0,
            };
            message.extend_from_slice(body.as_bytes());
            notify::INVAL_INODE
        }
        Notice::Entry(parent, name) => {
            // Expiring instead of dropping keeps directories that somebody is in reachable for getcwd(2).
            let flags = if negotiated.has(init::HAS_EXPIRE_ONLY) {
                EXPIRE_ONLY
            } else {
                0
            };
            let namelen = u32::try_from(name.len()).unwrap_or(0);
            let body = InvalEntryOut {
                parent: parent.0,
                namelen,
                flags,
            };
            message.extend_from_slice(body.as_bytes());
            message.extend_from_slice(name);
            message.push(0);
            notify::INVAL_ENTRY
        }
        Notice::Names => notify::INC_EPOCH,
        Notice::Prune(inos) => {
            let body = PruneOut {
                count: u32::try_from(inos.len()).unwrap_or(0),
                padding: 0,
                spare: 0,
            };
            message.extend_from_slice(body.as_bytes());
            for ino in inos {
                message.extend_from_slice(&ino.0.to_ne_bytes());
            }
            notify::PRUNE
        }
    };
    let len = u32::try_from(message.len()).unwrap_or(0);
    let header = OutHeader {
        len,
        error: code,
        unique: 0,
    };
    message[..OUT_HEADER].copy_from_slice(header.as_bytes());
}

/// Tells the kernel. ENOENT and ENOTDIR say that it caches no such thing, ENODEV and ENOTCONN that nobody is
/// mounted any more; ENOTEMPTY and EBUSY cannot come from an invalidation that does not delete.
fn deliver(device: &OwnedFd, message: &[u8], notice: &Notice) {
    loop {
        match rustix::io::write(device, message) {
            Err(Errno::INTR) => {}
            Ok(_)
            | Err(Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NOTCONN | Errno::PERM) => {
                return;
            }
            Err(error) => {
                tracing::warn!(target: "fuse", %error, ?notice, "the kernel refused an invalidation");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Golden bytes of the notifications, and what the queue promises.

    use super::*;

    const BARE: Negotiated = Negotiated {
        minor: 31,
        flags: 0,
    };

    #[test]
    fn notifications_have_the_kernels_layout() {
        let mut message = Vec::new();
        encode(&Notice::Inode(Ino(7)), BARE, &mut message);
        assert_eq!(message.len(), 40);
        assert_eq!(message[..4], 40u32.to_ne_bytes());
        assert_eq!(message[4..8], 2i32.to_ne_bytes());
        assert_eq!(message[8..16], [0; 8]);
        assert_eq!(message[16..24], 7u64.to_ne_bytes());
        encode(&Notice::Attr(Ino(7)), BARE, &mut message);
        assert_eq!(message[24..32], [0xff; 8]);
        encode(&Notice::Entry(Ino(1), b"ab".to_vec()), BARE, &mut message);
        assert_eq!(message.len(), 16 + 16 + 3);
        assert_eq!(message[24..28], 2u32.to_ne_bytes());
        assert_eq!(message[28..32], 0u32.to_ne_bytes());
        assert_eq!(&message[32..], b"ab\0");
        encode(&Notice::Names, BARE, &mut message);
        assert_eq!(message.len(), 16);
        assert_eq!(message[4..8], 8i32.to_ne_bytes());
        encode(&Notice::Prune(vec![Ino(7), Ino(8)]), BARE, &mut message);
        assert_eq!(message.len(), 16 + 16 + 2 * 8);
        assert_eq!(message[4..8], 9i32.to_ne_bytes());
        assert_eq!(message[16..20], 2u32.to_ne_bytes());
        assert_eq!(message[20..32], [0; 12]);
        assert_eq!(message[40..48], 8u64.to_ne_bytes());
        let newer = Negotiated {
            minor: 45,
            flags: init::HAS_EXPIRE_ONLY,
        };
        encode(&Notice::Entry(Ino(1), b"ab".to_vec()), newer, &mut message);
        assert_eq!(message[28..32], EXPIRE_ONLY.to_ne_bytes());
    }

    #[test]
    fn a_barrier_comes_after_what_was_queued_before() {
        let (mut read, write) = std::io::pipe().unwrap();
        let notifier = Notifier::start(write.into(), BARE).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        for n in 0..100 {
            notifier.inval_inode(Ino(n));
        }
        notifier.barrier(Box::new(move || send.send(()).unwrap()));
        receive
            .recv_timeout(std::time::Duration::from_secs(10))
            .unwrap();
        let mut bytes = vec![0; 8192];
        assert_eq!(
            std::io::Read::read(&mut read, &mut bytes).unwrap(),
            100 * 40
        );
    }

    #[test]
    fn an_inode_that_is_being_read_holds_up_no_other() {
        let (let_go, going) = std::sync::mpsc::channel::<()>();
        let going = Mutex::new(going);
        let times = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&times);
        let deliver = move |_: &[u8], notice: &Notice| {
            if notice.ino() == Some(Ino(7)) || notice.ino() >= Some(Ino(100)) {
                going.lock().unwrap().recv().unwrap();
            }
            theirs.lock().unwrap().push(notice.clone());
        };
        let notifier = Notifier::start_with(BARE, Arc::new(deliver)).unwrap();
        let bound = std::time::Duration::from_secs(10);
        let (send, receive) = std::sync::mpsc::channel();
        let note = |what: &'static str| {
            let send = send.clone();
            Box::new(move || send.send(what).unwrap())
        };
        for _ in 0..2 * THREADS {
            // Equal ones, each queued when the one before is being delivered.
            notifier.inval_inode(Ino(7));
            notifier.inval_attr(Ino(7));
        }
        notifier.inval_inode(Ino(8));
        notifier.inval_entry(Ino(1), b"a");
        notifier.barrier_of(&[Ino(9)].into(), note("names"));
        notifier.barrier_of(&[Ino(7)].into(), note("one"));
        notifier.barrier(note("all"));
        notifier.barrier_of(&[Ino(8)].into(), note("another"));
        let mut first = [(); 2].map(|()| receive.recv_timeout(bound).unwrap());
        first.sort_unstable();
        assert_eq!(first, ["another", "names"]);
        assert!(!times.lock().unwrap().contains(&Notice::Inode(Ino(7))));
        // However many are: names wait for none of them.
        for ino in 0..2 * THREADS as u64 {
            notifier.inval_inode(Ino(100 + ino));
        }
        notifier.push(Notice::Names);
        notifier.barrier_of(&HashSet::new(), note("names"));
        assert_eq!(receive.recv_timeout(bound).unwrap(), "names");
        for _ in 0..6 * THREADS {
            let _ = let_go.send(());
        }
        let mut last = [(); 2].map(|()| receive.recv_timeout(bound).unwrap());
        last.sort_unstable();
        assert_eq!(last, ["all", "one"]);
    }
}
