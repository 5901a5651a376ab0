//! The namespace as a pure state machine: log records, state, rules of POSIX.
//!
//! Nothing here knows a clock, a network or a disk. The state is an ordered map behind [`Store`]; a change reads
//! it and yields a [`Batch`] of writes with the [`Record`] that goes to the log, and whoever calls puts both
//! down at once. The same records applied to an empty store give the same state, byte for byte: inode numbers,
//! versions and positions are counters of the state, and the time is the request's.
//!
//! ```text
//!  NsRequest ──► change(store, request) ──► Changed { record, batch, reply }   one atomic write
//!                                      └──► Known(reply)                       seen before, nothing to write
//!  NsRequest ──► read(store, op)        ──► NsAnswer
//!  Record    ──► replay(store, record)  ──► Batch                              recovery, standby, proof
//! ```

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")
)]

mod change;
mod commit;
mod counters;
mod keys;
mod read;
mod record;
mod rename;
mod store;
mod tx;

#[cfg(test)]
mod tests;

pub use change::{Changed, Outcome, REPLIES_PER_CLIENT, begin_epoch, change, replay};
pub use counters::{Counters, counters};
pub use read::read;
pub use record::{RECORD_VERSION, Record, RecordOp};
pub use store::{Batch, MemStore, Order, Overlay, Pair, Store, StoreError};

use fastcache_api::Errno;

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum NsError {
    /// A rule of the file system: what the application is told.
    #[error("{0}")]
    Rule(#[from] Errno),
    /// The store failed: nothing was changed, the same operation may work later.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state or a record contradicts itself: stop, and restore from the log.
    #[error("the namespace state is damaged: {0}")]
    Damaged(String),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, NsError>;
