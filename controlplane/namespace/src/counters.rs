//! The counters of the state: one value, written with every change.

use crate::{NsError, Result, Store, keys};
use fastcache_api::{COUNTER_BITS, Errno, Ino, Statfs, Version};
use serde::{Deserialize, Serialize};

/// Counters of the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Position of the last record that was applied; 0 in an empty state.
    pub position: u64,
    /// Raised at every start; the upper bits of inode numbers and versions.
    pub epoch: u64,
    /// Inodes made in this epoch.
    pub inos: u64,
    /// Versions handed out in this epoch.
    pub versions: u64,
    /// Number of the last object queued for deletion.
    pub garbage: u64,
    /// What `statfs` tells.
    pub statfs: Statfs,
}

impl Counters {
    /// The next inode number.
    pub(crate) fn next_ino(&mut self) -> Result<Ino> {
        self.inos += 1;
        if self.inos >> COUNTER_BITS != 0 {
            return Err(Errno::ENOSPC.into());
        }
        Ok(Ino(self.epoch << COUNTER_BITS | self.inos))
    }

    /// The first of `count` versions.
    pub(crate) fn next_versions(&mut self, count: u32) -> Result<Version> {
        let first = self.versions + 1;
        self.versions += u64::from(count);
        if self.versions >> COUNTER_BITS != 0 {
            return Err(Errno::ENOSPC.into());
        }
        Ok(Version(self.epoch << COUNTER_BITS | first))
    }
}

/// The counters of a state.
pub fn counters<S: Store + ?Sized>(store: &S) -> Result<Counters> {
    match store.get(keys::COUNTERS)? {
        None => Ok(Counters::default()),
        Some(bytes) => postcard::from_bytes(&bytes)
            .map_err(|e| NsError::Damaged(format!("counters cannot be read: {e}"))),
    }
}
