//! Operations on what files hold.

use super::pair::{Difference, Handle};
use super::{COMMON, HANDLES_MAX, STRIPE, STRIPES, Worker};
use crate::bytes::Bytes;
use rand::Rng as _;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Files rarely grow beyond this, bytes.
const FILE_MAX: u64 = 5 << 20;
/// Chunks of the node under test, bytes.
const CHUNK: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// Bytes in memory that starts on a block, for O_DIRECT.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize) -> Aligned {
        let bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, start, len }
    }

    fn of(data: &[u8]) -> Aligned {
        let mut aligned = Aligned::zeroed(data.len());
        aligned.as_mut().copy_from_slice(data);
        aligned
    }

    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Writes all of it.
fn write_all(fd: &OwnedFd, data: &[u8], offset: u64) -> Result<(), Errno> {
    let data = Aligned::of(data);
    let mut done = 0;
    while done < data.as_ref().len() {
        done += rustix::io::pwrite(fd, &data.as_ref()[done..], offset + done as u64)?;
    }
    Ok(())
}

/// Reads up to `len` bytes.
fn read_all(fd: &OwnedFd, len: usize, offset: u64) -> Result<Vec<u8>, Errno> {
    let mut data = Aligned::zeroed(len);
    let mut done = 0;
    while done < len {
        match rustix::io::pread(fd, &mut data.as_mut()[done..], offset + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(data.as_ref()[..done].to_vec())
}

impl Worker {
    fn len(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0..=3 => self.rng.random_range(1..300),
            4..=5 => self.rng.random_range(1..9000),
            6 => self.rng.random_range(1..=16) * BLOCK,
            7..=8 => self.rng.random_range(1..200_000),
            _ => self.rng.random_range(100_000..1_500_000),
        }
    }

    fn offset(&mut self, size: u64) -> u64 {
        match self.rng.random_range(0..8) {
            0 => 0,
            1 => size.min(FILE_MAX),
            2 => self.rng.random_range(0..FILE_MAX),
            3 => self.rng.random_range(0..FILE_MAX / BLOCK) * BLOCK,
            4 => self.rng.random_range(1..4) * CHUNK - self.rng.random_range(0..6000),
            _ => self.rng.random_range(0..size.clamp(1, FILE_MAX)),
        }
    }

    /// Offset and length for a handle, aligned where it must be.
    fn range(&mut self, handle: &Handle) -> (u64, u64) {
        let (offset, len) = (self.offset(handle.size()), self.len());
        if handle.is_direct {
            (offset / BLOCK * BLOCK, len.next_multiple_of(BLOCK))
        } else {
            (offset, len)
        }
    }

    /// A file that is open, or that is opened now.
    fn a_handle(&mut self) -> Result<Option<usize>, Difference> {
        if self.handles.is_empty() || self.rng.random_ratio(1, 4) {
            self.open_new()?;
        }
        let n = self.handles.len();
        Ok((n > 0).then(|| self.rng.random_range(0..n)))
    }

    pub(super) fn open_new(&mut self) -> Result<(), Difference> {
        if self.handles.len() >= HANDLES_MAX {
            self.close()?;
        }
        let name = self.names.file(&mut self.rng);
        let mut flags = OFlags::RDWR;
        for (flag, of) in [
            (OFlags::CREATE, 3),
            (OFlags::EXCL, 24),
            (OFlags::TRUNC, 8),
            (OFlags::DIRECT, 6),
            (OFlags::APPEND, 12),
        ] {
            let is_set = self.rng.random_ratio(1, of);
            // O_EXCL without O_CREAT means nothing.
            if (flag == OFlags::CREATE && !is_set) || (flag != OFlags::CREATE && is_set) {
                flags |= flag;
            }
        }
        let mode = Mode::from_raw_mode(self.rng.random_range(0o600..=0o777));
        self.note(format!("open {name} {flags:?} {mode:?}"));
        if let Some(handle) = self.pair.open(&name, flags, mode)? {
            self.handles.push(handle);
        }
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result<(), Difference> {
        if self.handles.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.handles.len());
        let handle = self.handles.swap_remove(at);
        self.note(format!("close {}", handle.name));
        Ok(())
    }

    fn data(&mut self, len: u64) -> Vec<u8> {
        let mut data = Bytes::of(self.rng.random()).range(0, to_usize(len));
        if self.rng.random_ratio(1, 20) {
            data.fill(0);
        }
        data
    }

    pub(super) fn write(&mut self) -> Result<(), Difference> {
        let Some(at) = self.a_handle()? else {
            return Ok(());
        };
        let handle = self.handles.swap_remove(at);
        let (offset, len) = self.range(&handle);
        if handle.is_direct && handle.is_append {
            // The end need not be aligned.
            self.handles.push(handle);
            return Ok(());
        }
        let data = self.data(len);
        self.note(format!(
            "write {} {offset}+{len}{}",
            handle.name,
            kind_of(&handle)
        ));
        let done = handle.both(&format!("write {offset}+{len}"), |fd| {
            write_all(fd, &data, offset)
        });
        self.handles.push(handle);
        done.map(drop)
    }

    pub(super) fn read(&mut self) -> Result<(), Difference> {
        let Some(at) = self.a_handle()? else {
            return Ok(());
        };
        let handle = self.handles.swap_remove(at);
        let (offset, len) = self.range(&handle);
        self.note(format!(
            "read {} {offset}+{len}{}",
            handle.name,
            kind_of(&handle)
        ));
        let done = self.read_both(&handle, offset, len);
        self.handles.push(handle);
        done
    }

    fn read_both(&self, handle: &Handle, offset: u64, len: u64) -> Result<(), Difference> {
        let model = read_all(&handle.model, to_usize(len), offset);
        let mount = read_all(&handle.mount, to_usize(len), offset);
        same_bytes(
            &format!("read {} {offset}+{len}", handle.name),
            offset,
            model,
            mount,
        )
    }

    pub(super) fn append(&mut self) -> Result<(), Difference> {
        let name = self.names.file(&mut self.rng);
        let len = self.len();
        let data = self.data(len);
        self.note(format!("append {name} {len}"));
        let flags = OFlags::WRONLY | OFlags::APPEND;
        if let Some(handle) = self.pair.open(&name, flags, Mode::empty())?
            && handle.size() < FILE_MAX
        {
            handle.both("append", |fd| write_all(fd, &data, 0))?.ok();
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self) -> Result<(), Difference> {
        if self.rng.random() {
            let Some(at) = self.a_handle()? else {
                return Ok(());
            };
            let size = self.handles[at].size();
            let to = self.offset(size);
            self.note(format!("ftruncate {} {to}", self.handles[at].name));
            let what = format!("ftruncate {to}");
            return self.handles[at]
                .both(&what, |fd| rustix::fs::ftruncate(fd, to))
                .map(drop);
        }
        let name = self.names.file(&mut self.rng);
        if self.rng.random() {
            self.note(format!("open {name} O_TRUNC"));
            return self
                .pair
                .open(&name, OFlags::WRONLY | OFlags::TRUNC, Mode::empty())
                .map(drop);
        }
        let to = self.offset(CHUNK);
        self.note(format!("truncate {name} {to}"));
        self.pair
            .both(&format!("truncate {name} {to}"), |root| {
                truncate(&root.join(&name), to)
            })
            .map(drop)
    }

    pub(super) fn fallocate(&mut self) -> Result<(), Difference> {
        let Some(at) = self.a_handle()? else {
            return Ok(());
        };
        let size = self.handles[at].size();
        let (offset, len) = (self.offset(size), self.len());
        let keep = FallocateFlags::KEEP_SIZE;
        let mode = match self.rng.random_range(0..6) {
            0 => FallocateFlags::empty(),
            1 => keep,
            2 => FallocateFlags::ZERO_RANGE,
            3 => FallocateFlags::ZERO_RANGE | keep,
            _ => FallocateFlags::PUNCH_HOLE | keep,
        };
        self.note(format!(
            "fallocate {} {mode:?} {offset}+{len}",
            self.handles[at].name
        ));
        self.handles[at]
            .both(&format!("fallocate {mode:?} {offset}+{len}"), |fd| {
                rustix::fs::fallocate(fd, mode, offset, len)
            })
            .map(drop)
    }

    pub(super) fn copy_range(&mut self) -> Result<(), Difference> {
        if self.handles.len() < 2 {
            self.open_new()?;
        }
        if self.handles.is_empty() {
            return Ok(());
        }
        let from = self.rng.random_range(0..self.handles.len());
        let to = self.rng.random_range(0..self.handles.len());
        let (a, b) = (self.handles[from].size(), self.handles[to].size());
        let (off_in, off_out, len) = (self.offset(a), self.offset(b), self.len());
        let is_aligned = self.handles[from].is_direct || self.handles[to].is_direct;
        let round = |n: u64| if is_aligned { n / BLOCK * BLOCK } else { n };
        let (off_in, off_out, len) = (round(off_in), round(off_out), round(len));
        let (from, to) = (&self.handles[from], &self.handles[to]);
        if off_out + len > 2 * FILE_MAX || from.is_append || to.is_append || is_aligned {
            return Ok(());
        }
        let what = format!(
            "copy_file_range {} {off_in}+{len} to {} {off_out}",
            from.name, to.name
        );
        let copy = |from: &OwnedFd, to: &OwnedFd| {
            let mut done = 0;
            while done < len {
                let (mut a, mut b) = (off_in + done, off_out + done);
                let left = to_usize(len - done);
                match rustix::fs::copy_file_range(from, Some(&mut a), to, Some(&mut b), left)? {
                    0 => break,
                    n => done += n as u64,
                }
            }
            Ok::<u64, Errno>(done)
        };
        let model = copy(&from.model, &to.model);
        let mount = copy(&from.mount, &to.mount);
        self.note(what.clone());
        if model == mount {
            Ok(())
        } else {
            Err(Difference(format!(
                "{what}\n  model: {model:?}\n  mount: {mount:?}"
            )))
        }
    }

    /// Writes or reads through a shared mapping.
    pub(super) fn map(&mut self) -> Result<(), Difference> {
        let Some(at) = self.a_handle()? else {
            return Ok(());
        };
        let handle = self.handles.swap_remove(at);
        let size = handle.size();
        let done = if size == 0 {
            Ok(())
        } else {
            let offset = self.rng.random_range(0..size) / BLOCK * BLOCK;
            let len = (size - offset).min(self.len());
            let data = self.data(len);
            let is_write = self.rng.random_ratio(3, 4);
            let is_synced = self.rng.random();
            self.note(format!(
                "mmap {} {offset}+{len} {}{}",
                handle.name,
                if is_write { "write" } else { "read" },
                if is_write && is_synced { " msync" } else { "" }
            ));
            let data = is_write.then_some(data);
            let use_it = |fd| mapped(fd, offset, to_usize(len), data.as_deref(), is_synced);
            let model = use_it(&handle.model);
            let mount = use_it(&handle.mount);
            same_bytes(
                &format!("mmap {} {offset}+{len}", handle.name),
                offset,
                model,
                mount,
            )
        };
        self.handles.push(handle);
        done
    }

    pub(super) fn sync(&mut self) -> Result<(), Difference> {
        let Some(at) = self.a_handle()? else {
            return Ok(());
        };
        self.note(format!("fsync {}", self.handles[at].name));
        let is_data = self.rng.random();
        self.handles[at]
            .both("fsync", |fd| {
                if is_data {
                    rustix::fs::fdatasync(fd)
                } else {
                    rustix::fs::fsync(fd)
                }
            })
            .map(drop)
    }

    /// Writes a stripe of the file that all workers write to, and reads another one of this worker.
    pub(super) fn stripe(&mut self) -> Result<(), Difference> {
        let mine = |n: u64, task: &super::Task| (n * task.workers + task.worker) * STRIPE;
        let write_at = mine(self.rng.random_range(0..STRIPES), &self.task);
        let read_at = mine(self.rng.random_range(0..STRIPES), &self.task);
        let data = self.data(STRIPE);
        self.note(format!("stripe {write_at}, read {read_at}"));
        if let Some(handle) = self.pair.open(COMMON, OFlags::RDWR, Mode::empty())? {
            handle
                .both(&format!("write {write_at}"), |fd| {
                    write_all(fd, &data, write_at)
                })?
                .ok();
            // The model is written by others at the same time, who may not have come that far: compare what is there.
            let read = |fd: &OwnedFd| {
                read_all(fd, to_usize(STRIPE), read_at).map(|mut bytes| {
                    bytes.resize(to_usize(STRIPE), 0);
                    bytes
                })
            };
            same_bytes(
                &format!("stripe {read_at}"),
                read_at,
                read(&handle.model),
                read(&handle.mount),
            )?;
        }
        Ok(())
    }

    /// SEEK_HOLE and SEEK_DATA: file systems may call zeros data, never data a hole.
    pub(super) fn seek(&mut self) -> Result<(), Difference> {
        let Some(at) = self.a_handle()? else {
            return Ok(());
        };
        let handle = self.handles.swap_remove(at);
        let size = handle.size();
        let from = self.offset(size).min(size.saturating_sub(1));
        self.note(format!("seek {} {from}", handle.name));
        let done = holes_are_zeros(&handle, from, size);
        self.handles.push(handle);
        done
    }
}

fn kind_of(handle: &Handle) -> &'static str {
    match (handle.is_direct, handle.is_append) {
        (true, true) => " direct append",
        (true, false) => " direct",
        (false, true) => " append",
        (false, false) => "",
    }
}

/// From `from` on: what the mount calls a hole must be zeros in the model.
fn holes_are_zeros(handle: &Handle, from: u64, size: u64) -> Result<(), Difference> {
    let wrong = |what: String| {
        Err(Difference(format!(
            "seek on {} from {from}: {what}",
            handle.name
        )))
    };
    write_back(&handle.mount).map_err(|e| Difference(format!("sync_file_range: {e}")))?;
    let mut at = from;
    while at < size {
        let data = match rustix::fs::seek(&handle.mount, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => size,
            Err(e) => return wrong(format!("SEEK_DATA {at}: {e}")),
        };
        if data < at || data > size {
            return wrong(format!("SEEK_DATA {at} answers {data}, size {size}"));
        }
        let hole = read_aligned(&handle.model, at, data)?;
        if let Some(n) = hole.iter().position(|b| *b != 0) {
            return wrong(format!(
                "{at}..{data} is said to be a hole, the model has data at {}",
                at + n as u64
            ));
        }
        if data >= size {
            return Ok(());
        }
        at = match rustix::fs::seek(&handle.mount, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data && hole <= size => hole,
            other => return wrong(format!("SEEK_HOLE {data}: {other:?}, size {size}")),
        };
    }
    Ok(())
}

/// Has the kernel write mapped pages that were changed: FUSE is not told of them before, also not by SEEK_DATA. Unlike an
/// fsync this changes nothing else.
fn write_back(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is involved; the descriptor is open.
    if unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) } == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Bytes `from..to` of a file that may be open with O_DIRECT.
fn read_aligned(fd: &OwnedFd, from: u64, to: u64) -> Result<Vec<u8>, Difference> {
    let start = from / BLOCK * BLOCK;
    let len = (to - start).next_multiple_of(BLOCK);
    let bytes =
        read_all(fd, to_usize(len), start).map_err(|e| Difference(format!("the model: {e}")))?;
    let end = to_usize(to - start).min(bytes.len());
    Ok(bytes[to_usize(from - start).min(end)..end].to_vec())
}

fn truncate(path: &std::path::Path, to: u64) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let to = i64::try_from(to).map_err(|_| Errno::INVAL)?;
    // SAFETY: `path` is a string that ends with NUL and lives for the whole call.
    if unsafe { libc::truncate(path.as_ptr(), to) } == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Maps `offset..offset + len`, writes `data` there if there is some, and answers what the mapping holds then.
fn mapped(
    fd: &OwnedFd,
    offset: u64,
    len: usize,
    data: Option<&[u8]>,
    is_synced: bool,
) -> Result<Vec<u8>, Errno> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            prot,
            MapFlags::SHARED,
            fd,
            offset,
        )?
    };
    // SAFETY: `len` bytes are mapped at `at` until the munmap below. The file is not made shorter meanwhile: only this
    // thread changes it, on either side.
    let bytes = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>(), len) };
    if let Some(data) = data {
        bytes.copy_from_slice(data);
    }
    let copy = bytes.to_vec();
    let synced = if data.is_some() && is_synced {
        // SAFETY: the same mapping.
        unsafe { rustix::mm::msync(at, len, MsyncFlags::SYNC) }
    } else {
        Ok(())
    };
    // SAFETY: nothing refers to the mapping any more.
    unsafe { rustix::mm::munmap(at, len)? };
    synced.map(|()| copy)
}

/// Like `same`, but says where the bytes differ instead of printing them.
fn same_bytes(
    what: &str,
    offset: u64,
    model: Result<Vec<u8>, Errno>,
    mount: Result<Vec<u8>, Errno>,
) -> Result<(), Difference> {
    let text = match (&model, &mount) {
        (Ok(a), Ok(b)) if a == b => return Ok(()),
        (Err(a), Err(b)) if a == b => return Ok(()),
        (Ok(a), Ok(b)) if a.len() != b.len() => {
            format!("{} bytes in the model, {} on the mount", a.len(), b.len())
        }
        (Ok(a), Ok(b)) => {
            let wrong: Vec<usize> = (0..a.len()).filter(|i| a[*i] != b[*i]).collect();
            let (first, last) = (wrong[0], wrong[wrong.len() - 1]);
            format!(
                "{} bytes differ from {} to {}; first: model {:#x}, mount {:#x}",
                wrong.len(),
                offset + first as u64,
                offset + last as u64,
                a[first],
                b[first]
            )
        }
        (a, b) => format!(
            "model {:?}, mount {:?}",
            a.as_ref().map(Vec::len),
            b.as_ref().map(Vec::len)
        ),
    };
    Err(Difference(format!("{what}: {text}")))
}
