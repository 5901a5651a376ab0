//! What threads share is built from these: the standard library's, or with the feature `race` those of shuttle, which
//! runs the tests in `race.rs` files in thousands of interleavings (`make test-race`).

#[cfg(not(feature = "race"))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicU32};

#[cfg(feature = "race")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic::AtomicU32};
