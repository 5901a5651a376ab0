//! The device as blocks: whole transfers, errors counted.

use crate::error::StoreError;
use fastcache_reactor::{Disk, DiskOptions, IoBuf};
use fastcache_types::{BLOCK, BLOCK_U64};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the store's file in a directory.
pub(crate) const FILE_NAME: &str = "fastcache.store";

/// The device of a store.
pub(crate) struct Device {
    disk: Disk,
    pub(crate) checksum_errors: AtomicU64,
    pub(crate) device_errors: AtomicU64,
}

impl Device {
    /// Opens and locks a block device, a partition, a file, or the store's file in a directory. A missing or empty
    /// file is made, `capacity` bytes long, with its space reserved.
    pub(crate) fn open(path: &Path, capacity: u64) -> Result<Device, StoreError> {
        let path = file_of(path);
        let failed = |error| StoreError::Open {
            path: path.clone(),
            error,
        };
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                crate::superblock::Geometry::new(capacity)?;
                reserve(&path, capacity).map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
            Ok(meta) if meta.is_file() && meta.len() == 0 => {
                crate::superblock::Geometry::new(capacity)?;
                reserve(&path, capacity).map_err(failed)?;
            }
            Ok(_) => {}
        }
        let disk = Disk::open(&path, DiskOptions::default()).map_err(failed)?;
        disk.try_lock_exclusive().map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => StoreError::Busy,
            _ => failed(e),
        })?;
        Ok(Device {
            disk,
            checksum_errors: AtomicU64::new(0),
            device_errors: AtomicU64::new(0),
        })
    }

    /// Before formatting: a regular file gets the wanted size, with its space reserved; its contents are gone.
    pub(crate) fn resize(self, path: &Path, capacity: u64) -> Result<Device, StoreError> {
        let file = file_of(path);
        let is_file = std::fs::metadata(&file).is_ok_and(|m| m.is_file());
        if !is_file || self.len() == capacity {
            return Ok(self);
        }
        crate::superblock::Geometry::new(capacity)?;
        drop(self);
        let failed = |error| StoreError::Open {
            path: file.clone(),
            error,
        };
        OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|f| f.set_len(0))
            .map_err(failed)?;
        Device::open(path, capacity)
    }

    /// Its size, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.disk.len()
    }

    fn failed(&self, error: io::Error) -> StoreError {
        self.device_errors.fetch_add(1, Ordering::Relaxed);
        StoreError::Device(error)
    }

    /// Counts something that did not match its checksum.
    pub(crate) fn mismatch(&self) {
        self.checksum_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Fills `buf` from block `first` on.
    pub(crate) async fn read(&self, first: u32, buf: IoBuf) -> (Result<(), StoreError>, IoBuf) {
        let len = buf.len();
        let (result, buf) = self.disk.read(buf, u64::from(first) * BLOCK_U64).await;
        match result {
            Ok(n) if n == len => (Ok(()), buf),
            Ok(_) => (Err(self.failed(io::ErrorKind::UnexpectedEof.into())), buf),
            Err(e) => (Err(self.failed(e)), buf),
        }
    }

    /// Writes all of `buf` at block `first`.
    pub(crate) async fn write(
        &self,
        first: u32,
        mut buf: IoBuf,
    ) -> (Result<(), StoreError>, IoBuf) {
        let mut offset = u64::from(first) * BLOCK_U64;
        let mut done: Option<IoBuf> = None;
        let result = loop {
            let len = buf.len();
            let result;
            (result, buf) = self.disk.write(buf, offset).await;
            match result {
                Ok(n) if n == len => break Ok(()),
                // O_DIRECT goes on at a whole block.
                Ok(n) if n >= BLOCK => {
                    let n = n - n % BLOCK;
                    let head = buf.split_to(n);
                    offset += n as u64;
                    done = Some(join(done, head));
                }
                Ok(_) => break Err(self.failed(io::ErrorKind::WriteZero.into())),
                Err(e) => break Err(self.failed(e)),
            }
        };
        (result, join(done, buf))
    }

    /// Makes everything written durable.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        self.disk.sync().await.map_err(|e| self.failed(e))
    }
}

/// Puts two halves of a buffer together again.
pub(crate) fn join(head: Option<IoBuf>, tail: IoBuf) -> IoBuf {
    match head {
        None => tail,
        Some(mut head) => {
            head.unsplit(tail)
                .expect("halves of one buffer are adjacent");
            head
        }
    }
}

fn file_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        path.join(FILE_NAME)
    } else {
        path.to_path_buf()
    }
}

/// Makes a file of `bytes` whose space is reserved, where the file system can.
fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        Err(e) => {
            // Half a file would be taken for the whole store the next time.
            file.set_len(0)?;
            Err(e.into())
        }
    }
}
