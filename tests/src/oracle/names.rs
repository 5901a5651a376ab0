//! A small tree: folders that come and go, and links in them whose target is a number.

use super::{Object, Timed};
use serde::{Deserialize, Serialize};

/// Its folders.
pub const FOLDERS: [&str; 2] = ["d0", "d1"];
/// Its names: two in each folder, two beside them.
pub const NAMES: [&str; 6] = ["d0/a", "d0/b", "d1/a", "d1/b", "x", "y"];

/// The folder that a name is in, by its place in [`FOLDERS`].
pub fn folder_of(name: usize) -> Option<usize> {
    (name < 4).then_some(name / 2)
}

/// What was asked. Names and folders by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Did {
    /// `mkdir`.
    Mkdir(usize),
    /// `rmdir`.
    Rmdir(usize),
    /// `symlink`.
    Make(usize, u64),
    /// `unlink`.
    Remove(usize),
    /// `rename`.
    Rename(usize, usize),
    /// `readlink`.
    Read(usize),
    /// A listing of its folder told it, or not.
    Listed(usize),
    /// `readdir` of a folder.
    List(usize),
}

/// What it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// Done.
    Done,
    /// The target.
    Value(u64),
    /// ENOENT; a listing: not told.
    Absent,
    /// EEXIST; a listing: told.
    There,
    /// ENOTEMPTY.
    NotEmpty,
}

/// The folders that are there, and the targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    folders: [bool; FOLDERS.len()],
    names: [Option<u64>; NAMES.len()],
}

impl Kept {
    fn has_place(&self, name: usize) -> bool {
        folder_of(name).is_none_or(|folder| self.folders[folder])
    }

    /// Does it, and says what one file system says.
    fn apply(&mut self, did: Did) -> Said {
        match did {
            Did::Mkdir(folder) => match std::mem::replace(&mut self.folders[folder], true) {
                true => Said::There,
                false => Said::Done,
            },
            Did::Rmdir(folder) => {
                let is_in = |name: &usize| folder_of(*name) == Some(folder);
                let mut inside = (0..NAMES.len()).filter(is_in);
                if !self.folders[folder] {
                    Said::Absent
                } else if inside.any(|name| self.names[name].is_some()) {
                    Said::NotEmpty
                } else {
                    self.folders[folder] = false;
                    Said::Done
                }
            }
            Did::Make(name, _) if !self.has_place(name) => Said::Absent,
            Did::Make(name, target) => match self.names[name] {
                Some(_) => Said::There,
                None => {
                    self.names[name] = Some(target);
                    Said::Done
                }
            },
            Did::Remove(name) => match self.names[name].take() {
                Some(_) => Said::Done,
                None => Said::Absent,
            },
            Did::Rename(from, to) if self.names[from].is_none() || !self.has_place(to) => {
                debug_assert_ne!(from, to);
                Said::Absent
            }
            Did::Rename(from, to) => {
                self.names[to] = self.names[from].take();
                Said::Done
            }
            Did::Read(name) => self.names[name].map_or(Said::Absent, Said::Value),
            Did::Listed(name) => self.names[name].map_or(Said::Absent, |_| Said::There),
            Did::List(folder) if self.folders[folder] => Said::Done,
            Did::List(_) => Said::Absent,
        }
    }
}

/// A tree that is empty in the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Names;

impl Object for Names {
    type State = Kept;
    /// What was asked, and the answer, if there was one.
    type Event = (Did, Option<Said>);

    fn first(&self) -> Kept {
        Kept::default()
    }

    fn after(&self, kept: &Kept, (did, said): &(Did, Option<Said>)) -> Option<Kept> {
        let mut next = kept.clone();
        let says = next.apply(*did);
        said.is_none_or(|said| said == says).then_some(next)
    }
}

/// Renames of one name to the same other one, by several nodes at once and all told that they are done, as one: a kernel that
/// finds the same file under both names does nothing and says that it is done (rename(2)), and so it is when another node has
/// moved it between its two looks.
pub fn as_one(history: Vec<Timed<(Did, Option<Said>)>>) -> Vec<Timed<(Did, Option<Said>)>> {
    let mut out: Vec<Timed<(Did, Option<Said>)>> = Vec::with_capacity(history.len());
    for timed in history {
        let is_rename = matches!(timed.event, (Did::Rename(..), Some(Said::Done)));
        let same = out
            .iter_mut()
            .filter(|other| is_rename && other.event == timed.event);
        let beside = same.into_iter().find(|other| {
            other
                .returned
                .is_some_and(|returned| timed.began < returned)
                && timed
                    .returned
                    .is_some_and(|returned| other.began < returned)
        });
        match beside {
            Some(other) => {
                other.began = other.began.min(timed.began);
                other.returned = other.returned.max(timed.returned);
            }
            None => out.push(timed),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::tests::{failed, timed};
    use crate::oracle::{Verdict, check};

    type Event = (Did, Option<Said>);

    fn did(from: u64, to: u64, what: Did, said: Said) -> Timed<Event> {
        timed(from, to, (what, Some(said)))
    }

    fn lost(from: u64, what: Did) -> Timed<Event> {
        failed(from, (what, None))
    }

    #[track_caller]
    fn verdict(history: &[Timed<Event>]) -> Verdict {
        check(&Names, history)
    }

    #[test]
    fn a_name_is_in_one_place() {
        let made = || did(0, 1, Did::Make(4, 1), Said::Done);
        let moved = || did(2, 3, Did::Rename(4, 5), Said::Done);
        let there = |from| did(from, from + 1, Did::Read(5), Said::Value(1));
        assert_eq!(verdict(&[made(), moved(), there(4)]), Verdict::Ordered);
        let still = did(6, 7, Did::Listed(4), Said::There);
        assert_eq!(
            verdict(&[made(), moved(), there(4), still]),
            Verdict::Wrong(3)
        );
        // A rename that failed: here or there, never both, and not back.
        let lost = || lost(2, Did::Rename(4, 5));
        let here = |from| did(from, from + 1, Did::Read(4), Said::Value(1));
        assert_eq!(
            verdict(&[made(), lost(), here(4), there(6)]),
            Verdict::Ordered
        );
        assert_eq!(
            verdict(&[made(), lost(), there(4), here(6)]),
            Verdict::Wrong(3)
        );
        let nowhere = did(6, 7, Did::Read(5), Said::Absent);
        assert_eq!(
            verdict(&[made(), lost(), there(4), nowhere]),
            Verdict::Wrong(3)
        );
    }

    #[test]
    fn a_create_that_was_acknowledged_is_not_lost_by_what_failed_beside_it() {
        let folder = || did(0, 1, Did::Mkdir(0), Said::Done);
        let made = || did(2, 3, Did::Make(0, 9), Said::Done);
        let gone = |from| did(from, from + 1, Did::Read(0), Said::Absent);
        // A directory that has something in it cannot have been removed.
        let history = [folder(), made(), lost(4, Did::Rmdir(0)), gone(6)];
        assert_eq!(verdict(&history), Verdict::Wrong(3));
        let history = [folder(), made(), lost(4, Did::Remove(0)), gone(6)];
        assert_eq!(verdict(&history), Verdict::Ordered);
        // What was only tried, and told as there.
        let again = did(5, 6, Did::Make(0, 10), Said::There);
        let history = [folder(), lost(2, Did::Make(0, 9)), again];
        assert_eq!(verdict(&history), Verdict::Ordered);
        let mut history = history.to_vec();
        history.push(gone(8));
        assert_eq!(verdict(&history), Verdict::Wrong(3));
    }

    #[test]
    fn two_renames_to_the_same_name_are_one_when_they_were_at_once() {
        let made = did(0, 1, Did::Make(4, 1), Said::Done);
        let moved = |from, to| did(from, to, Did::Rename(4, 5), Said::Done);
        let seen = did(9, 10, Did::Read(5), Said::Value(1));
        let at_once = vec![made.clone(), moved(2, 5), moved(3, 6), seen.clone()];
        assert_eq!(verdict(&at_once), Verdict::Wrong(2));
        assert_eq!(verdict(&as_one(at_once)), Verdict::Ordered);
        let one_after_the_other = vec![made.clone(), moved(2, 3), moved(4, 6), seen.clone()];
        assert_eq!(verdict(&as_one(one_after_the_other)), Verdict::Wrong(2));
        let elsewhere = did(3, 6, Did::Rename(4, 3), Said::Done);
        let to_two = vec![made, moved(2, 5), elsewhere, seen];
        assert_ne!(verdict(&as_one(to_two)), Verdict::Ordered);
    }

    #[test]
    fn an_answer_to_something_done_twice_is_wrong() {
        // As when a request is repeated after an agent's end: it was there, by itself.
        let there = did(0, 5, Did::Make(4, 1), Said::There);
        assert_eq!(verdict(&[there]), Verdict::Wrong(0));
        let removed = [
            did(0, 1, Did::Make(4, 1), Said::Done),
            did(2, 9, Did::Remove(4), Said::Absent),
        ];
        assert_eq!(verdict(&removed), Verdict::Wrong(1));
    }
}
