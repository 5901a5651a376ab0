//! Layer cache, a hit: a read of the file system that the chunk store answers, without FUSE. The disk reads, the checksums
//! are verified.

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

/// Bytes of the file.
const FILE: usize = 16 << 20;

fn cache_hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    for (name, bytes) in [("read 4 KiB", 4096), ("read 64 KiB, a chunk", node::CHUNK)] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let dir = tempfile::tempdir().unwrap();
                node::on_reactor(|| async {
                    let agent = Rc::new(agent::Agent::default());
                    let node = node::start(dir.path(), &agent, 1).await;
                    let ino = node.create("f").await;
                    node.write(ino, 0, &node::pattern(1, FILE)).await.unwrap();
                    node.fsync(ino).await.unwrap();
                    let before = node.fs.stats();
                    let began = Instant::now();
                    for at in 0..n {
                        let place = at.wrapping_mul(0x9E37_79B9) % (FILE / bytes) as u64;
                        let got = node.read(ino, place * bytes as u64, bytes).await.unwrap();
                        assert_eq!(got.len(), bytes);
                    }
                    let took = began.elapsed();
                    let after = node.fs.stats();
                    assert_eq!(
                        (after.nvme_hits - before.nvme_hits, after.misses),
                        (n, before.misses)
                    );
                    took
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2));
    targets = cache_hit
}
criterion_main!(benches);
