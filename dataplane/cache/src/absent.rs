//! Names that are known not to exist, without being asked for: a folder that was made here was empty, and this node
//! hears of every name that anybody makes in it.
//!
//! For such a folder every name that may exist is kept, as a hash. What is not among them does not exist, so the lookup
//! that comes before each create, untar or copy into a new folder never leaves the data plane. A name is added before it
//! is made and never taken away, so the answer errs to one side only: to ask.
//!
//! Only where leases have no end. RAM: 16 bytes for each name, [`NAMES_MAX`] of them in all.

use crate::lock;
use fastcache_api::Ino;
use fastcache_reactor::sync::Mutex;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

/// Names kept at most, of all folders; about 4 MiB.
const NAMES_MAX: usize = 1 << 18;
/// Folders kept at most.
const FOLDERS_MAX: usize = 1 << 14;

/// The folders whose names are all known.
#[derive(Default)]
pub(crate) struct Absent {
    hasher: RandomState,
    folders: Mutex<Folders>,
}

#[derive(Default)]
struct Folders {
    names: HashMap<Ino, HashSet<u64>>,
    /// Names in all folders.
    count: usize,
    /// How often others changed something, or everything was forgotten.
    epoch: u64,
}

impl Absent {
    /// What [`Absent::made`] wants to know; to be asked before the folder is made.
    pub fn epoch(&self) -> u64 {
        lock(&self.folders).epoch
    }

    /// A folder was made here, and is empty when others made nothing anywhere since `epoch`: one of them may have found
    /// it before we heard that it is there.
    pub fn made(&self, folder: Ino, epoch: u64) {
        let mut folders = lock(&self.folders);
        if folders.epoch != epoch {
            return;
        }
        if folders.names.len() >= FOLDERS_MAX {
            folders.clear();
        }
        folders.names.insert(folder, HashSet::new());
    }

    /// Somebody else has made the name.
    pub fn others_made(&self, folder: Ino, name: &[u8]) {
        lock(&self.folders).epoch += 1;
        self.may_exist(folder, name);
    }

    /// From now on the name may exist. Before it is made.
    pub fn may_exist(&self, folder: Ino, name: &[u8]) {
        let hash = self.hasher.hash_one(name);
        let mut folders = lock(&self.folders);
        let Some(names) = folders.names.get_mut(&folder) else {
            return;
        };
        if names.insert(hash) {
            folders.count += 1;
            if folders.count > NAMES_MAX {
                folders.clear();
            }
        }
    }

    /// Whether the name does not exist for sure.
    pub fn is_absent(&self, folder: Ino, name: &[u8]) -> bool {
        // Every folder has these two.
        if matches!(name, b"." | b"..") {
            return false;
        }
        let folders = lock(&self.folders);
        let names = folders.names.get(&folder);
        names.is_some_and(|names| !names.contains(&self.hasher.hash_one(name)))
    }

    /// The folder is gone, or somebody else changes it.
    pub fn forget(&self, folder: Ino) {
        let mut folders = lock(&self.folders);
        if let Some(names) = folders.names.remove(&folder) {
            folders.count -= names.len();
        }
    }

    /// Nothing is known for sure any more: a new session of the agent, which may have missed something.
    pub fn forget_all(&self) {
        let mut folders = lock(&self.folders);
        folders.epoch += 1;
        folders.clear();
    }
}

impl Folders {
    fn clear(&mut self) {
        self.names.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_exist_is_never_absent_and_memory_has_an_end() {
        let absent = Absent::default();
        let (made, other) = (Ino(7), Ino(8));
        assert!(!absent.is_absent(made, b"a"));
        absent.made(made, absent.epoch());
        assert!(absent.is_absent(made, b"a") && !absent.is_absent(other, b"a"));
        assert!(!absent.is_absent(made, b".."));
        absent.may_exist(made, b"a");
        assert!(!absent.is_absent(made, b"a") && absent.is_absent(made, b"b"));
        absent.forget(made);
        assert!(!absent.is_absent(made, b"b"));
        assert_eq!(lock(&absent.folders).count, 0);

        absent.made(made, absent.epoch());
        for n in 0..=NAMES_MAX {
            absent.may_exist(made, &n.to_le_bytes());
        }
        assert!(!absent.is_absent(made, b"b"), "it was given up");
        for n in 0..=FOLDERS_MAX as u64 {
            absent.made(Ino(n), absent.epoch());
        }
        assert!(lock(&absent.folders).names.len() <= FOLDERS_MAX);
    }

    #[test]
    fn a_folder_that_others_may_have_found_first_is_not_taken_for_empty() {
        let absent = Absent::default();
        let made = Ino(7);
        let epoch = absent.epoch();
        absent.others_made(made, b"a");
        absent.made(made, epoch);
        assert!(!absent.is_absent(made, b"a"));
        let epoch = absent.epoch();
        absent.forget_all();
        absent.made(made, epoch);
        assert!(!absent.is_absent(made, b"a"));
    }
}
