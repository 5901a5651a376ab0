//! Promise: a checkpoint that is saved beside the old one and renamed over it is seen whole by every reader, and the last
//! one that was synced is there after both planes were killed.
//!
//! Method: one saver (temporary file, fsync, rename, fsync of the directory), readers that look at the name all the
//! time: what they read is one whole generation, and never an older one than before. `FASTCACHE_PROGRAMS_LONG=1`
//! (make test-programs): more generations and rounds.

use fastcache_tests::{Bytes, Node, Plane, drop_page_cache, serial, wait_until};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of generation `n`: its number and its size, then bytes of its own.
fn contents(n: u64) -> Vec<u8> {
    let size = 5_000_000 + usize::try_from(n % 7).expect("fits") * 700_001;
    let mut bytes = Bytes::of(n).range(0, size);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes[8..16].copy_from_slice(&(size as u64).to_le_bytes());
    bytes
}

fn save(dir: &Path, n: u64) -> io::Result<()> {
    let temporary = dir.join(format!("checkpoint.{n}.tmp"));
    let mut file = File::create(&temporary)?;
    for part in contents(n).chunks(1 << 20) {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fastcache_tests::close(file)?;
    std::fs::rename(&temporary, dir.join("checkpoint"))?;
    File::open(dir)?.sync_all()
}

/// The generation that is there, whole or panic; `None` when the mount is away.
fn load(dir: &Path) -> Option<u64> {
    let got = std::fs::read(dir.join("checkpoint")).ok()?;
    let word = |at: usize| u64::from_le_bytes(got[at..at + 8].try_into().expect("eight bytes"));
    let n = word(0);
    assert_eq!(got.len() as u64, word(8), "generation {n} is cut or mixed");
    assert!(got == contents(n), "generation {n} is mixed with another");
    Some(n)
}

#[test]
fn readers_see_one_whole_checkpoint_and_a_synced_one_survives_kills() {
    let _one = serial();
    let node = Node::start_default();
    let (rounds, generations) = if std::env::var_os("FASTCACHE_PROGRAMS_LONG").is_some() {
        (8, 60)
    } else {
        (2, 12)
    };
    let dir = &node.at("checkpoints");
    std::fs::create_dir(dir).expect("mkdir");
    let (saved, loads) = (AtomicU64::new(0), AtomicU64::new(0));
    for round in 0..rounds {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut newest = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let before = saved.load(Ordering::Acquire);
                        if let Some(n) = load(dir) {
                            assert!(n >= newest, "{n} was read after {newest}");
                            assert!(n >= before, "{before} was saved, {n} was read afterwards");
                            newest = n;
                            loads.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let first = saved.load(Ordering::Relaxed) + 1;
            for n in first..first + generations {
                save(dir, n).unwrap_or_else(|e| panic!("generation {n}: {e}"));
                saved.store(n, Ordering::Release);
                if n % 5 == 0 {
                    node.evict();
                }
            }
            // The next one is on its way when everything is killed.
            let next = first + generations;
            let saver = scope.spawn(move || save(dir, next));
            std::thread::sleep(Duration::from_millis(10 + 15 * round));
            assert!(node.kill(Plane::Data) && node.kill(Plane::Agent));
            if matches!(saver.join(), Ok(Ok(()))) {
                saved.store(next, Ordering::Release);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        node.wait_for_return();
        let mut there = None;
        wait_until(
            "the checkpoint can be read",
            Duration::from_secs(30),
            || {
                there = load(dir);
                there.is_some()
            },
        );
        let there = there.expect("it was read");
        let last = saved.load(Ordering::Relaxed);
        assert!(
            (last..=last + 1).contains(&there),
            "{last} was synced, {there} is there"
        );
        saved.store(there, Ordering::Relaxed);
    }
    node.flush();
    node.evict();
    drop_page_cache();
    assert_eq!(load(dir), Some(saved.load(Ordering::Relaxed)));
    println!("{} saved, {} loads", saved.into_inner(), loads.into_inner());
}
