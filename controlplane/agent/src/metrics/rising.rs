//! Counts of the data plane, which start at 0 again when it does: what is exported of them only rises.

use metrics::counter;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counts of the data plane: what it said last, and what is exported.
static RISEN: Mutex<BTreeMap<String, Risen>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Risen {
    last: u64,
    sum: u64,
}

/// What a count of the data plane rose by since it was last looked at (all of it when it began anew), and its sum.
pub(super) fn risen(key: &str, now: u64) -> (u64, u64) {
    let mut all = RISEN.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = all.entry(key.to_owned()).or_default();
    let rise = if now >= entry.last {
        now - entry.last
    } else {
        now
    };
    entry.last = now;
    entry.sum += rise;
    (rise, entry.sum)
}

/// Raises a counter to what the data plane counts now.
pub(super) fn total(name: &'static str, label: Option<(&'static str, &str)>, now: u64) {
    let key = format!("{name}/{}", label.map_or("", |(_, v)| v));
    let (rise, _) = risen(&key, now);
    match label {
        Some((k, v)) => counter!(name, k => v.to_owned()).increment(rise),
        None => counter!(name).increment(rise),
    }
}
