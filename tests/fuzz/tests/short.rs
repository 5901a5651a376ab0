//! Goal: no bytes make a reader panic. Method: the seeds, what once broke (`regressions/TARGET/`), and changed copies of both
//! for a bounded time, without coverage: the long form with coverage is `make test-fuzz`.
//!
//! FASTCACHE_FUZZ_SECONDS: for each target (1). FASTCACHE_FUZZ_SEED: to see a failure again.

#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_fuzz::{TARGETS, Target, seeds};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest input that is made, bytes.
const LEN_MAX: usize = 16 << 10;
/// Inputs that are kept to be changed again: those that were made last replace others.
const POOL_MAX: usize = 4096;

/// Numbers at which things go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7F,
    0xFF,
    4095,
    4096,
    0xFFFF,
    1 << 22,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    1 << 62,
    u64::MAX,
];

fn changed(rng: &mut StdRng, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = pool[rng.random_range(0..pool.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let rest = bytes.len() - at;
        match rng.random_range(0..8) {
            0 if rest > 0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if rest > 0 => bytes[at] = rng.random(),
            2 | 3 => {
                let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
                let len = [1, 2, 4, 8][rng.random_range(0..4)].min(rest);
                bytes[at..at + len].copy_from_slice(&number[..len]);
            }
            4 => bytes.truncate(at),
            5 => {
                let len = rng.random_range(0..64).min(rest);
                bytes.drain(at..at + len);
            }
            6 => {
                let other = &pool[rng.random_range(0..pool.len())];
                let from = rng.random_range(0..=other.len());
                let len = rng.random_range(0..=(other.len() - from));
                bytes.splice(at..at, other[from..from + len].iter().copied());
            }
            _ if rest > 0 => {
                let len = rng.random_range(1..=rest.min(64));
                let copy = bytes[at..at + len].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => {}
        }
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn run(name: &str, target: Target, seconds: u64, seed: u64) {
    let mut pool = seeds(name);
    assert!(!pool.is_empty(), "{name} has no seeds");
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("regressions")
        .join(name);
    for file in std::fs::read_dir(regressions).into_iter().flatten() {
        pool.push(std::fs::read(file.unwrap().path()).unwrap());
    }
    let check = |input: &[u8]| {
        if catch_unwind(|| target(input)).is_err() {
            let at = std::env::temp_dir().join(format!("fastcache-fuzz-{name}-{seed}"));
            let _ = std::fs::write(&at, input);
            panic!(
                "{name}: FASTCACHE_FUZZ_SEED={seed}; the input is in {}",
                at.display()
            );
        }
    };
    pool.iter().for_each(|input| check(input));
    let mut rng = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let mut inputs = 0u64;
    while began.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..100 {
            let input = changed(&mut rng, &pool);
            check(&input);
            inputs += 1;
            if rng.random_ratio(1, 8) {
                let at = rng.random_range(0..POOL_MAX);
                match pool.get_mut(at) {
                    Some(place) if at >= 64 => *place = input,
                    None => pool.push(input),
                    Some(_) => {}
                }
            }
        }
    }
    println!("{name}: {inputs} inputs in {seconds} s, seed {seed}");
}

#[test]
fn no_bytes_make_a_reader_panic() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = number("FASTCACHE_FUZZ_SECONDS").unwrap_or(1);
    let seed = number("FASTCACHE_FUZZ_SEED").unwrap_or_else(|| rand::rng().random());
    for (name, target) in TARGETS {
        run(name, target, seconds, seed);
    }
}

/// Writes the seeds where cargo-fuzz begins: into the folder that FASTCACHE_FUZZ_CORPUS names.
#[test]
#[ignore = "for `make test-fuzz`"]
fn write_the_corpus() {
    let to = std::env::var("FASTCACHE_FUZZ_CORPUS").unwrap();
    for (name, _) in TARGETS {
        let dir = Path::new(&to).join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for (n, seed) in seeds(name).iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{n}")), seed).unwrap();
        }
    }
}
