//! The oracle: whether what was answered, at once and from several mounts, has an order in which one file system could have
//! answered it, none before one that had returned when it began (linearizability). An operation that failed may have been done
//! all the same, at any time since it began, or never: it stands beside everything that follows until an answer decides it.
//!
//! A search goes along the time of the returns, and carries each state that the object can be in (Wing and Gong's search, as
//! Lowe made it go: "Testing for linearizability", 2017). What it costs grows with how much was under way at once and how much
//! is undecided, not with the length of the history; so objects that have nothing to do with each other are checked apart.

mod contents;
pub(crate) mod moment;
mod names;
mod register;
mod views;

pub use contents::{Contents, Touch, Touched, Whole, settle, with_returns};
pub use names::{Did, FOLDERS, Kept, NAMES, Names, Said, as_one, folder_of};
pub use register::{Register, Turn};
pub use views::check_views;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// States that a search may look at for one return; beyond them it gives up.
const STATES: usize = 200_000;

/// Something whose answers are known from what was done to it.
pub trait Object {
    /// What it is.
    type State: Clone + Ord;
    /// An operation with its answer.
    type Event: Debug;

    /// Before the first event.
    fn first(&self) -> Self::State;

    /// The state after an event, when it can have answered this way. Of one whose answer is not known: when it was done.
    fn after(&self, state: &Self::State, event: &Self::Event) -> Option<Self::State>;

    /// What can become of it by itself, until now.
    fn alone(&self, _state: &Self::State, _now: Instant) -> Vec<Self::State> {
        Vec::new()
    }
}

/// An event, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timed<E> {
    /// Before it was asked.
    #[serde(with = "moment")]
    pub began: Instant,
    /// After it was answered. `None`: it failed, and nobody knows whether and when it was done.
    #[serde(with = "moment::option")]
    pub returned: Option<Instant>,
    /// What.
    pub event: E,
}

impl<E> Timed<E> {
    /// The first moment after it was answered.
    fn end(&self) -> Option<Instant> {
        Some(self.returned?.max(self.began) + Duration::from_nanos(1))
    }
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Ordered,
    /// There is none that this event, by its place in the history, can have had its answer in.
    Wrong(usize),
    /// Too much was possible when this event returned.
    GaveUp(usize),
}

/// A place of the search: what has returned is in the state.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place<S> {
    state: S,
    /// Events in the state that have not returned yet.
    early: Vec<usize>,
}

/// Places that are worth going on from, each with sets of undecided events that are in its state. Of two such sets the one that
/// is within the other is enough: what is undecided may stay so for ever.
struct Places<S>(BTreeMap<Place<S>, Vec<Vec<usize>>>);

impl<S: Clone + Ord> Places<S> {
    /// Whether it was not there yet, nor a better one.
    fn add(&mut self, place: Place<S>, undecided: &[usize]) -> bool {
        let is_within = |a: &[usize], b: &[usize]| a.iter().all(|i| b.contains(i));
        let known = self.0.entry(place).or_default();
        if known.iter().any(|k| is_within(k, undecided)) {
            return false;
        }
        known.retain(|k| !is_within(undecided, k));
        known.push(undecided.to_vec());
        true
    }
}

/// `of` with one more, in order.
fn with(of: &[usize], one: usize) -> Vec<usize> {
    let mut of = of.to_vec();
    let at = of.partition_point(|i| *i < one);
    of.insert(at, one);
    of
}

/// Searches for an order.
pub fn check<O: Object>(object: &O, history: &[Timed<O::Event>]) -> Verdict {
    // What begins at the moment of a return was beside it.
    let begins = history.iter().enumerate().map(|(i, t)| (t.began, false, i));
    let returns = history.iter().enumerate();
    let returns = returns.filter_map(|(i, t)| t.returned.map(|r| (r.max(t.began), true, i)));
    let mut points: Vec<(Instant, bool, usize)> = begins.chain(returns).collect();
    points.sort_unstable();
    let first = Place {
        state: object.first(),
        early: Vec::new(),
    };
    let mut places = Places(BTreeMap::from([(first, vec![Vec::new()])]));
    let mut under_way: Vec<usize> = Vec::new();
    for (now, is_return, event) in points {
        if !is_return {
            under_way.push(event);
            continue;
        }
        match returned(object, history, &places, &under_way, event, now) {
            Some(next) if next.0.is_empty() => return Verdict::Wrong(event),
            Some(next) => places = next,
            None => return Verdict::GaveUp(event),
        }
        under_way.retain(|i| *i != event);
    }
    Verdict::Ordered
}

/// Where one can be when an event has returned; `None` when that is too much.
fn returned<O: Object>(
    object: &O,
    history: &[Timed<O::Event>],
    places: &Places<O::State>,
    under_way: &[usize],
    event: usize,
    now: Instant,
) -> Option<Places<O::State>> {
    let mut seen = Places(BTreeMap::new());
    let mut next = Places(BTreeMap::new());
    // What leaves most undecided first: it is better than what it leads to.
    let mut queue: VecDeque<(Place<O::State>, Vec<usize>)> = VecDeque::new();
    for (place, sets) in &places.0 {
        queue.extend(sets.iter().map(|set| (place.clone(), set.clone())));
    }
    let mut looked_at = 0;
    while let Some((mut place, undecided)) = queue.pop_front() {
        // What changes nothing and has its answer here need not be tried anywhere else.
        for i in under_way {
            if history[*i].returned.is_some()
                && !place.early.contains(i)
                && object.after(&place.state, &history[*i].event).as_ref() == Some(&place.state)
            {
                place.early = with(&place.early, *i);
            }
        }
        if place.early.contains(&event) {
            place.early.retain(|i| *i != event);
            next.add(place, &undecided);
            continue;
        }
        if !seen.add(place.clone(), &undecided) {
            continue;
        }
        looked_at += 1;
        if looked_at > STATES {
            return None;
        }
        for state in object.alone(&place.state, now) {
            let early = place.early.clone();
            queue.push_front((Place { state, early }, undecided.clone()));
        }
        for i in under_way {
            if place.early.contains(i) || undecided.contains(i) {
                continue;
            }
            let Some(state) = object.after(&place.state, &history[*i].event) else {
                continue;
            };
            let early = place.early.clone();
            if history[*i].returned.is_some() {
                let early = with(&early, *i);
                queue.push_front((Place { state, early }, undecided.clone()));
            } else if state != place.state {
                queue.push_back((Place { state, early }, with(&undecided, *i)));
            }
        }
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::Timed;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    static START: OnceLock<Instant> = OnceLock::new();

    /// Milliseconds of a test's clock.
    pub fn at(ms: u64) -> Instant {
        *START.get_or_init(Instant::now) + Duration::from_millis(ms)
    }

    pub fn timed<E>(from: u64, to: u64, event: E) -> Timed<E> {
        Timed {
            began: at(from),
            returned: Some(at(to)),
            event,
        }
    }

    pub fn failed<E>(from: u64, event: E) -> Timed<E> {
        Timed {
            began: at(from),
            returned: None,
            event,
        }
    }
}
