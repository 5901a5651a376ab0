//! How long the deletion queue keeps what comes into it. Pure: time is passed in. Begins anew with each start, so that an
//! object is never deleted too early.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Moments that are remembered; in between, the later one counts.
const SAMPLES: u32 = 64;

/// Which numbers of the queue have waited long enough.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    wait: Duration,
    /// The last number of the queue at some moments, in order.
    seen: VecDeque<(Instant, u64)>,
    over: u64,
}

impl Grace {
    pub(crate) fn new(wait: Duration) -> Grace {
        Grace {
            wait,
            ..Grace::default()
        }
    }

    /// The queue goes up to `last` now: up to which number it has waited.
    pub(crate) fn over(&mut self, last: u64, now: Instant) -> u64 {
        let is_due = self.seen.back().is_none_or(|(at, number)| {
            *number < last && now.saturating_duration_since(*at) >= self.wait / SAMPLES
        });
        if is_due && last > self.over {
            self.seen.push_back((now, last));
        }
        while let Some((at, number)) = self.seen.front()
            && now.saturating_duration_since(*at) >= self.wait
        {
            self.over = *number;
            self.seen.pop_front();
        }
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_waits_as_long_and_memory_is_bounded() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut grace = Grace::new(Duration::from_secs(100));
        assert_eq!(grace.over(7, at(0)), 0);
        assert_eq!(grace.over(9, at(50)), 0);
        assert_eq!(grace.over(9, at(99)), 0);
        assert_eq!(grace.over(9, at(100)), 7);
        assert_eq!(grace.over(9, at(149)), 7);
        assert_eq!(grace.over(9, at(150)), 9);
        assert_eq!(grace.over(9, at(100_000)), 9);
        for n in 0..10_000 {
            let second = 200_000 + n / 10;
            let over = grace.over(10 + n, at(second));
            assert!(over <= 10 + n && (n < 1000 || over > 9), "{n}: {over}");
            // What came in the last 100 s waits.
            assert!(over < 10 + n.saturating_sub(990), "{n}: {over}");
            assert!(grace.seen.len() <= SAMPLES as usize + 1);
        }
        let mut none = Grace::new(Duration::ZERO);
        assert_eq!(none.over(3, at(0)), 3);
    }
}
