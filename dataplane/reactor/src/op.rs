//! The future of one operation: a key into the ring's table. Dropping it leaves the operation to the table.

use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use event_listener::IntoNotification;
use io_uring::squeue;

use crate::buffer::IoBuf;
use crate::executor::{try_with_core, with_core};
use crate::ring::{Driver, Kind, Payload, Sqe};
use crate::slab::Key;

/// Waits until the core may start another operation. The caller must start it without awaiting in between.
pub(crate) async fn room() {
    while !with_core(|core| core.driver.borrow().has_room()) {
        let _waiting = Waiting::new();
        let listener = with_core(|core| core.room.listen());
        if with_core(|core| core.driver.borrow().has_room()) {
            break;
        }
        listener.await;
    }
}

/// Counts a waiter, so that completions need not notify when there is none.
struct Waiting(PhantomData<*const ()>);

impl Waiting {
    fn new() -> Waiting {
        with_core(|core| core.waiting.set(core.waiting.get() + 1));
        Waiting(PhantomData)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        try_with_core(|core| core.waiting.set(core.waiting.get().saturating_sub(1)));
    }
}

/// Tells waiters that an entry of the table was freed.
fn leave_room() {
    try_with_core(|core| {
        if core.waiting.get() > 0 {
            core.room.notify(1.additional());
        }
    });
}

/// A single-shot operation under way.
pub(crate) struct Op {
    /// None once the result was taken.
    key: Option<Key>,
    core_id: u64,
    /// The table belongs to this thread.
    not_send: PhantomData<*const ()>,
}

impl Op {
    /// Queues what `make` builds.
    ///
    /// # Safety
    /// As for [`Driver::start`].
    pub(crate) unsafe fn start<E: Into<Sqe>>(
        kind: Kind,
        make: impl FnOnce(&mut Driver) -> (E, Payload),
    ) -> Op {
        with_core(|core| {
            let mut driver = core.driver.borrow_mut();
            let (entry, payload) = make(&mut driver);
            // SAFETY: upheld by the caller.
            let key = unsafe { driver.start(kind, entry, payload) };
            Op {
                key: Some(key),
                core_id: core.shared.id,
                not_send: PhantomData,
            }
        })
    }
}

impl Future for Op {
    type Output = (i32, Payload);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(i32, Payload)> {
        let Some(key) = self.key else {
            panic!("an operation was polled after it completed")
        };
        let result = with_core(|core| core.driver.borrow_mut().poll(key, cx));
        if result.is_ready() {
            self.key = None;
            leave_room();
        }
        result
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            abandon(key, self.core_id);
        }
    }
}

/// Leaves an operation to the table, if the core that has it still runs on this thread.
fn abandon(key: Key, core_id: u64) {
    let left = try_with_core(|core| {
        if core.shared.id == core_id {
            core.driver.borrow_mut().abandon(key)
        } else {
            None
        }
    });
    if left.flatten().is_some() {
        leave_room();
    }
}

/// A multishot operation under way.
pub(crate) struct MultiOp {
    key: Option<Key>,
    core_id: u64,
    not_send: PhantomData<*const ()>,
}

impl MultiOp {
    /// Queues what `make` builds.
    ///
    /// # Safety
    /// As for [`Driver::start`].
    pub(crate) unsafe fn start(
        make: impl FnOnce(&mut Driver) -> (squeue::Entry, Payload),
    ) -> MultiOp {
        // SAFETY: upheld by the caller.
        let mut op = unsafe { Op::start(Kind::Multishot, make) };
        MultiOp {
            key: op.key.take(),
            core_id: op.core_id,
            not_send: PhantomData,
        }
    }

    /// Whether the kernel will send no more completions, and all were seen.
    pub(crate) fn has_ended(&self) -> bool {
        self.key.is_none()
    }

    /// The next completion; several since the last look count as one.
    pub(crate) async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            let Some(key) = self.key else {
                panic!("a multishot was polled after it ended")
            };
            with_core(|core| core.driver.borrow_mut().poll_multi(key, cx)).map(|(result, more)| {
                if !more {
                    self.key = None;
                    leave_room();
                }
                result
            })
        })
        .await
    }
}

impl Drop for MultiOp {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            abandon(key, self.core_id);
        }
    }
}

/// The kernel's result as a count.
pub(crate) fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// The buffer an operation was started with.
pub(crate) fn returned(payload: Payload) -> IoBuf {
    match payload.buf {
        Some(buf) => buf,
        None => unreachable!("an operation started with a buffer completed without it"),
    }
}

/// Most bytes of one operation: the kernel's own limit (MAX_RW_COUNT). A longer buffer gives short I/O.
const MAX_BYTES: usize = 0x7fff_f000;

/// The length of a buffer as the kernel takes it.
pub(crate) fn length(buf: &IoBuf) -> u32 {
    u32::try_from(buf.len().min(MAX_BYTES)).unwrap_or(0)
}
