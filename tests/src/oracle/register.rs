//! A register: a name whose contents are replaced as a whole, or a time stamp.

use super::Object;
use serde::{Deserialize, Serialize};

/// What was asked of a register, and what it answered. Of a turn whose answer is not known: as if it had been done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// Replaced by this value.
    Put(u64),
    /// Made, if it was not there; whether it was made.
    Create(u64, bool),
    /// Removed; whether it was there.
    Delete(bool),
    /// Its value.
    Get(Option<u64>),
}

/// A register that is not there in the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Register;

impl Object for Register {
    type State = Option<u64>;
    type Event = Turn;

    fn first(&self) -> Option<u64> {
        None
    }

    fn after(&self, value: &Option<u64>, turn: &Turn) -> Option<Option<u64>> {
        let value = *value;
        match turn {
            Turn::Put(new) => Some(Some(*new)),
            Turn::Create(new, true) => value.is_none().then_some(Some(*new)),
            Turn::Create(_, false) => value.is_some().then_some(value),
            Turn::Delete(true) => value.is_some().then_some(None),
            Turn::Delete(false) => value.is_none().then_some(None),
            Turn::Get(seen) => (*seen == value).then_some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::tests::{failed, timed};
    use crate::oracle::{Timed, Verdict, check};

    fn put(from: u64, to: u64, value: u64) -> Timed<Turn> {
        timed(from, to, Turn::Put(value))
    }

    fn get(from: u64, to: u64, value: Option<u64>) -> Timed<Turn> {
        timed(from, to, Turn::Get(value))
    }

    #[track_caller]
    fn is_right(history: &[Timed<Turn>]) {
        assert_eq!(check(&Register, history), Verdict::Ordered);
    }

    #[track_caller]
    fn is_wrong(history: &[Timed<Turn>], at: usize) {
        assert_eq!(check(&Register, history), Verdict::Wrong(at));
    }

    #[test]
    fn stale_answers_are_told() {
        is_right(&[put(0, 5, 1), get(3, 4, None), get(6, 7, Some(1))]);
        is_wrong(&[put(0, 5, 1), get(6, 7, None)], 1);
        is_right(&[
            put(0, 9, 1),
            put(1, 9, 2),
            get(2, 8, Some(1)),
            get(10, 11, Some(2)),
        ]);
        is_wrong(&[put(0, 3, 1), put(4, 5, 2), get(6, 7, Some(1))], 2);
        // Two that made it, and none that removed it between them.
        let create = |from, to, value| timed(from, to, Turn::Create(value, true));
        is_wrong(&[create(0, 5, 1), create(1, 6, 2)], 1);
        // Seen by one, and not by another who began later.
        is_wrong(&[put(0, 9, 1), get(1, 2, Some(1)), get(3, 4, None)], 2);
    }

    #[test]
    fn what_failed_may_be_done_at_any_time_since_once_or_never() {
        let lost = || failed(1, Turn::Put(7));
        is_right(&[put(0, 1, 1), lost(), get(3, 4, Some(1))]);
        is_right(&[put(0, 1, 1), lost(), get(3, 4, Some(7))]);
        is_right(&[put(0, 1, 1), lost(), get(3, 4, Some(1)), get(5, 6, Some(7))]);
        // Once it was seen, it is there.
        is_wrong(
            &[put(0, 1, 1), lost(), get(3, 4, Some(7)), get(5, 6, Some(1))],
            3,
        );
        // Done once, and not again after it was replaced.
        is_wrong(
            &[lost(), get(3, 4, Some(7)), put(5, 6, 2), get(7, 8, Some(7))],
            3,
        );
        // Not before it began.
        is_wrong(&[get(0, 1, Some(7)), failed(2, Turn::Put(7))], 0);
        // Two of them, in either order.
        let other = || failed(2, Turn::Put(8));
        is_right(&[lost(), other(), get(3, 4, Some(8)), get(5, 6, Some(7))]);
        is_wrong(
            &[
                lost(),
                other(),
                get(3, 4, Some(8)),
                get(5, 6, Some(7)),
                get(7, 8, Some(8)),
            ],
            4,
        );
    }

    #[test]
    fn a_change_that_was_acknowledged_is_never_lost() {
        // An outage at 2, and what is undecided since could have removed it or not; but it made it for certain.
        let made = timed(0, 1, Turn::Create(1, true));
        let gone = || failed(2, Turn::Delete(true));
        is_right(&[made.clone(), gone(), get(5, 6, None)]);
        is_wrong(&[made.clone(), get(5, 6, None)], 1);
        is_wrong(&[made, gone(), get(5, 6, None), get(7, 8, Some(1))], 3);
    }

    #[test]
    fn many_that_failed_cost_little() {
        let mut history = vec![put(0, 1, 1)];
        for n in 0..40 {
            history.push(failed(n + 1, Turn::Put(100 + n)));
            history.push(put(10 * n + 50, 10 * n + 58, 1000 + n));
            history.push(get(10 * n + 52, 10 * n + 59, Some(1000 + n)));
        }
        is_right(&history);
        history.push(get(5000, 5001, Some(1001)));
        let last = history.len() - 1;
        is_wrong(&history, last);
    }
}
