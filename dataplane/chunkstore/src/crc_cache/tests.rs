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

#[test]
fn a_smaller_budget_holds_at_once() {
    let meta = Arc::new(ChunkMeta {
        crcs: vec![7; 10].into(),
    });
    let cache = CrcCache::new(SHARDS * 8 * cost(&meta));
    for header in 0..1000 {
        cache.insert(header, key(1, header, 1), meta.clone());
    }
    let all = cache.bytes();
    assert!(all > SHARDS * 2 * cost(&meta) && all <= SHARDS * 8 * cost(&meta));
    cache.set_budget(SHARDS * 2 * cost(&meta));
    assert_eq!(cache.bytes(), SHARDS * 2 * cost(&meta));
    cache.set_budget(SHARDS * 8 * cost(&meta));
    for header in 0..1000 {
        cache.insert(header, key(1, header, 1), meta.clone());
    }
    assert_eq!(cache.bytes(), all);
    cache.set_budget(0);
    assert_eq!(cache.bytes(), 0);
}
