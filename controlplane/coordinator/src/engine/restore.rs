//! A namespace that is being rebuilt: filled from the outside, then closed, to be opened like any other.

use super::kv::{StateKv, fill};
use super::{CACHE_BYTES, EngineError, log, table_options};
use fastcache_api::Ino;
use fastcache_namespace::{Counters, Pair, Record};
use fjall::{Database, Keyspace, PersistMode};
use std::path::{Path, PathBuf};

/// Whether a directory holds a namespace, or anything.
pub(crate) fn is_there(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Refuses a namespace that a process uses. One that cannot be opened for another reason may be replaced.
pub(crate) fn check_unused(path: &Path) -> Result<(), EngineError> {
    match Database::builder(path).cache_size(CACHE_BYTES).open() {
        Err(fjall::Error::Locked) => Err(EngineError::Locked(path.to_path_buf())),
        _ => Ok(()),
    }
}

/// A namespace in the making.
pub(crate) struct Target {
    db: Database,
    state: StateKv,
    notes: Keyspace,
    path: PathBuf,
}

impl Target {
    /// Makes an empty one.
    pub(crate) fn make(path: &Path) -> Result<Target, EngineError> {
        let wrong = |error: fjall::Error| EngineError::Store {
            path: path.to_path_buf(),
            error: error.to_string(),
        };
        let db = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .open()
            .map_err(wrong)?;
        let open = |name: &str| db.keyspace(name, table_options);
        let state = StateKv(open("state").map_err(wrong)?);
        let notes = open("history").map_err(wrong)?;
        open("log").map_err(wrong)?;
        Ok(Target {
            db,
            state,
            notes,
            path: path.to_path_buf(),
        })
    }

    fn wrong(&self, error: &fjall::Error) -> EngineError {
        EngineError::Store {
            path: self.path.clone(),
            error: error.to_string(),
        }
    }

    /// Adds pairs of a snapshot.
    pub(crate) fn put(&self, pairs: Vec<Pair>) -> Result<(), EngineError> {
        let mut batch = self.db.batch();
        for (key, value) in pairs {
            batch.insert(self.state.keyspace(), key, value);
        }
        batch.commit().map_err(|e| self.wrong(&e))
    }

    /// Applies records; those it has already are skipped.
    pub(crate) fn replay(&self, records: &[Record]) -> Result<(), EngineError> {
        let mut position = self.counters()?.position;
        for record in records {
            if record.position <= position {
                continue;
            }
            let changes = fastcache_namespace::replay(&self.state, record)?;
            let mut batch = self.db.batch();
            fill(&mut batch, self.state.keyspace(), changes);
            batch.commit().map_err(|e| self.wrong(&e))?;
            position = record.position;
        }
        Ok(())
    }

    pub(crate) fn counters(&self) -> Result<Counters, EngineError> {
        Ok(fastcache_namespace::counters(&self.state)?)
    }

    /// Files with chunks that are in no object: inode and path.
    pub(crate) fn incomplete(&self) -> Result<Vec<(Ino, String)>, EngineError> {
        Ok(fastcache_namespace::incomplete(&self.state)?)
    }

    /// Closes it: the bucket has it up to `shipped`, and epochs up to `epoch` are taken.
    pub(crate) fn finish(self, epoch: u64, shipped: u64) -> Result<Counters, EngineError> {
        let counters = self.counters()?;
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.notes, log::EPOCH_FLOOR, epoch.to_be_bytes().to_vec());
        batch.insert(&self.notes, log::SHIPPED, shipped.to_be_bytes().to_vec());
        batch.insert(&self.notes, log::UNSETTLED, 1u64.to_be_bytes().to_vec());
        batch.commit().map_err(|e| self.wrong(&e))?;
        Ok(counters)
    }
}
