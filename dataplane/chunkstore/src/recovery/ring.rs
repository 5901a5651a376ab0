//! The journal's ring as a start reads it: the groups behind a checkpoint, up to where it ends.

use super::WINDOW_BLOCKS;
use crate::checkpoint::CheckpointHeader;
use crate::device::Device;
use crate::journal::{GroupHeader, Journal};
use crate::record::Record;
use crate::replay::{Replay, decode_all};
use crate::superblock::Superblock;
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, BLOCK_U64, Extent};
use std::collections::VecDeque;

/// Reads the ring by position, a window at a time.
struct RingReader<'a> {
    device: &'a Device,
    ring: Extent,
    from: u64,
    window: Vec<u8>,
}

impl RingReader<'_> {
    /// `blocks` blocks from a position on; `None` when the device fails.
    async fn get(&mut self, position: u64, blocks: u32) -> Option<&[u8]> {
        let bytes = blocks as usize * BLOCK;
        let have = self.from + self.window.len() as u64 / BLOCK_U64;
        if position < self.from || position + u64::from(blocks) > have {
            let mut want = blocks.max(WINDOW_BLOCKS).min(self.ring.len);
            self.window.clear();
            self.from = position;
            let mut at = position;
            while want > 0 {
                let (first, room) = Journal::place(self.ring, at);
                let len = want.min(room);
                let (result, buf) = self
                    .device
                    .read(first, IoBuf::alloc(len as usize * BLOCK))
                    .await;
                if let Err(error) = result {
                    tracing::error!(target: "nvme", %error, position = at, "the journal cannot be read");
                    return None;
                }
                self.window.extend_from_slice(&buf);
                at += u64::from(len);
                want -= len;
            }
        }
        let skip = usize::try_from(position - self.from).ok()? * BLOCK;
        self.window.get(skip..skip + bytes)
    }
}

/// What is known of the journal's end.
#[derive(Clone, Copy)]
pub(super) struct JournalEnd {
    /// What starts here or later does not count.
    pub(super) limit: u64,
    /// The journal leads there from the checkpoint.
    pub(super) is_sure: bool,
}

/// Applies the journal from a checkpoint on; answers where it ends, and whether a group may be there. `None`: this part
/// of the journal has been overwritten, so that the checkpoint leads nowhere (looked for unless that is sure).
pub(super) async fn replay_journal(
    device: &Device,
    superblock: &Superblock,
    checkpoint: &CheckpointHeader,
    replay: &mut Replay,
    end: JournalEnd,
) -> Option<(u64, bool)> {
    let store = superblock.store_id();
    let ring = superblock.geometry.journal;
    let mut reader = RingReader {
        device,
        ring,
        from: 0,
        window: Vec::new(),
    };
    let mut generation = checkpoint.generation;
    let mut position = checkpoint.start;
    let mut groups = 0u64;
    let mut is_unread = false;
    // Groups that no flush is known to have covered: position, last ticket, records.
    let mut tail: VecDeque<(u64, u64, Vec<Record>)> = VecDeque::new();
    while position - checkpoint.start < u64::from(ring.len) && position < end.limit {
        let Some(block) = reader.get(position, 1).await else {
            is_unread = true;
            break;
        };
        let Some(group) = GroupHeader::decode(block, store) else {
            break;
        };
        let is_next = group.position == position
            && (generation..superblock.generation).contains(&group.generation);
        if !is_next || group.blocks() > ring.len / 2 {
            break;
        }
        let Some(bytes) = reader.get(position, group.blocks()).await else {
            is_unread = true;
            break;
        };
        let Some(records) = group.records(bytes) else {
            tracing::warn!(target: "nvme", position, "the journal ends with a torn or damaged group");
            break;
        };
        let records = decode_all(records);
        let ticket = records.iter().rev().find_map(|r| match r {
            Record::Ticket(ticket) => Some(*ticket),
            _ => None,
        });
        // Format 1 does not say it; what it wrote is believed.
        let flushed = match records.first() {
            Some(Record::Flushed(ticket)) => *ticket,
            _ => u64::MAX,
        };
        tail.push_back((position, ticket.unwrap_or(0), records));
        while tail
            .front()
            .is_some_and(|(_, ticket, _)| *ticket <= flushed)
            && let Some((_, _, records)) = tail.pop_front()
        {
            replay.apply_all(records);
        }
        generation = group.generation;
        position += u64::from(group.blocks());
        groups += 1;
    }
    tracing::debug!(target: "nvme", groups, unflushed = tail.len(), position, "journal replayed");
    replay.flushed = replay.ticket;
    for (position, _, records) in tail {
        replay.tail.begin(position);
        replay.apply_all(records);
    }
    // A group of a later lap where the next one should be: the journal went on, and this part was overwritten. The
    // later group may begin a little behind, as far as one is long.
    for ahead in 0..if end.is_sure { 0 } else { ring.len / 8 } {
        let at = position + u64::from(ahead);
        let group = reader
            .get(at, 1)
            .await
            .and_then(|b| GroupHeader::decode(b, store));
        if let Some(group) = group
            && group.position >= position + u64::from(ring.len)
            && group.blocks() <= ring.len / 2
            && let Some(bytes) = reader.get(at, group.blocks()).await
            && group.records(bytes).is_some()
        {
            return None;
        }
    }
    Some((position, is_unread || position >= end.limit))
}
