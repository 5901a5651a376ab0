//! Layer journal: a change that is written to the ring, one at a time and 64 together; a seal of one small chunk with all it
//! writes; and replay, which is what a start does with 100,000 chunks. On the disk of the temporary folder.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench"
)]

#[path = "../dataplane/chunkstore/tests/warm_restart/image.rs"]
mod image;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastcache_benches::{Core, chunk, key, store, store_options};
use fastcache_chunkstore::Store;
use fastcache_reactor::spawn;
use std::time::{Duration, Instant};

/// Chunks of the replay.
const CHUNKS: u64 = 100_000;

fn journal(c: &mut Criterion) {
    let core = Core::start();
    let dir = tempfile::tempdir().unwrap();
    let live = store(&core, &dir.path().join("live"), 1 << 30);
    {
        let live = live.clone();
        core.wait(move || async move {
            spawn(async move { live.background().await }).detach();
        });
    }
    // Marking what is clean already is journaled all the same.
    let one = key(1, 0, 1);
    {
        let live = live.clone();
        core.wait(move || async move {
            live.seal(vec![chunk(one, 4096)], None).await.unwrap();
        });
    }
    c.bench_function("append: a record of one caller, written", |b| {
        b.iter_custom(|n| {
            let live = live.clone();
            core.time(n, move |_| {
                let live = live.clone();
                async move {
                    assert_eq!(live.mark_clean(&[one]).await.unwrap().len(), 1);
                }
            })
        });
    });
    let mut group = c.benchmark_group("append");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 callers at once, a record each, written", |b| {
        b.iter_custom(|n| {
            let live = live.clone();
            core.time(n, move |_| {
                let live = live.clone();
                async move {
                    let calls: Vec<_> = (0..64)
                        .map(|_| {
                            let live = live.clone();
                            spawn(async move { live.mark_clean(&[one]).await })
                        })
                        .collect();
                    for call in calls {
                        call.await.unwrap();
                    }
                }
            })
        });
    });
    group.finish();
    c.bench_function("seal a chunk of 4 KiB: data, header, record", |b| {
        b.iter_custom(|n| {
            let live = live.clone();
            core.time(n, move |at| {
                let live = live.clone();
                async move {
                    let key = key(2, (at % 64) as u32, at + 2);
                    live.seal(vec![chunk(key, 4096)], None).await.unwrap();
                    // What was replaced is reused after a flush.
                    if at % 1024 == 1023 {
                        live.flush().await.unwrap();
                    }
                }
            })
        });
    });

    let path = dir.path().join("replay");
    image::make(&path, CHUNKS, CHUNKS).unwrap();
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(CHUNKS));
    group.bench_function("start on 100,000 chunks", |b| {
        b.iter_custom(|n| {
            let path = path.clone();
            core.wait(move || async move {
                let mut took = Duration::ZERO;
                for _ in 0..n {
                    let began = Instant::now();
                    // The one before may still be closing.
                    let (opened, chunks) = loop {
                        match Store::open(store_options(&path, 0)).await {
                            Ok((opened, recovered)) => break (opened, recovered.chunks),
                            Err(fastcache_chunkstore::StoreError::Busy) => {
                                fastcache_reactor::sleep(Duration::from_millis(1)).await;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    };
                    took += began.elapsed();
                    assert_eq!(chunks, CHUNKS);
                    drop(opened);
                }
                took
            })
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2));
    targets = journal
}
criterion_main!(benches);
