//! The ring with its submission entries of 64 bytes, or of 128 where commands of a driver need them. All entries of a ring
//! have one width: mixed rings are newer than what this runs on.

use std::io;

use io_uring::squeue::{Entry, Entry128};
use io_uring::{CompletionQueue, IoUring, Submitter};

use super::setup;

/// Entries of the ring that is made to see whether one can be made.
const PROBE_ENTRIES: u32 = 8;

/// A submission entry.
pub(crate) enum Sqe {
    /// 64 bytes, for any ring.
    Narrow(Entry),
    /// 128 bytes, for a wide ring.
    Wide(Entry128),
}

impl From<Entry> for Sqe {
    fn from(entry: Entry) -> Sqe {
        Sqe::Narrow(entry)
    }
}

impl From<Entry128> for Sqe {
    fn from(entry: Entry128) -> Sqe {
        Sqe::Wide(entry)
    }
}

impl Sqe {
    /// The same with a name for its completions.
    pub(crate) fn user_data(self, user_data: u64) -> Sqe {
        match self {
            Sqe::Narrow(entry) => Sqe::Narrow(entry.user_data(user_data)),
            Sqe::Wide(entry) => Sqe::Wide(entry.user_data(user_data)),
        }
    }
}

/// One io_uring.
pub(super) enum Ring {
    Narrow(IoUring),
    Wide(IoUring<Entry128>),
}

/// Whether a ring with entries of 128 bytes can be made here (Linux 5.19).
///
/// # Errors
/// Why not.
pub fn has_wide_entries() -> io::Result<()> {
    setup::create::<Entry128>(PROBE_ENTRIES, 2 * PROBE_ENTRIES).map(drop)
}

impl Ring {
    pub(super) fn create(entries: u32, completions: u32, is_wide: bool) -> io::Result<Ring> {
        Ok(if is_wide {
            Ring::Wide(setup::create(entries, completions)?)
        } else {
            Ring::Narrow(setup::create(entries, completions)?)
        })
    }

    pub(super) fn is_wide(&self) -> bool {
        matches!(self, Ring::Wide(_))
    }

    /// Queues an entry. False when the submission queue is full.
    ///
    /// # Safety
    /// What the entry names must stay valid until its completion.
    pub(super) unsafe fn push(&mut self, entry: &Sqe) -> bool {
        match (self, entry) {
            (Ring::Narrow(ring), Sqe::Narrow(entry)) => {
                // SAFETY: upheld by the caller.
                unsafe { ring.submission().push(entry) }.is_ok()
            }
            (Ring::Wide(ring), Sqe::Narrow(entry)) => {
                let entry = Entry128::from(entry.clone());
                // SAFETY: upheld by the caller.
                unsafe { ring.submission().push(&entry) }.is_ok()
            }
            (Ring::Wide(ring), Sqe::Wide(entry)) => {
                // SAFETY: upheld by the caller.
                unsafe { ring.submission().push(entry) }.is_ok()
            }
            (Ring::Narrow(_), Sqe::Wide(_)) => {
                panic!("an entry of 128 bytes for a ring of entries of 64")
            }
        }
    }

    /// Whether the kernel has to be called: entries are queued, or completions wait to be processed.
    pub(super) fn has_work(&mut self) -> bool {
        match self {
            Ring::Narrow(ring) => {
                let queue = ring.submission();
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
            }
            Ring::Wide(ring) => {
                let queue = ring.submission();
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
            }
        }
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        match self {
            Ring::Narrow(ring) => ring.submitter(),
            Ring::Wide(ring) => ring.submitter(),
        }
    }

    pub(super) fn submit(&self) -> io::Result<usize> {
        match self {
            Ring::Narrow(ring) => ring.submit(),
            Ring::Wide(ring) => ring.submit(),
        }
    }

    pub(super) fn submit_and_wait(&self, want: usize) -> io::Result<usize> {
        match self {
            Ring::Narrow(ring) => ring.submit_and_wait(want),
            Ring::Wide(ring) => ring.submit_and_wait(want),
        }
    }

    pub(super) fn completion(&mut self) -> CompletionQueue<'_> {
        match self {
            Ring::Narrow(ring) => ring.completion(),
            Ring::Wide(ring) => ring.completion(),
        }
    }
}
