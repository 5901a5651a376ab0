//! Moments as other processes of this machine know them: nanoseconds of CLOCK_MONOTONIC, which is what an [`Instant`] is.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often both are read: what comes closest counts.
const TRIES: usize = 20;

fn clock() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos)
}

/// A moment, both ways.
fn base() -> (Instant, Duration) {
    static BASE: OnceLock<(Instant, Duration)> = OnceLock::new();
    *BASE.get_or_init(|| {
        let tries = (0..TRIES).map(|_| {
            let (before, now, after) = (clock(), Instant::now(), clock());
            (after - before, now, before + (after - before) / 2)
        });
        let best = tries.min_by_key(|(apart, ..)| *apart);
        best.map_or((Instant::now(), clock()), |(_, now, at)| (now, at))
    })
}

fn number(at: Instant) -> u64 {
    let (instant, clock) = base();
    let since = match at.checked_duration_since(instant) {
        Some(after) => clock + after,
        None => clock.saturating_sub(instant - at),
    };
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn moment(number: u64) -> Instant {
    let (instant, clock) = base();
    let since = Duration::from_nanos(number);
    match since.checked_sub(clock) {
        Some(after) => instant + after,
        None => instant - (clock - since),
    }
}

pub fn serialize<S: Serializer>(at: &Instant, to: S) -> Result<S::Ok, S::Error> {
    number(*at).serialize(to)
}

pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Instant, D::Error> {
    u64::deserialize(from).map(moment)
}

pub mod option {
    use super::{Deserializer, Instant, Serializer, moment, number};
    use serde::{Deserialize as _, Serialize as _};

    pub fn serialize<S: Serializer>(at: &Option<Instant>, to: S) -> Result<S::Ok, S::Error> {
        at.map(number).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Instant>, D::Error> {
        Option::<u64>::deserialize(from).map(|at| at.map(moment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_there_and_back() {
        let now = Instant::now();
        for at in [
            now,
            now - Duration::from_millis(5),
            now + Duration::from_secs(5),
        ] {
            assert_eq!(moment(number(at)), at);
        }
        let before = clock();
        let number = Duration::from_nanos(number(Instant::now()));
        assert!(
            before <= number + Duration::from_micros(1)
                && number <= clock() + Duration::from_micros(1)
        );
    }
}
