//! Bytes of files through the data plane, for REST and the command line.

use super::Node;
use crate::link::{self, unexpected};
use bytes::Bytes;
use fastcache_api::control::{DataAnswer, DataCall, SLOT_BYTES};
use fastcache_api::{Errno, Ino};

impl Node {
    /// Bytes of a file through all tiers: at most `len` (and at most 4 MiB), fewer at the end, none past it.
    pub async fn read_file(&self, ino: Ino, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let len = len.min(u32::try_from(SLOT_BYTES).unwrap_or(u32::MAX));
        let link = &self.inner.link;
        let mut is_again = false;
        let slot = loop {
            let session = link.session(link::RECONNECT_WAIT).await?;
            let call = DataCall::ReadFile { ino, offset, len };
            match session.call_for_slot(session.lane_of(ino), call).await {
                Err(Errno::ENOTCONN) if !is_again => {
                    is_again = true;
                    link.left(&session).await;
                }
                Err(Errno::ENOTCONN) => return Err(Errno::EIO),
                done => break done?,
            }
        };
        if slot.len > len {
            return Err(Errno::EIO);
        }
        Ok(Bytes::from(slot.copy_out()?))
    }

    /// Writes bytes (at most 4 MiB a call) into a file, as an application would. Visible after [`Node::seal`].
    /// Not tried again when the data plane breaks: what was written before is lost with it, so the caller
    /// starts over.
    pub async fn write_file(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if data.len() > SLOT_BYTES {
            return Err(Errno::EINVAL);
        }
        let broken = |errno| {
            if errno == Errno::ENOTCONN {
                Errno::EIO
            } else {
                errno
            }
        };
        let session = self.inner.link.session(link::RECONNECT_WAIT).await?;
        let lane = session.lane_of(ino);
        let empty = session
            .call_for_slot(lane, DataCall::TakeSlot)
            .await
            .map_err(broken)?;
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let write = || {
            let slot = empty.fill(data)?;
            Ok(DataCall::WriteFile {
                ino,
                offset,
                slot,
                len,
            })
        };
        match session.call_made(lane, write).await.map_err(broken)? {
            DataAnswer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Seals and commits what was written, of one file or all, as `close` would; with `is_durable` as `fsync` of
    /// level `local` would. When it returns, the persist queue knows what became dirty by it.
    pub async fn seal(&self, ino: Option<Ino>, is_durable: bool) -> Result<(), Errno> {
        let link = &self.inner.link;
        link.tell(ino, DataCall::Seal { ino, is_durable }).await?;
        if ino.is_none()
            && let Some(session) = link.current()
        {
            // News of other lanes may still be under way: an answer on each lane is behind them.
            for lane in 0..session.lane_count() {
                let _ = session.call(lane, DataCall::Stats).await;
            }
        }
        Ok(())
    }

    /// Gives up a file that was made without a name and will not get one: its chunks and its inode go, now or when
    /// the data plane is back (which drops the nameless of the run before).
    pub async fn abandon(&self, ino: Ino) -> Result<(), Errno> {
        self.inner
            .link
            .tell(Some(ino), DataCall::Abandon { ino })
            .await
    }
}
