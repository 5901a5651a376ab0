//! What is promised of names (P4): a change is seen everywhere when its system call has returned. While it is under way one node
//! may see it already and another one not yet, whichever looks first. Changes among themselves have an order.

use super::{Object, Timed, Verdict, check};
use std::fmt::Debug;

/// Something that nodes look at, each from its own place.
struct Views<'o, O>(&'o O);

/// What it is, and what it was before each change that has not returned.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct View<S> {
    now: S,
    /// In their order: the change, by its place in the history, and the state before it.
    before: Vec<(usize, S)>,
}

#[derive(Clone, Debug)]
enum Step<E> {
    /// An event, by its place in the history.
    Did(usize, E),
    /// It has returned: everybody sees it, and what was before it.
    Returned(usize),
}

impl<O: Object> Object for Views<'_, O> {
    type State = View<O::State>;
    type Event = Step<O::Event>;

    fn first(&self) -> Self::State {
        View {
            now: self.0.first(),
            before: Vec::new(),
        }
    }

    fn after(&self, view: &Self::State, step: &Self::Event) -> Option<Self::State> {
        let mut view = view.clone();
        match step {
            Step::Did(at, event) => {
                let is_seen = |state: &O::State| self.0.after(state, event).as_ref() == Some(state);
                if view.before.iter().any(|(_, state)| is_seen(state)) {
                    return Some(view);
                }
                let next = self.0.after(&view.now, event)?;
                if next != view.now {
                    let before = std::mem::replace(&mut view.now, next);
                    view.before.push((*at, before));
                }
            }
            Step::Returned(at) => {
                let upto = view.before.iter().position(|(change, _)| change == at);
                view.before.drain(..upto.map_or(0, |upto| upto + 1));
            }
        }
        Some(view)
    }
}

/// [`check`] of what is promised.
pub fn check_views<O: Object>(object: &O, history: &[Timed<O::Event>]) -> Verdict
where
    O::Event: Clone,
{
    let did = history.iter().enumerate().map(|(at, timed)| Timed {
        began: timed.began,
        returned: timed.returned,
        event: Step::Did(at, timed.event.clone()),
    });
    let ends = history.iter().enumerate();
    let ends = ends.filter_map(|(at, timed)| Some((at, timed.end()?)));
    let returned = ends.map(|(at, end)| Timed {
        began: end,
        returned: Some(end),
        event: Step::Returned(at),
    });
    let steps: Vec<_> = did.chain(returned).collect();
    let place = |at: usize| match steps[at].event {
        Step::Did(at, _) | Step::Returned(at) => at,
    };
    match check(&Views(object), &steps) {
        Verdict::Ordered => Verdict::Ordered,
        Verdict::Wrong(at) => Verdict::Wrong(place(at)),
        Verdict::GaveUp(at) => Verdict::GaveUp(place(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::tests::{failed, timed};
    use crate::oracle::{Register, Turn};

    fn verdict(history: &[Timed<Turn>]) -> Verdict {
        check_views(&Register, history)
    }

    #[test]
    fn a_change_that_is_under_way_is_seen_by_one_and_not_by_another() {
        let put = || vec![timed(0, 5, Turn::Put(1)), timed(10, 30, Turn::Put(2))];
        let and = |looks: &[(u64, u64)]| {
            let looks = looks.iter();
            let looks = looks.map(|(at, value)| timed(*at, at + 1, Turn::Get(Some(*value))));
            [put(), looks.collect()].concat()
        };
        assert_eq!(verdict(&and(&[(12, 2), (14, 1)])), Verdict::Ordered);
        assert_eq!(
            check(&Register, &and(&[(12, 2), (14, 1)])),
            Verdict::Wrong(3)
        );
        assert_eq!(verdict(&and(&[(29, 1)])), Verdict::Ordered);
        // When it has returned, everybody sees it; and nobody before it began.
        assert_eq!(verdict(&and(&[(12, 2), (31, 1)])), Verdict::Wrong(3));
        assert_eq!(verdict(&and(&[(31, 1)])), Verdict::Wrong(2));
        assert_eq!(verdict(&and(&[(7, 2)])), Verdict::Wrong(2));
        assert_eq!(verdict(&and(&[(12, 3)])), Verdict::Wrong(2));
    }

    #[test]
    fn changes_have_an_order_for_all() {
        let history = |looks: &[(u64, u64, Turn)]| {
            let mut all = vec![timed(0, 100, Turn::Put(1)), timed(10, 20, Turn::Put(2))];
            all.extend(looks.iter().map(|(a, b, turn)| timed(*a, *b, turn.clone())));
            all
        };
        // Whichever is the first: what was before the one that has returned is not seen any more.
        for (value, verdict_of_it) in [
            (Some(1), Verdict::Ordered),
            (Some(2), Verdict::Ordered),
            (None, Verdict::Wrong(2)),
        ] {
            let look = [(30, 31, Turn::Get(value))];
            assert_eq!(verdict(&history(&look)), verdict_of_it, "{value:?}");
        }
        // One is made once.
        let twice = [(5, 6, Turn::Create(7, true)), (7, 8, Turn::Create(8, true))];
        assert_eq!(verdict(&history(&twice)), Verdict::Wrong(3));
    }

    #[test]
    fn what_failed_may_be_there_or_not() {
        let put = || failed(10, Turn::Put(2));
        let get = |at, value| timed(at, at + 1, Turn::Get(value));
        let seen = [put(), get(20, Some(2)), get(30, None)];
        assert_eq!(verdict(&seen), Verdict::Ordered, "nobody was told");
        let over = [
            put(),
            get(20, Some(2)),
            timed(22, 23, Turn::Delete(true)),
            get(30, Some(2)),
        ];
        assert_eq!(verdict(&over), Verdict::Wrong(3));
    }
}
