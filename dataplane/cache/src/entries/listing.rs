//! Parts of listings, in the order of their cookies. A part follows another where that ends, so what is asked for ahead of a
//! reader is found by the cookie that it comes with.

use super::{Directory, Entries, Key, Name};
use crate::lease::{Grant, Lease};
use crate::lock;
use fastcache_api::{DirEntry, Ino, Kind};
use std::ops::Bound;

/// Most entries asked for at once: an answer of some milliseconds. Others wait behind it, and what changes meanwhile may
/// overtake it.
pub(crate) const PAGE_MAX: usize = 1024;
/// Entries that a reader has before him at most when the next part is asked for: who takes one while the next comes waits for what
/// is late of that.
const AHEAD_MAX: usize = 2 * PAGE_MAX;
/// A part is so many times as large as the one before it.
const GROWTH: usize = 4;
/// Where every listing begins: behind `.` and `..`.
const BEGIN: u64 = 2;

/// An entry of a part. Without attributes: those are with the inodes, where they are revoked.
struct Line {
    key: Key,
    name: Box<[u8]>,
    ino: Ino,
    cookie: u64,
    kind: Kind,
}

impl Line {
    fn entry(&self) -> DirEntry {
        DirEntry {
            name: self.name.to_vec(),
            ino: self.ino,
            kind: self.kind,
            cookie: self.cookie,
            attr: None,
        }
    }
}

/// A part of a listing.
pub(super) struct Page {
    entries: Box<[Line]>,
    /// Cookie of the last entry.
    last: u64,
    /// Nothing follows.
    is_end: bool,
    has_attrs: bool,
}

/// A part that is to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ask {
    /// Number of the directory that it is for; 0: it is not kept.
    pub number: u64,
    /// After this cookie.
    pub after: u64,
    /// So many entries at most.
    pub max: usize,
    /// With attributes.
    pub is_plus: bool,
}

/// A part as an answer told it.
pub(crate) struct Told<'a> {
    pub entries: &'a [DirEntry],
    pub is_end: bool,
}

/// What is known of a listing.
#[derive(Debug)]
pub(crate) enum Listed {
    /// This, and whether nothing follows. The part to ask for meanwhile.
    Known(Vec<DirEntry>, bool, Option<Ask>),
    /// It is being asked for.
    Asked,
    /// It is to be asked for.
    Ask(Ask),
}

impl Directory {
    /// The part that has what follows a cookie.
    fn page_after(&self, after: u64, is_plus: bool) -> Option<&Page> {
        let (_, page) = self.pages.range(..=after).next_back()?;
        let has_it = page.last > after || page.is_end;
        (has_it && (page.has_attrs || !is_plus)).then_some(page)
    }

    /// Whether an entry of a part is what its name is now.
    fn is_listed(&self, entry: &Line) -> Option<bool> {
        match self.names.get(&entry.key) {
            Some(Name::Leads { ino, cookie }) => Some(*ino == entry.ino && *cookie == entry.cookie),
            Some(Name::Unsure) => None,
            Some(Name::Absent) | None => Some(false),
        }
    }

    /// Where the parts from the begin on end; `None`: where the listing does.
    pub(super) fn run_from_begin(&self) -> Option<u64> {
        let mut at = BEGIN;
        while let Some(page) = self.page_after(at, false) {
            if page.is_end {
                return None;
            }
            at = page.last;
        }
        Some(at)
    }

    /// Something may follow what was the last part.
    pub(super) fn has_more(&mut self) {
        let mut listed = 0;
        self.pages.retain(|_, page| {
            page.is_end = false;
            listed += page.entries.len();
            // Without entries it led nowhere but to the end.
            !page.entries.is_empty()
        });
        self.listed = listed;
    }

    fn keep(&mut self, entries: &Entries, ask: &Ask, told: &Told<'_>) {
        debug_assert!(self.changing == 0, "no name is in question");
        let kept = told.entries.iter().map(|entry| Line {
            key: entries.key(&entry.name),
            name: entry.name.as_slice().into(),
            ino: entry.ino,
            cookie: entry.cookie,
            kind: entry.kind,
        });
        let kept: Box<[Line]> = kept.collect();
        self.names.reserve(kept.len());
        for Line {
            key, ino, cookie, ..
        } in &kept
        {
            // Whatever was known of it: this is where the listing has it now.
            let (ino, cookie) = (*ino, *cookie);
            self.names.insert(*key, Name::Leads { ino, cookie });
        }
        let last = told.entries.last().map_or(ask.after, |e| e.cookie);
        // Parts that this one has all of.
        let within = (Bound::Included(ask.after), Bound::Excluded(last));
        let within: Vec<u64> = self.pages.range(within).map(|(at, _)| *at).collect();
        for at in within.iter().chain([&ask.after]) {
            if let Some(page) = self.pages.remove(at) {
                self.listed -= page.entries.len();
            }
        }
        self.listed += kept.len();
        let page = Page {
            entries: kept,
            last,
            is_end: told.is_end,
            has_attrs: ask.is_plus,
        };
        self.pages.insert(ask.after, page);
        if !self.is_whole && self.run_from_begin().is_none() {
            self.is_whole = true;
            self.names.retain(|_, name| *name != Name::Absent);
        }
    }

    fn list(&self, after: u64, max: usize, is_plus: bool) -> (Vec<DirEntry>, u64, bool) {
        let (mut out, mut at) = (Vec::new(), after);
        while let Some(page) = self.page_after(at, is_plus) {
            let from = page.entries.partition_point(|entry| entry.cookie <= at);
            for entry in page.entries.get(from..).unwrap_or_default() {
                match self.is_listed(entry) {
                    _ if out.len() == max => return (out, at, false),
                    None => return (out, at, false),
                    Some(true) => {
                        if out.is_empty() {
                            // It does not grow by and by: each size is another piece of memory.
                            out.reserve_exact(max.min(page.entries.len()));
                        }
                        out.push(entry.entry());
                    }
                    Some(false) => {}
                }
                at = entry.cookie;
            }
            if page.is_end {
                return (out, at, true);
            }
            at = page.last;
        }
        (out, at, false)
    }

    /// How many entries to ask for after this cookie: more from part to part.
    fn grown(&self, after: u64, max: usize, has_room: bool) -> usize {
        let before = self.pages.range(..after).next_back();
        match before {
            Some((_, page)) if has_room && page.last == after => {
                max.max((page.entries.len() * GROWTH).min(PAGE_MAX))
            }
            _ => max,
        }
    }

    /// What to ask for while a reader takes what is known after this cookie: the next part, when that is soon at its end.
    fn ahead(&mut self, after: u64, max: usize, is_plus: bool) -> Option<Ask> {
        let (mut at, mut left) = (after, 0);
        while let Some(page) = self.page_after(at, is_plus) {
            let from = page.entries.partition_point(|entry| entry.cookie <= at);
            left += page.entries.len() - from;
            if page.is_end || left > AHEAD_MAX {
                return None;
            }
            at = page.last;
        }
        let max = self.grown(at, max, true);
        self.ask(at, max, is_plus)
    }

    fn ask(&mut self, after: u64, max: usize, is_plus: bool) -> Option<Ask> {
        self.asked.insert(after).then_some(Ask {
            number: self.number,
            after,
            max,
            is_plus,
        })
    }
}

impl Entries {
    /// What follows a cookie in a directory, at most `max` entries. What is to be asked for is noted as such until
    /// [`Entries::came`]. `has_room`: for the attributes of more than that.
    pub fn list(
        &self,
        lease: &Lease,
        ino: Ino,
        after: u64,
        max: usize,
        is_plus: bool,
        has_room: bool,
    ) -> Listed {
        let after = after.max(BEGIN);
        let alone = Listed::Ask(Ask {
            number: 0,
            after,
            max,
            is_plus,
        });
        if !lease.is_live() || !lease.is_shared() {
            return alone;
        }
        let mut known = lock(&self.known);
        let listed = known.with(ino, lease.epoch(), true, |directory| {
            let (out, at, is_end) = directory.list(after, max, is_plus);
            if !out.is_empty() || is_end {
                let ahead = match is_end || !has_room {
                    true => None,
                    false => directory.ahead(at, max, is_plus),
                };
                return Listed::Known(out, is_end, ahead);
            }
            let max = directory.grown(at, max, has_room);
            let ask = directory.ask(at, max, is_plus);
            ask.map_or(Listed::Asked, Listed::Ask)
        });
        listed.unwrap_or(alone)
    }

    /// An answer told a part of a listing. Whether it is kept.
    pub fn keep(&self, lease: &Lease, grant: Grant, ino: Ino, ask: &Ask, told: &Told<'_>) -> bool {
        let mut known = lock(&self.known);
        let epoch = lease.holds_names(grant, ino);
        if epoch == 0 {
            return false;
        }
        let kept = known.with(ino, epoch, false, |directory| {
            // With a name in question it would have to be told again where in the listing that is.
            let is_it = directory.number == ask.number && directory.changing == 0;
            if is_it {
                directory.keep(self, ask, told);
            }
            is_it
        });
        kept == Some(true)
    }

    /// What was to be asked for came, or will not.
    pub fn came(&self, ino: Ino, ask: &Ask) {
        let mut known = lock(&self.known);
        if let Some(directory) = known.directories.get_mut(&ino)
            && directory.number == ask.number
        {
            directory.asked.remove(&ask.after);
        }
        drop(known);
        self.arrived.notify(usize::MAX);
    }

    /// A part of a directory that is asked for as lookups want it has come, or will not: the next.
    pub fn filled(&self, ino: Ino, ask: &Ask, has_room: bool) -> Option<Ask> {
        let mut known = lock(&self.known);
        let directory = known.directories.get_mut(&ino)?;
        match directory.number == ask.number {
            true => directory.filled(has_room),
            false => None,
        }
    }
}
