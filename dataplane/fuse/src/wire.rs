//! The structures of the kernel's FUSE protocol, version 7.31 to 7.45, as in `include/uapi/linux/fuse.h`.
//!
//! Owns the byte layouts and nothing else: no meaning, no I/O. Everything is in the machine's byte order, every
//! structure is padded to 8 bytes, and each one's size and the offsets that matter are asserted below.

pub mod flags;
#[cfg(test)]
mod tests;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version of the protocol.
pub const MAJOR: u32 = 7;
/// The newest minor version known here (Linux 6.18).
pub const MINOR: u32 = 45;
/// The oldest minor version served (Linux 5.4 and later; Debian 11 has 7.32).
pub const MINOR_MIN: u32 = 31;

/// Defines a wire structure, its size in bytes and the offsets of some of its fields.
macro_rules! wire {
    ($(#[$meta:meta])* $name:ident = $size:literal { $($field:ident : $ty:ty = $offset:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            $(#[doc = concat!("`", stringify!($field), "` of the kernel's structure, at byte ", stringify!($offset), ".")]
            pub $field: $ty),*
        }
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}

wire! {
    /// In front of every request.
    InHeader = 40 {
        len: u32 = 0, opcode: u32 = 4, unique: u64 = 8, nodeid: u64 = 16,
        uid: u32 = 24, gid: u32 = 28, pid: u32 = 32, total_extlen: u16 = 36, padding: u16 = 38,
    }
}
wire! {
    /// In front of every reply and notification. `error` is a negated errno, or a notification's code when `unique` is 0.
    OutHeader = 16 { len: u32 = 0, error: i32 = 4, unique: u64 = 8 }
}
wire! {
    /// Attributes of an inode.
    FuseAttr = 88 {
        ino: u64 = 0, size: u64 = 8, blocks: u64 = 16, atime: u64 = 24, mtime: u64 = 32, ctime: u64 = 40,
        atimensec: u32 = 48, mtimensec: u32 = 52, ctimensec: u32 = 56, mode: u32 = 60, nlink: u32 = 64,
        uid: u32 = 68, gid: u32 = 72, rdev: u32 = 76, blksize: u32 = 80, flags: u32 = 84,
    }
}
wire! {
    /// INIT, as far as 7.36 goes; older kernels send the first 16 bytes.
    InitIn = 64 {
        major: u32 = 0, minor: u32 = 4, max_readahead: u32 = 8, flags: u32 = 12, flags2: u32 = 16, unused: [u32; 11] = 20,
    }
}
wire! {
    /// Answer to INIT.
    InitOut = 64 {
        major: u32 = 0, minor: u32 = 4, max_readahead: u32 = 8, flags: u32 = 12, max_background: u16 = 16,
        congestion_threshold: u16 = 18, max_write: u32 = 20, time_gran: u32 = 24, max_pages: u16 = 28,
        map_alignment: u16 = 30, flags2: u32 = 32, max_stack_depth: u32 = 36, request_timeout: u16 = 40,
        unused: [u16; 11] = 42,
    }
}
wire! {
    /// Answer to LOOKUP and whatever makes an inode.
    EntryOut = 128 {
        nodeid: u64 = 0, generation: u64 = 8, entry_valid: u64 = 16, attr_valid: u64 = 24,
        entry_valid_nsec: u32 = 32, attr_valid_nsec: u32 = 36, attr: FuseAttr = 40,
    }
}
wire! {
    /// Answer to GETATTR and SETATTR.
    AttrOut = 104 { attr_valid: u64 = 0, attr_valid_nsec: u32 = 8, dummy: u32 = 12, attr: FuseAttr = 16 }
}
wire! {
    /// FORGET.
    ForgetIn = 8 { nlookup: u64 = 0 }
}
wire! {
    /// One inode of BATCH_FORGET.
    ForgetOne = 16 { nodeid: u64 = 0, nlookup: u64 = 8 }
}
wire! {
    /// BATCH_FORGET; `count` of [`ForgetOne`] follow.
    BatchForgetIn = 8 { count: u32 = 0, dummy: u32 = 4 }
}
wire! {
    /// GETATTR.
    GetattrIn = 16 { getattr_flags: u32 = 0, dummy: u32 = 4, fh: u64 = 8 }
}
wire! {
    /// SETATTR.
    SetattrIn = 88 {
        valid: u32 = 0, padding: u32 = 4, fh: u64 = 8, size: u64 = 16, lock_owner: u64 = 24, atime: u64 = 32,
        mtime: u64 = 40, ctime: u64 = 48, atimensec: u32 = 56, mtimensec: u32 = 60, ctimensec: u32 = 64,
        mode: u32 = 68, unused4: u32 = 72, uid: u32 = 76, gid: u32 = 80, unused5: u32 = 84,
    }
}
wire! {
    /// MKNOD; the name follows.
    MknodIn = 16 { mode: u32 = 0, rdev: u32 = 4, umask: u32 = 8, padding: u32 = 12 }
}
wire! {
    /// MKDIR; the name follows.
    MkdirIn = 8 { mode: u32 = 0, umask: u32 = 4 }
}
wire! {
    /// RENAME; both names follow.
    RenameIn = 8 { newdir: u64 = 0 }
}
wire! {
    /// RENAME2; both names follow.
    Rename2In = 16 { newdir: u64 = 0, flags: u32 = 8, padding: u32 = 12 }
}
wire! {
    /// LINK; the name follows.
    LinkIn = 8 { oldnodeid: u64 = 0 }
}
wire! {
    /// OPEN and OPENDIR.
    OpenIn = 8 { flags: u32 = 0, open_flags: u32 = 4 }
}
wire! {
    /// CREATE and TMPFILE; the name follows.
    CreateIn = 16 { flags: u32 = 0, mode: u32 = 4, umask: u32 = 8, open_flags: u32 = 12 }
}
wire! {
    /// Answer to OPEN and OPENDIR; follows an [`EntryOut`] in the answer to CREATE.
    OpenOut = 16 { fh: u64 = 0, open_flags: u32 = 8, backing_id: i32 = 12 }
}
wire! {
    /// RELEASE and RELEASEDIR.
    ReleaseIn = 24 { fh: u64 = 0, flags: u32 = 8, release_flags: u32 = 12, lock_owner: u64 = 16 }
}
wire! {
    /// GETLK, SETLK and SETLKW. `kind` is F_RDLCK, F_WRLCK or F_UNLCK.
    LkIn = 48 {
        fh: u64 = 0, owner: u64 = 8, start: u64 = 16, end: u64 = 24, kind: u32 = 32, pid: u32 = 36,
        lk_flags: u32 = 40, padding: u32 = 44,
    }
}
wire! {
    /// The answer to GETLK.
    LkOut = 24 { start: u64 = 0, end: u64 = 8, kind: u32 = 16, pid: u32 = 20 }
}
wire! {
    /// FLUSH.
    FlushIn = 24 { fh: u64 = 0, unused: u32 = 8, padding: u32 = 12, lock_owner: u64 = 16 }
}
wire! {
    /// READ, READDIR and READDIRPLUS.
    ReadIn = 40 {
        fh: u64 = 0, offset: u64 = 8, size: u32 = 16, read_flags: u32 = 20, lock_owner: u64 = 24, flags: u32 = 32, padding: u32 = 36,
    }
}
wire! {
    /// WRITE; `size` bytes follow.
    WriteIn = 40 {
        fh: u64 = 0, offset: u64 = 8, size: u32 = 16, write_flags: u32 = 20, lock_owner: u64 = 24, flags: u32 = 32, padding: u32 = 36,
    }
}
wire! {
    /// Answer to WRITE and COPY_FILE_RANGE.
    WriteOut = 8 { size: u32 = 0, padding: u32 = 4 }
}
wire! {
    /// Answer to STATFS.
    StatfsOut = 80 {
        blocks: u64 = 0, bfree: u64 = 8, bavail: u64 = 16, files: u64 = 24, ffree: u64 = 32, bsize: u32 = 40,
        namelen: u32 = 44, frsize: u32 = 48, padding: u32 = 52, spare: [u32; 6] = 56,
    }
}
wire! {
    /// FSYNC and FSYNCDIR.
    FsyncIn = 16 { fh: u64 = 0, fsync_flags: u32 = 8, padding: u32 = 12 }
}
wire! {
    /// SETXATTR with `FUSE_SETXATTR_EXT`; without it only the first 8 bytes are sent. Name and value follow.
    SetxattrIn = 16 { size: u32 = 0, flags: u32 = 4, setxattr_flags: u32 = 8, padding: u32 = 12 }
}
wire! {
    /// GETXATTR (the name follows) and LISTXATTR.
    GetxattrIn = 8 { size: u32 = 0, padding: u32 = 4 }
}
wire! {
    /// Answer to GETXATTR and LISTXATTR with size 0.
    GetxattrOut = 8 { size: u32 = 0, padding: u32 = 4 }
}
wire! {
    /// ACCESS.
    AccessIn = 8 { mask: u32 = 0, padding: u32 = 4 }
}
wire! {
    /// INTERRUPT.
    InterruptIn = 8 { unique: u64 = 0 }
}
wire! {
    /// FALLOCATE.
    FallocateIn = 32 { fh: u64 = 0, offset: u64 = 8, length: u64 = 16, mode: u32 = 24, padding: u32 = 28 }
}
wire! {
    /// LSEEK.
    LseekIn = 24 { fh: u64 = 0, offset: u64 = 8, whence: u32 = 16, padding: u32 = 20 }
}
wire! {
    /// Answer to LSEEK.
    LseekOut = 8 { offset: u64 = 0 }
}
wire! {
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn = 56 {
        fh_in: u64 = 0, off_in: u64 = 8, nodeid_out: u64 = 16, fh_out: u64 = 24, off_out: u64 = 32, len: u64 = 40, flags: u64 = 48,
    }
}
wire! {
    /// Answer to COPY_FILE_RANGE_64 (7.45).
    CopyFileRangeOut = 8 { bytes_copied: u64 = 0 }
}
wire! {
    /// Head of a directory entry; the name follows, padded with zeros to 8 bytes.
    Dirent = 24 { ino: u64 = 0, off: u64 = 8, namelen: u32 = 16, kind: u32 = 20 }
}
wire! {
    /// Notification INVAL_INODE. `off` below 0: attributes only; `len` 0: to the end.
    InvalInodeOut = 24 { ino: u64 = 0, off: i64 = 8, len: i64 = 16 }
}
wire! {
    /// Notification INVAL_ENTRY; the name follows, with a NUL that `namelen` does not count.
    InvalEntryOut = 16 { parent: u64 = 0, namelen: u32 = 8, flags: u32 = 12 }
}
wire! {
    /// Notification PRUNE (7.45); as many inode numbers follow.
    PruneOut = 16 { count: u32 = 0, padding: u32 = 4, spare: u64 = 8 }
}
wire! {
    /// What goes with a request over io_uring beside its header (`fuse_uring_ent_in_out`). In an answer only `payload_sz` is
    /// read.
    UringEntInOut = 32 { flags: u64 = 0, commit_id: u64 = 8, payload_sz: u32 = 16, padding: u32 = 20, reserved: u64 = 24 }
}
wire! {
    /// A command of FUSE over io_uring, in the 80 bytes of the submission entry (`fuse_uring_cmd_req`).
    UringCmdReq = 24 { flags: u64 = 0, commit_id: u64 = 8, qid: u16 = 16, padding: [u8; 6] = 18 }
}

/// The header of an entry of FUSE over io_uring (`fuse_uring_req_header`):
///
/// ```text
/// 0                128                256                288
/// | InHeader       | first argument   | UringEntInOut    |     then in memory of its own: the rest of the arguments
/// | OutHeader      |                  | UringEntInOut    |                                the body of the answer
/// ```
pub mod uring_header {
    /// Header of a request, and of its answer.
    pub const IN_OUT: usize = 0;
    /// First argument of a request: the structure of its operation, nothing where it has none.
    pub const OP_IN: usize = 128;
    /// Most bytes of that.
    pub const OP_IN_BYTES: usize = 128;
    /// [`UringEntInOut`](super::UringEntInOut).
    pub const ENT_IN_OUT: usize = OP_IN + OP_IN_BYTES;
    /// Bytes of it all.
    pub const BYTES: usize = ENT_IN_OUT + size_of::<super::UringEntInOut>();
    const _: () = assert!(BYTES == 288);
}
