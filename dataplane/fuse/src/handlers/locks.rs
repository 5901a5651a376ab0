//! GETLK, SETLK, SETLKW, and the locks that FLUSH and RELEASE give up. They come only where other nodes may lock, too: else
//! the kernel's own locks are right, and cost no request.

use super::Handlers;
use crate::reply::Reply;
use crate::wire::flags::{LK_FLOCK, RELEASE_FLOCK_UNLOCK};
use crate::wire::{FlushIn, LkIn, LkOut, ReleaseIn};
use fastcache_api::locks::{LOCK_END, Lock};
use fastcache_api::{Errno, Ino};

const READ: u32 = libc::F_RDLCK.cast_unsigned();
const WRITE: u32 = libc::F_WRLCK.cast_unsigned();
const UNLOCK: u32 = libc::F_UNLCK.cast_unsigned();

/// The lock of a request; its kind is in `args.kind`.
fn lock_of(args: &LkIn) -> Result<Lock, Errno> {
    if args.kind > UNLOCK || args.start > args.end {
        return Err(Errno::EINVAL);
    }
    Ok(Lock {
        owner: args.owner,
        is_flock: args.lk_flags & LK_FLOCK != 0,
        start: args.start,
        end: args.end.min(LOCK_END),
        is_exclusive: args.kind == WRITE,
        pid: args.pid,
    })
}

impl Handlers {
    pub(super) async fn getlk(&self, ino: Ino, args: LkIn) -> Reply {
        let asked = match lock_of(&args) {
            Ok(lock) => lock,
            Err(e) => return Reply::Error(e),
        };
        match self.fs.test_lock(ino, asked).await {
            Ok(None) => Reply::of(&LkOut {
                start: args.start,
                end: args.end,
                kind: UNLOCK,
                pid: 0,
            }),
            Ok(Some(held)) => Reply::of(&LkOut {
                start: held.start,
                end: held.end,
                kind: if held.is_exclusive { WRITE } else { READ },
                pid: held.pid,
            }),
            Err(e) => Reply::Error(e),
        }
    }

    /// `waits`: the number of a request that waits for the lock.
    pub(super) async fn setlk(&self, ino: Ino, args: LkIn, waits: Option<u64>) -> Reply {
        let lock = match lock_of(&args) {
            Ok(lock) => lock,
            Err(e) => return Reply::Error(e),
        };
        if args.kind == UNLOCK {
            return self.fs.unlock(ino, lock).await.into();
        }
        self.fs.note_lock(args.fh, &lock);
        self.fs.set_lock(ino, lock, waits).await.into()
    }

    pub(super) async fn flush(&self, ino: Ino, args: FlushIn) -> Reply {
        let flushed = self.fs.flush(ino, args.fh).await;
        // Any close of a process gives up its fcntl locks on the file, whatever else the close says.
        match self.fs.unlock_all(ino, args.lock_owner, false).await {
            Ok(()) => flushed.into(),
            Err(error) => {
                tracing::warn!(target: "fuse", %ino, %error, "locks of a closed file are not given up yet: that is tried again");
                flushed.into()
            }
        }
    }

    pub(super) async fn release(&self, ino: Ino, args: ReleaseIn) -> Reply {
        let mut owners = self.fs.locks_of_handle(args.fh);
        if args.release_flags & RELEASE_FLOCK_UNLOCK != 0 {
            owners.push((args.lock_owner, true));
        }
        for (owner, is_flock) in owners {
            if let Err(error) = self.fs.unlock_all(ino, owner, is_flock).await {
                tracing::warn!(target: "fuse", %ino, %error, "locks of a closed file are not given up yet: that is tried again");
            }
        }
        self.fs.release(ino, args.fh).await.into()
    }

    /// A signal came for whoever waits for this request: a wait for a lock ends.
    pub(crate) fn interrupt(&self, unique: u64) {
        if self.negotiated.has_remote_locks() {
            self.fs.interrupt_lock(unique);
        }
    }
}
