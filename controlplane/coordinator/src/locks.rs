//! The locks of all nodes, in memory: who holds what, and who waits for whom.
//!
//! A lock is a node's as long as its lease goes on; when the node is fenced, or silent for one lease, it is gone. After a
//! restart of the coordinator each node brings its own again, before anybody is given a new one.

use fastcache_api::Ino;
use fastcache_api::locks::{LOCKS_MAX, Lock, LockAnswer, LockOp, lock, unlock};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// An owner of locks: a node's peer id, and its kernel's number.
type Owner = (String, u64);

/// What is waited for: a node's peer id, the file, the owner, and whether it is of flock.
pub(crate) type Wish = (String, Ino, u64, bool);

/// Who holds what.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    /// By file and node.
    held: HashMap<Ino, HashMap<String, Vec<Lock>>>,
    /// How many locks each node holds.
    counts: HashMap<String, usize>,
    /// The owners that each waiting owner waits for.
    waiting: HashMap<Owner, HashSet<Owner>>,
    /// Becomes true when those who wait are to wait no more.
    wishes: HashMap<Wish, Weak<AtomicBool>>,
}

fn wish(peer: &str, ino: Ino, of: &Lock) -> Wish {
    (peer.to_owned(), ino, of.owner, of.is_flock)
}

impl Locks {
    /// Does one operation for a node, at once. A `Set` that is in vain is answered `Held`; see [`Locks::wait`].
    pub(crate) fn apply(&mut self, peer: &str, op: &LockOp) -> LockAnswer {
        match op {
            LockOp::Test { ino, lock } => match self.in_the_way(peer, *ino, lock).next() {
                Some((_, held)) => LockAnswer::Held(*held),
                None => LockAnswer::Free,
            },
            LockOp::Set { ino, lock: new, .. } => {
                if new.is_flock {
                    // flock(2): a conversion gives the old one up first.
                    let alone = LockOp::Unlock {
                        ino: *ino,
                        lock: *new,
                    };
                    let has_one = self
                        .of(peer, *ino)
                        .iter()
                        .any(|l| l.owner == new.owner && l.is_flock);
                    if has_one && self.in_the_way(peer, *ino, new).next().is_some() {
                        self.apply(peer, &alone);
                    }
                }
                if let Some((_, held)) = self.in_the_way(peer, *ino, new).next() {
                    return LockAnswer::Held(*held);
                }
                if self.counts.get(peer).is_some_and(|n| *n >= LOCKS_MAX) {
                    return LockAnswer::Full;
                }
                self.edit(peer, *ino, |held| lock(held, *new));
                LockAnswer::Done
            }
            LockOp::Cancel { ino, lock } => {
                let wish = self.wishes.remove(&wish(peer, *ino, lock));
                if let Some(is_cancelled) = wish.and_then(|w| w.upgrade()) {
                    is_cancelled.store(true, Ordering::Release);
                }
                LockAnswer::Done
            }
            LockOp::Unlock { ino, lock } => {
                self.edit(peer, *ino, |held| unlock(held, lock));
                LockAnswer::Done
            }
            LockOp::Restore { held } => {
                self.drop_peer(peer);
                let mut lost = None;
                for (ino, new) in held.iter().take(LOCKS_MAX) {
                    if self.in_the_way(peer, *ino, new).next().is_some() {
                        lost = Some(*new);
                        continue;
                    }
                    self.edit(peer, *ino, |held| lock(held, *new));
                }
                lost.map_or(LockAnswer::Done, LockAnswer::Held)
            }
        }
    }

    fn of(&self, peer: &str, ino: Ino) -> &[Lock] {
        let held = self.held.get(&ino).and_then(|peers| peers.get(peer));
        held.map_or(&[], Vec::as_slice)
    }

    fn in_the_way<'l>(
        &'l self,
        peer: &'l str,
        ino: Ino,
        new: &'l Lock,
    ) -> impl Iterator<Item = (&'l String, &'l Lock)> {
        let peers = self.held.get(&ino).into_iter().flatten();
        let all = peers.flat_map(|(of, locks)| locks.iter().map(move |lock| (of, lock)));
        all.filter(move |(of, lock)| {
            lock.excludes(new) && (of.as_str() != peer || lock.owner != new.owner)
        })
    }

    fn edit(&mut self, peer: &str, ino: Ino, change: impl FnOnce(&mut Vec<Lock>)) {
        let peers = self.held.entry(ino).or_default();
        let held = peers.entry(peer.to_owned()).or_default();
        let before = held.len();
        change(held);
        let after = held.len();
        if held.is_empty() {
            peers.remove(peer);
        }
        if peers.is_empty() {
            self.held.remove(&ino);
        }
        let count = self.counts.entry(peer.to_owned()).or_default();
        *count = (*count + after).saturating_sub(before);
        if *count == 0 {
            self.counts.remove(peer);
        }
    }

    /// An owner wants a lock that is held; true when it wants it no more.
    pub(crate) fn want(&mut self, peer: &str, ino: Ino, new: &Lock) -> (Wish, Arc<AtomicBool>) {
        let wish = wish(peer, ino, new);
        let known = self.wishes.entry(wish.clone()).or_default();
        let is_cancelled = known.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *known = Arc::downgrade(&new);
            new
        });
        (wish, is_cancelled)
    }

    /// Somebody who wanted a lock has an answer.
    pub(crate) fn answered(&mut self, wish: &Wish) {
        let others = self.wishes.get(wish).map(Weak::strong_count);
        if others == Some(0) {
            self.wishes.remove(wish);
        }
    }

    /// An owner begins to wait for those in the way of a lock. False when one of them waits for it: that would never end.
    pub(crate) fn wait(&mut self, peer: &str, ino: Ino, new: &Lock) -> bool {
        let me = (peer.to_owned(), new.owner);
        let blockers: HashSet<Owner> = self
            .in_the_way(peer, ino, new)
            .map(|(of, lock)| (of.clone(), lock.owner))
            .collect();
        if !new.is_flock {
            let mut seen: HashSet<&Owner> = HashSet::new();
            let mut next: Vec<&Owner> = blockers.iter().collect();
            while let Some(owner) = next.pop() {
                if *owner == me {
                    return false;
                }
                if seen.insert(owner) {
                    next.extend(self.waiting.get(owner).into_iter().flatten());
                }
            }
            self.waiting.insert(me, blockers);
        }
        true
    }

    /// An owner waits no more.
    pub(crate) fn waited(&mut self, peer: &str, owner: u64) {
        self.waiting.remove(&(peer.to_owned(), owner));
    }

    /// A node holds nothing any more. Whether it did.
    pub(crate) fn drop_peer(&mut self, peer: &str) -> bool {
        self.held.retain(|_, peers| {
            peers.remove(peer);
            !peers.is_empty()
        });
        self.counts.remove(peer).is_some()
    }

    /// The nodes that hold locks.
    pub(crate) fn peers(&self) -> Vec<String> {
        self.counts.keys().cloned().collect()
    }

    /// How many locks are held.
    pub(crate) fn len(&self) -> usize {
        self.counts.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastcache_api::locks::LOCK_END;

    fn of(owner: u64, start: u64, end: u64) -> Lock {
        Lock {
            owner,
            is_flock: false,
            start,
            end,
            is_exclusive: true,
            pid: 7,
        }
    }

    fn set(lock: Lock) -> LockOp {
        LockOp::Set {
            ino: Ino(1),
            lock,
            waits: false,
        }
    }

    #[test]
    fn nodes_exclude_each_other_and_lose_what_they_hold_together() {
        let mut locks = Locks::default();
        assert_eq!(locks.apply("a", &set(of(1, 0, 9))), LockAnswer::Done);
        // The same number is another owner on another node.
        assert_eq!(
            locks.apply("b", &set(of(1, 5, 5))),
            LockAnswer::Held(of(1, 0, 9))
        );
        assert_eq!(locks.apply("b", &set(of(1, 10, 19))), LockAnswer::Done);
        assert!(locks.wait("a", Ino(1), &of(1, 10, 10)));
        assert!(
            !locks.wait("b", Ino(1), &of(1, 0, 0)),
            "each waits for the other"
        );
        locks.waited("a", 1);
        assert!(locks.wait("b", Ino(1), &of(1, 0, 0)));
        assert!(locks.drop_peer("a"));
        assert_eq!(locks.apply("b", &set(of(1, 0, LOCK_END))), LockAnswer::Done);
        assert_eq!(locks.len(), 1);
        let mine = vec![(Ino(1), of(3, 0, 0)), (Ino(2), of(3, 0, 0))];
        let restored = locks.apply("a", &LockOp::Restore { held: mine });
        assert_eq!(restored, LockAnswer::Held(of(3, 0, 0)), "b has it by now");
        assert_eq!((locks.len(), locks.peers().len()), (2, 2));
        let unlock = LockOp::Unlock {
            ino: Ino(1),
            lock: of(1, 0, LOCK_END),
        };
        locks.apply("b", &unlock);
        assert_eq!(locks.peers(), ["a"]);
    }

    #[test]
    fn a_flock_that_cannot_become_exclusive_is_given_up() {
        let mut locks = Locks::default();
        let shared = |owner| Lock {
            is_flock: true,
            is_exclusive: false,
            ..of(owner, 0, LOCK_END)
        };
        let exclusive = Lock {
            is_exclusive: true,
            ..shared(1)
        };
        locks.apply("a", &set(shared(1)));
        locks.apply("b", &set(shared(2)));
        assert!(matches!(
            locks.apply("a", &set(exclusive)),
            LockAnswer::Held(_)
        ));
        assert_eq!(locks.len(), 1);
    }
}
