//! The read path: which chunks, where each is, one device read into the request's own buffer, verified.

use crate::fetch::Local;
use crate::inode::Inode;
use crate::lease::Asked;
use crate::open_chunk::{OpenChunk, join};
use crate::write::locate;
use crate::{FileSystem, Result, count, lock};
use fastcache_api::{ChunkKey, Errno, Ino, Version};
use fastcache_reactor::{IoBuf, now, sleep};
use fastcache_types::{BLOCK, ChunkId};
use std::sync::Arc;
use std::time::Duration;

/// Times a chunk that changes under a reader is looked up again.
pub(crate) const LOOK_TRIES: usize = 64;

/// How long a file that another node changes under a reader is looked at again. What is looked at stays where it is until this
/// node's kernel has it, but for what was made ahead of its commit.
const REVOKED_MAX: Duration = Duration::from_secs(10);
/// Pause before it is: what fails at once must not take the core.
const REVOKED_PAUSE: Duration = Duration::from_millis(2);

/// Where a chunk's bytes are, as the inode says now.
enum Source {
    Hole,
    Open(Arc<OpenChunk>),
    Sealed(Version, u32),
}

impl FileSystem {
    /// Reads up to `len` bytes from `offset` on into `buf` (block-aligned memory, at least `len` rounded up to whole
    /// blocks). Answers how many bytes there were.
    pub async fn read(
        &self,
        ino: Ino,
        _fh: u64,
        offset: u64,
        len: usize,
        mut buf: IoBuf,
    ) -> (Result<usize>, IoBuf) {
        let mut until = None;
        loop {
            let asked = self.inner.lease.ask();
            let (result, back) = self.read_once(ino, offset, len, buf).await;
            if result.is_ok() {
                return (result, back);
            }
            let in_conflict = self.in_conflict(ino);
            if in_conflict.is_none() && !self.was_revoked(ino, asked) {
                return (result, back);
            }
            if now() >= *until.get_or_insert_with(|| now() + REVOKED_MAX) {
                return (result, back);
            }
            sleep(REVOKED_PAUSE).await;
            if let Some(inode) = in_conflict {
                // Then it is what another node wrote.
                let _ = self.conflict_over(&inode).await;
            }
            buf = back;
        }
    }

    /// A file of which a commit was refused, while what was written here is saved: what its layout names may be nowhere any more.
    fn in_conflict(&self, ino: Ino) -> Option<Arc<Inode>> {
        let inode = self.inner.inodes.get(ino)?;
        let is_conflict = lock(&inode.state).is_conflict;
        is_conflict.then_some(inode)
    }

    /// Whether another node changed a file since then: what its layout named may be nowhere any more. It may have been looked at
    /// anew since, for somebody else.
    fn was_revoked(&self, ino: Ino, asked: Asked) -> bool {
        let inode = self.inner.inodes.get(ino).filter(|_| self.is_shared());
        inode.is_some_and(|inode| {
            self.inner.lease.is_revoked_since(asked, ino) || !self.is_trusted(&lock(&inode.state))
        })
    }

    async fn read_once(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
        buf: IoBuf,
    ) -> (Result<usize>, IoBuf) {
        let inode = match self.with_layout(ino, false).await {
            Ok(inode) => inode,
            Err(e) => return (Err(e), buf),
        };
        let (n, chunk_size, next) = {
            let mut state = lock(&inode.state);
            let Some((size, chunk_size)) = state.attr.as_ref().map(|a| (a.size, a.chunk_size))
            else {
                return (Err(Errno::ESTALE), buf);
            };
            if offset.saturating_add(len as u64) > size {
                state.pages.read_to_end(size);
            }
            if offset >= size || len == 0 || chunk_size == 0 {
                return (Ok(0), buf);
            }
            let n = usize::try_from(size - offset)
                .unwrap_or(usize::MAX)
                .min(len);
            let next = state.streams.read(offset, n as u64, size, chunk_size);
            (n, chunk_size, next)
        };
        if !next.is_empty() {
            self.read_ahead(&inode, next);
        }
        let skip = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
        let span = (skip + n).next_multiple_of(BLOCK);
        if span > buf.len() || !buf.is_aligned() {
            // The first block starts before the offset and the buffer has no room for that: read beside it and copy.
            let side = IoBuf::alloc(span);
            let (result, side) = self
                .read_span(&inode, offset - skip as u64, side, chunk_size)
                .await;
            let mut buf = buf;
            if result.is_ok() {
                buf[..n].copy_from_slice(&side[skip..skip + n]);
            }
            return (result.map(|()| n), buf);
        }
        let mut buf = buf;
        let rest = buf.split_off(span);
        let (result, mut buf) = self
            .read_span(&inode, offset - skip as u64, buf, chunk_size)
            .await;
        if skip > 0 && result.is_ok() {
            buf.copy_within(skip..skip + n, 0);
        }
        assert!(
            rest.is_empty() || buf.unsplit(rest).is_ok(),
            "two halves of one buffer"
        );
        (result.map(|()| n), buf)
    }

    /// Fills `buf` (whole blocks) from the block-aligned `offset` on.
    pub(crate) async fn read_span(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        mut buf: IoBuf,
        chunk_size: u32,
    ) -> (Result<()>, IoBuf) {
        let (index, within) = match locate(offset, chunk_size) {
            Ok(place) => place,
            Err(e) => return (Err(e), buf),
        };
        if within + buf.len() <= chunk_size as usize {
            return self.read_chunk(inode, index, within, buf).await;
        }
        let mut pieces = Vec::new();
        let (mut index, mut within) = (index, within);
        while !buf.is_empty() {
            let piece = buf.split_to(buf.len().min(chunk_size as usize - within));
            pieces.push(self.read_chunk(inode, index, within, piece));
            index += 1;
            within = 0;
        }
        join(
            futures_util::future::join_all(pieces).await.into_iter(),
            buf,
        )
    }

    /// Fills `buf` from offset `within` (whole blocks) of one chunk.
    pub(crate) async fn read_chunk(
        &self,
        inode: &Arc<Inode>,
        index: u32,
        within: usize,
        mut buf: IoBuf,
    ) -> (Result<()>, IoBuf) {
        for _ in 0..LOOK_TRIES {
            let source = {
                let state = lock(&inode.state);
                if let Some(chunk) = state.open_chunks.get(&index) {
                    Source::Open(Arc::clone(chunk))
                } else {
                    let chunk_size = state.attr.as_ref().map_or(1 << 22, |a| a.chunk_size);
                    match state.layout.as_ref().map(|l| l.chunk(index, chunk_size)) {
                        Some(Some((version, valid))) => Source::Sealed(version, valid),
                        Some(None) => Source::Hole,
                        None => return (Err(Errno::ESTALE), buf),
                    }
                }
            };
            match source {
                Source::Hole => {
                    buf.fill(0);
                    return (Ok(()), buf);
                }
                Source::Open(chunk) => {
                    let (result, back) = self.read_open(&chunk, within / BLOCK, buf).await;
                    buf = back;
                    match result {
                        Ok(Ok(())) => return (Ok(()), buf),
                        Ok(Err(_closed)) => {}
                        Err(e) => return (Err(e), buf),
                    }
                }
                Source::Sealed(version, valid) => {
                    let id = ChunkId {
                        ino: inode.ino,
                        index,
                    };
                    let (result, back) = self.read_sealed(id, version, within, buf).await;
                    buf = back;
                    match result {
                        Ok(()) => {
                            zero_beyond(&mut buf, within, valid as usize);
                            return (Ok(()), buf);
                        }
                        Err(e) => {
                            let now = {
                                let state = lock(&inode.state);
                                let chunk_size =
                                    state.attr.as_ref().map_or(1 << 22, |a| a.chunk_size);
                                state
                                    .layout
                                    .as_ref()
                                    .and_then(|l| l.chunk(index, chunk_size))
                            };
                            // The version went away because a newer one took its place: look again.
                            if now.is_some_and(|(v, _)| v == version) {
                                return (Err(e), buf);
                            }
                        }
                    }
                }
            }
        }
        (Err(Errno::EIO), buf)
    }

    /// Reads one version of a chunk: from the store, else from the next tier.
    async fn read_sealed(
        &self,
        id: ChunkId,
        version: Version,
        within: usize,
        buf: IoBuf,
    ) -> (Result<()>, IoBuf) {
        let Ok(first) = u32::try_from(within / BLOCK) else {
            return (Err(Errno::EFBIG), buf);
        };
        let mut buf = buf;
        self.read_of_ahead(id);
        let key = ChunkKey {
            ino: id.ino,
            index: id.index,
            version,
        };
        if within == 0 && self.inner.first_read.take(key, &mut buf).await {
            self.count_hit(id, buf.len());
            return (Ok(()), buf);
        }
        if let Some(body) = self.inner.store.get(id)
            && body.key().version == version
        {
            let (result, back) = self.inner.store.read(&body, first, buf).await;
            buf = back;
            match result {
                Ok(()) => {
                    self.count_hit(id, buf.len());
                    return (Ok(()), buf);
                }
                Err(error) => {
                    let was_dropped = self.drop_unreadable(&body, &error).await;
                    if !was_dropped {
                        return (Err(Errno::EIO), buf);
                    }
                }
            }
        }
        // Kept until the flight was joined.
        let _seat = match self.read_part(key, within, &mut buf).await {
            Ok(()) => return (Ok(()), buf),
            Err(seat) => seat,
        };
        count(&self.inner.counters.misses, 1);
        self.read_fetched(id, version, within, buf).await
    }

    /// A chunk was read from the store.
    fn count_hit(&self, id: ChunkId, bytes: usize) {
        let hits = self.inner.counters.hits.mine();
        count(&hits.reads, 1);
        count(&hits.bytes, bytes as u64);
        self.inner.space.accessed(id);
    }

    /// This version of a chunk, when it is in the store and can be read; for writers, who need it there.
    pub(crate) async fn chunk_here(&self, id: ChunkId, version: Version) -> Result<Option<Local>> {
        let Some(body) = self.inner.store.get(id) else {
            return Ok(None);
        };
        if body.key().version != version {
            return Ok(None);
        }
        match self.inner.store.meta(&body).await {
            Ok(meta) => Ok(Some(Local { body, meta })),
            Err(error) if self.drop_unreadable(&body, &error).await => Ok(None),
            Err(_) => Err(Errno::EIO),
        }
    }
}

/// Zeros what of `buf`, which starts at `within` of the chunk, lies beyond its valid bytes.
fn zero_beyond(buf: &mut IoBuf, within: usize, valid: usize) {
    let from = valid.saturating_sub(within).min(buf.len());
    buf[from..].fill(0);
}
