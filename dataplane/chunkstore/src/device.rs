//! The device as blocks: whole transfers, errors counted.

use crate::error::StoreError;
use crate::spill::Spill;
use fastcache_reactor::sync::AtomicU64;
use fastcache_reactor::{Disk, DiskOptions, IoBuf};
use fastcache_types::{BLOCK, BLOCK_U64, Extent};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Name of the store's file in a directory.
pub(crate) const FILE_NAME: &str = "fastcache.store";

/// The device of a store.
pub(crate) struct Device {
    disk: Disk,
    pub(crate) checksum_errors: AtomicU64,
    pub(crate) device_errors: AtomicU64,
    /// Blocks that could not be written.
    pub(crate) spill: Arc<Spill>,
}

/// How often a write is tried before the device is taken at its word.
const WRITE_ATTEMPTS: usize = 2;

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
                reserve(&path, capacity)?;
            }
            Err(e) => return Err(failed(e)),
            Ok(meta) if meta.is_file() && meta.len() == 0 => {
                crate::superblock::Geometry::new(capacity)?;
                reserve(&path, capacity)?;
            }
            Ok(_) => {}
        }
        if is_read_only(&path) {
            return Err(StoreError::ReadOnly { path });
        }
        let disk = Disk::open(&path, DiskOptions::default()).map_err(|error| {
            match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path: path.clone() },
                // A read-only block device answers as if it were a question of rights.
                io::ErrorKind::PermissionDenied if rustix::process::geteuid().is_root() => {
                    StoreError::ReadOnly { path: path.clone() }
                }
                _ => failed(error),
            }
        })?;
        disk.try_lock_exclusive().map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => StoreError::Busy,
            _ => failed(e),
        })?;
        Ok(Device {
            disk,
            checksum_errors: AtomicU64::new(0),
            device_errors: AtomicU64::new(0),
            spill: Arc::default(),
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
        let blocks = u32::try_from(buf.len() / BLOCK).unwrap_or(u32::MAX);
        let len = blocks.min(u32::MAX - first);
        match self.spill.touches(Extent { start: first, len }) {
            true => self.read_spilled(first, buf).await,
            false => self.read_device(first, buf).await,
        }
    }

    /// The same where some of the blocks are in RAM: those are not asked of the device, which may not even read them.
    async fn read_spilled(&self, first: u32, mut buf: IoBuf) -> (Result<(), StoreError>, IoBuf) {
        let mut result = Ok(());
        let mut done = None;
        let mut at = first;
        while !buf.is_empty() {
            let mut piece = buf.split_to(BLOCK.min(buf.len()));
            if !self.spill.copy(at, &mut piece) {
                let read;
                (read, piece) = self.read_device(at, piece).await;
                result = result.and(read);
            }
            done = Some(join(done, piece));
            at += 1;
        }
        (result, join(done, buf))
    }

    async fn read_device(&self, first: u32, buf: IoBuf) -> (Result<(), StoreError>, IoBuf) {
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

    /// Writes all of `buf` at block `first`; what the device refuses stays in RAM. An error when there is no room for
    /// that either.
    pub(crate) async fn write_or_keep(
        &self,
        first: u32,
        mut buf: IoBuf,
    ) -> (Result<(), StoreError>, IoBuf) {
        let blocks = u32::try_from(buf.len() / BLOCK).unwrap_or(u32::MAX);
        let mut attempt = 1;
        loop {
            let result;
            (result, buf) = self.write(first, buf).await;
            let error = match result {
                Ok(()) => {
                    let len = blocks;
                    self.spill.forget(Extent { start: first, len });
                    return (Ok(()), buf);
                }
                Err(_) if attempt < WRITE_ATTEMPTS => {
                    attempt += 1;
                    continue;
                }
                Err(error) => error,
            };
            if self.spill.is_empty() {
                tracing::error!(target: "nvme", %error, block = first, "the device is sick: what it refuses to write goes to the cloud before it is acknowledged");
            }
            if self.spill.keep(first, &buf).await {
                return (Ok(()), buf);
            }
            tracing::error!(target: "nvme", %error, block = first, "the device refuses to write, and what it refused before does not get to the cloud");
            return (Err(error), buf);
        }
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

/// Whether the path is a block device that takes no writes: root may open it for writing all the same.
fn is_read_only(path: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(path) else {
        return false;
    };
    if !meta.file_type().is_block_device() {
        return false;
    }
    let (major, minor) = (
        rustix::fs::major(meta.rdev()),
        rustix::fs::minor(meta.rdev()),
    );
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"))
        .is_ok_and(|text| text.trim() == "1")
}

/// Makes a file of `bytes` whose space is reserved, where the file system can.
fn reserve(path: &Path, bytes: u64) -> Result<(), StoreError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly {
            path: path.to_path_buf(),
        },
        _ => StoreError::Open {
            path: path.to_path_buf(),
            error,
        },
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => file.set_len(bytes).map_err(failed),
        Err(error) => {
            // Half a file would be taken for the whole store the next time.
            file.set_len(0).map_err(failed)?;
            match error {
                Errno::NOSPC | Errno::FBIG | Errno::DQUOT => Err(StoreError::NoSpace {
                    path: path.to_path_buf(),
                    free: rustix::fs::fstatvfs(&file).map_or(0, |s| s.f_bavail * s.f_frsize),
                    wanted: bytes,
                }),
                error => Err(failed(error.into())),
            }
        }
    }
}
