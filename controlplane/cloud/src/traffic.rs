//! How much may be asked of the store beyond what is needed, and when to stop asking: budgets of retries and hedges,
//! the delay of a hedge, and the circuit breaker of reads. Pure: the time is passed in.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Retries allowed for each request, and how many may be saved up. A store that fails 30 % of all requests needs 0.43;
/// one that fails all of them sees at most 0.6 more than without retries, until the breaker opens.
const RETRY_SHARE: (f64, f64) = (0.6, 100.0);
/// Second requests allowed for each read, and how many may be saved up: 5 % more reads.
const HEDGE_SHARE: (f64, f64) = (0.05, 10.0);
/// Latencies remembered.
const LATENCIES: usize = 256;
/// Reads between two looks at them.
const LATENCIES_LOOK: usize = 16;
/// A hedge is sent when so many reads of 100 would have been answered: earlier, more would be sent than the budget has.
const HEDGE_PERCENT: usize = 95;
/// Bounds of that delay. Below the first a second request costs more than it saves.
const HEDGE_DELAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(4));
/// The delay while too few latencies are known.
const HEDGE_DELAY_FIRST: Duration = Duration::from_secs(1);
/// Reads that failed in a row after which reads stop, all but one.
const FAILURES_MAX: u32 = 8;
/// Between two reads that probe, first and longest.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Something that may be done for a share of the requests.
#[derive(Debug)]
pub(crate) struct Budget {
    share: f64,
    max: f64,
    left: f64,
}

impl Budget {
    pub(crate) fn retries() -> Budget {
        Budget::new(RETRY_SHARE)
    }

    pub(crate) fn hedges() -> Budget {
        Budget::new(HEDGE_SHARE)
    }

    fn new((share, max): (f64, f64)) -> Budget {
        // Full at the start: the first requests of a process may meet a bad moment, too.
        Budget {
            share,
            max,
            left: max,
        }
    }

    /// A request was made.
    pub(crate) fn earn(&mut self) {
        self.left = (self.left + self.share).min(self.max);
    }

    /// Whether one more may be done; it is then counted.
    pub(crate) fn take(&mut self) -> bool {
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// How long reads take.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    last: VecDeque<Duration>,
    unseen: usize,
    quantile: Option<Duration>,
}

impl Latencies {
    pub(crate) fn add(&mut self, latency: Duration) {
        if self.last.len() == LATENCIES {
            self.last.pop_front();
        }
        self.last.push_back(latency);
        self.unseen += 1;
        if self.unseen >= LATENCIES_LOOK {
            self.unseen = 0;
            let mut sorted: Vec<Duration> = self.last.iter().copied().collect();
            let at = sorted.len() * HEDGE_PERCENT / 100;
            self.quantile = Some(*sorted.select_nth_unstable(at).1);
        }
    }

    /// After how long a second request is worth its while.
    pub(crate) fn hedge_delay(&self) -> Duration {
        self.quantile
            .map_or(HEDGE_DELAY_FIRST, |q| q.clamp(HEDGE_DELAY.0, HEDGE_DELAY.1))
    }
}

/// Stops reads while the store answers none: then one at a time probes.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    probe_at: Option<Instant>,
    pause: Duration,
    error: String,
}

impl Breaker {
    /// Whether a read may be made now; if not, when to ask again. While reads are stopped, who is let through probes
    /// for all.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Instant> {
        match self.probe_at {
            None => Ok(()),
            Some(at) if at > now => Err(at),
            Some(_) => {
                self.probe_at = Some(now + self.pause);
                self.pause = (self.pause * 2).min(PROBE.1);
                Ok(())
            }
        }
    }

    /// The store answered. Whether reads had stopped.
    pub(crate) fn worked(&mut self) -> bool {
        let was_open = self.probe_at.is_some();
        *self = Breaker::default();
        was_open
    }

    /// A read failed as it does when the store is away. Whether reads stop because of this one.
    pub(crate) fn failed(&mut self, error: &str, now: Instant) -> bool {
        let was_open = self.probe_at.is_some();
        self.failures = self.failures.saturating_add(1);
        self.error = error.to_owned();
        if self.failures >= FAILURES_MAX && !was_open {
            self.pause = PROBE.0;
            self.probe_at = Some(now + self.pause);
        }
        !was_open && self.probe_at.is_some()
    }

    /// Whether reads are stopped, but for probes.
    pub(crate) fn is_open(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Why reads are stopped.
    pub(crate) fn error(&self) -> &str {
        &self.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_of_the_requests() {
        let mut budget = Budget::hedges();
        let first = std::iter::from_fn(|| budget.take().then_some(())).count();
        assert_eq!(first, 10);
        let mut taken = 0;
        for _ in 0..10_000 {
            budget.earn();
            taken += u32::from(budget.take());
        }
        assert!((499..=500).contains(&taken), "{taken} of 10,000");
    }

    #[test]
    fn the_hedge_delay_follows_the_latencies() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.hedge_delay(), HEDGE_DELAY_FIRST);
        for n in 0..100u64 {
            latencies.add(Duration::from_millis(100 + n));
        }
        let delay = latencies.hedge_delay();
        assert!((185..=199).contains(&delay.as_millis()), "{delay:?}");
        for _ in 0..LATENCIES {
            latencies.add(Duration::from_micros(300));
        }
        assert_eq!(latencies.hedge_delay(), HEDGE_DELAY.0);
    }

    #[test]
    fn reads_stop_and_one_probes() {
        let (mut breaker, t) = (Breaker::default(), Instant::now());
        for _ in 1..FAILURES_MAX {
            assert!(!breaker.failed("away", t));
            assert!(breaker.admit(t).is_ok());
        }
        assert!(!breaker.is_open());
        assert!(breaker.failed("away", t));
        assert!(breaker.is_open());
        assert_eq!(breaker.admit(t), Err(t + PROBE.0));
        let later = t + PROBE.0;
        assert!(breaker.admit(later).is_ok(), "the probe");
        assert!(breaker.admit(later).is_err(), "no other");
        assert!(!breaker.failed("away", later), "still, not anew");
        let mut at = later;
        for _ in 0..10 {
            at = breaker.admit(at).err().unwrap_or(at);
        }
        assert!(breaker.worked());
        assert!(!breaker.is_open());
        assert!(breaker.admit(later).is_ok());
    }
}
