//! The write path: large aligned writes go straight from the request's buffer to the device, everything else
//! gathers in the open chunk.

use crate::conflict::is_past_pages;
use crate::fetch::Local;
use crate::inode::{Inode, InodeState};
use crate::lease::Lease;
use crate::open_chunk::{Closed, OpenChunk};
use crate::seal::ready_for_early_seal;
use crate::{FileSystem, Result, count, lock};
use fastcache_api::{Attr, Errno, FILE_SIZE_MAX, Ino, Version};
use fastcache_reactor::{Instant, IoBuf, now, sleep, timeout};
use fastcache_types::{BLOCK, ChunkId};
use futures_util::future::{Either, select};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Aligned writes of this size or more never gather, bytes.
const DIRECT_MIN: usize = 64 << 10;
/// Times a layout is asked for again because a version that it does not name is in the way of the one that it names.
const LOADS: usize = 5;
/// How long a write waits for a lease where it needs one: heartbeats bring it, each quarter of a lease.
const LEASE_WAIT: Duration = Duration::from_secs(5);
/// Pause before the layout is asked for again.
const LEASE_PAUSE: Duration = Duration::from_millis(20);

/// How long what a write needs of the file is brought with a turn, which another node may wait for.
const BRING_PATIENCE: Duration = Duration::from_millis(300);
/// How often it is brought without one; it may be evicted, or be another version, when the turn has come.
const BRINGS: usize = 3;
/// How often who brings it looks whether it is needed still.
const BRING_LOOK: Duration = Duration::from_millis(100);

/// A place in a file: chunk index and offset in the chunk.
pub(crate) fn locate(offset: u64, chunk_size: u32) -> Result<(u32, usize)> {
    let index = u32::try_from(offset / u64::from(chunk_size)).map_err(|_| Errno::EFBIG)?;
    let within = usize::try_from(offset % u64::from(chunk_size)).map_err(|_| Errno::EFBIG)?;
    Ok((index, within))
}

/// Whether a write of `len` bytes leaves some of the `valid` ones of its chunk. Nothing is written: it does.
fn keeps_some(within: usize, len: usize, valid: u32) -> bool {
    within > 0 || len == 0 || len < valid as usize
}

/// Layouts that were asked for again.
#[derive(Default)]
struct Looks {
    done: usize,
    began: Option<Instant>,
}

impl Looks {
    /// Whether it may be asked for once more. Without a lease, after a pause: until there is one it goes on saying nothing.
    async fn again(&mut self, lease: &Lease) -> bool {
        let began = self.began.get_or_insert_with(now);
        if lease.is_live() || began.elapsed() > LEASE_WAIT {
            self.done += 1;
        } else {
            sleep(LEASE_PAUSE).await;
        }
        self.done <= LOADS
    }
}

/// Where in a file a write goes.
#[derive(Clone, Copy)]
pub(crate) enum At {
    Offset(u64),
    /// At the end, which the kernel takes to be here.
    End(u64),
}

/// Which chunk a write goes to.
enum ToWrite {
    /// To the file's open chunk.
    Open(Arc<OpenChunk>),
    /// To a chunk that is not the file's yet.
    Cover(Cover),
}

/// A chunk that takes the place of sealed bytes elsewhere once it is written. Nobody else sees it until then.
struct Cover {
    chunk: Arc<OpenChunk>,
    /// Version and valid bytes of what it covers.
    over: (Version, u32),
}

/// The version of a sealed chunk that the file has now.
fn version_now(inode: &Inode, index: u32) -> Option<Version> {
    let state = lock(&inode.state);
    let chunk_size = state.attr.as_ref()?.chunk_size;
    let (version, _) = state.layout.as_ref()?.chunk(index, chunk_size)?;
    Some(version)
}

/// Makes a written chunk the file's. False when what it covers is not what the file has any more.
fn show(inode: &Inode, cover: &Cover) -> bool {
    let mut state = lock(&inode.state);
    let index = cover.chunk.index;
    let now = match (&state.attr, &state.layout) {
        (Some(attr), Some(layout)) => layout.chunk(index, attr.chunk_size),
        _ => None,
    };
    let is_same = now == Some(cover.over) && !state.open_chunks.contains_key(&index);
    if is_same {
        state.open_chunks.insert(index, Arc::clone(&cover.chunk));
    }
    is_same
}

impl FileSystem {
    /// Writes. Answers how many bytes were taken, and the buffer.
    pub async fn write(
        &self,
        ino: Ino,
        fh: u64,
        offset: u64,
        data: IoBuf,
        kill_suid: bool,
    ) -> (Result<u32>, IoBuf) {
        let inode = self.inner.inodes.get_or_insert(ino);
        let is_past = is_past_pages(fh);
        let (done, data) = self
            .write_at(&inode, At::Offset(offset), data, kill_suid, is_past)
            .await;
        if is_past {
            self.pages_right(&inode).await;
        }
        (done.map(|(n, _)| n), data)
    }

    /// Writes at the end of the file, which is elsewhere than the kernel takes it to be (`offset`) when another node has
    /// written since.
    pub async fn append(
        &self,
        ino: Ino,
        fh: u64,
        offset: u64,
        data: IoBuf,
        kill_suid: bool,
    ) -> (Result<u32>, IoBuf) {
        let inode = self.inner.inodes.get_or_insert(ino);
        let is_past = is_past_pages(fh);
        let (done, data) = self
            .write_at(&inode, At::End(offset), data, kill_suid, is_past)
            .await;
        if is_past {
            // The kernel takes the file to be longer as soon as it is answered.
            self.pages_right(&inode).await;
        }
        if done.is_ok_and(|(_, end)| end != offset)
            && let Some(notify) = self.inner.notify.get()
        {
            // The kernel has put it where it took the end to be.
            notify.inval_inode(ino);
        }
        (done.map(|(n, _)| n), data)
    }

    /// Takes a turn, and writes. Answers how many bytes were taken, and where the first of them went. `is_past`: the bytes are not
    /// in the kernel's pages.
    ///
    /// Where the lease ends meanwhile, or what is known of the file turns out to be void, all of it is done anew, with what the
    /// file is then: it may end elsewhere.
    pub(crate) async fn write_at(
        &self,
        inode: &Arc<Inode>,
        at: At,
        mut data: IoBuf,
        kill_suid: bool,
        is_past: bool,
    ) -> (Result<(u32, u64)>, IoBuf) {
        let mut looks = Looks::default();
        loop {
            let turn = match self.turn_with(inode, at, data.len() as u64).await {
                Ok(turn) => turn,
                Err(e) => return (Err(e), data),
            };
            let (shape, lease) = {
                let state = lock(&inode.state);
                let shape = state.attr.as_ref().map(|a| (a.size, a.chunk_size));
                (shape, state.may_write)
            };
            let Some((size, chunk_size)) = shape else {
                return (Err(Errno::ESTALE), data);
            };
            let offset = self.offset_of(at, size);
            let done;
            (done, data) = self
                .write_inode(inode, lease, offset, data, kill_suid, is_past)
                .await;
            drop(turn);
            if done != Err(Errno::EBUSY) {
                return (done.map(|n| (n, offset)), data);
            }
            // Of an append to several chunks some may be there.
            let is_in_one = locate(offset, chunk_size)
                .is_ok_and(|(_, within)| within + data.len() <= chunk_size as usize);
            let may_be_done_anew = matches!(at, At::Offset(_)) || is_in_one;
            if !may_be_done_anew || !looks.again(&self.inner.lease).await {
                return (Err(Errno::EIO), data);
            }
            if let Err(e) = self.load(inode, false).await {
                return (Err(e), data);
            }
        }
    }

    /// Where a write goes in a file of this size.
    fn offset_of(&self, at: At, size: u64) -> u64 {
        match at {
            At::End(_) if self.is_shared() => size,
            At::End(offset) | At::Offset(offset) => offset,
        }
    }

    /// [`FileSystem::turn_to_write`], with what a write of `len` bytes needs of the file in the store, as a rule. What takes long
    /// to bring is waited for without a turn: another node that wants to write does not wait for what perhaps nobody has.
    pub(crate) async fn turn_with<'i>(
        &self,
        inode: &'i Arc<Inode>,
        at: At,
        len: u64,
    ) -> Result<async_lock::RwLockReadGuard<'i, ()>> {
        for _ in 0..BRINGS {
            let asked = self.inner.lease.ask();
            let turn = self.turn_to_write(inode).await?;
            let Some((id, version)) = self.lacks(inode, at, len) else {
                return Ok(turn);
            };
            let mut bringing = pin!(self.promote(id, version));
            let brought = match timeout(BRING_PATIENCE, &mut bringing).await {
                Ok(Ok(())) if self.lacks(inode, at, len).is_none() => return Ok(turn),
                Ok(brought) => brought,
                Err(_) => {
                    drop(turn);
                    let revoked = pin!(async {
                        while !self.inner.lease.is_revoked_since(asked, inode.ino) {
                            sleep(BRING_LOOK).await;
                        }
                    });
                    match select(bringing, revoked).await {
                        Either::Left((brought, _)) => brought,
                        Either::Right(_) => continue,
                    }
                }
            };
            match brought {
                Err(Errno::EIO) if version_now(inode, id.index) == Some(version) => {
                    return Err(Errno::EIO);
                }
                Err(_) => break,
                Ok(()) => {}
            }
        }
        self.turn_to_write(inode).await
    }

    /// The first chunk that a write of `len` bytes needs the bytes of and that is not in the store. For who has a turn.
    fn lacks(&self, inode: &Inode, at: At, len: u64) -> Option<(ChunkId, Version)> {
        if !self.is_shared() {
            return None;
        }
        let state = lock(&inode.state);
        let (attr, layout) = (state.attr.as_ref()?, state.layout.as_ref()?);
        let at = self.offset_of(at, attr.size);
        let end = at.checked_add(len).filter(|end| *end > at)?;
        // Those between the first and the last are covered.
        let last = (end - 1).checked_div(u64::from(attr.chunk_size))? * u64::from(attr.chunk_size);
        [at, at.max(last)].into_iter().find_map(|at| {
            let (index, within) = locate(at, attr.chunk_size).ok()?;
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let n = left.min(attr.chunk_size as usize - within);
            let id = ChunkId {
                ino: inode.ino,
                index,
            };
            let (version, valid) = layout.chunk(index, attr.chunk_size)?;
            let is_needed = !state.open_chunks.contains_key(&index)
                && keeps_some(within, n, valid)
                && !self.has(id, version);
            is_needed.then_some((id, version))
        })
    }

    /// Whether nobody else can have written since this lease on writing was seen: it may have ended, and another one come. Who has
    /// just asked for it has it before the next heartbeat brings a lease for what else is known.
    fn may_still_write(&self, state: &InodeState, lease: u64) -> bool {
        let now = &self.inner.lease;
        !now.is_shared() || (state.may_write == lease && now.epoch() == lease && !now.has_lapsed())
    }

    /// Whether this version of a chunk is in the store.
    fn has(&self, id: ChunkId, version: Version) -> bool {
        let body = self.inner.store.get(id);
        body.is_some_and(|b| b.key().version == version)
    }

    /// For who has a turn, under this lease on writing. EBUSY when it is over: nothing of the chunk it came to was written.
    pub(crate) async fn write_inode(
        &self,
        inode: &Arc<Inode>,
        lease: u64,
        offset: u64,
        mut data: IoBuf,
        kill_suid: bool,
        is_past: bool,
    ) -> (Result<u32>, IoBuf) {
        let total = data.len();
        let Ok(told) = u32::try_from(total) else {
            return (Err(Errno::EINVAL), data);
        };
        if offset.saturating_add(total as u64) > FILE_SIZE_MAX {
            return (Err(Errno::EFBIG), data);
        }
        let chunk_size = match attr_of(inode) {
            Ok(a) => a.chunk_size,
            Err(e) => return (Err(e), data),
        };
        self.stop_ahead(inode);
        if let Err(e) = self.await_dirty_room(inode.ino, total as u64).await {
            return (Err(e), data);
        }
        let mut done: Option<IoBuf> = None;
        let mut at = offset;
        let mut result = Ok(told);
        while !data.is_empty() {
            let (index, within) = match locate(at, chunk_size) {
                Ok(place) => place,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            };
            let n = data.len().min(chunk_size as usize - within);
            let piece = data.split_to(n);
            let (r, piece) = self
                .write_piece(inode, lease, index, within, piece, chunk_size)
                .await;
            put_back(&mut done, piece);
            if let Err(e) = r {
                self.after_failure(inode, index).await;
                result = Err(e);
                break;
            }
            at += n as u64;
            let mut guard = lock(&inode.state);
            let state = &mut *guard;
            if let Some(attr) = &mut state.attr {
                if is_past {
                    state.pages.written_past(at - n as u64, at, attr.size);
                }
                attr.size = attr.size.max(at);
            }
            let is_killed = state.touch(kill_suid);
            drop(guard);
            if is_killed {
                self.mode_changed(inode.ino);
            }
        }
        if !data.is_empty() {
            put_back(&mut done, data);
        } else if done.is_none() {
            done = Some(data);
        }
        count(&self.inner.counters.written_bytes, total as u64);
        (result, done.unwrap_or_else(|| IoBuf::alloc(0)))
    }

    /// After a write that failed. A chunk that it opened and left as it was is closed again: it would be read, and written on top
    /// of, whatever another node writes meanwhile. What it changed is to be committed.
    pub(crate) async fn after_failure(&self, inode: &Inode, index: u32) {
        let _one_at_a_time = inode.seal_lock.lock().await;
        let unchanged = {
            let mut state = lock(&inode.state);
            let Some(chunk) = state.open_chunks.get(&index).map(Arc::clone) else {
                return;
            };
            if chunk.close_unchanged() {
                state.open_chunks.remove(&index);
                chunk
            } else {
                state.touch(false);
                return;
            }
        };
        self.discard(&unchanged).await;
    }

    /// Writes within one chunk.
    async fn write_piece(
        &self,
        inode: &Arc<Inode>,
        lease: u64,
        index: u32,
        mut within: usize,
        mut piece: IoBuf,
        chunk_size: u32,
    ) -> (Result<()>, IoBuf) {
        let start = within;
        let mut done: Option<IoBuf> = None;
        // What covers bytes that are elsewhere, until all of it is written.
        let mut cover: Option<Cover> = None;
        let result = loop {
            if piece.is_empty() {
                let Some(cover) = cover.take() else {
                    break Ok(());
                };
                if show(inode, &cover) {
                    if ready_for_early_seal(&cover.chunk, chunk_size as usize) {
                        self.seal_early(inode, &cover.chunk);
                    }
                    break Ok(());
                }
                // Others changed the chunk meanwhile: the bytes go to theirs.
                self.discard(&cover.chunk).await;
                put_back(&mut done, piece);
                piece = done.take().unwrap_or_else(|| IoBuf::alloc(0));
                within = start;
                continue;
            }
            let chunk = match &cover {
                Some(cover) => Arc::clone(&cover.chunk),
                None => match self
                    .chunk_to_write(inode, Some(lease), index, within, piece.len())
                    .await
                {
                    Ok(ToWrite::Open(chunk)) => chunk,
                    Ok(ToWrite::Cover(new)) => Arc::clone(&cover.insert(new).chunk),
                    Err(e) => break Err(e),
                },
            };
            let is_aligned =
                within.is_multiple_of(BLOCK) && piece.is_aligned() && piece.len() >= BLOCK;
            let is_append = lock(&chunk.state).len == within;
            if is_aligned && (piece.len() >= DIRECT_MIN || !is_append) {
                let whole = piece.len() / BLOCK * BLOCK;
                let blocks = piece.split_to(whole);
                let (r, blocks) = self.write_direct(&chunk, within / BLOCK, blocks).await;
                chunk.weigh();
                match r {
                    Ok(Ok(())) => {
                        within += whole;
                        put_back(&mut done, blocks);
                        if cover.is_none() && ready_for_early_seal(&chunk, chunk_size as usize) {
                            self.seal_early(inode, &chunk);
                        }
                    }
                    Ok(Err(Closed)) => {
                        let mut again = blocks;
                        assert!(again.unsplit(piece).is_ok(), "two halves of one buffer");
                        piece = again;
                    }
                    Err(e) => {
                        put_back(&mut done, blocks);
                        break Err(e);
                    }
                }
                continue;
            }
            let gathered = self
                .write_gather(&chunk, within, &piece, chunk_size as usize)
                .await;
            chunk.weigh();
            match gathered {
                Ok(0) => {}
                Ok(n) => {
                    within += n;
                    let head = piece.split_to(n);
                    put_back(&mut done, head);
                    if within == chunk_size as usize {
                        // A chunk that was filled by small writes goes out as soon as its last byte is there.
                        if let Err(e) = self.flush_gather(&chunk).await {
                            break Err(e);
                        }
                        if cover.is_none() && ready_for_early_seal(&chunk, chunk_size as usize) {
                            self.seal_early(inode, &chunk);
                        }
                    }
                }
                Err(e) => break Err(e),
            }
        };
        if let Some(cover) = cover {
            // It failed half-way: the old bytes stay.
            self.discard(&cover.chunk).await;
        }
        if !piece.is_empty() {
            put_back(&mut done, piece);
        } else if done.is_none() {
            done = Some(piece);
        }
        (result, done.unwrap_or_else(|| IoBuf::alloc(0)))
    }

    /// The open chunk, opened over the sealed one when there is one.
    pub(crate) async fn open_chunk(
        &self,
        inode: &Arc<Inode>,
        index: u32,
    ) -> Result<Arc<OpenChunk>> {
        match self.chunk_to_write(inode, None, index, 0, 0).await? {
            ToWrite::Open(chunk) => Ok(chunk),
            // Nothing covers a chunk that has bytes.
            ToWrite::Cover(_) => Err(Errno::EIO),
        }
    }

    /// The chunk to write `within..within + len` to: the open one, opened over the sealed one when there is one. When the
    /// write covers all valid bytes and they are elsewhere, they are not fetched; they stay the file's until the write
    /// is done, for it may have to wait, or fail, and others read meanwhile. EBUSY when the lease on writing is over.
    async fn chunk_to_write(
        &self,
        inode: &Arc<Inode>,
        lease: Option<u64>,
        index: u32,
        within: usize,
        len: usize,
    ) -> Result<ToWrite> {
        let id = ChunkId {
            ino: inode.ino,
            index,
        };
        let open_bytes = &self.inner.memory.open_bytes;
        let mut has_room = false;
        let mut looks = Looks::default();
        loop {
            let sealed = {
                let mut state = lock(&inode.state);
                if lease.is_some_and(|lease| !self.may_still_write(&state, lease)) {
                    return Err(Errno::EBUSY);
                }
                if let Some(chunk) = state.open_chunks.get(&index) {
                    return Ok(ToWrite::Open(Arc::clone(chunk)));
                }
                let chunk_size = state.attr.as_ref().ok_or(Errno::ESTALE)?.chunk_size;
                let layout = state.layout.as_ref().ok_or(Errno::ESTALE)?;
                match layout.chunk(index, chunk_size) {
                    Some((version, valid)) if keeps_some(within, len, valid) => {
                        Some((version, valid))
                    }
                    Some((version, valid)) if self.has(id, version) => Some((version, valid)),
                    // The old bytes are elsewhere: nothing is gained by fetching them.
                    Some(_) if !has_room && !self.is_roomy() => None,
                    Some(over) => {
                        let chunk = Arc::new(OpenChunk::empty(inode.ino, index, open_bytes));
                        return Ok(ToWrite::Cover(Cover { chunk, over }));
                    }
                    None => {
                        let chunk = Arc::new(OpenChunk::empty(inode.ino, index, open_bytes));
                        state.open_chunks.insert(index, Arc::clone(&chunk));
                        return Ok(ToWrite::Open(chunk));
                    }
                }
            };
            let Some((version, valid)) = sealed else {
                let blocks = u32::try_from(len.div_ceil(BLOCK)).map_err(|_| Errno::EFBIG)?;
                self.make_room(blocks).await?;
                has_room = true;
                continue;
            };
            let Some(Local { body, meta }) = self.chunk_here(id, version).await? else {
                // Others may give the file a new version of the chunk while the old one is fetched, or drop the old one:
                // look again, whatever came of the fetch.
                let fetched = self.promote(id, version).await;
                let is_current = version_now(inode, index) == Some(version);
                match fetched {
                    // What the file has now was revoked meanwhile, and says nothing about the version in its place.
                    Err(Errno::EBUSY) if is_current && lease.is_none() => {
                        if !looks.again(&self.inner.lease).await {
                            return Err(Errno::EIO);
                        }
                        self.load(inode, false).await?;
                        continue;
                    }
                    Err(e) if is_current => return Err(e),
                    _ => continue,
                }
            };
            let valid = valid.min(body.len()) as usize;
            let mut tail = None;
            if !valid.is_multiple_of(BLOCK) && valid < body.len() as usize {
                let first = u32::try_from(valid / BLOCK).map_err(|_| Errno::EIO)?;
                let (r, mut buf) = self
                    .inner
                    .store
                    .read(&body, first, IoBuf::alloc(BLOCK))
                    .await;
                r.map_err(|e| crate::open_chunk::device_error(&e))?;
                buf[valid % BLOCK..].fill(0);
                tail = Some(buf);
            }
            let chunk = Arc::new(OpenChunk::over(
                inode.ino, index, body, &meta.crcs, valid, tail, open_bytes,
            ));
            let mut state = lock(&inode.state);
            let chunk_size = state.attr.as_ref().ok_or(Errno::ESTALE)?.chunk_size;
            let now = state
                .layout
                .as_ref()
                .and_then(|l| l.chunk(index, chunk_size));
            let is_same = now.is_some_and(|(v, n)| v == version && n as usize >= valid);
            if is_same && !state.open_chunks.contains_key(&index) {
                state.open_chunks.insert(index, Arc::clone(&chunk));
                return Ok(ToWrite::Open(chunk));
            }
        }
    }

    /// Blocks of a whole chunk, of the largest chunk size in use.
    pub(crate) fn chunk_blocks(&self) -> usize {
        self.inner
            .chunk_size
            .load(std::sync::atomic::Ordering::Relaxed) as usize
            / BLOCK
    }
}

/// The attributes of an inode that has them.
pub(crate) fn attr_of(inode: &Inode) -> Result<Attr> {
    lock(&inode.state).attr.clone().ok_or(Errno::ESTALE)
}

/// Puts the next piece of a buffer behind those that are done.
pub(crate) fn put_back(done: &mut Option<IoBuf>, piece: IoBuf) {
    match done {
        None => *done = Some(piece),
        Some(d) => {
            assert!(d.unsplit(piece).is_ok(), "pieces of one buffer, in order");
        }
    }
}
