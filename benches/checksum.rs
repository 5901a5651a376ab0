//! Layer checksum: CRC32C of a block, and of a chunk block by block, which every read and write of the store pays.

#![allow(missing_docs, reason = "a bench")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastcache_chunkstore::{crc_block, crc_blocks};
use std::hint::black_box;

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32c");
    let block = vec![7u8; 4096];
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("of a block of 4 KiB", |b| {
        b.iter(|| crc_block(black_box(&block)))
    });
    let chunk = vec![7u8; 4 << 20];
    group.throughput(Throughput::Bytes(4 << 20));
    group.bench_function("of each block of 4 MiB", |b| {
        b.iter(|| crc_blocks(black_box(&chunk)))
    });
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
