//! Goal: nothing is known that a revocation, or a change of this node, may have made wrong; and memory has an end. Method: the
//! table alone, with a lease that is shared, and every order of what can overtake what.

use super::listing::PAGE_MAX;
use super::*;
use fastcache_api::{DirEntry, Kind};

const DIR: Ino = Ino(7);

fn entry(n: u64) -> DirEntry {
    DirEntry {
        name: n.to_string().into_bytes(),
        ino: Ino(n),
        kind: Kind::File,
        cookie: n,
        attr: None,
    }
}

/// A directory with entries from 3 on, and who asks for it.
struct World {
    lease: Lease,
    entries: Entries,
}

impl World {
    fn new() -> World {
        World {
            lease: Lease::shared(),
            entries: Entries::default(),
        }
    }

    fn grant(&self) -> Grant {
        self.lease.ask().answered(None)
    }

    fn find(&self, name: &[u8]) -> Option<Option<Ino>> {
        self.entries.find(&self.lease, DIR, name)
    }

    fn learn(&self, grant: Grant, name: &[u8], ino: Option<Ino>) {
        self.entries.learn(&self.lease, grant, DIR, name, ino);
    }

    fn list(&self, after: u64, max: usize) -> Listed {
        self.entries.list(&self.lease, DIR, after, max, true, true)
    }

    /// Lists as a reader does who is asked for this part, of entries up to `last`.
    fn ask(&self, after: u64, max: usize) -> Ask {
        match self.list(after, max) {
            Listed::Ask(ask) => ask,
            other => panic!("{other:?}"),
        }
    }

    fn keep(&self, grant: Grant, ask: &Ask, of: std::ops::Range<u64>, is_end: bool) -> bool {
        let entries: Vec<DirEntry> = of.map(entry).collect();
        let told = Told {
            entries: &entries,
            is_end,
        };
        let is_kept = self.entries.keep(&self.lease, grant, DIR, ask, &told);
        self.entries.came(DIR, ask);
        is_kept
    }

    /// The directory, whole, with names from 3 up to `end`.
    fn whole(&self, end: u64) {
        let ask = self.ask(0, 10);
        assert!(self.keep(self.grant(), &ask, 3..end, true));
    }

    fn known(&self, after: u64) -> (Vec<u64>, bool) {
        match self.list(after, 100) {
            Listed::Known(entries, is_end, ahead) => {
                if let Some(ask) = ahead {
                    self.entries.came(DIR, &ask);
                }
                (entries.iter().map(|e| e.ino.0).collect(), is_end)
            }
            other => panic!("{other:?}"),
        }
    }

    fn begin(&self, name: &[u8]) -> (Vec<Begun>, Grant) {
        (self.entries.begin(&[(DIR, name)]), self.grant())
    }

    fn end(&self, (begun, grant): (Vec<Begun>, Grant), outcome: Outcome) {
        self.entries
            .end(&self.lease, Some(grant), &begun, &[outcome]);
    }

    fn weight(&self) -> usize {
        let known = lock(&self.entries.known);
        let sum = known.directories.values().map(Directory::weight).sum();
        assert_eq!(known.weight, sum);
        sum
    }
}

#[test]
fn what_was_revoked_is_not_known_and_memory_has_an_end() {
    let w = World::new();
    let grant = w.grant();
    w.learn(grant, b"a", Some(Ino(8)));
    w.learn(grant, b"b", None);
    assert_eq!(w.find(b"a"), Some(Some(Ino(8))));
    assert_eq!((w.find(b"b"), w.find(b"c")), (Some(None), None));
    // Once for the revocation, which comes first, and once for the answer that it overtook.
    w.lease.revoked(DIR);
    w.entries.forget(DIR);
    w.learn(grant, b"a", Some(Ino(8)));
    assert_eq!((w.find(b"a"), w.weight()), (None, 0));
    w.learn(w.lease.ask().answered(Some(0)), b"a", Some(Ino(8)));
    assert_eq!(w.find(b"a"), None);
    let grant = w.grant();
    for n in 0..=NAMES_MAX {
        w.learn(grant, &n.to_le_bytes(), None);
    }
    assert!(w.weight() <= DIRECTORY_SHARE);
    for n in 0..NAMES_MAX as u64 / 4 {
        w.entries.learn(&w.lease, grant, Ino(n), b"a", None);
    }
    assert!((NAMES_MAX / 2..=NAMES_MAX).contains(&w.weight()));
    // The last ones.
    let last = Ino(NAMES_MAX as u64 / 4 - 1);
    assert_eq!(w.entries.find(&w.lease, last, b"a"), Some(None));
    w.entries.forget_all();
    assert_eq!(w.weight(), 0);
}

#[test]
fn what_was_made_here_is_whole_unless_others_found_it_first() {
    let w = World::new();
    let grant = w.grant();
    w.entries.made(&w.lease, grant, DIR);
    assert_eq!((w.find(b"a"), w.find(b"..")), (Some(None), None));
    let change = w.begin(b"a");
    assert_eq!((w.find(b"a"), w.find(b"b")), (None, Some(None)));
    w.end(change, Outcome::Leads(Ino(9)));
    assert_eq!(w.find(b"a"), Some(Some(Ino(9))));
    let change = w.begin(b"a");
    w.end(change, Outcome::Absent);
    assert_eq!((w.find(b"a"), w.weight()), (Some(None), 4));
    w.lease.revoked(DIR);
    w.entries.forget(DIR);
    assert_eq!(w.find(b"a"), None);
    w.entries.made(&w.lease, grant, DIR);
    assert_eq!(w.find(b"a"), None, "the word of another's name came first");
}

#[test]
fn an_answer_from_before_a_change_of_this_node_tells_nothing_that_stays() {
    let w = World::new();
    w.entries.made(&w.lease, w.grant(), DIR);
    let before = w.grant();
    let change = w.begin(b"a");
    // While it is under way an answer may tell what was, or what is.
    w.learn(w.grant(), b"a", None);
    assert_eq!(w.find(b"a"), None);
    let during = w.grant();
    w.end(change, Outcome::Leads(Ino(9)));
    for late in [before, during] {
        w.learn(late, b"a", None);
        assert_eq!(w.find(b"a"), Some(Some(Ino(9))));
    }
    w.learn(w.grant(), b"a", Some(Ino(9)));
    assert_eq!(w.find(b"a"), Some(Some(Ino(9))));
}

#[test]
fn changes_that_overlap_and_those_of_which_nobody_heard_leave_nothing_known() {
    let w = World::new();
    let made = || w.entries.made(&w.lease, w.grant(), DIR);
    made();
    let (one, two) = (w.begin(b"a"), w.begin(b"b"));
    w.end(two, Outcome::Leads(Ino(9)));
    assert_eq!(w.find(b"b"), Some(Some(Ino(9))));
    w.end(one, Outcome::Leads(Ino(10)));
    assert_eq!((w.find(b"b"), w.find(b"c")), (None, None));
    made();
    let (begun, _) = w.begin(b"a");
    w.entries.end(&w.lease, None, &begun, &[Outcome::Unsure]);
    assert_eq!(w.find(b"c"), None);
    // A revocation in between, and another directory of that number.
    made();
    let change = w.begin(b"a");
    w.lease.revoked(DIR);
    w.entries.forget(DIR);
    made();
    w.end(change, Outcome::Leads(Ino(9)));
    assert_eq!(w.find(b"c"), None);
    made();
    let change = w.begin(b"a");
    w.end(change, Outcome::Unchanged);
    assert_eq!(w.find(b"a"), Some(None));
}

#[test]
fn a_directory_is_whole_when_all_of_its_listing_was_told_and_nothing_lost() {
    let w = World::new();
    let ask = w.ask(0, 4);
    assert!(matches!(w.list(0, 4), Listed::Asked));
    assert!(w.keep(w.grant(), &ask, 3..7, false));
    assert_eq!((w.find(b"3"), w.find(b"9")), (Some(Some(Ino(3))), None));
    let ask = w.ask(6, 4);
    assert_eq!((ask.after, ask.max), (6, 16), "parts grow");
    let early = w.grant();
    let change = w.begin(b"new");
    w.end(change, Outcome::Leads(Ino(99)));
    assert!(!w.keep(early, &ask, 7..9, true), "it may lack the new one");
    let ask = w.ask(6, 4);
    assert!(w.keep(w.grant(), &ask, 7..9, true));
    assert_eq!(w.find(b"9"), Some(None), "whole");
    assert_eq!(w.known(0), ((3..9).collect(), true));
    assert_eq!(w.known(5), ((6..9).collect(), true));
    w.weight();

    let ask = {
        w.lease.revoked(DIR);
        w.entries.forget(DIR);
        w.ask(0, 4)
    };
    assert!(w.keep(w.grant(), &ask, 3..7, false));
    let next = w.ask(6, 4);
    w.entries.forget(DIR);
    assert!(
        !w.keep(w.grant(), &next, 7..9, true),
        "the first part is lost"
    );
    assert_eq!(w.find(b"9"), None);
}

#[test]
fn a_listing_that_comes_during_a_change_or_unknown_to_it_is_not_kept() {
    // It may have the name already, at a place that the end of the change does not tell.
    let w = World::new();
    w.learn(w.grant(), b"other", None);
    let change = w.begin(b"5");
    let ask = w.ask(0, 10);
    assert!(!w.keep(w.grant(), &ask, 3..9, true));
    w.end(change, Outcome::Leads(Ino(5)));
    assert_eq!((w.find(b"5"), w.find(b"6")), (Some(Some(Ino(5))), None));
    let ask = w.ask(0, 10);
    assert!(w.keep(w.grant(), &ask, 3..9, true));
    assert_eq!(w.known(0), ((3..9).collect(), true));
    // A change that began before anything was known.
    w.entries.forget_all();
    let change = w.begin(b"5");
    w.whole(9);
    assert_eq!(w.find(b"9"), Some(None));
    w.end(change, Outcome::Leads(Ino(5)));
    assert_eq!((w.find(b"5"), w.find(b"9")), (Some(Some(Ino(5))), None));
    w.whole(9);
    assert_eq!(w.known(0), ((3..9).collect(), true));
}

#[test]
fn a_listing_that_is_kept_follows_what_this_node_changes() {
    let w = World::new();
    w.whole(9);
    let change = w.begin(b"5");
    w.end(change, Outcome::Absent);
    assert_eq!(w.known(0), (vec![3, 4, 6, 7, 8], true));
    // Made anew it stands at the end, which has to be asked for, and not where it was.
    let change = w.begin(b"5");
    w.end(change, Outcome::Leads(Ino(5)));
    assert_eq!(w.known(0), (vec![3, 4, 6, 7, 8], false));
    let ask = w.ask(8, 10);
    let again = DirEntry {
        cookie: 20,
        ..entry(5)
    };
    let told = Told {
        entries: &[again],
        is_end: true,
    };
    assert!(w.entries.keep(&w.lease, w.grant(), DIR, &ask, &told));
    assert_eq!(w.known(0), (vec![3, 4, 6, 7, 8, 5], true));
    assert_eq!(w.find(b"9"), Some(None));
    // An empty directory has no part that something could follow.
    let w = World::new();
    w.whole(3);
    assert_eq!(w.known(0), (vec![], true));
    let change = w.begin(b"3");
    w.end(change, Outcome::Leads(Ino(3)));
    w.ask(0, 10);
    w.weight();
}

#[test]
fn a_reader_in_sequence_is_asked_ahead_for_and_attributes_are_not_taken_for_granted() {
    let w = World::new();
    let ask = w.ask(0, 10);
    assert!(w.keep(w.grant(), &ask, 3..13, false));
    let ask = w.ask(12, 10);
    assert!(w.keep(w.grant(), &ask, 13..53, false));
    let Listed::Known(part, false, Some(ahead)) = w.list(12, 10) else {
        panic!("the part that is there")
    };
    assert_eq!((part.len(), ahead.after, ahead.max), (10, 52, 160));
    let Listed::Known(_, _, None) = w.list(22, 10) else {
        panic!("once")
    };
    assert!(matches!(w.list(52, 10), Listed::Asked));
    // Without attributes it serves who wants none.
    let lists = |plus| w.entries.list(&w.lease, Ino(8), 0, 10, plus, true);
    let Listed::Ask(ask) = lists(false) else {
        panic!("nothing is known")
    };
    let told = Told {
        entries: &[entry(3)],
        is_end: true,
    };
    let grant = w.grant();
    assert!(w.entries.keep(&w.lease, grant, Ino(8), &ask, &told));
    w.entries.came(Ino(8), &ask);
    assert!(matches!(lists(false), Listed::Known(_, true, None)));
    assert!(matches!(lists(true), Listed::Ask(_)));
}

#[test]
fn two_parts_are_there_before_a_reader() {
    let w = World::new();
    let part = PAGE_MAX as u64;
    let ask = w.ask(0, PAGE_MAX);
    assert!(w.keep(w.grant(), &ask, 3..3 + part, false));
    let mut last = 2 + part;
    // Nothing of it was read, and two parts more are asked for, one behind the other.
    for _ in 0..2 {
        let Listed::Known(_, false, Some(ahead)) = w.list(2, 1) else {
            panic!("the part that is there")
        };
        assert_eq!((ahead.after, ahead.max), (last, PAGE_MAX));
        assert!(w.keep(w.grant(), &ahead, last + 1..last + 1 + part, false));
        last += part;
    }
    assert!(matches!(w.list(2, 1), Listed::Known(_, false, None)));
    let read = 2 + part;
    assert!(matches!(w.list(read, 1), Listed::Known(_, false, Some(_))));
}

#[test]
fn a_directory_is_asked_for_as_far_as_its_lookups_pay() {
    let w = World::new();
    let look = || w.entries.look(&w.lease, DIR, b"none").1;
    let asks = |n| (0..n).map(|_| look()).collect::<Vec<_>>();
    assert_eq!(asks(3), vec![None; 3]);
    let ask = look().unwrap();
    assert_eq!((ask.after, ask.max), (2, 256));
    assert_eq!(asks(8), vec![None; 8], "one at a time");
    assert!(w.keep(w.grant(), &ask, 3..259, false));
    let ask = w.entries.filled(DIR, &ask, true).unwrap();
    assert_eq!((ask.after, ask.max), (258, 8 * 64));
    // Revoked before it was of use: it takes twice as many the next time.
    w.lease.revoked(DIR);
    w.entries.forget(DIR);
    assert!(!w.keep(w.grant(), &ask, 259..300, false));
    assert_eq!(w.entries.filled(DIR, &ask, true), None);
    assert_eq!(asks(7), vec![None; 7]);
    let ask = look().unwrap();
    assert!(w.keep(w.grant(), &ask, 3..9, true));
    assert_eq!(w.entries.filled(DIR, &ask, true), None, "it is whole");
    // Not again where there was no room, until the lease is another.
    w.entries.forget(DIR);
    let ask = asks(100).into_iter().flatten().next().unwrap();
    assert_eq!(w.entries.filled(DIR, &ask, false), None);
    w.entries.forget(DIR);
    assert!(asks(1000).iter().all(Option::is_none));
    w.entries.forget_all();
    assert!(asks(4)[3].is_some());
}
