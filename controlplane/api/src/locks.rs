//! Locks of files across nodes: `flock`, `fcntl` and open-file-description locks. Pure: what a lock is, when two exclude
//! each other, what a new one makes of the old ones.

use crate::Ino;
use serde::{Deserialize, Serialize};

/// The last byte of a file, as far as locks go (OFFSET_MAX of Linux): the end of a lock to the end of the file.
pub const LOCK_END: u64 = i64::MAX.unsigned_abs();
/// Most locks of one node. What is beyond is refused with ENOLCK.
pub const LOCKS_MAX: usize = 65_536;

/// A lock that is held, or asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// Whose: a number that the node's kernel gave (a process, or an open file).
    pub owner: u64,
    /// Of `flock`, on the whole file; they and the others do not see each other.
    pub is_flock: bool,
    /// First byte.
    pub start: u64,
    /// Last byte, [`LOCK_END`] for all there will be.
    pub end: u64,
    /// Excludes every other lock, not only those that do.
    pub is_exclusive: bool,
    /// The process that asked, on its node; for people.
    pub pid: u32,
}

impl Lock {
    fn overlaps(&self, other: &Lock) -> bool {
        self.is_flock == other.is_flock && self.start <= other.end && other.start <= self.end
    }

    /// Whether both cannot be held at once by two owners.
    pub fn excludes(&self, other: &Lock) -> bool {
        self.overlaps(other) && (self.is_exclusive || other.is_exclusive)
    }
}

/// Takes a range off the locks of one owner.
pub fn unlock(held: &mut Vec<Lock>, gone: &Lock) {
    let mut parts = Vec::new();
    held.retain(|lock| {
        if lock.owner != gone.owner || !lock.overlaps(gone) {
            return true;
        }
        if lock.start < gone.start {
            parts.push(Lock {
                end: gone.start - 1,
                ..*lock
            });
        }
        if lock.end > gone.end {
            parts.push(Lock {
                start: gone.end + 1,
                ..*lock
            });
        }
        false
    });
    held.append(&mut parts);
}

/// Adds a lock, which takes the place of what its owner had there; neighbours of one kind become one.
pub fn lock(held: &mut Vec<Lock>, new: Lock) {
    unlock(held, &new);
    let mut new = new;
    held.retain(|lock| {
        let is_alike = lock.owner == new.owner
            && lock.is_flock == new.is_flock
            && lock.is_exclusive == new.is_exclusive;
        let touches = lock.end.checked_add(1) == Some(new.start)
            || new.end.checked_add(1) == Some(lock.start);
        if is_alike && touches {
            new.start = new.start.min(lock.start);
            new.end = new.end.max(lock.end);
            return false;
        }
        true
    });
    held.push(new);
}

/// What a node asks about locks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockOp {
    /// Who is in the way of a lock? Answer: `Free` or `Held`.
    Test {
        /// The file.
        ino: Ino,
        /// The lock.
        lock: Lock,
    },
    /// Take a lock. Answer: `Done`, `Held` when another owner is in the way (with `waits`: still, after a while; ask
    /// again), `Deadlock`, `Full`.
    Set {
        /// The file.
        ino: Ino,
        /// The lock.
        lock: Lock,
        /// Wait for it.
        waits: bool,
    },
    /// A `Set` of this owner that waits on this file is to be answered now: whoever asked waits no more. Answer: `Done`,
    /// also when there is none, or none yet.
    Cancel {
        /// The file.
        ino: Ino,
        /// Owner and kind.
        lock: Lock,
    },
    /// Give up a range. Answer: `Done`.
    Unlock {
        /// The file.
        ino: Ino,
        /// Owner, kind and range.
        lock: Lock,
    },
    /// Everything this node holds, in place of what it held before. What is in the way of another node's is lost.
    /// Answer: `Done`, or `Held` with one that is lost.
    Restore {
        /// The locks.
        held: Vec<(Ino, Lock)>,
    },
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockAnswer {
    /// Done.
    Done,
    /// Nobody is in the way.
    Free,
    /// This one is in the way.
    Held(Lock),
    /// Waiting would never end: who holds it waits for this owner (EDEADLK).
    Deadlock,
    /// There are too many (ENOLCK).
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(owner: u64, start: u64, end: u64, is_exclusive: bool) -> Lock {
        Lock {
            owner,
            is_flock: false,
            start,
            end,
            is_exclusive,
            pid: 1,
        }
    }

    #[test]
    fn ranges_are_cut_and_joined() {
        let mut held = Vec::new();
        lock(&mut held, of(1, 0, 99, true));
        lock(&mut held, of(2, 200, LOCK_END, true));
        unlock(&mut held, &of(1, 40, 49, true));
        held.sort_by_key(|l| l.start);
        let ranges: Vec<_> = held.iter().map(|l| (l.start, l.end)).collect();
        assert_eq!(ranges, [(0, 39), (50, 99), (200, LOCK_END)]);
        lock(&mut held, of(1, 40, 49, true));
        held.sort_by_key(|l| l.start);
        assert_eq!((held.len(), held[0].end), (2, 99));
        // Half of it is downgraded.
        lock(&mut held, of(1, 50, 99, false));
        assert_eq!(held.len(), 3);
        assert!(
            held.iter()
                .any(|l| (l.start, l.end, l.is_exclusive) == (0, 49, true))
        );
        let shared = of(3, 60, 61, false);
        assert!(!held.iter().any(|l| l.excludes(&shared)));
        assert!(held.iter().any(|l| l.excludes(&of(3, 60, 61, true))));
        let whole = Lock {
            is_flock: true,
            ..of(3, 0, LOCK_END, true)
        };
        assert!(!held.iter().any(|l| l.excludes(&whole)), "flock and fcntl");
        unlock(&mut held, &of(1, 0, LOCK_END, true));
        assert_eq!(held.len(), 1);
    }
}
