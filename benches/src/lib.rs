//! Benches. The programs in `src/bin` choose between things, ask nothing and print a table:
//!
//! | program | what it measures |
//! |---|---|
//! | `embedded-store` | fjall against redb: group commit and reopening (docs/adr/0003-embedded-store.md) |
//! | `eviction` | hit rates of eviction policies (docs/adr/0009-eviction.md) |
//! | `namespace-memory` | RAM of the namespace's store (docs/adr/0006-memory-of-the-control-plane.md) |
//!
//! The files beside this folder measure a layer each, with criterion. What they share is here.

use fastcache_chunkstore::{SealChunk, SealData, Store, StoreOptions};
use fastcache_reactor::{Config, IoBuf, Remote};
use fastcache_types::{BLOCK, ChunkKey, Ino, Version, blocks_of};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A core of the reactor on a thread of its own, for as long as the process lives.
pub struct Core {
    remote: Remote,
}

impl Core {
    /// Starts it.
    ///
    /// # Panics
    /// Where there is no io_uring.
    #[must_use]
    pub fn start() -> Core {
        let (say, hear) = mpsc::channel();
        std::thread::spawn(move || {
            let config = Config {
                pool_buffers: 64,
                ..Config::default()
            };
            let ended = fastcache_reactor::run(config, || async move {
                let _ = say.send(fastcache_reactor::remote());
                std::future::pending::<()>().await;
            });
            panic!("the reactor ended: {ended:?}");
        });
        match hear.recv() {
            Ok(remote) => Core { remote },
            Err(_) => panic!("the reactor did not start: is io_uring allowed here?"),
        }
    }

    /// Its handle.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Runs a future there and waits for what it returns.
    ///
    /// # Panics
    /// When the future does.
    pub fn wait<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (say, hear) = mpsc::channel();
        self.remote.spawn(move || {
            let work = make();
            async move {
                let _ = say.send(work.await);
            }
        });
        match hear.recv() {
            Ok(value) => value,
            Err(_) => panic!("the work on the core failed"),
        }
    }

    /// How long `n` rounds of something take there.
    pub fn time<F>(&self, n: u64, round: impl Fn(u64) -> F + Send + 'static) -> Duration
    where
        F: Future<Output = ()> + 'static,
    {
        self.wait(move || async move {
            let began = Instant::now();
            for at in 0..n {
                round(at).await;
            }
            began.elapsed()
        })
    }
}

/// How a store for a bench is opened.
#[must_use]
pub fn store_options(path: &Path, capacity_bytes: u64) -> StoreOptions {
    StoreOptions {
        path: path.to_path_buf(),
        capacity_bytes,
        format: false,
        force: false,
        crc_budget_bytes: 64 << 20,
    }
}

/// The key of a chunk.
#[must_use]
pub fn key(ino: u64, index: u32, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index,
        version: Version(version),
    }
}

/// A clean chunk of `len` bytes, to be sealed.
#[must_use]
pub fn chunk(key: ChunkKey, len: u32) -> SealChunk {
    let mut buf = IoBuf::alloc(blocks_of(len) as usize * BLOCK);
    buf[..len as usize].fill(7);
    SealChunk {
        key,
        len,
        is_dirty: false,
        is_kept: false,
        is_pending: false,
        data: SealData::Inline { buf },
    }
}

/// A new store at `path` on a core.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn store(core: &Core, path: &Path, capacity_bytes: u64) -> Store {
    let options = store_options(path, capacity_bytes);
    core.wait(move || async move {
        match Store::open(options).await {
            Ok((store, _)) => store,
            Err(error) => panic!("{error}"),
        }
    })
}
