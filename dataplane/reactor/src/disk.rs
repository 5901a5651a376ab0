//! A storage device: a block device or a regular file, read and written past the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use io_uring::{opcode, types};
use rustix::fs::FlockOperation;

use crate::buffer::IoBuf;
use crate::op::{Op, count, length, returned, room};
use crate::ring::{Kind, Payload, Target};

/// How often an operation that the kernel interrupted (EINTR, EAGAIN) is started again.
const RETRIES: usize = 16;

/// How to open a [`Disk`].
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// Create the regular file if it is missing, and make it at least so many bytes long (sparse).
    pub create_len: Option<u64>,
}

/// A device. Clones share it; it may be used from every core.
#[derive(Clone, Debug)]
pub struct Disk {
    device: Device,
}

/// What is behind a disk.
#[derive(Clone, Debug)]
enum Device {
    File(Arc<FileDevice>),
    #[cfg(feature = "sim")]
    Simulated(crate::sim::Device),
}

/// An open file or block device.
#[derive(Debug)]
pub(crate) struct FileDevice {
    file: File,
    id: u64,
    len: u64,
    is_direct: bool,
    is_locked: AtomicBool,
    #[cfg(feature = "faults")]
    path: std::path::PathBuf,
}

impl FileDevice {
    /// Unique in the process, never reused.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for FileDevice {
    fn drop(&mut self) {
        // A ring that registered the file keeps it open, so closing would not end the lock.
        if self.is_locked.load(Ordering::Relaxed)
            && let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock)
        {
            tracing::warn!(%error, "unlock of a disk failed");
        }
    }
}

/// Direction of a transfer.
#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl Disk {
    /// Opens a block device or a regular file with O_DIRECT, without it (and a warning) on file systems that do not
    /// have it. Blocks; may be called on any thread.
    pub fn open(path: impl AsRef<Path>, options: DiskOptions) -> io::Result<Disk> {
        let path = path.as_ref();
        #[cfg(feature = "sim")]
        if let Some(device) = crate::sim::world::attached(path) {
            return Ok(Disk {
                device: Device::Simulated(device),
            });
        }
        let mut open = OpenOptions::new();
        open.read(true)
            .write(true)
            .create(options.create_len.is_some())
            .truncate(false);
        let (file, is_direct) = match open.custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(path = %path.display(), "no O_DIRECT here; going through the page cache");
                (open.custom_flags(0).open(path)?, false)
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let len = if metadata.file_type().is_block_device() {
            block_device_len(&file)?
        } else if metadata.is_file() {
            match options.create_len {
                Some(wanted) if wanted > metadata.len() => {
                    file.set_len(wanted)?;
                    wanted
                }
                _ => metadata.len(),
            }
        } else {
            let text = format!(
                "{} is neither a regular file nor a block device",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let device = FileDevice {
            file,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            len,
            is_direct,
            is_locked: AtomicBool::new(false),
            #[cfg(feature = "faults")]
            path: path.to_path_buf(),
        };
        Ok(Disk {
            device: Device::File(Arc::new(device)),
        })
    }

    /// Bytes the device had when it was opened.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the capacity of a device, not a collection"
    )]
    pub fn len(&self) -> u64 {
        match &self.device {
            Device::File(device) => device.len,
            #[cfg(feature = "sim")]
            Device::Simulated(device) => device.len(),
        }
    }

    /// Whether transfers bypass the page cache; then buffer, offset and length must be aligned to the device's blocks.
    pub fn is_direct(&self) -> bool {
        match &self.device {
            Device::File(device) => device.is_direct,
            #[cfg(feature = "sim")]
            Device::Simulated(_) => true,
        }
    }

    /// Reads the whole buffer from `offset`. Fewer bytes than that is not an error: it is what the device had.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn read(&self, buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        self.transfer(Direction::Read, buf, offset).await
    }

    /// Writes the whole buffer at `offset`. Fewer bytes than that is not an error of this call: compare the count.
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn write(&self, buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        self.transfer(Direction::Write, buf, offset).await
    }

    async fn transfer(
        &self,
        direction: Direction,
        mut buf: IoBuf,
        offset: u64,
    ) -> (io::Result<usize>, IoBuf) {
        #[cfg_attr(
            not(feature = "sim"),
            allow(
                clippy::infallible_destructuring_match,
                reason = "there is a second kind with the feature `sim`"
            )
        )]
        let device = match &self.device {
            Device::File(device) => device,
            #[cfg(feature = "sim")]
            Device::Simulated(device) => {
                return match direction {
                    Direction::Read => device.read(buf, offset).await,
                    Direction::Write => device.write(buf, offset).await,
                };
            }
        };
        // Beyond this the kernel sees negative numbers, of which -1 means the file's own position.
        if i64::try_from(offset).is_err() {
            return (Err(io::ErrorKind::InvalidInput.into()), buf);
        }
        #[cfg(feature = "faults")]
        {
            use crate::faults::{Operation, meet};
            let operation = match direction {
                Direction::Read => Operation::Read,
                Direction::Write => Operation::Write,
            };
            if let Some(error) = meet(&device.path, operation, offset, buf.len()) {
                return (Err(error), buf);
            }
        }
        for _ in 0..RETRIES {
            room().await;
            // SAFETY: the address and length are those of the payload's buffer, which keeps its place when it moves;
            // disk_target names what keeps its target open.
            let op = unsafe {
                Op::start(Kind::Disk, |driver| {
                    let fixed = buf.fixed_index(driver.id);
                    let (target, keep) = driver.disk_target(device);
                    let entry = transfer_entry(direction, target, &buf, fixed, offset);
                    (
                        entry,
                        Payload {
                            buf: Some(buf),
                            keep,
                        },
                    )
                })
            };
            let (result, payload) = op.await;
            buf = returned(payload);
            if result != -libc::EINTR && result != -libc::EAGAIN {
                return (count(result), buf);
            }
        }
        (Err(io::ErrorKind::Interrupted.into()), buf)
    }

    /// Makes everything written durable (fdatasync).
    ///
    /// # Panics
    /// Outside of a reactor thread.
    pub async fn sync(&self) -> io::Result<()> {
        #[cfg_attr(
            not(feature = "sim"),
            allow(
                clippy::infallible_destructuring_match,
                reason = "there is a second kind with the feature `sim`"
            )
        )]
        let device = match &self.device {
            Device::File(device) => device,
            #[cfg(feature = "sim")]
            Device::Simulated(device) => return device.sync().await,
        };
        #[cfg(feature = "faults")]
        if let Some(error) = crate::faults::meet(&device.path, crate::faults::Operation::Sync, 0, 0)
        {
            return Err(error);
        }
        for _ in 0..RETRIES {
            room().await;
            // SAFETY: the entry has no address; disk_target names what keeps its target open.
            let op = unsafe {
                Op::start(Kind::Disk, |driver| {
                    let (target, keep) = driver.disk_target(device);
                    let entry = target.build(|fd| {
                        opcode::Fsync::new(fd)
                            .flags(types::FsyncFlags::DATASYNC)
                            .build()
                    });
                    (entry, Payload { buf: None, keep })
                })
            };
            let (result, _) = op.await;
            if result != -libc::EINTR && result != -libc::EAGAIN {
                return count(result).map(drop);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Takes the device for this process until the last clone is dropped. Fails with `WouldBlock` if another one, or
    /// another `open` of this process, has it.
    pub fn try_lock_exclusive(&self) -> io::Result<()> {
        match &self.device {
            Device::File(device) => {
                rustix::fs::flock(&device.file, FlockOperation::NonBlockingLockExclusive)?;
                device.is_locked.store(true, Ordering::Relaxed);
            }
            // Nobody outside of its world has it.
            #[cfg(feature = "sim")]
            Device::Simulated(_) => {}
        }
        Ok(())
    }
}

fn transfer_entry(
    direction: Direction,
    target: Target,
    buf: &IoBuf,
    fixed: Option<u16>,
    offset: u64,
) -> io_uring::squeue::Entry {
    let start = buf.start().as_ptr();
    let len = length(buf);
    target.build(|fd| match (direction, fixed) {
        (Direction::Read, Some(index)) => opcode::ReadFixed::new(fd, start, len, index)
            .offset(offset)
            .build(),
        (Direction::Read, None) => opcode::Read::new(fd, start, len).offset(offset).build(),
        (Direction::Write, Some(index)) => opcode::WriteFixed::new(fd, start, len, index)
            .offset(offset)
            .build(),
        (Direction::Write, None) => opcode::Write::new(fd, start, len).offset(offset).build(),
    })
}

/// `_IOR(0x12, 114, size_t)` of linux/fs.h.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

fn block_device_len(file: &File) -> io::Result<u64> {
    let mut len = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to its argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut len) };
    if result == 0 {
        Ok(len)
    } else {
        Err(io::Error::last_os_error())
    }
}
