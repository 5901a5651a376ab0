//! Sees from outside whether a core goes on. Every step of a core's loop (a poll of one task, a look at the ring, …) stores
//! one number into a cache line of the core's own; a thread that serves nothing compares what it sees with what it saw
//! before. The core reads no clock for this and makes no system call.
//!
//! A core is stuck when it has been in the same step for longer than the limit: a task that blocks the thread or computes
//! for ever, a system call that does not return. Sleep in the ring is no step: a core that sleeps is woken once in a while,
//! and is stuck when it does not come.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::executor::try_with_core;
use crate::remote::{Remote, Shared};
use crate::time::{Instant, system_now};

/// Looks that come later than this many times their distance say nothing: the machine stood still, or nobody let the
/// watching thread run, and so perhaps the cores neither.
const LATE: u32 = 4;

/// Bits of a beat that say which step it is.
const STEP_BITS: u32 = 3;

/// What a core does between two beats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Waits for completions, with nothing to run.
    Asleep,
    /// Takes what other threads sent.
    Messages,
    /// Polls a task; [`Stuck::label`] says more where the task did.
    Task,
    /// Polls the future that the core was started with.
    Main,
    /// Hands operations to the kernel, or takes their completions.
    Ring,
}

const STEPS: [Step; 5] = [
    Step::Asleep,
    Step::Messages,
    Step::Task,
    Step::Main,
    Step::Ring,
];

/// What a core shows. Written by it alone, in a cache line of its own (two, as processors fetch them).
#[repr(align(128))]
#[derive(Default)]
pub(crate) struct Pulse {
    /// A count of steps, and in the low bits which step this is.
    beat: AtomicU64,
    /// What the task that is being polled says that it is doing; 0 where it says nothing.
    label: AtomicU32,
}

impl Pulse {
    /// A new step begins. By the core alone.
    pub(crate) fn begin(&self, step: Step) {
        let count = (self.beat.load(Ordering::Relaxed) >> STEP_BITS).wrapping_add(1);
        self.label.store(0, Ordering::Relaxed);
        self.beat
            .store(count << STEP_BITS | step as u64, Ordering::Relaxed);
    }

    fn step(beat: u64) -> Step {
        let at = usize::try_from(beat & ((1 << STEP_BITS) - 1)).unwrap_or(0);
        STEPS.get(at).copied().unwrap_or(Step::Asleep)
    }
}

/// A future that says what is done while it is polled; see [`labelled`].
#[must_use = "a future does nothing until it is awaited"]
pub struct Labelled<F> {
    label: u32,
    future: F,
}

/// Runs a future; while it is polled, [`Stuck::label`] is `label`. 0 says nothing. Costs a store a poll.
pub fn labelled<F: Future>(label: u32, future: F) -> Labelled<F> {
    Labelled { label, future }
}

impl<F: Future> Future for Labelled<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let label = self.label;
        let before = try_with_core(|core| core.shared.pulse.label.swap_own(label));
        // SAFETY: `future` is only ever used pinned, Labelled has no Drop of its own and moves nothing out of it.
        let result = unsafe { self.map_unchecked_mut(|this| &mut this.future) }.poll(cx);
        if let Some(before) = before {
            try_with_core(|core| core.shared.pulse.label.store(before, Ordering::Relaxed));
        }
        result
    }
}

/// A swap of a value that one thread alone writes, without a locked instruction.
trait SwapOwn {
    fn swap_own(&self, value: u32) -> u32;
}

impl SwapOwn for AtomicU32 {
    fn swap_own(&self, value: u32) -> u32 {
        let before = self.load(Ordering::Relaxed);
        self.store(value, Ordering::Relaxed);
        before
    }
}

/// A core that does not go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stuck {
    /// Its place in what [`Watch::new`] was given.
    pub at: usize,
    /// Since when, as far as it was seen: at most the distance of two looks too late.
    pub since: Instant,
    /// What it was doing.
    pub step: Step,
    /// What its task said that it was doing ([`labelled`]); 0: nothing.
    pub label: u32,
    /// What the kernel says of its thread.
    pub thread: ThreadState,
}

/// What the kernel says of a thread.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ThreadState {
    /// One letter, as in proc(5): `R` runs or waits for a processor, `S` and `D` wait in a system call. `?`: not known.
    pub letter: char,
    /// Where in the kernel it waits; empty when it does not, or the kernel does not say.
    pub place: String,
}

impl ThreadState {
    fn of(thread: i32) -> ThreadState {
        let dir = format!("/proc/self/task/{thread}");
        let stat = std::fs::read_to_string(format!("{dir}/stat")).unwrap_or_default();
        // The name before it is in brackets and may hold anything.
        let letter = stat.rsplit_once(") ").and_then(|(_, l)| l.chars().next());
        let place = std::fs::read_to_string(format!("{dir}/wchan")).unwrap_or_default();
        ThreadState {
            letter: letter.unwrap_or('?'),
            place: if place == "0" { String::new() } else { place },
        }
    }
}

impl std::fmt::Display for ThreadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.letter, self.place.as_str()) {
            ('R', _) => f.write_str("it computes, or waits for a processor"),
            (letter, "") => write!(f, "its thread waits (state {letter})"),
            (letter, place) => write!(f, "its thread waits in {place} (state {letter})"),
        }
    }
}

/// What a look found new.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A core has not gone on for the limit.
    Began(Stuck),
    /// It goes on.
    Ended {
        /// Its place.
        at: usize,
        /// How long it stood still, as far as it was seen.
        after: Duration,
    },
}

struct Watched {
    core: Arc<Shared>,
    /// The beat of the last look, and when it was first seen.
    beat: u64,
    since: Instant,
    /// It was asked to wake up in this beat: from then on its sleep counts.
    is_called: bool,
    stuck: Option<Stuck>,
}

/// Watches some cores; to be asked again and again by a thread that is none of them.
pub struct Watch {
    cores: Vec<Watched>,
    limit: Duration,
    every: Duration,
    last: Option<Instant>,
}

impl Watch {
    /// Watches these cores. One that stays in a step for `limit` is stuck. [`Watch::look`] is to be called `every` so
    /// often.
    #[must_use]
    pub fn new(cores: &[Remote], limit: Duration, every: Duration) -> Watch {
        let cores = cores.iter().map(|remote| Watched {
            core: remote.shared.clone(),
            beat: u64::MAX,
            since: system_now(),
            is_called: false,
            stuck: None,
        });
        Watch {
            cores: cores.collect(),
            limit,
            every,
            last: None,
        }
    }

    /// Looks at every core; tells what changed.
    pub fn look(&mut self) -> Vec<Event> {
        self.look_at(system_now())
    }

    fn look_at(&mut self, now: Instant) -> Vec<Event> {
        let is_late = self
            .last
            .is_some_and(|last| now.duration_since(last) > self.every * LATE);
        self.last = Some(now);
        let limit = self.limit;
        let mut events = Vec::new();
        for (at, watched) in self.cores.iter_mut().enumerate() {
            watched.look(at, now, limit, is_late, &mut events);
        }
        events
    }

    /// The cores that are stuck, as the last look found them.
    pub fn stuck(&self) -> impl Iterator<Item = &Stuck> {
        self.cores.iter().filter_map(|w| w.stuck.as_ref())
    }
}

impl Watched {
    fn look(
        &mut self,
        at: usize,
        now: Instant,
        limit: Duration,
        is_late: bool,
        events: &mut Vec<Event>,
    ) {
        // The core has ended: it is not expected to go on.
        let is_closed = self.core.closed.load(Ordering::Acquire);
        let beat = self.core.pulse.beat.load(Ordering::Relaxed);
        if beat != self.beat || is_closed {
            if let Some(stuck) = self.stuck.take() {
                let after = now.duration_since(stuck.since);
                events.push(Event::Ended { at, after });
            }
            (self.beat, self.since, self.is_called) = (beat, now, false);
            return;
        }
        if self.stuck.is_some() {
            return;
        }
        if is_late {
            self.since = now;
        }
        if now.duration_since(self.since) < limit {
            return;
        }
        let step = Pulse::step(beat);
        if step == Step::Asleep && !self.is_called {
            self.core.notify();
            (self.since, self.is_called) = (now, true);
            return;
        }
        let stuck = Stuck {
            at,
            since: self.since,
            step,
            label: self.core.pulse.label.load(Ordering::Relaxed),
            thread: ThreadState::of(self.core.thread),
        };
        self.stuck = Some(stuck.clone());
        events.push(Event::Began(stuck));
    }
}

#[cfg(all(test, not(feature = "race")))]
mod tests;
