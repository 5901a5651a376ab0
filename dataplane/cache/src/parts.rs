//! Small reads of a large chunk that another node has: only the bytes that are wanted, straight to the reader.
//!
//! A chunk is fetched whole when as much was asked of it in parts as fetching it costs; until then reads here and there move no
//! more bytes than they want. A home that is late is not waited for: the chunk is asked for as by any other miss, and the first
//! answer counts. Nothing of a part is kept, so that nothing of it has to be forgotten.

use crate::fetch::Seat;
use crate::tiers::{PeerMiss, PeerSource};
use crate::{FileSystem, count, lock};
use fastcache_api::ChunkKey;
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::{IoBuf, timeout};
use futures_util::future::{Either, select};
use std::pin::pin;

/// Longest read that is answered with a part, bytes.
const PART_MAX: usize = 64 << 10;
/// A chunk is fetched when one of so many of its bytes was read in parts: of 4 MiB after 32 reads of 4 KiB, which take about as
/// long as the whole chunk does.
const PARTS_OF: usize = 32;
/// Chunks of which it is known how much was read in parts; a further one takes the place of another.
const KNOWN: usize = 4096;

/// A chunk, and how many bytes of it were read in parts.
type Known = Option<(ChunkKey, usize)>;

/// How much was read in parts, of the chunks that were read last.
pub(crate) struct Parts {
    known: Mutex<Box<[Known]>>,
}

impl Default for Parts {
    fn default() -> Self {
        Parts {
            known: Mutex::new(vec![None; KNOWN].into_boxed_slice()),
        }
    }
}

impl Parts {
    /// Counts `len` more bytes of a chunk. Whether these are `enough` now; then it begins anew.
    fn add(&self, key: ChunkKey, len: usize, enough: usize) -> bool {
        // The chunks of one file have a place each.
        let spread = key.ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = (spread ^ u64::from(key.index)) % KNOWN as u64;
        let mut known = lock(&self.known);
        let Some(place) = usize::try_from(at).ok().and_then(|at| known.get_mut(at)) else {
            return false;
        };
        let sum = match place {
            Some((of, sum)) if *of == key => *sum + len,
            _ => len,
        };
        let is_enough = sum >= enough;
        *place = Some((key, sum)).filter(|_| !is_enough);
        is_enough
    }
}

/// Asks one home after the other, as long as they do not have it.
async fn ask_in_turn(
    homes: &[Box<dyn PeerSource>],
    key: ChunkKey,
    within: usize,
    len: usize,
) -> Result<IoBuf, PeerMiss> {
    let mut miss = PeerMiss::Absent;
    for home in homes {
        match home.part(key, within, IoBuf::alloc(len)).await {
            Ok(part) => return Ok(part),
            Err(PeerMiss::Absent) => {}
            Err(PeerMiss::Failed) => miss = PeerMiss::Failed,
        }
    }
    Err(miss)
}

impl FileSystem {
    /// Fills `buf` (whole blocks) from `within` of a chunk that is not here, with a part that another node has. An error when it
    /// has to be read as any other miss: with a seat in the chunk's flight, where one was begun meanwhile.
    pub(crate) async fn read_part(
        &self,
        key: ChunkKey,
        within: usize,
        buf: &mut IoBuf,
    ) -> Result<(), Option<Seat>> {
        let len = buf.len();
        let tier = self.inner.peers.get().filter(|_| len <= PART_MAX);
        let enough = self.expected_len(key) / PARTS_OF;
        let Some(tier) = tier.filter(|_| len <= enough && !self.inner.flights.has(key)) else {
            return Err(None);
        };
        let homes = tier.homes(key.id());
        let Some(first) = homes.first() else {
            return Err(None);
        };
        let is_worth_it = self.inner.parts.add(key, len, enough);
        let mut asked = pin!(ask_in_turn(&homes, key, within, len));
        let part = match timeout(first.patience(), &mut asked).await {
            Ok(Err(PeerMiss::Absent)) => {
                return Err(Some(self.join_flight(key, false, true)));
            }
            Ok(part) => part,
            Err(_) => {
                count(&self.inner.counters.peer_hedges, 1);
                let seat = self.join_flight(key, false, false);
                let part = match select(asked, pin!(seat.has_come())).await {
                    Either::Left((part, _)) => Some(part),
                    Either::Right((true, _)) => None,
                    // The home may have what nobody else could give.
                    Either::Right((false, asked)) => Some(asked.await),
                };
                match part {
                    Some(part) => part,
                    None => return Err(Some(seat)),
                }
            }
        };
        let Ok(part) = part else {
            return Err(None);
        };
        buf.copy_from_slice(&part);
        count(&self.inner.counters.peer_parts, 1);
        count(&self.inner.counters.peer_part_bytes, len as u64);
        if is_worth_it {
            // After the part, which it would have delayed.
            drop(self.join_flight(key, false, false));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what was read of a chunk adds up, and what is kept about it is bounded. Method: by hand.
    use super::*;
    use fastcache_api::{Ino, Version};

    #[test]
    fn what_is_read_of_a_chunk_adds_up() {
        fastcache_reactor::run(fastcache_reactor::Config::default(), || async {
            let key = |ino, index, version| ChunkKey {
                ino: Ino(ino),
                index,
                version: Version(version),
            };
            let parts = Parts::default();
            for round in 1..=4 {
                for index in 0..1000 {
                    let is_enough = parts.add(key(7, index, 1), 4096, 4 * 4096);
                    assert_eq!(is_enough, round == 4, "{round} of {index}");
                }
            }
            assert!(!parts.add(key(7, 0, 1), 9, 10), "it begins anew");
            assert!(!parts.add(key(7, 0, 2), 9, 10), "another version");
            assert!(!parts.add(key(7, 0, 1), 9, 10), "its place was taken");
            assert!(parts.add(key(7, 0, 1), 9, 10));
        })
        .unwrap();
    }
}
