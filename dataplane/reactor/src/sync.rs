//! What threads share is built from these: the standard library's, or with the feature `race` those of shuttle, which
//! runs the models in `race` files in thousands of interleavings (`make test-race`). For every crate of the data plane
//! whose threads meet.

#[cfg(not(feature = "race"))]
pub use std::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize},
};

#[cfg(feature = "race")]
pub use shuttle::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize},
};
