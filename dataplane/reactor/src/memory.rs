//! The memory under pools and arenas: anonymous 2 MiB pages, shared memory (memfd), or the heap (for Miri and tests).
//! Owns the mapping and nothing else: who may touch which bytes is decided in `buffer`.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Bytes of a huge page; mappings start on a multiple of it, otherwise their first and last part stay on small pages.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// One contiguous, zeroed, page-aligned piece of memory, unmapped when dropped.
pub(crate) struct Memory {
    base: NonNull<u8>,
    len: usize,
    kind: Kind,
}

enum Kind {
    Mapped,
    Shared(OwnedFd),
    Heap(Layout),
}

// SAFETY: Memory is only an address range and its descriptor; it gives no access to the bytes by itself.
unsafe impl Send for Memory {}
// SAFETY: as above; all methods take &self and return plain values.
unsafe impl Sync for Memory {}

impl Memory {
    /// Heap memory aligned to `align` (a power of two), zeroed.
    pub(crate) fn heap(len: usize, align: usize) -> Memory {
        let Ok(layout) = Layout::from_size_align(len.max(1), align) else {
            panic!("no layout for {len} bytes aligned to {align}");
        };
        // SAFETY: the layout has a nonzero size.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        Memory {
            base,
            len,
            kind: Kind::Heap(layout),
        }
    }

    /// Private memory on 2 MiB pages where the kernel gives them: advised first, touched afterwards (populating before
    /// the advice yields small pages, and a third of the bandwidth).
    pub(crate) fn huge(len: usize) -> io::Result<Memory> {
        if len == 0 || cfg!(miri) {
            return Ok(Memory::heap(len, crate::buffer::PAGE));
        }
        let len = len
            .checked_next_multiple_of(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped = len
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh private mapping at an address the kernel picks touches no existing object.
        let raw = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let head = raw.addr().next_multiple_of(HUGE_PAGE) - raw.addr();
        let tail = mapped - head - len;
        // SAFETY: head and tail are parts of the mapping made above, outside of the range kept.
        unsafe {
            if head > 0 {
                munmap(raw, head)?;
            }
            if tail > 0 {
                munmap(raw.byte_add(head + len), tail)?;
            }
        }
        // SAFETY: head is less than the length of the mapping.
        let start = unsafe { raw.byte_add(head) };
        let Some(base) = NonNull::new(start.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let memory = Memory {
            base,
            len,
            kind: Kind::Mapped,
        };
        // SAFETY: the range is our own mapping, of which no reference exists yet.
        unsafe {
            if let Err(error) = madvise(start, len, Advice::LinuxHugepage) {
                tracing::warn!(%error, "no 2 MiB pages for buffers; large reads will be slower");
            }
            if madvise(start, len, Advice::LinuxPopulateWrite).is_err() {
                for offset in (0..len).step_by(crate::buffer::PAGE) {
                    start.cast::<u8>().add(offset).write_volatile(0);
                }
            }
        }
        Ok(memory)
    }

    /// Private memory on small pages, each taken when it is first touched.
    pub(crate) fn lazy(len: usize) -> io::Result<Memory> {
        if len == 0 || cfg!(miri) {
            return Ok(Memory::heap(len, crate::buffer::PAGE));
        }
        // SAFETY: a fresh private mapping at an address the kernel picks touches no existing object.
        let raw = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let Some(base) = NonNull::new(raw.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        // Only a hint: a huge page would be taken whole for a request of some bytes.
        // SAFETY: the range is our own mapping.
        let _ = unsafe { madvise(raw, len, Advice::LinuxNoHugepage) };
        Ok(Memory {
            base,
            len,
            kind: Kind::Mapped,
        })
    }

    /// Gives the pages from byte `from` on back; they are zeros when they are touched again.
    ///
    /// # Safety
    /// Nobody else may hold a reference to these bytes, and no operation may be using them.
    pub(crate) unsafe fn discard(&self, from: usize) -> io::Result<()> {
        let from = from.next_multiple_of(crate::buffer::PAGE);
        if from >= self.len || !matches!(self.kind, Kind::Mapped) {
            return Ok(());
        }
        // SAFETY: from is less than the length of the mapping; nobody looks at the bytes, by the contract.
        unsafe {
            let start = self.base.as_ptr().add(from);
            madvise(start.cast(), self.len - from, Advice::LinuxDontNeed)?;
        }
        Ok(())
    }

    /// Memory that other processes can map: a memfd sealed against shrinking and growing, so that nobody who holds the
    /// descriptor can make an access here fail with SIGBUS.
    pub(crate) fn shared(len: usize) -> io::Result<Memory> {
        let fd = rustix::fs::memfd_create(
            "fastcache-arena",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // SAFETY: a fresh mapping at an address the kernel picks touches no existing object.
        let raw = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        let Some(base) = NonNull::new(raw.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        // Only a hint: kernels give shared memory huge pages by their own setting (shmem_enabled).
        // SAFETY: the range is our own mapping.
        let _ = unsafe { madvise(raw, len, Advice::LinuxHugepage) };
        Ok(Memory {
            base,
            len,
            kind: Kind::Shared(fd),
        })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The descriptor of shared memory.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Shared(fd) => Some(fd.as_fd()),
            Kind::Mapped | Kind::Heap(_) => None,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.kind {
            Kind::Mapped | Kind::Shared(_) => {
                // SAFETY: base and len are the mapping made at construction; every buffer in it holds the region that
                // holds this, so none is left.
                if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
                    tracing::error!(%error, len = self.len, "munmap of a buffer region failed");
                }
            }
            // SAFETY: allocated with this layout at construction, freed once.
            Kind::Heap(layout) => unsafe { dealloc(self.base.as_ptr(), *layout) },
        }
    }
}
