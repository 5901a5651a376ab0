//! The end of the journal, which no flush is known to have covered. A power cut may have left records there without the
//! data that they name; then the journal ends before the first such record that still counts, as it does before a torn
//! group. What was replaced or removed behind that place was not reused, because its blocks wait for a flush that covers
//! the record (`space.rs`), and is what counts again.
//!
//! A chunk that is in the cloud need not end anything: it is dropped, and fetched again.
//!
//! Only data of this end is read: what was sealed since the flush before the last one, some two seconds of writing
//! (`Store::background`).
//!
//! What cannot be read is believed, as it is everywhere else: that a block is bad does not mean that it was never written.
//! So is what the device had refused before its record was written.

use crate::body::{BlockRun, BodyFacts, Runs};
use crate::crc::crc_block;
use crate::device::Device;
use crate::header;
use crate::replay::Replayed;
use crate::slots::Slots;
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, ChunkKey, Extent};
use futures_util::stream::{self, StreamExt};

/// Chunks that are verified at the same time: at most 32 MiB of buffers.
const CHUNKS_IN_FLIGHT: usize = 8;

/// A chunk of the tail.
struct Put {
    facts: BodyFacts,
    /// Of the version that a flush has covered, blocks that every version since has named: known to be there. Others may
    /// have been freed and written anew.
    base: Runs,
    /// Positions of the groups since which it counts (a pending one not before its SEAL record: until then a start frees
    /// its blocks), is in the cloud, and does not count any more.
    born: u64,
    cleaned: u64,
    died: u64,
    /// Whether its data is there, where that is known.
    is_whole: Option<bool>,
}

/// What the end of the journal put, in order.
#[derive(Default)]
pub(crate) struct Tail {
    /// Where the group is whose records are being applied; `None` before the tail.
    position: Option<u64>,
    /// The order of the first.
    first: u64,
    puts: Vec<Put>,
}

impl Tail {
    /// The records that follow are those of the group at `position`.
    pub(crate) fn begin(&mut self, position: u64) {
        self.position = Some(position);
    }

    fn of(&mut self, body: &Replayed) -> Option<&mut Put> {
        let at = usize::try_from(body.order.checked_sub(self.first)?).ok()?;
        self.puts.get_mut(at)
    }

    /// A chunk is about to be put; all of the tail have consecutive orders.
    pub(crate) fn put(
        &mut self,
        facts: &BodyFacts,
        is_pending: bool,
        is_spilled: bool,
        order: u64,
        slots: &Slots<Replayed>,
    ) {
        let Some(position) = self.position else {
            return;
        };
        if self.puts.is_empty() {
            self.first = order;
        }
        let base = match slots.current.get(&facts.key.id()) {
            Some(old) => match self.of(old) {
                Some(put) => common(&put.base, &put.facts.runs),
                None => old.facts.runs.clone(),
            },
            None => Runs::new(),
        };
        self.puts.push(Put {
            facts: facts.clone(),
            base,
            born: if is_pending { u64::MAX } else { position },
            cleaned: if facts.is_dirty { u64::MAX } else { 0 },
            died: u64::MAX,
            is_whole: is_spilled.then_some(true),
        });
    }

    /// A pending chunk is final.
    pub(crate) fn confirm(&mut self, body: &Replayed) {
        if let (Some(position), Some(put)) = (self.position, self.of(body)) {
            put.born = position;
        }
    }

    /// A chunk is in the cloud.
    pub(crate) fn clean(&mut self, body: &Replayed) {
        if let (Some(position), Some(put)) = (self.position, self.of(body)) {
            put.cleaned = put.cleaned.min(position);
        }
    }

    /// Chunks that do not count any more.
    pub(crate) fn end(&mut self, dead: &[Replayed]) {
        let Some(position) = self.position else {
            return;
        };
        for body in dead {
            if let Some(put) = self.of(body) {
                put.died = position;
            }
        }
    }

    /// Up to where the journal, which ends at `end`, names only chunks that are there, and those that are to be dropped
    /// because they are not, though they are in the cloud.
    pub(crate) async fn whole_until(
        &mut self,
        device: &Device,
        store: u64,
        end: u64,
    ) -> (u64, Vec<ChunkKey>) {
        let mut limit = end;
        loop {
            let is_live = |put: &Put| put.born < limit && put.died >= limit;
            let unknown = self.puts.iter_mut();
            let unknown = unknown.filter(|put| put.is_whole.is_none() && is_live(put));
            stream::iter(unknown)
                .map(|put| verify(device, store, put))
                .buffer_unordered(CHUNKS_IN_FLIGHT)
                .for_each(|()| std::future::ready(()))
                .await;
            let broken = self.puts.iter();
            let broken = broken.filter(|put| put.is_whole == Some(false) && is_live(put));
            let lost = broken.clone().filter(|put| put.cleaned >= limit);
            match lost.map(|put| put.born).min() {
                // What it had replaced counts again, and may be of the tail, too.
                Some(born) => limit = born,
                None => return (limit, broken.map(|put| put.facts.key).collect()),
            }
        }
    }
}

/// What of `base` is also in `runs`, whatever its place in the chunk.
fn common(base: &Runs, runs: &Runs) -> Runs {
    let pairs = base.iter().flat_map(|b| runs.iter().map(move |r| (b, r)));
    let both = pairs.filter_map(|(b, r)| {
        let start = b.extent.start.max(r.extent.start);
        let end = b.extent.end().min(r.extent.end());
        let len = end.checked_sub(start).filter(|&len| len > 0)?;
        let extent = Extent { start, len };
        Some(BlockRun {
            first: b.first,
            extent,
        })
    });
    both.collect()
}

/// Finds out whether the data of a chunk is there.
async fn verify(device: &Device, store: u64, put: &mut Put) {
    put.is_whole = Some(is_whole(device, store, &put.facts, &put.base).await);
}

async fn is_whole(device: &Device, store: u64, facts: &BodyFacts, base: &Runs) -> bool {
    let head = facts.header_extent();
    let buf = IoBuf::alloc(head.len as usize * BLOCK);
    let (result, buf) = device.read(head.start, buf).await;
    if result.is_err() {
        return true;
    }
    let found = header::decode(&buf, store, head.start).filter(|h| {
        h.facts.key == facts.key && h.facts.len == facts.len && h.facts.runs == facts.runs
    });
    let Some(found) = found else {
        return false;
    };
    let is_known = |block: u32| {
        let is_in = |e: Extent| (e.start..e.end()).contains(&block);
        base.iter().any(|run| is_in(run.extent))
    };
    for run in &facts.runs {
        let e = run.extent;
        if (e.start..e.end()).all(is_known) {
            continue;
        }
        let buf = IoBuf::alloc(e.len as usize * BLOCK);
        let (result, buf) = device.read(e.start, buf).await;
        if result.is_err() {
            continue;
        }
        for (n, bytes) in (0..).zip(buf.chunks_exact(BLOCK)) {
            let crc = found.crcs.get((run.first + n) as usize);
            if !is_known(e.start + n) && crc != Some(&crc_block(bytes)) {
                return false;
            }
        }
    }
    true
}
