//! What the state machine asks of its store: an ordered map of bytes. And the two maps that need no disk: one
//! for tests, and one of pending writes over another.

use std::collections::BTreeMap;
use std::ops::Bound;

/// The store failed. The text says how.
#[derive(Debug, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreError(pub String);

/// Writes to be put down at once: a value, or `None` to remove the key.
pub type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Direction of a scan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Smallest key first.
    Up,
    /// Largest key first.
    Down,
}

/// An ordered map of bytes, as far as reading it goes.
pub trait Store {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// At most `limit` pairs with `from <= key < to`.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError>;
}

/// A store in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemStore {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemStore {
    /// Puts a batch down.
    pub fn write(&mut self, batch: Batch) {
        for (key, value) in batch {
            match value {
                Some(value) => self.map.insert(key, value),
                None => self.map.remove(&key),
            };
        }
    }

    /// Everything in it, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.map.iter()
    }
}

impl Store for MemStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.map.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.map.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let own = |(k, v): (&Vec<u8>, &Vec<u8>)| (k.clone(), v.clone());
        Ok(match order {
            Order::Up => range.take(limit).map(own).collect(),
            Order::Down => range.rev().take(limit).map(own).collect(),
        })
    }
}

/// Pending writes over a store: reads see both.
pub struct Overlay<'a, S: ?Sized> {
    base: &'a S,
    batch: Batch,
}

impl<'a, S: Store + ?Sized> Overlay<'a, S> {
    /// No pending writes yet.
    pub fn new(base: &'a S) -> Overlay<'a, S> {
        Overlay { base, batch: Batch::new() }
    }

    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.batch.insert(key, Some(value));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.batch.insert(key, None);
    }

    /// Adds a whole batch.
    pub fn extend(&mut self, batch: Batch) {
        self.batch.extend(batch);
    }

    /// The pending writes.
    pub fn into_batch(self) -> Batch {
        self.batch
    }
}

impl<S: Store + ?Sized> Store for Overlay<'_, S> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.batch.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let pending = (Bound::Included(from), Bound::Excluded(to));
        let removed =
            self.batch.range::<[u8], _>(pending).filter(|(_, value)| value.is_none()).count();
        // With as many more as may be taken away again, at least `limit` are left where the base was cut off.
        let base = self.base.scan(from, to, order, limit.saturating_add(removed))?;
        if self.batch.range::<[u8], _>(pending).next().is_none() {
            return Ok(base);
        }
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
        for (key, value) in self.batch.range::<[u8], _>(pending) {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(match order {
            Order::Up => merged.into_iter().take(limit).collect(),
            Order::Down => merged.into_iter().rev().take(limit).collect(),
        })
    }
}
