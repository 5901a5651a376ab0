//! How the stores of the images came to be.

use fastcache_chunkstore::{
    BlockRun, ChunkBody, PendingSeal, SealChunk, SealData, SealFile, Store, StoreError,
    StoreOptions, crc_blocks,
};
use fastcache_reactor::{Config, IoBuf, run};
use fastcache_types::{BLOCK, ChunkKey, Extent, Ino, Version, blocks_of};
use std::path::Path;
use std::sync::Arc;

/// Bytes of a device: the smallest store.
const BYTES: u64 = 16 << 20;

/// Makes a store at a path.
pub type Make = fn(&Path);

/// Each image, and what makes it.
pub const SCENES: [(&str, Make); 4] = [
    ("clean", clean),
    ("journal-tail", journal_tail),
    ("pending-seals", pending_seals),
    ("checkpoints", checkpoints),
];

fn key(ino: u64, index: u32, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index,
        version: Version(version),
    }
}

/// The bytes of a version, padded with zeros to whole blocks: each block another pattern, which packs well.
pub fn contents(version: u64, len: u32) -> Vec<u8> {
    let mut out = vec![0; blocks_of(len) as usize * BLOCK];
    for (n, block) in out.chunks_mut(BLOCK).enumerate() {
        let word = (version << 16 | n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        block
            .chunks_mut(8)
            .for_each(|c| c.copy_from_slice(&word.to_le_bytes()));
    }
    out[len as usize..].fill(0);
    out
}

fn buf(bytes: &[u8]) -> IoBuf {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

fn chunk(key: ChunkKey, len: u32) -> SealChunk {
    let data = SealData::Inline {
        buf: buf(&contents(key.version.0, len)),
    };
    SealChunk {
        key,
        len,
        is_dirty: true,
        is_kept: false,
        is_pending: false,
        data,
    }
}

fn pending(key: ChunkKey, len: u32) -> SealChunk {
    SealChunk {
        is_pending: true,
        ..chunk(key, len)
    }
}

fn file(ino: u64, commit: &str) -> Option<SealFile> {
    Some(SealFile {
        ino: Ino(ino),
        commit: commit.as_bytes().to_vec(),
    })
}

/// One start of the program on a store; it ends as if it were killed.
pub fn session<T>(
    path: &Path,
    main: impl AsyncFnOnce(Store, Vec<PendingSeal>) -> T,
) -> Result<T, StoreError> {
    let config = Config {
        cpu: None,
        entries: 64,
        pool_buffers: 1,
        buffer_bytes: 1 << 20,
        wide_entries: false,
    };
    let options = StoreOptions {
        path: path.to_path_buf(),
        capacity_bytes: BYTES,
        format: false,
        force: false,
        crc_budget_bytes: 0,
    };
    run(config, || async {
        let (store, recovered) = Store::open(options).await?;
        Ok(main(store, recovered.pending).await)
    })
    .unwrap()
}

/// The bytes of a chunk, its last block padded.
pub async fn read(store: &Store, body: &Arc<ChunkBody>) -> Vec<u8> {
    let len = blocks_of(body.len()) as usize * BLOCK;
    let (result, buf) = store.read(body, 0, IoBuf::alloc(len)).await;
    result.unwrap();
    buf.to_vec()
}

/// Seals a file of one chunk, and says that the coordinator knows it.
async fn whole_file(store: &Store, key: ChunkKey, len: u32) {
    let sealed = store
        .seal(vec![chunk(key, len)], file(key.ino.0, "known"))
        .await
        .unwrap();
    store.committed(key.ino, sealed.number).await.unwrap();
}

/// A chunk of 10 blocks that lies in two places.
async fn in_two_places(store: &Store, key: ChunkKey) {
    let len = 10 * BLOCK as u32;
    let bytes = contents(key.version.0, len);
    let crcs = crc_blocks(&bytes);
    let mut runs = Vec::new();
    for (first, blocks) in [(0, 3), (3, 7)] {
        let extent: Extent = store.allocate(blocks).unwrap();
        let from = first as usize * BLOCK;
        let part = buf(&bytes[from..from + blocks as usize * BLOCK]);
        store.write_blocks(extent.start, part).await.0.unwrap();
        runs.push(BlockRun { first, extent });
        // Nothing is sealed into it: only so that the two do not touch.
        store.allocate(1).unwrap();
    }
    let seal = SealChunk {
        key,
        len,
        is_dirty: true,
        is_kept: false,
        is_pending: false,
        data: SealData::Placed { runs, crcs },
    };
    store.seal(vec![seal], None).await.unwrap();
}

/// Closed in order: everything is in the newest checkpoint.
fn clean(path: &Path) {
    session(path, async |store, _| {
        whole_file(&store, key(1, 0, 1), 1).await;
        whole_file(&store, key(1, 1, 2), 4096).await;
        whole_file(&store, key(2, 0, 3), 20_000).await;
        in_two_places(&store, key(3, 7, 4)).await;
        let all = [key(1, 0, 1), key(2, 0, 3)];
        assert_eq!(store.mark_clean(&all).await.unwrap().len(), 2);
        store.close().await.unwrap();
    })
    .unwrap();
}

/// Killed: a checkpoint of an earlier session, and a journal behind it with every kind of record.
fn journal_tail(path: &Path) {
    clean(path);
    session(path, async |store, _| {
        // Replaced, cleaned, removed, added.
        whole_file(&store, key(1, 0, 11), 5000).await;
        store.mark_clean(&[key(1, 1, 2)]).await.unwrap();
        store.remove(&[key(2, 0, 3)]).await.unwrap();
        whole_file(&store, key(4, 0, 12), 100 << 10).await;
        let many = (0..40).map(|n| chunk(key(5, n, 20 + u64::from(n)), 100));
        store.seal(many.collect(), None).await.unwrap();
        store.flush().await.unwrap();
    })
    .unwrap();
}

/// Killed with seals that the coordinator does not know, and chunks that wait for a seal that never came.
fn pending_seals(path: &Path) {
    clean(path);
    session(path, async |store, _| {
        let seal = |c, f| store.seal(vec![c], f);
        seal(chunk(key(6, 0, 30), 3000), file(6, "six"))
            .await
            .unwrap();
        // Pending, then confirmed by the seal of its file.
        seal(pending(key(7, 0, 31), 9000), None).await.unwrap();
        seal(chunk(key(7, 1, 32), 10), file(7, "seven"))
            .await
            .unwrap();
        // Pending for ever: what it replaced comes back, and the new one goes.
        seal(pending(key(1, 0, 33), 6000), None).await.unwrap();
        seal(pending(key(8, 0, 34), 6000), None).await.unwrap();
        store.flush().await.unwrap();
    })
    .unwrap();
}

/// Killed after several laps of the journal: both checkpoint areas were written more than once, by two sessions.
fn checkpoints(path: &Path) {
    session(path, async |store, _| {
        for n in 0..300u64 {
            let index = (n % 6) as u32;
            store
                .seal(vec![chunk(key(1, index, 100 + n), 4096)], None)
                .await
                .unwrap();
            // What was replaced can be used again.
            if n % 32 == 31 {
                store.flush().await.unwrap();
            }
        }
    })
    .unwrap();
    session(path, async |store, _| {
        for n in 300..600u64 {
            let index = (n % 7) as u32;
            store
                .seal(vec![chunk(key(2, index, 100 + n), 100)], None)
                .await
                .unwrap();
            if n % 32 == 31 {
                store.flush().await.unwrap();
            }
        }
        store.seal(vec![], file(2, "two")).await.unwrap();
        store.flush().await.unwrap();
    })
    .unwrap();
}
