//! How many uploads run at once: one more after each round that worked, half as many when the store asks for fewer.

use super::Outcome;
use fastcache_cloud::CloudError;
use metrics::gauge;
use std::time::Duration;
use tokio::time::Instant;

/// Uploads at once in the beginning.
const FIRST: f64 = 4.0;
/// What is left of the limit after an answer that asks for fewer requests.
const AFTER_THROTTLE: f64 = 0.5;
/// And after one that did not come, or failed: too much may be why.
const AFTER_FAILURE: f64 = 0.8;
/// Uploads that were under way together fail together: that counts once.
const ONE_CUT: Duration = Duration::from_secs(1);

/// The limit, between 1 and a cap (additive increase, multiplicative decrease).
#[derive(Debug)]
pub(crate) struct Limit {
    now: f64,
    cap: f64,
    cut_at: Option<Instant>,
}

impl Limit {
    pub(crate) fn new(cap: usize) -> Limit {
        let cap = f64::from(u32::try_from(cap).unwrap_or(u32::MAX)).max(1.0);
        let limit = Limit {
            now: FIRST.min(cap),
            cap,
            cut_at: None,
        };
        limit.show();
        limit
    }

    /// Whether one more may begin beside those that run.
    pub(crate) fn may_begin(&self, in_flight: usize) -> bool {
        f64::from(u32::try_from(in_flight).unwrap_or(u32::MAX)) + 1.0 <= self.now
    }

    /// An upload ended.
    pub(super) fn after(&mut self, outcome: &Outcome, now: Instant) {
        match outcome {
            Outcome::Done(_) => self.now = (self.now + 1.0 / self.now).min(self.cap),
            Outcome::Refused(CloudError::Throttled(_)) => self.cut(AFTER_THROTTLE, now),
            Outcome::Refused(CloudError::Transient(_)) => self.cut(AFTER_FAILURE, now),
            // Nothing about how much the store can take.
            _ => return,
        }
        self.show();
    }

    fn cut(&mut self, to: f64, now: Instant) {
        if self.cut_at.is_none_or(|at| now >= at + ONE_CUT) {
            self.cut_at = Some(now);
            self.now = (self.now * to).max(1.0);
        }
    }

    fn show(&self) {
        gauge!("fastcache_upload_limit").set(self.now.floor());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(limit: &Limit) -> usize {
        (0..100).take_while(|n| limit.may_begin(*n)).count()
    }

    #[test]
    fn grows_to_the_cap_and_halves_once_for_one_burst() {
        let done = || {
            Outcome::Done(fastcache_api::PersistedChunk {
                key: fastcache_api::ChunkKey {
                    ino: fastcache_api::Ino(1),
                    index: 0,
                    version: fastcache_api::Version(1),
                },
                at: fastcache_api::CloudRef {
                    object: String::new(),
                    offset: 0,
                    len: 0,
                    crc32c: 0,
                    etag: None,
                },
            })
        };
        let throttled = || Outcome::Refused(CloudError::Throttled("503".into()));
        let (mut limit, mut now) = (Limit::new(16), Instant::now());
        assert_eq!(running(&limit), 4);
        for _ in 0..200 {
            limit.after(&done(), now);
        }
        assert_eq!(running(&limit), 16);
        for _ in 0..16 {
            limit.after(&throttled(), now);
        }
        assert_eq!(running(&limit), 8);
        for _ in 0..10 {
            now += ONE_CUT;
            limit.after(&throttled(), now);
        }
        assert_eq!(running(&limit), 1, "never none");
        for _ in 0..8 {
            limit.after(&done(), now);
        }
        assert!((3..=5).contains(&running(&limit)), "{}", running(&limit));
        limit.after(&Outcome::NotHere, now);
        assert_eq!(running(&Limit::new(1)), 1);
    }
}
