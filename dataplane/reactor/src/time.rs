//! The reactor's clock and timers. Nothing above the reactor asks the operating system for the time, so that a
//! simulated clock can take its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::ops::{Add, AddAssign, Sub};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::executor::{Core, try_with_core, with_core};

/// A point on the reactor's monotonic clock, in nanoseconds since the process first asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instant(u64);

impl Instant {
    /// The clock's start.
    #[cfg(any(feature = "race", feature = "sim"))]
    pub(crate) const START: Instant = Instant(0);

    /// Time from `earlier` to self; zero if `earlier` is later.
    pub fn duration_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time since self; zero if self is in the future.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub fn elapsed(self) -> Duration {
        crate::now().duration_since(self)
    }

    /// Nanoseconds since the clock's arbitrary start, for logs and packed counters.
    pub fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of time, some 584 years after the start.
    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the clock's start.
    fn sub(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_sub(nanos))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.duration_since(earlier)
    }
}

/// The operating system's monotonic clock.
pub(crate) fn system_now() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let elapsed = START.get_or_init(std::time::Instant::now).elapsed();
    Instant(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// The time on this reactor's clock.
///
/// # Panics
/// Outside of a reactor thread.
pub fn now() -> Instant {
    with_core(Core::now)
}

/// CLOCK_BOOTTIME, nanoseconds: what leases count on, since it goes on while the machine sleeps, and is the same for all
/// processes of a machine. The simulated clock in a simulated world.
pub fn boot_nanos() -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now) =
        try_with_core(|core| core.world.as_ref().map(crate::sim::world::World::now)).flatten()
    {
        return now.as_nanos();
    }
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

/// Fills `out` with bytes that nobody can guess: an identity for what is new.
///
/// # Errors
/// The operating system has none.
///
/// # Panics
/// Outside of a reactor thread.
pub fn entropy(out: &mut [u8]) -> io::Result<()> {
    #[cfg(feature = "sim")]
    if with_core(|core| core.world.as_ref().map(|world| world.fill(out))).is_some() {
        return Ok(());
    }
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(out))
}

/// Seconds since 1970, for what is to be read by people.
pub fn wall_clock_seconds() -> u64 {
    let since = wall_clock().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// What the clock on the wall says, for time stamps. A simulated world begins in 1970.
pub fn wall_clock() -> SystemTime {
    #[cfg(feature = "sim")]
    if let Some(now) = try_with_core(|core| Some(core.world.as_ref()?.now())).flatten() {
        return UNIX_EPOCH + now.duration_since(Instant::START);
    }
    SystemTime::now()
}

/// The pending timers of one core, soonest first. Bounded by the number of futures that sleep.
#[derive(Default)]
pub(crate) struct Timers {
    pending: BTreeMap<TimerKey, Waker>,
    sequence: u64,
}

/// Deadline and a number that tells timers of the same nanosecond apart.
type TimerKey = (Instant, u64);

impl Timers {
    fn insert(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        self.sequence += 1;
        let key = (deadline, self.sequence);
        self.pending.insert(key, waker);
        key
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// When the next timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.pending
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    /// Moves the wakers of all timers that are due to `due`.
    pub(crate) fn expire(&mut self, now: Instant, due: &mut Vec<Waker>) {
        while let Some(entry) = self.pending.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
    }
}

/// Future of [`sleep`].
#[must_use = "a sleep does nothing until it is awaited"]
pub struct Sleep {
    deadline: Instant,
    key: Option<TimerKey>,
}

/// Waits for `duration`, counted from this call.
///
/// # Panics
/// Outside of a reactor thread.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep {
        deadline: now() + duration,
        key: None,
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        with_core(|core| {
            let mut timers = core.timers.borrow_mut();
            if core.now() >= self.deadline {
                let old = self.key.take().and_then(|key| timers.pending.remove(&key));
                drop(timers);
                drop(old);
                return Poll::Ready(());
            }
            if let Some(waker) = self.key.and_then(|key| timers.pending.get_mut(&key)) {
                waker.clone_from(cx.waker());
            } else {
                self.key = Some(timers.insert(self.deadline, cx.waker().clone()));
            }
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = try_with_core(|core| core.timers.borrow_mut().pending.remove(&key));
            drop(waker);
        }
    }
}

/// The time given to [`timeout`] ran out first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Future of [`timeout`].
#[must_use = "a timeout does nothing until it is awaited"]
pub struct Timeout<F> {
    sleep: Sleep,
    future: F,
}

/// Runs `future` for at most `duration`, counted from this call. When the time is over the future is dropped together
/// with the result; operations it had in flight are cancelled or finish on their own.
///
/// # Panics
/// Outside of a reactor thread.
pub fn timeout<T, F: Future<Output = T>>(duration: Duration, future: F) -> Timeout<F> {
    Timeout {
        sleep: sleep(duration),
        future,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is only ever used pinned, Timeout has no Drop of its own, and `sleep` is Unpin.
        let (future, sleep) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &mut this.sleep)
        };
        if let Poll::Ready(output) = future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(sleep).poll(cx).map(|()| Err(Elapsed))
    }
}
