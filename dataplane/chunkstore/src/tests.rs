//! Goal: what callers of the store are promised, on a real file with real I/O. Each session is a `run` of the reactor;
//! a session that ends without `close` is a killed process. The helpers here serve the other test files, too.

mod cores;
mod format;
mod keeping;
mod model;
mod pending;
#[cfg(not(feature = "race"))]
mod power;
mod room;
mod sealing;
mod sick;

use crate::*;
use fastcache_reactor::{Config, IoBuf, run};
use fastcache_types::{BLOCK, ChunkId, ChunkKey, Extent, Ino, Version, blocks_of};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub(crate) const MIB: u64 = 1 << 20;
/// Bytes of a whole chunk.
const CHUNK: u32 = 4 << 20;

pub(crate) fn options(dir: &Path, mib: u64) -> StoreOptions {
    StoreOptions {
        path: dir.to_path_buf(),
        capacity_bytes: mib * MIB,
        format: false,
        force: false,
        crc_budget_bytes: 64 << 10,
    }
}

pub(crate) fn reactor<T>(main: impl AsyncFnOnce() -> T) -> T {
    let config = Config {
        cpu: None,
        entries: 128,
        pool_buffers: 1,
        buffer_bytes: 1 << 20,
        wide_entries: false,
    };
    run(config, || main()).unwrap()
}

/// Opens the store in `dir`, does something, and ends without closing it.
pub(crate) fn session<T>(dir: &Path, main: impl AsyncFnOnce(Store, Recovered) -> T) -> T {
    session_of(dir, 64, main)
}

/// The same with a store of so many MiB.
pub(crate) fn session_of<T>(
    dir: &Path,
    mib: u64,
    main: impl AsyncFnOnce(Store, Recovered) -> T,
) -> T {
    reactor(async || {
        let (store, recovered) = Store::open(options(dir, mib)).await.unwrap();
        let result = main(store.clone(), recovered).await;
        check(&store, &[]);
        result
    })
}

/// See [`Store::audit`].
pub(crate) fn check(store: &Store, held: &[Arc<ChunkBody>]) {
    store.audit(held);
}

pub(crate) fn key(ino: u64, index: u32, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index,
        version: Version(version),
    }
}

pub(crate) fn id(ino: u64, index: u32) -> ChunkId {
    ChunkId {
        ino: Ino(ino),
        index,
    }
}

/// Bytes that differ from block to block and from seed to seed, padded with zeros to whole blocks.
pub(crate) fn bytes(seed: u64, len: u32) -> Vec<u8> {
    let mut out = vec![0; blocks_of(len) as usize * BLOCK];
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in out.chunks_mut(8) {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&x.to_le_bytes());
    }
    out[len as usize..].fill(0);
    out
}

pub(crate) fn buf(bytes: &[u8]) -> IoBuf {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

pub(crate) fn inline(key: ChunkKey, bytes: &[u8], len: u32, is_dirty: bool) -> SealChunk {
    let data = SealData::Inline { buf: buf(bytes) };
    SealChunk {
        key,
        len,
        is_dirty,
        is_kept: false,
        is_pending: false,
        data,
    }
}

/// A dirty inline chunk of seeded bytes.
pub(crate) fn chunk(key: ChunkKey, len: u32) -> SealChunk {
    inline(key, &bytes(key.version.0, len), len, true)
}

pub(crate) fn pending(key: ChunkKey, len: u32) -> SealChunk {
    SealChunk {
        is_pending: true,
        ..chunk(key, len)
    }
}

pub(crate) fn clean(key: ChunkKey, len: u32) -> SealChunk {
    SealChunk {
        is_dirty: false,
        ..chunk(key, len)
    }
}

pub(crate) fn file(ino: u64, commit: &[u8]) -> Option<SealFile> {
    Some(SealFile {
        ino: Ino(ino),
        commit: commit.to_vec(),
    })
}

pub(crate) async fn read(store: &Store, body: &Arc<ChunkBody>) -> Result<Vec<u8>, StoreError> {
    let len = blocks_of(body.len()) as usize * BLOCK;
    let (result, buf) = store.read(body, 0, IoBuf::alloc(len)).await;
    assert_eq!(buf.len(), len);
    result.map(|()| buf.to_vec())
}

/// The chunk is here, in this version, with its seeded bytes.
pub(crate) async fn expect(store: &Store, key: ChunkKey, len: u32) {
    let body = store
        .get(key.id())
        .unwrap_or_else(|| panic!("{key} is not here"));
    assert_eq!((body.key(), body.len()), (key, len));
    assert!(
        read(store, &body).await.unwrap() == bytes(key.version.0, len),
        "{key}"
    );
}

/// Changes bytes of the store's file behind its back.
pub(crate) fn poke(dir: &Path, offset: u64, change: impl FnOnce(&mut [u8; 64])) {
    let path = dir.join(device::FILE_NAME);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut some = [0; 64];
    file.read_exact_at(&mut some, offset).unwrap();
    change(&mut some);
    file.write_all_at(&some, offset).unwrap();
    file.sync_all().unwrap();
}

pub(crate) fn flip(dir: &Path, offset: u64) {
    poke(dir, offset, |b| b[0] ^= 0x10);
}
