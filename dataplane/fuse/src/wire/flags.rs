//! Bit masks and numbers of the FUSE protocol, named as in the kernel's header without `FUSE_`.

/// INIT flags; the upper 32 bits travel as `flags2` when `INIT_EXT` is set on both sides.
pub mod init {
    /// Reads may be in flight side by side.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// POSIX locks are sent to the file system.
    pub const POSIX_LOCKS: u64 = 1 << 1;
    /// O_TRUNC is passed to OPEN instead of a SETATTR before it.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// LOOKUP of `.` and `..` works, so that file handles (NFS, open_by_handle_at) do.
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    /// Writes larger than one page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The umask is left to the file system.
    pub const DONT_MASK: u64 = 1 << 6;
    /// BSD locks are sent to the file system.
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    /// Cached pages are dropped when an attribute answer shows another size or mtime.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS may be sent.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// The kernel chooses between READDIR and READDIRPLUS.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct I/O may be in flight side by side.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// Writes gather in the page cache.
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// OPEN may be answered ENOSYS.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// Lookups and listings of one directory run side by side.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// POSIX ACLs are kept by the file system and enforced by the kernel.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// Reading the device of an aborted connection answers ECONNABORTED.
    pub const ABORT_ERROR: u64 = 1 << 21;
    /// `max_pages` of the answer is valid.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symbolic links are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// Cached pages are dropped only when the file system says so.
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// The file system clears setuid, setgid and capabilities on write, truncate and chown (7.33).
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR has 16 bytes of arguments (7.33).
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// `flags2` is valid (7.36).
    pub const INIT_EXT: u64 = 1 << 30;
    /// INVAL_ENTRY may expire an entry without dropping it (7.38).
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    /// Files that bypass the page cache may be mapped shared (7.39).
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Reads and writes may go to a backing file (7.40).
    pub const PASSTHROUGH: u64 = 1 << 37;
    /// No file handles at all (7.40).
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    /// FUSE over io_uring (7.42).
    pub const OVER_IO_URING: u64 = 1 << 41;
    /// `request_timeout` of the answer is valid (7.43).
    pub const REQUEST_TIMEOUT: u64 = 1 << 42;
}

/// `valid` of SETATTR.
pub mod fattr {
    /// Permission bits.
    pub const MODE: u32 = 1 << 0;
    /// Owner.
    pub const UID: u32 = 1 << 1;
    /// Group.
    pub const GID: u32 = 1 << 2;
    /// Size.
    pub const SIZE: u32 = 1 << 3;
    /// Access time.
    pub const ATIME: u32 = 1 << 4;
    /// Modification time.
    pub const MTIME: u32 = 1 << 5;
    /// Through an open file.
    pub const FH: u32 = 1 << 6;
    /// The access time is now.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// The modification time is now.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// Change time.
    pub const CTIME: u32 = 1 << 10;
    /// Clear setuid, and setgid where the group may execute.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Flags in the answer to OPEN.
pub mod fopen {
    /// Bypass the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Keep the cached pages of earlier opens.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The listing may be cached.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No FLUSH on close.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes to one inode may run side by side.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `lk_flags`: the lock is one of flock(2).
pub const LK_FLOCK: u32 = 1 << 0;

/// `release_flags` of RELEASE: the open file may hold a lock of flock(2).
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;

/// `open_flags` of OPEN and CREATE: clear setuid and setgid (with O_TRUNC).
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `write_flags` of WRITE: clear setuid and setgid.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fsync_flags` of FSYNC: contents only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `flags` of INVAL_ENTRY: expire the entry, do not drop it.
pub const EXPIRE_ONLY: u32 = 1 << 0;

/// `flags` of RENAME2: fail when the target exists.
pub const RENAME_NOREPLACE: u32 = 1 << 0;
/// `flags` of RENAME2: swap both.
pub const RENAME_EXCHANGE: u32 = 1 << 1;

/// Notification codes.
pub mod notify {
    /// Drop an inode's attributes and pages.
    pub const INVAL_INODE: i32 = 2;
    /// Drop or expire a directory entry.
    pub const INVAL_ENTRY: i32 = 3;
    /// Make every cached entry of the mount ask again (7.44).
    pub const INC_EPOCH: i32 = 8;
    /// Forget inodes that nobody uses (7.45).
    pub const PRUNE: i32 = 9;
}

/// Commands of FUSE over io_uring (`enum fuse_uring_cmd`).
pub mod uring_cmd {
    /// Register an entry and wait for its first request.
    pub const REGISTER: u32 = 1;
    /// Answer an entry's request and wait for the next.
    pub const COMMIT_AND_FETCH: u32 = 2;
}
