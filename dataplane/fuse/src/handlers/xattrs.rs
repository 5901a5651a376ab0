//! GETXATTR, SETXATTR, LISTXATTR, REMOVEXATTR.

use super::Handlers;
use crate::reply::Reply;
use crate::wire::GetxattrOut;
use fastcache_api::ns::{XATTR_NAME_MAX, XATTR_VALUE_MAX};
use fastcache_api::{Errno, Ino, XattrMode};

/// The namespaces that are kept, as on ext4 but for `system.`: ACLs are not agreed on with the kernel (`POSIX_ACL`), and
/// stored but not enforced they would be a false promise.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Refuses names of other namespaces (ENOTSUP) and names that are nothing but a namespace (EINVAL).
fn check_name(name: &[u8]) -> Result<(), Errno> {
    let rest = NAMESPACES.iter().find_map(|n| name.strip_prefix(*n));
    match rest {
        None => Err(Errno::ENOTSUP),
        Some([]) => Err(Errno::EINVAL),
        Some(_) => Ok(()),
    }
}

/// How setxattr(2) with these flags treats an existing value.
pub(crate) fn xattr_mode(flags: u32) -> Result<XattrMode, Errno> {
    const CREATE: u32 = libc::XATTR_CREATE.cast_unsigned();
    const REPLACE: u32 = libc::XATTR_REPLACE.cast_unsigned();
    match flags {
        0 => Ok(XattrMode::Any),
        CREATE => Ok(XattrMode::Create),
        REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::EINVAL),
    }
}

/// The answer to a question with room for `size` bytes; 0 asks for the length alone.
pub(crate) fn sized(value: &[u8], size: u32) -> Reply {
    let Ok(len) = u32::try_from(value.len()) else {
        return Reply::Error(Errno::EIO);
    };
    if size == 0 {
        Reply::of(&GetxattrOut {
            size: len,
            padding: 0,
        })
    } else if len > size {
        Reply::Error(Errno::ERANGE)
    } else {
        Reply::raw(value)
    }
}

impl Handlers {
    pub(super) async fn getxattr(&self, ino: Ino, name: &[u8], size: u32) -> Reply {
        if let Err(e) = check_name(name) {
            return Reply::Error(e);
        }
        match self.fs.getxattr(ino, name).await {
            Ok(value) => sized(&value, size),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Reply {
        if let Err(e) = check_name(name) {
            return Reply::Error(e);
        }
        if name.len() > XATTR_NAME_MAX || value.len() > XATTR_VALUE_MAX {
            return Reply::Error(Errno::ERANGE);
        }
        match xattr_mode(flags) {
            Ok(mode) => self.fs.setxattr(ino, name, value, mode).await.into(),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn listxattr(&self, ino: Ino, size: u32) -> Reply {
        match self.fs.listxattr(ino).await {
            Ok(names) => {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(&list, size)
            }
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn removexattr(&self, ino: Ino, name: &[u8]) -> Reply {
        if let Err(e) = check_name(name) {
            return Reply::Error(e);
        }
        self.fs.removexattr(ino, name).await.into()
    }
}
