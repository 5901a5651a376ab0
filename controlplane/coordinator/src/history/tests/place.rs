//! A namespace that changes at random, its disk, and its bucket.

use super::*;
use fastcache_api::{
    ChunkKey, CloudRef, Commit, Cred, HistoryStatus, NewInode, NsRequest, OpId, PersistedChunk,
    Run, Time, Version, XattrMode,
};
use fastcache_cloud::CloudConfig;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) const QUICK: HistoryOptions = HistoryOptions {
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
pub(super) struct Place {
    home: tempfile::TempDir,
    seq: u64,
    rng: StdRng,
    files: Vec<Ino>,
    dirs: Vec<Ino>,
    names: Vec<(Ino, Vec<u8>)>,
}

impl Place {
    pub(super) fn new(seed: u64) -> Place {
        Place {
            home: tempfile::tempdir().unwrap(),
            seq: 0,
            rng: StdRng::seed_from_u64(seed),
            files: Vec::new(),
            dirs: vec![Ino::ROOT],
            names: Vec::new(),
        }
    }

    pub(super) fn state(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(super) fn bucket(&self) -> PathBuf {
        self.home.path().join("bucket")
    }

    pub(super) fn cloud(&self) -> Cloud {
        let path = self.bucket();
        Cloud::open(&CloudConfig::Dir { path }).unwrap().unwrap()
    }

    pub(super) async fn try_start(
        &self,
        state: &str,
        options: HistoryOptions,
    ) -> Result<Engine, EngineError> {
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

    pub(super) async fn start(&self, state: &str, options: HistoryOptions) -> Engine {
        self.try_start(state, options).await.unwrap()
    }

    pub(super) async fn rebuild(
        &self,
        state: &str,
        options: RebuildOptions,
    ) -> Result<Rebuilt, RebuildError> {
        let dir = self.state(state);
        std::fs::create_dir_all(&dir).unwrap();
        rebuild(&self.cloud(), &dir, options, |_| {}).await
    }

    pub(super) async fn ask(
        &mut self,
        engine: &Engine,
        op: NsOp,
    ) -> Result<NsAnswer, fastcache_api::Errno> {
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
    pub(super) async fn change(&mut self, engine: &Engine) {
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
    pub(super) async fn write(&mut self, engine: &Engine, ino: Ino) {
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

    pub(super) async fn persist(&mut self, engine: &Engine) -> HistoryStatus {
        match self.ask(engine, NsOp::Persist { upto: 0 }).await {
            Ok(NsAnswer::History(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn status(&mut self, engine: &Engine) -> HistoryStatus {
        match self.ask(engine, NsOp::History { ino: None }).await {
            Ok(NsAnswer::History(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn objects(&self, under: &str) -> Vec<String> {
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

pub(super) fn make(parent: Ino, name: &[u8], kind: Kind) -> NsOp {
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
pub(super) async fn dump(state: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
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

pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
