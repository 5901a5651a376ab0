//! One io_uring and its operation table.
//!
//! The table owns everything the kernel may touch for an operation (buffer, descriptor) from the moment its entry is
//! queued until its last completion was harvested. A future only holds a key. When a future goes away first, its
//! entry is marked abandoned and is cleaned up by the completion.

mod files;
mod setup;
mod width;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{cqueue, opcode, squeue, types};

use crate::buffer::IoBuf;
use crate::disk::FileDevice;
use crate::slab::{Key, Slab};
use files::FileTable;
use width::Ring;
pub(crate) use width::Sqe;
pub use width::has_wide_entries;

/// Most operations of one core that are queued, in the kernel or completed but not yet taken by their future. More
/// wait before they are queued. Also the size of the completion queue, so that it overflows only by multishot polls.
pub const MAX_IN_FLIGHT: usize = 4096;

/// Time that a core that ends gives its operations to complete. Device I/O cannot be cancelled; what is still in
/// flight then keeps its memory for ever.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// How long one look at the operations of a core that ends waits; they are cancelled anew in each.
const SHUTDOWN_ROUND: Duration = Duration::from_millis(20);

/// Entries that are submitted before the turn is over. One system call for all of a turn lets a device work in lockstep
/// with the core, which costs 15 % of 4 KiB random reads at depth 32; batches of 8 reach what one call for each does.
const SUBMIT_BATCH: usize = 8;

/// `user_data` of entries whose completion says nothing.
const IGNORED: u64 = u64::MAX;

/// `user_data` of the multishot poll on the wake-up eventfd.
const WAKE: u64 = u64::MAX - 1;

/// What an operation needs until it completed.
pub(crate) struct Payload {
    pub(crate) buf: Option<IoBuf>,
    /// Only held: dropping it is what it is for.
    pub(crate) keep: Keep,
}

/// Keeps the descriptor of an operation open.
pub(crate) enum Keep {
    /// A descriptor by its number.
    Fd(#[expect(dead_code, reason = "held to keep it open")] Arc<OwnedFd>),
    /// A disk whose file is not registered.
    Disk(#[expect(dead_code, reason = "held to keep it open")] Arc<FileDevice>),
    /// A place in the table of registered files, whose use is counted.
    Registered(u32),
}

/// What the completion leaves to be cleaned up, and what dropping the future does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Device I/O: cannot be cancelled in practice, runs to its end.
    Disk,
    /// May stay pending for ever, is cancelled when its future is dropped.
    Pending,
    /// As `Pending`; the result is a new descriptor.
    Accept,
    /// As `Pending`; completes many times.
    Multishot,
}

struct Entry {
    kind: Kind,
    state: State,
    payload: Payload,
    waker: Option<Waker>,
}

enum State {
    InFlight,
    /// The future is gone.
    Abandoned,
    Done(i32),
    /// A multishot: whether there were completions since the last look, and whether more can come.
    Multi {
        last: Option<i32>,
        is_armed: bool,
    },
}

/// Wakers and leavings of a harvest, to be used after the driver's borrow has ended: both can run foreign code.
#[derive(Default)]
pub(crate) struct Harvest {
    pub(crate) wakers: Vec<Waker>,
    garbage: Vec<Option<IoBuf>>,
    keeps: Vec<Keep>,
}

impl Harvest {
    /// Drops what abandoned operations left, and returns how many there were.
    pub(crate) fn clean_up(&mut self) -> usize {
        let freed = self.keeps.len();
        self.garbage.clear();
        self.keeps.clear();
        freed
    }

    pub(crate) fn wake(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

/// The ring, its operations and its registered files.
pub(crate) struct Driver {
    ring: ManuallyDrop<Ring>,
    table: ManuallyDrop<Slab<Entry>>,
    /// Entries of the table that the kernel has not finished with.
    in_kernel: usize,
    /// Entries that found the submission queue full; bounded by MAX_IN_FLIGHT operations and a cancel for each.
    backlog: VecDeque<Sqe>,
    /// Entries queued since the last submission of a batch or a turn.
    queued: usize,
    files: FileTable,
    eventfd: RawFd,
    is_wake_armed: bool,
    pub(crate) id: u64,
}

fn user_data(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

fn key_of(user_data: u64) -> Key {
    let index = u32::try_from(user_data & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let generation = u32::try_from(user_data >> 32).unwrap_or(u32::MAX);
    Key { index, generation }
}

impl Driver {
    /// `eventfd` must stay open as long as the driver lives.
    pub(crate) fn new(
        entries: u32,
        wide_entries: bool,
        eventfd: RawFd,
        id: u64,
    ) -> io::Result<Driver> {
        let completions = u32::try_from(MAX_IN_FLIGHT).unwrap_or(u32::MAX);
        let ring = Ring::create(entries, completions, wide_entries)?;
        let files = FileTable::new(&ring.submitter());
        Ok(Driver {
            ring: ManuallyDrop::new(ring),
            table: ManuallyDrop::new(Slab::with_capacity(MAX_IN_FLIGHT)),
            in_kernel: 0,
            backlog: VecDeque::new(),
            queued: 0,
            files,
            eventfd,
            is_wake_armed: false,
            id,
        })
    }

    /// Registers a pool's memory as fixed buffers; without it operations work too, only slower.
    pub(crate) fn register_pool(&self, region: &crate::buffer::Region) {
        setup::register_pool(&self.ring.submitter(), self.id, region);
    }

    /// Whether the ring takes entries of 128 bytes.
    pub(crate) fn is_wide(&self) -> bool {
        self.ring.is_wide()
    }

    /// Whether another operation can be started.
    pub(crate) fn has_room(&self) -> bool {
        self.table.len() < MAX_IN_FLIGHT
    }

    /// The target of an operation on a disk, and what keeps it open.
    pub(crate) fn disk_target(&mut self, device: &Arc<FileDevice>) -> (Target, Keep) {
        match self.files.acquire(&self.ring.submitter(), device) {
            Some(slot) => (Target::Registered(slot), Keep::Registered(slot)),
            None => (Target::Fd(device.as_raw_fd()), Keep::Disk(device.clone())),
        }
    }

    /// Queues an operation.
    ///
    /// # Safety
    /// Every address in `entry` must point into `payload.buf` and stay inside it, and every descriptor in it must be
    /// kept open by `payload.keep`.
    pub(crate) unsafe fn start(
        &mut self,
        kind: Kind,
        entry: impl Into<Sqe>,
        payload: Payload,
    ) -> Key {
        let state = match kind {
            Kind::Multishot => State::Multi {
                last: None,
                is_armed: true,
            },
            _ => State::InFlight,
        };
        let key = self.table.insert(Entry {
            kind,
            state,
            payload,
            waker: None,
        });
        self.in_kernel += 1;
        self.push(entry.into().user_data(user_data(key)));
        key
    }

    /// Puts an entry on the submission queue, or on the backlog when that is full even after submitting.
    fn push(&mut self, entry: impl Into<Sqe>) {
        let entry = entry.into();
        self.queued += 1;
        if self.backlog.is_empty() {
            // SAFETY: start's contract, or an entry without addresses; the table keeps all of it alive and in place.
            if unsafe { self.ring.push(&entry) } {
                return;
            }
            // An error here shows again in the next turn, where it can be returned.
            let _ = self.ring.submit();
            // SAFETY: as above.
            if unsafe { self.ring.push(&entry) } {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry came from `push`, and its operation is still in the table.
            if !unsafe { self.ring.push(entry) } {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// The result of a single-shot operation, once; its entry is then gone.
    pub(crate) fn poll(&mut self, key: Key, cx: &Context<'_>) -> Poll<(i32, Payload)> {
        let Some(entry) = self.table.get_mut(key) else {
            panic!("operation {key:?} polled after it completed");
        };
        if let State::Done(result) = entry.state {
            let Some(entry) = self.table.remove(key) else {
                unreachable!("found above")
            };
            let payload = self.finish(entry.payload);
            return Poll::Ready((result, payload));
        }
        set_waker(&mut entry.waker, cx);
        Poll::Pending
    }

    /// The next completion of a multishot. Ready(Err) and Ready(Ok(false)) end it: its entry is gone.
    pub(crate) fn poll_multi(&mut self, key: Key, cx: &Context<'_>) -> Poll<(i32, bool)> {
        let Some(entry) = self.table.get_mut(key) else {
            panic!("multishot {key:?} polled after it ended");
        };
        let State::Multi { last, is_armed } = &mut entry.state else {
            panic!("operation {key:?} is not a multishot");
        };
        let is_armed = *is_armed;
        if let Some(result) = last.take() {
            if !is_armed {
                self.discard(key);
            }
            return Poll::Ready((result, is_armed));
        }
        set_waker(&mut entry.waker, cx);
        Poll::Pending
    }

    fn discard(&mut self, key: Key) {
        if let Some(entry) = self.table.remove(key) {
            self.finish(entry.payload);
        }
    }

    /// Ends the count of a registered file's use.
    fn finish(&mut self, payload: Payload) -> Payload {
        if let Keep::Registered(slot) = payload.keep {
            self.files.release(slot);
        }
        payload
    }

    /// The future of an operation is dropped. Returns what the caller has to drop after the borrow has ended.
    pub(crate) fn abandon(&mut self, key: Key) -> Option<(Payload, Option<Waker>)> {
        let entry = self.table.get_mut(key)?;
        match entry.state {
            State::Done(result) => {
                close_accepted(entry.kind, result);
                let entry = self.table.remove(key)?;
                Some((self.finish(entry.payload), entry.waker))
            }
            State::Multi {
                is_armed: false, ..
            } => {
                let entry = self.table.remove(key)?;
                Some((self.finish(entry.payload), entry.waker))
            }
            State::InFlight | State::Multi { .. } => {
                entry.state = State::Abandoned;
                entry.waker = None;
                if entry.kind != Kind::Disk {
                    self.push(
                        opcode::AsyncCancel::new(user_data(key))
                            .build()
                            .user_data(IGNORED),
                    );
                }
                None
            }
            State::Abandoned => None,
        }
    }

    /// Gives the kernel everything queued. Does not wait.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.arm_wake();
        self.push_backlog();
        self.queued = 0;
        if self.ring.has_work() {
            ignore_transient(self.ring.submit())
        } else {
            Ok(())
        }
    }

    /// Gives the kernel what is queued once it is a batch, so that the device starts while more tasks run.
    pub(crate) fn submit_batch(&mut self) -> io::Result<()> {
        if self.queued < SUBMIT_BATCH {
            return Ok(());
        }
        self.queued = 0;
        ignore_transient(self.ring.submit())
    }

    /// Gives the kernel everything queued and waits for a completion, for at most `limit`.
    pub(crate) fn submit_and_wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.arm_wake();
        self.push_backlog();
        self.queued = 0;
        if !self.backlog.is_empty() || !self.ring.completion().is_empty() {
            return self.submit();
        }
        let result = match limit {
            None => self.ring.submit_and_wait(1),
            Some(limit) => {
                let limit = Timespec::from(limit);
                self.ring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        ignore_transient(result)
    }

    /// Keeps the multishot poll on the eventfd armed.
    fn arm_wake(&mut self) {
        if !self.is_wake_armed {
            self.is_wake_armed = true;
            let poll = opcode::PollAdd::new(
                types::Fd(self.eventfd),
                u32::from(libc::POLLIN.unsigned_abs()),
            );
            self.push(poll.multi(true).build().user_data(WAKE));
        }
    }

    /// Takes all completions.
    pub(crate) fn harvest(&mut self, harvest: &mut Harvest) {
        let Driver {
            ring,
            table,
            in_kernel,
            files,
            is_wake_armed,
            ..
        } = self;
        for completion in ring.completion() {
            let has_more = cqueue::more(completion.flags());
            match completion.user_data() {
                IGNORED => continue,
                WAKE => {
                    *is_wake_armed = has_more;
                    continue;
                }
                _ => {}
            }
            let key = key_of(completion.user_data());
            let Some(entry) = table.get_mut(key) else {
                tracing::error!(
                    ?key,
                    result = completion.result(),
                    "completion of no operation"
                );
                continue;
            };
            if !has_more {
                *in_kernel -= 1;
            }
            match &mut entry.state {
                State::InFlight => {
                    entry.state = State::Done(completion.result());
                    harvest.wakers.extend(entry.waker.take());
                }
                State::Multi { last, is_armed } => {
                    *last = Some(completion.result());
                    *is_armed = has_more;
                    harvest.wakers.extend(entry.waker.take());
                }
                State::Abandoned => {
                    close_accepted(entry.kind, completion.result());
                    if !has_more && let Some(entry) = table.remove(key) {
                        if let Keep::Registered(slot) = entry.payload.keep {
                            files.release(slot);
                        }
                        harvest.garbage.push(entry.payload.buf);
                        harvest.keeps.push(entry.payload.keep);
                    }
                }
                State::Done(_) => {
                    tracing::error!(?key, "second completion of an operation");
                }
            }
        }
    }

    /// Ends all operations, waiting a bounded time. Returns whether nothing is left in the kernel.
    fn shutdown(&mut self) -> bool {
        let deadline = std::time::Instant::now() + SHUTDOWN_LIMIT;
        for entry in self.table.iter_mut() {
            entry.waker = None;
        }
        while self.in_kernel > 0 {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            // The poll on the eventfd is cancelled with the rest and must not be armed again.
            self.is_wake_armed = true;
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            self.push(cancel.user_data(IGNORED));
            if let Err(error) = self.submit_and_wait(Some(left.min(SHUTDOWN_ROUND))) {
                tracing::error!(%error, "io_uring_enter failed while a core ends");
                return false;
            }
            self.harvest(&mut Harvest::default());
        }
        true
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.shutdown() {
            for entry in self.table.iter_mut() {
                if let State::Done(result) = entry.state {
                    close_accepted(entry.kind, result);
                }
            }
            // SAFETY: dropped once, here, and not used afterwards; no operation is in the kernel, so nothing writes to
            // the buffers that go with the table.
            unsafe {
                ManuallyDrop::drop(&mut self.table);
                ManuallyDrop::drop(&mut self.ring);
            }
        } else {
            tracing::error!(
                operations = self.in_kernel,
                "a core ends with operations in flight; their memory is kept for ever"
            );
        }
    }
}

/// Where an operation goes.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    Fd(RawFd),
    /// Place in the table of registered files.
    Registered(u32),
}

impl Target {
    /// Builds an entry for the target.
    pub(crate) fn build(self, make: impl FnOnce(types::Fd) -> squeue::Entry) -> squeue::Entry {
        match self {
            Target::Fd(fd) => make(types::Fd(fd)),
            Target::Registered(slot) => {
                let slot = RawFd::try_from(slot).unwrap_or(RawFd::MAX);
                make(types::Fd(slot)).flags(squeue::Flags::FIXED_FILE)
            }
        }
    }
}

fn set_waker(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// Closes the connection that nobody waits for any more.
fn close_accepted(kind: Kind, result: i32) {
    if kind == Kind::Accept && result >= 0 {
        // SAFETY: the kernel made this descriptor for us and it was given to nobody else.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
}

/// Errors of `io_uring_enter` after which the next turn simply tries again: the wait timed out or was interrupted, or
/// completions have to be taken first.
fn ignore_transient(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}
