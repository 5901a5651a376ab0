//! Goal: the budget holds, what was used last stays, and the count of bytes is right.

use super::*;
use crate::tests::key;

#[test]
fn the_least_recently_used_goes_first_and_the_budget_holds() {
    let meta = |n: usize| {
        Arc::new(ChunkMeta {
            crcs: vec![7; n].into(),
        })
    };
    let cache = CrcCache::new(SHARDS * 3 * cost(&meta(10)));
    // One shard: one header place.
    for version in 1..=3 {
        cache.insert(5, key(1, 0, version), meta(10));
    }
    assert!(cache.get(5, key(1, 0, 1)).is_some());
    cache.insert(5, key(1, 0, 4), meta(10));
    assert!(cache.get(5, key(1, 0, 2)).is_none());
    assert!(cache.get(5, key(1, 0, 1)).is_some());
    assert!(cache.get(6, key(1, 0, 1)).is_none());
    assert_eq!(cache.bytes(), 3 * cost(&meta(10)));
    cache.insert(5, key(1, 0, 4), meta(1));
    assert_eq!(cache.bytes(), 2 * cost(&meta(10)) + cost(&meta(1)));
    for version in 1..=4 {
        cache.remove(5, key(1, 0, version));
    }
    assert_eq!(cache.bytes(), 0);
    cache.insert(5, key(1, 0, 1), meta(1000));
    assert_eq!(cache.bytes(), 0);
}
