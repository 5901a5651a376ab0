//! What the state needs of a store: ordered keys, and all changes of one operation at once.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A read failed; the text says where and why.
#[derive(Debug, thiserror::Error)]
#[error("the namespace store cannot be read: {0}")]
pub struct KvError(pub String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Takes a key and its value; false: no more are wanted.
pub type Take<'t> = dyn FnMut(&[u8], &[u8]) -> bool + 't;

/// Ordered keys and values, as they are after the last applied record.
pub trait Kv {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// Pairs whose key starts with `prefix` and is greater than or equal to `from`, in key order, at most `limit`.
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, KvError>;
    /// Shows the pairs from the key `first` on, before the key `end`, in key order, until `take` says that it wants no more.
    fn each(&self, first: &[u8], end: &[u8], take: &mut Take<'_>) -> Result<(), KvError>;
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

    fn each(&self, first: &[u8], end: &[u8], take: &mut Take<'_>) -> Result<(), KvError> {
        let mut pairs = range(&self.pairs, first, end);
        pairs.all(|(key, value)| take(key, value));
        Ok(())
    }
}

/// What has a key from `first` on and before `end`.
fn range<'m, V>(
    of: &'m BTreeMap<Vec<u8>, V>,
    first: &[u8],
    end: &[u8],
) -> impl Iterator<Item = (&'m Vec<u8>, &'m V)> {
    let keys = (Bound::Included(first), Bound::Excluded(end));
    // A map panics on a range that ends before it begins.
    (first < end)
        .then(|| of.range::<[u8], _>(keys))
        .into_iter()
        .flatten()
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

    /// Pairs as they are with the changes; see [`Kv::each`].
    pub fn each(&self, first: &[u8], end: &[u8], take: &mut Take<'_>) -> Result<(), KvError> {
        let mut laid = range(&self.changes, first, end).peekable();
        let mut goes_on = true;
        self.below.each(first, end, &mut |key, value| {
            while goes_on && let Some((k, v)) = laid.next_if(|(k, _)| k.as_slice() < key) {
                goes_on = v.as_ref().is_none_or(|v| take(k, v));
            }
            goes_on = goes_on
                && match laid.next_if(|(k, _)| k.as_slice() == key) {
                    Some((_, Some(v))) => take(key, v),
                    Some((_, None)) => true,
                    None => take(key, value),
                };
            goes_on
        })?;
        if goes_on {
            let mut rest = laid.filter_map(|(k, v)| Some((k, v.as_ref()?)));
            rest.all(|(k, v)| take(k, v));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every store of three keys under every change of them: what is walked over is what [`Overlay::scan`] tells, up to where no
    /// more is wanted.
    #[test]
    fn a_walk_sees_the_store_with_the_changes() {
        const KEYS: [&[u8]; 3] = [b"a", b"b", b"c"];
        for below in 0..8 {
            for laid in 0..27 {
                let mut kv = MemoryKv::default();
                let there = KEYS.iter().enumerate().filter(|(n, _)| below >> n & 1 == 1);
                kv.apply(
                    there
                        .map(|(_, k)| (k.to_vec(), Some(b"below".to_vec())))
                        .collect(),
                );
                let mut overlay = Overlay::new(&kv);
                for (n, key) in KEYS.iter().enumerate() {
                    match laid / 3_usize.pow(u32::try_from(n).unwrap()) % 3 {
                        0 => {}
                        1 => overlay.put(key.to_vec(), b"laid".to_vec()),
                        _ => overlay.remove(key.to_vec()),
                    }
                }
                let all = overlay.scan(b"", b"", 9).unwrap();
                for (first, end) in [(0, 3), (0, 2), (1, 3), (1, 1), (2, 1)] {
                    for wanted in 1..4 {
                        let end: &[u8] = KEYS.get(end).copied().unwrap_or(b"d");
                        let mut seen = Vec::new();
                        let mut take = |k: &[u8], v: &[u8]| {
                            seen.push((k.to_vec(), v.to_vec()));
                            seen.len() < wanted
                        };
                        overlay.each(KEYS[first], end, &mut take).unwrap();
                        let within = all
                            .iter()
                            .filter(|(k, _)| k.as_slice() >= KEYS[first] && k.as_slice() < end);
                        let expected: Vec<Pair> = within.take(wanted).cloned().collect();
                        assert_eq!(seen, expected, "{below} {laid} {first}");
                    }
                }
            }
        }
    }
}
