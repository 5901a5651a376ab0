//! What is known of directories under the lease: what names lead to, names that are not there, parts of listings. And of which
//! directories all names are known: what is not among them does not exist, and nobody is asked.
//!
//! A directory is known whole when it was made here, or when every part of its listing was told under grants that still hold.
//! The lease on a directory covers all its names, so they are forgotten together when it is revoked. A change that is made
//! here revokes nothing: what it does to each name is noted ([`Entries::begin`], [`Entries::end`]), and whoever asked
//! before it ended does not tell anything that is kept ([`Lease::names_changed`]).
//!
//! Where there is one node the kernel keeps names itself: only directories that were made here are known then.
//!
//! RAM: about 60 bytes for each name, 70 for each entry of a listing, [`NAMES_MAX`] of both in all; beyond, the directory
//! that was used least recently is forgotten. A name stands there as 128 bits, of two hashes with keys of this process: that two of a
//! directory are taken for one is less likely than that memory errs.

mod demand;
mod listing;

use crate::lease::{Grant, Lease};
use crate::lock;
use demand::Demand;
use event_listener::Event;
use fastcache_api::Ino;
use fastcache_reactor::sync::Mutex;
use hashlink::LinkedHashMap;
use listing::Page;
pub(crate) use listing::{Ask, Listed, Told};
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

/// Names kept at most, of all directories, entries of listings included.
const NAMES_MAX: usize = 1 << 18;
/// Most of them that one directory may have.
const DIRECTORY_SHARE: usize = NAMES_MAX / 2;
/// A directory counts for so many names.
const DIRECTORY_WEIGHT: usize = 4;

/// What is known of directories.
#[derive(Default)]
pub(crate) struct Entries {
    hashers: (RandomState, RandomState),
    known: Mutex<Known>,
    /// A part of a listing came, or will not come.
    pub arrived: Event,
}

/// A name.
type Key = (u64, u64);

/// Names by key.
type Names = HashMap<Key, Name, BuildHasherDefault<KeyHasher>>;

/// A key is of hashes with keys already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is of numbers");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What a name is known to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    /// It leads there, and the listing that told it has it at this cookie; 0: none has.
    Leads { ino: Ino, cookie: u64 },
    /// There is no such name.
    Absent,
    /// This node changes it now, or does not know what came of that.
    Unsure,
}

#[derive(Default)]
struct Known {
    /// Used least recently first.
    directories: LinkedHashMap<Ino, Directory>,
    /// What all of them weigh.
    weight: usize,
    /// Number of the directory that was added last.
    last: u64,
}

#[derive(Default)]
struct Directory {
    /// Another one after it was forgotten.
    number: u64,
    /// The epoch of the lease in which it was learned.
    epoch: u64,
    /// What is not among the names does not exist.
    is_whole: bool,
    names: Names,
    /// Parts of the listing, by the cookie that they begin after.
    pages: BTreeMap<u64, Page>,
    /// Entries of all pages.
    listed: usize,
    /// Parts that are being asked for, by the same.
    asked: BTreeSet<u64>,
    /// Changes of its names by this node that are under way.
    changing: usize,
    demand: Demand,
}

/// A change of a name that is under way.
#[derive(Debug)]
pub(crate) struct Begun {
    directory: Ino,
    key: Key,
    /// `None`: nothing was known of the directory.
    before: Option<Before>,
}

/// What was known before a change.
#[derive(Clone, Copy, Debug)]
struct Before {
    /// Of the directory.
    number: u64,
    name: Option<Name>,
    is_whole: bool,
}

/// What a change made of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It leads there now.
    Leads(Ino),
    /// It is not there any more.
    Absent,
    /// What it was.
    Unchanged,
    /// It has to be asked for.
    Unsure,
}

impl Begun {
    /// What the name led to before, when that is known for sure: `Some(None)`: nothing.
    pub fn led_to(&self) -> Option<Option<Ino>> {
        let before = self.before?;
        leads_to(before.name, before.is_whole)
    }
}

fn leads_to(name: Option<Name>, is_whole: bool) -> Option<Option<Ino>> {
    match name {
        Some(Name::Leads { ino, .. }) => Some(Some(ino)),
        Some(Name::Absent) => Some(None),
        Some(Name::Unsure) => None,
        None => is_whole.then_some(None),
    }
}

impl Directory {
    fn weight(&self) -> usize {
        DIRECTORY_WEIGHT + self.names.len() + self.listed + self.pages.len()
    }

    fn find(&self, key: Key) -> Option<Option<Ino>> {
        leads_to(self.names.get(&key).copied(), self.is_whole)
    }

    fn set(&mut self, key: Key, name: Option<Name>) {
        match name {
            // What is not among them is absent anyway.
            None => self.names.remove(&key),
            Some(Name::Absent) if self.is_whole => self.names.remove(&key),
            Some(name) => self.names.insert(key, name),
        };
    }

    /// An answer told a name. One that this node changes meanwhile may be another when that has ended.
    fn learn(&mut self, key: Key, ino: Option<Ino>, cookie: u64) {
        let before = self.names.get(&key).copied();
        if self.changing > 0 && before == Some(Name::Unsure) {
            return;
        }
        let name = match (ino, before) {
            (None, _) => Name::Absent,
            // Where the listing has it is where it was.
            (Some(ino), Some(Name::Leads { ino: old, cookie })) if ino == old && cookie != 0 => {
                Name::Leads { ino, cookie }
            }
            (Some(ino), _) => Name::Leads { ino, cookie },
        };
        self.set(key, Some(name));
    }
}

impl Known {
    /// Works with a directory as it is known in this epoch; `is_new`: with an empty one where nothing is known.
    fn with<T>(
        &mut self,
        ino: Ino,
        epoch: u64,
        is_new: bool,
        act: impl FnOnce(&mut Directory) -> T,
    ) -> Option<T> {
        let is_known = self.directories.get(&ino).is_some_and(|d| d.epoch == epoch);
        if !is_known {
            self.remove(ino);
            if !is_new {
                return None;
            }
            self.add(ino, epoch);
        }
        let directory = self.directories.to_back(&ino)?;
        let before = directory.weight();
        let done = act(directory);
        let after = directory.weight();
        self.weight = self.weight + after - before;
        if after > DIRECTORY_SHARE {
            self.forget(ino, true);
        }
        while self.weight > NAMES_MAX
            && let Some((_, oldest)) = self.directories.pop_front()
        {
            self.weight -= oldest.weight();
        }
        Some(done)
    }

    fn add(&mut self, ino: Ino, epoch: u64) -> &mut Directory {
        self.last += 1;
        let directory = Directory {
            number: self.last,
            epoch,
            ..Directory::default()
        };
        self.weight += directory.weight();
        self.directories.entry(ino).or_insert(directory)
    }

    fn remove(&mut self, ino: Ino) -> Option<Directory> {
        let directory = self.directories.remove(&ino)?;
        self.weight -= directory.weight();
        Some(directory)
    }

    /// Forgets a directory, but for what asking for all of it has come to.
    fn forget(&mut self, ino: Ino, is_large: bool) {
        if let Some(directory) = self.remove(ino)
            && let Some(demand) = directory.demand.after(is_large)
        {
            self.add(ino, directory.epoch).demand = demand;
        }
    }
}

impl Entries {
    fn key(&self, name: &[u8]) -> Key {
        (self.hashers.0.hash_one(name), self.hashers.1.hash_one(name))
    }

    /// What a name leads to, when that is known: `Some(None)` is a name that is not there.
    pub fn find(&self, lease: &Lease, parent: Ino, name: &[u8]) -> Option<Option<Ino>> {
        // Every directory has these two.
        if !lease.is_live() || matches!(name, b"." | b"..") {
            return None;
        }
        let key = self.key(name);
        let known = lock(&self.known);
        let directory = known.directories.get(&parent)?;
        (directory.epoch == lease.epoch()).then(|| directory.find(key))?
    }

    /// [`Entries::find`] for who looks a name up; and what of the directory is to be asked for, since so many are looked up.
    pub fn look(
        &self,
        lease: &Lease,
        parent: Ino,
        name: &[u8],
    ) -> (Option<Option<Ino>>, Option<Ask>) {
        if !lease.is_live() || matches!(name, b"." | b"..") {
            return (None, None);
        }
        let key = self.key(name);
        let mut known = lock(&self.known);
        let is_shared = lease.is_shared();
        let looked = known.with(parent, lease.epoch(), is_shared, |directory| {
            let found = directory.find(key);
            let ask = match is_shared {
                true => directory.looked_up(found.is_some()),
                false => None,
            };
            (found, ask)
        });
        looked.unwrap_or_default()
    }

    /// An answer told what a name leads to.
    pub fn learn(&self, lease: &Lease, grant: Grant, parent: Ino, name: &[u8], ino: Option<Ino>) {
        let key = self.key(name);
        let mut known = lock(&self.known);
        let epoch = lease.holds_names(grant, parent);
        if epoch != 0 {
            known.with(parent, epoch, lease.is_shared(), |directory| {
                directory.learn(key, ino, 0);
            });
        }
    }

    /// A directory was made here: it is empty. Others may have found it first; then its lease was revoked.
    pub fn made(&self, lease: &Lease, grant: Grant, ino: Ino) {
        let mut known = lock(&self.known);
        let epoch = lease.holds_names(grant, ino);
        if epoch != 0 {
            known.remove(ino);
            known.with(ino, epoch, true, |directory| directory.is_whole = true);
        }
    }

    /// This node is about to change these names: until that has ended they have to be asked for.
    pub fn begin(&self, names: &[(Ino, &[u8])]) -> Vec<Begun> {
        let keys: Vec<Key> = names.iter().map(|(_, name)| self.key(name)).collect();
        let mut known = lock(&self.known);
        let begin = |((directory, _), key): (&(Ino, &[u8]), Key)| {
            let epoch = known.directories.get(directory).map(|d| d.epoch);
            let before = epoch.and_then(|epoch| {
                known.with(*directory, epoch, false, |directory| {
                    directory.changing += 1;
                    Before {
                        number: directory.number,
                        name: directory.names.insert(key, Name::Unsure),
                        is_whole: directory.is_whole,
                    }
                })
            });
            Begun {
                directory: *directory,
                key,
                before,
            }
        };
        names.iter().zip(keys).map(begin).collect()
    }

    /// A change has ended, and this came of its names. Without a grant nobody knows what: what is known of the directories is
    /// forgotten; and so it is when others changed them meanwhile, or this node did, whose order nobody knows.
    pub fn end(&self, lease: &Lease, grant: Option<Grant>, begun: &[Begun], outcomes: &[Outcome]) {
        let mut known = lock(&self.known);
        let holds = |b: &Begun| grant.map_or(0, |grant| lease.holds_names(grant, b.directory));
        let epochs: Vec<u64> = begun.iter().map(holds).collect();
        for b in begun {
            lease.names_changed(b.directory);
        }
        for ((b, epoch), outcome) in begun.iter().zip(epochs).zip(outcomes) {
            let number = known.directories.get(&b.directory).map(|d| d.number);
            if epoch == 0 || number != b.before.map(|before| before.number) {
                // Or it came to be known meanwhile, with a listing from before or after.
                known.forget(b.directory, false);
            }
            let is_made = matches!(outcome, Outcome::Leads(_)) && lease.is_shared();
            if epoch != 0 {
                known.with(b.directory, epoch, is_made, |directory| {
                    directory.end(b.key, b.before, *outcome);
                });
            }
        }
    }

    /// Others change a name where this node is alone: no lease goes with it.
    pub fn others_changed(&self, lease: &Lease, directory: Ino, name: &[u8]) {
        let key = self.key(name);
        let mut known = lock(&self.known);
        known.with(directory, lease.epoch(), false, |directory| {
            directory.names.insert(key, Name::Unsure);
            directory.has_more();
        });
    }

    /// Somebody changed the directory, or is about to.
    pub fn forget(&self, ino: Ino) {
        lock(&self.known).forget(ino, false);
    }

    /// Everything was revoked.
    pub fn forget_all(&self) {
        let mut known = lock(&self.known);
        known.directories.clear();
        known.weight = 0;
    }
}

impl Directory {
    /// What came of a change of a name.
    fn end(&mut self, key: Key, before: Option<Before>, outcome: Outcome) {
        // Otherwise nothing else is known of the directory.
        let before = before.filter(|before| before.number == self.number);
        self.changing -= usize::from(before.is_some());
        let name = match (outcome, before) {
            (Outcome::Leads(ino), _) => Some(Name::Leads { ino, cookie: 0 }),
            (Outcome::Absent, _) => Some(Name::Absent),
            (Outcome::Unchanged, Some(before)) => before.name,
            (Outcome::Unchanged | Outcome::Unsure, _) => Some(Name::Unsure),
        };
        self.set(key, name);
        // What was made is listed behind all others.
        if matches!(outcome, Outcome::Leads(_) | Outcome::Unsure) {
            self.has_more();
        }
    }
}

#[cfg(test)]
mod tests;
