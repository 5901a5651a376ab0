//! The rules of what a chunk id holds: one current body and, while that is pending, the one it replaced. The live index
//! and the replay of the journal use the same code, so that they cannot disagree.

use crate::bodies::Bodies;
use fastcache_types::{ChunkId, ChunkKey, Ino};
use std::collections::BTreeMap;

/// What the rules need to know of a body.
pub(crate) trait Body {
    fn key(&self) -> ChunkKey;
    /// Marks it clean.
    fn clean(&self);
}

/// Bodies by id, ordered by file and index.
pub(crate) struct Slots<B> {
    pub(crate) current: Bodies<B>,
    /// Ids whose current body waits for a SEAL record of its file, with the body it replaced.
    pub(crate) pending: BTreeMap<ChunkId, Option<B>>,
}

impl<B> Default for Slots<B> {
    fn default() -> Self {
        Slots {
            current: Bodies::default(),
            pending: BTreeMap::new(),
        }
    }
}

/// All ids of a file.
pub(crate) fn ids_of(ino: Ino) -> std::ops::RangeInclusive<ChunkId> {
    ChunkId { ino, index: 0 }..=ChunkId {
        ino,
        index: u32::MAX,
    }
}

impl<B: Body> Slots<B> {
    /// Sets the current body of an id. Bodies that nothing can bring back any more go to `dead`.
    pub(crate) fn put(&mut self, body: B, is_pending: bool, dead: &mut Vec<B>) {
        let id = body.key().id();
        let old = self.current.insert(body);
        match (self.pending.remove(&id), is_pending) {
            // A pending body after another: the sealed one stays the one to go back to.
            (Some(prior), true) => {
                dead.extend(old);
                self.pending.insert(id, prior);
            }
            (Some(prior), false) => {
                dead.extend(old);
                dead.extend(prior);
            }
            (None, true) => {
                self.pending.insert(id, old);
            }
            (None, false) => dead.extend(old),
        }
    }

    /// A SEAL record of this file: its pending bodies are final.
    pub(crate) fn confirm(&mut self, ino: Ino, dead: &mut Vec<B>) {
        while let Some((&id, _)) = self.pending.range(ids_of(ino)).next() {
            dead.extend(self.pending.remove(&id).flatten());
        }
    }

    /// Marks this version clean where it is held. Whether it was found.
    pub(crate) fn clean(&mut self, key: ChunkKey) -> bool {
        let is_it = |b: &&B| b.key() == key;
        if let Some(body) = self.current.get(&key.id()).filter(is_it) {
            body.clean();
            return true;
        }
        if let Some(prior) = self
            .pending
            .get(&key.id())
            .and_then(Option::as_ref)
            .filter(is_it)
        {
            prior.clean();
            return true;
        }
        false
    }

    /// Removes this version where it is held. A pending body leaves the one it replaced behind.
    pub(crate) fn remove(&mut self, key: ChunkKey) -> Option<B> {
        let id = key.id();
        if self.current.get(&id).is_some_and(|b| b.key() == key) {
            let old = self.current.remove(&id);
            if let Some(Some(prior)) = self.pending.remove(&id) {
                self.current.insert(prior);
            }
            return old;
        }
        let prior = self.pending.get_mut(&id)?;
        if prior.as_ref().is_some_and(|b| b.key() == key) {
            return prior.take();
        }
        None
    }
}
