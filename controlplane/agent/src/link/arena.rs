//! The shared memory of a session: slots the data plane hands out, one use at a time.
//!
//! Invariant: the agent touches a slot's bytes only between the message that gave it the slot and the one that
//! gives it back. The data plane upholds the other half: it hands a slot to nobody else in between. A process
//! that breaks this spoils bytes, which the checksums on both sides find; it cannot touch anything outside.

use fastcache_api::control::SLOT_BYTES;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// Most slots an arena may have: 64 GiB of address space.
const SLOTS_MAX: u32 = 16_384;

/// A mapped arena.
pub(crate) struct Arena {
    map: MmapRaw,
    slots: usize,
}

impl Arena {
    /// Maps the memfd of a `ServerHello`, after checking that it is long enough.
    pub(crate) fn map(fd: OwnedFd, slots: u32) -> io::Result<Arena> {
        let bad = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if slots == 0 || slots > SLOTS_MAX {
            return bad("arena has no slots, or too many");
        }
        let slots = usize::try_from(slots).unwrap_or(0);
        let len = slots * SLOT_BYTES;
        let file = File::from(fd);
        if usize::try_from(file.metadata()?.len()).unwrap_or(0) < len {
            return bad("arena is shorter than its slots");
        }
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        Ok(Arena { map, slots })
    }

    /// Copies the first `len` bytes out of a slot; `None` when the slot or length does not exist.
    pub(crate) fn read(&self, slot: u32, len: u32) -> Option<Vec<u8>> {
        let len = usize::try_from(len).ok()?;
        let at = self.place(slot, len)?;
        let mut out = Vec::with_capacity(len);
        // SAFETY: `place` checked that `at..at + len` lies in the mapping, which lives as long as `self`;
        // `out` has room for `len` bytes and does not overlap it. The bytes are plain data that any value
        // is valid for; that nobody writes them now is the data plane's half of the invariant above.
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().add(at), out.as_mut_ptr(), len);
            out.set_len(len);
        }
        Some(out)
    }

    /// Copies bytes to the start of a slot; `false` when the slot does not exist or is too short.
    #[must_use]
    pub(crate) fn write(&self, slot: u32, bytes: &[u8]) -> bool {
        let Some(at) = self.place(slot, bytes.len()) else {
            return false;
        };
        // SAFETY: `place` checked that `at..at + len` lies in the mapping, which lives as long as `self` and
        // is writable (`map_raw` maps shared, read and write). The agent holds the slot, so nobody else
        // reads or writes it now.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(at),
                bytes.len(),
            );
        }
        true
    }

    fn place(&self, slot: u32, len: usize) -> Option<usize> {
        let slot = usize::try_from(slot).ok()?;
        (slot < self.slots && len <= SLOT_BYTES).then_some(slot * SLOT_BYTES)
    }
}
