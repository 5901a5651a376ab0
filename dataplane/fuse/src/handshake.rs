//! FUSE_INIT: what the kernel offers, what is agreed on, and why.

use crate::request::{Op, parse, parse_header};
use crate::wire::flags::init;
use crate::wire::{InHeader, InitIn, InitOut, MAJOR, MINOR, MINOR_MIN};
use fastcache_types::{BLOCK, REQUEST_MAX};

/// Most asynchronous requests (readahead, direct I/O in the background) in flight for the mount. The kernel's own
/// default of 12 starves a device that wants a queue depth of 32 and more.
pub const MAX_BACKGROUND: u16 = 512;
/// From how many on the kernel takes the mount for congested: three quarters.
pub const CONGESTION_THRESHOLD: u16 = MAX_BACKGROUND / 4 * 3;
/// Pages in one request.
const MAX_PAGES: u16 = 256;
const _: () = assert!(MAX_PAGES as usize * BLOCK == REQUEST_MAX);
/// Longest write in one request, bytes.
const MAX_WRITE: u32 = 1 << 20;
const _: () = assert!(MAX_WRITE as usize == REQUEST_MAX);

/// What is wanted wherever the kernel has it. Left out on purpose:
/// - `WRITEBACK_CACHE`: the kernel would own size and mtime, and other nodes could not see what was closed;
/// - `POSIX_LOCKS`, `FLOCK_LOCKS`: wanted only where there can be other nodes; else the kernel's own locks are right and cost
///   no request;
/// - `AUTO_INVAL_DATA`: replaced by `EXPLICIT_INVAL_DATA`: the file system knows when contents change;
/// - `DONT_MASK`, `POSIX_ACL`: ACLs are not kept, so the kernel applies the umask;
/// - `ATOMIC_O_TRUNC`: with it the kernel sends the truncation with OPEN before it looks whether the file is being
///   executed, so that `open(O_RDONLY | O_TRUNC)` empties a running program and then answers ETXTBSY;
/// - `NO_OPEN_SUPPORT`: opens are counted, for orphans and for sealing at the last close.
const WANTED: u64 = init::ASYNC_READ
    | init::EXPORT_SUPPORT
    | init::BIG_WRITES
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::EXPLICIT_INVAL_DATA
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::HAS_EXPIRE_ONLY
    | init::DIRECT_IO_ALLOW_MMAP;

/// Wanted, too, where other nodes may lock the same files.
const REMOTE_LOCKS: u64 = init::POSIX_LOCKS | init::FLOCK_LOCKS;

/// What could not be agreed on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The kernel is too old.
    #[error(
        "the kernel speaks FUSE {major}.{minor}; fastcache needs 7.{MINOR_MIN} or later (Linux 5.4)"
    )]
    TooOld {
        /// Major version of the kernel.
        major: u32,
        /// Minor version of the kernel.
        minor: u32,
    },
    /// FUSE over io_uring was demanded and is not offered.
    #[error(
        "the kernel does not offer FUSE over io_uring (Linux 6.14 or later, built with CONFIG_FUSE_IO_URING): use --fuse-transport auto or dev"
    )]
    NoUring,
    /// The first request was not an INIT.
    #[error("the first FUSE request is not an INIT but opcode {0}")]
    NotInit(u32),
    /// The first request could not be understood.
    #[error("the first FUSE request is damaged: {0}")]
    Damaged(#[from] crate::request::ParseError),
}

/// What was agreed on with the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Minor version both sides speak.
    pub minor: u32,
    /// INIT flags both sides set.
    pub flags: u64,
}

impl Negotiated {
    /// Whether all of these flags were agreed on.
    #[must_use]
    pub const fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// Requests come over io_uring.
    #[must_use]
    pub const fn over_io_uring(&self) -> bool {
        self.has(init::OVER_IO_URING)
    }

    /// Locks are asked for here, and given up by FLUSH and RELEASE.
    #[must_use]
    pub const fn has_remote_locks(&self) -> bool {
        self.has(init::POSIX_LOCKS)
    }

    /// SETXATTR carries 16 bytes of arguments.
    #[must_use]
    pub const fn setxattr_ext(&self) -> bool {
        self.has(init::SETXATTR_EXT)
    }

    /// The file system clears setuid and setgid, the kernel does not.
    #[must_use]
    pub const fn handles_killpriv(&self) -> bool {
        self.has(init::HANDLE_KILLPRIV_V2)
    }
}

/// What to do with an INIT.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer this, and serve.
    Agreed(Box<InitOut>, Negotiated),
    /// Answer this; the kernel asks again with our major version.
    AskAgain(Box<InitOut>),
}

/// The request that the first bytes from the device must be.
///
/// # Errors
/// When they are none, or damaged.
pub fn parse_init(message: &[u8]) -> Result<(InHeader, InitIn), HandshakeError> {
    let header = parse_header(message, message.len())?;
    match parse(&header, &message[size_of::<InHeader>()..], false)? {
        Op::Init(args) => Ok((header, args)),
        _ => Err(HandshakeError::NotInit(header.opcode)),
    }
}

/// Decides what to answer. `over_io_uring`: whether requests are to come over io_uring, where the kernel offers it.
/// `remote_locks`: whether other nodes may lock the same files.
///
/// # Errors
/// When the kernel is too old.
pub fn negotiate(
    offer: &InitIn,
    over_io_uring: bool,
    remote_locks: bool,
) -> Result<Verdict, HandshakeError> {
    let mut out = InitOut {
        major: MAJOR,
        minor: MINOR,
        ..InitOut::default()
    };
    if offer.major > MAJOR {
        return Ok(Verdict::AskAgain(Box::new(out)));
    }
    if offer.major < MAJOR || offer.minor < MINOR_MIN {
        return Err(HandshakeError::TooOld {
            major: offer.major,
            minor: offer.minor,
        });
    }
    let mut offered = u64::from(offer.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(offer.flags2) << 32;
    }
    let mut wanted = WANTED;
    if over_io_uring {
        wanted |= init::OVER_IO_URING;
    }
    if remote_locks {
        wanted |= REMOTE_LOCKS;
    }
    let flags = offered & wanted;
    out.max_readahead = offer.max_readahead;
    out.flags = low(flags);
    out.flags2 = low(flags >> 32);
    out.max_background = MAX_BACKGROUND;
    out.congestion_threshold = CONGESTION_THRESHOLD;
    out.max_write = MAX_WRITE;
    out.time_gran = 1;
    out.max_pages = MAX_PAGES;
    let minor = offer.minor.min(MINOR);
    Ok(Verdict::Agreed(Box::new(out), Negotiated { minor, flags }))
}

/// The lower half.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the upper half is cut off on purpose"
)]
const fn low(flags: u64) -> u32 {
    flags as u32
}
