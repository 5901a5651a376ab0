//! From a request to its answer: decode, call the file system, encode. No file system logic, no descriptors.
//!
//! A transport takes the request apart ([`crate::request`]), keeps its buffer and its descriptor, and calls
//! [`Handlers::handle`]; so every transport has the same handlers. The payload is the one buffer that passes
//! through: the data of a WRITE, the room for a READ.

mod attributes;
mod data;
mod directories;
mod files;
mod locks;
mod names;
mod take_back;
mod xattrs;

#[cfg(test)]
pub(crate) mod meaning {
    //! What flags are taken to mean, for the tests.
    pub(crate) use super::attributes::set_attr_of;
    pub(crate) use super::files::open_out;
    pub(crate) use super::names::rename_mode;
    pub(crate) use super::xattrs::{sized, xattr_mode};
}

use crate::handshake::Negotiated;
use crate::opcode;
use crate::reply::Reply;
use crate::request::{Op, forgets};
use crate::wire::InHeader;
use fastcache_api::{Cred, Errno, Ino};
use fastcache_cache::FileSystem;
use fastcache_reactor::IoBuf;
use fastcache_reactor::watch::labelled;

/// ENOTTY: no such ioctl.
const ENOTTY: i32 = libc::ENOTTY;

/// Answers requests from a file system.
#[derive(Clone)]
pub struct Handlers {
    fs: FileSystem,
    negotiated: Negotiated,
}

impl Handlers {
    /// Handlers over `fs` for a mount where this was agreed on.
    #[must_use]
    pub fn new(fs: FileSystem, negotiated: Negotiated) -> Handlers {
        Handlers { fs, negotiated }
    }

    /// Answers one request. `payload` holds the data of a WRITE (exactly its bytes, page-aligned), or the room for a
    /// READ (page-aligned, at least as long as asked for, rounded up to a page); it is there again afterwards
    /// unless the handler had no use for it any more.
    pub async fn handle(
        &self,
        header: &InHeader,
        op: Op<'_>,
        payload: &mut Option<IoBuf>,
    ) -> Reply {
        opcode::count(header.opcode);
        let began = std::time::Instant::now();
        let reply = labelled(header.opcode, self.answer(header, op, payload)).await;
        opcode::took(header.opcode, began.elapsed());
        reply
    }

    async fn answer(&self, header: &InHeader, op: Op<'_>, payload: &mut Option<IoBuf>) -> Reply {
        let ino = Ino(header.nodeid);
        let cred = Cred {
            uid: header.uid,
            gid: header.gid,
        };
        match op {
            Op::Read(args) => self.read(ino, args, payload).await,
            Op::Write(args) => self.write(ino, args, payload).await,
            Op::Lookup { name } => self.lookup(ino, name).await,
            Op::Getattr(_) => self.getattr(ino).await,
            Op::Open(args) => self.open(ino, args).await,
            Op::Release(args) => self.release(ino, args).await,
            Op::Flush(args) => self.flush(ino, args).await,
            Op::Getlk(args) => self.getlk(ino, args).await,
            Op::Setlk { args, waits } => {
                self.setlk(ino, args, waits.then_some(header.unique)).await
            }
            Op::Create { args, name } => self.create(ino, args, name, cred).await,
            Op::Forget(args) => {
                self.fs.forget(ino, args.nlookup);
                Reply::Silent
            }
            Op::BatchForget { pairs } => {
                for one in forgets(pairs) {
                    self.fs.forget(Ino(one.nodeid), one.nlookup);
                }
                Reply::Silent
            }
            Op::Setattr(args) => self.setattr(ino, args).await,
            Op::Readlink => self.readlink(ino).await,
            Op::Symlink { name, target } => self.symlink(ino, name, target, cred).await,
            Op::Mknod { args, name } => self.mknod(ino, args, name, cred).await,
            Op::Mkdir { args, name } => self.mkdir(ino, args, name, cred).await,
            Op::Unlink { name } => self.fs.unlink(ino, name).await.into(),
            Op::Rmdir { name } => self.fs.rmdir(ino, name).await.into(),
            Op::Rename {
                new_parent,
                flags,
                name,
                new_name,
            } => {
                self.rename(ino, name, Ino(new_parent), new_name, flags)
                    .await
            }
            Op::Link { ino: old, name } => self.fs.link(Ino(old), ino, name).await.into(),
            Op::Statfs => self.statfs().await,
            Op::Fsync(args) => self.fsync(ino, args).await,
            Op::Setxattr { flags, name, value } => self.setxattr(ino, name, value, flags).await,
            Op::Getxattr { size, name } => self.getxattr(ino, name, size).await,
            Op::Listxattr { size } => self.listxattr(ino, size).await,
            Op::Removexattr { name } => self.removexattr(ino, name).await,
            Op::Opendir(_) => self.opendir(ino).await,
            Op::Readdir(args) => self.readdir(ino, args, false).await,
            Op::Readdirplus(args) => self.readdir(ino, args, true).await,
            Op::Releasedir(_) => Reply::Done,
            Op::Fsyncdir(_) => self.fs.fsyncdir(ino).await.into(),
            // With default_permissions the kernel checks by itself and does not ask.
            Op::Access(_) => Reply::Done,
            Op::Fallocate(args) => self.fallocate(ino, args, cred).await,
            Op::Lseek(args) => self.lseek(ino, args).await,
            Op::CopyFileRange { args, is_64 } => self.copy_file_range(ino, args, is_64, cred).await,
            Op::Syncfs => self.fs.sync_all().await.into(),
            // The transport knows the requests in work.
            Op::Interrupt(_) => Reply::Silent,
            Op::Destroy => Reply::Done,
            Op::Ioctl => Reply::Error(Errno::from_code(ENOTTY)),
            // The transport answers INIT before it serves; a second one is a broken kernel.
            Op::Init(_) => Reply::Error(Errno::EIO),
            // The kernel remembers ENOSYS and does by itself what can be done without.
            Op::Unsupported(number) => {
                tracing::debug!(target: "fuse", opcode = number, "not served");
                Reply::Error(Errno::ENOSYS)
            }
        }
    }
}
