//! Random changes, and the loss of every disk at any moment.

use fastcache_tests::{Bytes, Node, Setup, lose_everything, number, seed, serial};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Rounds of the random test, unless `FASTCACHE_LOSS_ROUNDS` says otherwise.
const ROUNDS: u64 = 4;

/// What is known of one file: its contents now, and those that were said to be persisted.
#[derive(Clone, Debug, Default)]
struct Known {
    now: Option<(u64, usize)>,
}

#[test]
fn what_was_said_to_be_persisted_survives_the_loss_of_every_disk() {
    let _one = serial();
    let rounds = number("FASTCACHE_LOSS_ROUNDS", ROUNDS);
    let seed = seed("FASTCACHE_SEED", "FASTCACHE_LOSS_ROUNDS");
    println!("FASTCACHE_SEED={seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let node = Node::start(Setup {
        capacity: Some("1GiB"),
        limit: Duration::from_secs(300 + rounds * 120),
        ..Setup::default()
    });
    let mut files: BTreeMap<PathBuf, Known> = BTreeMap::new();
    let mut next = 0;
    for round in 0..rounds {
        for _ in 0..rng.random_range(20..120) {
            step(&node, &mut rng, &mut files, &mut next);
        }
        // Said of everything, or of some files one by one.
        let persisted: BTreeMap<PathBuf, Known> = if rng.random_bool(0.5) {
            node.flush();
            files.clone()
        } else {
            let mut some = BTreeMap::new();
            for (path, known) in files.iter().filter(|(_, k)| k.now.is_some()).take(10) {
                let name = path.to_str().expect("utf-8");
                node.ctl(&["flush", "--wait", name]);
                assert_eq!(node.state_xattr(name), "persisted");
                some.insert(path.clone(), known.clone());
            }
            some
        };
        // And what nobody was told of, of other files.
        for n in 0..rng.random_range(0..10) {
            let path = node.at(&format!("late-{round}-{n}"));
            std::fs::write(&path, Bytes::of(n).range(0, 100_000)).expect("write");
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
        lose_everything(&node);
        node.up_with(&["--rebuild"]);
        let mut wrong = Vec::new();
        for (path, known) in &persisted {
            let found = std::fs::read(node.mount().join(path)).ok();
            let is_right = match (&known.now, &found) {
                (None, None) => true,
                (Some((seed, len)), Some(bytes)) => {
                    bytes.len() == *len && Bytes::of(*seed).first_difference(0, bytes).is_none()
                }
                _ => false,
            };
            if !is_right {
                let len = found.map(|b| b.len());
                wrong.push(format!(
                    "{}: {known:?}, found {len:?} bytes",
                    path.display()
                ));
            }
        }
        // Whatever else is there reads as it was written, or fails: never as something else.
        for n in 0..10 {
            let path = node.at(&format!("late-{round}-{n}"));
            if let Ok(bytes) = std::fs::read(&path)
                && !bytes.is_empty()
                && (bytes.len() != 100_000 || Bytes::of(n).first_difference(0, &bytes).is_some())
            {
                wrong.push(format!("{}: wrong bytes", path.display()));
            }
            let _ = std::fs::remove_file(&path);
        }
        assert!(
            wrong.is_empty(),
            "round {round}: {}\n{}",
            wrong.join("\n"),
            node.logs()
        );
        println!(
            "round {round}: {} files said to be persisted, all there",
            persisted.len()
        );
        // The others are what they are now.
        files = persisted;
        for entry in std::fs::read_dir(node.mount()).expect("list") {
            let name = PathBuf::from(entry.expect("entry").file_name());
            if !files.contains_key(&name) {
                std::fs::remove_file(node.mount().join(&name)).expect("remove");
            }
        }
    }
}

/// One random change.
fn step(node: &Node, rng: &mut StdRng, files: &mut BTreeMap<PathBuf, Known>, next: &mut u64) {
    let there: Vec<PathBuf> = files
        .iter()
        .filter(|(_, k)| k.now.is_some())
        .map(|(p, _)| p.clone())
        .collect();
    let content = (rng.random(), rng.random_range(0..300_000));
    let put = |path: &Path, (seed, len): (u64, usize)| {
        std::fs::write(node.mount().join(path), Bytes::of(seed).range(0, len)).expect("write");
    };
    match rng.random_range(0..10) {
        0..=4 => {
            *next += 1;
            let path = PathBuf::from(format!("f{next}"));
            put(&path, content);
            files.insert(path, Known { now: Some(content) });
        }
        5..=6 if !there.is_empty() => {
            let path = &there[rng.random_range(0..there.len())];
            std::fs::remove_file(node.mount().join(path)).expect("remove");
            files.insert(path.clone(), Known::default());
        }
        7 if !there.is_empty() => {
            let path = &there[rng.random_range(0..there.len())];
            put(path, content);
            files.insert(path.clone(), Known { now: Some(content) });
        }
        _ if !there.is_empty() => {
            let old = &there[rng.random_range(0..there.len())];
            *next += 1;
            let new = PathBuf::from(format!("r{next}"));
            std::fs::rename(node.mount().join(old), node.mount().join(&new)).expect("rename");
            let known = files.insert(old.clone(), Known::default());
            files.insert(new, known.unwrap_or_default());
        }
        _ => {}
    }
}
