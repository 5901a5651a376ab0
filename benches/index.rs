//! Layer index: from a chunk id to what is known of the chunk, among 1,000 and among 1,000,000. No I/O.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench"
)]

#[path = "../dataplane/chunkstore/tests/warm_restart/image.rs"]
mod image;

use criterion::{Criterion, criterion_group, criterion_main};
use fastcache_benches::{Core, store};
use fastcache_types::{ChunkId, Ino};
use std::hint::black_box;

fn index(c: &mut Criterion) {
    let core = Core::start();
    for chunks in [1000u64, 1_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        image::make(&path, chunks, chunks).unwrap();
        let store = store(&core, &path, 0);
        assert_eq!(store.usage().chunks, chunks);
        let mut n = 0u64;
        let mut next = || {
            n = n
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            image::place((n >> 33) % chunks)
        };
        c.bench_function(&format!("{chunks} chunks: look one up"), |b| {
            b.iter(|| {
                let (ino, index) = next();
                let ino = Ino(ino);
                black_box(store.get(ChunkId { ino, index }).unwrap());
            });
        });
        c.bench_function(
            &format!("{chunks} chunks: look one up that is not there"),
            |b| {
                b.iter(|| {
                    let (ino, index) = next();
                    let (ino, index) = (Ino(ino), index + 1000);
                    assert!(store.get(ChunkId { ino, index }).is_none());
                });
            },
        );
        c.bench_function(&format!("{chunks} chunks: the 16 of a file"), |b| {
            b.iter(|| black_box(store.chunks_of(Ino(next().0))));
        });
    }
}

criterion_group!(benches, index);
criterion_main!(benches);
