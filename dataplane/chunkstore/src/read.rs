//! Reading sealed chunks: straight into the caller's buffer, every block verified.

use crate::body::{ChunkBody, ChunkMeta};
use crate::crc::crc_block;
use crate::device::join;
use crate::error::StoreError;
use crate::header;
use crate::store::{Inner, Store};
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, BLOCK_U64, blocks_of};
use futures_util::future::join as join_two;
use futures_util::stream::{self, StreamExt};
use std::sync::Arc;

/// Pieces of one read that are under way at the same time.
const PIECES_IN_FLIGHT: usize = 32;

/// Consecutive blocks of a read: a hole, or consecutive on the device.
struct Piece {
    /// Block of the chunk.
    first: u32,
    blocks: u32,
    /// Block of the device.
    at: Option<u32>,
}

impl Store {
    /// The checksums of a chunk's blocks, from RAM or from its header.
    ///
    /// # Errors
    /// `Corrupt` when the header is not the chunk's: treat it as a miss and remove the chunk. `Device`.
    pub async fn meta(&self, body: &Arc<ChunkBody>) -> Result<Arc<ChunkMeta>, StoreError> {
        match self.cached_meta(body) {
            Some(meta) => Ok(meta),
            None => self.read_meta(body).await,
        }
    }

    /// The checksums, where they are in RAM.
    fn cached_meta(&self, body: &ChunkBody) -> Option<Arc<ChunkMeta>> {
        let header = body.header_extent().start;
        self.inner.pool.crcs.get(header, body.key())
    }

    /// The checksums, from the chunk's header.
    async fn read_meta(&self, body: &ChunkBody) -> Result<Arc<ChunkMeta>, StoreError> {
        let inner = &*self.inner;
        let at = body.header_extent();
        let buf = IoBuf::alloc(at.len as usize * BLOCK);
        let (result, buf) = inner.device.read(at.start, buf).await;
        result?;
        let found = header::decode(&buf, inner.journal.store, at.start).filter(|h| {
            h.facts.key == body.key()
                && h.facts.len == body.len()
                && h.facts.runs.as_slice() == body.runs()
        });
        let Some(found) = found else {
            inner.device.mismatch();
            return Err(header::corrupt(body.key(), at.start));
        };
        let meta = Arc::new(ChunkMeta { crcs: found.crcs });
        inner.pool.crcs.insert(at.start, body.key(), meta.clone());
        Ok(meta)
    }

    /// Reads whole blocks of a chunk from `first_block` on into `buf` (a multiple of 4096 long) and verifies each.
    /// Holes and what is past the chunk's end are zeros. The same buffer comes back, whatever happened; after an error
    /// its contents mean nothing.
    ///
    /// # Errors
    /// `Checksum` and `Corrupt`: treat it as a miss and remove the chunk. `Device`. `Invalid` for a buffer of broken
    /// length.
    pub async fn read(
        &self,
        body: &Arc<ChunkBody>,
        first_block: u32,
        buf: IoBuf,
    ) -> (Result<(), StoreError>, IoBuf) {
        let Ok(blocks) = u32::try_from(buf.len() / BLOCK) else {
            return (Err(StoreError::Invalid("a read is too long")), buf);
        };
        if buf.len() as u64 != u64::from(blocks) * BLOCK_U64
            || first_block.checked_add(blocks).is_none()
        {
            return (
                Err(StoreError::Invalid("a read is not of whole blocks")),
                buf,
            );
        }
        let mut pieces = pieces(body, first_block, blocks);
        let meta = match self.cached_meta(body) {
            Some(meta) => meta,
            // The header is read beside the data, not before it.
            None => match pieces.as_slice() {
                [Piece { at: Some(at), .. }] => {
                    let data = self.inner.device.read(*at, buf);
                    let (meta, (result, buf)) = join_two(self.read_meta(body), data).await;
                    let checked = meta.and_then(|meta| {
                        result.and_then(|()| self.inner.verify(body, &meta, first_block, &buf))
                    });
                    return (checked, buf);
                }
                _ => match self.read_meta(body).await {
                    Ok(meta) => meta,
                    Err(e) => return (Err(e), buf),
                },
            },
        };
        // The common case allocates nothing more.
        if pieces.len() == 1
            && let Some(piece) = pieces.pop()
        {
            return self.inner.read_piece(body, &meta, &piece, buf).await;
        }
        let mut rest = buf;
        let mut work = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let part = rest.split_to(piece.blocks as usize * BLOCK);
            work.push((piece, part));
        }
        let (inner, meta) = (&self.inner, &meta);
        let mut done = stream::iter(work)
            .map(|(piece, part)| async move { inner.read_piece(body, meta, &piece, part).await })
            .buffered(PIECES_IN_FLIGHT);
        let mut result = Ok(());
        let mut whole = None;
        while let Some((r, part)) = done.next().await {
            result = result.and(r);
            whole = Some(join(whole, part));
        }
        (result, join(whole, rest))
    }
}

/// What a read of `blocks` from `first` on is made of, in order.
fn pieces(body: &ChunkBody, first: u32, blocks: u32) -> Vec<Piece> {
    let end = first + blocks;
    let runs = body.runs();
    let mut at = first;
    let mut out = Vec::with_capacity(1);
    let from = runs.partition_point(|r| r.first + r.extent.len <= first);
    for run in &runs[from..] {
        if run.first >= end {
            break;
        }
        if run.first > at {
            out.push(Piece {
                first: at,
                blocks: run.first - at,
                at: None,
            });
            at = run.first;
        }
        let skip = at - run.first;
        let take = (run.extent.len - skip).min(end - at);
        out.push(Piece {
            first: at,
            blocks: take,
            at: Some(run.extent.start + skip),
        });
        at += take;
    }
    if at < end {
        out.push(Piece {
            first: at,
            blocks: end - at,
            at: None,
        });
    }
    out
}

impl Inner {
    async fn read_piece(
        &self,
        body: &ChunkBody,
        meta: &ChunkMeta,
        piece: &Piece,
        mut buf: IoBuf,
    ) -> (Result<(), StoreError>, IoBuf) {
        let Some(at) = piece.at else {
            buf.fill(0);
            return (Ok(()), buf);
        };
        let (result, buf) = self.device.read(at, buf).await;
        let checked = result.and_then(|()| self.verify(body, meta, piece.first, &buf));
        (checked, buf)
    }

    /// Verifies blocks of a chunk from `first` on.
    fn verify(
        &self,
        body: &ChunkBody,
        meta: &ChunkMeta,
        first: u32,
        blocks: &[u8],
    ) -> Result<(), StoreError> {
        debug_assert!(first as usize + blocks.len() / BLOCK <= blocks_of(body.len()) as usize);
        for (block, bytes) in (first..).zip(blocks.chunks_exact(BLOCK)) {
            if meta.crcs.get(block as usize) != Some(&crc_block(bytes)) {
                self.device.mismatch();
                let key = body.key();
                return Err(StoreError::Checksum { key, block });
            }
        }
        Ok(())
    }
}
