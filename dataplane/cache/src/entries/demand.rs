//! When the names of a directory are asked for, all of them, instead of one by one: after a few that were not known, and as many at
//! once as the lookups so far pay for.
//!
//! The bounds keep one lookup in a huge directory from costing more than itself, and a directory that others change all the
//! time from being asked for in vain: each time it was revoked before it was of use it takes twice as many.

use super::Directory;
use super::listing::{Ask, PAGE_MAX};

/// Lookups of unknown names before a directory is asked for.
const MISSES: u32 = 4;
/// Most that this grows to.
const MISSES_MAX: u32 = 1024;
/// Entries that a lookup pays for: to tell so many costs the coordinator about what answering one lookup does.
const PAID_FOR: usize = 64;
/// Fewer entries are not asked for.
const LEAST: usize = 256;
/// Entries of a directory that are asked for in all. Each with attributes is a lease in the coordinator's table, of 1,000,000.
pub(super) const ENTRIES_MAX: usize = 1 << 16;

/// What is looked up in a directory, and what was asked for in return.
pub(super) struct Demand {
    lookups: usize,
    misses: u32,
    /// Misses that it takes.
    needs: u32,
    /// Entries that were asked for.
    asked: usize,
    /// Lookups that needed nobody since some were.
    hits: usize,
    /// They are being asked for.
    is_filling: bool,
    /// Too large, or no room.
    is_given_up: bool,
}

impl Default for Demand {
    fn default() -> Demand {
        Demand {
            lookups: 0,
            misses: 0,
            needs: MISSES,
            asked: 0,
            hits: 0,
            is_filling: false,
            is_given_up: false,
        }
    }
}

impl Demand {
    /// What is remembered of a directory that is forgotten; `None`: nothing that matters.
    pub fn after(self, is_large: bool) -> Option<Demand> {
        let needs = match (self.asked, self.hits) {
            (0, _) => self.needs,
            (asked, hits) if hits * PAID_FOR < asked => (self.needs * 2).min(MISSES_MAX),
            _ => (self.needs / 2).max(MISSES),
        };
        let is_given_up = self.is_given_up || is_large;
        (is_given_up || needs > MISSES).then_some(Demand {
            needs,
            is_given_up,
            ..Demand::default()
        })
    }

    /// Entries that the lookups so far pay for; 0: not enough.
    fn credit(&self) -> usize {
        let credit = (self.lookups * PAID_FOR).saturating_sub(self.asked);
        match credit >= LEAST {
            true => credit.min(PAGE_MAX),
            false => 0,
        }
    }
}

impl Directory {
    /// A name was looked up, and was known or not: what to ask for.
    pub(super) fn looked_up(&mut self, is_known: bool) -> Option<Ask> {
        let demand = &mut self.demand;
        demand.lookups += 1;
        match is_known {
            true => demand.hits += usize::from(demand.asked > 0),
            false => demand.misses += 1,
        }
        if self.is_whole || demand.is_filling || demand.misses < demand.needs {
            return None;
        }
        self.next_to_ask()
    }

    /// A part was asked for, and came or not: the next.
    pub(super) fn filled(&mut self, is_kept: bool) -> Option<Ask> {
        self.demand.is_filling = false;
        self.demand.is_given_up |= !is_kept;
        match self.is_whole {
            true => None,
            false => self.next_to_ask(),
        }
    }

    fn next_to_ask(&mut self) -> Option<Ask> {
        let credit = self.demand.credit();
        if credit == 0 || self.demand.is_given_up {
            return None;
        }
        let after = self.run_from_begin()?;
        if !self.asked.insert(after) {
            return None;
        }
        let demand = &mut self.demand;
        demand.is_filling = true;
        demand.asked += credit;
        demand.is_given_up = demand.asked >= ENTRIES_MAX;
        Some(Ask {
            number: self.number,
            after,
            max: credit,
            is_plus: true,
        })
    }
}
