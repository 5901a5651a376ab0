//! Which chunks to evict: hit rates of several policies on the same reads. docs/adr/0009-eviction.md has the numbers.
//!
//! ```text
//! cargo run --release -p fastcache-benches --bin eviction
//! ```
//!
//! A cache of 10,000 chunks of one size. One *pass* over a chunk is four reads in the same moment, as a program makes
//! them of a chunk of 4 MiB; it is a hit when the chunk was there at the first of them. The clock advances by one tick
//! (100 ms) with every fourth pass: 160 MB/s. The random numbers have a fixed seed.

use fastcache_agent::order::Order;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{HashMap, HashSet, VecDeque};

/// Chunks that fit.
const CAPACITY: usize = 10_000;
/// Reads of a chunk in one pass.
const READS: usize = 4;
/// Passes in a tick.
const PASSES_A_TICK: u32 = 4;

/// A policy with its cache.
trait Policy {
    /// Reads a chunk; whether it was there.
    fn read(&mut self, key: u32, now: u32) -> bool;
}

/// Least recently used.
#[derive(Default)]
struct Lru {
    order: Recency,
}

/// Keys by the time of their last use.
#[derive(Default)]
struct Recency {
    last: HashMap<u32, u64>,
    queue: VecDeque<(u32, u64)>,
    clock: u64,
}

impl Recency {
    fn touch(&mut self, key: u32) {
        self.clock += 1;
        self.last.insert(key, self.clock);
        self.queue.push_back((key, self.clock));
    }

    fn remove(&mut self, key: u32) -> bool {
        self.last.remove(&key).is_some()
    }

    fn pop(&mut self) -> Option<u32> {
        while let Some((key, at)) = self.queue.pop_front() {
            if self.last.get(&key) == Some(&at) {
                self.last.remove(&key);
                return Some(key);
            }
        }
        None
    }

    fn has(&self, key: u32) -> bool {
        self.last.contains_key(&key)
    }

    fn len(&self) -> usize {
        self.last.len()
    }
}

impl Policy for Lru {
    fn read(&mut self, key: u32, _now: u32) -> bool {
        let is_hit = self.order.has(key);
        if !is_hit && self.order.len() >= CAPACITY {
            self.order.pop();
        }
        self.order.touch(key);
        is_hit
    }
}

/// Half on probation, half protected; a second read protects.
#[derive(Default)]
struct Segmented {
    probation: Recency,
    protected: Recency,
}

impl Policy for Segmented {
    fn read(&mut self, key: u32, _now: u32) -> bool {
        if self.protected.has(key) {
            self.protected.touch(key);
            return true;
        }
        if self.probation.remove(key) {
            self.protected.touch(key);
            if self.protected.len() > CAPACITY * 8 / 10
                && let Some(old) = self.protected.pop()
            {
                self.probation.touch(old);
            }
            return true;
        }
        if self.probation.len() + self.protected.len() >= CAPACITY && self.probation.pop().is_none()
        {
            self.protected.pop();
        }
        self.probation.touch(key);
        false
    }
}

/// SIEVE (Zhang and others, NSDI 2024): one queue, a bit a key, a hand that goes from the oldest to the newest.
#[derive(Default)]
struct Sieve {
    queue: VecDeque<u32>,
    visited: HashMap<u32, bool>,
    /// Distance of the hand from the oldest.
    hand: usize,
}

impl Policy for Sieve {
    fn read(&mut self, key: u32, _now: u32) -> bool {
        if let Some(visited) = self.visited.get_mut(&key) {
            *visited = true;
            return true;
        }
        while self.queue.len() >= CAPACITY {
            if self.hand >= self.queue.len() {
                self.hand = 0;
            }
            let at = self.queue[self.hand];
            if self.visited.insert(at, false) == Some(true) {
                self.hand += 1;
            } else {
                self.queue.remove(self.hand);
                self.visited.remove(&at);
            }
        }
        self.queue.push_back(key);
        self.visited.insert(key, false);
        false
    }
}

/// S3-FIFO (Yang and others, SOSP 2023): a small queue of 10 %, a main one, and ghosts.
#[derive(Default)]
struct S3Fifo {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    uses: HashMap<u32, u8>,
    ghosts: VecDeque<u32>,
    is_ghost: HashSet<u32>,
}

impl S3Fifo {
    fn evict(&mut self) {
        if self.small.len() >= CAPACITY / 10
            && let Some(key) = self.small.pop_front()
        {
            if self.uses[&key] > 1 {
                self.uses.insert(key, 0);
                self.main.push_back(key);
                return;
            }
            self.uses.remove(&key);
            self.is_ghost.insert(key);
            self.ghosts.push_back(key);
            if self.ghosts.len() > CAPACITY
                && let Some(old) = self.ghosts.pop_front()
            {
                self.is_ghost.remove(&old);
            }
        } else if let Some(key) = self.main.pop_front() {
            match self.uses[&key] {
                0 => drop(self.uses.remove(&key)),
                n => {
                    self.uses.insert(key, n - 1);
                    self.main.push_back(key);
                }
            }
        }
    }
}

impl Policy for S3Fifo {
    fn read(&mut self, key: u32, _now: u32) -> bool {
        if let Some(uses) = self.uses.get_mut(&key) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        while self.uses.len() >= CAPACITY {
            self.evict();
        }
        self.uses.insert(key, 0);
        if self.is_ghost.remove(&key) {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
        }
        false
    }
}

/// 2Q (Johnson and Shasha, VLDB 1994): a quarter first in first out, ghosts of half the cache, the rest by use.
#[derive(Default)]
struct TwoQueues {
    first: VecDeque<u32>,
    is_first: HashSet<u32>,
    kept: Recency,
    ghosts: VecDeque<u32>,
    is_ghost: HashSet<u32>,
}

impl Policy for TwoQueues {
    fn read(&mut self, key: u32, _now: u32) -> bool {
        if self.kept.has(key) {
            self.kept.touch(key);
            return true;
        }
        if self.is_first.contains(&key) {
            return true;
        }
        if self.first.len() + self.kept.len() >= CAPACITY {
            if self.first.len() > CAPACITY / 4
                && let Some(old) = self.first.pop_front()
            {
                self.is_first.remove(&old);
                self.is_ghost.insert(old);
                self.ghosts.push_back(old);
                if self.ghosts.len() > CAPACITY / 2
                    && let Some(old) = self.ghosts.pop_front()
                {
                    self.is_ghost.remove(&old);
                }
            } else {
                self.kept.pop();
            }
        }
        if self.is_ghost.remove(&key) {
            self.kept.touch(key);
        } else {
            self.is_first.insert(key);
            self.first.push_back(key);
        }
        false
    }
}

/// What the agent does.
struct Ours {
    order: Order<u32>,
    here: HashSet<u32>,
}

impl Default for Ours {
    fn default() -> Self {
        let mut order = Order::default();
        order.set_capacity(CAPACITY as u64);
        Ours {
            order,
            here: HashSet::new(),
        }
    }
}

impl Policy for Ours {
    fn read(&mut self, key: u32, now: u32) -> bool {
        if self.here.contains(&key) {
            self.order.touch(key, now);
            return true;
        }
        if self.here.len() >= CAPACITY {
            let victim = self.order.first_to_go().next();
            if let Some(victim) = victim {
                self.here.remove(&victim);
                self.order.remove(victim);
            }
        }
        self.here.insert(key);
        self.order.insert(key, 1, now);
        false
    }
}

/// Keys by Zipf's law: key `n` is read in proportion to `1 / n^s`.
struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    fn new(keys: u32, s: f64) -> Zipf {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|n| {
            sum += f64::from(n).powf(-s);
            sum
        });
        Zipf {
            sums: sums.collect(),
        }
    }

    fn draw(&self, rng: &mut StdRng) -> u32 {
        let at = rng.random::<f64>() * self.sums.last().copied().unwrap_or(1.0);
        u32::try_from(self.sums.partition_point(|sum| *sum < at)).unwrap_or(0)
    }
}

/// Passes over chunks, and whether each counts for the hit rate.
type Passes = Vec<(u32, bool)>;

/// A hot set of 60 % of the cache in random order, a pass over three times the cache, the hot set again. Counts the hot
/// set from the pass on.
fn hot_set_and_pass(rng: &mut StdRng) -> Passes {
    let hot = 6_000;
    let mut passes = Passes::new();
    passes.extend((0..60_000).map(|_| (rng.random_range(0..hot), false)));
    for round in 0..3 {
        for key in 0..30_000 {
            passes.push((1_000_000 * (round + 1) + key, false));
            // It is read on meanwhile, a little.
            if key % 10 == 0 {
                passes.push((rng.random_range(0..hot), true));
            }
        }
        passes.extend((0..12_000).map(|_| (rng.random_range(0..hot), true)));
    }
    passes
}

fn zipf(rng: &mut StdRng) -> Passes {
    let zipf = Zipf::new(100_000, 0.9);
    (0..500_000)
        .map(|i| (zipf.draw(rng), i >= 100_000))
        .collect()
}

fn a_loop(_: &mut StdRng) -> Passes {
    let keys = 13_000;
    (0..keys * 20).map(|i| (i % keys, i >= keys * 3)).collect()
}

/// Zipf beside passes over files that are never read again.
fn mixed(rng: &mut StdRng) -> Passes {
    let zipf = Zipf::new(50_000, 0.9);
    let mut next = 1_000_000;
    let mut passes = Passes::new();
    while passes.len() < 500_000 {
        if rng.random_range(0..2_000) == 0 {
            for _ in 0..2_000 {
                passes.push((next, false));
                next += 1;
                passes.push((zipf.draw(rng), true));
            }
        }
        passes.push((zipf.draw(rng), true));
    }
    passes
}

/// The hot set moves on: what was kept has to make room.
fn moving(rng: &mut StdRng) -> Passes {
    let hot = 8_000;
    (0..10)
        .flat_map(|set| std::iter::repeat_n(set, 40_000))
        .map(|set| (set * hot + rng.random_range(0..hot), true))
        .collect()
}

fn hit_rate(policy: &mut dyn Policy, passes: &Passes) -> f64 {
    let (mut hits, mut counted) = (0u32, 0u32);
    for (pass, (key, counts)) in (0u32..).zip(passes) {
        let now = pass / PASSES_A_TICK;
        let is_hit = policy.read(*key, now);
        for _ in 1..READS {
            policy.read(*key, now);
        }
        if *counts {
            counted += 1;
            hits += u32::from(is_hit);
        }
    }
    f64::from(hits) / f64::from(counted.max(1)) * 100.0
}

fn main() {
    type Workload = (&'static str, fn(&mut StdRng) -> Passes);
    let workloads: [Workload; 5] = [
        ("hot set and passes", hot_set_and_pass),
        ("zipf 0.9", zipf),
        ("loop of 1.3 caches", a_loop),
        ("zipf and passes", mixed),
        ("moving hot set", moving),
    ];
    type Make = fn() -> Box<dyn Policy>;
    let policies: [(&str, Make); 6] = [
        ("LRU", || Box::<Lru>::default()),
        ("segmented", || Box::<Segmented>::default()),
        ("SIEVE", || Box::<Sieve>::default()),
        ("S3-FIFO", || Box::<S3Fifo>::default()),
        ("2Q", || Box::<TwoQueues>::default()),
        ("ours", || Box::<Ours>::default()),
    ];
    print!("| hit rate, % |");
    policies.iter().for_each(|(name, _)| print!(" {name} |"));
    println!("\n|---|{}", "---|".repeat(policies.len()));
    for (name, make) in workloads {
        let passes = make(&mut StdRng::seed_from_u64(1));
        print!("| {name} |");
        for (_, policy) in &policies {
            print!(" {:.1} |", hit_rate(policy().as_mut(), &passes));
        }
        println!();
    }
}
