//! Chunks on a device: superblock, allocator, index, journal, recovery.
//!
//! The store keeps at most one sealed body per chunk id. A body is a version of the chunk, a header on the device with
//! its block map and checksums, and extents. The way of the data:
//!
//! ```text
//! allocate, write_blocks ─► seal: headers ─► journal record ─► index ─► read (verified) ─► evict, remove
//!                                                │                                            │
//!                                         flush: durable                    quarantine ─ flush ─► free
//! ```
//!
//! - `superblock`, `signature`, `device`: what the device is, and transfers of blocks.
//! - `space`: who owns which block. `spill`: what the device refused. `index`, `slots`, `bodies`: which chunks there are. `body`: one chunk.
//! - `journal`, `append`, `checkpoint`, `record`: changes of the index on the device.
//! - `recovery`, `replay`, `tail`: the index again after a start.
//! - `seal`, `read`, `store`: what callers see.
//!
//! The format is drawn in docs/disk-layout.md.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "a test may fail by panicking, and its numbers are small"
    )
)]

mod append;
#[cfg(any(test, feature = "audit"))]
mod audit;
mod bodies;
mod body;
mod checkpoint;
mod crc;
mod crc_cache;
mod device;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod header;
mod index;
mod journal;
#[cfg(all(test, feature = "race"))]
mod race;
mod read;
mod record;
mod recovery;
mod replay;
mod seal;
mod signature;
mod slots;
mod space;
mod spill;
mod store;
mod superblock;
mod tail;
mod wire;

#[cfg(test)]
mod tests;

pub use body::{BlockRun, ChunkBody, ChunkInfo, ChunkMeta};
pub use crc::{crc_all, crc_block, crc_blocks, crc_combine, crc_of_blocks};
pub use error::StoreError;
pub use recovery::Recovered;
pub use replay::PendingSeal;
pub use seal::{SealChunk, SealData, SealFile, Sealed};
pub use store::{ErrorCounters, Health, Store, StoreOptions, Usage};
