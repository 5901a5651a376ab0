//! Goal: what `fsync` said is safe is there after a power cut, what `close` said after a kill, no byte is ever wrong, no
//! block is lost or owned twice, and a second recovery changes nothing; with the whole file system of a node, its store,
//! and an agent that is slow, loses answers and is replaced. Method: seeded runs in a simulated world (device, clock, order
//! of tasks). Each run has several sessions that end at a random moment, by a kill or a power cut that takes a random part of
//! what was not flushed; in some the device fails or rots meanwhile. A model knows for each byte what it may be.
//!
//! The coordinator is another machine here: what it was told stays. So a file that was changed after its last `fsync` may
//! have chunks that were committed and are gone (docs/adr/0007-power-loss.md, Open): those are errors, never wrong bytes.
//!
//! `FASTCACHE_POWER_IMAGES` asks for so many sessions instead of the short form's, in at most `FASTCACHE_POWER_SECONDS`;
//! `FASTCACHE_POWER_SEED` for one run.

#![cfg(not(feature = "race"))]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may fail by panicking, and its numbers are small"
)]

#[allow(dead_code, reason = "shared with the tests of promises")]
#[path = "../promises/agent.rs"]
mod agent;
mod model;
mod node;
mod play;

use agent::{Agent, inventory};
use fastcache_api::control::LocalChunk;
use fastcache_api::{Errno, Ino};
use fastcache_cache::SetAttrRequest;
use fastcache_chunkstore::{PendingSeal, StoreError, Usage};
use fastcache_reactor::sim::{self, Device, Loss, Medium, Moods, Step, random};
use fastcache_reactor::{sleep, spawn};
use futures_util::future::{join_all, select};
use model::{File, is_size, wrong_byte};
use node::{CHUNK, DEVICE_BYTES, Node, open, start};
use play::{Actor, create, read};
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Sessions of a run, each of which starts from what the one before left.
const SESSIONS: u64 = 5;
/// Files, each with an actor.
const FILES: usize = 4;
/// Sessions of the short form, and how long it may take.
const SHORT_SESSIONS: u64 = 300;
const SHORT_SECONDS: u64 = 10;

/// What a run did, as one number: two runs of a seed say the same.
#[derive(Clone, Default)]
struct Said(Rc<RefCell<DefaultHasher>>);

impl Said {
    fn note(&self, what: &impl Debug) {
        format!("{what:?}").hash(&mut *self.0.borrow_mut());
    }

    fn note_steps(&self, steps: &[Step]) {
        let mut hasher = self.0.borrow_mut();
        for step in steps {
            match step {
                Step::Write {
                    number,
                    offset,
                    bytes,
                } => (0, number, offset, bytes).hash(&mut *hasher),
                Step::Written(number) => (1, number).hash(&mut *hasher),
                Step::Flush(number) => (2, number).hash(&mut *hasher),
                Step::Flushed(number) => (3, number).hash(&mut *hasher),
                Step::Failed(number) => (4, number).hash(&mut *hasher),
            }
        }
    }

    fn all(&self) -> u64 {
        self.0.borrow().finish()
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug)]
struct End {
    after: Duration,
    loss: Loss,
    /// The device refused now and then.
    is_sick: bool,
}

impl End {
    fn any(is_sick: bool) -> End {
        // Most sessions are short: then little is flushed.
        let most_us = [10_000, 100_000, 1_000_000, 30_000_000][random(4) as usize];
        End {
            after: Duration::from_micros(1_000 + random(most_us)),
            loss: Loss::EACH[random(Loss::EACH.len() as u64) as usize],
            is_sick,
        }
    }

    /// The device loses nothing: the processes died, not the machine.
    fn is_kill(self) -> bool {
        self.loss == Loss::None
    }
}

/// How the device behaves in this session.
fn moods() -> Moods {
    let mut moods = Moods {
        transfer_us: 20..300,
        flush_us: 100..5_000,
        ..Moods::default()
    };
    match random(8) {
        0 => moods.read_eio = 50,
        // What is refused twice is in RAM alone, until the cloud has it.
        1 => moods.write_eio = [4, 50][random(2) as usize],
        2 => moods.write_enospc = 50,
        3 => moods.flush_eio = 5,
        4 => moods.rot = 100,
        _ => {}
    }
    moods
}

fn is_sick(moods: &Moods) -> bool {
    moods.read_eio + moods.write_eio + moods.write_enospc + moods.flush_eio + moods.rot > 0
}

/// A run and what it knows.
struct Run {
    path: std::path::PathBuf,
    medium: Medium,
    agent: Rc<Agent>,
    files: Vec<Rc<RefCell<File>>>,
    /// Runs of the node, so that no two have the same number.
    nodes: Cell<u64>,
    /// Bits have turned: chunks may be unreadable for ever.
    is_rotten: bool,
    /// The device has refused something: seals may name what was in RAM alone.
    was_sick: bool,
    said: Said,
}

/// What a recovery found in the store.
#[derive(PartialEq, Debug)]
struct Found {
    chunks: Vec<LocalChunk>,
    pending: Vec<PendingSeal>,
    usage: Usage,
}

impl Run {
    fn new(path: &Path) -> Run {
        Run {
            path: path.to_owned(),
            medium: Medium::new(DEVICE_BYTES),
            agent: Rc::new(Agent::default()),
            files: Vec::new(),
            nodes: Cell::new(0),
            is_rotten: false,
            was_sick: false,
            said: Said::default(),
        }
    }

    fn device(&self, moods: Moods) -> Device {
        let device = Device::new(self.medium.clone(), moods);
        device.record();
        device.attach(&self.path);
        device
    }

    async fn node(&self, is_sick: bool) -> Result<Rc<Node>, StoreError> {
        let (store, pending) = open(&self.path).await?;
        self.nodes.set(self.nodes.get() + 1);
        Ok(start(store, pending, &self.agent, self.nodes.get(), is_sick).await)
    }

    /// Works until the end comes, and what the device holds then.
    async fn work(&self, end: End, moods: Moods) -> Result<Medium, StoreError> {
        let device = self.device(Moods {
            transfer_us: moods.transfer_us.clone(),
            flush_us: moods.flush_us.clone(),
            ..Moods::default()
        });
        let is_sick = end.is_sick || self.is_rotten;
        let node = self.node(is_sick || self.was_sick).await?;
        // So little room that it is used again, and more than the largest chunk asks for.
        let free = node.fs.store().usage().free_bytes / 4096;
        let ballast = (free as u32).saturating_sub(1_300 + random(1_000) as u32);
        let _ballast = node.fs.store().allocate_pieces(ballast);
        for file in &self.files {
            let ino = file.borrow().ino;
            node.fs.open(ino, 2, false).await.unwrap();
        }
        device.set_moods(moods);
        let actors = self.files.iter().map(|file| {
            let actor = Actor {
                node: Rc::clone(&node),
                file: Rc::clone(file),
                is_sick,
                said: self.said.clone(),
            };
            spawn(actor.play())
        });
        let actors = join_all(actors.collect::<Vec<_>>());
        select(actors, std::pin::pin!(sleep(end.after))).await;
        self.said.note_steps(&device.take_log());
        Ok(device.cut(end.loss))
    }

    /// Recovers, twice, and compares everything with what it may be.
    async fn verify(&self, end: End) -> Result<(Vec<File>, Medium), StoreError> {
        let device = self.device(Moods::default());
        let first = self.find().await?;
        let second = self.find().await?;
        assert_eq!(first, second, "a second recovery finds something else");
        let node = self.node(self.was_sick).await?;
        let mut files = Vec::new();
        for file in &self.files {
            let file = file.borrow().clone();
            let ino = file.ino;
            let bytes = match self.check(&node, &file, end).await {
                Some(bytes) => bytes,
                None => {
                    renew(&node, ino).await;
                    Vec::new()
                }
            };
            bytes.hash(&mut *self.said.0.borrow_mut());
            files.push(File::new(ino, bytes));
        }
        if files.is_empty() {
            for n in 0..FILES {
                let ino = create(&node, &format!("file {n}")).await;
                files.push(File::new(ino, Vec::new()));
            }
        }
        // With nothing open, every block is a chunk's or free.
        node.fs.sync_all().await.unwrap();
        node.upload().await;
        node.fs.store().flush().await.unwrap();
        let is_flying = || node.fs.stats().fetching_chunks > 0;
        while is_flying() {
            sleep(Duration::from_millis(1)).await;
        }
        node.fs.store().audit(&[]);
        Ok((files, device.now()))
    }

    async fn find(&self) -> Result<Found, StoreError> {
        let (store, pending) = open(&self.path).await?;
        let usage = store.usage();
        let link = fastcache_cache::Link::new(vec![0], 0);
        let arena = fastcache_reactor::Arena::new(1, 4096).unwrap();
        let fs = fastcache_cache::FileSystem::new(store, link, arena);
        let mut chunks = inventory(&fs).await;
        chunks.sort_by_key(|chunk| chunk.key);
        Ok(Found {
            chunks,
            pending,
            usage,
        })
    }

    /// What a file holds; `None` when a part of it is gone, where that may be.
    async fn check(&self, node: &Node, file: &File, end: End) -> Option<Vec<u8>> {
        let ino = file.ino;
        // A seal whose record rots is no more, though close said so; what fsync said, the coordinator knows.
        let images = file.left(end.is_kill() && !self.is_rotten);
        let (attr, _) = node.fs.getattr(ino).await.unwrap();
        assert!(
            is_size(images, attr.size),
            "{ino}: {} bytes after {end:?}",
            attr.size
        );
        let mut all = Some(Vec::new());
        for at in (0..attr.size as usize).step_by(CHUNK) {
            let len = CHUNK.min(attr.size as usize - at);
            match read(node, ino, at, len).await {
                Ok(got) => {
                    let wrong = wrong_byte(images, at, &got);
                    assert_eq!(
                        wrong, None,
                        "{ino}: a wrong byte of {at}+{len} after {end:?}"
                    );
                    all.iter_mut().for_each(|all| all.extend_from_slice(&got));
                }
                Err(error) => {
                    // What a sick device refused is in RAM until close has brought it to the cloud.
                    let may_be_gone = (!end.is_kill() || end.is_sick) && images.len() > 1;
                    assert!(
                        error == Errno::EIO && (may_be_gone || self.is_rotten),
                        "{ino}: {error} at {at} after {end:?}"
                    );
                    all = None;
                }
            }
        }
        all
    }
}

/// A file that cannot be read any more becomes an empty one.
async fn renew(node: &Node, ino: Ino) {
    let request = SetAttrRequest {
        size: Some(0),
        ..SetAttrRequest::default()
    };
    // A seal that the power cut left without the one behind it is refused when it is sent again: an error, told once.
    let told = node.fs.setattr(ino, request).await;
    assert!(matches!(told, Ok(_) | Err(Errno::EIO)), "{told:?}");
    node.fs.setattr(ino, request).await.unwrap();
    node.fs.fsync(ino, 0, false).await.unwrap();
}

/// Runs a seed: how many sessions it had, and what it did.
fn run(seed: u64, path: &Path) -> (u64, u64) {
    let mut run = Run::new(path);
    let mut end = End {
        after: Duration::ZERO,
        loss: Loss::None,
        is_sick: false,
    };
    let _again = Again(seed);
    for session in 0..SESSIONS {
        let number = seed * SESSIONS + session;
        match sim::run(number, || run.verify(end)) {
            Ok((files, medium)) => {
                run.files = files
                    .into_iter()
                    .map(|file| Rc::new(RefCell::new(file)))
                    .collect();
                run.medium = medium;
            }
            // Both copies of the superblock, say.
            Err(StoreError::Damaged) if run.is_rotten => return (session, run.said.all()),
            Err(error) => panic!("{error}"),
        }
        let (left, this_end, is_rotten) = sim::run(number, async || {
            let moods = moods();
            let end = End::any(is_sick(&moods));
            let is_rotten = moods.rot > 0;
            (run.work(end, moods).await.unwrap(), end, is_rotten)
        });
        run.medium = left;
        run.is_rotten |= is_rotten;
        run.was_sick |= this_end.is_sick;
        end = this_end;
    }
    (SESSIONS, run.said.all())
}

/// Says which run it was.
struct Again(u64);

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("FASTCACHE_POWER_SEED={} tries it again", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

fn with_device(test: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DEVICE_BYTES).unwrap();
    test(&path);
}

#[test]
fn what_was_said_to_be_safe_survives_and_no_byte_is_wrong() {
    with_device(|path| {
        if let Some(seed) = number("FASTCACHE_POWER_SEED") {
            println!("{} sessions", run(seed, path).0);
            return;
        }
        let sessions = number("FASTCACHE_POWER_IMAGES").unwrap_or(SHORT_SESSIONS);
        let seconds = number("FASTCACHE_POWER_SECONDS").unwrap_or(SHORT_SECONDS);
        let started = Instant::now();
        let (mut tried, mut seed) = (0, 0);
        while tried < sessions && started.elapsed().as_secs() < seconds {
            tried += run(seed, path).0;
            seed += 1;
        }
        println!("{tried} sessions of {seed} runs, {:?}", started.elapsed());
    });
}

#[test]
fn a_seed_does_the_same_again() {
    with_device(|path| {
        for seed in 0..2 {
            assert_eq!(run(seed, path), run(seed, path), "seed {seed}");
        }
        assert_ne!(run(0, path).1, run(1, path).1);
    });
}
