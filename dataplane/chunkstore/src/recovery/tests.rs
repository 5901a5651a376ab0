//! Goal: nothing that can happen to bytes on the device makes the store return wrong bytes, lose more than it must, or
//! fail to open without saying what to do. Method: bits are flipped in each structure between two sessions.

mod checkpoints;
mod damage;
mod formatting;
mod replaying;

use super::*;
use crate::device::FILE_NAME;
use crate::tests::{
    MIB, buf, bytes, check, chunk, clean, expect, file, flip, id, key, options, pending, poke,
    reactor, read, session,
};
use crate::{SealChunk, SealData};
use fastcache_types::{Extent, Ino, Version};
use std::path::Path;

/// Seals one chunk of ino 1 in a journal group of its own; answers where that group is, byte of the device.
async fn one(store: &Store, index: u32, version: u64) -> u64 {
    let position = store.inner.journal.lock().head;
    store
        .seal(vec![chunk(key(1, index, version), 5000)], None)
        .await
        .unwrap();
    let (block, _) = Journal::place(store.inner.journal.ring, position);
    u64::from(block) * BLOCK_U64
}

fn open_error(options: StoreOptions) -> StoreError {
    match reactor(async || Store::open(options).await.map(drop)) {
        Ok(()) => panic!("it opened"),
        Err(e) => e,
    }
}
