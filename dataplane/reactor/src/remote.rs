//! What other threads see of a core: a queue of tasks to run there, and the eventfd that ends its sleep.
//!
//! No wake is lost: the core announces that it may sleep and then looks at the queue once more; who queues something
//! looks at the announcement afterwards. With a full fence on both sides at least one of them sees the other.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::Wake;

use async_task::Runnable;
use crossbeam_queue::SegQueue;

use crate::executor::{spawn, try_with_core};
use crate::watch::Pulse;

/// The part of a core that other threads may touch.
pub(crate) struct Shared {
    /// Bounded by the number of living tasks (each is queued at most once) and of remote spawns under way, which the
    /// callers of [`Remote::spawn`] have to bound.
    pub(crate) queue: SegQueue<Message>,
    /// The core sleeps in the kernel or is about to.
    pub(crate) sleeping: AtomicBool,
    /// The main future was woken.
    pub(crate) main_woken: AtomicBool,
    /// The core will not look at the queue again.
    pub(crate) closed: AtomicBool,
    pub(crate) eventfd: OwnedFd,
    /// Unique in the process.
    pub(crate) id: u64,
    /// The CPU the core is pinned to, otherwise its number in order of creation.
    pub(crate) core: usize,
    /// The kernel's number of its thread.
    pub(crate) thread: i32,
    pub(crate) pulse: Pulse,
}

/// Work from another thread.
pub(crate) enum Message {
    Run(Runnable),
    Spawn(Box<dyn FnOnce() + Send>),
}

impl Shared {
    /// Queues a task of this core, from any thread.
    pub(crate) fn schedule(&self, runnable: Runnable) {
        let mut runnable = Some(runnable);
        try_with_core(|core| {
            if core.shared.id == self.id
                && let Some(runnable) = runnable.take()
            {
                core.push_ready(runnable);
            }
        });
        let Some(runnable) = runnable else { return };
        if self.closed.load(Ordering::Acquire) {
            // The future must not be dropped on this thread, and its own will not come back for it.
            std::mem::forget(runnable);
            return;
        }
        self.queue.push(Message::Run(runnable));
        self.notify();
    }

    /// Ends the core's sleep, to be called after something was made visible to it.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::AcqRel)
            && let Err(error) = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes())
        {
            // EAGAIN would need 2^64 wakes; anything else is a broken descriptor, and the core would sleep for ever.
            panic!("eventfd of core {} cannot be written: {error}", self.core);
        }
    }

    /// Announces sleep. False if there is work already, then the announcement is withdrawn.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = self.queue.is_empty() && !self.main_woken.load(Ordering::Relaxed);
        if !idle {
            self.sleeping.store(false, Ordering::Relaxed);
        }
        idle
    }
}

/// The waker of the main future.
pub(crate) struct MainWaker(pub(crate) Arc<Shared>);

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.0.main_woken.swap(true, Ordering::AcqRel) {
            let is_own = try_with_core(|core| core.shared.id == self.0.id);
            if is_own != Some(true) {
                self.0.notify();
            }
        }
    }
}

/// Handle of a core, for other threads.
#[derive(Clone)]
pub struct Remote {
    pub(crate) shared: Arc<Shared>,
}

impl Remote {
    /// Calls `make` on the core and runs the future it returns there, detached. If the core has ended, nothing
    /// happens and `make` is dropped. There is no limit on the spawns under way: bound them where they come from.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        make: impl FnOnce() -> F + Send + 'static,
    ) {
        if self.shared.closed.load(Ordering::Acquire) {
            tracing::debug!(
                core = self.shared.core,
                "remote spawn on a core that has ended"
            );
            return;
        }
        self.shared
            .queue
            .push(Message::Spawn(Box::new(move || spawn(make()).detach())));
        self.shared.notify();
    }

    /// The CPU the core is pinned to; for a core without a pin its number in the order of creation.
    pub fn core(&self) -> usize {
        self.shared.core
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("core", &self.shared.core)
            .finish()
    }
}
