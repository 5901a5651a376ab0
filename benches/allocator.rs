//! Layer allocator: blocks from the free space and back, on an empty store and on one whose free space is in 50,000 pieces.
//! No I/O.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use criterion::{Criterion, criterion_group, criterion_main};
use fastcache_benches::{Core, store};

fn allocator(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let core = Core::start();
    // A file of holes: nothing is written.
    let path = dir.path().join("store");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(4 << 30)
        .unwrap();
    let store = store(&core, &path, 4 << 30);
    for (state, is_scattered) in [("empty", false), ("scattered", true)] {
        if is_scattered {
            let all: Vec<_> = (0..100_000).map(|_| store.allocate(8).unwrap()).collect();
            all.iter().step_by(2).for_each(|e| store.release(*e));
        }
        for (name, blocks) in [("one block", 1), ("4 MiB", 1024)] {
            c.bench_function(&format!("{state}: allocate {name} and release it"), |b| {
                b.iter(|| {
                    let e = store.allocate(blocks).unwrap();
                    store.release(e);
                });
            });
        }
        c.bench_function(
            &format!("{state}: allocate 4 MiB in pieces and release them"),
            |b| {
                b.iter(|| {
                    let pieces = store.allocate_pieces(1024).unwrap();
                    pieces.iter().for_each(|e| store.release(*e));
                });
            },
        );
    }
}

criterion_group!(benches, allocator);
criterion_main!(benches);
