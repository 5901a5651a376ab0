//! A store with as many chunks as one likes, made without the store: a checkpoint as docs/disk-layout.md draws it in a file
//! of holes, and whole headers and data only for the chunks that are to be read.

use fastcache_chunkstore::{crc_all, crc_block};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = 4096;
const UUID: [u8; 16] = *b"warm-restart-img";
/// Bytes of records in a segment, at most.
const SEGMENT: usize = (256 << 12) - 32;
/// Length of every chunk, bytes.
pub const LEN: u32 = 4096;
/// Chunks of a file.
pub const FILE_CHUNKS: u64 = 16;

fn store_id() -> u64 {
    let (a, b) = UUID.split_at(8);
    let word = |b: &[u8]| b.iter().rev().fold(0u64, |n, &x| n << 8 | u64::from(x));
    word(a) ^ word(b).rotate_left(1)
}

/// Inode and index of the `n`th chunk; its version is `n + 1`.
pub fn place(n: u64) -> (u64, u32) {
    (2 + n / FILE_CHUNKS, (n % FILE_CHUNKS) as u32)
}

/// The bytes of the `n`th chunk.
pub fn contents(n: u64) -> Vec<u8> {
    let word = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    word.repeat(LEN as usize / 8)
}

fn stripe(ino: u64) -> u64 {
    ino.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56
}

/// First block of a part and its blocks.
type Extent = (u64, u64);

struct Geometry {
    total: u64,
    journal: Extent,
    areas: [Extent; 2],
    data: Extent,
}

fn geometry(chunks: u64) -> Geometry {
    // Two blocks a chunk in 9/10 of the device.
    let total = (chunks * 2 * 10 / 9 + 8192).max(4096);
    let journal = (total / 256).clamp(1024, 16_384).min(total / 16);
    let area = (total * 20).div_ceil(BLOCK);
    let area = area + area / 16 + 17;
    let data = 32 + journal + 2 * area;
    Geometry {
        total,
        journal: (32, journal),
        areas: [(32 + journal, area), (32 + journal + area, area)],
        data: (data, total - data),
    }
}

fn superblock(g: &Geometry) -> Vec<u8> {
    let mut b = b"FASTCACH".to_vec();
    b.extend(1u32.to_le_bytes());
    b.extend(4096u32.to_le_bytes());
    b.extend(UUID);
    b.extend(1u32.to_le_bytes());
    b.extend((g.total as u32).to_le_bytes());
    b.extend(0u64.to_le_bytes());
    for (start, len) in [g.journal, g.areas[0], g.areas[1], g.data] {
        b.extend((start as u32).to_le_bytes());
        b.extend((len as u32).to_le_bytes());
    }
    b.resize(BLOCK as usize - 4, 0);
    b.extend(crc_all(&b).to_le_bytes());
    b
}

fn put(n: u64, header: u32) -> Vec<u8> {
    let (ino, index) = place(n);
    let mut r = vec![1, 0, 1, 0];
    r.extend(LEN.to_le_bytes());
    r.extend(ino.to_le_bytes());
    r.extend(index.to_le_bytes());
    r.extend(header.to_le_bytes());
    r.extend((n + 1).to_le_bytes());
    r.extend([0, 0, 1, 0]);
    r.extend((header + 1).to_le_bytes());
    r
}

fn mark(stripe: u16) -> Vec<u8> {
    let mut r = vec![7, 0];
    r.extend(stripe.to_le_bytes());
    r.extend(1u64.to_le_bytes());
    r
}

fn segment(records: &[u8]) -> Vec<u8> {
    let mut s = b"FCSG\0\0\0\0".to_vec();
    s.extend(store_id().to_le_bytes());
    s.extend(2u64.to_le_bytes());
    s.extend((records.len() as u32).to_le_bytes());
    s.extend([0; 4]);
    s.extend(records);
    let crc = crc_all(&s[8..]).to_le_bytes();
    s[4..8].copy_from_slice(&crc);
    s
}

fn header(n: u64, at: u32) -> Vec<u8> {
    let (ino, index) = place(n);
    let mut h = b"FCCHUNK1".to_vec();
    h.extend(store_id().to_le_bytes());
    h.extend([1, 0, 0, 0, 1, 0, 0, 0]);
    h.extend(ino.to_le_bytes());
    h.extend(index.to_le_bytes());
    h.extend(LEN.to_le_bytes());
    h.extend((n + 1).to_le_bytes());
    h.extend((1u64 << 32 | n).to_le_bytes());
    h.extend(0u32.to_le_bytes());
    h.extend(76u32.to_le_bytes());
    h.extend([0, 0, 1, 0]);
    h.extend((at + 1).to_le_bytes());
    h.extend(crc_block(&contents(n)).to_le_bytes());
    let crc = crc_all(&h).to_le_bytes();
    h[56..60].copy_from_slice(&crc);
    h
}

/// Makes a store of `chunks` clean chunks; of every `every`th also the header and the data are there.
pub fn make(path: &Path, chunks: u64, every: u64) -> io::Result<()> {
    let g = geometry(chunks);
    assert!(
        chunks * 2 <= g.data.1,
        "{} blocks do not hold them",
        g.data.1
    );
    let file = File::create(path)?;
    file.set_len(g.total * BLOCK)?;
    for copy in [0, 16] {
        file.write_all_at(&superblock(&g), copy * BLOCK)?;
    }
    let mut by_stripe: Vec<Vec<u64>> = vec![Vec::new(); 256];
    for n in 0..chunks {
        by_stripe[stripe(place(n).0) as usize].push(n);
        let at = g.data.0 + 2 * n;
        if n % every == 0 {
            file.write_all_at(&header(n, at as u32), at * BLOCK)?;
            file.write_all_at(&contents(n), (at + 1) * BLOCK)?;
        }
    }
    let mut pieces = vec![mark(u16::MAX)];
    for (stripe, chunks) in by_stripe.iter().enumerate() {
        pieces.push(mark(stripe as u16));
        pieces.extend(chunks.iter().map(|&n| put(n, (g.data.0 + 2 * n) as u32)));
    }
    let first = g.areas[0].0;
    let (mut segments, mut blocks) = (0u64, 0);
    let mut records: Vec<u8> = Vec::new();
    let last = pieces.len() - 1;
    for (n, piece) in pieces.iter().enumerate() {
        let next = pieces.get(n + 1).map_or(0, Vec::len);
        records.extend(piece);
        if n == last || records.len() + next > SEGMENT {
            let bytes = segment(&records);
            file.write_all_at(&bytes, (first + 1 + segments * 256) * BLOCK)?;
            blocks = segments * 256 + (bytes.len() as u64).div_ceil(BLOCK);
            segments += 1;
            records.clear();
        }
    }
    assert!(blocks < g.areas[0].1);
    // The newer one is in area A; B is the one that the format wrote, empty.
    for (area, sequence, segments, blocks) in [(0, 2u64, segments, blocks), (1, 1, 0, 0)] {
        let mut c = b"FCCKPT01".to_vec();
        c.extend(store_id().to_le_bytes());
        c.extend(sequence.to_le_bytes());
        c.extend(0u64.to_le_bytes());
        c.extend(1u64.to_le_bytes());
        c.extend(1u32.to_le_bytes());
        c.extend((segments as u32).to_le_bytes());
        c.extend((blocks as u32).to_le_bytes());
        c.extend(crc_all(&c).to_le_bytes());
        file.write_all_at(&c, g.areas[area].0 * BLOCK)?;
    }
    file.sync_all()
}
