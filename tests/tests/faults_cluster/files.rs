//! Files that one node writes and others read, each within a bound.

use fastcache_tests::{Bytes, Node, write_and_close};
use std::fs;
use std::time::{Duration, Instant};

/// Longest a read may take whose first source stands: a chunk's first home has a second to fetch it for everybody, and
/// two cores run four nodes.
pub const HEDGED: Duration = Duration::from_secs(4);

/// Longest a read may take that needs nobody else.
pub const CACHED: Duration = Duration::from_secs(2);

/// More than a lease and what follows take on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(30);

/// Of the files that one node writes and others read: less than a chunk, one, and more.
const LENGTHS: [usize; 3] = [10_000, 300_000, (4 << 20) + 5_000];

pub fn is_long() -> bool {
    std::env::var("FASTCACHE_FAULTS").as_deref() == Ok("long")
}

pub fn three(nodes: &[Node]) -> [&Node; 3] {
    let [a, b, c] = nodes else {
        panic!("three nodes")
    };
    [a, b, c]
}

/// A file's name, the seed of its bytes, and how many.
pub type Named = (String, u64, usize);

/// Writes files on a node, and has them in the bucket.
pub fn written(node: &Node, what: &str, count: u64) -> Vec<Named> {
    let lengths = LENGTHS.into_iter().cycle();
    let files = (0..count).zip(lengths);
    let files: Vec<Named> = files
        .map(|(n, len)| (format!("{what}{n}"), n + 1000 * what.len() as u64, len))
        .collect();
    for (name, seed, len) in &files {
        write_and_close(node.at(name), &Bytes::of(*seed).range(0, *len)).expect("write");
    }
    node.flush();
    files
}

/// Reads them, each within a bound.
#[track_caller]
pub fn expect_within(node: &Node, files: &[Named], bound: Duration) {
    for (name, seed, len) in files {
        let since = Instant::now();
        let got = fs::read(node.at(name));
        let took = since.elapsed();
        let got = got.unwrap_or_else(|e| panic!("{name}: {e} after {took:?}\n{}", node.logs()));
        let differs = Bytes::of(*seed).first_difference(0, &got);
        assert_eq!((got.len(), differs), (*len, None), "{name}");
        assert!(took < bound, "{name}: read in {took:?}");
    }
}
