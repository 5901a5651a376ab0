//! Goal: a file holds what was written to it, whatever way the bytes take: in memory, open, sealed, evicted, fetched,
//! after a kill, on another node. Method: random operations from fixed seeds on one file of several chunks, compared
//! byte for byte with a vector; then the node is dropped without an end, started again, emptied, and replaced by
//! one that has nothing but the layout and the cloud. `FASTCACHE_SEED` runs one seed, any number; the operations are printed.

use crate::agent::Agent;
use crate::node::{CHUNK, Node, assert_same, on_node, on_reactor, pattern, soon, start};
use fastcache_api::{Errno, Ino};
use fastcache_types::BLOCK;
use futures_util::future::join;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::Cell;
use std::rc::Rc;

/// Largest offset that is written, bytes.
const LIMIT: usize = 6 * CHUNK + 1000;
/// Operations for each seed.
const OPERATIONS: usize = 250;
/// Seeds that every run takes: the first ones, and those that found something once.
const SEEDS: [u64; 22] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 293,
];
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
const NAME: &str = "file";

struct Test {
    node: Node,
    ino: Ino,
    model: Vec<u8>,
    rng: StdRng,
    /// So that every write writes something else.
    writes: u64,
}

#[test]
fn random_operations_agree_with_a_model() {
    let only = std::env::var("FASTCACHE_SEED")
        .ok()
        .map(|s| s.parse::<u64>().unwrap());
    for seed in only.map_or(SEEDS.to_vec(), |seed| vec![seed]) {
        println!("FASTCACHE_SEED={seed}");
        run_seed(seed);
    }
}

fn run_seed(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let (ino, model) = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let ino = node.create(NAME).await;
        let mut test = Test {
            node,
            ino,
            model: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            writes: 0,
        };
        for number in 0..OPERATIONS {
            test.operate(number).await;
        }
        test.check_all("at the end").await;
        test.node.flush(ino).await.unwrap();
        (test.ino, test.model)
    });
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 2).await;
        let mut test = reopened(node, ino, model.clone(), seed).await;
        test.check_all("after a kill").await;
        test.node.upload().await;
        test.node.evict(ino).await;
        assert_eq!(
            test.node.fs.store().chunks_of(ino).len(),
            0,
            "everything can be evicted"
        );
        test.check_all("evicted").await;
        test.check_all("promoted").await;
    });
    let other = tempfile::tempdir().unwrap();
    on_reactor(|| async {
        let node = start(other.path(), &agent, 3).await;
        let mut test = reopened(node, ino, model, seed).await;
        test.check_all("on another node").await;
    });
}

async fn reopened(node: Node, ino: Ino, model: Vec<u8>, seed: u64) -> Test {
    let entry = node.fs.lookup(Ino::ROOT, NAME.as_bytes()).await.unwrap();
    assert_eq!(entry.attr.ino, ino);
    node.fs.open(ino, 0, false).await.unwrap();
    Test {
        node,
        ino,
        model,
        rng: StdRng::seed_from_u64(seed),
        writes: 0,
    }
}

impl Test {
    async fn operate(&mut self, number: usize) {
        match self.rng.random_range(0..100) {
            0..34 => self.write(number).await,
            34..42 => self.truncate(number).await,
            42..52 => self.fallocate(number).await,
            52..60 => {
                println!("{number}: flush");
                self.node.flush(self.ino).await.unwrap();
            }
            60..64 => {
                println!("{number}: fsync");
                self.node.fsync(self.ino).await.unwrap();
                let (attr, _) = self.node.agent.file(self.ino);
                assert_eq!(attr.size, self.model.len() as u64, "fsync commits");
            }
            64..72 => {
                println!("{number}: upload, evict");
                self.node.upload().await;
                self.node.evict(self.ino).await;
            }
            72..76 => self.reopen(number).await,
            76..82 => self.write_while_sealing(number).await,
            82..88 => self.write_twice_at_once(number).await,
            88..92 => self.copy(number).await,
            92..96 => self.seek(number).await,
            _ => self.check_all("between").await,
        }
        let (attr, _) = self.node.fs.getattr(self.ino).await.unwrap();
        assert_eq!(
            attr.size,
            self.model.len() as u64,
            "size after operation {number}"
        );
        for _ in 0..2 {
            let (at, len) = self.place(self.model.len() + 2 * BLOCK);
            self.check(at, len, "after an operation").await;
        }
    }

    /// A range: small, middle or large, on block borders or not, often at a chunk's end.
    fn place(&mut self, limit: usize) -> (usize, usize) {
        let rng = &mut self.rng;
        let max = [100, 3 * BLOCK, CHUNK, 3 * CHUNK][rng.random_range(0..4)];
        let mut len = rng.random_range(1..=max);
        let mut at = match rng.random_range(0..4) {
            0 => rng.random_range(0..=limit / CHUNK) * CHUNK,
            1 => (rng.random_range(1..=limit / CHUNK + 1) * CHUNK)
                .saturating_sub(rng.random_range(0..2 * BLOCK)),
            2 => self.model.len(),
            _ => rng.random_range(0..=limit),
        };
        if rng.random_bool(0.4) {
            at = at / BLOCK * BLOCK;
            len = len.next_multiple_of(BLOCK);
        }
        at = at.min(limit);
        (at, len.min(limit - at).max(1))
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.writes += 1;
        crate::node::pattern(self.writes, len)
    }

    fn model_write(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at..end].copy_from_slice(data);
    }

    async fn write(&mut self, number: usize) {
        let (at, len) = self.place(LIMIT);
        let skew = if self.rng.random_bool(0.2) { 13 } else { 0 };
        println!("{number}: write {at}+{len} skew {skew}");
        let data = self.bytes(len);
        self.node
            .write_skewed(self.ino, at as u64, &data, skew)
            .await
            .unwrap();
        self.model_write(at, &data);
    }

    async fn truncate(&mut self, number: usize) {
        let size = match self.rng.random_range(0..4) {
            0 => 0,
            1 => self.place(LIMIT).0,
            _ => self.rng.random_range(0..=self.model.len()),
        };
        println!("{number}: truncate {} to {size}", self.model.len());
        self.node.truncate(self.ino, size as u64).await.unwrap();
        self.model.resize(size, 0);
    }

    async fn fallocate(&mut self, number: usize) {
        let (at, len) = self.place(LIMIT);
        let modes = [
            PUNCH_HOLE | KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
            0,
            KEEP_SIZE,
        ];
        let mode = modes[self.rng.random_range(0..modes.len())];
        println!("{number}: fallocate {mode} {at}+{len}");
        let done = self
            .node
            .fs
            .fallocate(self.ino, 0, mode, at as u64, len as u64, false);
        soon("fallocate", done).await.unwrap();
        let size = self.model.len();
        if mode & (PUNCH_HOLE | ZERO_RANGE) != 0 {
            let range = at.min(size)..(at + len).min(size);
            self.model[range].fill(0);
        }
        if mode & KEEP_SIZE == 0 {
            self.model.resize(size.max(at + len), 0);
        }
    }

    /// Closes the file, lets the kernel forget it, and finds it again.
    async fn reopen(&mut self, number: usize) {
        println!("{number}: reopen");
        self.node.flush(self.ino).await.unwrap();
        self.node.fs.release(self.ino, 0).await.unwrap();
        self.node.fs.forget(self.ino, 1);
        let entry = self
            .node
            .fs
            .lookup(Ino::ROOT, NAME.as_bytes())
            .await
            .unwrap();
        assert_eq!(entry.attr.ino, self.ino);
        self.node.fs.open(self.ino, 2, false).await.unwrap();
    }

    /// A write, a read beside it, and a seal or an upload, all at once.
    async fn write_while_sealing(&mut self, number: usize) {
        let (at, len) = self.place(LIMIT);
        let data = self.bytes(len);
        let is_upload = self.rng.random_bool(0.3);
        println!("{number}: write {at}+{len} while sealing, upload {is_upload}");
        let node = &self.node;
        let seal = async {
            if is_upload {
                node.upload().await;
                node.evict(self.ino).await;
            } else {
                node.flush(self.ino).await.unwrap();
            }
        };
        let before = at.min(self.model.len());
        let from = before.saturating_sub(2 * BLOCK);
        let beside = async {
            let got = node
                .read(self.ino, from as u64, before - from)
                .await
                .unwrap();
            assert_same("beside a write", &got, &self.model[from..before]);
        };
        let write = async { node.write(self.ino, at as u64, &data).await.unwrap() };
        join(write, join(seal, beside)).await;
        self.model_write(at, &data);
    }

    /// Two writes that do not overlap, at once; often in one chunk, or in one block.
    async fn write_twice_at_once(&mut self, number: usize) {
        let (at, len) = self.place(LIMIT);
        let cut = self.rng.random_range(0..len);
        let data = self.bytes(len);
        println!(
            "{number}: write {at}+{cut} and {}+{} at once",
            at + cut,
            len - cut
        );
        let (a, b) = data.split_at(cut);
        let (first, second) = join(
            self.node.write(self.ino, at as u64, a),
            self.node.write(self.ino, (at + cut) as u64, b),
        )
        .await;
        first.unwrap();
        second.unwrap();
        self.model_write(at, &data);
    }

    async fn copy(&mut self, number: usize) {
        let (from, len) = self.place(LIMIT / 2);
        let to = from + len + self.rng.random_range(0..CHUNK);
        println!("{number}: copy {from}+{len} to {to}");
        let copied = self.node.fs.copy_file_range(
            self.ino,
            from as u64,
            self.ino,
            to as u64,
            len as u64,
            false,
        );
        let copied = soon("copy", copied).await.unwrap() as usize;
        let size = self.model.len();
        let there = self.model[from.min(size)..(from + len).min(size)].to_vec();
        assert_eq!(copied, there.len(), "as many bytes as there were");
        if !there.is_empty() {
            self.model_write(to, &there);
        }
    }

    async fn seek(&mut self, number: usize) {
        let at = self.rng.random_range(0..=self.model.len() + 10);
        println!("{number}: seek {at}");
        self.check_seek(at).await;
    }

    /// What SEEK_DATA skips is zero, and what SEEK_HOLE finds is.
    async fn check_seek(&self, at: usize) {
        let size = self.model.len();
        let is_zero = |a: usize, b: usize| self.model[a..b].iter().all(|b| *b == 0);
        let data = self.node.fs.lseek(self.ino, 0, at as u64, SEEK_DATA).await;
        let hole = self.node.fs.lseek(self.ino, 0, at as u64, SEEK_HOLE).await;
        if at >= size {
            assert_eq!(
                (data, hole),
                (Err(Errno::ENXIO), Err(Errno::ENXIO)),
                "seek at the end"
            );
            return;
        }
        match data {
            Ok(p) => {
                let p = p as usize;
                assert!((at..size).contains(&p), "SEEK_DATA {at} of {size}: {p}");
                assert!(is_zero(at, p), "SEEK_DATA {at} skips data before {p}");
            }
            Err(e) => {
                assert_eq!(e, Errno::ENXIO);
                assert!(is_zero(at, size), "SEEK_DATA {at} of {size} finds nothing");
            }
        }
        let p = hole.unwrap() as usize;
        assert!((at..=size).contains(&p), "SEEK_HOLE {at} of {size}: {p}");
        let end = (p + 1).next_multiple_of(BLOCK).min(size);
        assert!(
            p == size || is_zero(p, end),
            "SEEK_HOLE {at} finds data at {p}"
        );
    }

    async fn check(&self, at: usize, len: usize, what: &str) {
        let got = self.node.read(self.ino, at as u64, len).await.unwrap();
        let size = self.model.len();
        let want = &self.model[at.min(size)..(at + len).min(size)];
        assert_same(&format!("{what}: read {at}+{len} of {size}"), &got, want);
    }

    async fn check_all(&mut self, what: &str) {
        println!("check all, {what}");
        let size = self.model.len();
        let (attr, _) = self.node.fs.getattr(self.ino).await.unwrap();
        assert_eq!(attr.size, size as u64, "size {what}");
        self.check(0, size + 1, what).await;
        for at in (0..size).step_by(CHUNK / 3) {
            self.check_seek(at).await;
        }
    }
}

#[test]
fn seek_finds_data_that_is_on_its_way_to_the_device() {
    on_node(async |node, _| {
        let ino = node.create("file").await;
        let mut looks = 0;
        for round in 0..20u64 {
            // Gathered in memory, behind a hole.
            let len = if round % 2 == 0 { 5000 } else { 40_960 };
            let at = (round * 3 + 1) * CHUNK as u64 + 49_198;
            node.write(ino, at, &pattern(round, len)).await.unwrap();
            let last = at + len as u64 - 1;
            let (fs, is_over) = (node.fs.clone(), Rc::new(Cell::new(false)));
            let over = Rc::clone(&is_over);
            let sync = fastcache_reactor::spawn(async move {
                fs.fsync(ino, 0, false).await.unwrap();
                over.set(true);
            });
            while !is_over.get() {
                assert_eq!(node.fs.lseek(ino, 0, last, SEEK_DATA).await, Ok(last));
                looks += 1;
                fastcache_reactor::yield_now().await;
            }
            sync.await;
        }
        assert!(looks > 40, "{looks} looks are too few to see anything");
    });
}
