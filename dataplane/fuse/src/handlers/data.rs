//! READ, WRITE, FALLOCATE, LSEEK, COPY_FILE_RANGE.

use super::Handlers;
use crate::reply::Reply;
use crate::wire::flags::WRITE_KILL_SUIDGID;
use crate::wire::{
    CopyFileRangeIn, CopyFileRangeOut, FallocateIn, LseekIn, LseekOut, ReadIn, WriteIn, WriteOut,
};
use fastcache_api::{Cred, Errno, Ino};
use fastcache_reactor::IoBuf;
use fastcache_types::BLOCK;

/// The most that one COPY_FILE_RANGE copies, bytes: a process that is killed waits for no more than this, and whole
/// pages keep the next one aligned. Copies are short on every file system; programs go on.
const COPY_MAX: u64 = 64 << 20;
const _: () = assert!(COPY_MAX <= u32::MAX as u64 && COPY_MAX.is_multiple_of(BLOCK as u64));

impl Handlers {
    /// Whether a change of contents by this caller clears setuid and setgid where the request does not say so
    /// (FALLOCATE, COPY_FILE_RANGE): anybody's but root's. Capabilities are not told.
    fn kills_suid(&self, cred: Cred) -> bool {
        self.negotiated.handles_killpriv() && cred.uid != 0
    }

    pub(super) async fn read(&self, ino: Ino, args: ReadIn, payload: &mut Option<IoBuf>) -> Reply {
        let len = args.size as usize;
        let Some(room) = payload
            .take()
            .filter(|p| p.len() >= len.next_multiple_of(BLOCK))
        else {
            return Reply::Error(Errno::EINVAL);
        };
        let (result, filled) = self.fs.read(ino, args.fh, args.offset, len, room).await;
        *payload = Some(filled);
        match result {
            Ok(got) => {
                assert!(
                    got <= len,
                    "{got} bytes were read where {len} were asked for"
                );
                Reply::Payload(got)
            }
            Err(e) => Reply::Error(e),
        }
    }

    /// Waits until so many bytes of a file may be written; see [`fastcache_cache::FileSystem::await_dirty_room`].
    pub(crate) async fn await_room(&self, ino: Ino, bytes: u32) -> Result<(), Errno> {
        self.fs.await_dirty_room(ino, u64::from(bytes)).await
    }

    pub(super) async fn write(
        &self,
        ino: Ino,
        args: WriteIn,
        payload: &mut Option<IoBuf>,
    ) -> Reply {
        let Some(data) = payload.take().filter(|p| p.len() == args.size as usize) else {
            return Reply::Error(Errno::EINVAL);
        };
        let kill_suid = args.write_flags & WRITE_KILL_SUIDGID != 0;
        let is_append = args.flags & libc::O_APPEND.cast_unsigned() != 0;
        let (result, data) = if is_append {
            self.fs
                .append(ino, args.fh, args.offset, data, kill_suid)
                .await
        } else {
            self.fs
                .write(ino, args.fh, args.offset, data, kill_suid)
                .await
        };
        *payload = Some(data);
        match result {
            Ok(size) => Reply::of(&WriteOut { size, padding: 0 }),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn fallocate(&self, ino: Ino, args: FallocateIn, cred: Cred) -> Reply {
        let mode = args.mode.cast_signed();
        let kill_suid = self.kills_suid(cred);
        self.fs
            .fallocate(ino, args.fh, mode, args.offset, args.length, kill_suid)
            .await
            .into()
    }

    pub(super) async fn lseek(&self, ino: Ino, args: LseekIn) -> Reply {
        match self.fs.lseek(ino, args.fh, args.offset, args.whence).await {
            Ok(offset) => Reply::of(&LseekOut { offset }),
            Err(e) => Reply::Error(e),
        }
    }

    pub(super) async fn copy_file_range(
        &self,
        ino: Ino,
        args: CopyFileRangeIn,
        is_64: bool,
        cred: Cred,
    ) -> Reply {
        if args.flags != 0 {
            return Reply::Error(Errno::EINVAL);
        }
        let out = Ino(args.nodeid_out);
        let len = args.len.min(COPY_MAX);
        match self
            .fs
            .copy_file_range(
                ino,
                args.off_in,
                out,
                args.off_out,
                len,
                self.kills_suid(cred),
            )
            .await
        {
            Ok(bytes_copied) if is_64 => Reply::of(&CopyFileRangeOut { bytes_copied }),
            Ok(copied) => match u32::try_from(copied) {
                Ok(size) => Reply::of(&WriteOut { size, padding: 0 }),
                Err(_) => Reply::Error(Errno::EIO),
            },
            Err(e) => Reply::Error(e),
        }
    }
}
