//! Stops hammering an object store that is down: after enough failures in a row, one upload at a time probes.

use rand::Rng;
use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row after which uploads stop, all but one.
const FAILURES_MAX: u32 = 8;
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The pause before try `failures + 1`: exponential, with jitter between half and all of it.
pub(crate) fn pause(failures: u32) -> Duration {
    let full = PAUSE.0.saturating_mul(1 << failures.min(16)).min(PAUSE.1);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Whether uploads work.
#[derive(Default)]
pub(crate) struct Breaker {
    failures: u32,
    probe_at: Option<Instant>,
    error: Option<String>,
}

impl Breaker {
    /// Whether an upload may begin; if not, when to ask again (`None`: when one ended).
    pub(crate) fn may_begin(&self, in_flight: usize, now: Instant) -> Result<(), Option<Instant>> {
        match self.probe_at {
            None => Ok(()),
            Some(_) if in_flight > 0 => Err(None),
            Some(at) if at > now => Err(Some(at)),
            Some(_) => Ok(()),
        }
    }

    /// An upload worked. Whether uploads had stopped.
    pub(crate) fn worked(&mut self) -> bool {
        let was_open = self.probe_at.is_some();
        *self = Breaker::default();
        was_open
    }

    /// An upload failed. Whether uploads stop because of this one.
    pub(crate) fn failed(&mut self, error: String, now: Instant) -> bool {
        let was_open = self.probe_at.is_some();
        self.failures = self.failures.saturating_add(1);
        self.error = Some(error);
        if self.failures >= FAILURES_MAX {
            self.probe_at = Some(now + pause(self.failures - FAILURES_MAX + 2));
        }
        !was_open && self.probe_at.is_some()
    }

    /// Somebody waits: probe at once.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if let Some(at) = &mut self.probe_at {
            *at = (*at).min(now);
        }
    }

    /// Whether uploads are paused, but for probes.
    pub(crate) fn is_open(&self) -> bool {
        self.probe_at.is_some()
    }

    /// The last error, while uploads fail.
    pub(crate) fn error(&self) -> Option<String> {
        self.error.clone()
    }
}
