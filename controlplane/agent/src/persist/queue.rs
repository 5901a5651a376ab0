//! Which dirty chunk is uploaded next. Pure: no I/O, and time comes from outside.
//!
//! Rules (DESIGN 5.3): first in, first out; the newest version of a chunk replaces an older one that waits, and
//! keeps its place, so that a chunk that is rewritten for ever is uploaded all the same; due after its *file* was
//! quiet for a time (whoever writes a large file has the device and the processors to himself), or when it has
//! waited long enough, or at once when somebody waits for it. The queue holds what is on the device and dirty, so
//! its length is bounded by the chunks the store has room for.

use fastcache_api::{ChunkId, ChunkKey, Ino};
use hashlink::LinkedHashMap;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// A replaced version's age is kept this long for its successor, and for so many chunks.
const FADED: (Duration, usize) = (Duration::from_secs(2), 4096);

/// When a dirty chunk is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// After no chunk of its file was sealed for this long,
    pub(crate) quiet: Duration,
    /// but at most this long after it became dirty.
    pub(crate) longest: Duration,
}

struct Entry {
    /// The newest version.
    key: ChunkKey,
    len: u32,
    /// Since when the chunk is dirty without a break, and the number of the seal that made it so.
    since: Instant,
    order: u64,
    is_hurried: bool,
    /// The version that is being uploaded.
    uploading: Option<ChunkKey>,
    /// The first seal after the upload began.
    next: Option<(Instant, u64)>,
    failures: u32,
    /// Where it stands in `due`, unless it is being uploaded.
    due: Instant,
    not_before: Option<Instant>,
}

/// A file with entries.
struct Written {
    /// The last seal of one of its chunks.
    sealed: Instant,
    /// Where its entries stand in [`Queue::due`], all alike, so that they keep their order: when it would be quiet, as
    /// was known when that was last looked at.
    due: Instant,
    entries: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Upload this.
    Take(ChunkKey),
    /// Nothing is due before then.
    At(Instant),
    /// Nothing waits.
    Idle,
}

/// The persist queue.
pub(crate) struct Queue {
    pace: Pace,
    entries: BTreeMap<ChunkId, Entry>,
    files: HashMap<Ino, Written>,
    /// No later than each is due: a file that is written again makes its entries due later.
    due: BTreeSet<(Instant, u64, ChunkId)>,
    /// By the seal that made them dirty: the first is the oldest.
    orders: BTreeMap<u64, ChunkId>,
    next_order: u64,
    bytes: u64,
    is_synced: bool,
    /// Ages of versions that just went, for the versions that replace them.
    faded: LinkedHashMap<ChunkId, (Instant, Instant)>,
    /// Ages from before the inventory that is being taken.
    before: HashMap<ChunkKey, Instant>,
}

impl Queue {
    /// Empty, and waiting for an inventory.
    pub(crate) fn new(pace: Pace) -> Queue {
        Queue {
            pace,
            entries: BTreeMap::new(),
            files: HashMap::new(),
            due: BTreeSet::new(),
            orders: BTreeMap::new(),
            next_order: 1,
            bytes: 0,
            is_synced: false,
            faded: LinkedHashMap::new(),
            before: HashMap::new(),
        }
    }

    /// Uploads begin after this much quiet from now on.
    pub(crate) fn set_quiet(&mut self, quiet: Duration) {
        if quiet == self.pace.quiet {
            return;
        }
        self.pace.quiet = quiet;
        for file in self.files.values_mut() {
            file.due = file.sealed + quiet;
        }
        let wait = self.entries.iter().filter(|(_, e)| e.uploading.is_none());
        for id in wait.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.schedule(id);
        }
    }

    /// Forgets everything but ages: an inventory follows.
    pub(crate) fn begin_inventory(&mut self) {
        let mut before = std::mem::take(&mut self.before);
        before.extend(self.entries.values().map(|e| (e.key, e.since)));
        let next_order = self.next_order;
        *self = Queue {
            before,
            next_order,
            ..Queue::new(self.pace)
        };
    }

    /// The inventory is complete.
    pub(crate) fn end_inventory(&mut self) {
        self.before = HashMap::new();
        self.is_synced = true;
    }

    /// Whether the queue knows what is dirty.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// A dirty version is on the device.
    pub(crate) fn add(&mut self, key: ChunkKey, len: u32, now: Instant) {
        let order = self.next_order;
        self.next_order += 1;
        if let Some(entry) = self.entries.get_mut(&key.id()) {
            if entry.key == key {
                return;
            }
            self.bytes = self.bytes + u64::from(len) - u64::from(entry.len);
            (entry.key, entry.len, entry.failures) = (key, len, 0);
            if let Some(file) = self.files.get_mut(&key.ino) {
                file.sealed = now;
            }
            if entry.uploading.is_some() {
                entry.next.get_or_insert((now, order));
            } else {
                self.schedule(key.id());
            }
            return;
        }
        let faded = self.faded.remove(&key.id());
        let since = match (self.before.get(&key), faded) {
            (Some(since), _) => *since,
            (None, Some((since, went))) if now.duration_since(went) < FADED.0 => since,
            _ => now,
        };
        self.bytes += u64::from(len);
        self.orders.insert(order, key.id());
        let entry = Entry {
            key,
            len,
            since,
            order,
            is_hurried: false,
            uploading: None,
            next: None,
            failures: 0,
            due: now,
            not_before: None,
        };
        self.entries.insert(key.id(), entry);
        let file = self.files.entry(key.ino).or_insert(Written {
            sealed: now,
            due: now + self.pace.quiet,
            entries: 0,
        });
        file.sealed = now;
        file.entries += 1;
        self.schedule(key.id());
    }

    /// A version is no longer on the device, or needs no upload.
    pub(crate) fn gone(&mut self, key: ChunkKey, now: Instant) {
        if self.entries.get(&key.id()).is_some_and(|e| e.key == key)
            && let Some(entry) = self.remove(key.id())
        {
            self.faded.insert(key.id(), (entry.since, now));
            while self.faded.len() > FADED.1 {
                self.faded.pop_front();
            }
        }
    }

    /// The next version to upload; with `is_urgent` whatever is not held back by a failure.
    pub(crate) fn next(&mut self, now: Instant, is_urgent: bool) -> Next {
        if is_urgent {
            return self.next_urgent(now);
        }
        while let Some(&place) = self.due.first() {
            let (due, _, id) = place;
            if due > now {
                return Next::At(due);
            }
            let Some(entry) = self.entries.get(&id) else {
                self.due.remove(&place);
                continue;
            };
            if self.due_at(entry) <= now {
                return self.take(place);
            }
            if let Some(file) = self.files.get_mut(&id.ino) {
                file.due = file.sealed + self.pace.quiet;
            }
            self.schedule(id);
        }
        Next::Idle
    }

    /// The oldest that is not held back.
    fn next_urgent(&mut self, now: Instant) -> Next {
        let mut earliest: Option<Instant> = None;
        for (&order, &id) in &self.orders {
            let Some(entry) = self.entries.get(&id).filter(|e| e.uploading.is_none()) else {
                continue;
            };
            match entry.not_before {
                Some(at) if at > now => earliest = Some(earliest.map_or(at, |e| e.min(at))),
                _ => return self.take((entry.due, order, id)),
            }
        }
        earliest.map_or(Next::Idle, Next::At)
    }

    fn take(&mut self, place: (Instant, u64, ChunkId)) -> Next {
        self.due.remove(&place);
        match self.entries.get_mut(&place.2) {
            Some(entry) => {
                entry.uploading = Some(entry.key);
                Next::Take(entry.key)
            }
            None => Next::Idle,
        }
    }

    /// An upload is complete, recorded and marked clean.
    pub(crate) fn done(&mut self, key: ChunkKey) {
        let Some(entry) = self.entries.get_mut(&key.id()) else {
            return;
        };
        if entry.key == key {
            self.remove(key.id());
        } else if entry.uploading == Some(key) {
            self.put_back(key.id(), None);
        }
    }

    /// An upload failed; the chunk waits for `pause` now.
    pub(crate) fn failed(&mut self, key: ChunkKey, pause: Duration, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key.id()) else {
            return;
        };
        if entry.uploading != Some(key) {
            return;
        }
        entry.failures = entry.failures.saturating_add(1);
        // What waits for the newest version now is as old as what failed: it was never uploaded.
        entry.next = None;
        self.put_back(key.id(), Some(now + pause));
    }

    /// Whether a chunk that was taken may wait on: nobody waits for it, and it has not waited long.
    pub(crate) fn is_patient(&self, key: ChunkKey, now: Instant) -> bool {
        self.entries
            .get(&key.id())
            .is_some_and(|e| !e.is_hurried && now < e.since + self.pace.longest)
    }

    /// The chunk that was taken is being written again: its quiet time begins anew.
    pub(crate) fn postpone(&mut self, key: ChunkKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key.id()) else {
            return;
        };
        if entry.uploading == Some(key) {
            if let Some(file) = self.files.get_mut(&key.ino) {
                file.sealed = now;
            }
            // It was not uploaded: what was sealed meanwhile is as old as it.
            entry.next = None;
            self.put_back(key.id(), None);
        }
    }

    /// How often uploading the chunk failed in a row.
    pub(crate) fn failures(&self, key: ChunkKey) -> u32 {
        self.entries.get(&key.id()).map_or(0, |e| e.failures)
    }

    /// Makes a file's chunks, or all, due at once, failures or not.
    pub(crate) fn hurry(&mut self, ino: Option<Ino>) {
        let ids: Vec<ChunkId> = match ino {
            Some(ino) => self.of_file(ino).map(|(id, _)| *id).collect(),
            None => self.entries.keys().copied().collect(),
        };
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.is_hurried = true;
                entry.not_before = None;
                if entry.uploading.is_none() {
                    self.schedule(id);
                }
            }
        }
    }

    /// The object store works again: nothing is held back.
    pub(crate) fn forgive(&mut self) {
        let mut held = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.not_before.take().is_some() && entry.uploading.is_none() {
                held.push(*id);
            }
        }
        for id in held {
            self.schedule(id);
        }
    }

    /// A mark: what is dirty now is what [`Queue::is_left`] asks about.
    pub(crate) fn mark(&self) -> u64 {
        self.next_order
    }

    /// Whether something that became dirty before the mark still waits or is being uploaded.
    pub(crate) fn is_left(&self, ino: Option<Ino>, mark: u64) -> bool {
        match ino {
            Some(ino) => self.of_file(ino).any(|(_, e)| e.order < mark),
            None => self
                .orders
                .first_key_value()
                .is_some_and(|(order, _)| *order < mark),
        }
    }

    /// How many chunks that became dirty before the mark are left, and whether one of them failed.
    pub(crate) fn left_before(&self, ino: Option<Ino>, mark: u64) -> (u64, bool) {
        let add = |(left, is_failing): (u64, bool), e: &Entry| match e.order < mark {
            true => (left + 1, is_failing || e.failures > 0),
            false => (left, is_failing),
        };
        match ino {
            Some(ino) => self.of_file(ino).map(|(_, e)| e).fold((0, false), add),
            None => self.entries.values().fold((0, false), add),
        }
    }

    /// Whether this version waits, or is being uploaded or recorded.
    pub(crate) fn holds(&self, key: ChunkKey) -> bool {
        self.entries
            .get(&key.id())
            .is_some_and(|e| e.key == key || e.uploading == Some(key))
    }

    /// Whether any version of a chunk waits, or is being uploaded or recorded.
    pub(crate) fn holds_some(&self, id: ChunkId) -> bool {
        self.entries.contains_key(&id)
    }

    /// Chunks and bytes that wait or are being uploaded.
    pub(crate) fn left(&self, ino: Option<Ino>) -> (u64, u64) {
        match ino {
            None => (
                u64::try_from(self.entries.len()).unwrap_or(u64::MAX),
                self.bytes,
            ),
            Some(ino) => self.of_file(ino).fold((0, 0), |(chunks, bytes), (_, e)| {
                (chunks + 1, bytes + u64::from(e.len))
            }),
        }
    }

    /// Since when the oldest is dirty.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let id = self.orders.first_key_value()?.1;
        self.entries.get(id).map(|e| e.since)
    }

    fn of_file(&self, ino: Ino) -> impl Iterator<Item = (&ChunkId, &Entry)> {
        self.entries.range(
            ChunkId { ino, index: 0 }..=ChunkId {
                ino,
                index: u32::MAX,
            },
        )
    }

    fn remove(&mut self, id: ChunkId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.orders.remove(&entry.order);
        self.due.remove(&(entry.due, entry.order, id));
        self.bytes -= u64::from(entry.len);
        if let Some(file) = self.files.get_mut(&id.ino) {
            file.entries -= 1;
            if file.entries == 0 {
                self.files.remove(&id.ino);
            }
        }
        Some(entry)
    }

    /// After an upload: what was sealed meanwhile is what is dirty now.
    fn put_back(&mut self, id: ChunkId, not_before: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.uploading = None;
        entry.not_before = not_before;
        if let Some((since, order)) = entry.next.take() {
            self.orders.remove(&entry.order);
            self.orders.insert(order, id);
            entry.since = since;
            entry.order = order;
            entry.is_hurried = false;
            entry.failures = 0;
        }
        self.schedule(id);
    }

    /// When an entry is due by what is known now.
    fn due_at(&self, entry: &Entry) -> Instant {
        let quiet = |file: &Written| file.sealed + self.pace.quiet;
        self.due_with(entry, quiet)
    }

    fn due_with(&self, entry: &Entry, quiet: impl Fn(&Written) -> Instant) -> Instant {
        let due = match self.files.get(&entry.key.ino) {
            Some(file) if !entry.is_hurried => quiet(file).min(entry.since + self.pace.longest),
            _ => entry.since,
        };
        entry.not_before.map_or(due, |at| at.max(due))
    }

    fn schedule(&mut self, id: ChunkId) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let due = self.due_with(entry, |file| file.due);
        self.due.remove(&(entry.due, entry.order, id));
        self.due.insert((due, entry.order, id));
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.due = due;
        }
    }
}
