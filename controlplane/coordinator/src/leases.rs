//! The table of leases: which session may have cached what it read of an inode, until when. Pure: time is passed in.
//!
//! A lease on a directory covers its entries, present and absent. A grant stays in the table until its session
//! has acknowledged a revocation that was sent after it, or its time is over: a change that is asked for again after
//! its first caller went away finds the holders again.

use fastcache_api::Ino;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// Most leases at once; beyond, replies carry no lease. About 40 bytes each.
pub(crate) const LEASES_MAX: usize = 1_000_000;

#[derive(Clone, Copy, Debug)]
struct Grant {
    session: u64,
    until: Instant,
    stamp: u64,
}

/// Who may have cached what.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    by_ino: HashMap<Ino, Vec<Grant>>,
    len: usize,
    /// Rises with every change of the namespace.
    stamp: u64,
}

impl LeaseTable {
    /// The number of the last change.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// A change was made: what was read before it is old now.
    pub(crate) fn changed(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Leases now in the table, ended ones included until they are pruned.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Notes that a session holds leases on these inodes. False when the table is full: then it holds none.
    pub(crate) fn grant(&mut self, session: u64, inos: &[Ino], until: Instant) -> bool {
        if self.len + inos.len() > LEASES_MAX {
            return false;
        }
        for ino in inos {
            let grants = self.by_ino.entry(*ino).or_default();
            let grant = Grant {
                session,
                until,
                stamp: self.stamp,
            };
            match grants.iter_mut().find(|g| g.session == session) {
                Some(old) => *old = grant,
                None => {
                    grants.push(grant);
                    self.len += 1;
                }
            }
        }
        true
    }

    /// The sessions that hold any of these inodes now, with the inodes and the end of the last lease.
    pub(crate) fn holders(
        &self,
        inos: impl IntoIterator<Item = Ino>,
        now: Instant,
    ) -> HashMap<u64, (HashSet<Ino>, Instant)> {
        let mut out: HashMap<u64, (HashSet<Ino>, Instant)> = HashMap::new();
        for ino in inos {
            for grant in self.by_ino.get(&ino).into_iter().flatten() {
                if grant.until > now {
                    let (held, until) = out
                        .entry(grant.session)
                        .or_insert_with(|| (HashSet::new(), grant.until));
                    held.insert(ino);
                    *until = (*until).max(grant.until);
                }
            }
        }
        out
    }

    /// A session gave up what it held of these inodes at change `stamp`; what it was granted since then stays.
    pub(crate) fn release(&mut self, session: u64, inos: &HashSet<Ino>, stamp: u64) {
        for ino in inos {
            self.retain(*ino, |g| g.session != session || g.stamp >= stamp);
        }
    }

    /// A session gave up everything it held.
    pub(crate) fn release_all(&mut self, session: u64) {
        self.retain_all(|g| g.session != session);
    }

    /// Every session that holds anything.
    pub(crate) fn sessions(&self) -> HashSet<u64> {
        self.by_ino.values().flatten().map(|g| g.session).collect()
    }

    /// Drops what has ended.
    pub(crate) fn prune(&mut self, now: Instant) {
        self.retain_all(|g| g.until > now);
    }

    fn retain(&mut self, ino: Ino, keep: impl Fn(&Grant) -> bool) {
        let Some(grants) = self.by_ino.get_mut(&ino) else {
            return;
        };
        let before = grants.len();
        grants.retain(keep);
        self.len -= before - grants.len();
        if grants.is_empty() {
            self.by_ino.remove(&ino);
        }
    }

    fn retain_all(&mut self, keep: impl Fn(&Grant) -> bool) {
        let mut len = 0;
        self.by_ino.retain(|_, grants| {
            grants.retain(&keep);
            len += grants.len();
            !grants.is_empty()
        });
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_lease_is_held_until_released_or_over() {
        let start = Instant::now();
        let end = start + Duration::from_secs(10);
        let mut table = LeaseTable::default();
        assert!(table.grant(1, &[Ino(5), Ino(6)], end));
        assert!(table.grant(2, &[Ino(5)], end));
        assert_eq!(table.holders([Ino(5)], start).len(), 2);
        assert!(table.holders([Ino(5)], end).is_empty());
        let stamp = table.changed();
        let held: HashSet<Ino> = [Ino(5)].into();
        // Read again after the change: that lease is not what the acknowledgement gives up.
        table.grant(2, &[Ino(5)], end);
        table.release(1, &held, stamp);
        table.release(2, &held, stamp);
        let left = table.holders([Ino(5), Ino(6)], start);
        assert_eq!((left.len(), table.len()), (2, 2));
        assert_eq!(left[&1].0, [Ino(6)].into());
        table.release_all(2);
        table.prune(end);
        assert_eq!(table.len(), 0);
    }
}
