//! Directory entries under the lease: names that were found, or found absent, and listings. What the kernel asks for again
//! (it forgets all names when one is revoked) is answered here, without asking anybody. Empty where there is one node: the
//! kernel forgets nothing then.
//!
//! A directory's entries are forgotten together: the lease on it covers all of them. RAM: about 100 bytes for each name,
//! [`NAMES_MAX`] of them in all, listings included; beyond, all are forgotten.

use crate::lease::{Grant, Lease};
use crate::lock;
use fastcache_api::{DirEntry, Ino};
use fastcache_reactor::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Names kept at most, of all directories.
const NAMES_MAX: usize = 1 << 18;

/// A part of a listing: the entries, and whether nothing follows.
pub(crate) type Page = (Arc<[DirEntry]>, bool);

/// What is known of directories.
#[derive(Default)]
pub(crate) struct Entries {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    directories: HashMap<Ino, Directory>,
    /// Names in all of them, those of listings included.
    count: usize,
}

#[derive(Default)]
struct Directory {
    /// The epoch of the lease in which it was learned.
    epoch: u64,
    /// `None`: there is no such name.
    names: HashMap<Vec<u8>, Option<Ino>>,
    /// By where it begins, and whether attributes were asked for.
    pages: HashMap<(u64, bool), Page>,
    count: usize,
}

impl Known {
    /// The directory in this epoch, empty when it was learned in another.
    fn directory(&mut self, ino: Ino, epoch: u64, more: usize) -> &mut Directory {
        if self.count + more > NAMES_MAX {
            self.directories.clear();
            self.count = 0;
        }
        let directory = self.directories.entry(ino).or_default();
        if directory.epoch != epoch {
            self.count -= directory.count;
            *directory = Directory {
                epoch,
                ..Directory::default()
            };
        }
        directory.count += more;
        self.count += more;
        directory
    }
}

impl Entries {
    /// What a name leads to, when that is known: `Some(None)` is a name that is not there.
    pub fn find(&self, lease: &Lease, parent: Ino, name: &[u8]) -> Option<Option<Ino>> {
        if !lease.is_live() {
            return None;
        }
        let known = lock(&self.known);
        let directory = known.directories.get(&parent)?;
        if directory.epoch != lease.epoch() {
            return None;
        }
        directory.names.get(name).copied()
    }

    /// An answer told what a name leads to.
    pub fn learn(&self, lease: &Lease, grant: Grant, parent: Ino, name: &[u8], ino: Option<Ino>) {
        if !lease.is_shared() {
            return;
        }
        let mut known = lock(&self.known);
        let epoch = lease.holds(grant, parent);
        if epoch == 0 {
            return;
        }
        let directory = known.directory(parent, epoch, 1);
        if directory.names.insert(name.to_vec(), ino).is_some() {
            directory.count -= 1;
            known.count -= 1;
        }
    }

    /// A part of a listing, when it is known.
    pub fn page(&self, lease: &Lease, ino: Ino, after: u64, plus: bool) -> Option<Page> {
        if !lease.is_live() {
            return None;
        }
        let known = lock(&self.known);
        let directory = known.directories.get(&ino)?;
        if directory.epoch != lease.epoch() {
            return None;
        }
        directory.pages.get(&(after, plus)).cloned()
    }

    /// An answer told a part of a listing.
    pub fn learn_page(&self, lease: &Lease, grant: Grant, ino: Ino, at: (u64, bool), page: &Page) {
        if !lease.is_shared() {
            return;
        }
        let mut known = lock(&self.known);
        let epoch = lease.holds(grant, ino);
        if epoch == 0 || page.0.len() * 2 > NAMES_MAX {
            return;
        }
        let directory = known.directory(ino, epoch, page.0.len() * 2 + 1);
        let mut less = 0;
        for entry in page.0.iter() {
            let old = directory.names.insert(entry.name.clone(), Some(entry.ino));
            less += usize::from(old.is_some());
        }
        if let Some((old, _)) = directory.pages.insert(at, page.clone()) {
            less += old.len() + 1;
        }
        directory.count -= less;
        known.count -= less;
    }

    /// Somebody changed the directory, or is about to.
    pub fn forget(&self, ino: Ino) {
        let mut known = lock(&self.known);
        if let Some(directory) = known.directories.remove(&ino) {
            known.count -= directory.count;
        }
    }

    /// Everything was revoked.
    pub fn forget_all(&self) {
        let mut known = lock(&self.known);
        known.directories.clear();
        known.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastcache_api::Kind;

    fn entry(n: u64) -> DirEntry {
        DirEntry {
            name: n.to_string().into_bytes(),
            ino: Ino(n),
            kind: Kind::File,
            cookie: n + 3,
            attr: None,
        }
    }

    #[test]
    fn what_was_revoked_is_not_known_and_memory_has_an_end() {
        let (lease, entries) = (Lease::shared(), Entries::default());
        let dir = Ino(7);
        let grant = lease.ask().answered(None);
        entries.learn(&lease, grant, dir, b"a", Some(Ino(8)));
        entries.learn(&lease, grant, dir, b"b", None);
        assert_eq!(entries.find(&lease, dir, b"a"), Some(Some(Ino(8))));
        assert_eq!(entries.find(&lease, dir, b"b"), Some(None));
        assert_eq!(entries.find(&lease, dir, b"c"), None);
        let page: Page = ((0..10).map(entry).collect(), true);
        entries.learn_page(&lease, grant, dir, (0, false), &page);
        entries.learn_page(&lease, grant, dir, (0, false), &page);
        assert_eq!(entries.page(&lease, dir, 0, false).unwrap().0.len(), 10);
        assert_eq!(entries.find(&lease, dir, b"3"), Some(Some(Ino(3))));
        assert_eq!(lock(&entries.known).count, 2 + 10 + 11);
        // Once for the revocation, which comes first, and once for the answer that it overtook.
        lease.revoked(dir);
        entries.forget(dir);
        entries.learn(&lease, grant, dir, b"a", Some(Ino(8)));
        assert_eq!(entries.find(&lease, dir, b"a"), None);
        assert_eq!(lock(&entries.known).count, 0);
        let once = lease.ask().answered(Some(0));
        entries.learn(&lease, once, dir, b"a", Some(Ino(8)));
        assert_eq!(entries.find(&lease, dir, b"a"), None);
        let grant = lease.ask().answered(None);
        for n in 0..=NAMES_MAX {
            entries.learn(&lease, grant, dir, &n.to_le_bytes(), None);
        }
        assert!(lock(&entries.known).count < 10);
    }
}
