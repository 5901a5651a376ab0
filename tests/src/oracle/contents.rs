//! A file that is written in place, with close-to-open (docs/semantics.md, "Several nodes"): what a node has written it reads
//! itself at once, and others when it was closed or fsynced. Nodes that write it take turns: what one of them has written is
//! committed before another one writes.
//!
//! While a `close` is under way, one node may see what it commits already and another one not yet.
//!
//! What was written and not closed may be lost with its node or its lease; then no `close` and no `fsync` says that it is there.
//! Where it was the lease, the node goes on with what it had until that is saved in a file beside: programs there read it, and
//! may write more, which is lost with it.

use super::{Object, Timed};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long a node's kernel may have the old end of a file after a `write` there that waited for another node's.
const OLD_END: Duration = Duration::from_millis(100);

/// What was done to the file, or seen of it. Values are not 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Touch {
    /// A place was written.
    Write(usize, u64),
    /// A value was appended.
    Append(u64),
    /// All of it was cut off, through an open file.
    Cut,
    /// `close` or `fsync` said that what its session wrote is there.
    Commit,
    /// A place was read; 0 where nothing was written.
    Read(usize, u64),
    /// A place was read that is behind the end of the file.
    ReadPast(usize),
    /// All of it was read; 0 where there were zeros.
    ReadAll(Vec<u64>),
    /// The [`Touch::Commit`] of this session has returned: everybody sees it.
    Told,
}

impl Touch {
    fn is_read(&self) -> bool {
        matches!(
            self,
            Touch::Read(..) | Touch::ReadPast(_) | Touch::ReadAll(_)
        )
    }
}

/// A touch, by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// The node, by its number.
    pub node: usize,
    /// From an `open` to its `close`.
    pub session: u64,
    /// What.
    pub touch: Touch,
}

/// What a node has written and not committed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Written {
    node: usize,
    session: u64,
    values: Vec<u64>,
}

/// What was committed before something that not everybody may have seen yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Before {
    /// The node that committed.
    node: usize,
    /// The session whose `close` waits until everybody has.
    session: u64,
    values: Vec<u64>,
}

/// A file, whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whole {
    committed: Vec<u64>,
    before: Vec<Before>,
    written: Option<Written>,
    /// A node that goes on with what was lost, and what the file is there.
    aside: Option<(usize, Vec<u64>)>,
    /// Sessions whose writes were lost: they are not told that they are there.
    lost: Vec<u64>,
}

/// A file with so many places, all of them 0 in the beginning. One node writes it in one session at a time.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Its places; 0 for one that is appended to.
    pub places: usize,
    /// Since when what a node has written can get lost, by node.
    pub hurt: Vec<Option<Instant>>,
}

impl Whole {
    /// What a node has written of it, or has of what was lost.
    fn own(&self, node: usize) -> Option<&[u64]> {
        match (&self.aside, &self.written) {
            (Some((of, values)), _) if *of == node => Some(values),
            (_, Some(written)) if written.node == node => Some(&written.values),
            _ => None,
        }
    }

    /// Whether a node can see it so.
    fn is_seen(&self, node: usize, is_it: impl Fn(&[u64]) -> bool) -> bool {
        match self.own(node) {
            Some(values) => is_it(values),
            None => {
                // Not what was before something of its own.
                let own = self.before.iter().rposition(|b| b.node == node);
                let mut before = self.before.iter().skip(own.map_or(0, |own| own + 1));
                is_it(&self.committed) || before.any(|b| is_it(&b.values))
            }
        }
    }

    /// Everybody sees it.
    fn commit(&mut self) {
        if let Some(written) = self.written.take() {
            self.committed = written.values;
            self.before.clear();
        }
    }

    /// A `close` or `fsync` commits what its node has written, and waits until everybody has seen it.
    fn close(&mut self, by: &Touched) {
        if let Some(written) = self.written.take_if(|w| w.node == by.node) {
            let values = std::mem::replace(&mut self.committed, written.values);
            self.before.push(Before {
                node: by.node,
                session: by.session,
                values,
            });
        }
    }

    fn told(&mut self, by: &Touched) {
        let is_its = |b: &Before| b.node == by.node && b.session == by.session;
        let upto = self.before.iter().rposition(is_its);
        self.before.drain(..upto.map_or(0, |upto| upto + 1));
    }

    fn lose(&mut self, session: u64) {
        if !self.lost.contains(&session) {
            self.lost.push(session);
        }
    }

    fn write(&mut self, by: &Touched, change: impl FnOnce(&mut Vec<u64>)) {
        if let Some((_, values)) = self.aside.as_mut().filter(|(node, _)| *node == by.node) {
            change(values);
            return self.lose(by.session);
        }
        if self.written.as_ref().is_some_and(|w| w.node != by.node) {
            self.commit();
        }
        // Whoever wrote it before has handed it over, and everybody was told.
        let last = self.before.iter().rposition(|b| b.node != by.node);
        self.before.drain(..last.map_or(0, |last| last + 1));
        let mut values = self.own(by.node).unwrap_or(&self.committed).to_vec();
        change(&mut values);
        self.written = Some(Written {
            node: by.node,
            session: by.session,
            values,
        });
    }
}

impl Object for Contents {
    type State = Whole;
    type Event = Touched;

    fn first(&self) -> Whole {
        Whole {
            committed: vec![0; self.places],
            before: Vec::new(),
            written: None,
            aside: None,
            lost: Vec::new(),
        }
    }

    fn after(&self, whole: &Whole, by: &Touched) -> Option<Whole> {
        let mut whole = whole.clone();
        match &by.touch {
            Touch::Write(place, value) => whole.write(by, |values| values[*place] = *value),
            Touch::Append(value) => whole.write(by, |values| values.push(*value)),
            Touch::Cut => whole.write(by, Vec::clear),
            Touch::Commit if whole.lost.contains(&by.session) => return None,
            Touch::Commit => whole.close(by),
            Touch::Told => whole.told(by),
            Touch::Read(place, value) => {
                return whole
                    .is_seen(by.node, |values| values[*place] == *value)
                    .then_some(whole);
            }
            Touch::ReadPast(place) => {
                return whole
                    .is_seen(by.node, |values| values[*place] == 0)
                    .then_some(whole);
            }
            Touch::ReadAll(all) => {
                return whole
                    .is_seen(by.node, |values| values == all)
                    .then_some(whole);
            }
        }
        Some(whole)
    }

    /// Another program's `close` there, or the node when it is back, commits what is written. Or it is lost.
    fn alone(&self, whole: &Whole, now: Instant) -> Vec<Whole> {
        let mut all = Vec::new();
        if whole.aside.is_some() {
            let mut over = whole.clone();
            over.aside = None;
            all.push(over);
        }
        let Some(written) = &whole.written else {
            return all;
        };
        let mut committed = whole.clone();
        committed.commit();
        all.push(committed);
        if self.hurt[written.node].is_some_and(|since| since <= now) {
            let mut lost = whole.clone();
            lost.written = None;
            lost.lose(written.session);
            if lost.aside.is_none() {
                let mut aside = lost.clone();
                aside.aside = Some((written.node, written.values.clone()));
                all.push(aside);
            }
            all.push(lost);
        }
        all
    }
}

/// Says of each [`Touch::Commit`] that returned when it did, and that everybody sees it from then on.
#[must_use]
pub fn with_returns(history: &[Timed<Touched>]) -> Vec<Timed<Touched>> {
    let is_commit = |t: &&Timed<Touched>| t.event.touch == Touch::Commit;
    let told = history.iter().filter(is_commit).filter_map(|commit| {
        let end = commit.end()?;
        let event = Touched {
            touch: Touch::Told,
            ..commit.event.clone()
        };
        Some(Timed {
            began: end,
            returned: Some(end),
            event,
        })
    });
    history.iter().cloned().chain(told).collect()
}

/// Leaves out what no node is asked for, only its kernel, and what is promised of nothing that is under way:
///
/// - A read that finds what a `write` of the same node is writing. The kernel shows its page from then on, before the node has
///   its turn; until it returns, that write has no place among those of others.
/// - A read of all that ends in zeros while somebody appends. The kernel learns of the new size between a page and its copy.
///
/// - A read behind the end, of a program that had the file open, while another node commits, or right after a `write` of its own
///   node during which one did. The kernel keeps the end it knows when an invalidation overtakes the answer that has the new one.
///
/// Answers how many were left out.
pub fn settle(history: &mut Vec<Timed<Touched>>) -> usize {
    let before = history.len();
    let changes: Vec<Timed<Touched>> = history
        .iter()
        .filter(|t| !t.event.touch.is_read())
        .cloned()
        .collect();
    history.retain(|read| {
        let beside = changes.iter().filter(|change| are_beside(change, read));
        match &read.event.touch {
            Touch::Read(place, value) => !beside.into_iter().any(|change| {
                change.returned.is_some()
                    && change.event.node == read.event.node
                    && change.event.touch == Touch::Write(*place, *value)
            }),
            Touch::ReadPast(_) => !may_have_the_old_end(read, &changes),
            Touch::ReadAll(values) if values.last() == Some(&0) => beside
                .into_iter()
                .all(|change| !matches!(change.event.touch, Touch::Append(_) | Touch::Commit)),
            _ => true,
        }
    });
    before - history.len()
}

/// Whether both were under way at some time.
fn are_beside(one: &Timed<Touched>, other: &Timed<Touched>) -> bool {
    let began_before_the_end_of = |a: &Timed<Touched>, b: &Timed<Touched>| {
        b.returned.is_none_or(|returned| a.began <= returned)
    };
    began_before_the_end_of(one, other) && began_before_the_end_of(other, one)
}

/// See [`settle`].
fn may_have_the_old_end(read: &Timed<Touched>, changes: &[Timed<Touched>]) -> bool {
    let node = read.event.node;
    let commits = || {
        let is_commit = |t: &&Timed<Touched>| t.event.touch == Touch::Commit;
        changes
            .iter()
            .filter(is_commit)
            .filter(|t| t.event.node != node)
    };
    let waited = |write: &Timed<Touched>| commits().any(|commit| are_beside(commit, write));
    let is_just_over = |write: &Timed<Touched>| {
        let until = write.returned.map(|returned| returned + OLD_END);
        write.began <= read.began && until.is_none_or(|until| read.began <= until)
    };
    let mut writes = changes
        .iter()
        .filter(|t| t.event.node == node && matches!(t.event.touch, Touch::Write(..)));
    commits().any(|commit| are_beside(commit, read))
        || writes.any(|write| is_just_over(write) && waited(write))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Verdict;
    use crate::oracle::tests::{at, failed, timed};

    /// Nodes 0 and 1; what 0 wrote may get lost from 50 on.
    fn file(places: usize) -> Contents {
        Contents {
            places,
            hurt: vec![Some(at(50)), None],
        }
    }

    fn check(file: &Contents, history: &[Timed<Touched>]) -> Verdict {
        crate::oracle::check(file, &with_returns(history))
    }

    fn by(node: usize, session: u64, touch: Touch) -> Touched {
        Touched {
            node,
            session,
            touch,
        }
    }

    /// One after the other, each of two milliseconds, from a moment on.
    fn from(start: u64, touches: Vec<Touched>) -> Vec<Timed<Touched>> {
        let starts = (start..).step_by(2);
        let timed = starts.zip(touches).map(|(t, touch)| timed(t, t + 1, touch));
        timed.collect()
    }

    fn write(node: usize, session: u64, value: u64) -> Vec<Touched> {
        vec![
            by(node, session, Touch::Write(0, value)),
            by(node, session, Touch::Commit),
        ]
    }

    fn read(node: usize, value: u64) -> Touched {
        by(node, 0, Touch::Read(0, value))
    }

    #[track_caller]
    fn verdict(touches: Vec<Touched>) -> Verdict {
        check(&file(2), &from(0, touches))
    }

    #[test]
    fn what_is_closed_is_seen_by_the_others_and_what_is_not_by_its_node() {
        let written = || by(0, 1, Touch::Write(0, 1));
        assert_eq!(
            verdict(vec![written(), read(0, 1), read(1, 0)]),
            Verdict::Ordered
        );
        assert_eq!(
            verdict(vec![written(), read(0, 0)]),
            Verdict::Wrong(1),
            "its own"
        );
        let closed = || [write(0, 1, 1), write(1, 2, 2)].concat();
        let and = |last: Touched| [closed(), vec![last]].concat();
        assert_eq!(verdict(and(read(0, 2))), Verdict::Ordered);
        // The bytes of an earlier version after a later close; and what was never there.
        assert_eq!(verdict(and(read(0, 1))), Verdict::Wrong(4));
        assert_eq!(verdict(and(read(1, 0))), Verdict::Wrong(4));
    }

    #[test]
    fn two_that_write_different_places_keep_what_both_wrote() {
        let both = || {
            vec![
                by(0, 1, Touch::Write(0, 1)),
                by(1, 2, Touch::Write(1, 2)),
                by(0, 1, Touch::Commit),
                by(1, 2, Touch::Commit),
            ]
        };
        let and = |last: Touch| [both(), vec![by(0, 0, last)]].concat();
        assert_eq!(verdict(and(Touch::Read(0, 1))), Verdict::Ordered);
        assert_eq!(verdict(and(Touch::Read(1, 2))), Verdict::Ordered);
        assert_eq!(verdict(and(Touch::Read(0, 0))), Verdict::Wrong(4));
        assert_eq!(verdict(and(Touch::Read(1, 0))), Verdict::Wrong(4));
    }

    #[test]
    fn what_was_not_closed_may_go_with_its_node_and_what_was_may_not() {
        let open = |node| {
            let mut history = from(40, vec![by(node, 1, Touch::Write(0, 1)), read(node, 1)]);
            history.extend(from(60, vec![read(0, 0), read(1, 0)]));
            check(&file(2), &history)
        };
        assert_eq!(open(0), Verdict::Ordered);
        assert_eq!(open(1), Verdict::Wrong(3), "nothing happened to that node");
        // Lost before the outage began.
        let mut early = from(0, vec![by(0, 1, Touch::Write(0, 1)), read(0, 1)]);
        early.extend(from(10, vec![read(0, 0)]));
        assert_eq!(check(&file(2), &early), Verdict::Wrong(2));
        // Closed, and lost all the same.
        let mut closed = from(40, write(0, 1, 1));
        closed.extend(from(60, vec![read(1, 0)]));
        assert_eq!(check(&file(2), &closed), Verdict::Wrong(2));
        // Lost, and then closed without an error: also when the other one wrote in between.
        let mut said = from(40, vec![by(0, 1, Touch::Write(0, 1))]);
        said.extend(from(60, write(1, 2, 2)));
        said.extend(from(70, vec![read(1, 2), by(0, 1, Touch::Commit)]));
        said.extend(from(80, vec![read(1, 2)]));
        // There it can have been committed before the other one wrote.
        assert_eq!(check(&file(2), &said), Verdict::Ordered);
        said[1].event.touch = Touch::Write(1, 2);
        said[3].event.touch = Touch::Read(1, 2);
        said[5].event = read(1, 0);
        assert_eq!(check(&file(2), &said), Verdict::Wrong(5));
    }

    #[test]
    fn a_close_that_is_under_way_is_seen_by_one_and_not_by_another() {
        let closing = || {
            vec![
                timed(10, 11, by(0, 1, Touch::Write(0, 1))),
                timed(20, 40, by(0, 1, Touch::Commit)),
            ]
        };
        let and = |looks: &[(u64, u64)]| {
            let looks = looks.iter();
            let looks = looks.map(|(at, value)| timed(*at, at + 1, read(1, *value)));
            let history: Vec<_> = closing().into_iter().chain(looks).collect();
            check(&file(1), &history)
        };
        assert_eq!(and(&[(22, 1), (24, 0), (41, 1)]), Verdict::Ordered);
        assert_eq!(and(&[(22, 1), (41, 0)]), Verdict::Wrong(3));
        assert_eq!(and(&[(41, 0)]), Verdict::Wrong(2));
        assert_eq!(and(&[(22, 2)]), Verdict::Wrong(2));
    }

    #[test]
    fn a_node_that_lost_its_lease_reads_what_it_wrote_until_that_is_saved() {
        let before = || {
            let mut history = from(40, vec![by(0, 1, Touch::Write(0, 1))]);
            history.extend(from(60, vec![by(1, 2, Touch::Write(1, 2))]));
            history.extend(from(62, vec![by(1, 2, Touch::Commit), read(1, 0)]));
            history.extend(from(70, vec![by(0, 1, Touch::Write(0, 3)), read(0, 3)]));
            history
        };
        let and = |touches: Vec<Touched>| {
            let history = [before(), from(80, touches)].concat();
            check(&file(2), &history)
        };
        let other = |node, value| by(node, 0, Touch::Read(1, value));
        assert_eq!(and(vec![other(0, 0), other(1, 2)]), Verdict::Ordered);
        assert_eq!(
            and(vec![other(0, 0), other(0, 2), read(0, 0)]),
            Verdict::Ordered
        );
        let back = vec![other(0, 0), other(0, 2), read(0, 3)];
        assert_eq!(and(back), Verdict::Wrong(8));
        assert_eq!(and(vec![other(1, 0)]), Verdict::Wrong(6), "nobody else");
        // Its `close` does not say that it is there.
        let closed = vec![other(0, 0), by(0, 1, Touch::Commit)];
        assert_eq!(and(closed), Verdict::Wrong(7));
    }

    #[test]
    fn a_write_that_failed_may_be_there_once_from_then_on() {
        let wrote = || failed(10, by(0, 1, Touch::Append(7)));
        let all = |from: u64, values: &[u64]| {
            let touch = Touch::ReadAll(values.to_vec());
            timed(from, from + 1, by(1, 0, touch))
        };
        let log = |history: &[Timed<Touched>]| check(&file(0), history);
        assert_eq!(
            log(&[wrote(), all(20, &[]), all(30, &[7])]),
            Verdict::Ordered
        );
        assert_eq!(
            log(&[wrote(), all(20, &[7]), all(30, &[])]),
            Verdict::Wrong(2)
        );
        assert_eq!(
            log(&[wrote(), all(20, &[7, 7])]),
            Verdict::Wrong(1),
            "twice"
        );
        let cut = timed(24, 25, by(1, 9, Touch::Cut));
        assert_eq!(
            log(&[wrote(), all(20, &[7]), cut, all(30, &[7])]),
            Verdict::Wrong(3)
        );
    }

    #[test]
    fn an_append_that_was_acknowledged_is_there_once_and_in_order() {
        let append = |from: u64, node, session, value| {
            let touches = vec![
                by(node, session, Touch::Append(value)),
                by(node, session, Touch::Commit),
            ];
            super::tests::from(from, touches)
        };
        let all = |values: &[u64]| {
            let touch = Touch::ReadAll(values.to_vec());
            let mut history = append(0, 0, 1, 1);
            history.extend(append(10, 1, 2, 2));
            history.push(timed(60, 61, by(0, 0, touch)));
            check(&file(0), &history)
        };
        assert_eq!(all(&[1, 2]), Verdict::Ordered);
        for wrong in [&[2, 1][..], &[1], &[2], &[1, 2, 2], &[1, 2, 3]] {
            assert_eq!(all(wrong), Verdict::Wrong(4), "{wrong:?}");
        }
    }

    #[test]
    fn only_what_is_under_way_is_left_out() {
        let write = || timed(10, 30, by(0, 1, Touch::Write(0, 1)));
        let left = |mut history: Vec<Timed<Touched>>| {
            settle(&mut history);
            history.len()
        };
        assert_eq!(left(vec![write(), timed(15, 16, read(0, 1))]), 1);
        assert_eq!(left(vec![write(), timed(15, 16, read(0, 2))]), 2);
        assert_eq!(left(vec![write(), timed(15, 16, read(1, 1))]), 2);
        assert_eq!(left(vec![write(), timed(31, 32, read(0, 1))]), 2);
        // The old end: beside another node's commit, or right after a write that waited for it.
        let commit = || timed(10, 20, by(1, 2, Touch::Commit));
        let waits = || timed(12, 30, by(0, 1, Touch::Write(0, 1)));
        let past = |from| timed(from, from + 1, by(0, 0, Touch::ReadPast(1)));
        assert_eq!(left(vec![commit(), past(15)]), 1);
        assert_eq!(left(vec![commit(), past(21)]), 2);
        assert_eq!(left(vec![commit(), waits(), past(31)]), 2);
        assert_eq!(left(vec![commit(), waits(), past(30 + 101)]), 3);
        assert_eq!(left(vec![waits(), past(31)]), 2);
        let others = timed(31, 32, by(1, 0, Touch::ReadPast(1)));
        assert_eq!(left(vec![commit(), waits(), others]), 3);

        let zeros = |from| timed(from, from + 1, by(1, 0, Touch::ReadAll(vec![1, 0])));
        let append = || timed(10, 30, by(0, 1, Touch::Append(2)));
        assert_eq!(left(vec![append(), zeros(20)]), 1);
        let after = vec![append(), zeros(40)];
        assert_eq!(left(after.clone()), 2);
        assert_eq!(check(&file(0), &after), Verdict::Wrong(1));
    }
}
