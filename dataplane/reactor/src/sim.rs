//! What stands in for the hardware in tests. [`Medium`] and [`Contents`]: what a device holds, and what a power cut leaves
//! of it. With the feature `race` tasks, time and disks are those of `threads`, whose every step is up to the schedule that
//! shuttle tries. With the feature `sim` a core can be one of a simulated world ([`run`]): its clock, the order of its
//! tasks and the moods of its devices all come from one number, so that what fails fails again.
//!
//! A world runs the reactor's own executor, timers and locks; only who asks the ring is answered by [`Device`] instead.
//! Code that runs in one must not wait for anything outside of it.

mod contents;
#[cfg(feature = "sim")]
mod device;
#[cfg(feature = "race")]
pub(crate) mod threads;
#[cfg(feature = "sim")]
pub(crate) mod world;

pub use contents::{Contents, Loss, Medium, SECTOR, Step};
#[cfg(feature = "sim")]
pub use {
    device::{Device, Moods},
    world::{random, run},
};
