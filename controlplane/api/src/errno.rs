//! The errors of POSIX, as they travel between the planes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An error number of Linux (`errno.h`, x86-64 and arm64 numbering). Always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{name} ({0})", name = self.name())]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $value:expr, $what:expr;)*) => {
        impl Errno {
            $(#[doc = $what] pub const $name: Errno = Errno($value);)*
            /// The symbolic name, or `E?` for a number this table does not know.
            pub fn name(self) -> &'static str {
                match self.0 { $($value => stringify!($name),)* _ => "E?" }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such file or directory.";
    EINTR = 4, "Interrupted system call.";
    EIO = 5, "Input/output error.";
    ENXIO = 6, "No such device or address.";
    EBADF = 9, "Bad file descriptor.";
    EAGAIN = 11, "Try again.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied.";
    EBUSY = 16, "Device or resource busy.";
    EEXIST = 17, "File exists.";
    EXDEV = 18, "Invalid cross-device link.";
    ENODEV = 19, "No such device.";
    ENOTDIR = 20, "Not a directory.";
    EISDIR = 21, "Is a directory.";
    EINVAL = 22, "Invalid argument.";
    EFBIG = 27, "File too large.";
    ENOSPC = 28, "No space left on device.";
    EROFS = 30, "Read-only file system.";
    EMLINK = 31, "Too many links.";
    ERANGE = 34, "Result too large for the buffer.";
    EDEADLK = 35, "Resource deadlock would occur.";
    ENAMETOOLONG = 36, "File name too long.";
    ENOLCK = 37, "No record locks available.";
    ENOSYS = 38, "Function not implemented.";
    ENOTEMPTY = 39, "Directory not empty.";
    ENODATA = 61, "No such extended attribute.";
    EOVERFLOW = 75, "Value too large for its type.";
    ENOTSUP = 95, "Operation not supported.";
    ENOTCONN = 107, "The other plane is not connected.";
    ETIMEDOUT = 110, "Timed out.";
    ESTALE = 116, "Stale file handle: the inode's lease or version is gone.";
}

impl Errno {
    /// The positive error number.
    pub fn code(self) -> i32 {
        self.0
    }

    /// From a positive error number of the kernel; anything else becomes EIO.
    pub fn from_code(code: i32) -> Errno {
        if code > 0 && code < 4096 {
            Errno(code)
        } else {
            Errno::EIO
        }
    }
}

impl From<std::io::Error> for Errno {
    fn from(e: std::io::Error) -> Errno {
        e.raw_os_error().map_or(Errno::EIO, Errno::from_code)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
