//! Processes end, stand and come back while programs of three nodes go on.

use super::files::{CACHED, SOON, is_long};
use fastcache_tests::{Busy, Cluster, Plane, seed, serial, wait_until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn coordinator_killed_under_the_load_of_three_nodes() {
    let _one = serial();
    let outage = Duration::from_secs(if is_long() { 30 } else { 5 });
    // Renewed each quarter, now and then one later on a busy machine: what is cached can be read all the time that the
    // coordinator is away.
    let lease = outage * if is_long() { 2 } else { 3 };
    let mut cluster = Cluster::start(3, &["--lease", &lease.as_secs().to_string()]);
    let (nodes, coordinator) = (&cluster.nodes, &mut cluster.coordinator);
    let coordinator = Mutex::new(coordinator);
    let busy = Busy::during(nodes, |busy| {
        let mut coordinator = coordinator.lock().expect("lock");
        let reads = |n: usize| busy.seen[n].cached_reads.load(Ordering::Relaxed);
        // The first heartbeat comes before the data plane was heard of, and renews nothing: load until the second.
        std::thread::sleep(lease * 5 / 8);
        coordinator.kill();
        let since = Instant::now();
        let mut before: Vec<u64> = (0..3).map(reads).collect();
        while since.elapsed() < outage {
            std::thread::sleep(outage / 5);
            for (n, before) in before.iter_mut().enumerate() {
                let now = reads(n);
                assert!(now > *before + 3, "node {n} reads what it has cached");
                *before = now;
            }
        }
        coordinator.start();
        // It does not know what it granted before: changes wait until that is over.
        let so_far = busy.count();
        wait_until("changes are made again", lease + SOON, || {
            busy.count() > so_far
        });
    });
    let (reads, writes) = busy.errors();
    assert_eq!(reads, Vec::<String>::new());
    if !is_long() {
        // They waited.
        assert_eq!(writes, Vec::<String>::new());
    }
    for seen in &busy.seen {
        let slowest = seen.slowest_cached_ms.load(Ordering::Relaxed);
        assert!(u128::from(slowest) < CACHED.as_millis(), "{slowest} ms");
    }
}

/// What is done to a cluster under load.
#[derive(Clone, Copy, Debug)]
enum Hurt {
    Kill(usize, Plane),
    Stop(usize, Plane),
    KillCoordinator,
}

impl Hurt {
    fn random(rng: &mut StdRng) -> Hurt {
        let node = rng.random_range(0..3);
        let plane = match rng.random_bool(0.5) {
            true => Plane::Agent,
            false => Plane::Data,
        };
        match rng.random_range(0..5) {
            0 | 1 => Hurt::Kill(node, plane),
            2 | 3 => Hurt::Stop(node, plane),
            _ => Hurt::KillCoordinator,
        }
    }
}

/// Any process of three nodes, and the coordinator, killed or standing for up to two leases, two things at a time.
#[test]
fn anything_killed_or_standing_under_the_load_of_three_nodes() {
    const LEASE: Duration = Duration::from_secs(3);
    let _one = serial();
    let seed = seed("FASTCACHE_CLUSTER_SEED", "FASTCACHE_FAULTS");
    println!("FASTCACHE_CLUSTER_SEED={seed}");
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3, &["--lease", &LEASE.as_secs().to_string()]);
    let (nodes, coordinator) = (&cluster.nodes, Mutex::new(&mut cluster.coordinator));
    let mut is_killed = [false; 3];
    let rounds = if is_long() { 60 } else { 3 };
    let busy = Busy::during(nodes, |busy| {
        for round in 0..rounds {
            let so_far = busy.count();
            let hurts = [Hurt::random(rng), Hurt::random(rng)];
            let pause = LEASE.mul_f64(rng.random_range(0.1..2.0));
            println!("round {round}: {hurts:?}, {pause:?}");
            let mut stopped = Vec::new();
            for hurt in hurts {
                match hurt {
                    Hurt::Kill(node, plane) => {
                        is_killed[node] |= plane == Plane::Data;
                        nodes[node].kill(plane);
                    }
                    // It may be the one that was just killed.
                    Hurt::Stop(node, plane) if nodes[node].pid(plane).is_none() => {}
                    Hurt::Stop(node, plane) => stopped.push(nodes[node].stop(plane)),
                    Hurt::KillCoordinator => coordinator.lock().expect("lock").kill(),
                }
            }
            std::thread::sleep(pause);
            drop(stopped);
            let mut coordinator = coordinator.lock().expect("lock");
            if coordinator.pid() == 0 {
                coordinator.start();
            }
            for node in nodes {
                node.wait_for_return();
            }
            wait_until("the load goes on", SOON, || busy.count() > so_far + 15);
        }
    });
    for (node, seen) in busy.seen.iter().enumerate() {
        let errors = [&seen.read_errors, &seen.write_errors];
        let errors = errors.map(|e| e.lock().expect("lock").clone()).concat();
        assert!(is_killed[node] || errors.is_empty(), "{node}: {errors:?}");
        assert_eq!(nodes[node].stat("checksum_errors"), 0);
    }
}

#[test]
fn nodes_restarted_one_after_the_other_under_load() {
    let _one = serial();
    let cluster = Cluster::start(3, &["--lease", "4"]);
    let rounds = if is_long() { 10 } else { 1 };
    let busy = Busy::during(&cluster.nodes, |busy| {
        for round in 0..rounds {
            for n in 0..3 {
                let so_far = busy.count();
                busy.without(n, |node| {
                    // In order, and not.
                    if (round + n) % 3 == 2 {
                        for plane in [Plane::Supervisor, Plane::Data, Plane::Agent] {
                            assert!(node.kill(plane));
                        }
                    } else {
                        node.down();
                    }
                    node.up();
                });
                wait_until("the load goes on", SOON, || busy.count() > so_far + 30);
            }
        }
    });
    assert_eq!(busy.errors(), (Vec::new(), Vec::new()));
}
