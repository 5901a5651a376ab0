//! FUSE over io_uring: requests come as completions on the core's ring, into memory that the kernel was told once, and one
//! command answers a request and waits for the next.
//!
//! An *entry* is such memory and the task that serves it. A request that comes into an entry has it until it is answered,
//! whatever it waits for. So there are always more entries than requests: further ones are registered when fewer than
//! [`FREE_MIN`] of a queue are free, up to a bound, on pages that are taken only when something comes into them. They must
//! be there before they are needed: the kernel gives a new entry to the next request, not to one that waits in the queue for
//! an entry; that one comes when another of the queue's requests is answered.
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
use fastcache_reactor::{BufPool, Fd, Place, pool, spawn};
use fastcache_types::{BLOCK, REQUEST_MAX};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

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
/// Entries of a queue that are another core's: what one client has in flight at a depth of 32 is then handled by two. With
/// all of them on its own core it has the client's processor alone, and is slower than `/dev/fuse` (docs/adr/0008).
const HELPERS: usize = 16;
/// Entries of the own core that are used before those, so that requests one by one wake no other processor.
const TOP: usize = 4;
/// Entries that a queue begins with, and gets at a time.
const ENTRIES_STEP: usize = 512;
/// A queue with fewer free entries than this gets further ones.
const FREE_MIN: usize = 128;

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
        let max = share::entries_max(self.share.entries_bytes).max(queues) / queues;
        let queue = |number: &u16, max| {
            Rc::new(Queue {
                number: *number,
                max,
                entries: Cell::new(0),
                free: Cell::new(0),
                is_full: Cell::new(false),
            })
        };
        let own: Vec<_> = self.share.queues.iter().map(|n| queue(n, max)).collect();
        let helped: Vec<_> = self.share.helps.iter().map(|n| queue(n, 0)).collect();
        let from_pool = (pool.buffers().saturating_sub(BUFFERS_LEFT) / queues).clamp(1, max);
        let lazy = ENTRIES_STEP.min(max) - from_pool.min(ENTRIES_STEP);
        let helpers = if helped.is_empty() {
            0
        } else {
            HELPERS.min(from_pool / 4)
        };
        // The kernel takes the entry that came last, so what is registered last is used first.
        let top = TOP.min(from_pool - helpers);
        let rounds = [
            (&own, lazy, None),
            (&own, from_pool - helpers - top, Some(&pool)),
            (&helped, helpers, Some(&pool)),
            (&own, top, Some(&pool)),
        ];
        for (queues, entries, pool) in rounds {
            for queue in queues {
                server.add(queue, entries, pool);
            }
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
    /// Most entries; 0 where the queue is another core's, which sees to it that there are enough.
    max: usize,
    entries: Cell<usize>,
    /// Of those, without a request: in the kernel or on the way there.
    free: Cell<usize>,
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
            queue.free.set(queue.free.get() + 1);
            spawn(serve_entry(
                Rc::clone(self),
                Rc::clone(queue),
                Rc::new(place),
                Next::Register,
            ))
            .detach();
        }
    }

    /// A request came: when few entries are left, the queue gets further ones.
    fn came(self: &Rc<Self>, queue: &Rc<Queue>) {
        if queue.free.get() >= FREE_MIN {
            return;
        }
        let more = growth(queue.entries.get(), queue.max);
        if more > 0 {
            tracing::debug!(target: "fuse", queue = queue.number, entries = queue.entries.get(), more, "a queue gets further entries");
            self.add(queue, more, None);
        } else if queue.max > 0 && queue.free.get() == 0 && !queue.is_full.replace(true) {
            tracing::warn!(target: "fuse", queue = queue.number, entries = queue.max, "every entry of a queue is held by a request that waits; further requests made on that processor wait in the kernel");
        }
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

/// How many entries a queue of `entries` gets.
fn growth(entries: usize, max: usize) -> usize {
    ENTRIES_STEP.min(max.saturating_sub(entries))
}

#[cfg(test)]
mod tests {
    //! How far a queue grows, and what its entries take.

    use super::*;

    #[test]
    fn a_queue_grows_up_to_its_bound() {
        assert_eq!(growth(256, 1000), ENTRIES_STEP);
        assert_eq!(growth(900, 1000), 100);
        assert_eq!(growth(1000, 1000), 0);
        assert_eq!(growth(200, 0), 0);
    }

    /// Size of the future that a function makes.
    fn future_bytes<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn all_entries_of_a_core_fit_into_their_memory_beside_their_data() {
        let entry = future_bytes(serve_entry) + PAYLOAD_AT;
        assert!(
            entry * ENTRIES_MAX <= crate::REQUESTS_BYTES as usize,
            "an entry takes {entry} bytes"
        );
    }
}
