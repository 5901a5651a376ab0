//! The table of leases: which session may have cached what it read of an inode, and until when the session is trusted.
//! Pure: time is passed in.
//!
//! There is one lease a session, which its heartbeats renew; what it holds it holds as long as that. What is held of a
//! directory covers its entries, present and absent. A grant stays in the table until its session
//! has acknowledged a revocation that was sent after it, or its lease is over: a change that is asked for again after
//! its first caller went away finds the holders again. Nodes do not say what they have forgotten, so the table fills; when it
//! is nearly full, the session that holds most is to give up its oldest ([`LeaseTable::oldest_of_most`]).

use fastcache_api::{Ino, InoMap};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use tokio::time::Instant;

/// Most leases at once; beyond, replies carry no lease, but for those on writing and on what has no name. About 80 bytes
/// each where nobody else holds one on the same inode.
const LEASES_MAX: usize = 1_000_000;
/// From this share of the most on, old ones are taken back.
const NEARLY_FULL: (usize, usize) = (7, 8);
/// Most that one session is to give up at once, and the share of all that this is at most.
const GIVEN_UP_MAX: usize = 1024;
const GIVEN_UP_SHARE: usize = 8;
/// Inodes of the last changes that are remembered: those of some thousands, many more than are made while something is read.
const CHANGED_KEPT: usize = 1 << 14;
/// Places in the order of a session that need not be of anything it holds.
const ORDER_SLACK: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Grant {
    session: u64,
    stamp: u64,
    /// Number of the one lease on writing of an inode; 0: it is not this.
    write: u64,
}

/// Who holds leases on an inode: nearly always one, whose grant is in the table itself.
type Grants = SmallVec<[Grant; 1]>;

/// How much a session holds.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// What it holds, oldest first, and what it has given up since.
    order: VecDeque<Ino>,
}

/// Who may have cached what.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    by_ino: InoMap<Grants>,
    by_session: BTreeMap<u64, Held>,
    len: usize,
    max: usize,
    /// When each session's lease ends; a session without one holds nothing.
    until: HashMap<u64, Instant>,
    /// Since when it has gone on without a break.
    since: HashMap<u64, Instant>,
    /// Rises with every change of the namespace.
    stamp: u64,
    /// The last changes and the inodes whose leases cover them, oldest first.
    changes: VecDeque<(u64, Vec<Ino>)>,
    /// Inodes of all of these.
    changed: usize,
    /// Leases on writing so far.
    writes: u64,
}

impl Default for LeaseTable {
    fn default() -> LeaseTable {
        LeaseTable::with_max(LEASES_MAX)
    }
}

impl LeaseTable {
    /// For this many leases.
    pub(crate) fn with_max(max: usize) -> LeaseTable {
        LeaseTable {
            by_ino: InoMap::default(),
            by_session: BTreeMap::new(),
            len: 0,
            max,
            until: HashMap::new(),
            since: HashMap::new(),
            stamp: 0,
            changes: VecDeque::new(),
            changed: 0,
            writes: 0,
        }
    }

    /// The number of the last change.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// A change was made that leases on these inodes cover: what was read of them before it is old now.
    pub(crate) fn changed(&mut self, inos: Vec<Ino>) -> u64 {
        self.stamp += 1;
        self.changed += inos.len();
        self.changes.push_back((self.stamp, inos));
        while self.changed > CHANGED_KEPT || self.changes.len() > CHANGED_KEPT {
            let Some((_, oldest)) = self.changes.pop_front() else {
                break;
            };
            self.changed -= oldest.len();
        }
        self.stamp
    }

    /// Anything may have changed: all that was read before is old now.
    pub(crate) fn all_changed(&mut self) {
        self.stamp += 1;
        self.changes.clear();
        self.changed = 0;
    }

    /// Whether any of these inodes, in order, was changed since then, or may have been.
    pub(crate) fn is_changed_since(&self, stamp: u64, inos: &[Ino]) -> bool {
        let mut since = self.changes.iter().rev().take_while(|(n, _)| *n > stamp);
        let is_remembered = since.clone().count() as u64 == self.stamp - stamp;
        let is_of = |changed: &[Ino]| changed.iter().any(|i| inos.binary_search(i).is_ok());
        !is_remembered || since.any(|(_, changed)| is_of(changed))
    }

    /// Leases now in the table, ended ones included until they are pruned.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A session's lease goes on until then at least. What it held before a lease that ended is forgotten: so does it.
    pub(crate) fn renew(&mut self, session: u64, until: Instant, now: Instant) -> Instant {
        match self.until.get(&session).copied() {
            Some(old) if old > now => {
                let until = old.max(until);
                self.until.insert(session, until);
                until
            }
            old => {
                if old.is_some() {
                    self.release_all(session);
                }
                self.until.insert(session, until);
                self.since.insert(session, now);
                until
            }
        }
    }

    /// Whether a session's lease goes on since then, or longer.
    pub(crate) fn is_unbroken(&self, session: u64, since: Instant, now: Instant) -> bool {
        let began = self.since.get(&session);
        self.is_live(session, now) && began.is_some_and(|began| *began <= since)
    }

    /// When the session's lease ends, while it has one.
    pub(crate) fn until(&self, session: u64, now: Instant) -> Option<Instant> {
        self.until.get(&session).copied().filter(|u| *u > now)
    }

    /// Notes that a session holds leases on these inodes, as long as its own lasts: until when. `None`: it holds none.
    pub(crate) fn grant(&mut self, session: u64, inos: &[Ino], now: Instant) -> Option<Instant> {
        let until = self.until(session, now)?;
        let is_new = |ino: &&Ino| !self.is_held(session, **ino);
        if self.len + inos.len() > self.max
            && self.len + inos.iter().filter(is_new).count() > self.max
        {
            return None;
        }
        for ino in inos {
            self.put(session, *ino, 0);
        }
        Some(until)
    }

    /// [`LeaseTable::grant`] of what the session cannot do without, also when the table is full.
    pub(crate) fn grant_needed(&mut self, session: u64, ino: Ino, now: Instant) -> Option<Instant> {
        let until = self.until(session, now)?;
        self.put(session, ino, 0);
        Some(until)
    }

    fn is_held(&self, session: u64, ino: Ino) -> bool {
        let grants = self.by_ino.get(&ino);
        grants.is_some_and(|grants| grants.iter().any(|g| g.session == session))
    }

    /// When the table is nearly full: the oldest of what the live session that holds most holds, unless it `is_asked` for some
    /// already. They stay in the table until they are [released](LeaseTable::release).
    pub(crate) fn oldest_of_most(
        &mut self,
        is_asked: impl Fn(u64) -> bool,
        now: Instant,
    ) -> Option<(u64, HashSet<Ino>)> {
        if self.len < self.max / NEARLY_FULL.1 * NEARLY_FULL.0 {
            return None;
        }
        let sessions = self.by_session.iter();
        let live = sessions.filter(|(s, _)| self.is_live(**s, now));
        let session = *live.max_by_key(|(s, held)| (held.count, **s))?.0;
        if is_asked(session) {
            return None;
        }
        let most = GIVEN_UP_MAX.min(self.max / GIVEN_UP_SHARE);
        let mut held = self.by_session.remove(&session)?;
        let mut oldest = HashSet::new();
        for _ in 0..held.order.len() {
            if oldest.len() == most {
                break;
            }
            if let Some(ino) = held.order.pop_front()
                && self.is_held(session, ino)
                && oldest.insert(ino)
            {
                // It may be granted anew before it is given up.
                held.order.push_back(ino);
            }
        }
        self.by_session.insert(session, held);
        Some((session, oldest))
    }

    /// Notes that a session alone may write an inode; whoever might before has given that up, or has no lease any more.
    pub(crate) fn grant_write(&mut self, session: u64, ino: Ino, now: Instant) -> Option<Instant> {
        let until = self.until(session, now)?;
        self.take_write(ino);
        self.writes += 1;
        self.put(session, ino, self.writes);
        Some(until)
    }

    /// What these sessions may write, another one of the same node may from now on.
    pub(crate) fn bequeath_writing(&mut self, earlier: &[u64], session: u64) {
        let is_theirs = |g: &&Grant| g.write != 0 && earlier.contains(&g.session);
        let grants = self.by_ino.iter();
        let theirs = grants.filter_map(|(ino, of)| Some((*ino, of.iter().find(is_theirs)?.write)));
        for (ino, write) in theirs.collect::<Vec<_>>() {
            self.take_write(ino);
            self.put(session, ino, write);
        }
    }

    fn put(&mut self, session: u64, ino: Ino, write: u64) {
        let grants = self.by_ino.entry(ino).or_default();
        let stamp = self.stamp;
        match grants.iter_mut().find(|g| g.session == session) {
            Some(old) => {
                old.stamp = stamp;
                old.write = old.write.max(write);
            }
            None => {
                grants.push(Grant {
                    session,
                    stamp,
                    write,
                });
                self.len += 1;
                let held = self.by_session.entry(session).or_default();
                held.count += 1;
                held.order.push_back(ino);
                if held.order.len() > 2 * held.count + ORDER_SLACK {
                    self.tidy(session);
                }
            }
        }
    }

    /// Takes out of the order of a session what it does not hold, and what is there twice.
    fn tidy(&mut self, session: u64) {
        let Some(mut held) = self.by_session.remove(&session) else {
            return;
        };
        let mut seen = HashSet::new();
        held.order
            .retain(|ino| self.is_held(session, *ino) && seen.insert(*ino));
        self.by_session.insert(session, held);
    }

    /// The session that may write an inode.
    pub(crate) fn writer(&self, ino: Ino, now: Instant) -> Option<u64> {
        let grants = self.by_ino.get(&ino)?;
        let grant = grants.iter().find(|g| g.write != 0)?;
        self.until(grant.session, now)?;
        Some(grant.session)
    }

    /// The number of the lease on writing of an inode; 0 where there is none.
    pub(crate) fn write_number(&self, ino: Ino) -> u64 {
        let grants = self.by_ino.get(&ino).into_iter().flatten();
        grants.map(|g| g.write).max().unwrap_or(0)
    }

    /// Nobody may write an inode any more; what its writer has cached stays.
    pub(crate) fn take_write(&mut self, ino: Ino) {
        for grant in self.by_ino.get_mut(&ino).into_iter().flatten() {
            grant.write = 0;
        }
    }

    /// The sessions that hold any of these inodes now, in order, with the inodes.
    pub(crate) fn holders(
        &self,
        inos: impl IntoIterator<Item = Ino>,
        now: Instant,
    ) -> BTreeMap<u64, HashSet<Ino>> {
        let mut out: BTreeMap<u64, HashSet<Ino>> = BTreeMap::new();
        for ino in inos {
            for grant in self.by_ino.get(&ino).into_iter().flatten() {
                if self.until(grant.session, now).is_some() {
                    out.entry(grant.session).or_default().insert(ino);
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

    /// A session gave up everything it held; its lease goes on.
    pub(crate) fn release_all(&mut self, session: u64) {
        self.by_session.remove(&session);
        self.retain_all(|g| g.session != session);
    }

    /// A session is over and holds nothing.
    pub(crate) fn end(&mut self, session: u64) {
        self.release_all(session);
        self.until.remove(&session);
        self.since.remove(&session);
    }

    /// Whether a session's lease goes on.
    pub(crate) fn is_live(&self, session: u64, now: Instant) -> bool {
        self.until(session, now).is_some()
    }

    /// Drops what has ended.
    pub(crate) fn prune(&mut self, now: Instant) {
        let ended: HashSet<u64> = self
            .until
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(session, _)| *session)
            .collect();
        if !ended.is_empty() {
            self.by_session
                .retain(|session, _| !ended.contains(session));
            self.retain_all(|g| !ended.contains(&g.session));
            self.until.retain(|session, _| !ended.contains(session));
            self.since.retain(|session, _| !ended.contains(session));
        }
    }

    fn retain(&mut self, ino: Ino, keep: impl Fn(&Grant) -> bool) {
        let Some(grants) = self.by_ino.get_mut(&ino) else {
            return;
        };
        let before = grants.len();
        grants.retain(|grant| {
            let is_kept = keep(grant);
            if !is_kept && let Some(held) = self.by_session.get_mut(&grant.session) {
                held.count -= 1;
            }
            is_kept
        });
        self.len -= before - grants.len();
        if grants.is_empty() {
            self.by_ino.remove(&ino);
        }
    }

    fn retain_all(&mut self, keep: impl Fn(&Grant) -> bool) {
        let mut len = 0;
        self.by_ino.retain(|_, grants| {
            grants.retain(|grant| keep(grant));
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
        assert!(table.grant(1, &[Ino(5)], start).is_none(), "no lease yet");
        table.renew(1, end, start);
        table.renew(2, end, start);
        assert_eq!(table.grant(1, &[Ino(5), Ino(6)], start), Some(end));
        assert!(table.grant(2, &[Ino(5)], start).is_some());
        assert_eq!(table.holders([Ino(5)], start).len(), 2);
        assert!(table.holders([Ino(5)], end).is_empty());
        let stamp = table.changed(Vec::new());
        let held: HashSet<Ino> = [Ino(5)].into();
        // Read again after the change: that lease is not what the acknowledgement gives up.
        table.grant(2, &[Ino(5)], start);
        table.release(1, &held, stamp);
        table.release(2, &held, stamp);
        let left = table.holders([Ino(5), Ino(6)], start);
        assert_eq!((left.len(), table.len()), (2, 2));
        assert_eq!(left[&1], [Ino(6)].into());
        table.end(2);
        table.prune(end);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_lease_that_ended_takes_along_what_was_held_under_it() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut table = LeaseTable::default();
        table.renew(1, start + second, start);
        table.grant(1, &[Ino(5)], start);
        assert_eq!(
            table.renew(1, start + 2 * second, start + second / 2),
            start + 2 * second
        );
        assert_eq!(table.holders([Ino(5)], start + second).len(), 1);
        table.renew(1, start + 9 * second, start + 2 * second);
        assert!(table.holders([Ino(5)], start + 2 * second).is_empty());
    }

    #[test]
    fn a_table_that_is_nearly_full_is_rid_of_its_oldest() {
        let start = Instant::now();
        let end = start + Duration::from_secs(10);
        let mut table = LeaseTable::with_max(16);
        table.renew(1, end, start);
        table.renew(2, end, start);
        table.grant(2, &[Ino(1), Ino(2)], start).unwrap();
        for n in 1..=12 {
            assert!(table.oldest_of_most(|_| false, start).is_none());
            table.grant(1, &[Ino(n)], start).unwrap();
        }
        assert_eq!(table.len(), 14);
        let (session, oldest) = table.oldest_of_most(|_| false, start).unwrap();
        assert_eq!((session, &oldest), (1, &[Ino(1), Ino(2)].into()));
        assert!(table.oldest_of_most(|s| s == 1, start).is_none());
        // Meanwhile there is room for those that cannot do without, and for what is held already.
        table.grant(1, &[Ino(20), Ino(21)], start).unwrap();
        assert!(table.grant(2, &[Ino(20)], start).is_none());
        table.grant(2, &[Ino(1), Ino(2)], start).unwrap();
        table.grant_needed(2, Ino(20), start).unwrap();
        table.grant_write(2, Ino(21), start).unwrap();
        let stamp = table.changed(Vec::new());
        table.release(session, &oldest, stamp);
        assert_eq!(table.len(), 16);
        let (session, next) = table.oldest_of_most(|_| false, start).unwrap();
        assert_eq!((session, next), (1, [Ino(3), Ino(4)].into()));
        for n in 0..10_000 {
            table.grant_needed(2, Ino(100), start);
            table.release(2, &[Ino(100)].into(), stamp + 1 + n);
        }
        assert!(table.by_session[&2].order.len() <= 2 * 16 + ORDER_SLACK);
        table.end(1);
        table.prune(end);
        assert!(table.by_session.is_empty());
    }

    #[test]
    fn what_was_read_is_old_when_that_was_changed_since_and_not_when_anything_was() {
        let mut table = LeaseTable::default();
        let before = table.changed(vec![Ino(5)]);
        let read = [Ino(3), Ino(5), Ino(8)];
        assert!(!table.is_changed_since(before, &read));
        table.changed(vec![Ino(4), Ino(9)]);
        table.changed(Vec::new());
        assert!(!table.is_changed_since(before, &read));
        let after = table.changed(vec![Ino(1), Ino(8)]);
        assert!(table.is_changed_since(before, &read));
        assert!(!table.is_changed_since(after, &read));
        // Who knows, when it is long ago.
        for n in 0..CHANGED_KEPT as u64 {
            assert!(!table.is_changed_since(after, &read), "after {n} changes");
            table.changed(vec![Ino(1000 + n)]);
        }
        table.changed(vec![Ino(7)]);
        assert!(table.is_changed_since(after, &read));
        let now = table.stamp();
        assert!(!table.is_changed_since(now, &read));
        table.all_changed();
        assert!(table.is_changed_since(now, &read));
        assert!(table.changes.len() <= CHANGED_KEPT && table.changed <= CHANGED_KEPT);
    }

    #[test]
    fn one_session_may_write() {
        let start = Instant::now();
        let end = start + Duration::from_secs(10);
        let mut table = LeaseTable::default();
        table.renew(1, end, start);
        table.renew(2, end, start);
        table.grant_write(1, Ino(5), start).unwrap();
        assert_eq!(table.writer(Ino(5), start), Some(1));
        table.grant_write(2, Ino(5), start).unwrap();
        assert_eq!(table.writer(Ino(5), start), Some(2));
        assert_eq!(table.holders([Ino(5)], start).len(), 2, "both have read it");
        assert_eq!(table.writer(Ino(5), end), None);
        table.take_write(Ino(5));
        assert_eq!(table.writer(Ino(5), start), None);
    }
}
