//! Opening a store: recognise the device, read the newest checkpoint and the journal behind it, rebuild the index. Chunks
//! are not read, but for those of the last second or so (`tail.rs`). When no checkpoint can be read, all headers are scanned instead.

use crate::body::{ChunkBody, ChunkInfo, Pool};
use crate::checkpoint::{CheckpointHeader, segment_records};
use crate::crc_cache::CrcCache;
use crate::device::Device;
use crate::error::StoreError;
use crate::header;
use crate::index::Index;
use crate::journal::{Journal, Newest};
use crate::record::{Record, seal_bytes};
use crate::replay::{PendingSeal, Replay};
use crate::space::Space;
use crate::store::{Inner, Seal, Seals, Store, StoreOptions};
use crate::superblock::{
    COPIES, Found, Geometry, HEAD_BLOCKS, Superblock, encode_unfinished, examine,
};
use fastcache_reactor::{IoBuf, entropy, now, wall_clock_seconds};
use fastcache_types::{BLOCK, BLOCK_U64, ChunkKey};
use std::sync::Arc;
use std::time::Duration;

mod ring;

use ring::{JournalEnd, replay_journal};

/// Blocks read at once from the journal and by the scan.
const WINDOW_BLOCKS: u32 = 256;

/// Of the checkpoint that formatting writes.
const FIRST_SEQUENCE: u64 = 1;

/// What opening found.
#[derive(Debug)]
pub struct Recovered {
    /// Chunks in the store.
    pub chunks: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Files whose seal the coordinator may not know, oldest first.
    pub pending: Vec<PendingSeal>,
    /// Copies that were kept for other nodes.
    pub kept: Vec<ChunkInfo>,
}

/// Where the journal goes on.
struct Resume {
    head: u64,
    tail: u64,
    newest: Newest,
    /// No checkpoint was readable.
    is_scanned: bool,
    /// Groups that do not count may follow in the ring.
    is_cut_short: bool,
}

impl Store {
    /// Opens a store, or makes one where there is nothing. To be called on a reactor thread.
    ///
    /// # Errors
    /// Every variant but `Full`, `Checksum` and `Sick`; each says what to do.
    pub async fn open(options: StoreOptions) -> Result<(Store, Recovered), StoreError> {
        Store::open_by(options, false).await
    }

    /// Opens a store and takes the index from the headers of the chunks, whatever the checkpoints and the journal say.
    /// What they alone know is lost: chunks are as dirty as they were sealed, removed ones may come back until their
    /// blocks are used again, and no seal is pending. Reads the whole device.
    ///
    /// # Errors
    /// As [`Store::open`]; `OtherStore` when the superblock is not that of the checkpoints.
    pub async fn rebuild_index(options: StoreOptions) -> Result<(Store, Recovered), StoreError> {
        Store::open_by(options, true).await
    }

    async fn open_by(
        options: StoreOptions,
        is_by_headers: bool,
    ) -> Result<(Store, Recovered), StoreError> {
        let started = now();
        let mut device = Device::open(&options.path, options.capacity_bytes)?;
        let found = look(&device).await?;
        let may_erase = match &found {
            Found::Blank
            | Found::Unfinished
            | Found::Store { .. }
            | Found::Refused(StoreError::Version { .. }) => options.format,
            Found::Refused(_) => options.format && options.force,
        };
        let (superblock, first) = match found {
            Found::Store {
                mut superblock,
                is_repaired,
                first,
            } if !may_erase => {
                if is_repaired {
                    tracing::warn!(target: "nvme", "one copy of the superblock was damaged; it is written again");
                }
                superblock.generation += 1;
                (superblock, first)
            }
            Found::Refused(error) if !may_erase => return Err(error),
            _ => {
                if may_erase {
                    device = device.resize(&options.path, options.capacity_bytes)?;
                }
                (format(&device).await?, 1)
            }
        };
        let need = u64::from(superblock.geometry.total_blocks) * BLOCK_U64;
        if device.len() < need {
            return Err(StoreError::CutShort {
                have: device.len(),
                need,
            });
        }
        if is_by_headers {
            check_same_store(&device, &superblock).await?;
        }
        // Also makes durable what the last session journaled without a flush: blocks that it freed are reused from now
        // on.
        write_superblock(&device, &superblock, first).await?;

        let mut replay = Replay::new();
        let resume = load(&device, &superblock, &mut replay, is_by_headers).await?;
        let region = superblock.geometry.data;
        let rebuilt = replay.finish(region);
        let mut space = Space::new(region, &rebuilt.owned);
        space.spill = device.spill.clone();
        let pool = Arc::new(Pool {
            space,
            crcs: CrcCache::new(options.crc_budget_bytes),
        });
        let index = Index::new();
        let chunks = rebuilt.bodies.len() as u64;
        let mut kept = Vec::new();
        index.fill(rebuilt.bodies.into_iter().map(|facts| {
            let body = ChunkBody::recovered(facts, &pool);
            if body.is_kept() {
                kept.push(ChunkInfo::of(&body));
            }
            body
        }));
        let pending: Vec<PendingSeal> = replay.seals.into_values().collect();
        let seals = Seals {
            bytes: pending.iter().map(|p| seal_bytes(p.commit.len())).sum(),
            pending: pending
                .iter()
                .map(|p| {
                    (
                        p.number,
                        Seal {
                            ino: p.ino,
                            commit: p.commit.clone().into(),
                        },
                    )
                })
                .collect(),
            next_number: replay.next_number,
        };
        let journal = Journal::new(
            superblock.geometry.journal,
            superblock.store_id(),
            superblock.generation,
            resume.tail..resume.head,
            resume.newest,
            replay.ticket,
            replay.flushed,
        );
        let inner = Inner::new(superblock, device, pool, index, journal, seals);
        let store = Store {
            inner: Arc::new(inner),
        };
        if resume.is_scanned {
            store.checkpoint().await?;
        }
        if resume.is_cut_short {
            store.cut_off().await;
        }
        match rebuilt.dropped.as_slice() {
            [] => store.inner.journal.flushed(replay.ticket),
            // Until they are forgotten, a start has to look at the tail again.
            dropped => store.forget(dropped).await,
        }
        let elapsed = now().duration_since(started);
        tracing::info!(target: "nvme", chunks, pending = pending.len(), dropped = rebuilt.dropped.len(),
            ?elapsed, generation = superblock.generation, "chunk store open");
        Ok((
            store,
            Recovered {
                chunks,
                elapsed,
                pending,
                kept,
            },
        ))
    }

    /// Has the journal end here for good, before anything else is written to it. A whole group that does not count is still
    /// where the next one goes: if a power cut took that and left what is written behind it, the old one would count with
    /// its successor. Behind one of this generation that is durable, older ones count no more.
    async fn cut_off(&self) {
        let ticket = {
            let _admission = self.admit(0).await;
            self.inner.journal.enqueue(&self.inner.pool.space, &[])
        };
        self.wait_written(ticket).await;
        if let Err(error) = self.inner.device.sync().await {
            // Nothing more is written to it then.
            self.inner.lose_journal(&error);
        }
    }

    /// Journals that recovery did not keep these. Before anything else: a later SEAL record of their file would make
    /// them real at the next start.
    async fn forget(&self, keys: &[ChunkKey]) {
        let mut ticket = 0;
        for keys in keys.chunks(100) {
            let mut records = Vec::new();
            keys.iter()
                .for_each(|&key| Record::Remove(key).encode(&mut records));
            let _admission = self.admit(records.len()).await;
            ticket = self.inner.journal.enqueue(&self.inner.pool.space, &records);
        }
        self.wait_written(ticket).await;
    }
}

/// Reads the start of the device.
async fn look(device: &Device) -> Result<Found, StoreError> {
    let need = u64::from(HEAD_BLOCKS) * BLOCK_U64;
    if device.len() < need {
        return Err(StoreError::TooSmall {
            have: device.len(),
            need: crate::superblock::MIN_BYTES,
        });
    }
    let (result, head) = device
        .read(0, IoBuf::alloc(HEAD_BLOCKS as usize * BLOCK))
        .await;
    result?;
    let found = examine(&head);
    if matches!(found, Found::Blank) && has_store_behind(device).await? {
        return Ok(Found::Refused(StoreError::Damaged));
    }
    Ok(found)
}

/// Whether a device that begins with zeros has a checkpoint where a store of its size has one: then the zeros are
/// damage, and formatting would lose what is not in the cloud.
async fn has_store_behind(device: &Device) -> Result<bool, StoreError> {
    let Ok(geometry) = Geometry::new(device.len()) else {
        return Ok(false);
    };
    for area in geometry.checkpoints {
        let (result, block) = device.read(area.start, IoBuf::alloc(BLOCK)).await;
        result?;
        if CheckpointHeader::is_one(&block) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a device whose checkpoints are of another store than its superblock: its chunks are that one's, too, and the
/// index would be empty.
async fn check_same_store(device: &Device, superblock: &Superblock) -> Result<(), StoreError> {
    for area in superblock.geometry.checkpoints {
        let (result, block) = device.read(area.start, IoBuf::alloc(BLOCK)).await;
        result?;
        let is_other =
            CheckpointHeader::store_of(&block).is_some_and(|store| store != superblock.store_id());
        if is_other {
            return Err(StoreError::OtherStore);
        }
    }
    Ok(())
}

/// Makes an empty store. The superblock is written by the caller, when everything else is there, the second copy first: until
/// then the first one says that this has not ended, so that a start after a power cut or a kill does it again.
async fn format(device: &Device) -> Result<Superblock, StoreError> {
    let geometry = Geometry::new(device.len())?;
    let mut uuid = [0; 16];
    entropy(&mut uuid)?;
    let formatted_at = wall_clock_seconds();
    let superblock = Superblock {
        uuid,
        generation: 1,
        formatted_at,
        geometry,
    };
    let mut mark = IoBuf::alloc(BLOCK);
    encode_unfinished(&mut mark);
    device.write(0, mark).await.0?;
    device.sync().await?;
    let rest = IoBuf::alloc((HEAD_BLOCKS as usize - 1) * BLOCK);
    device.write(1, rest).await.0?;
    let mut first = IoBuf::alloc(BLOCK);
    let empty = CheckpointHeader {
        sequence: FIRST_SEQUENCE,
        start: 0,
        generation: 1,
        segments: 0,
        blocks: 0,
        next_number: 1,
    };
    empty.encode(&mut first, superblock.store_id());
    device.write(geometry.checkpoints[0].start, first).await.0?;
    device
        .write(geometry.checkpoints[1].start, IoBuf::alloc(BLOCK))
        .await
        .0?;
    device.sync().await?;
    tracing::info!(target: "nvme", bytes = device.len(), "formatted a chunk store");
    Ok(superblock)
}

/// Writes both copies, one after the other and `first` the one that is not whole, so that one is whole at any moment.
async fn write_superblock(
    device: &Device,
    superblock: &Superblock,
    first: usize,
) -> Result<(), StoreError> {
    for at in [COPIES[first], COPIES[1 - first]] {
        let mut block = IoBuf::alloc(BLOCK);
        superblock.encode(&mut block);
        device.write(at, block).await.0?;
        device.sync().await?;
    }
    Ok(())
}

/// Fills `replay` from the newest checkpoint that can be read and the journal behind it.
async fn load(
    device: &Device,
    superblock: &Superblock,
    replay: &mut Replay,
    is_by_headers: bool,
) -> Result<Resume, StoreError> {
    if is_by_headers {
        tracing::warn!(target: "nvme", "the index is made anew from the headers of all chunks, as asked for");
        return load_headers(device, superblock, replay).await;
    }
    let store = superblock.store_id();
    let ring = superblock.geometry.journal;
    let mut found: Vec<(usize, CheckpointHeader)> = Vec::new();
    for (area, e) in superblock.geometry.checkpoints.iter().enumerate() {
        let (result, block) = device.read(e.start, IoBuf::alloc(BLOCK)).await;
        if result.is_ok()
            && let Some(header) = CheckpointHeader::decode(&block, store)
            && header.generation <= superblock.generation
        {
            found.push((area, header));
        }
    }
    found.sort_by_key(|(_, header)| std::cmp::Reverse(header.sequence));
    // The second checkpoint of a store makes two, for ever.
    if let [(_, one)] = found.as_slice()
        && (one.sequence > FIRST_SEQUENCE || one.generation + 1 < superblock.generation)
    {
        tracing::error!(target: "nvme", sequence = one.sequence, "a checkpoint cannot be used; trying an older one");
    }
    // Where a checkpoint that cannot be read says that the journal has been before.
    let mut least_head = 0;
    for (n, &(area, ref header)) in found.iter().enumerate() {
        // The newest of two readable checkpoints is followed by its journal for sure; another one must show it.
        let is_sure = n == 0 && found.len() == 2;
        let mut end = JournalEnd {
            limit: u64::MAX,
            is_sure,
        };
        let (found_end, fresh) = loop {
            let mut fresh = Replay::new();
            let is_whole = load_checkpoint(device, superblock, area, header, &mut fresh).await;
            let found_end = match is_whole {
                true => replay_journal(device, superblock, header, &mut fresh, end).await,
                false => None,
            };
            let Some((head, _)) = found_end else {
                break (None, fresh);
            };
            let (whole, gone) = fresh.tail.whole_until(device, store, head).await;
            if whole == head {
                fresh.drop_all(gone);
                break (found_end, fresh);
            }
            tracing::warn!(target: "nvme", position = whole, end = head,
                "a power cut took chunks that were not flushed; going back to where all are whole");
            end = JournalEnd {
                limit: whole,
                is_sure: true,
            };
        };
        let Some((head, is_cut_short)) = found_end.filter(|(head, _)| *head >= least_head) else {
            tracing::error!(target: "nvme", sequence = header.sequence, "a checkpoint cannot be used; trying an older one");
            least_head = least_head.max(header.start);
            continue;
        };
        *replay = fresh;
        // As long as the older one can be continued from, keep its part of the journal.
        let older = found.get(n + 1).map(|(_, h)| h.start);
        let tail = older
            .filter(|&start| start <= header.start && head - start <= u64::from(ring.len) / 2)
            .unwrap_or(header.start);
        let newest = Newest {
            sequence: header.sequence,
            area,
            start: header.start,
        };
        return Ok(Resume {
            head,
            tail,
            newest,
            is_scanned: false,
            is_cut_short,
        });
    }
    tracing::error!(target: "nvme", "no checkpoint can be read; scanning the headers of all chunks");
    load_headers(device, superblock, replay).await
}

/// Fills `replay` from the headers of the chunks alone.
async fn load_headers(
    device: &Device,
    superblock: &Superblock,
    replay: &mut Replay,
) -> Result<Resume, StoreError> {
    *replay = Replay::new();
    scan(device, superblock, replay).await?;
    // Beyond every sequence and position there was: old groups in the ring must not look like a later lap.
    let beyond = u64::from(superblock.generation) << 32;
    let newest = Newest {
        sequence: beyond,
        area: 1,
        start: beyond,
    };
    Ok(Resume {
        head: beyond,
        tail: beyond,
        newest,
        is_scanned: true,
        is_cut_short: false,
    })
}

/// Reads a checkpoint's segments. Whether all were whole.
async fn load_checkpoint(
    device: &Device,
    superblock: &Superblock,
    area: usize,
    header: &CheckpointHeader,
    replay: &mut Replay,
) -> bool {
    replay.next_number = replay.next_number.max(header.next_number);
    for n in 0..header.segments {
        let Some(e) = header.segment(superblock.geometry.checkpoints[area], n) else {
            return false;
        };
        let (result, segment) = device
            .read(e.start, IoBuf::alloc(e.len as usize * BLOCK))
            .await;
        if result.is_err() {
            return false;
        }
        match segment_records(&segment, superblock.store_id(), header.sequence) {
            Some(records) => replay.load_all(records),
            None => {
                device.mismatch();
                return false;
            }
        }
    }
    true
}

/// Reads every block of the data region and takes the headers it finds. A block that was freed may carry an old header:
/// of each chunk the latest header counts, of two chunks that name the same block the later one. Chunks that were
/// removed may come back, as dirty as they were sealed; the agent drops those that no layout names. SEAL records are
/// lost.
async fn scan(
    device: &Device,
    superblock: &Superblock,
    replay: &mut Replay,
) -> Result<(), StoreError> {
    let store = superblock.store_id();
    let data = superblock.geometry.data;
    let mut found = Vec::new();
    let mut at = data.start;
    while at < data.end() {
        // Windows overlap, so that every header is whole in one of them.
        let len = WINDOW_BLOCKS.min(data.end() - at);
        let (result, buf) = device.read(at, IoBuf::alloc(len as usize * BLOCK)).await;
        let step = match len > header::BLOCKS_MAX && at + len < data.end() {
            true => len - header::BLOCKS_MAX + 1,
            false => len,
        };
        match result {
            Ok(()) => {
                for n in 0..step {
                    if let Some(h) = header::decode(&buf[n as usize * BLOCK..], store, at + n) {
                        found.push((h.stamp, h.facts));
                    }
                }
            }
            Err(error) => {
                tracing::error!(target: "nvme", %error, block = at, "the scan skips this")
            }
        }
        at += step;
    }
    found.sort_by_key(|(stamp, _)| *stamp);
    for (_, facts) in found {
        replay.load(Record::Put {
            facts,
            is_pending: false,
            is_spilled: false,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
