//! Goal: no block is ever in two states or in none. Method: random operations against the recount of `check`.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn region(len: u32) -> Extent {
    Extent { start: 100, len }
}

#[test]
fn small_goes_low_large_goes_high() {
    let s = Space::new(region(10_000), &[]);
    assert_eq!(s.allocate(2, false), Some(Extent { start: 100, len: 2 }));
    assert_eq!(
        s.allocate(1024, false),
        Some(Extent {
            start: 10_100 - 1024,
            len: 1024
        })
    );
    assert_eq!(s.allocate(3, false), Some(Extent { start: 102, len: 3 }));
    assert_eq!(s.release(Extent { start: 100, len: 2 }), 0);
    // Best fit: the hole that fits exactly.
    assert_eq!(s.allocate(2, false), Some(Extent { start: 100, len: 2 }));
    s.check(&[]);
}

#[test]
fn release_of_what_was_not_lent_changes_nothing() {
    let s = Space::new(region(1000), &[]);
    let e = s.allocate(10, false).unwrap();
    assert_eq!(s.release(e), 0);
    assert_eq!(s.release(e), 10);
    assert_eq!(s.release(Extent { start: 0, len: 5 }), 5);
    s.check(&[]);
}

#[test]
fn pieces_use_the_largest_first_and_all_or_nothing() {
    let owned = [
        Extent {
            start: 150,
            len: 50,
        },
        Extent {
            start: 400,
            len: 100,
        },
    ];
    let s = Space::new(region(1000), &owned);
    // Free: 50 + 200 + 600.
    let p = s.allocate_pieces(650).unwrap();
    assert_eq!(p.len(), 2);
    assert_eq!(p.iter().map(|e| e.len).sum::<u32>(), 650);
    assert!(s.allocate_pieces(650).is_none());
    s.check(&owned);
}

#[test]
fn shared_blocks_are_freed_once_and_after_the_flush() {
    let s = Space::new(region(1000), &[]);
    let a = s.allocate(10, false).unwrap();
    s.adopt(&[a]).unwrap();
    let fresh = s.allocate(4, false).unwrap();
    let kept = Extent {
        start: a.start + 4,
        len: 6,
    };
    s.adopt(&[fresh, kept]).unwrap();
    s.last_ticket.store(7, Ordering::Release);
    s.disown([a].into_iter());
    assert_eq!(s.levels().quarantined, 4);
    s.flushed(6);
    assert_eq!(s.levels().quarantined, 4);
    s.flushed(7);
    assert_eq!(s.levels().quarantined, 0);
    s.check(&[fresh, kept]);
    s.disown([fresh, kept].into_iter());
    s.flushed(7);
    assert_eq!(s.levels().used, 0);
    s.check(&[]);
    assert!(s.adopt(&[a]).is_err());
}

#[test]
fn the_reserve_is_for_headers() {
    let s = Space::new(region(6400), &[]);
    assert!(s.allocate(6400 - 99, false).is_none());
    let big = s.allocate(6300, false).unwrap();
    assert!(s.allocate(1, false).is_none());
    assert!(s.allocate(1, true).is_some());
    assert_eq!(s.levels().reserved, 99);
    s.release(big);
}

#[test]
fn random_operations_keep_every_block_in_one_state() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let s = Space::new(region(5000), &[]);
        let mut lent: Vec<Extent> = Vec::new();
        let mut bodies: Vec<Vec<Extent>> = Vec::new();
        for step in 1..800u64 {
            s.last_ticket.store(step, Ordering::Release);
            match rng.random_range(0..6) {
                0 => lent.extend(s.allocate(rng.random_range(1..200), rng.random())),
                1 => lent.extend(
                    s.allocate_pieces(rng.random_range(1..400))
                        .unwrap_or_default(),
                ),
                2 if !lent.is_empty() => {
                    let e = lent.swap_remove(rng.random_range(0..lent.len()));
                    assert_eq!(s.release(e), 0);
                }
                3 if !lent.is_empty() => {
                    let mut new = vec![lent.swap_remove(rng.random_range(0..lent.len()))];
                    if !bodies.is_empty() {
                        // Share a part of each extent of some body.
                        for e in &bodies[rng.random_range(0..bodies.len())] {
                            let skip = rng.random_range(0..e.len);
                            let len = rng.random_range(1..=e.len - skip);
                            new.push(Extent {
                                start: e.start + skip,
                                len,
                            });
                        }
                    }
                    s.adopt(&new).unwrap();
                    bodies.push(new);
                }
                4 if !bodies.is_empty() => {
                    let b = bodies.swap_remove(rng.random_range(0..bodies.len()));
                    s.disown(b.into_iter());
                }
                _ => s.flushed(step.saturating_sub(rng.random_range(0..50))),
            }
            if step % 20 == 0 {
                let mut owned: BTreeSet<u32> = BTreeSet::new();
                for b in &bodies {
                    for e in b {
                        owned.extend(e.start..e.end());
                    }
                }
                let owned: Vec<Extent> = owned
                    .into_iter()
                    .map(|start| Extent { start, len: 1 })
                    .collect();
                s.check(&owned);
            }
        }
        for b in bodies {
            s.disown(b.into_iter());
        }
        s.flushed(u64::MAX);
        for e in lent {
            assert_eq!(s.release(e), 0);
        }
        s.check(&[]);
        assert_eq!(s.levels().free, 5000);
    }
}
