//! Goal: what a cluster costs stays within the bounds of docs/scaling.md, with 3 and with 30 nodes. Method: one simulated world
//! each, from a seed; `FASTCACHE_SIM_SEED` has another one. A seed that fails is printed, and fails again.

use fastcache_sim::measure::keeps_bounds;
use fastcache_sim::{Report, measure};

fn seed() -> u64 {
    let set = std::env::var("FASTCACHE_SIM_SEED");
    set.ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn run(nodes: usize) -> Report {
    let report = measure(nodes, seed());
    if let Err(why) = keeps_bounds(&report) {
        panic!("seed {}: {why}\n{report:#?}", seed());
    }
    report
}

#[test]
fn three_nodes_keep_the_bounds_and_a_seed_does_the_same_again() {
    assert_eq!(run(3), run(3));
}

#[test]
fn thirty_nodes_keep_the_bounds() {
    run(30);
}
