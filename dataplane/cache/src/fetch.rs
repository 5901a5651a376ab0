//! Misses: a chunk is fetched once for everybody who waits for it, verified, answered from the slot, and promoted
//! to the store behind the readers' backs.

use crate::open_chunk::device_error;
use crate::{FileSystem, Result, count, lock, lock_read};
use event_listener::Event;
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::{ChunkKey, Errno, Ino, Version};
use fastcache_chunkstore::{ChunkBody, ChunkMeta, SealChunk, SealData, StoreError, crc_all};
use fastcache_reactor::IoBuf;
use fastcache_reactor::sync::Mutex;
use fastcache_types::{BLOCK, ChunkId};
use futures_util::future::{Either, select};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Times a fetch is tried again because the agent went away under it, or the device did not keep it.
const FETCH_TRIES: usize = 5;
/// A fetch that failed after this long answers those who ask again at once, for a moment: the kernel does so, page by
/// page, when a readahead failed, and each would wait for the whole deadline.
const FAILED_SLOWLY: Duration = Duration::from_secs(1);
/// That moment.
const FAILED_KEEP: Duration = Duration::from_millis(250);
/// How long a chunk that was read ahead stays in its slot for its readers, who then need not wait for the device nor read
/// from it.
const LINGER: Duration = Duration::from_millis(500);
/// Pause before a chunk that could not be kept is fetched again.
const KEEP_PAUSE: Duration = Duration::from_millis(10);
/// Pause between them.
const FETCH_PAUSE: Duration = Duration::from_millis(200);

/// A sealed chunk in the store, with its checksums.
pub(crate) struct Local {
    pub body: Arc<ChunkBody>,
    pub meta: Arc<ChunkMeta>,
}

/// Slots that fetches may hold at once; the rest of the arena is for uploads and REST, so that neither starves.
const FETCH_SLOTS: usize = 24;

/// The same for chunks that other nodes want this one to fetch: those wait for nobody but the cloud, and must not stand behind
/// flights that wait for those nodes.
const BROUGHT_SLOTS: usize = 8;

/// Fetches under way.
pub(crate) struct Flights {
    map: Mutex<HashMap<ChunkKey, Arc<Flight>>>,
    slots: async_lock::Semaphore,
    brought: async_lock::Semaphore,
}

impl Default for Flights {
    fn default() -> Self {
        Flights {
            map: Mutex::default(),
            slots: async_lock::Semaphore::new(FETCH_SLOTS),
            brought: async_lock::Semaphore::new(BROUGHT_SLOTS),
        }
    }
}

impl Flights {
    /// Whether a chunk is being fetched or promoted.
    pub(crate) fn has(&self, key: ChunkKey) -> bool {
        lock(&self.map).contains_key(&key)
    }

    /// Files of which a chunk is being fetched that somebody waits for.
    pub(crate) fn being_read(&self) -> HashSet<Ino> {
        let map = lock(&self.map);
        let read = map.iter().filter(|(_, f)| lock(&f.state).readers > 0);
        read.map(|(key, _)| key.ino).collect()
    }

    /// How many chunks are being fetched or promoted.
    pub(crate) fn count(&self) -> usize {
        lock(&self.map).len()
    }
}

#[derive(Default)]
struct Flight {
    state: Mutex<FlightState>,
    changed: Event,
    /// Nobody waited for it when it began.
    is_ahead: bool,
    /// Another node asked for it.
    is_brought: bool,
    /// Its homes said just before that they do not have it.
    homes_lack_it: bool,
}

impl Flight {
    /// Whether it has nothing for newcomers: what speculation failed at is no reader's error.
    fn is_past(&self, state: &FlightState) -> bool {
        match state.stage {
            Stage::Over => true,
            Stage::Failed(_) => self.is_ahead,
            Stage::Fetching | Stage::Ready(..) => false,
        }
    }
}

#[derive(Default)]
struct FlightState {
    stage: Stage,
    /// Readers that still copy from the slot; the promotion waits for them.
    readers: usize,
    /// Bytes they copied.
    copied: usize,
}

#[derive(Default)]
enum Stage {
    #[default]
    Fetching,
    /// In the slot: `len` bytes, padded with zeros to whole blocks.
    Ready(IoBuf, usize),
    /// The store has it, or could not take it; the flight is over.
    Over,
    Failed(Errno),
}

/// A reader's place in a flight, until it has what it wants from the slot or gives up.
pub(crate) struct Seat {
    flight: Arc<Flight>,
    is_taken: bool,
}

impl Seat {
    /// The caller has counted it.
    fn of(flight: &Arc<Flight>) -> Seat {
        Seat {
            flight: Arc::clone(flight),
            is_taken: true,
        }
    }

    /// Waits until the chunk is in the slot, or the flight is over. False when it failed.
    pub(crate) async fn has_come(&self) -> bool {
        loop {
            let listener = self.flight.changed.listen();
            match lock(&self.flight.state).stage {
                Stage::Fetching => {}
                Stage::Ready(..) | Stage::Over => return true,
                Stage::Failed(_) => return false,
            }
            listener.await;
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_taken) {
            lock(&self.flight.state).readers -= 1;
            self.flight.changed.notify(usize::MAX);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

impl FileSystem {
    /// Reads from a chunk that is not in the store.
    pub(crate) async fn read_fetched(
        &self,
        id: ChunkId,
        version: Version,
        within: usize,
        buf: IoBuf,
    ) -> (Result<()>, IoBuf) {
        self.read_fetched_again(id, version, within, buf, FETCH_TRIES)
            .await
    }

    async fn read_fetched_again(
        &self,
        id: ChunkId,
        version: Version,
        within: usize,
        mut buf: IoBuf,
        tries: usize,
    ) -> (Result<()>, IoBuf) {
        let key = ChunkKey {
            ino: id.ino,
            index: id.index,
            version,
        };
        let mut seat = self.join_flight(key, false, false);
        let flight = Arc::clone(&seat.flight);
        loop {
            let listener = flight.changed.listen();
            {
                let mut state = lock(&flight.state);
                match &state.stage {
                    Stage::Fetching => {}
                    Stage::Ready(slot, len) => {
                        let whole = len.next_multiple_of(BLOCK).min(slot.len());
                        let n = whole.saturating_sub(within).min(buf.len());
                        if n > 0 {
                            buf[..n].copy_from_slice(&slot[within..within + n]);
                        }
                        buf[n..].fill(0);
                        state.copied += n;
                        drop(state);
                        seat.leave();
                        return (Ok(()), buf);
                    }
                    Stage::Over => break,
                    Stage::Failed(_) if flight.is_ahead => break,
                    Stage::Failed(e) => return (Err(*e), buf),
                }
            }
            listener.await;
        }
        // Promoted before we looked: it is in the store now (or was evicted at once: then the caller's caller asks again).
        let Some(body) = self.inner.store.get(id).filter(|b| b.key() == key) else {
            let again = self.read_fetched_again(id, version, within, buf, tries);
            return Box::pin(again).await;
        };
        let Ok(first) = u32::try_from(within / BLOCK) else {
            return (Err(Errno::EFBIG), buf);
        };
        let (result, buf) = self.inner.store.read(&body, first, buf).await;
        match result {
            Ok(()) => (Ok(()), buf),
            // Just written, and not readable: the next flight answers from memory.
            Err(error) if tries > 0 && self.drop_unreadable(&body, &error).await => {
                let again = self.read_fetched_again(id, version, within, buf, tries - 1);
                Box::pin(again).await
            }
            Err(error) => (Err(device_error(&error)), buf),
        }
    }

    /// Brings a chunk into the store and waits until it is there, or until there is room for it and it can be tried again.
    /// ENOSPC when it cannot be made to fit, EBUSY when another version is in its place that must stay.
    pub(crate) async fn promote(&self, id: ChunkId, version: Version) -> Result<()> {
        let key = ChunkKey {
            ino: id.ino,
            index: id.index,
            version,
        };
        self.make_way(key).await?;
        while !self.fly_out(key, false).await? {}
        if self.inner.store.get(id).is_some_and(|b| b.key() == key) {
            return Ok(());
        }
        self.make_way(key).await?;
        self.make_room(1024 + 3).await?;
        // There may be room, and something else in its place.
        fastcache_reactor::sleep(KEEP_PAUSE).await;
        Ok(())
    }

    /// Drops what keeps this version of a chunk out of the store and is nothing any more, because the file has this one
    /// now: what this node wrote before another one did and has not uploaded, and what it keeps for others. EBUSY when it
    /// must stay, or is not known to be nothing.
    async fn make_way(&self, key: ChunkKey) -> Result<()> {
        let id = key.id();
        let here = self.inner.store.get(id).filter(|body| body.key() != key);
        let unsent = here.filter(|body| body.is_dirty());
        if unsent.is_none() && self.may_cache(key) {
            return Ok(());
        }
        let unsent = unsent.map(|body| body.key());
        {
            let inode = self.inner.inodes.get(key.ino).ok_or(Errno::EBUSY)?;
            let state = lock(&inode.state);
            let chunk_size = state.attr.as_ref().map_or(0, |attr| attr.chunk_size);
            let layout = state.layout.as_ref().filter(|_| chunk_size > 0);
            let named = layout.and_then(|layout| layout.chunk(id.index, chunk_size));
            let is_named = self.is_trusted(&state) && named.map(|(v, _)| v) == Some(key.version);
            // What is in the store may be what is being sealed here, which the layout has only afterwards; and what this node is
            // about to commit may be refused.
            let is_pending = state.open_chunks.contains_key(&id.index)
                || state.is_to_be_committed(key)
                || unsent.is_some_and(|unsent| state.is_to_be_committed(unsent));
            if !is_named || is_pending {
                return Err(Errno::EBUSY);
            }
        }
        self.end_other_holds(key);
        if let Some(unsent) = unsent {
            tracing::debug!(target: "cache", %unsent, %key, "another node has written the chunk since");
            self.drop_keys(key.ino, &[unsent]).await;
        }
        Ok(())
    }

    /// Brings a chunk into the store where there is room for it without waiting. ENOSPC when there is none, EBUSY when another
    /// version is in its place that must stay. `is_brought`: for another node.
    pub(crate) async fn promote_now(&self, key: ChunkKey, is_brought: bool) -> Result<()> {
        let is_here = || {
            let here = self.inner.store.get(key.id());
            here.is_some_and(|body| body.key() == key)
        };
        for _ in 0..FETCH_TRIES {
            if is_here() {
                return Ok(());
            }
            self.make_way(key).await?;
            // Others took the room, or it was freed and needs a flush first.
            if self.fly_out(key, is_brought).await?
                && !is_here()
                && !self.make_room_now(1024 + 3).await
            {
                return Err(Errno::ENOSPC);
            }
        }
        match is_here() {
            true => Ok(()),
            false => Err(Errno::EIO),
        }
    }

    /// Waits for the end of a chunk's flight. False when it has to be made again.
    async fn fly_out(&self, key: ChunkKey, is_brought: bool) -> Result<bool> {
        let mut seat = self.join_flight(key, is_brought, false);
        let flight = Arc::clone(&seat.flight);
        loop {
            let listener = flight.changed.listen();
            {
                let mut state = lock(&flight.state);
                match &state.stage {
                    Stage::Fetching => {}
                    Stage::Ready(_, len) => {
                        // Wanted in the store, and by no reader of the slot.
                        state.copied = *len;
                        drop(state);
                        seat.leave();
                    }
                    Stage::Over => return Ok(true),
                    Stage::Failed(_) if flight.is_ahead => return Ok(false),
                    Stage::Failed(e) => return Err(*e),
                }
            }
            listener.await;
        }
    }

    /// The flight of a chunk, started when there is none; the caller is counted as a reader. `homes_lack_it`: they said so just now.
    pub(crate) fn join_flight(&self, key: ChunkKey, is_brought: bool, homes_lack_it: bool) -> Seat {
        let mut map = lock(&self.inner.flights.map);
        if let Some(flight) = map.get(&key) {
            let mut state = lock(&flight.state);
            if !flight.is_past(&state) {
                state.readers += 1;
                drop(state);
                // It may stand in the queue of those that nobody waits for.
                flight.changed.notify(usize::MAX);
                return Seat::of(flight);
            }
        }
        let flight = Arc::new(Flight {
            is_brought,
            homes_lack_it,
            ..Flight::default()
        });
        lock(&flight.state).readers = 1;
        map.insert(key, Arc::clone(&flight));
        drop(map);
        let seat = Seat::of(&flight);
        let fs = self.clone();
        fastcache_reactor::spawn(async move { fs.fly(key, &flight).await }).detach();
        seat
    }

    /// Begins a flight that nobody waits for yet; false when there is one. Chunks take turns on the cores, each with its own
    /// connections, so that one reader has them all: the chunk is large enough to pay for waking another core.
    pub(crate) fn fly_ahead(&self, key: ChunkKey) -> bool {
        let mut map = lock(&self.inner.flights.map);
        if map.contains_key(&key) {
            return false;
        }
        let flight = Arc::new(Flight {
            is_ahead: true,
            ..Flight::default()
        });
        map.insert(key, Arc::clone(&flight));
        drop(map);
        let fs = self.clone();
        let flies = move || async move {
            let turn = fs.turn_ahead(key, &flight).await;
            if turn.is_ok() {
                fs.fly(key, &flight).await;
            }
        };
        let cores = self.inner.cores.get().map_or(&[][..], Vec::as_slice);
        match cores.get(key.index as usize % cores.len().max(1)) {
            Some(core) => core.spawn(flies),
            None => fastcache_reactor::spawn(flies()).detach(),
        }
        true
    }

    /// Waits until a flight may begin that nobody waits for, or somebody does wait for it. An error when nobody is going to:
    /// the flight is over then.
    async fn turn_ahead(
        &self,
        key: ChunkKey,
        flight: &Arc<Flight>,
    ) -> std::result::Result<Option<async_lock::SemaphoreGuard<'_>>, ()> {
        let mut turn = None;
        loop {
            let listener = flight.changed.listen();
            {
                let mut state = lock(&flight.state);
                if state.readers > 0 {
                    return Ok(None);
                }
                if !self.inner.ahead.is_wanted(key.id()) {
                    state.stage = Stage::Over;
                    drop(state);
                    self.end_flight(key, flight);
                    return Err(());
                }
            }
            if turn.is_some() {
                return Ok(turn);
            }
            let free = std::pin::pin!(self.inner.ahead.turns.acquire());
            if let Either::Left((free, _)) = select(free, listener).await {
                turn = Some(free);
            }
        }
    }

    async fn fly(&self, key: ChunkKey, flight: &Arc<Flight>) {
        // A flight before this one may have ended between a reader's look at the store and its look for a flight.
        if self
            .inner
            .store
            .get(key.id())
            .is_some_and(|b| b.key() == key)
        {
            lock(&flight.state).stage = Stage::Over;
            self.end_flight(key, flight);
            return;
        }
        let slots = match flight.is_brought {
            true => &self.inner.flights.brought,
            false => &self.inner.flights.slots,
        };
        let slot = slots.acquire().await;
        let since = fastcache_reactor::now();
        let fetched = self.fetch(key, flight.is_ahead, flight.homes_lack_it).await;
        match fetched {
            Ok((buf, len)) => {
                count(&self.inner.counters.fetched_chunks, 1);
                count(&self.inner.counters.fetched_bytes, len as u64);
                lock(&flight.state).stage = Stage::Ready(buf, len);
                flight.changed.notify(usize::MAX);
                let lingers = fastcache_reactor::now() + LINGER;
                let (buf, len, copied) = loop {
                    let listener = flight.changed.listen();
                    let left = lingers.duration_since(fastcache_reactor::now());
                    {
                        let mut state = lock(&flight.state);
                        let is_for_readers =
                            flight.is_ahead && state.copied < len && !left.is_zero();
                        if state.readers == 0 && !is_for_readers {
                            match std::mem::take(&mut state.stage) {
                                Stage::Ready(buf, len) => break (buf, len, state.copied),
                                other => {
                                    state.stage = other;
                                    return;
                                }
                            }
                        }
                    }
                    if left.is_zero() {
                        listener.await;
                    } else {
                        let _ = fastcache_reactor::timeout(left, listener).await;
                    }
                };
                // From here on (stage Fetching) newcomers wait for the store to have it. What nobody came for, of a file that
                // was closed or changed meanwhile, is not worth its place, and may be a version that is gone.
                let is_for_nobody =
                    flight.is_ahead && copied == 0 && !self.inner.ahead.is_wanted(key.id());
                if !is_for_nobody {
                    self.keep(key, buf, len).await;
                }
                lock(&flight.state).stage = Stage::Over;
            }
            Err(error) if flight.is_ahead => {
                tracing::debug!(target: "cache", %key, %error, "a chunk could not be read ahead");
                self.failed_ahead(key.id());
                lock(&flight.state).stage = Stage::Failed(error);
            }
            Err(error) => {
                tracing::warn!(target: "cache", %key, %error, "a chunk could not be fetched from any tier");
                lock(&flight.state).stage = Stage::Failed(error);
                flight.changed.notify(usize::MAX);
                drop(slot);
                if since.elapsed() >= FAILED_SLOWLY {
                    fastcache_reactor::sleep(FAILED_KEEP).await;
                }
            }
        }
        self.end_flight(key, flight);
    }

    fn end_flight(&self, key: ChunkKey, flight: &Arc<Flight>) {
        {
            let mut map = lock(&self.inner.flights.map);
            if map.get(&key).is_some_and(|f| Arc::ptr_eq(f, flight)) {
                map.remove(&key);
            }
        }
        flight.changed.notify(usize::MAX);
    }

    /// Whether the cloud gives a chunk, whole. In doubt it does not.
    pub(crate) async fn is_in_cloud(&self, key: ChunkKey) -> bool {
        let _slot = self.inner.flights.slots.acquire().await;
        self.fetch_from_agent(key).await.is_ok()
    }

    /// Asks the agent for a chunk; verified bytes in a slot. To be run to its end: the slot is lent meanwhile.
    pub(crate) async fn fetch_from_agent(&self, key: ChunkKey) -> Result<(IoBuf, usize)> {
        for _ in 0..FETCH_TRIES {
            self.inner.link.connected().await;
            let arena = lock_read(&self.inner.arena).clone();
            let slot = arena.take().await;
            let index = slot.lend();
            let answer = self
                .inner
                .link
                .call(NodeCall::Fetch { key, slot: index })
                .await;
            let (len, crc32c) = match answer {
                Ok(NodeAnswer::Fetched { len, crc32c }) => (len as usize, crc32c),
                Ok(other) => {
                    // The slot stays lent: a broken agent may still write into it.
                    return Err(crate::link::unexpected(&other));
                }
                Err(Errno::ENOTCONN) => {
                    // The arena died with the session; its slot is not used again.
                    fastcache_reactor::sleep(FETCH_PAUSE).await;
                    continue;
                }
                Err(e) => {
                    arena.reclaim(index);
                    return Err(e);
                }
            };
            let Some(mut slot) = arena.reclaim(index) else {
                return Err(Errno::EIO);
            };
            if len == 0 || len > slot.buf.len() {
                tracing::error!(target: "control", %key, len, "the agent fetched a chunk of an impossible length");
                return Err(Errno::EIO);
            }
            if crc_all(&slot.buf[..len]) != crc32c {
                tracing::error!(target: "cache", %key, "the fetched chunk's checksum does not match: wrong bytes are not returned");
                return Err(Errno::EIO);
            }
            let whole = len.next_multiple_of(BLOCK);
            slot.buf[len..whole].fill(0);
            return Ok((std::mem::replace(&mut slot.buf, IoBuf::alloc(0)), len));
        }
        Err(Errno::EIO)
    }

    /// Puts a fetched chunk into the store; without room it is not kept.
    async fn keep(&self, key: ChunkKey, mut buf: IoBuf, len: usize) {
        if self.make_way(key).await.is_err() {
            return;
        }
        let whole = len.next_multiple_of(BLOCK);
        let blocks = u32::try_from(whole / BLOCK).unwrap_or(u32::MAX);
        // What nobody has read yet takes free space only: nothing is evicted for a guess.
        if !self.inner.ahead.is_wanted(key.id()) {
            self.make_room_now(blocks + 3).await;
        } else if !self.has_room_ahead(whole as u64) {
            self.lost_ahead(key.id());
            return;
        }
        let _rest = buf.split_off(whole);
        let seal = SealChunk {
            key,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            is_dirty: false,
            is_kept: false,
            is_pending: false,
            data: SealData::Inline { buf },
        };
        match self.inner.store.seal(vec![seal], None).await {
            Ok(sealed) => self.tell_stored(&sealed.bodies, &sealed.replaced),
            Err(StoreError::Full) => {
                tracing::debug!(target: "cache", %key, "no room to keep a fetched chunk");
            }
            Err(error) => {
                tracing::error!(target: "nvme", %key, %error, "a fetched chunk could not be kept")
            }
        }
    }
}
