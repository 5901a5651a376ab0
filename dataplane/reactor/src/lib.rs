//! One io_uring per core: operations, buffers, timers, sockets; the only unsafe I/O.
//!
//! [`run`] turns the calling thread into a reactor: one ring, one single-threaded executor, one timer queue, one
//! pool of registered buffers. Tasks never leave their core; their wakers may be used anywhere.
//!
//! Invariants kept here and relied upon above:
//! - The kernel only ever reads or writes memory that the operation table owns. An [`IoBuf`] moves into the table when
//!   its operation starts and moves out with the completion; dropping the future in between changes nothing for it.
//! - A descriptor named by a queued operation stays open until that operation completed.
//! - Submission is batched: one `io_uring_enter` for everything the tasks of a turn queued.
//!
//! A thread outside can see whether a core goes on, and what it does if not: [`watch`].
//!
//! All time goes through [`now`], [`sleep`] and [`timeout`].

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "a test may fail by panicking, and its numbers are small"
    )
)]
#![cfg_attr(
    feature = "race",
    allow(
        dead_code,
        unused_imports,
        reason = "what is simulated is compiled and not used"
    )
)]

mod buffer;
mod command;
mod disk;
mod executor;
#[cfg(feature = "faults")]
pub mod faults;
mod fd;
mod memory;
mod net;
mod op;
#[cfg(feature = "race")]
pub mod race;
mod remote;
mod ring;
#[cfg(any(feature = "race", feature = "sim"))]
pub mod sim;
mod slab;
pub mod striped;
pub mod sync;
mod time;
pub mod watch;

pub use buffer::{Arena, BufPool, IoBuf, PAGE, Place, Slot};
pub use command::{COMMAND_BYTES, Segments};
pub use disk::DiskOptions;
pub use executor::{Config, pool, run};
pub use fd::{Fd, Poller};
pub use ring::{MAX_IN_FLIGHT, has_wide_entries};
pub use time::{Elapsed, Instant, Sleep, Timeout, boot_nanos};

#[cfg(not(feature = "race"))]
pub use {
    disk::Disk,
    executor::{Task, remote, spawn, yield_now},
    remote::Remote,
    time::{entropy, now, sleep, timeout, wall_clock, wall_clock_seconds},
};

#[cfg(feature = "race")]
pub use sim::threads::{
    Disk, Remote, Task, entropy, now, remote, sleep, spawn, timeout, wall_clock,
    wall_clock_seconds, yield_now,
};
