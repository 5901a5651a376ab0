//! Reads of a chunk that is being written.

use super::{Closed, OpenChunk, Slot, device_error, join, to_u32};
use crate::{FileSystem, Result, lock};
use fastcache_api::Errno;
use fastcache_chunkstore::crc_block;
use fastcache_reactor::IoBuf;
use fastcache_types::BLOCK;

/// Times a read that met a changed block is tried again before it is an error.
const READ_TRIES: usize = 4;

impl FileSystem {
    /// Fills `buf` (whole blocks) from block `first` on. `Err(Closed)` asks the caller to look the chunk up again.
    pub(crate) async fn read_open(
        &self,
        chunk: &OpenChunk,
        first: usize,
        mut buf: IoBuf,
    ) -> (Result<std::result::Result<(), Closed>>, IoBuf) {
        let end = first + buf.len() / BLOCK;
        for _ in 0..READ_TRIES {
            let slots = loop {
                let listener = chunk.changed.listen();
                let must_flush = {
                    let state = lock(&chunk.state);
                    if state.is_closed {
                        return (Ok(Err(Closed)), buf);
                    }
                    if let Some(g) = &state.gather
                        && g.start <= first * BLOCK
                        && g.end >= (end * BLOCK).min(state.len)
                    {
                        let at = first * BLOCK - g.start;
                        let n = buf.len().min((g.end - g.start).saturating_sub(at));
                        if n > 0 {
                            buf[..n].copy_from_slice(&g.buf[at..at + n]);
                        }
                        buf[n..].fill(0);
                        return (Ok(Ok(())), buf);
                    }
                    if state.is_busy(first, end) {
                        false
                    } else if state.gather_overlaps(first, end) {
                        true
                    } else {
                        break (first..end).map(|b| state.slot(b)).collect::<Vec<_>>();
                    }
                };
                if must_flush {
                    if let Err(e) = self.flush_gather(chunk).await {
                        return (Err(e), buf);
                    }
                } else {
                    listener.await;
                }
            };
            let (result, back) = self.read_slots(&slots, buf).await;
            buf = back;
            match result {
                Err(e) => return (Err(e), buf),
                Ok(true) => return (Ok(Ok(())), buf),
                // A block was given up and used again between the look and the read.
                Ok(false) => {}
            }
        }
        tracing::error!(target: "nvme", ino = %chunk.ino, index = chunk.index, "an open chunk's checksum does not match");
        (Err(Errno::EIO), buf)
    }

    /// Reads what the slots name; `false` when a checksum does not match.
    async fn read_slots(&self, slots: &[Slot], mut buf: IoBuf) -> (Result<bool>, IoBuf) {
        let mut reads = Vec::new();
        let mut at = 0;
        while at < slots.len() {
            let dev = slots[at].dev;
            let mut n = 1;
            while at + n < slots.len()
                && (dev == Slot::HOLE && slots[at + n].dev == Slot::HOLE
                    || dev != Slot::HOLE && slots[at + n].dev == dev + to_u32(n))
            {
                n += 1;
            }
            let mut piece = buf.split_to(n * BLOCK);
            let store = self.inner.store.clone();
            reads.push(async move {
                if dev == Slot::HOLE {
                    piece.fill(0);
                    return (Ok(()), piece);
                }
                store.read_blocks(dev, piece).await
            });
            at += n;
        }
        let done = futures_util::future::join_all(reads).await;
        let (result, buf) = join(
            done.into_iter()
                .map(|(r, b)| (r.map_err(|e| device_error(&e)), b)),
            buf,
        );
        let is_right = result.is_ok()
            && buf
                .chunks_exact(BLOCK)
                .zip(slots)
                .all(|(b, s)| s.dev == Slot::HOLE || crc_block(b) == s.crc);
        (result.map(|()| is_right), buf)
    }
}
