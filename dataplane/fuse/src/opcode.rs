//! The kernel's operation codes, and how often each was asked for.

use std::sync::atomic::{AtomicU64, Ordering};

/// One more than the largest opcode counted.
const OPCODE_END: usize = 64;

/// Requests by opcode since the process started; index 0 takes those without a name here.
static COUNTS: [AtomicU64; OPCODE_END] = [const { AtomicU64::new(0) }; OPCODE_END];

macro_rules! opcodes {
    ($($name:ident = $value:literal, $word:literal;)*) => {
        /// What a request asks for (`enum fuse_opcode`).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Opcode {
            $(#[doc = concat!("`FUSE_", $word, "`, ", stringify!($value), ".")] $name = $value,)*
        }

        impl Opcode {
            /// Every opcode, in order of its number.
            pub const ALL: &[Opcode] = &[$(Opcode::$name),*];

            /// The opcode of this number, if it has a name here.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Opcode> {
                match number { $($value => Some(Opcode::$name),)* _ => None }
            }

            /// The kernel's name in lower case, for logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Opcode::$name => $word,)* }
            }
        }
    };
}

opcodes! {
    Lookup = 1, "lookup";
    Forget = 2, "forget";
    Getattr = 3, "getattr";
    Setattr = 4, "setattr";
    Readlink = 5, "readlink";
    Symlink = 6, "symlink";
    Mknod = 8, "mknod";
    Mkdir = 9, "mkdir";
    Unlink = 10, "unlink";
    Rmdir = 11, "rmdir";
    Rename = 12, "rename";
    Link = 13, "link";
    Open = 14, "open";
    Read = 15, "read";
    Write = 16, "write";
    Statfs = 17, "statfs";
    Release = 18, "release";
    Fsync = 20, "fsync";
    Setxattr = 21, "setxattr";
    Getxattr = 22, "getxattr";
    Listxattr = 23, "listxattr";
    Removexattr = 24, "removexattr";
    Flush = 25, "flush";
    Init = 26, "init";
    Opendir = 27, "opendir";
    Readdir = 28, "readdir";
    Releasedir = 29, "releasedir";
    Fsyncdir = 30, "fsyncdir";
    Getlk = 31, "getlk";
    Setlk = 32, "setlk";
    Setlkw = 33, "setlkw";
    Access = 34, "access";
    Create = 35, "create";
    Interrupt = 36, "interrupt";
    Bmap = 37, "bmap";
    Destroy = 38, "destroy";
    Ioctl = 39, "ioctl";
    Poll = 40, "poll";
    NotifyReply = 41, "notify_reply";
    BatchForget = 42, "batch_forget";
    Fallocate = 43, "fallocate";
    Readdirplus = 44, "readdirplus";
    Rename2 = 45, "rename2";
    Lseek = 46, "lseek";
    CopyFileRange = 47, "copy_file_range";
    SetupMapping = 48, "setupmapping";
    RemoveMapping = 49, "removemapping";
    Syncfs = 50, "syncfs";
    Tmpfile = 51, "tmpfile";
    Statx = 52, "statx";
    CopyFileRange64 = 53, "copy_file_range_64";
}

/// Counts one request.
pub(crate) fn count(number: u32) {
    let index = Opcode::from_number(number).map_or(0, |opcode| opcode as usize);
    COUNTS[index].fetch_add(1, Ordering::Relaxed);
}

/// Requests served so far by operation, those that never came left out. Names are the kernel's in lower case.
#[must_use]
pub fn counters() -> Vec<(String, u64)> {
    let named = Opcode::ALL
        .iter()
        .map(|opcode| (opcode.name(), *opcode as usize));
    std::iter::once(("unknown", 0))
        .chain(named)
        .map(|(name, index)| (name.to_owned(), COUNTS[index].load(Ordering::Relaxed)))
        .filter(|(_, count)| *count > 0)
        .collect()
}
