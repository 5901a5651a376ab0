//! Shared mappings of files, read and written through volatile accesses: others change the bytes meanwhile.

use std::os::fd::AsFd;

/// A shared, writable mapping of the first bytes of a file.
#[derive(Debug)]
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes.
    ///
    /// # Panics
    /// When that cannot be done.
    #[track_caller]
    pub fn shared(file: impl AsFd, len: usize) -> Mapping {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a free range; the mapping lives until it is dropped.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0) }
            .unwrap_or_else(|e| panic!("mmap: {e}"));
        Mapping {
            start: start.cast(),
            len,
        }
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    /// When that is outside.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, which is writable and lives as long as `self`.
            unsafe { self.start.add(offset + n).write_volatile(*byte) };
        }
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Panics
    /// When that is outside.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len);
        // SAFETY: inside the mapping, which is readable and lives as long as `self`.
        let byte = |n| unsafe { self.start.add(offset + n).read_volatile() };
        (0..len).map(byte).collect()
    }

    /// msync(2) of everything.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn sync(&self) {
        // SAFETY: exactly the range that is mapped.
        unsafe { rustix::mm::msync(self.start.cast(), self.len, rustix::mm::MsyncFlags::SYNC) }
            .unwrap_or_else(|e| panic!("msync: {e}"));
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.len) };
    }
}
