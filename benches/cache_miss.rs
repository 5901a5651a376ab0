//! Layer cache, a miss: a read of a chunk of 64 KiB that only the cloud has. The cloud is a table in RAM, so this is what the
//! data plane adds: the question to the agent, the slot, the checksum, the answer. Storing the chunk goes on behind it.

#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench, with the helpers of tests"
)]

#[path = "../dataplane/cache/tests/promises/agent.rs"]
mod agent;
#[path = "../dataplane/cache/tests/promises/node.rs"]
mod node;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::rc::Rc;
use std::time::{Duration, Instant};

fn cache_miss(c: &mut Criterion) {
    let mut group = c.benchmark_group("miss");
    group.throughput(Throughput::Bytes(node::CHUNK as u64));
    group.bench_function("read 64 KiB, a chunk", |b| {
        b.iter_custom(|n| {
            let dir = tempfile::tempdir().unwrap();
            node::on_reactor(|| async {
                let agent = Rc::new(agent::Agent::default());
                let node = node::start(dir.path(), &agent, 1).await;
                let ino = node.create("f").await;
                node.write(ino, 0, &node::pattern(1, node::CHUNK))
                    .await
                    .unwrap();
                node.fsync(ino).await.unwrap();
                node.upload().await;
                let mut took = Duration::ZERO;
                for _ in 0..n {
                    // The promotion of the last round has to be there to be evicted.
                    while node.evict(ino).await == 0 {
                        fastcache_reactor::sleep(Duration::from_micros(100)).await;
                    }
                    let began = Instant::now();
                    let got = node.read(ino, 0, node::CHUNK).await.unwrap();
                    took += began.elapsed();
                    assert_eq!(got.len(), node::CHUNK);
                }
                assert_eq!(node.fs.stats().fetched_chunks, n);
                took
            })
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2));
    targets = cache_miss
}
criterion_main!(benches);
