//! Goal: whatever happened to the bytes on the device, opening the store either refuses with a sentence that says what
//! to do, and changes nothing, or brings back what is still whole, says what was wrong, and the store works on. It
//! never panics and never returns wrong bytes.
//!
//! Method: a real store makes one image; each row of the table damages a copy of it in one way and says exactly which
//! chunk versions must still be readable. A second test damages copies at random and checks what holds for any damage.

#![cfg(not(feature = "race"))]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may fail by panicking, and its numbers are small"
)]

mod image;
mod log;
mod table;

use fastcache_chunkstore::Store;
use image::{Image, contents, history, read, session};
use std::collections::BTreeSet;
use std::path::Path;
use table::{Then, table};

/// What a start on an image showed.
struct Seen {
    /// Versions that could be read.
    readable: BTreeSet<u64>,
    /// What was logged as a warning or error, and the errors of reads.
    said: String,
}

/// Opens a damaged store, reads all of it, puts it in order as the data plane does, and writes on.
fn open_and_use(path: &Path) -> Result<Seen, String> {
    let (opened, logged) = log::capture(|| session(path, async |store, _| look(&store).await));
    let (mut seen, broken) = opened.map_err(|e| e.to_string())?;
    seen.said.push_str(&logged);
    // The next start: what cannot be read is dropped, a new chunk is sealed.
    let (next, _) = log::capture(|| {
        session(path, async |store, _| {
            store.remove(&broken).await.unwrap();
            store.seal(vec![image::chunk(9999)], None).await.unwrap();
            store.flush().await.unwrap();
        })
    });
    next.unwrap();
    let mut wanted = seen.readable.clone();
    wanted.insert(9999);
    for closes in [true, false] {
        let check = async |store: Store, _| {
            let (again, broken) = look(&store).await;
            assert_eq!(again.readable, wanted, "after a restart");
            assert!(broken.is_empty(), "after a restart: {}", again.said);
            let u = store.usage();
            assert_eq!(
                u.capacity_bytes,
                u.used_bytes + u.free_bytes + u.reserved_bytes + u.quarantined_bytes
            );
            if closes {
                store.close().await.unwrap();
            }
        };
        let (again, _) = log::capture(|| session(path, check));
        again.unwrap();
    }
    Ok(seen)
}

/// Reads every chunk. What comes back is right, or an error.
async fn look(store: &Store) -> (Seen, Vec<fastcache_types::ChunkKey>) {
    let history = history();
    let mut seen = Seen {
        readable: BTreeSet::new(),
        said: String::new(),
    };
    let mut broken = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from {
        let (page, next) = store.inventory(at);
        from = next;
        for body in page {
            let version = body.key().version.0;
            match read(store, &body).await {
                Ok(bytes) => {
                    let known = history.get(&version).copied();
                    assert_eq!(known, Some((body.key(), body.len())), "foreign chunk");
                    assert!(bytes == contents(version, body.len()), "wrong bytes");
                    seen.readable.insert(version);
                }
                Err(error) => {
                    seen.said.push_str(&format!("{error}\n"));
                    broken.push(body.key());
                }
            }
        }
    }
    (seen, broken)
}

fn base() -> Image {
    let dir = image::dir();
    let path = dir.path().join("device");
    image::make(&path);
    Image(std::fs::read(&path).unwrap())
}

#[test]
fn every_damaged_image_is_refused_or_repaired() {
    let base = base();
    assert_eq!(base.groups().len(), 7, "the groups that the table names");
    let dir = image::dir();
    let path = dir.path().join("device");
    let cases = table(&base);
    assert!(cases.len() >= 30);
    for case in &cases {
        eprintln!("{}", case.name);
        let mut image = base.clone();
        (case.harm)(&mut image);
        std::fs::write(&path, &image.0).unwrap();
        match (&case.then, open_and_use(&path)) {
            (Then::Refused(says), Err(error)) => {
                assert!(error.contains(says), "{}: {error}", case.name);
                let hints = ["--format", "run the version", "choose", "restore"];
                assert!(
                    hints.iter().any(|hint| error.contains(hint)),
                    "{}: it does not say what to do: {error}",
                    case.name
                );
                let now = std::fs::read(&path).unwrap();
                assert!(now == image.0, "{}: refused, and changed", case.name);
            }
            (Then::Reads { versions, says }, Ok(seen)) => {
                let wanted: BTreeSet<u64> = versions.iter().copied().collect();
                let (lost, extra): (Vec<_>, Vec<_>) = (
                    wanted.difference(&seen.readable).collect(),
                    seen.readable.difference(&wanted).collect(),
                );
                assert!(
                    lost.is_empty() && extra.is_empty(),
                    "{}: lost {lost:?}, unexpected {extra:?}; it said: {}",
                    case.name,
                    seen.said
                );
                assert!(
                    seen.said.contains(says),
                    "{}: it said: {}",
                    case.name,
                    seen.said
                );
            }
            (Then::Refused(_), Ok(_)) => panic!("{}: it opened", case.name),
            (Then::Reads { .. }, Err(error)) => panic!("{}: {error}", case.name),
        }
    }
    eprintln!("{} damaged images", cases.len());
}

/// Rounds of random damage; more by FASTCACHE_DAMAGE_ROUNDS.
const ROUNDS: u64 = 60;

#[test]
fn random_damage_is_survived() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let base = base();
    let dir = image::dir();
    let path = dir.path().join("device");
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let rounds = number("FASTCACHE_DAMAGE_ROUNDS").unwrap_or(ROUNDS);
    let first = number("FASTCACHE_DAMAGE_SEED").unwrap_or(0);
    let (mut opened, mut refused) = (0, 0);
    for seed in first..first + rounds {
        eprintln!("FASTCACHE_DAMAGE_SEED={seed} FASTCACHE_DAMAGE_ROUNDS=1");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut image = base.clone();
        for _ in 0..rng.random_range(1..=6) {
            let (journal, journal_len) = base.journal();
            let (data, _) = base.data();
            // Where something is: superblocks, journal, checkpoints, headers and data.
            let (from, len) = match rng.random_range(0..10) {
                0 => (0, 32 * 4096),
                1..=3 => (journal, journal_len / 8),
                4..=6 => (base.checkpoints()[rng.random_range(0..2)], 3 * 4096),
                _ => (data, 4 << 20),
            };
            let at = from + rng.random_range(0..len);
            match rng.random_range(0..5) {
                0 | 1 => image.0[at] ^= 1 << rng.random_range(0..8),
                2 => image.zero(at / 512 * 512, 512 * rng.random_range(1..=16)),
                3 => image.scramble(at / 4096 * 4096, 4096 * rng.random_range(1..=4)),
                _ => {
                    let other = from + rng.random_range(0..len);
                    image.copy(other / 4096 * 4096, at / 4096 * 4096, 4096);
                }
            }
        }
        std::fs::write(&path, &image.0).unwrap();
        match open_and_use(&path) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert!(error.contains("--format"), "seed {seed}: {error}");
                refused += 1;
            }
        }
    }
    eprintln!("{opened} opened, {refused} refused");
    assert!(opened > 0 || rounds < ROUNDS);
}
