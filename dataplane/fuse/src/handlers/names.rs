//! LOOKUP, MKNOD, MKDIR, SYMLINK, READLINK, RENAME.

use super::Handlers;
use crate::reply::{Reply, kind_of_mode, negative_entry};
use crate::wire::flags::{RENAME_EXCHANGE, RENAME_NOREPLACE};
use crate::wire::{MkdirIn, MknodIn};
use fastcache_api::ns::{NAME_MAX, SYMLINK_MAX};
use fastcache_api::{Cred, Errno, Ino, Kind, NewInode, RenameMode};
use fastcache_cache::Found;

/// How a rename with these flags treats its target. RENAME_WHITEOUT is refused.
pub(crate) fn rename_mode(flags: u32) -> Result<RenameMode, Errno> {
    match flags {
        0 => Ok(RenameMode::Replace),
        RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(Errno::EINVAL),
    }
}

/// A new inode with nothing special.
fn new_inode(kind: Kind, mode: u32, cred: Cred) -> NewInode {
    NewInode {
        kind,
        mode: mode & 0o7777,
        rdev: 0,
        cred,
        target: Vec::new(),
        chunk_size: 0,
    }
}

impl Handlers {
    pub(super) async fn lookup(&self, parent: Ino, name: &[u8]) -> Reply {
        if name.len() > NAME_MAX {
            return Reply::Error(Errno::ENAMETOOLONG);
        }
        // Asked for when a file handle is opened (EXPORT_SUPPORT); `.` may name any kind of inode then.
        if name == b"." {
            return self.fs.entry_of(parent).await.into();
        }
        match self.fs.find(parent, name).await {
            Ok(Found::Entry(entry)) => Ok(entry).into(),
            Ok(Found::Absent(valid)) if valid.is_zero() => Reply::Error(Errno::ENOENT),
            Ok(Found::Absent(valid)) => negative_entry(valid),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn mknod(&self, parent: Ino, args: MknodIn, name: &[u8], cred: Cred) -> Reply {
        let rdev = match kind_of_mode(args.mode) {
            Some(Kind::Char | Kind::Block) => args.rdev,
            Some(Kind::File | Kind::Fifo | Kind::Socket) => 0,
            Some(Kind::Dir | Kind::Symlink) | None => return Reply::Error(Errno::EINVAL),
        };
        let kind = kind_of_mode(args.mode).unwrap_or(Kind::File);
        let new = NewInode {
            rdev,
            ..new_inode(kind, args.mode, cred)
        };
        self.fs.make(parent, name, new).await.into()
    }

    pub(super) async fn mkdir(&self, parent: Ino, args: MkdirIn, name: &[u8], cred: Cred) -> Reply {
        self.fs
            .make(parent, name, new_inode(Kind::Dir, args.mode, cred))
            .await
            .into()
    }

    pub(super) async fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        cred: Cred,
    ) -> Reply {
        if target.len() > SYMLINK_MAX {
            return Reply::Error(Errno::ENAMETOOLONG);
        }
        let target = target.to_vec();
        let new = NewInode {
            target,
            ..new_inode(Kind::Symlink, 0o777, cred)
        };
        self.fs.make(parent, name, new).await.into()
    }

    pub(super) async fn readlink(&self, ino: Ino) -> Reply {
        self.fs
            .readlink(ino)
            .await
            .map_or_else(Reply::Error, |target| Reply::raw(&target))
    }

    pub(super) async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Reply {
        match rename_mode(flags) {
            Ok(mode) => self
                .fs
                .rename(parent, name, new_parent, new_name, mode)
                .await
                .into(),
            Err(e) => Reply::Error(e),
        }
    }
}
