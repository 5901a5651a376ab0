//! Takes a request's bytes apart.
//!
//! Input comes from the kernel, yet nothing here trusts it: every length is checked, and what does not fit is an
//! error that the caller answers with EIO, never a panic. Names are bytes without NUL and without `/`.

use crate::opcode::Opcode;
use crate::wire::{
    AccessIn, BatchForgetIn, CopyFileRangeIn, CreateIn, FallocateIn, FlushIn, ForgetIn, ForgetOne,
    FsyncIn, GetattrIn, GetxattrIn, InHeader, InitIn, InterruptIn, LinkIn, LkIn, LseekIn, MkdirIn,
    MknodIn, OpenIn, ReadIn, ReleaseIn, Rename2In, RenameIn, SetattrIn, SetxattrIn, WriteIn,
};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of INIT's arguments before 7.36.
const INIT_IN_SHORT: usize = 16;
/// Bytes of SETXATTR's arguments without `FUSE_SETXATTR_EXT`.
const SETXATTR_IN_SHORT: usize = 8;

/// Why a request could not be taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// The message ends before the part named.
    #[error("the message ends before its {0}")]
    Short(&'static str),
    /// The length in the header is not the number of bytes that came.
    #[error("the header says {header} bytes, {got} came")]
    Length {
        /// What the header says.
        header: u32,
        /// What came.
        got: usize,
    },
    /// A name without its NUL, or empty.
    #[error("a name is empty or does not end")]
    Name,
}

/// What the kernel asks for, with its arguments. Names borrow from the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(
    missing_docs,
    reason = "each is an opcode of the kernel with the names of its arguments"
)]
pub enum Op<'a> {
    Init(InitIn),
    Lookup {
        name: &'a [u8],
    },
    Forget(ForgetIn),
    BatchForget {
        pairs: &'a [u8],
    },
    Getattr(GetattrIn),
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        args: MknodIn,
        name: &'a [u8],
    },
    Mkdir {
        args: MkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        new_parent: u64,
        flags: u32,
        name: &'a [u8],
        new_name: &'a [u8],
    },
    Link {
        ino: u64,
        name: &'a [u8],
    },
    Open(OpenIn),
    Create {
        args: CreateIn,
        name: &'a [u8],
    },
    Read(ReadIn),
    Write(WriteIn),
    Statfs,
    Release(ReleaseIn),
    Flush(FlushIn),
    /// GETLK.
    Getlk(LkIn),
    /// SETLK and SETLKW.
    Setlk {
        /// Arguments.
        args: LkIn,
        /// SETLKW.
        waits: bool,
    },
    Fsync(FsyncIn),
    Setxattr {
        flags: u32,
        name: &'a [u8],
        value: &'a [u8],
    },
    Getxattr {
        size: u32,
        name: &'a [u8],
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Opendir(OpenIn),
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Releasedir(ReleaseIn),
    Fsyncdir(FsyncIn),
    Access(AccessIn),
    Interrupt(InterruptIn),
    Destroy,
    Fallocate(FallocateIn),
    Lseek(LseekIn),
    CopyFileRange {
        args: CopyFileRangeIn,
        is_64: bool,
    },
    Syncfs,
    /// ioctl on a file: none is known.
    Ioctl,
    /// An operation that is not served.
    Unsupported(u32),
}

/// Walks over a message's body.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take<T: FromBytes>(&mut self, what: &'static str) -> Result<T, ParseError> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| ParseError::Short(what))?;
        self.rest = rest;
        Ok(value)
    }

    /// Like `take`, where older kernels send only the first `short` bytes; the rest is zero then.
    fn take_short<T: FromBytes + IntoBytes + zerocopy::Immutable + Default>(
        &mut self,
        short: usize,
        what: &'static str,
    ) -> Result<T, ParseError> {
        let head = self.rest.get(..short).ok_or(ParseError::Short(what))?;
        let mut value = T::default();
        value.as_mut_bytes()[..short].copy_from_slice(head);
        self.rest = &self.rest[short..];
        Ok(value)
    }

    /// Bytes up to the next NUL.
    fn string(&mut self) -> Result<&'a [u8], ParseError> {
        let end = self
            .rest
            .iter()
            .position(|&b| b == 0)
            .ok_or(ParseError::Name)?;
        let string = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(string)
    }

    fn name(&mut self) -> Result<&'a [u8], ParseError> {
        let name = self.string()?;
        if name.is_empty() {
            Err(ParseError::Name)
        } else {
            Ok(name)
        }
    }

    fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], ParseError> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(ParseError::Short(what))?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// The header of a message of `got` bytes that starts with `bytes`.
///
/// # Errors
/// When the message is shorter than a header, or its length is not the header's.
pub fn parse_header(bytes: &[u8], got: usize) -> Result<InHeader, ParseError> {
    let (header, _) = InHeader::read_from_prefix(bytes).map_err(|_| ParseError::Short("header"))?;
    if header.len as usize != got || got < size_of::<InHeader>() {
        return Err(ParseError::Length {
            header: header.len,
            got,
        });
    }
    Ok(header)
}

/// The arguments of a request. `body` is what follows the header; of a WRITE its data may be left out.
/// `setxattr_ext` says whether `FUSE_SETXATTR_EXT` was agreed on.
///
/// # Errors
/// When the body does not hold what the opcode demands.
#[allow(clippy::too_many_lines, reason = "one arm an opcode")]
pub fn parse<'a>(
    header: &InHeader,
    body: &'a [u8],
    setxattr_ext: bool,
) -> Result<Op<'a>, ParseError> {
    let Some(opcode) = Opcode::from_number(header.opcode) else {
        return Ok(Op::Unsupported(header.opcode));
    };
    let mut at = Cursor { rest: body };
    let at = &mut at;
    Ok(match opcode {
        Opcode::Init if body.len() < size_of::<InitIn>() => {
            Op::Init(at.take_short(INIT_IN_SHORT, "init arguments")?)
        }
        Opcode::Init => Op::Init(at.take("init arguments")?),
        Opcode::Lookup => Op::Lookup { name: at.name()? },
        Opcode::Forget => Op::Forget(at.take("forget count")?),
        Opcode::BatchForget => {
            let args: BatchForgetIn = at.take("forget count")?;
            let len = (args.count as usize).checked_mul(size_of::<ForgetOne>());
            let len = len.ok_or(ParseError::Short("forgets"))?;
            Op::BatchForget {
                pairs: at.bytes(len, "forgets")?,
            }
        }
        Opcode::Getattr => Op::Getattr(at.take("getattr arguments")?),
        Opcode::Setattr => Op::Setattr(at.take("setattr arguments")?),
        Opcode::Readlink => Op::Readlink,
        Opcode::Symlink => {
            let name = at.name()?;
            Op::Symlink {
                name,
                target: at.name()?,
            }
        }
        Opcode::Mknod => {
            let args = at.take("mknod arguments")?;
            Op::Mknod {
                args,
                name: at.name()?,
            }
        }
        Opcode::Mkdir => {
            let args = at.take("mkdir arguments")?;
            Op::Mkdir {
                args,
                name: at.name()?,
            }
        }
        Opcode::Unlink => Op::Unlink { name: at.name()? },
        Opcode::Rmdir => Op::Rmdir { name: at.name()? },
        Opcode::Rename => {
            let args: RenameIn = at.take("rename arguments")?;
            let name = at.name()?;
            Op::Rename {
                new_parent: args.newdir,
                flags: 0,
                name,
                new_name: at.name()?,
            }
        }
        Opcode::Rename2 => {
            let args: Rename2In = at.take("rename arguments")?;
            let name = at.name()?;
            Op::Rename {
                new_parent: args.newdir,
                flags: args.flags,
                name,
                new_name: at.name()?,
            }
        }
        Opcode::Link => {
            let args: LinkIn = at.take("link arguments")?;
            Op::Link {
                ino: args.oldnodeid,
                name: at.name()?,
            }
        }
        Opcode::Open => Op::Open(at.take("open arguments")?),
        Opcode::Create => {
            let args = at.take("create arguments")?;
            Op::Create {
                args,
                name: at.name()?,
            }
        }
        Opcode::Read => Op::Read(at.take("read arguments")?),
        Opcode::Write => Op::Write(at.take("write arguments")?),
        Opcode::Statfs => Op::Statfs,
        Opcode::Release => Op::Release(at.take("release arguments")?),
        Opcode::Flush => Op::Flush(at.take("flush arguments")?),
        Opcode::Fsync => Op::Fsync(at.take("fsync arguments")?),
        Opcode::Setxattr => {
            let args: SetxattrIn = if setxattr_ext {
                at.take("setxattr arguments")?
            } else {
                at.take_short(SETXATTR_IN_SHORT, "setxattr arguments")?
            };
            let name = at.name()?;
            let value = at.bytes(args.size as usize, "value")?;
            Op::Setxattr {
                flags: args.flags,
                name,
                value,
            }
        }
        Opcode::Getxattr => {
            let args: GetxattrIn = at.take("getxattr arguments")?;
            Op::Getxattr {
                size: args.size,
                name: at.name()?,
            }
        }
        Opcode::Listxattr => {
            let args: GetxattrIn = at.take("listxattr arguments")?;
            Op::Listxattr { size: args.size }
        }
        Opcode::Removexattr => Op::Removexattr { name: at.name()? },
        Opcode::Opendir => Op::Opendir(at.take("opendir arguments")?),
        Opcode::Readdir => Op::Readdir(at.take("readdir arguments")?),
        Opcode::Readdirplus => Op::Readdirplus(at.take("readdirplus arguments")?),
        Opcode::Releasedir => Op::Releasedir(at.take("releasedir arguments")?),
        Opcode::Fsyncdir => Op::Fsyncdir(at.take("fsyncdir arguments")?),
        Opcode::Access => Op::Access(at.take("access arguments")?),
        Opcode::Interrupt => Op::Interrupt(at.take("interrupt arguments")?),
        Opcode::Destroy => Op::Destroy,
        Opcode::Fallocate => Op::Fallocate(at.take("fallocate arguments")?),
        Opcode::Lseek => Op::Lseek(at.take("lseek arguments")?),
        Opcode::CopyFileRange => Op::CopyFileRange {
            args: at.take("copy_file_range arguments")?,
            is_64: false,
        },
        Opcode::CopyFileRange64 => Op::CopyFileRange {
            args: at.take("copy_file_range arguments")?,
            is_64: true,
        },
        Opcode::Syncfs => Op::Syncfs,
        Opcode::Ioctl => Op::Ioctl,
        Opcode::Getlk => Op::Getlk(at.take("lock arguments")?),
        Opcode::Setlk => Op::Setlk {
            args: at.take("lock arguments")?,
            waits: false,
        },
        Opcode::Setlkw => Op::Setlk {
            args: at.take("lock arguments")?,
            waits: true,
        },
        Opcode::Bmap
        | Opcode::Poll
        | Opcode::NotifyReply
        | Opcode::SetupMapping
        | Opcode::RemoveMapping
        | Opcode::Tmpfile
        | Opcode::Statx => Op::Unsupported(header.opcode),
    })
}

/// The inodes of a BATCH_FORGET with how many lookups to take off each.
pub fn forgets(pairs: &[u8]) -> impl Iterator<Item = ForgetOne> + '_ {
    pairs
        .chunks_exact(size_of::<ForgetOne>())
        .filter_map(|bytes| ForgetOne::read_from_bytes(bytes).ok())
}
