//! How far the history in the bucket is behind the log, and which inodes the missing records concern. Pure: time is
//! passed in. Memory is bounded however long the bucket is away.

use super::grace::Grace;
use fastcache_api::{HistoryState, Ino};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Inodes that are kept apart; beyond, every inode counts as concerned up to then. About 40 bytes each.
const INODES_MAX: usize = 200_000;
/// Points in time that are kept; in between, the earlier one counts.
const SAMPLES_MAX: usize = 4096;
/// Least time between two of them.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// Where the history stands.
#[derive(Debug)]
pub(crate) struct Progress {
    pub state: HistoryState,
    /// Why it is stopped, or why the last write failed.
    pub error: Option<String>,
    /// The last record that is in the bucket.
    pub shipped: u64,
    /// The last record of the last whole snapshot.
    pub snapshot: u64,
    /// Up to this number the deletion queue is named by no state that could be rebuilt.
    pub garbage: u64,
    /// How long the deletion queue keeps what comes into it.
    pub grace: Grace,
    /// Records up to here may concern any inode.
    floor: u64,
    concerned: HashMap<Ino, u64>,
    /// A record's position and when it was made, for some of those that are not in the bucket, in order.
    samples: VecDeque<(u64, Instant)>,
}

impl Progress {
    /// Of a log that goes up to `position`, with `shipped` of it in the bucket as far as is known.
    pub(crate) fn new(state: HistoryState, position: u64, shipped: u64, now: Instant) -> Progress {
        let mut progress = Progress {
            state,
            error: None,
            shipped,
            snapshot: 0,
            garbage: 0,
            grace: Grace::default(),
            floor: position,
            concerned: HashMap::new(),
            samples: VecDeque::new(),
        };
        if position > shipped {
            progress.samples.push_back((position, now));
        }
        progress
    }

    /// A record was made.
    pub(crate) fn noted(
        &mut self,
        position: u64,
        inos: impl IntoIterator<Item = Ino>,
        now: Instant,
    ) {
        for ino in inos {
            self.concerned.insert(ino, position);
        }
        if self.concerned.len() > INODES_MAX {
            self.floor = position;
            self.concerned = HashMap::new();
        }
        let is_due = self
            .samples
            .back()
            .is_none_or(|(_, at)| now.saturating_duration_since(*at) >= SAMPLE_EVERY);
        if is_due && self.samples.len() < SAMPLES_MAX {
            self.samples.push_back((position, now));
        } else if let Some(last) = self.samples.back_mut() {
            // The earlier time stands for both.
            last.0 = position;
        }
    }

    /// Records up to this one are in the bucket.
    pub(crate) fn reached(&mut self, position: u64) {
        if position <= self.shipped {
            return;
        }
        self.shipped = position;
        self.concerned.retain(|_, at| *at > position);
        while self.samples.front().is_some_and(|(at, _)| *at <= position) {
            self.samples.pop_front();
        }
    }

    /// Whether everything that concerns an inode is in the bucket.
    pub(crate) fn is_covered(&self, ino: Ino) -> bool {
        self.shipped >= self.floor && !self.concerned.contains_key(&ino)
    }

    /// How long the oldest record that is not in the bucket waits.
    pub(crate) fn lag(&self, now: Instant) -> Option<Duration> {
        let (_, at) = self.samples.front()?;
        Some(now.saturating_duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_covered_when_its_last_record_is() {
        let start = Instant::now();
        let mut p = Progress::new(HistoryState::Shipping, 10, 7, start);
        assert!(
            !p.is_covered(Ino(5)),
            "records before this start may concern it"
        );
        assert_eq!(
            p.lag(start + Duration::from_secs(3)),
            Some(Duration::from_secs(3))
        );
        p.reached(10);
        assert!(p.is_covered(Ino(5)));
        assert_eq!(p.lag(start), None);
        let later = start + Duration::from_secs(5);
        p.noted(11, [Ino(5)], later);
        p.noted(12, [Ino(6)], later + Duration::from_secs(1));
        p.noted(13, [Ino(5)], later + Duration::from_secs(2));
        p.reached(12);
        assert!(p.is_covered(Ino(6)) && !p.is_covered(Ino(5)));
        assert_eq!(p.lag(later + Duration::from_secs(2)), Some(Duration::ZERO));
        p.reached(13);
        assert!(p.is_covered(Ino(5)));
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut p = Progress::new(HistoryState::Shipping, 0, 0, start);
        for n in 1..=1_000_000 {
            p.noted(n, [Ino(n)], start + Duration::from_millis(n));
        }
        assert!(p.concerned.len() <= INODES_MAX && p.samples.len() <= SAMPLES_MAX);
        assert!(
            !p.is_covered(Ino(u64::MAX)),
            "it may be one that was forgotten"
        );
        p.reached(1_000_000);
        assert!(p.is_covered(Ino(u64::MAX)));
        assert_eq!(p.lag(start), None);
    }
}
