//! Identifiers every layer of both planes uses. No I/O.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// Bits of a [`Version`] or [`Ino`] that hold the counter; the epoch is above them.
pub const COUNTER_BITS: u32 = 40;

/// An inode number: the FUSE node id on every node. The root is 1.
/// Numbers other than the root are (epoch << 40 | counter), so none is ever used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ino:{:x}", self.0)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A map by inode, for tables in which every entry of a listing is looked up.
pub type InoMap<T> = HashMap<Ino, T, BuildHasherDefault<InoHasher>>;

/// Hashes inode numbers. They come from the coordinator, one after the other: nobody chooses some that meet, so no secret key is
/// needed, which would cost more than all else of a lookup.
#[derive(Clone, Copy, Debug, Default)]
pub struct InoHasher(u64);

/// An odd number with as many ones as zeros (2^64 divided by the golden ratio).
const MIXER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for InoHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(MIXER);
        // Numbers that end alike (those of a stripe) differ in the upper half of the product; tables take the lower bits.
        let [upper, lower] = [product >> 64, product & u128::from(u64::MAX)];
        self.0 = u64::try_from(upper ^ lower).unwrap_or_default();
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The version of a chunk: (epoch << 40 | counter), never reused. 0 means "no version".
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default,
)]
pub struct Version(pub u64);

impl Version {
    /// No version: the chunk was never written and reads as zeros.
    pub const NONE: Version = Version(0);
}

/// A chunk's place in a file, without its version: the key of local bookkeeping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct ChunkId {
    /// The file.
    pub ino: Ino,
    /// Index of the chunk in the file: byte offset / chunk size.
    pub index: u32,
}

/// Names bytes that never change: one version of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct ChunkKey {
    /// The file.
    pub ino: Ino,
    /// Index of the chunk in the file.
    pub index: u32,
    /// The version of its contents.
    pub version: Version,
}

impl ChunkKey {
    /// The key without its version.
    pub fn id(&self) -> ChunkId {
        ChunkId {
            ino: self.ino,
            index: self.index,
        }
    }
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}/{}@{:x}", self.ino.0, self.index, self.version.0)
    }
}

/// Makes an operation that is sent twice happen once: the client's number and its sequence number.
/// Client numbers are random 64-bit values, drawn when a data plane (or agent) starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct OpId {
    /// Who asks.
    pub client: u64,
    /// Rises by one for each changing operation of this client.
    pub seq: u64,
}

/// A point in time as POSIX tells it: seconds since 1970 (may be negative) and nanoseconds (0 to 999,999,999).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default,
)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds of the second.
    pub nsec: u32,
}

impl Time {
    /// The wall clock now.
    pub fn now() -> Time {
        Time::of(std::time::SystemTime::now())
    }

    /// A moment of the wall clock; whole seconds before 1970.
    pub fn of(moment: std::time::SystemTime) -> Time {
        match moment.duration_since(std::time::UNIX_EPOCH) {
            Ok(d) => Time {
                sec: d.as_secs().cast_signed(),
                nsec: d.subsec_nanos(),
            },
            Err(e) => {
                let d = e.duration();
                Time {
                    sec: -d.as_secs().cast_signed(),
                    nsec: 0,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, RandomState};

    /// How many of these inodes meet another one, in a table of 4096 places.
    fn meet(inos: impl Iterator<Item = Ino>, hash: &dyn Fn(Ino) -> u64) -> usize {
        let mut places = vec![0_usize; 4096];
        for ino in inos {
            places[usize::try_from(hash(ino) % 4096).unwrap()] += 1;
        }
        places.iter().map(|n| n.saturating_sub(1)).sum()
    }

    /// Inodes as they are numbered, every one or those of a stripe, spread no worse than with a key.
    #[test]
    fn inode_numbers_spread() {
        let keyed = RandomState::new();
        let plain = BuildHasherDefault::<InoHasher>::default();
        for epoch in [0, 1, 77] {
            for step in [1, 2, 8, 64, 1024] {
                let inos = || (1..=2048).map(move |n| Ino(epoch << COUNTER_BITS | (n * step)));
                let (ours, theirs) = (
                    meet(inos(), &|ino| plain.hash_one(ino)),
                    meet(inos(), &|ino| keyed.hash_one(ino)),
                );
                assert!(ours < theirs * 3 / 2, "{epoch} {step}: {ours}, {theirs}");
                // What tells entries of one place apart.
                let tops = inos().map(|ino| plain.hash_one(ino) >> 57);
                let tops: std::collections::HashSet<u64> = tops.collect();
                assert!(tops.len() > 100, "{epoch} {step}: {} tops", tops.len());
            }
        }
    }
}
