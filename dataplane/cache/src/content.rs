//! Operations on contents that are neither reads nor writes: truncation, holes, seeking data, copying ranges.

use crate::inode::Inode;
use crate::open_chunk::OpenChunk;
use crate::read::LOOK_TRIES;
use crate::write::{At, attr_of, locate};
use crate::{FileSystem, Result, lock};
use fastcache_api::{Errno, FILE_SIZE_MAX, Ino, Run, Version};
use fastcache_reactor::IoBuf;
use fastcache_types::{BLOCK, ChunkId, REQUEST_MAX};
use std::sync::Arc;

const FALLOC_KEEP_SIZE: i32 = 1;
const FALLOC_PUNCH_HOLE: i32 = 2;
const FALLOC_ZERO_RANGE: i32 = 16;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl FileSystem {
    /// truncate(2): the size changes, and is committed when nobody has the file open; where there are other nodes, whenever
    /// it was not done through an open file.
    pub(crate) async fn set_size(
        &self,
        ino: Ino,
        size: u64,
        kill_suid: bool,
        is_by_name: bool,
    ) -> Result<()> {
        let inode = self.inner.inodes.get_or_insert(ino);
        {
            let _turn = self.turn_to_write(&inode).await?;
            if !Self::is_file(&inode) {
                return Err(Errno::EINVAL);
            }
            self.truncate_open(&inode, size, kill_suid).await?;
        }
        let is_done = is_by_name && self.is_shared();
        if is_done || lock(&inode.state).opens == 0 {
            self.seal_file(&inode, false).await?;
            self.commits_done(&inode).await?;
        }
        Ok(())
    }

    /// Changes the size of a file whose layout is loaded; the change is committed with the next seal.
    pub(crate) async fn truncate_open(
        &self,
        inode: &Arc<Inode>,
        size: u64,
        kill_suid: bool,
    ) -> Result<()> {
        if size > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        self.stop_ahead(inode);
        let _one_at_a_time = inode.seal_lock.lock().await;
        let attr = attr_of(inode)?;
        if size < attr.size {
            let keep = size.div_ceil(u64::from(attr.chunk_size));
            let keep = u32::try_from(keep).map_err(|_| Errno::EFBIG)?;
            let beyond: Vec<Arc<OpenChunk>> = lock(&inode.state)
                .open_chunks
                .range(keep..)
                .map(|(_, c)| Arc::clone(c))
                .collect();
            let rest = locate(size, attr.chunk_size)?.1;
            if rest > 0 {
                let boundary = lock(&inode.state).open_chunks.get(&(keep - 1)).cloned();
                if let Some(chunk) = boundary {
                    self.trim(&chunk, rest).await?;
                }
            }
            // Behind what may fail: then the file is as long as before, and what was written beyond is still in it.
            for chunk in &beyond {
                self.discard(chunk).await;
                lock(&inode.state).open_chunks.remove(&chunk.index);
            }
            let mut state = lock(&inode.state);
            if let Some(layout) = &mut state.layout {
                layout.truncate(size, attr.chunk_size);
            }
            state.unsealed.truncate = Some(state.unsealed.truncate.map_or(size, |t| t.min(size)));
            let rest = u32::try_from(rest).unwrap_or(attr.chunk_size);
            cut_runs(
                &mut state.unsealed.runs,
                keep,
                if rest > 0 { Some(rest) } else { None },
            );
        }
        let mut state = lock(&inode.state);
        if let Some(attr) = &mut state.attr {
            attr.size = size;
        }
        let is_killed = state.touch(kill_suid);
        drop(state);
        if is_killed {
            self.mode_changed(inode.ino);
        }
        Ok(())
    }

    /// fallocate(2): room is not reserved (the cloud has it), holes and zeros are made. EOPNOTSUPP for the rest.
    pub async fn fallocate(
        &self,
        ino: Ino,
        _fh: u64,
        mode: i32,
        offset: u64,
        len: u64,
        kill_suid: bool,
    ) -> Result<()> {
        let inode = self.inner.inodes.get_or_insert(ino);
        let zeroes = mode & !FALLOC_KEEP_SIZE != 0;
        let written = if zeroes { len } else { 0 };
        let at = At::Offset(offset);
        let _turn = self.turn_with(&inode, at, written).await?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        if end > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let keeps_size = mode & FALLOC_KEEP_SIZE != 0;
        let size = attr_of(&inode)?.size;
        match mode & !FALLOC_KEEP_SIZE {
            0 => {}
            FALLOC_PUNCH_HOLE if keeps_size => self.zero(&inode, offset, end.min(size)).await?,
            FALLOC_ZERO_RANGE => self.zero(&inode, offset, end.min(size)).await?,
            _ => return Err(Errno::ENOTSUP),
        }
        if !keeps_size && end > size {
            self.truncate_open(&inode, end, kill_suid).await?;
        } else if lock(&inode.state).touch(kill_suid) {
            self.mode_changed(ino);
        }
        Ok(())
    }

    /// Makes `from..to` read as zeros: whole chunks and blocks become holes, the edges are written.
    async fn zero(&self, inode: &Arc<Inode>, from: u64, to: u64) -> Result<()> {
        let chunk_size = attr_of(inode)?.chunk_size;
        let mut at = from;
        while at < to {
            let (index, within) = locate(at, chunk_size)?;
            let left = usize::try_from(to - at).unwrap_or(usize::MAX);
            let n = left.min(chunk_size as usize - within);
            let size = attr_of(inode)?.size;
            if within == 0 && (n == chunk_size as usize || at + n as u64 >= size) {
                self.drop_chunk(inode, index).await;
            } else {
                self.zero_within(inode, index, within, n, chunk_size)
                    .await?;
            }
            at += n as u64;
        }
        Ok(())
    }

    async fn drop_chunk(&self, inode: &Arc<Inode>, index: u32) {
        let _one_at_a_time = inode.seal_lock.lock().await;
        let chunk = lock(&inode.state).open_chunks.get(&index).cloned();
        if let Some(chunk) = chunk {
            self.discard(&chunk).await;
        }
        let hole = Run {
            first: index,
            count: 1,
            version: Version::NONE,
            valid: 0,
        };
        let mut state = lock(&inode.state);
        state.open_chunks.remove(&index);
        let chunk_size = state.attr.as_ref().map_or(1 << 22, |a| a.chunk_size);
        if let Some(layout) = &mut state.layout {
            layout.lay(&[hole], chunk_size);
        }
        state.unsealed.runs.push(hole);
        state.touch(false);
    }

    async fn zero_within(
        &self,
        inode: &Arc<Inode>,
        index: u32,
        within: usize,
        n: usize,
        chunk_size: u32,
    ) -> Result<()> {
        let is_there = {
            let state = lock(&inode.state);
            state.open_chunks.contains_key(&index)
                || state
                    .layout
                    .as_ref()
                    .is_some_and(|l| l.chunk(index, chunk_size).is_some())
        };
        if !is_there {
            return Ok(());
        }
        let end = within + n;
        let (first, last) = (within.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        let base = u64::from(index) * u64::from(chunk_size);
        let edges = if first >= last {
            vec![(within, end)]
        } else {
            vec![(within, first), (last, end)]
        };
        for (a, b) in edges {
            if a < b {
                let zeros = IoBuf::alloc(b - a);
                let size = attr_of(inode)?.size;
                let (lease, at) = (lock(&inode.state).may_write, base + a as u64);
                let written = self.write_inode(inode, lease, at, zeros, false, false);
                written.await.0.map_err(|error| match error {
                    // Its turn is void: the lease has ended.
                    Errno::EBUSY => Errno::EIO,
                    error => error,
                })?;
                debug_assert!(attr_of(inode)?.size >= size);
            }
        }
        if first < last {
            let one_at_a_time = inode.seal_lock.lock().await;
            let chunk = self.open_chunk(inode, index).await?;
            let punched = self.punch_blocks(&chunk, first / BLOCK, last / BLOCK);
            if let Err(error) = punched.await {
                drop(one_at_a_time);
                self.after_failure(inode, index).await;
                return Err(error);
            }
            lock(&inode.state).touch(false);
        }
        Ok(())
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE. ENXIO beyond the end.
    pub async fn lseek(&self, ino: Ino, _fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let inode = self.with_layout(ino, false).await?;
        let attr = attr_of(&inode)?;
        if offset >= attr.size {
            return Err(Errno::ENXIO);
        }
        let wants_data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let mut at = offset;
        while at < attr.size {
            let (index, within) = locate(at, attr.chunk_size)?;
            let chunk_start = at - within as u64;
            let blocks = attr.chunk_size as usize / BLOCK;
            let view = self.view(ino, &inode, index).await?;
            let found = match &view {
                View::Hole if !wants_data => Some(within),
                View::Hole => None,
                View::Data(_) => (within / BLOCK..blocks)
                    .find(|b| view.has_data(*b) == wants_data)
                    .map(|b| within.max(b * BLOCK)),
            };
            if let Some(found) = found {
                let found = chunk_start + found as u64;
                return if found < attr.size {
                    Ok(found)
                } else {
                    end_of(wants_data, attr.size)
                };
            }
            at = chunk_start + u64::from(attr.chunk_size);
            if matches!(view, View::Hole) {
                at = at.max(self.next_chunk(&inode, index, attr.chunk_size, attr.size));
            }
        }
        end_of(wants_data, attr.size)
    }

    /// Where the next chunk with data begins after a hole; the size when there is none.
    fn next_chunk(&self, inode: &Inode, index: u32, chunk_size: u32, size: u64) -> u64 {
        let state = lock(&inode.state);
        let Some(layout) = &state.layout else {
            // Revoked a moment ago: nothing is skipped.
            return 0;
        };
        let open = state.open_chunks.range(index + 1..).next().map(|(i, _)| *i);
        let at = layout.runs.partition_point(|r| r.first <= index);
        let sealed = layout.runs.get(at).map(|r| r.first);
        match open.into_iter().chain(sealed).min() {
            Some(next) => u64::from(next) * u64::from(chunk_size),
            None => size,
        }
    }

    /// copy_file_range(2): through a buffer, inside the file system. Answers how many bytes were copied.
    pub async fn copy_file_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        kill_suid: bool,
    ) -> Result<u64> {
        if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(Errno::EINVAL);
        }
        // The end as it is now: a copy behind it moves it, and must not go on with what it wrote itself.
        let source = self.with_layout(from, false).await?;
        let len = len.min(attr_of(&source)?.size.saturating_sub(from_offset));
        let target = self.inner.inodes.get_or_insert(to);
        let mut done = 0;
        while done < len {
            let want = usize::try_from(len - done)
                .unwrap_or(usize::MAX)
                .min(REQUEST_MAX);
            let buf = IoBuf::alloc(want.next_multiple_of(BLOCK));
            let (read, mut buf) = self.read(from, 0, from_offset + done, want, buf).await;
            let n = read?;
            if n == 0 {
                break;
            }
            let _rest = buf.split_off(n);
            let at = At::Offset(to_offset + done);
            let written = self.write_at(&target, at, buf, kill_suid, true);
            written.await.0?;
            done += n as u64;
        }
        Ok(done)
    }
}

fn end_of(wants_data: bool, size: u64) -> Result<u64> {
    if wants_data {
        Err(Errno::ENXIO)
    } else {
        Ok(size)
    }
}

/// A chunk as SEEK_DATA sees it.
enum View {
    Hole,
    /// Ranges of blocks that hold data.
    Data(Vec<(usize, usize)>),
}

impl View {
    fn has_data(&self, block: usize) -> bool {
        match self {
            View::Hole => false,
            View::Data(ranges) => ranges.iter().any(|(a, b)| (*a..*b).contains(&block)),
        }
    }
}

impl FileSystem {
    /// A chunk at one moment: looked at again when it was sealed or replaced under the look.
    async fn view(&self, ino: Ino, inode: &Arc<Inode>, index: u32) -> Result<View> {
        for _ in 0..LOOK_TRIES {
            if let Some(view) = self.try_view(inode, index) {
                return Ok(view);
            }
            fastcache_reactor::yield_now().await;
            self.with_layout(ino, false).await?;
        }
        Err(Errno::EIO)
    }

    /// `None` when it has to be looked at again.
    fn try_view(&self, inode: &Inode, index: u32) -> Option<View> {
        enum Source {
            Open(Arc<OpenChunk>),
            Sealed(Version, usize),
        }
        let look =
            || {
                let state = lock(&inode.state);
                if let Some(chunk) = state.open_chunks.get(&index) {
                    return Some(Some(Source::Open(Arc::clone(chunk))));
                }
                let chunk_size = state.attr.as_ref()?.chunk_size;
                let found = state.layout.as_ref()?.chunk(index, chunk_size);
                Some(found.map(|(version, valid)| {
                    Source::Sealed(version, (valid as usize).div_ceil(BLOCK))
                }))
            };
        let (version, valid) = match look()? {
            None => return Some(View::Hole),
            Some(Source::Open(chunk)) => return FileSystem::data_ranges(&chunk).map(View::Data),
            Some(Source::Sealed(version, valid)) => (version, valid),
        };
        let id = ChunkId {
            ino: inode.ino,
            index,
        };
        let body = self.inner.store.get(id);
        // Elsewhere: all of it counts as data.
        let Some(body) = body.filter(|body| body.key().version == version) else {
            return match look()? {
                Some(Source::Sealed(now, _)) if now == version => {
                    Some(View::Data(vec![(0, valid)]))
                }
                _ => None,
            };
        };
        let runs = body.runs().iter();
        let ranges = runs.map(|r| {
            (
                r.first as usize,
                valid.min((r.first + r.extent.len) as usize),
            )
        });
        Some(View::Data(ranges.collect()))
    }
}

/// Cuts runs that were sealed ahead at `keep` chunks, the last of them valid up to `rest` bytes.
fn cut_runs(runs: &mut Vec<Run>, keep: u32, rest: Option<u32>) {
    runs.retain(|r| r.first < keep);
    for r in runs {
        r.count = r.count.min(keep - r.first);
        if r.first + r.count == keep
            && let Some(rest) = rest
        {
            r.valid = r.valid.min(rest);
        }
    }
}
