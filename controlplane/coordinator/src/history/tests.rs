//! Goal: what the bucket is told to have, it gives back, whatever happens around it. Method: real engines on the
//! directory backend, with small bounds, so that snapshots and pruning come often; the state that was lost and the
//! one that was rebuilt are compared key by key.

mod golden;
mod layouts;

use super::*;
use crate::{Engine, EngineError};
use fastcache_api::{
    ChunkKey, CloudRef, Commit, Cred, HistoryStatus, Ino, Kind, NewInode, NsAnswer, NsOp,
    NsRequest, OpId, PersistedChunk, RenameMode, Run, Time, Version, XattrMode,
};
use fastcache_cloud::CloudConfig;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

const QUICK: HistoryOptions = HistoryOptions {
    segment_every: Duration::from_millis(20),
    segment_bytes: 4 << 10,
    snapshot_bytes: 1 << 40,
    snapshot_segments: 1 << 40,
    garbage_wait: Duration::from_secs(3600),
    garbage_grace: Duration::ZERO,
    part_bytes: 2 << 10,
    snapshots_kept: 2,
    retry: (Duration::from_millis(10), Duration::from_millis(50)),
};

/// A coordinator's disk, and a bucket.
struct Place {
    home: tempfile::TempDir,
    seq: u64,
    rng: StdRng,
    files: Vec<Ino>,
    dirs: Vec<Ino>,
    names: Vec<(Ino, Vec<u8>)>,
}

impl Place {
    fn new(seed: u64) -> Place {
        Place {
            home: tempfile::tempdir().unwrap(),
            seq: 0,
            rng: StdRng::seed_from_u64(seed),
            files: Vec::new(),
            dirs: vec![Ino::ROOT],
            names: Vec::new(),
        }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn bucket(&self) -> PathBuf {
        self.home.path().join("bucket")
    }

    fn cloud(&self) -> Cloud {
        let path = self.bucket();
        Cloud::open(&CloudConfig::Dir { path }).unwrap().unwrap()
    }

    async fn try_start(&self, state: &str, options: HistoryOptions) -> Result<Engine, EngineError> {
        let cloud = self.cloud();
        let config = Some(HistoryConfig { cloud, options });
        let namespace = self.state(state).join("namespace");
        let begin = Instant::now();
        loop {
            // A task of the engine before may hold it for a moment.
            match Engine::start(&namespace, config.clone()).await {
                Err(EngineError::Locked(_)) if begin.elapsed() < Duration::from_secs(10) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done,
            }
        }
    }

    async fn start(&self, state: &str, options: HistoryOptions) -> Engine {
        self.try_start(state, options).await.unwrap()
    }

    async fn rebuild(&self, state: &str, options: RebuildOptions) -> Result<Rebuilt, RebuildError> {
        let dir = self.state(state);
        std::fs::create_dir_all(&dir).unwrap();
        rebuild(&self.cloud(), &dir, options, |_| {}).await
    }

    async fn ask(&mut self, engine: &Engine, op: NsOp) -> Result<NsAnswer, fastcache_api::Errno> {
        self.seq += 1;
        let id = op.is_change().then_some(OpId {
            client: 1,
            seq: self.seq,
        });
        let now = Time {
            sec: self.seq.cast_signed(),
            nsec: 0,
        };
        engine.call(NsRequest { id, now, op }).await.result
    }

    /// A random change; refusals are fine.
    async fn change(&mut self, engine: &Engine) {
        let parent = self.dirs[self.rng.random_range(0..self.dirs.len())];
        let name = format!("n{}", self.rng.random_range(0..60)).into_bytes();
        let known = |p: &mut Place| {
            let n = p.names.len();
            (n > 0).then(|| p.names[p.rng.random_range(0..n)].clone())
        };
        let file = |p: &mut Place| {
            let n = p.files.len();
            (n > 0).then(|| p.files[p.rng.random_range(0..n)])
        };
        let op = match self.rng.random_range(0..10) {
            0..=2 => {
                let kind = match self.rng.random_range(0..4) {
                    0 => Kind::Dir,
                    1 => Kind::Symlink,
                    _ => Kind::File,
                };
                let made = self.ask(engine, make(parent, &name, kind)).await;
                if let Ok(NsAnswer::Entry(attr)) = made {
                    self.names.push((parent, name));
                    match kind {
                        Kind::Dir => self.dirs.push(attr.ino),
                        Kind::File => self.files.push(attr.ino),
                        _ => {}
                    }
                }
                return;
            }
            3 => match known(self) {
                Some((parent, name)) => NsOp::Unlink { parent, name },
                None => return,
            },
            4 => match known(self) {
                Some((from, old)) => NsOp::Rename {
                    parent: from,
                    name: old,
                    new_parent: parent,
                    new_name: name,
                    mode: RenameMode::Replace,
                },
                None => return,
            },
            5 => match file(self) {
                Some(ino) => NsOp::SetXattr {
                    ino,
                    name,
                    value: vec![7; 100],
                    mode: XattrMode::Any,
                },
                None => return,
            },
            6 => match file(self) {
                Some(ino) => NsOp::Link { ino, parent, name },
                None => return,
            },
            _ => match file(self) {
                Some(ino) => return self.write(engine, ino).await,
                None => return,
            },
        };
        let _ = self.ask(engine, op).await;
    }

    /// New contents of a file, in an object.
    async fn write(&mut self, engine: &Engine, ino: Ino) {
        let Ok(NsAnswer::Opened { attr, .. }) =
            self.ask(engine, NsOp::Open { ino, write: true }).await
        else {
            return;
        };
        let Ok(NsAnswer::Versions { first, .. }) =
            self.ask(engine, NsOp::AllocVersions { count: 1 }).await
        else {
            panic!("no versions");
        };
        let version: Version = first;
        let run = Run {
            first: 0,
            count: 1,
            version,
            valid: 100,
        };
        let commit = Commit {
            ino,
            base: attr.layout_version,
            version,
            truncate: None,
            runs: vec![run],
            size: 100,
            mtime: Time { sec: 5, nsec: 5 },
            kill_suid: false,
            conflict_file: false,
        };
        self.ask(engine, NsOp::Commit(commit)).await.unwrap();
        let at = CloudRef {
            object: format!("chunks/{:x}/0-{:x}", ino.0, version.0),
            offset: 0,
            len: 100,
            crc32c: 1,
            etag: None,
        };
        let key = ChunkKey {
            ino,
            index: 0,
            version,
        };
        let chunks = vec![PersistedChunk { key, at }];
        self.ask(engine, NsOp::Persisted { chunks }).await.unwrap();
    }

    async fn persist(&mut self, engine: &Engine) -> HistoryStatus {
        match self.ask(engine, NsOp::Persist { upto: 0 }).await {
            Ok(NsAnswer::History(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn status(&mut self, engine: &Engine) -> HistoryStatus {
        match self.ask(engine, NsOp::History { ino: None }).await {
            Ok(NsAnswer::History(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    fn objects(&self, under: &str) -> Vec<String> {
        let mut out = Vec::new();
        let mut folders = vec![self.bucket().join("history").join(under)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => out.push(path.to_str().unwrap().to_owned()),
                }
            }
        }
        out.sort();
        out
    }
}

fn make(parent: Ino, name: &[u8], kind: Kind) -> NsOp {
    NsOp::Make {
        at: Some((parent, name.to_vec())),
        new: NewInode {
            kind,
            mode: 0o644,
            rdev: 0,
            cred: Cred { uid: 1, gid: 2 },
            target: match kind {
                Kind::Symlink => b"somewhere".to_vec(),
                _ => Vec::new(),
            },
            chunk_size: match kind {
                Kind::File => 4096,
                _ => 0,
            },
        },
    }
}

/// Everything in the state of a namespace that nobody has open.
async fn dump(state: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let begin = Instant::now();
    let db = loop {
        match fjall::Database::builder(state.join("namespace")).open() {
            Ok(db) => break db,
            Err(fjall::Error::Locked) if begin.elapsed() < Duration::from_secs(10) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => panic!("{e}"),
        }
    };
    let state = db
        .keyspace("state", fjall::KeyspaceCreateOptions::default)
        .unwrap();
    let pair = |guard: fjall::Guard| {
        let (key, value) = guard.into_inner().unwrap();
        (key.to_vec(), value.to_vec())
    };
    state.iter().map(pair).collect()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_alone_gives_the_state_back() {
    let mut place = Place::new(1);
    let engine = place.start("a", QUICK).await;
    for n in 0..600 {
        place.change(&engine).await;
        if n % 100 == 0 {
            let status = place.persist(&engine).await;
            assert_eq!(status.shipped_position, status.log_position);
        }
    }
    let status = place.persist(&engine).await;
    assert!(place.objects("log").len() > 5, "a segment is small here");
    drop(engine);
    let rebuilt = place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(rebuilt.position, status.log_position);
    assert!(rebuilt.incomplete.is_empty(), "{:?}", rebuilt.incomplete);
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);

    // It goes on from there, in a later epoch, and the state it came from is out of date.
    let again = place.start("b", QUICK).await;
    assert!(again.stats().epoch > 1000);
    place.change(&again).await;
    let status = place.persist(&again).await;
    assert_eq!(status.shipped_position, status.log_position);
    let error = place.try_start("a", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("out of date"), "{error}");
    drop(again);
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("b")).await, dump(&place.state("c")).await);
    // And there is nothing to rebuild over.
    let error = place
        .rebuild("c", RebuildOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, RebuildError::NotEmpty(_)), "{error}");
    let replace = RebuildOptions {
        replace: true,
        ..RebuildOptions::default()
    };
    let rebuilt = place.rebuild("c", replace).await.unwrap();
    assert!(rebuilt.put_aside.unwrap().exists());
}

/// Chunks that went with the disks come back once, after a rebuild, and whoever is killed over it does it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_state_says_so_until_it_is_settled() {
    let mut place = Place::new(7);
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    assert!(!engine.is_unsettled());
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    for (is_unsettled, is_done) in [(true, false), (true, true), (false, false)] {
        let engine = place.start("b", QUICK).await;
        assert_eq!(engine.is_unsettled(), is_unsettled);
        if is_done {
            engine.settled().unwrap();
            assert!(!engine.is_unsettled());
        }
        drop(engine);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_replace_what_is_older() {
    let options = HistoryOptions {
        snapshot_segments: 4,
        part_bytes: 32 << 10,
        ..QUICK
    };
    let mut place = Place::new(2);
    let engine = place.start("a", options).await;
    for _ in 0..200 {
        for _ in 0..6 {
            place.change(&engine).await;
        }
        place.persist(&engine).await;
    }
    let manifests = |p: &Place| {
        let all = p.objects("snapshots");
        all.iter().filter(|o| o.ends_with("manifest")).count()
    };
    until("snapshots were taken", || {
        engine.progress().snapshot > engine.log_position() / 2
    })
    .await;
    place.persist(&engine).await;
    drop(engine);
    until("the writer ended", || manifests(&place) <= 3).await;
    assert!(manifests(&place) >= 2);
    let rebuilt = place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert!(rebuilt.position > 500);
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);

    // The last snapshot is damaged: the one before it, and the log since, do as well.
    let all = place.objects("snapshots");
    let last = all.iter().rfind(|o| o.ends_with("manifest")).unwrap();
    let part = last.replace("manifest", "000000");
    let mut bytes = std::fs::read(&part).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("c")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_accepted_only_when_asked() {
    let mut place = Place::new(3);
    let engine = place.start("a", QUICK).await;
    for _ in 0..10 {
        place.change(&engine).await;
        place.change(&engine).await;
        place.persist(&engine).await;
    }
    drop(engine);
    let segments = place.objects("log");
    let victim = &segments[segments.len() / 2];
    let name = victim.rsplit('/').next().unwrap().to_owned();
    let whole = std::fs::read(victim).unwrap();
    for kind in 0..4 {
        match kind {
            0 => std::fs::write(victim, &whole[..whole.len() - 1]).unwrap(),
            1 => std::fs::write(victim, b"").unwrap(),
            2 => std::fs::write(victim, vec![b'x'; 500]).unwrap(),
            _ => std::fs::remove_file(victim).unwrap(),
        }
        let error = place
            .rebuild("b", RebuildOptions::default())
            .await
            .unwrap_err();
        let text = error.to_string();
        let first = name.split('-').next().unwrap();
        assert!(
            text.contains(first) && text.contains("--accept-loss"),
            "{text}"
        );
        assert!(!place.state("b").join("namespace").exists());
    }
    let accept = RebuildOptions {
        accept_loss: true,
        ..RebuildOptions::default()
    };
    let rebuilt = place.rebuild("b", accept).await.unwrap();
    let first = u64::from_str_radix(name.split('-').next().unwrap(), 16).unwrap();
    assert_eq!(rebuilt.position, first - 1);
    assert!(rebuilt.lost_behind.is_some());
    // What follows from there is the history: what lay behind the damage is void.
    let engine = place.start("b", QUICK).await;
    place.change(&engine).await;
    let status = place.persist(&engine).await;
    assert_eq!(status.shipped_position, status.log_position);
    drop(engine);
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("b")).await, dump(&place.state("c")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_overtaken_stops_and_says_why() {
    let mut place = Place::new(4);
    let old = place.start("a", QUICK).await;
    for _ in 0..50 {
        place.change(&old).await;
    }
    place.persist(&old).await;
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    let new = place.start("b", QUICK).await;
    place.change(&old).await;
    let status = place.persist(&old).await;
    assert_eq!(status.state, HistoryState::Stopped);
    assert!(status.shipped_position < status.log_position);
    assert!(
        status.error.as_ref().unwrap().contains("out of date"),
        "{status:?}"
    );
    assert_eq!(
        old.garbage_released(),
        0,
        "its garbage may be in use elsewhere"
    );
    place.change(&new).await;
    let status = place.persist(&new).await;
    assert_eq!(status.shipped_position, status.log_position);
    drop((old, new));
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("b")).await, dump(&place.state("c")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_somebody_elses_is_refused() {
    let mut place = Place::new(5);
    let nothing = place.rebuild("z", RebuildOptions::default()).await;
    assert!(matches!(nothing, Err(RebuildError::Nothing(_))));
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    drop(engine);
    // An empty state on a bucket that is not.
    let error = place.try_start("b", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("--rebuild"), "{error}");
    assert!(!place.state("b").join("namespace").exists());
    // A state of its own on that bucket.
    let other = Engine::start(&place.state("b").join("namespace"), None)
        .await
        .unwrap();
    drop(other);
    let error = place.try_start("b", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("another file system"), "{error}");
    // An old copy of the right state.
    let copy = place.state("copy");
    dump(&place.state("a")).await;
    let from = place.state("a");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &copy])
        .status();
    assert!(status.unwrap().success());
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    drop(engine);
    let error = place.try_start("copy", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("out of date"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_delays_and_loses_nothing() {
    let mut place = Place::new(6);
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    let (bucket, away) = (place.bucket(), place.state("away"));
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"a file where a directory was").unwrap();
    for _ in 0..200 {
        place.change(&engine).await;
    }
    until("the failure is told", || engine.progress().error.is_some()).await;
    let status = place.status(&engine).await;
    assert!(status.lag_ms.is_some() && status.shipped_position < status.log_position);
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    until("it caught up", || {
        let progress = engine.progress();
        progress.shipped == engine.log_position() && progress.error.is_none()
    })
    .await;
    drop(engine);
    // A start without the bucket: it goes on, and catches up.
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"").unwrap();
    let cloud = {
        std::fs::remove_file(&bucket).unwrap();
        let cloud = place.cloud();
        std::fs::remove_dir(&bucket).unwrap();
        std::fs::write(&bucket, b"").unwrap();
        cloud
    };
    let begin = Instant::now();
    let engine = loop {
        let options = QUICK;
        let config = HistoryConfig {
            cloud: cloud.clone(),
            options,
        };
        match Engine::start(&place.state("a").join("namespace"), Some(config)).await {
            Err(EngineError::Locked(_)) if begin.elapsed() < Duration::from_secs(10) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => break done.unwrap(),
        }
    };
    assert_eq!(engine.progress().state, HistoryState::Claiming);
    place.change(&engine).await;
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    until("it claimed and caught up", || {
        engine.progress().shipped == engine.log_position()
    })
    .await;
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_lost_its_history_gets_a_snapshot() {
    let mut place = Place::new(7);
    let engine = place.start("a", QUICK).await;
    for _ in 0..50 {
        place.change(&engine).await;
    }
    place.persist(&engine).await;
    drop(engine);
    std::fs::remove_dir_all(place.bucket()).unwrap();
    let engine = place.start("a", QUICK).await;
    until("a snapshot", || engine.progress().snapshot > 0).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_waits_for_a_snapshot() {
    let options = HistoryOptions {
        garbage_wait: Duration::from_millis(200),
        ..QUICK
    };
    let mut place = Place::new(8);
    let engine = place.start("a", options).await;
    let made = place.ask(&engine, make(Ino::ROOT, b"f", Kind::File)).await;
    let Ok(NsAnswer::Entry(attr)) = made else {
        panic!("{made:?}")
    };
    place.write(&engine, attr.ino).await;
    place.write(&engine, attr.ino).await;
    let take = NsOp::TakeGarbage {
        max: 10,
        upto: u64::MAX,
    };
    let before = engine.log_position();
    assert_eq!(
        place.ask(&engine, take.clone()).await,
        Ok(NsAnswer::Garbage(vec![]))
    );
    assert_eq!(
        engine.log_position(),
        before,
        "what changes nothing is no record"
    );
    until("a snapshot", || engine.progress().snapshot >= before).await;
    let Ok(NsAnswer::Garbage(objects)) = place.ask(&engine, take).await else {
        panic!()
    };
    assert_eq!(objects.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_covered_when_its_record_and_its_path_are() {
    let slow = HistoryOptions {
        segment_every: Duration::from_secs(3600),
        ..QUICK
    };
    let mut place = Place::new(9);
    let engine = place.start("a", slow).await;
    let made = place.ask(&engine, make(Ino::ROOT, b"d", Kind::Dir)).await;
    let Ok(NsAnswer::Entry(dir)) = made else {
        panic!()
    };
    let made = place.ask(&engine, make(dir.ino, b"f", Kind::File)).await;
    let Ok(NsAnswer::Entry(file)) = made else {
        panic!()
    };
    let is_covered = |ino| engine.history_status(Some(ino)).unwrap().is_covered;
    assert!(!is_covered(file.ino));
    place.persist(&engine).await;
    assert!(is_covered(file.ino) && is_covered(dir.ino));
    // Another file in the directory is another matter; another name of the directory is not.
    place
        .ask(&engine, make(dir.ino, b"g", Kind::File))
        .await
        .unwrap();
    assert!(is_covered(file.ino));
    let moved = NsOp::Rename {
        parent: Ino::ROOT,
        name: b"d".to_vec(),
        new_parent: Ino::ROOT,
        new_name: b"e".to_vec(),
        mode: RenameMode::Replace,
    };
    place.ask(&engine, moved).await.unwrap();
    assert!(!is_covered(file.ino));
    place.persist(&engine).await;
    assert!(is_covered(file.ino));
    assert!(!is_covered(Ino(404)));
}
