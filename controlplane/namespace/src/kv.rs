//! What the state needs of a store: ordered keys, and all changes of one operation at once.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A read failed; the text says where and why.
#[derive(Debug, thiserror::Error)]
#[error("the namespace store cannot be read: {0}")]
pub struct KvError(pub String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Ordered keys and values, as they are after the last applied record.
pub trait Kv {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// Pairs whose key starts with `prefix` and is greater than or equal to `from`, in key order, at most `limit`.
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, KvError>;
}

/// Changes by key; `None` removes.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A store in memory, for tests and simulations.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct MemoryKv {
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemoryKv {
    /// Applies the changes of one operation.
    pub fn apply(&mut self, changes: Changes) {
        for (key, value) in changes {
            match value {
                Some(v) => self.pairs.insert(key, v),
                None => self.pairs.remove(&key),
            };
        }
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.pairs.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let start = if from < prefix { prefix } else { from };
        Ok(self
            .pairs
            .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .take(limit)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }
}

/// A store with changes laid over it.
pub(crate) struct Overlay<'a, K: Kv> {
    below: &'a K,
    pub changes: Changes,
}

impl<'a, K: Kv> Overlay<'a, K> {
    pub fn new(below: &'a K) -> Self {
        Overlay {
            below,
            changes: Changes::new(),
        }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.changes.get(key) {
            Some(v) => Ok(v.clone()),
            None => self.below.get(key),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// Pairs as they are with the changes; see [`Kv::scan`].
    pub fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        let start = if from < prefix { prefix } else { from };
        let laid: Vec<_> = self
            .changes
            .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .collect();
        let below = self
            .below
            .scan(prefix, start, limit.saturating_add(laid.len()))?;
        if laid.is_empty() {
            return Ok(below);
        }
        let mut all: BTreeMap<Vec<u8>, Vec<u8>> = below.into_iter().collect();
        for (k, v) in laid {
            match v {
                Some(v) => all.insert(k.clone(), v.clone()),
                None => all.remove(k),
            };
        }
        Ok(all.into_iter().take(limit).collect())
    }
}
