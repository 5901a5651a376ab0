//! The state in the embedded store, as the namespace reads and changes it.

use fastcache_namespace::{Kv, KvError, Pair, Take};
use fjall::{Keyspace, Readable};
use std::ops::Bound;

#[derive(Clone)]
pub(super) struct StateKv(pub(super) Keyspace);

/// The state as it was at one moment: what a read of several keys needs while changes go on.
pub(super) struct SnapshotKv<'a>(pub(super) fjall::Snapshot, pub(super) &'a Keyspace);

pub(super) fn read_error(error: fjall::Error) -> KvError {
    KvError(error.to_string())
}

/// A first and a last key.
type Keys = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The keys that start with `prefix`, from `from` on; `None` when there can be none. It ends with the prefix: the store
/// would walk over everything that was removed behind it, to find the next key that is there.
fn range_of(prefix: &[u8], from: &[u8]) -> Option<Keys> {
    let start = if from < prefix { prefix } else { from };
    if !start.starts_with(prefix) {
        return None;
    }
    let mut end = prefix.to_vec();
    while end.pop_if(|byte| *byte == u8::MAX).is_some() {}
    let end = match end.last_mut() {
        Some(byte) => {
            *byte += 1;
            Bound::Excluded(end)
        }
        None => Bound::Unbounded,
    };
    Some((Bound::Included(start.to_vec()), end))
}

/// The pairs of an iteration, at most `limit`.
fn collect(pairs: fjall::Iter, limit: usize) -> Result<Vec<Pair>, KvError> {
    let mut out = Vec::new();
    for guard in pairs.take(limit) {
        let (key, value) = guard.into_inner().map_err(read_error)?;
        out.push((key.to_vec(), value.to_vec()));
    }
    Ok(out)
}

/// Shows the pairs of an iteration as long as more are wanted.
fn show(pairs: fjall::Iter, take: &mut Take<'_>) -> Result<(), KvError> {
    for guard in pairs {
        let (key, value) = guard.into_inner().map_err(read_error)?;
        if !take(&key, &value) {
            break;
        }
    }
    Ok(())
}

impl Kv for StateKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(key).map_err(read_error)?.map(|v| v.to_vec()))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let range = range_of(prefix, from);
        range.map_or(Ok(Vec::new()), |range| collect(self.0.range(range), limit))
    }

    fn each(&self, first: &[u8], end: &[u8], take: &mut Take<'_>) -> Result<(), KvError> {
        show(self.0.range(first..end), take)
    }
}

impl Kv for SnapshotKv<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self
            .0
            .get(self.1, key)
            .map_err(read_error)?
            .map(|v| v.to_vec()))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let range = range_of(prefix, from);
        range.map_or(Ok(Vec::new()), |range| {
            collect(self.0.range(self.1, range), limit)
        })
    }

    fn each(&self, first: &[u8], end: &[u8], take: &mut Take<'_>) -> Result<(), KvError> {
        show(self.0.range(self.1, first..end), take)
    }
}

pub(super) fn fill(
    batch: &mut fjall::OwnedWriteBatch,
    state: &Keyspace,
    changes: fastcache_namespace::Changes,
) {
    for (key, value) in changes {
        match value {
            Some(value) => batch.insert(state, key, value),
            None => batch.remove(state, key),
        }
    }
}
