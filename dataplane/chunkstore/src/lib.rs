//! Chunks on a device: superblock, allocator, index, journal, recovery.
