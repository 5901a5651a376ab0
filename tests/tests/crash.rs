//! Promise: any process may be killed at any moment. What `close` or `fsync` acknowledged is there afterwards, names
//! are old or new and never something else, and the mount comes back by itself.
//!
//! Writers work on the mount and keep, outside it, what each path may hold: after a call that succeeded exactly one
//! thing, after a call that failed the old or the new one. At a random moment `fastcache-data`, the agent or both get
//! kill -9; nobody helps; when the mount answers again, everything is compared. Each round's seed is printed.
//! `FASTCACHE_CRASH_ROUNDS` (default 5) says how often.

use fastcache_tests::{
    Bytes, Node, Plane, Setup, close, drop_page_cache, number, seed, serial, temp_dir, wait_until,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WRITERS: u64 = 3;
/// Bytes one writer writes in a round at most, so that a long run fits the disk: more than a round has time for.
const ROUND_BYTES: u64 = 512 << 20;
const ROUNDS_DEFAULT: u64 = 5;

/// One state of a file: bytes of a seed, so many.
type Content = (u64, usize);

/// What a writer knows.
struct Ledger {
    dir: PathBuf,
    rng: StdRng,
    next: u64,
    /// What a path may hold; `None`: it may be absent.
    may_hold: BTreeMap<String, Vec<Option<Content>>>,
    /// The file that is appended to and fsynced: bytes that must be there.
    synced: u64,
    stream: u64,
    /// Calls that succeeded, calls that failed.
    done: (u64, u64),
}

impl Ledger {
    fn new(mount: &Path, writer: u64, seed: u64) -> Ledger {
        Ledger {
            dir: mount.join(format!("w{writer}")),
            rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(writer)),
            next: writer << 32,
            may_hold: BTreeMap::new(),
            synced: 0,
            stream: seed.wrapping_add(writer) ^ 0x5f5f,
            done: (0, 0),
        }
    }

    fn content(&mut self) -> Content {
        let most = match self.rng.random_range(0..10) {
            0..6 => 64 << 10,
            6..9 => 1 << 20,
            _ => 9 << 20,
        };
        (self.rng.random(), self.rng.random_range(0..most))
    }

    fn known(&mut self) -> Option<String> {
        let n = self.may_hold.len();
        if n == 0 {
            return None;
        }
        let at = self.rng.random_range(0..n);
        self.may_hold.keys().nth(at).cloned()
    }

    /// Works until told to stop.
    fn work(&mut self, is_over: &AtomicBool) {
        let mut left = ROUND_BYTES;
        while !is_over.load(Ordering::Relaxed) {
            if left == 0 {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let (result, bytes) = self.step();
            left = left.saturating_sub(bytes);
            match result {
                Ok(()) => self.done.0 += 1,
                Err(_) => {
                    self.done.1 += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// One operation; the ledger is right whatever comes of it.
    fn step(&mut self) -> (io::Result<()>, u64) {
        let content = self.content();
        let bytes = content.1 as u64;
        let result = match (self.rng.random_range(0..100), self.known()) {
            (55..70, Some(name)) => self.replace(name, content),
            (70..80, Some(name)) => self.remove(name),
            (80..88, Some(name)) => self.overwrite(name, content),
            (88.., _) => return (self.append(), 64 << 10),
            _ => self.create(content),
        };
        (result, bytes)
    }

    fn create(&mut self, content: Content) -> io::Result<()> {
        self.next += 1;
        let name = format!("f{:x}", self.next);
        let is_synced = self.rng.random_bool(0.2);
        // A failure leaves anything from nothing to the whole: not in the ledger, and the name is not used again.
        write(&self.dir.join(&name), content, is_synced, &mut self.rng)?;
        self.may_hold.insert(name, vec![Some(content)]);
        Ok(())
    }

    /// Write beside, fsync, rename over: old or new, never a mixture.
    fn replace(&mut self, name: String, content: Content) -> io::Result<()> {
        let beside = self.dir.join(format!("{name}.new"));
        write(&beside, content, true, &mut self.rng)?;
        let renamed = std::fs::rename(&beside, self.dir.join(&name));
        let states = self.may_hold.entry(name).or_default();
        if renamed.is_ok() {
            states.clear();
        }
        states.push(Some(content));
        renamed
    }

    fn remove(&mut self, name: String) -> io::Result<()> {
        let removed = std::fs::remove_file(self.dir.join(&name));
        let states = self.may_hold.entry(name).or_default();
        match &removed {
            Ok(()) => *states = vec![None],
            Err(e) if e.kind() == io::ErrorKind::NotFound && *states == [None] => return Ok(()),
            // NotFound, too, tells nothing: between a dead mount and the next one, the folder below shows.
            Err(_) if states.contains(&None) => {}
            Err(_) => states.push(None),
        }
        removed
    }

    fn overwrite(&mut self, name: String, content: Content) -> io::Result<()> {
        // Until `close` has returned, nothing is promised about a file that was opened with O_TRUNC.
        self.may_hold.remove(&name);
        write(&self.dir.join(&name), content, false, &mut self.rng)?;
        self.may_hold.insert(name, vec![Some(content)]);
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let path = self.dir.join("stream");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.set_len(self.synced)?;
        let len = self.rng.random_range(1..128 << 10);
        file.write_all_at(&Bytes::of(self.stream).range(self.synced, len), self.synced)?;
        file.sync_all()?;
        self.synced += len as u64;
        close(file)
    }

    /// Compares everything with what may be there.
    fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, states) in &self.may_hold {
            let path = self.dir.join(name);
            let found = match std::fs::read(&path) {
                Ok(bytes) => Some(bytes),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => {
                    wrong.push(format!("{}: {e}", path.display()));
                    continue;
                }
            };
            let is_right = states.iter().any(|state| match (state, &found) {
                (None, None) => true,
                (Some((seed, len)), Some(bytes)) => {
                    bytes.len() == *len && Bytes::of(*seed).first_difference(0, bytes).is_none()
                }
                _ => false,
            });
            if !is_right {
                wrong.push(format!(
                    "{}: {}; may be {states:?}",
                    path.display(),
                    describe(&found, states)
                ));
            }
        }
        if self.synced > 0 {
            match std::fs::read(self.dir.join("stream")) {
                Err(e) => wrong.push(format!("{}/stream: {e}", self.dir.display())),
                Ok(bytes) => {
                    let synced = usize::try_from(self.synced).unwrap_or(usize::MAX);
                    let at = bytes
                        .get(..synced)
                        .map(|b| Bytes::of(self.stream).first_difference(0, b));
                    if at != Some(None) {
                        wrong.push(format!(
                            "{}/stream: {} bytes were fsynced, {} are there, first wrong at {at:?}",
                            self.dir.display(),
                            self.synced,
                            bytes.len()
                        ));
                    }
                }
            }
        }
        wrong
    }

    /// Removes most of what is known, so that a long run fits the disk.
    fn thin_out(&mut self) {
        let names: Vec<String> = self.may_hold.keys().cloned().collect();
        for name in names {
            if self.rng.random_bool(0.7)
                && self.remove(name.clone()).is_ok()
                && self.rng.random_bool(0.9)
            {
                self.may_hold.remove(&name);
            }
        }
    }
}

/// Why a file is wrong, in a few words.
fn describe(found: &Option<Vec<u8>>, states: &[Option<Content>]) -> String {
    let Some(bytes) = found else {
        return "is not there".to_owned();
    };
    let near = states.iter().flatten().map(|(seed, _)| {
        Bytes::of(*seed)
            .first_difference(0, bytes)
            .map_or("no".to_owned(), |at| at.to_string())
    });
    format!(
        "has {} bytes, first difference at {:?}",
        bytes.len(),
        near.collect::<Vec<_>>()
    )
}

/// Creates (or truncates) and writes a file in pieces; returns when `close` has.
fn write(path: &Path, (seed, len): Content, is_synced: bool, rng: &mut StdRng) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut at = 0;
    while at < len {
        let piece = rng.random_range(1..=300_000).min(len - at);
        file.write_all(&Bytes::of(seed).range(at as u64, piece))?;
        at += piece;
    }
    if is_synced {
        file.sync_all()?;
    }
    close(file)
}

#[test]
fn acknowledged_bytes_survive_kill_9() {
    let _one = serial();
    let rounds = number("FASTCACHE_CRASH_ROUNDS", ROUNDS_DEFAULT);
    let seed = seed("FASTCACHE_SEED", "FASTCACHE_CRASH_ROUNDS");
    println!("FASTCACHE_SEED={seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let node = Node::start(Setup {
        capacity: Some("2GiB"),
        limit: Duration::from_secs(300 + rounds * 60),
        ..Setup::default()
    });
    let mut ledgers: Vec<Ledger> = (0..WRITERS)
        .map(|w| Ledger::new(node.mount(), w, seed))
        .collect();
    for ledger in &ledgers {
        std::fs::create_dir(&ledger.dir).expect("mkdir");
    }
    for round in 0..rounds {
        let victims: &[Plane] = match round % 3 {
            0 => &[Plane::Data],
            1 => &[Plane::Agent],
            _ => &[Plane::Agent, Plane::Data],
        };
        let delay = Duration::from_millis(rng.random_range(50..1500));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for ledger in &mut ledgers {
                scope.spawn(|| ledger.work(&is_over));
            }
            let came_back = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                std::thread::sleep(delay);
                kill_and_wait(&node, victims);
                // And the writers go on a while.
                std::thread::sleep(Duration::from_millis(300));
            }));
            is_over.store(true, Ordering::Relaxed);
            if let Err(e) = came_back {
                // Writers hang in system calls as long as nobody answers.
                node.stop_by_force();
                std::panic::resume_unwind(e);
            }
        });
        drop_page_cache();
        let wrong: Vec<String> = ledgers.iter().flat_map(Ledger::check).collect();
        let (ok, failed) = ledgers
            .iter()
            .fold((0, 0), |a, l| (a.0 + l.done.0, a.1 + l.done.1));
        println!(
            "round {round}: {victims:?} killed after {delay:?}; so far {ok} calls succeeded, {failed} failed"
        );
        assert!(
            wrong.is_empty(),
            "round {round}, {} wrong:\n{}\n{}",
            wrong.len(),
            wrong.join("\n"),
            node.logs()
        );
        ledgers.iter_mut().for_each(Ledger::thin_out);
    }

    node.flush();
    assert_eq!(node.stat("dirty_chunks"), 0, "the queue went on");
    node.evict();
    drop_page_cache();
    let wrong: Vec<String> = ledgers.iter().flat_map(Ledger::check).collect();
    assert!(
        wrong.is_empty(),
        "from the cloud, {} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(node.stat("checksum_errors"), 0);
    assert_eq!(node.stat("conflict_files"), 0);
}

/// kill -9, then waits until the supervisor has started the victims again and the mount answers.
fn kill_and_wait(node: &Node, victims: &[Plane]) {
    let old: Vec<Option<u32>> = victims.iter().map(|v| node.pid(*v)).collect();
    for victim in victims {
        assert!(
            node.kill(*victim),
            "{victim:?} is not running\n{}",
            node.logs()
        );
    }
    wait_until(
        "the supervisor started what was killed",
        Duration::from_secs(30),
        || {
            victims
                .iter()
                .zip(&old)
                .all(|(v, old)| node.pid(*v).is_some_and(|new| Some(new) != *old))
        },
    );
    node.wait_for_return();
}

/// The ledger itself: on a plain disk, where nothing is killed, it finds nothing wrong; and it finds what is.
#[test]
fn the_ledger_is_right_about_a_plain_disk() {
    let _one = serial();
    let home = temp_dir("ledger");
    let mut ledger = Ledger::new(home.path(), 0, 1);
    std::fs::create_dir(&ledger.dir).expect("mkdir");
    for _ in 0..300 {
        ledger.step().0.expect("a disk does not fail");
    }
    assert_eq!(ledger.check(), Vec::<String>::new());
    ledger.thin_out();
    assert_eq!(ledger.check(), Vec::<String>::new());
    let stream = OpenOptions::new()
        .write(true)
        .open(ledger.dir.join("stream"))
        .expect("open");
    stream.write_all_at(&[0; 8], 100).expect("write");
    assert_eq!(ledger.check().len(), 1);
}
