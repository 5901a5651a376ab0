//! Goal: whatever a power cut leaves of what was not flushed, every byte that a flush covered is there, no byte is wrong,
//! every block belongs to one chunk or to none, and a second recovery finds what the first one found. Method: seeded runs of
//! the whole store in a simulated world, several tasks at a time, on a device that is nearly full; what the device did is
//! recorded, and the store is opened on what a cut at any moment may have left: every prefix, and random parts of what
//! was not flushed, down to sectors. The next session of a run starts from one of these images.
//!
//! `FASTCACHE_POWER_IMAGES` asks for so many images instead of the short form's, in at most `FASTCACHE_POWER_SECONDS`;
//! `FASTCACHE_POWER_SEED` for one run.

mod history;
mod play;

use super::model::Want;
use super::*;
use fastcache_reactor::sim::{self, Contents, Device, Loss, Medium, Moods, Step};
use history::{History, SealInfo};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Of the store, bytes: the smallest.
const DEVICE_BYTES: u64 = 16 << 20;
/// Sessions of a run, each of which starts from what the one before left.
const SESSIONS: u64 = 4;
/// Random images after each step.
const PARTS: u64 = 1;

/// What a store holds, as far as its callers see it.
#[derive(Clone, PartialEq, Debug)]
struct Snapshot {
    chunks: Vec<Want>,
    seals: Vec<PendingSeal>,
    usage: Usage,
}

/// Opens the store that `medium` holds, and reads all of it. The device it was opened on.
async fn recover(path: &Path, medium: Medium) -> (Device, Snapshot) {
    let device = Device::new(medium, Moods::default());
    device.record();
    device.attach(path);
    let snapshot = look(path).await;
    (device, snapshot)
}

async fn look(path: &Path) -> Snapshot {
    let (store, recovered) = Store::open(options(path, DEVICE_BYTES / MIB))
        .await
        .unwrap();
    check(&store, &[]);
    let mut chunks = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from {
        let (page, next) = store.inventory(at);
        for body in page {
            let image = read(&store, &body).await;
            let image = image.unwrap_or_else(|e| panic!("{}: {e}", body.key()));
            chunks.push(Want {
                key: body.key(),
                len: body.len(),
                image: Arc::new(image),
                is_dirty: body.is_dirty(),
            });
        }
        from = next;
    }
    chunks.sort_by_key(|want| want.key.id());
    assert_eq!(recovered.chunks as usize, chunks.len());
    let usage = Usage {
        crc_cache_bytes: 0,
        ..store.usage()
    };
    Snapshot {
        chunks,
        seals: recovered.pending,
        usage,
    }
}

/// Recovers from an image of a cut after `at` steps, and again; now and then the power fails during the first recovery.
async fn verify(
    path: &Path,
    history: &History,
    at: usize,
    medium: Medium,
    is_twice: bool,
) -> Snapshot {
    let (device, first) = recover(path, medium.clone()).await;
    history.check(at, &first);
    let second = look(path).await;
    assert_eq!(second, first, "a second recovery finds something else");
    if is_twice {
        let log = device.take_log();
        let mut contents = Contents::new(medium);
        let cut = sim::random(log.len() as u64 + 1) as usize;
        log[..cut].iter().for_each(|step| contents.step(step));
        let (_, third) = recover(path, contents.cut(any_loss(), sim::random)).await;
        assert_eq!(
            third, first,
            "a recovery after half a recovery finds something else"
        );
    }
    first
}

fn any_loss() -> Loss {
    Loss::EACH[sim::random(Loss::EACH.len() as u64) as usize]
}

/// A run: how many images it tried. Every prefix of what the device was asked, and after each step random parts of what was
/// not flushed.
fn run(seed: u64, path: &Path) -> u64 {
    let mut medium = Medium::new(DEVICE_BYTES);
    let mut snapshot = None;
    let mut images = 0;
    for session in 0..SESSIONS {
        let seed = seed * SESSIONS + session;
        let start = medium.clone();
        let (history, log) = sim::run(seed, || {
            play::play(path, start.clone(), snapshot.take(), seed)
        });
        let mut found = None;
        let next = StdRng::seed_from_u64(seed).random_range(log.len() / 2..=log.len());
        sim::run(seed, async || {
            let mut contents = Contents::new(medium.clone());
            for at in 0..=log.len() {
                if at > 0 {
                    contents.step(&log[at - 1]);
                }
                let is_last = at == next;
                let mut losses = Vec::new();
                // A flush that begins or ends changes no prefix.
                if matches!(log.get(at.wrapping_sub(1)), Some(Step::Write { .. })) {
                    losses.push(Loss::None);
                }
                if !contents.is_settled() || is_last {
                    losses.extend((0..PARTS).map(|_| any_loss()));
                }
                for loss in losses {
                    let left = contents.cut(loss, sim::random);
                    let is_twice = sim::random(8) == 0;
                    let said = Said { seed, at, loss };
                    let result = verify(path, &history, at, left.clone(), is_twice).await;
                    std::mem::forget(said);
                    images += 1;
                    if is_last {
                        found = Some((left, result));
                    }
                }
            }
        });
        let Some((left, result)) = found else {
            return images;
        };
        medium = left;
        snapshot = Some(result);
    }
    images
}

/// Says which image it was.
struct Said {
    seed: u64,
    at: usize,
    loss: Loss,
}

impl Drop for Said {
    fn drop(&mut self) {
        eprintln!(
            "after a power cut at step {} of session {} of run {} that lost {:?}; FASTCACHE_POWER_SEED={} tries it again",
            self.at,
            self.seed % SESSIONS,
            self.seed / SESSIONS,
            self.loss,
            self.seed / SESSIONS,
        );
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// A file of the device's size: the name under which simulated devices are attached.
fn device() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DEVICE_BYTES).unwrap();
    (dir, path)
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_flushed() {
    let (_dir, path) = device();
    if let Some(seed) = number("FASTCACHE_POWER_SEED") {
        println!("{} images", run(seed, &path));
        return;
    }
    let images = number("FASTCACHE_POWER_IMAGES").unwrap_or(2_000);
    let seconds = number("FASTCACHE_POWER_SECONDS").unwrap_or(300);
    let started = Instant::now();
    let (mut tried, mut runs) = (0, 0);
    // Each run tries every prefix.
    while tried < images && started.elapsed().as_secs() < seconds {
        tried += run(runs, &path);
        runs += 1;
    }
    println!("{tried} images of {runs} runs, {:?}", started.elapsed());
}

/// A store that is formatted again is the old one with all it has, or an empty one, and opens without being asked for more.
#[test]
fn a_power_cut_while_a_store_is_formatted_again_leaves_a_store() {
    let (_dir, path) = device();
    let mut kinds = [0; 2];
    for seed in 0..20 {
        sim::run(seed, async || {
            let device = Device::new(Medium::new(DEVICE_BYTES), Moods::default());
            device.attach(&path);
            let (store, _) = Store::open(options(&path, DEVICE_BYTES / MIB))
                .await
                .unwrap();
            store
                .seal(vec![chunk(key(7, 0, 1), 50_000)], None)
                .await
                .unwrap();
            store.close().await.unwrap();
            drop(store);
            let old = look(&path).await;
            let before = device.now();
            device.record();
            let again = StoreOptions {
                format: true,
                ..options(&path, DEVICE_BYTES / MIB)
            };
            drop(Store::open(again).await.unwrap());
            let log = device.take_log();
            let mut contents = Contents::new(before);
            for at in 0..=log.len() {
                for loss in Loss::EACH {
                    let left = contents.cut(loss, sim::random);
                    let (_, found) = recover(&path, left).await;
                    let is_old = !found.chunks.is_empty();
                    assert!(!is_old || found.chunks == old.chunks, "step {at}, {loss:?}");
                    kinds[usize::from(is_old)] += 1;
                }
                log.get(at).inspect(|step| contents.step(step));
            }
        });
    }
    assert!(kinds.iter().all(|n| *n > 0), "{kinds:?}");
}
