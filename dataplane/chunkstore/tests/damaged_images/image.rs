//! An image of a store as docs/disk-layout.md draws it, read and changed without the store's own code, so that the
//! page is tested, too. And the store that makes it.

use fastcache_chunkstore::{
    BlockRun, ChunkBody, PendingSeal, SealChunk, SealData, SealFile, Store, StoreError,
    StoreOptions, crc_all, crc_blocks,
};
use fastcache_reactor::{Config, Disk, DiskOptions, IoBuf, run};
use fastcache_types::{BLOCK, ChunkKey, Extent, Ino, Version, blocks_of};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Bytes of the image: the smallest store.
pub const BYTES: u64 = 16 << 20;
/// The first of the chunks that are sealed together, and how many there are: their records take two blocks.
pub const BATCH: u64 = 100;
pub const BATCH_COUNT: u32 = 150;
/// The chunk whose header and data the table damages, and its length.
pub const VICTIM: u64 = 4;
pub const VICTIM_LEN: u32 = 64 << 10;

/// What each version is: its place in a file, and its length.
pub fn history() -> BTreeMap<u64, (ChunkKey, u32)> {
    let mut all = BTreeMap::new();
    let mut add = |ino, index, version, len| {
        all.insert(version, (key(ino, index, version), len));
    };
    add(1, 0, 1, VICTIM_LEN);
    add(1, 1, 2, 5000);
    add(2, 0, 3, 1 << 20);
    add(1, 0, VICTIM, VICTIM_LEN);
    add(4, 0, 5, 20_000);
    add(3, 0, 6, 40_960);
    add(3, 0, 7, 40_960);
    add(5, 0, 8, 100 << 10);
    add(6, 0, 9, 8192);
    add(7, 0, 10, 4096);
    add(8, 0, 11, 30_000);
    add(77, 0, 9999, 12_345);
    for n in 0..BATCH_COUNT {
        add(9, n, BATCH + u64::from(n), 1);
    }
    all
}

/// What is readable when nothing is damaged: 1 and 6 were replaced, 9 was removed, 11 was never sealed.
pub fn undamaged() -> Vec<u64> {
    let gone = [1, 6, 9, 11, 9999];
    history()
        .into_keys()
        .filter(|v| !gone.contains(v))
        .collect()
}

pub fn key(ino: u64, index: u32, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index,
        version: Version(version),
    }
}

fn seeded(seed: u64, len: u32) -> Vec<u8> {
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

/// The bytes of a version. Version 7 shares the first half of version 6.
pub fn contents(version: u64, len: u32) -> Vec<u8> {
    let mut bytes = seeded(version, len);
    if version == 7 {
        bytes[..5 * BLOCK].copy_from_slice(&seeded(6, len)[..5 * BLOCK]);
    }
    bytes
}

fn buf(bytes: &[u8]) -> IoBuf {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

/// A version to be sealed, from RAM.
pub fn chunk(version: u64) -> SealChunk {
    let (key, len) = history()[&version];
    SealChunk {
        key,
        len,
        is_dirty: version != 3,
        is_kept: false,
        is_pending: version == 11,
        data: SealData::Inline {
            buf: buf(&contents(version, len)),
        },
    }
}

fn file(ino: u64, commit: &str) -> Option<SealFile> {
    Some(SealFile {
        ino: Ino(ino),
        commit: commit.as_bytes().to_vec(),
    })
}

pub fn options(path: &Path) -> StoreOptions {
    StoreOptions {
        path: path.to_path_buf(),
        capacity_bytes: BYTES,
        format: false,
        force: false,
        crc_budget_bytes: 0,
    }
}

/// Where images are made: in RAM where that takes O_DIRECT (tmpfs does since Linux 6.6), because each of the hundreds of
/// starts flushes several times.
pub fn dir() -> TempDir {
    let in_ram = tempfile::tempdir_in("/dev/shm").ok();
    let takes_direct = |dir: &TempDir| {
        let path = dir.path().join("probe");
        let disk = Disk::open(
            &path,
            DiskOptions {
                create_len: Some(4096),
            },
        );
        disk.is_ok_and(|disk| disk.is_direct()) && std::fs::remove_file(path).is_ok()
    };
    in_ram
        .filter(takes_direct)
        .unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// One start of the program on the image; it ends as if it were killed.
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
    run(config, || async {
        let (store, recovered) = Store::open(options(path)).await?;
        Ok(main(store, recovered.pending).await)
    })
    .unwrap()
}

pub async fn read(store: &Store, body: &Arc<ChunkBody>) -> Result<Vec<u8>, StoreError> {
    let len = blocks_of(body.len()) as usize * BLOCK;
    let (result, buf) = store.read(body, 0, IoBuf::alloc(len)).await;
    result.map(|()| buf.to_vec())
}

/// Seals version 6, and version 7 that shares half of its blocks.
async fn seal_shared(store: &Store) {
    let (k6, len) = history()[&6];
    let (k7, _) = history()[&7];
    let crcs = crc_blocks(&contents(6, len));
    let first = store.allocate(10).unwrap();
    let bytes = contents(6, len);
    store
        .write_blocks(first.start, buf(&bytes))
        .await
        .0
        .unwrap();
    let placed = |key, runs, crcs| SealChunk {
        key,
        len,
        is_dirty: true,
        is_kept: false,
        is_pending: false,
        data: SealData::Placed { runs, crcs },
    };
    let whole = BlockRun {
        first: 0,
        extent: first,
    };
    let held = store
        .seal(vec![placed(k6, vec![whole], crcs)], None)
        .await
        .unwrap();
    let second = store.allocate(5).unwrap();
    let bytes = contents(7, len);
    store
        .write_blocks(second.start, buf(&bytes[5 * BLOCK..]))
        .await
        .0
        .unwrap();
    let runs = vec![
        BlockRun {
            first: 0,
            extent: Extent { len: 5, ..first },
        },
        BlockRun {
            first: 5,
            extent: second,
        },
    ];
    store
        .seal(vec![placed(k7, runs, crc_blocks(&bytes))], None)
        .await
        .unwrap();
    drop(held);
}

/// A store with a history: two checkpoints, uncommitted files, and a journal of seven groups behind the newest one.
pub fn make(path: &Path) {
    session(path, async |store, _| {
        let sealed = store
            .seal(vec![chunk(1), chunk(2)], file(1, "one"))
            .await
            .unwrap();
        store.committed(Ino(1), sealed.number).await.unwrap();
        store.seal(vec![chunk(3)], None).await.unwrap();
        // More than one lap of the journal's ring (256 blocks), so that old groups lie behind its end.
        for _ in 0..260 {
            store.mark_clean(&[history()[&3].0]).await.unwrap();
        }
        store.close().await.unwrap();
    })
    .unwrap();
    session(path, async |store, _| {
        // Its blocks are not reused as long as somebody could read them.
        let _replaced = store.get(history()[&1].0.id()).unwrap();
        store
            .seal(vec![chunk(VICTIM)], file(1, "two"))
            .await
            .unwrap();
        store.seal(vec![chunk(5)], None).await.unwrap();
        seal_shared(&store).await;
        store.close().await.unwrap();
        // Each of these is a group of its own.
        store.seal(vec![chunk(8)], file(5, "five")).await.unwrap();
        store.seal(vec![chunk(9)], None).await.unwrap();
        store.mark_clean(&[history()[&5].0]).await.unwrap();
        store.remove(&[history()[&9].0]).await.unwrap();
        store.seal(vec![chunk(10)], None).await.unwrap();
        let batch = (0..u64::from(BATCH_COUNT)).map(|n| chunk(BATCH + n));
        store.seal(batch.collect(), None).await.unwrap();
        store.seal(vec![chunk(11)], None).await.unwrap();
        store.flush().await.unwrap();
    })
    .unwrap();
}

/// A group of the journal.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub position: u64,
    /// Where it is in the image, byte.
    pub at: usize,
    pub blocks: usize,
}

/// The bytes of a device.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(pub Vec<u8>);

impl Image {
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    pub fn flip(&mut self, at: usize) {
        self.0[at] ^= 0x10;
    }
    pub fn zero(&mut self, at: usize, len: usize) {
        self.0[at..at + len].fill(0);
    }
    /// Bytes that look like nothing.
    pub fn scramble(&mut self, at: usize, len: usize) {
        let noise = seeded(0xBAD, u32::try_from(len).unwrap());
        self.0[at..at + len].copy_from_slice(&noise[..len]);
    }
    pub fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.0.copy_within(from..from + len, to);
    }

    fn extent(&self, at: usize) -> (usize, usize) {
        let block = |n| self.u32(n) as usize * BLOCK;
        (block(at), block(at + 4))
    }
    /// Byte and length of the journal.
    pub fn journal(&self) -> (usize, usize) {
        self.extent(48)
    }
    /// Bytes of the two checkpoint areas, the newer one first.
    pub fn checkpoints(&self) -> [usize; 2] {
        let (a, b) = (self.extent(56).0, self.extent(64).0);
        if self.u64(a + 16) > self.u64(b + 16) {
            [a, b]
        } else {
            [b, a]
        }
    }
    /// Byte and length of the data region.
    pub fn data(&self) -> (usize, usize) {
        self.extent(72)
    }
    pub fn store_id(&self) -> u64 {
        self.u64(16) ^ self.u64(24).rotate_left(1)
    }

    /// Changes both superblocks and makes their checksums right.
    pub fn superblocks(&mut self, change: impl Fn(&mut [u8])) {
        for copy in [0, 16 * BLOCK] {
            self.superblock(copy, &change);
        }
    }
    /// Changes one superblock and makes its checksum right.
    pub fn superblock(&mut self, copy: usize, change: impl Fn(&mut [u8])) {
        change(&mut self.0[copy..copy + BLOCK]);
        let crc = crc_all(&self.0[copy..copy + BLOCK - 4]);
        self.put(copy + BLOCK - 4, &crc.to_le_bytes());
    }

    /// Changes the header of a checkpoint and makes its checksum right.
    pub fn checkpoint(&mut self, at: usize, change: impl Fn(&mut [u8])) {
        change(&mut self.0[at..at + 52]);
        let crc = crc_all(&self.0[at..at + 52]);
        self.put(at + 52, &crc.to_le_bytes());
    }

    fn place(&self, position: u64) -> usize {
        let (start, len) = self.journal();
        start + usize::try_from(position).unwrap() * BLOCK % len
    }

    /// The groups behind the newest checkpoint.
    pub fn groups(&self) -> Vec<Group> {
        let mut position = self.u64(self.checkpoints()[0] + 24);
        let mut all = Vec::new();
        loop {
            let at = self.place(position);
            if &self.0[at..at + 4] != b"FCJG" || self.u64(at + 16) != position {
                return all;
            }
            let blocks = (32 + self.u32(at + 28) as usize).div_ceil(BLOCK);
            all.push(Group {
                position,
                at,
                blocks,
            });
            position += blocks as u64;
        }
    }

    /// The position behind the last group.
    pub fn head(&self) -> u64 {
        self.groups()
            .last()
            .map_or(0, |g| g.position + g.blocks as u64)
    }

    /// Writes a group with right checksum at a position.
    pub fn put_group(&mut self, position: u64, generation: u32, records: &[u8]) {
        let at = self.place(position);
        let mut group = b"FCJG\0\0\0\0".to_vec();
        group.extend(self.store_id().to_le_bytes());
        group.extend(position.to_le_bytes());
        group.extend(generation.to_le_bytes());
        group.extend(u32::try_from(records.len()).unwrap().to_le_bytes());
        group.extend(records);
        let crc = crc_all(&group[8..]);
        group[4..8].copy_from_slice(&crc.to_le_bytes());
        self.put(at, &group);
    }

    /// Appends a group with right checksum, of the session that wrote the last one.
    pub fn append_group(&mut self, records: &[u8]) {
        let generation = self.u32(self.groups().last().unwrap().at + 24);
        self.put_group(self.head(), generation, records);
    }

    /// Where the header of a version is, byte: the one with the highest stamp.
    pub fn header(&self, version: u64) -> usize {
        let (start, len) = self.data();
        (start..start + len)
            .step_by(BLOCK)
            .filter(|&at| &self.0[at..at + 8] == b"FCCHUNK1" && self.u64(at + 40) == version)
            .max_by_key(|&at| self.u64(at + 48))
            .unwrap()
    }

    /// Changes the header of a version and makes its checksum right.
    pub fn change_header(&mut self, version: u64, change: impl Fn(&mut [u8])) {
        let at = self.header(version);
        change(&mut self.0[at..at + BLOCK]);
        let size = self.u32(at + 60) as usize;
        self.put(at + 56, &[0; 4]);
        let crc = crc_all(&self.0[at..at + size]);
        self.put(at + 56, &crc.to_le_bytes());
    }

    /// Where the data of a version begins, byte (its first run).
    pub fn first_data(&self, version: u64) -> usize {
        self.u32(self.header(version) + 68) as usize * BLOCK
    }
}

/// A TICKET record.
pub fn ticket(number: u64) -> Vec<u8> {
    [&[6u8, 0, 0, 0][..], &number.to_le_bytes()].concat()
}

/// A PUT record of one run.
pub fn put(key: ChunkKey, len: u32, header: u32, run: (u16, u16, u32)) -> Vec<u8> {
    let mut r = vec![1, 1, 1, 0];
    r.extend(len.to_le_bytes());
    r.extend(key.ino.0.to_le_bytes());
    r.extend(key.index.to_le_bytes());
    r.extend(header.to_le_bytes());
    r.extend(key.version.0.to_le_bytes());
    r.extend(run.0.to_le_bytes());
    r.extend(run.1.to_le_bytes());
    r.extend(run.2.to_le_bytes());
    r
}
