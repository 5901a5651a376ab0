//! What the fuzz targets of `tests/fuzz` call: each reads bytes as the store reads them from a device and asserts what
//! holds for any. With a true first byte the checksums are made right, so that what lies behind them is reached.

use crate::body::{BlockRun, BodyFacts, Runs};
use crate::checkpoint::{CheckpointHeader, segment_records};
use crate::crc::{crc_all, crc_block};
use crate::header;
use crate::journal::{GROUP_HEADER, GroupHeader, encode_group};
use crate::record::Record;
use crate::replay::{Replay, decode_all};
use crate::superblock::{COPIES, Found, Geometry, HEAD_BLOCKS, Superblock, examine};
use fastcache_types::{BLOCK, ChunkKey, Extent, Ino, Version};

/// The store of everything here.
const STORE: u64 = 0x0123_4567_89AB_CDEF;
/// The data region.
const REGION: Extent = Extent {
    start: 1000,
    len: 100_000,
};

/// Splits the byte that says whether checksums are made right from the rest.
fn split(input: &[u8]) -> Option<(bool, &[u8])> {
    let (&first, rest) = input.split_first()?;
    Some((first & 1 == 1, rest))
}

/// Writes a CRC where it belongs, if there is room.
fn put_crc(bytes: &mut [u8], at: usize, crc: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>());
    four.map_or(0, |b| u32::from_le_bytes(*b))
}

/// The start of a device. The input is its two copies, one after the other.
pub fn superblock(input: &[u8]) {
    let Some((is_repaired, rest)) = split(input) else {
        return;
    };
    let mut head = vec![0; HEAD_BLOCKS as usize * BLOCK];
    let (first, second) = rest.split_at(rest.len().min(BLOCK));
    for (copy, bytes) in COPIES.into_iter().zip([first, second]) {
        let len = bytes.len().min(BLOCK);
        let block = &mut head[copy as usize * BLOCK..][..BLOCK];
        block[..len].copy_from_slice(&bytes[..len]);
        if is_repaired {
            let crc = crc_all(&block[..BLOCK - 4]);
            put_crc(block, BLOCK - 4, crc);
        }
    }
    if let Found::Store { superblock, .. } = examine(&head) {
        // What is believed can be written, and means the same then.
        let mut block = vec![0; BLOCK];
        superblock.encode(&mut block);
        head[..BLOCK].copy_from_slice(&block);
        head[COPIES[1] as usize * BLOCK..][..BLOCK].copy_from_slice(&block);
        match examine(&head) {
            Found::Store {
                superblock: again, ..
            } => assert_eq!(again, superblock),
            other => panic!("{superblock:?} was written and read as {other:?}"),
        }
        let g = superblock.geometry;
        assert!(g.data.end() <= g.total_blocks);
    }
}

/// The header of a chunk, at a device block.
pub fn chunk_header(input: &[u8]) {
    let Some((is_repaired, rest)) = split(input) else {
        return;
    };
    let mut bytes = rest.to_vec();
    if is_repaired {
        if let Some(place) = bytes.get_mut(8..16) {
            place.copy_from_slice(&STORE.to_le_bytes());
        }
        let size = (u32_at(&bytes, 60) as usize).min(bytes.len());
        put_crc(&mut bytes, 56, 0);
        let crc = crc_all(&bytes[..size]);
        put_crc(&mut bytes, 56, crc);
    }
    let Some(found) = header::decode(&bytes, STORE, REGION.start) else {
        return;
    };
    let facts = found.facts;
    let blocks = header::blocks(facts.len, facts.runs.len());
    let mut again = vec![0; blocks as usize * BLOCK];
    header::encode(&mut again, STORE, found.stamp, &facts, &found.crcs);
    let second = header::decode(&again, STORE, REGION.start).map(|h| (h.facts, h.stamp, h.crcs));
    assert_eq!(second, Some((facts.clone(), found.stamp, found.crcs)));
    replay(&[Record::Put {
        facts,
        is_pending: false,
        is_spilled: false,
    }]);
}

/// Takes records as recovery does, from a checkpoint and from the journal, to the end.
fn replay(records: &[Record]) {
    for is_checkpoint in [true, false] {
        let mut replay = Replay::new();
        replay.apply(Record::Ticket(1));
        for record in records.iter().cloned() {
            match is_checkpoint {
                true => replay.load(record),
                false => replay.apply(record),
            }
        }
        finish(replay);
    }
}

/// Whatever the records said: blocks have one owner and are inside the region.
fn finish(mut replay: Replay) {
    let rebuilt = replay.finish(REGION);
    let mut at = REGION.start;
    for e in &rebuilt.owned {
        assert!(
            e.start >= at && e.end() <= REGION.end(),
            "{e:?} behind {at}"
        );
        at = e.end();
    }
    let bodies = rebuilt.bodies.iter().flat_map(BodyFacts::extents);
    let blocks: u64 = bodies.map(|e| u64::from(e.len)).sum();
    let owned: u64 = rebuilt.owned.iter().map(|e| u64::from(e.len)).sum();
    assert_eq!(blocks, owned);
}

/// A group of the journal, and a segment and the header of a checkpoint, made of the same bytes.
pub fn journal(input: &[u8]) {
    let Some((is_repaired, rest)) = split(input) else {
        return;
    };
    let mut bytes = rest.to_vec();
    if is_repaired {
        // Any bytes as records, under right checksums.
        let mut group = vec![0; (GROUP_HEADER + bytes.len()).next_multiple_of(BLOCK)];
        encode_group(&mut group, STORE, 7, 3, std::iter::once(bytes.as_slice()));
        let header = GroupHeader::decode(&group, STORE);
        let header = header.unwrap_or_else(|| panic!("a group that was written is none"));
        assert_eq!(header.records(&group), Some(bytes.as_slice()));
        let mut applied = Replay::new();
        applied.apply_all(decode_all(&bytes));
        finish(applied);
        let mut loaded = Replay::new();
        loaded.load_all(&bytes);
        finish(loaded);
        if bytes.len() >= 56 {
            bytes[..16].copy_from_slice(&[b"FCCKPT01".as_slice(), &STORE.to_le_bytes()].concat());
            let crc = crc_all(&bytes[..52]);
            put_crc(&mut bytes, 52, crc);
        }
    }
    if let Some(group) = GroupHeader::decode(&bytes, STORE) {
        let _ = group.blocks();
        let _ = group.records(&bytes);
    }
    let _ = segment_records(&bytes, STORE, 1);
    if let Some(header) = CheckpointHeader::decode(&bytes, STORE) {
        for n in [0, 1, header.segments.saturating_sub(1), u32::MAX] {
            if let Some(e) = header.segment(REGION, n) {
                assert!(e.start > REGION.start && e.end() <= REGION.end());
            }
        }
    }
}

/// Inputs that are as they should be, for each of the three.
pub fn seeds() -> [(&'static str, Vec<Vec<u8>>); 3] {
    let facts = |ino, index, header, runs: &[(u32, u32, u32)]| BodyFacts {
        key: ChunkKey {
            ino: Ino(ino),
            index,
            version: Version(ino * 10),
        },
        len: 12_288,
        is_dirty: true,
        is_kept: false,
        header,
        runs: runs
            .iter()
            .map(|&(first, len, start)| BlockRun {
                first,
                extent: Extent { start, len },
            })
            .collect::<Runs>(),
    };
    let one = facts(1, 0, 2000, &[(0, 3, 2001)]);
    let two = facts(2, 5, 3000, &[(0, 1, 3001), (2, 1, 3010)]);

    let mut superblocks = Vec::new();
    for bytes in [16 << 20, 10 << 30] {
        if let Ok(geometry) = Geometry::new(bytes) {
            let mut block = vec![0; BLOCK];
            Superblock {
                uuid: [7; 16],
                generation: 3,
                formatted_at: 1_700_000_000,
                geometry,
            }
            .encode(&mut block);
            superblocks.push([&[1], block.as_slice(), block.as_slice()].concat());
            superblocks.push([&[0], block.as_slice(), block.as_slice()].concat());
        }
    }
    let headers = [&one, &two].map(|facts| {
        let mut block = vec![0; BLOCK];
        let crcs = [crc_block(&[1; BLOCK]), 2, 3];
        header::encode(&mut block, STORE, 9, facts, &crcs);
        [&[1], block.as_slice()].concat()
    });
    let history = [
        Record::Mark {
            stripe: Some(3),
            ticket: 1,
        },
        Record::Ticket(2),
        Record::Flushed(1),
        Record::Put {
            facts: one.clone(),
            is_pending: false,
            is_spilled: false,
        },
        Record::Put {
            facts: facts(1, 0, 4000, &[(0, 3, 4001)]),
            is_pending: true,
            is_spilled: false,
        },
        Record::Seal {
            ino: Ino(1),
            number: 4,
            commit: b"commit".to_vec(),
        },
        Record::Put {
            facts: two.clone(),
            is_pending: false,
            is_spilled: false,
        },
        Record::Clean(two.key),
        Record::Committed { number: 4 },
        Record::Remove(one.key),
    ];
    let mut all = vec![1];
    let mut journals: Vec<Vec<u8>> = Vec::new();
    for record in &history {
        record.encode(&mut all);
        let mut alone = vec![1];
        record.encode(&mut alone);
        journals.push(alone);
    }
    let mut group = vec![0; BLOCK];
    encode_group(&mut group, STORE, 7, 3, std::iter::once(&all[1..]));
    journals.push([&[0], group.as_slice()].concat());
    journals.push(all);
    [
        ("superblock", superblocks),
        ("chunk_header", headers.to_vec()),
        ("journal", journals),
    ]
}
