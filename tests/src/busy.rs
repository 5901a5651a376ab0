//! Readers and writers at work on every node of a cluster, while a test does something to it.
//!
//! On each node one thread writes new files, one replaces a file of its own (a file beside it, fsynced and renamed), one
//! reads what any node has closed, and one reads, past the kernel's pages, what its node has cached. Every byte that is read
//! is compared at once. What is cached is in a folder where nothing changes: its leases last.

use crate::bytes::Bytes;
use crate::machine::{have_own_files, wait_until};
use crate::node::Node;
use crate::written::write_and_close;
use rand::Rng as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Bytes of each file.
const FILE: usize = 40_000;
/// Files that every node has cached.
const CACHED: u64 = 8;
/// Between two of a thread's operations: many threads share two cores.
const PAUSE: Duration = Duration::from_millis(20);
/// A load that is under way has closed so many files.
const UNDER_WAY: usize = 30;
/// How long a load may take to get under way, or to go on.
const SOON: Duration = Duration::from_secs(60);

/// What the threads of a node saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Held by an operation, and alone by whoever takes the node down.
    gate: RwLock<()>,
    /// Files read, of any node.
    pub reads: AtomicU64,
    /// Files read that are cached.
    pub cached_reads: AtomicU64,
    /// The longest such read, milliseconds.
    pub slowest_cached_ms: AtomicU64,
    /// Files written and closed.
    pub writes: AtomicU64,
    /// Errors of reads.
    pub read_errors: Mutex<Vec<String>>,
    /// Errors of writes.
    pub write_errors: Mutex<Vec<String>>,
    /// How often the node's own file was replaced, and that was acknowledged.
    replaced: AtomicU64,
}

/// A load on all nodes of a cluster.
#[derive(Debug)]
pub struct Busy<'n> {
    nodes: &'n [Node],
    is_over: AtomicBool,
    /// Numbers of the files whose close succeeded.
    closed: Mutex<Vec<u64>>,
    /// By node.
    pub seen: Vec<Seen>,
}

/// Ends a load also when the test panics.
struct Over<'l>(&'l AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn name(number: u64) -> String {
    format!("busy/w{number:x}")
}

/// The name of a node's own file.
fn own_name(node: usize) -> String {
    format!("busy/own{node}")
}

/// The name of a file that all have cached.
fn cached_name(n: u64) -> String {
    format!("cached/{n}")
}

/// The seed of a version of a node's own file.
fn version(node: usize, n: u64) -> Bytes {
    Bytes::of((node as u64 + 1) << 48 | n)
}

fn compare(what: &str, want: Bytes, got: &[u8]) {
    assert_eq!(got.len(), FILE, "{what}");
    assert_eq!(want.first_difference(0, got), None, "{what} differs");
}

/// Reads a file past the kernel's pages.
fn read_direct(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let room = FILE.next_multiple_of(4096);
    let mut got = vec![0; room + 4096];
    let skip = got.as_ptr().align_offset(4096);
    let n = file.read_at(&mut got[skip..skip + room], 0)?;
    got.drain(..skip);
    got.truncate(n);
    Ok(got)
}

impl<'n> Busy<'n> {
    /// Keeps all nodes busy while `hurt` does something to the cluster, and until each has written on after that. Ends with
    /// everything that was closed compared on every node.
    ///
    /// # Panics
    /// When a byte is wrong, something that was acknowledged is not there, or the load does not go on.
    #[track_caller]
    pub fn during(nodes: &'n [Node], hurt: impl FnOnce(&Busy<'n>)) -> Busy<'n> {
        let busy = Busy::prepare(nodes);
        busy.run(|busy| {
            hurt(busy);
            let written = |n: usize| busy.seen[n].writes.load(Ordering::Relaxed);
            let before: Vec<u64> = (0..nodes.len()).map(written).collect();
            wait_until("every node writes on", SOON, || {
                (0..nodes.len()).all(|n| written(n) > before[n] + 5)
            });
        });
        busy.expect_all();
        busy
    }

    /// A load that does not run yet.
    ///
    /// # Panics
    /// When its first files cannot be written.
    #[track_caller]
    pub fn prepare(nodes: &'n [Node]) -> Busy<'n> {
        for folder in ["busy", "cached"] {
            std::fs::create_dir_all(nodes[0].at(folder)).expect("mkdir");
        }
        for n in 0..CACHED {
            let bytes = Bytes::of(n).range(0, FILE);
            write_and_close(nodes[0].at(&cached_name(n)), &bytes).expect("write");
        }
        for (node, n) in nodes
            .iter()
            .flat_map(|node| (0..CACHED).map(move |n| (node, n)))
        {
            let got = read_direct(&node.at(&cached_name(n))).expect("read");
            compare(&cached_name(n), Bytes::of(n), &got);
        }
        Busy {
            nodes,
            is_over: AtomicBool::new(false),
            closed: Mutex::default(),
            seen: nodes.iter().map(|_| Seen::default()).collect(),
        }
    }

    /// Runs it while `hurt` does, which begins when the load is under way.
    ///
    /// # Panics
    /// As [`Busy::during`], but for what only shows in the end.
    #[track_caller]
    pub fn run(&self, hurt: impl FnOnce(&Busy<'n>)) {
        std::thread::scope(|scope| {
            let over = Over(&self.is_over);
            let work = [
                Busy::write_files,
                Busy::replace_a_file,
                Busy::read_files,
                Busy::read_cached,
            ];
            for node in 0..self.nodes.len() {
                for work in work {
                    scope.spawn(move || {
                        // A wrong byte ends them all.
                        let over = Over(&self.is_over);
                        have_own_files();
                        work(self, node);
                        drop(over);
                    });
                }
            }
            wait_until("the load is under way", SOON, || {
                self.closed().len() > UNDER_WAY || self.is_over.load(Ordering::Relaxed)
            });
            hurt(self);
            drop(over);
        });
    }

    /// How many files were closed so far, on all nodes.
    pub fn count(&self) -> usize {
        self.closed().len()
    }

    /// Takes a node's threads off it while `what` is done to the node.
    pub fn without(&self, node: usize, what: impl FnOnce(&Node)) {
        let gate = self.seen[node].gate.write();
        what(&self.nodes[node]);
        drop(gate);
    }

    /// Errors of all nodes, of reads and of writes.
    pub fn errors(&self) -> (Vec<String>, Vec<String>) {
        let all = |errors: fn(&Seen) -> &Mutex<Vec<String>>| {
            let of_each = self.seen.iter().map(errors);
            of_each
                .flat_map(|e| e.lock().unwrap_or_else(PoisonError::into_inner).clone())
                .collect()
        };
        (all(|s| &s.read_errors), all(|s| &s.write_errors))
    }

    /// Compares everything that was acknowledged, on every node.
    ///
    /// # Panics
    /// When something is not there, or differs.
    #[track_caller]
    pub fn expect_all(&self) {
        let closed = self.closed();
        std::thread::scope(|scope| {
            for node in self.nodes {
                let closed = &closed;
                scope.spawn(move || {
                    for number in closed {
                        let name = name(*number);
                        let got = std::fs::read(node.at(&name))
                            .unwrap_or_else(|e| panic!("{name}: {e}\n{}", node.logs()));
                        compare(&name, Bytes::of(*number), &got);
                    }
                    for (owner, seen) in self.seen.iter().enumerate() {
                        let n = seen.replaced.load(Ordering::Relaxed);
                        if n > 0 {
                            let name = own_name(owner);
                            let got = std::fs::read(node.at(&name));
                            let got = got.unwrap_or_else(|e| panic!("{name}: {e}"));
                            // The next one may have been under way.
                            let of = |n| version(owner, n).first_difference(0, &got).is_none();
                            assert!(
                                got.len() == FILE && (of(n) || of(n + 1)),
                                "{name} is not version {n}"
                            );
                        }
                    }
                });
            }
        });
        let (reads, writes) = self.errors();
        let sum = |n: fn(&Seen) -> &AtomicU64| -> u64 {
            self.seen.iter().map(|s| n(s).load(Ordering::Relaxed)).sum()
        };
        let slowest = self.seen.iter().map(|s| &s.slowest_cached_ms);
        let slowest: Vec<u64> = slowest.map(|ms| ms.load(Ordering::Relaxed)).collect();
        println!(
            "{} files closed, {} read, {} cached read (slowest {slowest:?} ms); errors: {} of reads, {} of writes",
            closed.len(),
            sum(|s| &s.reads),
            sum(|s| &s.cached_reads),
            reads.len(),
            writes.len()
        );
    }

    fn closed(&self) -> Vec<u64> {
        let closed = self.closed.lock();
        closed.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something until the load is over, but for when the node is taken down.
    fn repeat(&self, node: usize, mut what: impl FnMut(&Node, &Seen)) {
        let seen = &self.seen[node];
        while !self.is_over.load(Ordering::Relaxed) {
            if let Ok(_open) = seen.gate.try_read() {
                what(&self.nodes[node], seen);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn write_files(&self, node: usize) {
        let mut number = (node as u64 + 1) << 32;
        self.repeat(node, |at, seen| {
            number += 1;
            let bytes = Bytes::of(number).range(0, FILE);
            match write_and_close(at.at(&name(number)), &bytes) {
                Ok(()) => {
                    let closed = self.closed.lock();
                    closed.unwrap_or_else(PoisonError::into_inner).push(number);
                    seen.writes.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => note(&seen.write_errors, &name(number), &e),
            }
        });
    }

    fn replace_a_file(&self, node: usize) {
        let own = own_name(node);
        let beside = format!("{own}.new");
        self.repeat(node, |at, seen| {
            let n = seen.replaced.load(Ordering::Relaxed) + 1;
            let replace = || -> io::Result<()> {
                let file = File::create(at.at(&beside))?;
                file.write_all_at(&version(node, n).range(0, FILE), 0)?;
                file.sync_all()?;
                drop(file);
                std::fs::rename(at.at(&beside), at.at(&own))
            };
            match replace() {
                Ok(()) => seen.replaced.store(n, Ordering::Relaxed),
                Err(e) => note(&seen.write_errors, &own, &e),
            }
        });
    }

    fn read_files(&self, node: usize) {
        self.repeat(node, |at, seen| {
            let closed = self.closed();
            // Mostly what was just written.
            let back = match rand::random_ratio(3, 4) {
                true => 10,
                false => closed.len(),
            };
            let Some(last) = closed.len().checked_sub(1) else {
                return;
            };
            let number = closed[last - rand::rng().random_range(0..=last.min(back))];
            let name = name(number);
            match std::fs::read(at.at(&name)) {
                Ok(got) => {
                    compare(&name, Bytes::of(number), &got);
                    seen.reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => note(&seen.read_errors, &name, &e),
            }
        });
    }

    fn read_cached(&self, node: usize) {
        let mut n = 0;
        self.repeat(node, |at, seen| {
            n = (n + 1) % CACHED;
            let name = cached_name(n);
            let started = Instant::now();
            match read_direct(&at.at(&name)) {
                Ok(got) => {
                    compare(&name, Bytes::of(n), &got);
                    seen.cached_reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => note(&seen.read_errors, &name, &e),
            }
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            seen.slowest_cached_ms.fetch_max(ms, Ordering::Relaxed);
        });
    }
}

fn note(errors: &Mutex<Vec<String>>, what: &str, error: &io::Error) {
    let mut errors = errors.lock().unwrap_or_else(PoisonError::into_inner);
    errors.push(format!("{what}: {error}"));
}
