//! Layer reactor: what a task, a wake-up, a system call of the ring and a read of the disk cost.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastcache_benches::Core;
use fastcache_reactor::watch::labelled;
use fastcache_reactor::{Disk, DiskOptions, IoBuf, sleep, spawn, yield_now};
use std::rc::Rc;
use std::time::{Duration, Instant};

fn tasks(c: &mut Criterion, core: &Core) {
    c.bench_function("spawn a task and wait for it", |b| {
        b.iter_custom(|n| core.time(n, |_| async { spawn(async {}).await }));
    });
    c.bench_function("wake on the same core (yield)", |b| {
        b.iter_custom(|n| core.time(n, |_| yield_now()));
    });
    c.bench_function("the same with a label for the watchdog", |b| {
        b.iter_custom(|n| core.time(n, |_| labelled(1, yield_now())));
    });
    let other = Core::start();
    c.bench_function("run something on another core and come back", |b| {
        b.iter_custom(|n| {
            let (there, back) = (other.remote().clone(), core.remote().clone());
            core.wait(move || async move {
                let began = Instant::now();
                for _ in 0..n {
                    let event = std::sync::Arc::new(event_listener::Event::new());
                    let listener = event.listen();
                    let back = back.clone();
                    there.spawn(move || async move {
                        back.spawn(move || async move {
                            event.notify(1);
                        });
                    });
                    listener.await;
                }
                began.elapsed()
            })
        });
    });
    c.bench_function("a timer that is due at once", |b| {
        b.iter_custom(|n| core.time(n, |_| sleep(Duration::ZERO)));
    });
}

/// Blocks of the file that is read.
const BLOCKS: u64 = 16_384;

fn disk(c: &mut Criterion, core: &Core) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; usize::try_from(BLOCKS).unwrap() * 4096]).unwrap();
    let mut group = c.benchmark_group("disk");
    for (name, bytes) in [
        ("read 4 KiB, one at a time", 4096usize),
        ("read 1 MiB, one at a time", 1 << 20),
    ] {
        group.throughput(Throughput::Bytes(bytes as u64));
        let path = path.clone();
        group.bench_function(name, move |b| {
            let path = path.clone();
            b.iter_custom(move |n| {
                let path = path.clone();
                core.wait(move || async move {
                    let disk = Rc::new(Disk::open(&path, DiskOptions::default()).unwrap());
                    let places = BLOCKS * 4096 / bytes as u64;
                    let mut buf = IoBuf::alloc(bytes);
                    let began = Instant::now();
                    for at in 0..n {
                        let offset = at.wrapping_mul(0x9E37_79B9) % places * bytes as u64;
                        let (result, back) = disk.read(buf, offset).await;
                        assert_eq!(result.unwrap(), bytes);
                        buf = back;
                    }
                    began.elapsed()
                })
            });
        });
    }
    group.finish();
}

fn reactor(c: &mut Criterion) {
    let core = Core::start();
    tasks(c, &core);
    disk(c, &core);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = reactor
}
criterion_main!(benches);
