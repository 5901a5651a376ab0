//! Puts answers together, and is the one place where an error gets its number for the kernel.

use crate::wire::{AttrOut, Dirent, EntryOut, FuseAttr, OutHeader, StatfsOut};
use fastcache_api::{Attr, DirEntry, Errno, Ino, Kind, Time};
use fastcache_cache::Entry;
use smallvec::SmallVec;
use std::time::Duration;
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Bytes of the header in front of every reply.
pub const OUT_HEADER: usize = size_of::<OutHeader>();
/// What the largest answer without contents takes: the answer to CREATE with its header.
const INLINE: usize = OUT_HEADER + size_of::<EntryOut>() + size_of::<crate::wire::OpenOut>();
/// The longest time the kernel is told to keep something, seconds: its own arithmetic is in jiffies.
const VALID_MAX_SECONDS: u64 = 1 << 30;
/// What `st_blksize` says, bytes: what stdio buffers. Larger buffers cost every small program memory, smaller ones
/// make more write requests.
const BLKSIZE: u32 = 64 << 10;
/// Unit of `st_blocks`, bytes.
const SECTOR: u64 = 512;

/// A reply as bytes, with room for its header in front.
pub type ReplyBytes = SmallVec<[u8; INLINE]>;

/// What a handler answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing is sent: FORGET, INTERRUPT.
    Silent,
    /// An error.
    Error(Errno),
    /// Done, nothing to tell.
    Done,
    /// These bytes; the first [`OUT_HEADER`] are left free for the header.
    Bytes(ReplyBytes),
    /// The same; there is more to do for it, and it may go out with that.
    BytesAndMore(ReplyBytes),
    /// The first so many bytes of the request's payload buffer (READ).
    Payload(usize),
}

impl Reply {
    /// A reply of one structure.
    pub fn of<T: IntoBytes + Immutable>(value: &T) -> Reply {
        Reply::raw(value.as_bytes())
    }

    /// A reply of two structures, one behind the other.
    pub fn of_two<A: IntoBytes + Immutable, B: IntoBytes + Immutable>(
        first: &A,
        second: &B,
    ) -> Reply {
        let mut bytes = empty();
        bytes.extend_from_slice(first.as_bytes());
        bytes.extend_from_slice(second.as_bytes());
        Reply::Bytes(bytes)
    }

    /// The same reply, where there is more to do for it.
    pub fn and_more(self) -> Reply {
        match self {
            Reply::Bytes(bytes) => Reply::BytesAndMore(bytes),
            other => other,
        }
    }

    /// A reply of these bytes.
    pub fn raw(body: &[u8]) -> Reply {
        let mut bytes = empty();
        bytes.extend_from_slice(body);
        Reply::Bytes(bytes)
    }
}

impl<T: Into<Reply>> From<Result<T, Errno>> for Reply {
    fn from(result: Result<T, Errno>) -> Reply {
        result.map_or_else(Reply::Error, Into::into)
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Reply {
        Reply::Done
    }
}

fn empty() -> ReplyBytes {
    let mut bytes = ReplyBytes::new();
    bytes.resize(OUT_HEADER, 0);
    bytes
}

/// The header of the reply to `unique` with `body` bytes behind it.
///
/// # Panics
/// When the body is longer than the protocol can say: handlers bound it by what was asked for.
#[must_use]
pub fn out_header(unique: u64, error: Option<Errno>, body: usize) -> OutHeader {
    let len = u32::try_from(OUT_HEADER + body);
    let len = len.unwrap_or_else(|_| panic!("a reply of {body} bytes"));
    OutHeader {
        len,
        error: error.map_or(0, error_number),
        unique,
    }
}

/// What the kernel is told: a negated errno. It takes only 1 to 511; anything else would fail the whole reply
/// with EINVAL and leave the request hanging.
fn error_number(errno: Errno) -> i32 {
    match errno.code() {
        code @ 1..512 => -code,
        _ => -Errno::EIO.code(),
    }
}

/// The bytes of a small reply, header included. `None` when nothing is to be sent or the reply is a payload's.
#[must_use]
pub fn encode(unique: u64, reply: Reply) -> Option<ReplyBytes> {
    let (mut bytes, error) = match reply {
        Reply::Silent | Reply::Payload(_) => return None,
        Reply::Error(errno) => (empty(), Some(errno)),
        Reply::Done => (empty(), None),
        Reply::Bytes(bytes) | Reply::BytesAndMore(bytes) => (bytes, None),
    };
    let header = out_header(unique, error, bytes.len() - OUT_HEADER);
    bytes[..OUT_HEADER].copy_from_slice(header.as_bytes());
    Some(bytes)
}

/// Seconds and nanoseconds of a timeout.
fn valid(duration: Duration) -> (u64, u32) {
    (
        duration.as_secs().min(VALID_MAX_SECONDS),
        duration.subsec_nanos(),
    )
}

/// The file type bits of `st_mode`.
#[must_use]
pub fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Fifo => libc::S_IFIFO,
        Kind::Char => libc::S_IFCHR,
        Kind::Dir => libc::S_IFDIR,
        Kind::Block => libc::S_IFBLK,
        Kind::File => libc::S_IFREG,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Socket => libc::S_IFSOCK,
    }
}

/// The kind that these bits of `st_mode` say; MKNOD without any makes a file.
#[must_use]
pub fn kind_of_mode(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFCHR => Kind::Char,
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFBLK => Kind::Block,
        libc::S_IFREG | 0 => Kind::File,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFSOCK => Kind::Socket,
        _ => return None,
    })
}

/// Attributes as the kernel takes them. `st_blocks` counts what is not a hole.
#[must_use]
pub fn attr_out(attr: &Attr) -> FuseAttr {
    let seconds = |time: Time| time.sec.cast_unsigned();
    FuseAttr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.allocated.div_ceil(SECTOR),
        atime: seconds(attr.atime),
        mtime: seconds(attr.mtime),
        ctime: seconds(attr.ctime),
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: type_bits(attr.kind) | (attr.mode & 0o7777),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLKSIZE,
        flags: 0,
    }
}

/// An entry as the kernel takes it. Inode numbers are never reused, so the generation stays 0.
#[must_use]
pub fn entry_out(attr: &Attr, entry_valid: Duration, attr_valid: Duration) -> EntryOut {
    let (entry_valid, entry_valid_nsec) = valid(entry_valid);
    let (attr_valid, attr_valid_nsec) = valid(attr_valid);
    EntryOut {
        nodeid: attr.ino.0,
        generation: 0,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr_out(attr),
    }
}

impl From<Entry> for Reply {
    fn from(entry: Entry) -> Reply {
        Reply::of(&entry_out(&entry.attr, entry.entry_valid, entry.attr_valid))
    }
}

/// The answer that a name does not exist, to be remembered for `entry_valid`.
#[must_use]
pub fn negative_entry(entry_valid: Duration) -> Reply {
    let (entry_valid, entry_valid_nsec) = valid(entry_valid);
    Reply::of(&EntryOut {
        entry_valid,
        entry_valid_nsec,
        ..EntryOut::new_zeroed()
    })
}

/// Answer to GETATTR and SETATTR.
#[must_use]
pub fn attr_reply(attr: &Attr, attr_valid: Duration) -> Reply {
    let (attr_valid, attr_valid_nsec) = valid(attr_valid);
    Reply::of(&AttrOut {
        attr_valid,
        attr_valid_nsec,
        dummy: 0,
        attr: attr_out(attr),
    })
}

/// Answer to STATFS.
#[must_use]
pub fn statfs_reply(counts: &fastcache_cache::StatfsOut) -> Reply {
    Reply::of(&StatfsOut {
        blocks: counts.blocks,
        bfree: counts.bfree,
        bavail: counts.bavail,
        files: counts.files,
        ffree: counts.ffree,
        bsize: counts.bsize,
        namelen: counts.namelen,
        frsize: counts.frsize,
        padding: 0,
        spare: [0; 6],
    })
}

/// One entry of a listing.
pub struct ListedEntry<'a> {
    /// Inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Where the listing goes on after it.
    pub cookie: u64,
    /// Name.
    pub name: &'a [u8],
}

impl<'a> From<&'a DirEntry> for ListedEntry<'a> {
    fn from(entry: &'a DirEntry) -> ListedEntry<'a> {
        let DirEntry {
            name,
            ino,
            kind,
            cookie,
            ..
        } = entry;
        ListedEntry {
            ino: *ino,
            kind: *kind,
            cookie: *cookie,
            name,
        }
    }
}

/// A listing that is filled until the size the kernel asked for is reached.
pub struct Listing {
    bytes: ReplyBytes,
    end: usize,
}

impl Listing {
    /// An empty listing of at most `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Listing {
        let mut bytes = ReplyBytes::with_capacity(OUT_HEADER + size);
        bytes.resize(OUT_HEADER, 0);
        Listing {
            bytes,
            end: OUT_HEADER + size,
        }
    }

    /// Bytes one entry takes with a name of `name` bytes.
    const fn needs(name: usize, plus: bool) -> usize {
        let head = size_of::<Dirent>() + if plus { size_of::<EntryOut>() } else { 0 };
        (head + name).next_multiple_of(8)
    }

    /// The most entries that fit into `size` bytes, were every name one byte long.
    #[must_use]
    pub const fn capacity(size: usize, plus: bool) -> usize {
        size / Self::needs(1, plus)
    }

    /// Whether an entry with this name still fits.
    #[must_use]
    pub fn fits(&self, entry: &ListedEntry<'_>, plus: bool) -> bool {
        self.bytes.len() + Self::needs(entry.name.len(), plus) <= self.end
    }

    /// Adds an entry; `plus` is the part in front of it in a READDIRPLUS.
    /// False, and nothing added, when it does not fit.
    pub fn push(&mut self, entry: &ListedEntry<'_>, plus: Option<&EntryOut>) -> bool {
        let Ok(namelen) = u32::try_from(entry.name.len()) else {
            return false;
        };
        if !self.fits(entry, plus.is_some()) {
            return false;
        }
        let end = self.bytes.len() + Self::needs(entry.name.len(), plus.is_some());
        if let Some(plus) = plus {
            self.bytes.extend_from_slice(plus.as_bytes());
        }
        let kind = type_bits(entry.kind) >> 12;
        let head = Dirent {
            ino: entry.ino.0,
            off: entry.cookie,
            namelen,
            kind,
        };
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(end, 0);
        true
    }

    /// The reply.
    #[must_use]
    pub fn into_reply(self) -> Reply {
        Reply::Bytes(self.bytes)
    }
}
