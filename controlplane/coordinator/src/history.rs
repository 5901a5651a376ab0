//! The history of the namespace in the bucket: segments of the log and snapshots of the state, from which alone the file
//! system can be built again.
//!
//! ```text
//!  log on this disk ─► segments, one PUT at least every second while there is something ─► bucket
//!  state            ─► snapshots, in parts, when the log since the last one is long      ─► bucket
//!                                                                       rebuild ◄── bucket
//! ```
//!
//! [`format`] has names and bytes, [`shape`] says what a listing means, [`claim`] makes this process the one writer,
//! [`ship`] and [`snapshot`] write, [`rebuild`](mod@rebuild) reads, [`progress`] knows how far it is. Changes never wait
//! for the bucket: what is not there yet is read from the log on this disk, which keeps it until then.

mod bucket;
mod claim;
mod format;
mod grace;
mod progress;
mod rebuild;
mod shape;
mod ship;
mod snapshot;
#[cfg(test)]
mod tests;

pub use bucket::{BucketError, check_bucket};
pub(crate) use claim::{Claimant, expect_free};
pub(crate) use format::Owner;
pub(crate) use progress::Progress;
pub use rebuild::{RebuildError, RebuildOptions, Rebuilt, Step, rebuild};

use crate::Engine;
use fastcache_api::HistoryState;
use fastcache_cloud::{Cloud, CloudError};
use std::time::Duration;

/// Most objects of a history that are listed at once.
const LISTED_MAX: usize = 1_000_000;
/// How long a start waits for the bucket before it goes on without, where it may.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Pace and bounds of the history.
#[derive(Clone, Copy, Debug)]
pub struct HistoryOptions {
    /// A record waits at most this long for its segment while the bucket works.
    pub segment_every: Duration,
    /// A segment is closed when it has so many bytes (a single record may be larger).
    pub segment_bytes: usize,
    /// A snapshot is taken when the log since the last one has so many bytes, or half the bytes of that snapshot.
    pub snapshot_bytes: u64,
    /// Or so many segments, or 16 for each part of that snapshot.
    pub snapshot_segments: u64,
    /// Or when objects have waited so long for it to be deleted.
    pub garbage_wait: Duration,
    /// And they stay at least this long after nothing names them: a read that began before may still want them.
    pub garbage_grace: Duration,
    /// Bytes of a part of a snapshot.
    pub part_bytes: usize,
    /// Snapshots that stay.
    pub snapshots_kept: usize,
    /// First and longest pause after a failure.
    pub retry: (Duration, Duration),
}

impl Default for HistoryOptions {
    fn default() -> HistoryOptions {
        HistoryOptions {
            segment_every: Duration::from_secs(1),
            segment_bytes: 4 << 20,
            snapshot_bytes: 64 << 20,
            snapshot_segments: 1000,
            garbage_wait: Duration::from_secs(30),
            garbage_grace: Duration::from_secs(600),
            part_bytes: 4 << 20,
            snapshots_kept: 2,
            retry: (Duration::from_millis(500), Duration::from_secs(10)),
        }
    }
}

/// Where the history goes.
#[derive(Clone, Debug)]
pub struct HistoryConfig {
    /// The bucket.
    pub cloud: Cloud,
    /// Pace and bounds.
    pub options: HistoryOptions,
}

/// Why a history cannot be written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HistoryError {
    /// This state is new, and the bucket is not.
    #[error(
        "{place} already holds the file system {file_system:016x} (epoch {epoch}), and this state directory is empty: \
         restore it with --rebuild, or name another bucket or prefix"
    )]
    Occupied {
        /// The bucket.
        place: String,
        /// Whose it is.
        file_system: u64,
        /// Its last epoch.
        epoch: u64,
    },
    /// The bucket is another file system's.
    #[error(
        "{place} holds the history of another file system ({theirs:016x}, this one is {ours:016x}): name another \
         bucket or prefix"
    )]
    Other {
        /// The bucket.
        place: String,
        /// This one.
        ours: u64,
        /// The bucket's.
        theirs: u64,
    },
    /// A later coordinator took over.
    #[error(
        "{place}: epoch {theirs} of this file system was begun by {by}, after this one's epoch {ours}: this state \
         directory is out of date; stop this process, or if the other one is not to go on, restore from the bucket \
         with rebuild --force"
    )]
    Overtaken {
        /// The bucket.
        place: String,
        /// This one.
        ours: u64,
        /// The later one.
        theirs: u64,
        /// Its host and time.
        by: String,
    },
    /// The state directory was put back from an older copy.
    #[error(
        "{place} has records of this file system behind {position}, the last one of this state directory: it is an \
         old copy; restore from the bucket with rebuild --force"
    )]
    Older {
        /// The bucket.
        place: String,
        /// Where the state ends.
        position: u64,
    },
    /// The bucket does not answer, and must for this.
    #[error(
        "{place} cannot be reached, and a new file system needs it once, to see that nothing else is there: {error}; \
         check the endpoint and the network"
    )]
    Away {
        /// The bucket.
        place: String,
        /// What it said.
        error: String,
    },
    /// The bucket refuses, or what is there is not a history.
    #[error("{place}: {error}")]
    Cloud {
        /// The bucket.
        place: String,
        /// What is wrong, and with which object.
        error: String,
    },
}

impl Engine {
    /// Starts writing this namespace's history to a bucket. A bucket that is away is tried again in the background.
    ///
    /// # Errors
    /// When the history there must not be written by this state.
    pub(crate) async fn write_history(&self, config: HistoryConfig) -> Result<(), HistoryError> {
        {
            let mut progress = self.progress();
            progress.state = HistoryState::Claiming;
            progress.grace = grace::Grace::new(config.options.garbage_grace);
        }
        let mut shipper = ship::Shipper::new(self, config);
        let claimed = match tokio::time::timeout(START_WITHIN, shipper.claim()).await {
            Ok(Ok(())) => true,
            Ok(Err(ship::Failed::Stopped(error))) => return Err(error),
            Ok(Err(ship::Failed::Again(error))) => {
                self.progress().error = Some(error);
                false
            }
            Err(_) => false,
        };
        if !claimed {
            tracing::warn!(target: "history", place = shipper.place(), "the bucket is away: nothing is persisted until it is back");
        }
        tokio::spawn(shipper.run());
        Ok(())
    }
}

/// The error of a call that makes sense again later, or the one that does not.
fn cloud_error(place: &str, error: &CloudError) -> HistoryError {
    HistoryError::Cloud {
        place: place.to_owned(),
        error: error.to_string(),
    }
}
