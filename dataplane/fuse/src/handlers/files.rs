//! OPEN, CREATE, FSYNC.

use super::Handlers;
use crate::reply::{Reply, entry_out};
use crate::wire::flags::{FSYNC_FDATASYNC, OPEN_KILL_SUIDGID, fopen};
use crate::wire::{CreateIn, FsyncIn, OpenIn, OpenOut};
use fastcache_api::{Cred, Ino};
use fastcache_cache::Opened;

/// The answer to an open with these flags of open(2).
pub(crate) fn open_out(opened: &Opened, flags: u32) -> OpenOut {
    let mut open_flags = fopen::PARALLEL_DIRECT_WRITES;
    if opened.keep_cache {
        open_flags |= fopen::KEEP_CACHE;
    }
    if opened.is_direct {
        open_flags |= fopen::DIRECT_IO;
    }
    if flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned() {
        // Nothing can have been written through it: its close needs no request but RELEASE.
        open_flags |= fopen::NOFLUSH;
    }
    OpenOut {
        fh: opened.fh,
        open_flags,
        backing_id: 0,
    }
}

impl Handlers {
    /// Where locks are asked for here, the kernel gives them up with FLUSH, also of a file that was only read.
    fn with_flush(&self, mut out: OpenOut) -> OpenOut {
        if self.negotiated.has_remote_locks() {
            out.open_flags &= !fopen::NOFLUSH;
        }
        out
    }

    pub(super) async fn open(&self, ino: Ino, args: OpenIn) -> Reply {
        let kill_suid = args.open_flags & OPEN_KILL_SUIDGID != 0;
        match self.fs.open(ino, args.flags, kill_suid).await {
            Ok(opened) => {
                let reply = Reply::of(&self.with_flush(open_out(&opened, args.flags)));
                match opened.is_being_read {
                    true => reply.and_more(),
                    false => reply,
                }
            }
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn create(
        &self,
        parent: Ino,
        args: CreateIn,
        name: &[u8],
        cred: Cred,
    ) -> Reply {
        match self
            .fs
            .create(parent, name, args.mode & 0o7777, cred, args.flags)
            .await
        {
            Ok((entry, opened)) => Reply::of_two(
                &entry_out(&entry.attr, entry.entry_valid, entry.attr_valid),
                &self.with_flush(open_out(&opened, args.flags)),
            ),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn fsync(&self, ino: Ino, args: FsyncIn) -> Reply {
        self.fs
            .fsync(ino, args.fh, args.fsync_flags & FSYNC_FDATASYNC != 0)
            .await
            .into()
    }
}
