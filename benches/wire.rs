//! Layer FUSE wire: a request's bytes to what it means, and an answer to its bytes. No kernel, no file system.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use criterion::{Criterion, criterion_group, criterion_main};
use fastcache_api::Errno;
use fastcache_fuse::reply::{Reply, encode};
use fastcache_fuse::request::{parse, parse_header};
use fastcache_fuse::wire::{AttrOut, ReadIn};
use std::hint::black_box;
use zerocopy::IntoBytes;

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + body.len()).unwrap();
    let mut m = [len, opcode].as_bytes().to_vec();
    m.extend([1u64, 42].as_bytes());
    m.extend([0; 16]);
    m.extend(body);
    m
}

fn wire(c: &mut Criterion) {
    let read = ReadIn {
        size: 4096,
        ..ReadIn::default()
    };
    let requests = [
        ("parse a READ", message(15, read.as_bytes())),
        ("parse a LOOKUP of 12 bytes", message(1, b"checkpoint-7\0")),
    ];
    for (name, bytes) in &requests {
        c.bench_function(name, |b| {
            b.iter(|| {
                let bytes = black_box(bytes.as_slice());
                let header = parse_header(bytes, bytes.len()).unwrap();
                black_box(parse(&header, &bytes[40..], true).unwrap());
            });
        });
    }
    c.bench_function("encode the answer to a GETATTR", |b| {
        b.iter(|| encode(black_box(7), Reply::of(&AttrOut::default())));
    });
    c.bench_function("encode an error", |b| {
        b.iter(|| encode(black_box(7), Reply::Error(Errno::ENOENT)));
    });
}

criterion_group!(benches, wire);
criterion_main!(benches);
