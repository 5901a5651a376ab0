//! The journal: a ring of 4 KiB blocks that carries groups of records. Owns the queue of records that are not written
//! yet, and the positions. What is here does no I/O; `append.rs` does.
//!
//! Positions count blocks for ever (position modulo ring length is the place). A group starts at a new block and carries
//! its position, the generation of the session that wrote it and a checksum of all of it. Replay goes from a checkpoint's
//! position on and ends at the first block that is not the start of the next group: a torn one has a bad checksum, one
//! of an earlier lap a smaller position, and one that was written behind a lost group, by an earlier session, a smaller
//! generation than the group before it (a generation is durable in the superblock before its session writes a group).
//!
//! Each group begins with a FLUSHED record: up to where a flush had covered records and data when it was written. What
//! comes behind the last of them may have come to the device without the data that it names; see `tail.rs`.
//!
//! A journal that cannot be written is *lost*: the index goes on in RAM alone, and nothing is promised any more that a
//! restart would have to keep (see `Store::is_volatile`).
//!
//! Bounds: what is queued, admitted and not yet covered by a checkpoint is at most 3/4 of the ring; callers wait in
//! `admit` beyond that. Lazy records, which cannot wait, stop at 7/8.

use crate::crc::crc_all;
use crate::record::{Record, TICKET_BYTES};
use crate::wire::{Get, Put};
use event_listener::Event;
use fastcache_reactor::sync::{Mutex, MutexGuard};
use fastcache_types::{BLOCK, Extent};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// First bytes of a group: "FCJG".
const MAGIC: u32 = u32::from_le_bytes(*b"FCJG");
/// Bytes before a group's records.
pub(crate) const GROUP_HEADER: usize = 32;
/// A group takes no more submissions when it has this many bytes: bounds the latency of one write.
const GROUP_BYTES: usize = 256 << 10;

/// The start of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupHeader {
    pub(crate) position: u64,
    pub(crate) generation: u32,
    /// Bytes of records.
    pub(crate) len: u32,
    crc: u32,
}

/// Blocks that a submission of this many bytes takes at most.
pub(crate) fn submission_blocks(bytes: usize) -> u32 {
    queued_blocks(TICKET_BYTES + bytes)
}

/// Blocks that so many bytes of the queue take at most: they may make a group of their own.
fn queued_blocks(bytes: usize) -> u32 {
    group_blocks(TICKET_BYTES + bytes)
}

/// Blocks of a group with this many bytes of records.
#[allow(
    clippy::cast_possible_truncation,
    reason = "groups are far smaller than 16 TiB"
)]
pub(crate) fn group_blocks(bytes: usize) -> u32 {
    (GROUP_HEADER + bytes).div_ceil(BLOCK) as u32
}

impl GroupHeader {
    /// Reads the start of a group of this store; `None` when there is none.
    pub(crate) fn decode(block: &[u8], store: u64) -> Option<GroupHeader> {
        let mut g = Get::new(block);
        if g.u32()? != MAGIC {
            return None;
        }
        let crc = g.u32()?;
        if g.u64()? != store {
            return None;
        }
        let position = g.u64()?;
        Some(GroupHeader {
            position,
            generation: g.u32()?,
            len: g.u32()?,
            crc,
        })
    }

    pub(crate) fn blocks(&self) -> u32 {
        group_blocks(self.len as usize)
    }

    /// The records of a whole group (`blocks()` blocks), when its checksum is right.
    pub(crate) fn records<'a>(&self, group: &'a [u8]) -> Option<&'a [u8]> {
        let end = GROUP_HEADER + self.len as usize;
        let checked = group.get(8..end)?;
        (crc_all(checked) == self.crc).then(|| &group[GROUP_HEADER..end])
    }
}

/// Fills `out` (whole blocks) with a group.
#[allow(
    clippy::cast_possible_truncation,
    reason = "groups are far smaller than 4 GiB"
)]
pub(crate) fn encode_group<'a>(
    out: &mut [u8],
    store: u64,
    position: u64,
    generation: u32,
    records: impl Iterator<Item = &'a [u8]>,
) {
    let mut at = GROUP_HEADER;
    for r in records {
        out[at..at + r.len()].copy_from_slice(r);
        at += r.len();
    }
    out[at..].fill(0);
    let mut head = Vec::with_capacity(GROUP_HEADER);
    head.put_u32(MAGIC);
    head.put_u32(0);
    head.put_u64(store);
    head.put_u64(position);
    head.put_u32(generation);
    head.put_u32((at - GROUP_HEADER) as u32);
    out[..GROUP_HEADER].copy_from_slice(&head);
    let crc = crc_all(&out[8..at]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A checkpoint that is complete on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Newest {
    pub(crate) sequence: u64,
    /// Which of the two areas.
    pub(crate) area: usize,
    /// Replay starts here.
    pub(crate) start: u64,
}

/// Positions of the ring and the queue before it.
pub(crate) struct State {
    /// Submissions that are not written yet: (last ticket in it, records).
    queue: VecDeque<(u64, Vec<u8>)>,
    /// Blocks that the queue takes at most.
    queued_blocks: u64,
    /// Blocks promised to callers of `admit` that have not queued yet.
    admitted_blocks: u64,
    pub(crate) last: u64,
    pub(crate) written: u64,
    /// Up to this ticket records, and the data that they name, are on stable storage.
    flushed: u64,
    /// What the last group says of that.
    said: u64,
    /// A group is to say so even without records.
    is_saying: bool,
    /// The group that is being written. When the core that does so ends, another one writes it again.
    in_flight: Option<Arc<Group>>,
    /// Where the next group goes.
    pub(crate) head: u64,
    /// What is before this is not needed any more.
    pub(crate) tail: u64,
    pub(crate) newest: Newest,
    pub(crate) is_appending: bool,
    pub(crate) is_checkpointing: bool,
    /// See [`Journal::lose`].
    pub(crate) is_lost: bool,
}

/// The journal of a store.
pub(crate) struct Journal {
    pub(crate) ring: Extent,
    pub(crate) store: u64,
    pub(crate) generation: u32,
    state: Mutex<State>,
    /// Notified when records were written, a checkpoint ended or the journal was lost.
    pub(crate) event: Event,
}

/// Room in the ring for what is about to be queued.
pub(crate) struct Admission<'a> {
    journal: &'a Journal,
    blocks: u64,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.journal.lock().admitted_blocks -= self.blocks;
    }
}

/// A group that is to be written.
pub(crate) struct Group {
    pub(crate) position: u64,
    pub(crate) blocks: u32,
    pub(crate) ticket: u64,
    /// Up to this ticket everything was flushed when it was made.
    pub(crate) flushed: u64,
    pub(crate) submissions: Vec<(u64, Vec<u8>)>,
}

impl Journal {
    /// `used` is what is needed of the ring, up to its head. `ticket` is the last one that was used; everything up to
    /// `flushed` is on stable storage and looked at.
    pub(crate) fn new(
        ring: Extent,
        store: u64,
        generation: u32,
        used: Range<u64>,
        newest: Newest,
        ticket: u64,
        flushed: u64,
    ) -> Journal {
        Journal {
            ring,
            store,
            generation,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_blocks: 0,
                admitted_blocks: 0,
                last: ticket,
                written: ticket,
                flushed,
                said: 0,
                is_saying: false,
                in_flight: None,
                head: used.end,
                tail: used.start,
                newest,
                is_appending: false,
                is_checkpointing: false,
                is_lost: false,
            }),
            event: Event::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self) -> u64 {
        u64::from(self.ring.len)
    }

    /// Most bytes of one submission: an eighth of the ring.
    pub(crate) fn submission_max(&self) -> usize {
        (self.ring.len / 8) as usize * BLOCK - GROUP_HEADER - 2 * TICKET_BYTES
    }

    /// Room for so many blocks; `None`: wait for a checkpoint.
    pub(crate) fn try_admit(&self, blocks: u32) -> Option<Admission<'_>> {
        let mut st = self.lock();
        let blocks = u64::from(blocks);
        if !st.is_lost && st.in_use() + blocks > self.blocks() / 4 * 3 {
            return None;
        }
        st.admitted_blocks += blocks;
        drop(st);
        Some(Admission {
            journal: self,
            blocks,
        })
    }

    /// Queues records that are written together or not at all, and returns their ticket. The caller holds the lock of
    /// the stripe that they change, and has an admission or is lazy (see [`Journal::takes_lazy`]).
    pub(crate) fn enqueue(&self, space: &crate::space::Space, records: &[u8]) -> u64 {
        let mut st = self.lock();
        st.last += 1;
        let ticket = st.last;
        space.last_ticket.store(ticket, Ordering::Release);
        let room = BLOCK - GROUP_HEADER - TICKET_BYTES;
        match st.queue.back_mut() {
            // Small submissions share a block from the start.
            Some((last, bytes)) if bytes.len() + TICKET_BYTES + records.len() <= room => {
                *last = ticket;
                Record::Ticket(ticket).encode(bytes);
                bytes.extend_from_slice(records);
            }
            _ => {
                let mut bytes = Vec::with_capacity(TICKET_BYTES + records.len());
                Record::Ticket(ticket).encode(&mut bytes);
                bytes.extend_from_slice(records);
                st.queued_blocks += u64::from(queued_blocks(bytes.len()));
                st.queue.push_back((ticket, bytes));
            }
        }
        ticket
    }

    /// Whether a lazy record may be queued.
    pub(crate) fn takes_lazy(&self) -> bool {
        let st = self.lock();
        st.is_lost || st.in_use() < self.blocks() / 8 * 7
    }

    /// Whether so much is queued that it should be written without anybody asking for it.
    pub(crate) fn is_long(&self) -> bool {
        self.lock().queue.len() >= 8
    }

    /// Takes the next group out of the queue and gives it its place; `None` when nothing is queued.
    pub(crate) fn take_group(&self) -> Option<Arc<Group>> {
        let mut st = self.lock();
        if let Some(group) = &st.in_flight {
            return Some(group.clone());
        }
        let mut submissions = Vec::new();
        let mut bytes = 0;
        let mut ticket = st.written;
        while let Some((_, records)) = st.queue.front()
            && (submissions.is_empty() || bytes + records.len() <= GROUP_BYTES)
            && let Some((last, records)) = st.queue.pop_front()
        {
            bytes += records.len();
            ticket = last;
            st.queued_blocks -= u64::from(queued_blocks(records.len()));
            submissions.push((last, records));
        }
        let is_saying = std::mem::take(&mut st.is_saying);
        if submissions.is_empty() && !is_saying {
            return None;
        }
        let blocks = queued_blocks(bytes);
        let position = st.head;
        st.head += u64::from(blocks);
        let used = st.head - st.tail;
        assert!(
            used <= self.blocks(),
            "the journal overran its tail: {used} blocks"
        );
        let group = Arc::new(Group {
            position,
            blocks,
            ticket,
            flushed: st.flushed,
            submissions,
        });
        st.in_flight = Some(group.clone());
        Some(group)
    }

    /// A group that `take_group` gave is on the device.
    pub(crate) fn end_group(&self, group: &Group) {
        let mut st = self.lock();
        st.in_flight = None;
        st.written = group.ticket;
        st.said = group.flushed;
    }

    /// A flush that began when `ticket` was written has ended.
    pub(crate) fn flushed(&self, ticket: u64) {
        let mut st = self.lock();
        st.flushed = st.flushed.max(ticket);
    }

    /// Whether a flush would make something durable.
    pub(crate) fn is_unflushed(&self) -> bool {
        let st = self.lock();
        !st.is_lost && st.last > st.flushed
    }

    /// The next group says what was flushed, even if it says nothing else: so that a start after a quiet time has little
    /// to verify.
    pub(crate) fn say_flushed(&self) {
        let mut st = self.lock();
        if !st.is_lost && st.said < st.flushed && st.in_use() < self.blocks() / 8 * 7 {
            st.is_saying = true;
        }
    }

    /// The journal cannot be made durable any more: records are dropped from now on, and the device stays as it is now for
    /// the next start. Whether this is new.
    pub(crate) fn lose(&self) -> bool {
        !std::mem::replace(&mut self.lock().is_lost, true)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lock().is_lost
    }

    /// Drops what is queued, where the journal is lost. Whether it is.
    pub(crate) fn drop_queue(&self) -> bool {
        let mut st = self.lock();
        if !st.is_lost {
            return false;
        }
        st.queue.clear();
        st.is_saying = false;
        st.queued_blocks = 0;
        st.in_flight = None;
        st.written = st.last;
        true
    }

    /// Whether it is time for a checkpoint; if so, the caller writes it.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let st = self.lock();
        !st.is_checkpointing && !st.is_lost && st.head - st.newest.start >= self.blocks() / 4
    }

    /// Where a position is in the ring, block of the device, and how many blocks follow it before the ring's end.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "less than the ring's length"
    )]
    pub(crate) fn place(ring: Extent, position: u64) -> (u32, u32) {
        let at = (position % u64::from(ring.len)) as u32;
        (ring.start + at, ring.len - at)
    }

    /// The last ticket queued.
    pub(crate) fn last(&self) -> u64 {
        self.lock().last
    }

    /// The last ticket written.
    pub(crate) fn written(&self) -> u64 {
        self.lock().written
    }
}

impl State {
    fn in_use(&self) -> u64 {
        self.head - self.tail + self.queued_blocks + self.admitted_blocks
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.is_saying && self.in_flight.is_none()
    }
}
