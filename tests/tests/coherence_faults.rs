//! Promise P4 while things fail: what any mount answers is what one file system would have answered, while processes of three
//! nodes and of their coordinator are killed, stand, and are cut off from each other.
//!
//! In rounds. In each, two programs of each node, processes of their own, work on the same few names, files and time stamps,
//! while a schedule of faults goes on. An operation that fails, with an error that docs/semantics.md has for that fault, may
//! have been done or not, from then on to the end of the round; any other error is a failure. When everything is back, every
//! node reads all of it, and what was answered must have an order (`fastcache_tests::oracle`). Names, registers and files that
//! are written in place have nothing to do with each other, and are checked apart.
//!
//! `FASTCACHE_ORACLE_OPS` for more, with a seed that differs each time; the seed and the schedule are printed, and
//! `FASTCACHE_ORACLE_SEED` replays the schedule and each program's choices.

mod coherence_faults {
    pub mod hurt;
    pub mod round;
}

use coherence_faults::hurt::{self, Hurt};
use coherence_faults::round::Round;
use fastcache_tests::{number, on_an_island, seed, serial};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use std::time::Instant;

/// Rounds of the short form: each fault once.
const ROUNDS: usize = Hurt::KINDS.div_ceil(HURTS);
/// Faults in a round, which overlap.
const HURTS: usize = 2;

#[test]
fn any_mount_answers_as_one_file_system_would_while_things_fail() {
    let _one = serial();
    let ops = number("FASTCACHE_ORACLE_OPS", 0);
    let seed = seed("FASTCACHE_ORACLE_SEED", "FASTCACHE_ORACLE_OPS");
    println!("FASTCACHE_ORACLE_SEED={seed}");
    let rng = &mut StdRng::seed_from_u64(seed);
    on_an_island(&[], || {
        let since = Instant::now();
        let mut cluster = hurt::start();
        let (mut kinds, mut done, mut conflicts) = (Vec::new(), 0, 0);
        for n in 0.. {
            if n >= ROUNDS && done >= ops {
                break;
            }
            let mut hurts = Vec::new();
            while hurts.len() < HURTS {
                // Each kind as often as any other.
                if kinds.is_empty() {
                    kinds.extend(0..Hurt::KINDS);
                    kinds.shuffle(rng);
                }
                hurts.extend(kinds.pop().map(|kind| Hurt::of(kind, rng)));
            }
            let round = Round::prepare(&cluster, n, seed);
            let told = round.run(&mut cluster, hurts);
            println!("round {n}, {:?}: {told:?}", since.elapsed());
            done += told.operations;
            conflicts += told.conflict_files;
        }
        println!(
            "{done} operations in {:?}, {conflicts} conflict files",
            since.elapsed()
        );
        cluster.end();
    });
}
