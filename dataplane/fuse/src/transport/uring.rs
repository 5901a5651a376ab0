//! FUSE over io_uring: requests come as completions on the core's ring, into memory that the kernel was told once, and one
//! command answers a request and waits for the next.
//!
//! An *entry* is such memory and the task that serves it. A request that comes into an entry has it until it is answered,
//! whatever it waits for. So an entry more is always there: when all of a queue's are taken for [`GROW_AFTER`], further
//! ones are registered, on pages that are taken only when something comes into them, up to a bound.
//!
//! An entry's memory, of the core's pool (2 MiB pages, registered with the ring) or of its own:
//!
//! ```text
//!  0        288      512     544          4096                                       4096 + 1 MiB + 8 KiB
//!  | header |        | iovec |            | data of a WRITE or READ, names, answers …|
//! ```
//!
//! The kernel has a queue for each processor that can exist, and a request goes to the queue of the processor it was made
//! on. The core of that processor serves it; queues of processors without a core are shared out. FORGET, INTERRUPT and
//! what comes before all queues are served still come over `/dev/fuse`, which one core reads as ever.

mod entry;
mod share;

pub use share::{Share, possible_cpus, shares};

use super::{Transport, dev_fuse};
use crate::handlers::Handlers;
use crate::handshake::Negotiated;
use crate::mount::Connection;
use entry::{Next, serve_entry};
use fastcache_reactor::{BufPool, Fd, Place, pool, sleep, spawn};
use fastcache_types::{BLOCK, REQUEST_MAX};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Where in an entry the array of its two parts is, for the registration.
const TABLE_AT: usize = 512;
const _: () = assert!(TABLE_AT >= crate::wire::uring_header::BYTES);
/// Where in an entry the data is.
const PAYLOAD_AT: usize = BLOCK;
/// Bytes of an entry. Data has room for a READ that does not start on a block.
const ENTRY_BYTES: usize = PAYLOAD_AT + REQUEST_MAX + 2 * BLOCK;
/// Buffers of a core's pool that are not made entries: for `/dev/fuse` and the other users of the pool.
const BUFFERS_LEFT: usize = 32;
const _: () = assert!(BUFFERS_LEFT >= 2 * dev_fuse::BUFFERS_MIN);
/// Most entries of a core: half of what its ring can have in flight, so that device I/O always finds room.
const ENTRIES_MAX: usize = fastcache_reactor::MAX_IN_FLIGHT / 2;
/// Part of the machine's memory that all entries together can come to take, when each holds a request of the largest size.
const MEMORY_PART: u64 = 8;
/// How long a queue may be without an entry before it gets further ones.
const GROW_AFTER: Duration = Duration::from_millis(1);
/// Fewest entries it gets.
const GROW_MIN: usize = 8;

/// One core's share of a mount, before it is served.
#[derive(Debug)]
pub struct Session {
    dev: dev_fuse::Session,
    share: Share,
}

impl Session {
    pub(crate) fn new(dev: dev_fuse::Session, share: Share) -> Session {
        Session { dev, share }
    }

    /// What was agreed on with the kernel.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.dev.negotiated()
    }
}

impl Transport for Session {
    async fn serve(self, handlers: Handlers) {
        let pool = pool();
        let device = match self.dev.device.try_clone() {
            Ok(device) => Fd::from(device),
            Err(error) => {
                tracing::error!(target: "fuse", %error, "a core cannot serve the mount: raise the limit of open files");
                return;
            }
        };
        let queues = self.share.queues.len().max(1);
        let server = Rc::new(Server {
            handlers: handlers.clone(),
            setxattr_ext: self.negotiated().setxattr_ext(),
            connection: Arc::clone(&self.dev.connection),
            device,
            entries: Cell::new(0),
            waiting_for_end: RefCell::new(None),
        });
        let from_pool = pool.buffers().saturating_sub(BUFFERS_LEFT) / queues;
        let max = share::entries_max(self.share.cores).max(queues) / queues;
        for number in &self.share.queues {
            let queue = Rc::new(Queue {
                number: *number,
                max,
                entries: Cell::new(0),
                free: Cell::new(0),
                is_watched: Cell::new(false),
                is_full: Cell::new(false),
            });
            server.add(&queue, from_pool.clamp(1, max), Some(&pool));
        }
        tracing::debug!(target: "fuse", queues = ?self.share.queues, entries = server.entries.get(), max, "a core serves FUSE over io_uring");
        if self.share.reads_device {
            self.dev.serve_with(handlers, BUFFERS_LEFT).await;
        }
        server.ended().await;
        tracing::debug!(target: "fuse", "a core's entries have ended");
    }
}

/// A core's entries while they are served.
struct Server {
    handlers: Handlers,
    setxattr_ext: bool,
    connection: Arc<Connection>,
    device: Fd,
    entries: Cell<usize>,
    waiting_for_end: RefCell<Option<Waker>>,
}

/// A queue of the kernel and its entries.
struct Queue {
    number: u16,
    /// Most entries.
    max: usize,
    entries: Cell<usize>,
    /// Of those, in the kernel: without a request.
    free: Cell<usize>,
    /// Somebody looks whether it needs further entries.
    is_watched: Cell<bool>,
    /// It was said that it has as many as it gets.
    is_full: Cell<bool>,
}

impl Server {
    /// Registers so many further entries, in the pool's memory as far as there is some.
    fn add(self: &Rc<Self>, queue: &Rc<Queue>, count: usize, pool: Option<&BufPool>) {
        for _ in 0..count {
            let pinned = pool.and_then(BufPool::try_pin);
            let place = match pinned.map_or_else(|| Place::lazy(ENTRY_BYTES), Ok) {
                Ok(place) => place,
                Err(error) => {
                    tracing::error!(target: "fuse", %error, "no memory for a further entry of FUSE over io_uring");
                    return;
                }
            };
            self.entries.set(self.entries.get() + 1);
            queue.entries.set(queue.entries.get() + 1);
            spawn(serve_entry(
                Rc::clone(self),
                Rc::clone(queue),
                Rc::new(place),
                Next::Register,
            ))
            .detach();
        }
    }

    /// A queue has no entry left: when that lasts, it gets further ones.
    fn watch(self: &Rc<Self>, queue: &Rc<Queue>) {
        if queue.is_watched.replace(true) {
            return;
        }
        let (server, queue) = (Rc::clone(self), Rc::clone(queue));
        spawn(async move {
            sleep(GROW_AFTER).await;
            queue.is_watched.set(false);
            if queue.free.get() > 0 {
                return;
            }
            let more = growth(queue.entries.get(), queue.max);
            if more == 0 {
                if !queue.is_full.replace(true) {
                    tracing::warn!(target: "fuse", queue = queue.number, entries = queue.max, "every entry of a queue is held by a request that waits; further requests made on that processor wait in the kernel");
                }
                return;
            }
            tracing::debug!(target: "fuse", queue = queue.number, entries = queue.entries.get(), more, "a queue gets further entries");
            server.add(&queue, more, None);
        })
        .detach();
    }

    /// An entry will not be used again.
    fn entry_ended(&self, queue: &Queue) {
        queue.entries.set(queue.entries.get() - 1);
        self.entries.set(self.entries.get() - 1);
        if self.entries.get() == 0
            && let Some(waker) = self.waiting_for_end.take()
        {
            waker.wake();
        }
    }

    /// Waits until no entry is left.
    async fn ended(&self) {
        poll_fn(|cx| {
            if self.entries.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting_for_end.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// How many entries a queue of `entries` gets when all of them are taken.
fn growth(entries: usize, max: usize) -> usize {
    (entries / 2).max(GROW_MIN).min(max.saturating_sub(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_grows_up_to_its_bound() {
        let mut entries = 1;
        while growth(entries, 100) > 0 {
            assert!(growth(entries, 100) >= GROW_MIN.min(100 - entries));
            entries += growth(entries, 100);
        }
        assert_eq!(entries, 100);
        assert_eq!(growth(200, 100), 0);
    }
}
