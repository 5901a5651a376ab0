//! Checkpoints: the whole index as records, in one of two areas, so that replay starts late. Written while everything
//! goes on: each stripe is copied under its lock, together with the last ticket it has seen, and replay starts where the
//! journal stood before the first copy (see `record.rs`). Complete when its header block is on stable storage, after
//! every record that a copy may have seen.

use crate::body::BodyFacts;
use crate::crc::crc_all;
use crate::device::Device;
use crate::error::StoreError;
use crate::index::STRIPES;
use crate::journal::Newest;
use crate::record::{Record, TICKET_BYTES, encode_put, encode_seal};
use crate::store::{Inner, Store};
use crate::wire::{Get, Put};
use fastcache_reactor::{IoBuf, spawn};
use fastcache_types::{BLOCK, Extent};

/// First bytes of a checkpoint's header: "FCCKPT01".
const MAGIC: u64 = u64::from_le_bytes(*b"FCCKPT01");
/// First bytes of a segment: "FCSG".
const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"FCSG");
/// Blocks of a segment: the piece that is written, read and checked at once.
pub(crate) const SEGMENT_BLOCKS: u32 = 256;
const SEGMENT_BYTES: usize = SEGMENT_BLOCKS as usize * BLOCK;
/// Bytes before a segment's records.
const SEGMENT_HEADER: usize = 32;
/// Longest commit of a SEAL record, bytes, whatever the size of the store.
const COMMIT_MAX: usize = 512 << 10;
/// The longest PUT record: 32 + 1024 runs of 8.
const PUT_MAX: usize = 8224;
/// MARK records of a checkpoint, bytes.
const MARKS_BYTES: usize = (STRIPES + 1) * TICKET_BYTES;

/// The header of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CheckpointHeader {
    pub(crate) sequence: u64,
    /// Journal position where replay starts.
    pub(crate) start: u64,
    pub(crate) generation: u32,
    pub(crate) segments: u32,
    /// Blocks of all segments; all but the last are whole.
    pub(crate) blocks: u32,
    /// The number of the next SEAL record, at least.
    pub(crate) next_number: u64,
}

impl CheckpointHeader {
    pub(crate) fn encode(&self, out: &mut [u8], store: u64) {
        let mut h = Vec::with_capacity(BLOCK);
        h.put_u64(MAGIC);
        h.put_u64(store);
        h.put_u64(self.sequence);
        h.put_u64(self.start);
        h.put_u64(self.next_number);
        h.put_u32(self.generation);
        h.put_u32(self.segments);
        h.put_u32(self.blocks);
        let crc = crc_all(&h);
        h.put_u32(crc);
        out.fill(0);
        out[..h.len()].copy_from_slice(&h);
    }

    /// Whether a block looks like the header of a checkpoint, of whatever store.
    pub(crate) fn is_one(block: &[u8]) -> bool {
        Get::new(block).u64() == Some(MAGIC)
    }

    /// The store of a block that is the header of a checkpoint, undamaged.
    pub(crate) fn store_of(block: &[u8]) -> Option<u64> {
        let mut g = Get::new(block);
        g.u64().filter(|&magic| magic == MAGIC)?;
        let store = g.u64()?;
        CheckpointHeader::decode(block, store).map(|_| store)
    }

    /// `None`: no checkpoint of this store here, or a damaged one.
    pub(crate) fn decode(block: &[u8], store: u64) -> Option<CheckpointHeader> {
        let mut g = Get::new(block);
        if g.u64()? != MAGIC || g.u64()? != store {
            return None;
        }
        let sequence = g.count()?;
        let start = g.count()?;
        let next_number = g.count()?;
        let generation = g.u32()?;
        let segments = g.u32()?;
        let blocks = g.u32()?;
        let size = block.len() - g.rest.len();
        (g.u32()? == crc_all(&block[..size])).then_some(CheckpointHeader {
            sequence,
            start,
            generation,
            segments,
            blocks,
            next_number,
        })
    }

    /// Where segment `n` is in its area.
    pub(crate) fn segment(&self, area: Extent, n: u32) -> Option<Extent> {
        let before = n.checked_mul(SEGMENT_BLOCKS)?;
        let len = self.blocks.checked_sub(before)?.min(SEGMENT_BLOCKS);
        let start = area.start.checked_add(1)?.checked_add(before)?;
        let e = Extent { start, len };
        (len > 0 && u64::from(start) + u64::from(len) <= u64::from(area.end())).then_some(e)
    }
}

/// The records of a segment, when it is one of this checkpoint.
pub(crate) fn segment_records(segment: &[u8], store: u64, sequence: u64) -> Option<&[u8]> {
    let mut g = Get::new(segment);
    if g.u32()? != SEGMENT_MAGIC {
        return None;
    }
    let crc = g.u32()?;
    if g.u64()? != store || g.u64()? != sequence {
        return None;
    }
    let end = SEGMENT_HEADER + g.u32()? as usize;
    (crc_all(segment.get(8..end)?) == crc).then(|| &segment[SEGMENT_HEADER..end])
}

/// What a checkpoint area takes for sure, bytes of PUT records plus twice the bytes of SEAL records: a segment may
/// end early because the next record does not fit.
pub(crate) fn usable_bytes(area: Extent) -> u64 {
    let blocks = area.len - 1;
    let whole =
        u64::from(blocks / SEGMENT_BLOCKS) * (SEGMENT_BYTES - SEGMENT_HEADER - PUT_MAX) as u64;
    let rest = (blocks % SEGMENT_BLOCKS) as usize * BLOCK;
    let all = whole + rest.saturating_sub(SEGMENT_HEADER + PUT_MAX) as u64;
    all.saturating_sub(MARKS_BYTES as u64)
}

/// Longest commit that a SEAL record may carry.
pub(crate) fn commit_max(area: Extent, submission_max: usize) -> usize {
    let eighth = usize::try_from(usable_bytes(area) / 8).unwrap_or(usize::MAX);
    COMMIT_MAX.min(submission_max / 2).min(eighth)
}

/// Fills segments and writes them.
struct Writer<'a> {
    device: &'a Device,
    area: Extent,
    store: u64,
    sequence: u64,
    /// Records of the segment that is being filled.
    records: Vec<u8>,
    segments: u32,
    blocks: u32,
}

impl Writer<'_> {
    async fn add(&mut self, record: &[u8]) -> Result<(), StoreError> {
        if SEGMENT_HEADER + self.records.len() + record.len() > SEGMENT_BYTES {
            self.end_segment().await?;
        }
        self.records.extend_from_slice(record);
        Ok(())
    }

    #[allow(clippy::cast_possible_truncation, reason = "a segment has 1 MiB")]
    async fn end_segment(&mut self) -> Result<(), StoreError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let len = SEGMENT_HEADER + self.records.len();
        let blocks = len.div_ceil(BLOCK) as u32;
        let first = self.area.start + 1 + self.segments * SEGMENT_BLOCKS;
        if u64::from(first) + u64::from(blocks) > u64::from(self.area.end()) {
            return Err(StoreError::Invalid(
                "the index has outgrown its checkpoint area",
            ));
        }
        let mut buf = IoBuf::alloc(blocks as usize * BLOCK);
        let mut head = Vec::with_capacity(SEGMENT_HEADER);
        head.put_u32(SEGMENT_MAGIC);
        head.put_u32(0);
        head.put_u64(self.store);
        head.put_u64(self.sequence);
        head.put_u32(self.records.len() as u32);
        head.put_u32(0);
        buf[..SEGMENT_HEADER].copy_from_slice(&head);
        buf[SEGMENT_HEADER..len].copy_from_slice(&self.records);
        let crc = crc_all(&buf[8..len]).to_le_bytes();
        buf[4..8].copy_from_slice(&crc);
        self.device.write(first, buf).await.0?;
        self.blocks = self.segments * SEGMENT_BLOCKS + blocks;
        self.segments += 1;
        self.records.clear();
        Ok(())
    }
}

/// Says that the checkpointing task ended, however it did.
struct Checkpointing<'a>(&'a Inner);

impl Drop for Checkpointing<'_> {
    fn drop(&mut self) {
        self.0.journal.lock().is_checkpointing = false;
        self.0.journal.event.notify(usize::MAX);
    }
}

impl Store {
    /// Starts a checkpoint if none runs.
    pub(crate) fn start_checkpoint(&self) {
        let mut st = self.inner.journal.lock();
        if st.is_checkpointing || st.is_lost {
            return;
        }
        st.is_checkpointing = true;
        drop(st);
        let store = self.clone();
        spawn(async move {
            if let Err(error) = store.write_checkpoint().await {
                store.inner.lose_journal(&error);
            }
        })
        .detach();
    }

    /// Writes a checkpoint that covers everything before the call.
    pub(crate) async fn checkpoint(&self) -> Result<(), StoreError> {
        let journal = &self.inner.journal;
        loop {
            let listener = journal.event.listen();
            {
                let mut st = journal.lock();
                if st.is_lost {
                    return Err(StoreError::Sick);
                }
                if !st.is_checkpointing {
                    st.is_checkpointing = true;
                    break;
                }
            }
            listener.await;
        }
        self.write_checkpoint().await
    }

    /// The caller has set `is_checkpointing`.
    async fn write_checkpoint(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let _guard = Checkpointing(inner);
        let (newest, start) = {
            let mut st = inner.journal.lock();
            // The older checkpoint is about to be overwritten.
            st.tail = st.newest.start;
            (st.newest, st.head)
        };
        inner.journal.event.notify(usize::MAX);
        let area_at = 1 - newest.area;
        let area = inner.superblock.geometry.checkpoints[area_at];
        let sequence = newest.sequence + 1;
        let mut writer = Writer {
            device: &inner.device,
            area,
            store: inner.journal.store,
            sequence,
            records: Vec::with_capacity(SEGMENT_BYTES),
            segments: 0,
            blocks: 0,
        };
        // SEAL records first: those of chunks that are still pending are yet to come.
        let (seals, ticket, next_number) = inner.seals_snapshot();
        let mut record = Vec::new();
        Record::Mark {
            stripe: None,
            ticket,
        }
        .encode(&mut record);
        writer.add(&record).await?;
        for (number, seal) in seals {
            record.clear();
            encode_seal(&mut record, seal.ino, number, &seal.commit);
            writer.add(&record).await?;
        }
        for at in 0..STRIPES {
            let (chunks, ticket) = inner.stripe_snapshot(at);
            let stripe = u16::try_from(at).ok();
            record.clear();
            Record::Mark { stripe, ticket }.encode(&mut record);
            writer.add(&record).await?;
            for chunk in chunks {
                record.clear();
                if let Some(prior) = &chunk.prior {
                    encode_put(&mut record, prior, false, false);
                }
                encode_put(&mut record, &chunk.current, chunk.is_pending, false);
                writer.add(&record).await?;
            }
        }
        writer.end_segment().await?;
        // Everything the snapshot may have seen is in the journal, and all of it durable, before the header says so.
        self.flush().await?;
        let header = CheckpointHeader {
            sequence,
            start,
            generation: inner.journal.generation,
            segments: writer.segments,
            blocks: writer.blocks,
            next_number,
        };
        let mut buf = IoBuf::alloc(BLOCK);
        header.encode(&mut buf, inner.journal.store);
        inner.device.write(area.start, buf).await.0?;
        inner.device.sync().await?;
        inner.journal.lock().newest = Newest {
            sequence,
            area: area_at,
            start,
        };
        tracing::debug!(target: "nvme", sequence, start, segments = writer.segments, "checkpoint");
        Ok(())
    }
}

/// What a chunk id holds, copied out of the index.
struct Snapshot {
    current: BodyFacts,
    is_pending: bool,
    /// The body that a pending one replaced.
    prior: Option<BodyFacts>,
}

impl Inner {
    /// A stripe as it is now, and the last ticket that it has seen.
    fn stripe_snapshot(&self, at: usize) -> (Vec<Snapshot>, u64) {
        let stripe = self.index.stripe(at);
        let ticket = self.journal.last();
        let chunks = stripe
            .current
            .values()
            .map(|body| {
                let pending = stripe.pending.get(&body.key().id());
                let prior = pending.and_then(|p| p.as_ref().map(|b| b.facts()));
                Snapshot {
                    current: body.facts(),
                    is_pending: pending.is_some(),
                    prior,
                }
            })
            .collect();
        (chunks, ticket)
    }
}
