//! Copies what is not in the cloud yet to its homes on other nodes, in the background, and keeps the copies there until it is.
//!
//! A chunk is known here from its commit until it is in the cloud, or no layout names it. It is due at once, again after a failure,
//! when a home may have been started again, when the nodes are others, and once a minute to confirm that it is still needed: one
//! request a home then, which a home that lost it answers so, and is given it anew. What the next version took the place of in
//! this node's store is confirmed, too, until that one is committed.

use fastcache_api::ChunkKey;
use fastcache_api::control::PeersStats;
use fastcache_cache::FileSystem;
use fastcache_peer::{AskError, Cluster, HEADER_BYTES, PAYLOAD_MAX, Peer, homes_among};
use fastcache_reactor::{Instant, IoBuf, PAGE, Remote, now, sleep, spawn};
use fastcache_types::BLOCK;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rand::seq::SliceRandom as _;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Chunks that each core copies at once.
const WORKERS: usize = 2;
/// What they take on a core, bytes.
pub const CORE_BYTES: u64 = (WORKERS * (PAGE + PAYLOAD_MAX)) as u64;
/// Most chunks that are known; further ones have no copies, and are counted.
const CHUNKS_MAX: usize = 1 << 18;
/// How long a home may take to say that it has a chunk.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// How long it may take to take one over: it asks the coordinator, and flushes its device.
const TAKE_MAX: Duration = Duration::from_secs(12);
/// How long it may take for a part.
const GIVE_MAX: Duration = Duration::from_secs(10);
/// Pauses after a failure; doubled after each.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often a home is told that a copy is still needed.
const CONFIRM: Duration = Duration::from_secs(60);
/// How often it is looked for what is due.
const LOOK: Duration = Duration::from_millis(500);

/// What is known of a chunk's copies.
struct Copies {
    /// Homes that have one, and their number of changed connections then.
    done: Vec<(String, u64)>,
    /// Homes that should have one.
    wanted: usize,
    /// A layout names it, as far as this node knows; not known of what was found in the store.
    is_committed: bool,
    /// Homes were asked to take it.
    is_tried: bool,
    failures: u32,
    due: Instant,
    /// It is in a queue, or being copied.
    is_busy: bool,
    /// It is in a queue. It may be in both, and is copied once.
    is_queued: bool,
    /// Connections changed while it was being copied.
    is_stale: bool,
}

impl Copies {
    /// How many of them were confirmed over connections that are up still.
    fn up(&self, peers: &[Arc<Peer>]) -> usize {
        peers.iter().filter(|peer| self.is_up_at(peer)).count()
    }

    /// Whether this node has one, and confirmed it over a connection that is up still.
    fn is_up_at(&self, peer: &Peer) -> bool {
        let mut done = self.done.iter();
        done.any(|(id, changes)| peer.id == *id && peer.changes() == *changes)
    }

    /// It is put into a queue.
    fn queue(&mut self) {
        (self.is_busy, self.is_queued) = (true, true);
    }
}

#[derive(Default)]
struct State {
    chunks: HashMap<ChunkKey, Copies>,
    due: VecDeque<ChunkKey>,
    /// Those that somebody waits for.
    first: VecDeque<ChunkKey>,
    /// The others when it was last looked, and their numbers.
    nodes: Vec<(String, u64)>,
    /// Whether what was dirty at the start is known.
    has_looked: bool,
}

impl State {
    /// What is to be copied next.
    fn take(&mut self) -> Option<ChunkKey> {
        while let Some(key) = self.first.pop_front().or_else(|| self.due.pop_front()) {
            let known = self.chunks.get_mut(&key);
            if known.is_some_and(|copies| std::mem::take(&mut copies.is_queued)) {
                return Some(key);
            }
        }
        None
    }
}

/// Copies chunks to other nodes. Shared by all cores.
pub struct Replicator {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    changed: event_listener::Event,
    /// Copies were made or lost, or are not needed any more.
    copied: event_listener::Event,
    given: AtomicU64,
    errors: AtomicU64,
}

impl Replicator {
    /// Nothing to copy yet.
    pub fn new(cluster: Arc<Cluster>) -> Arc<Replicator> {
        Arc::new(Replicator {
            cluster,
            state: Mutex::default(),
            changed: event_listener::Event::new(),
            copied: event_listener::Event::new(),
            given: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// Begins copying, on all cores.
    pub fn start(self: &Arc<Self>, fs: &FileSystem, cores: &[Remote]) {
        for core in cores {
            for _ in 0..WORKERS {
                let (this, fs) = (Arc::clone(self), fs.clone());
                core.spawn(move || async move { this.work(&fs).await });
            }
        }
        if let Some(core) = cores.first() {
            let (this, fs) = (Arc::clone(self), fs.clone());
            core.spawn(move || async move { this.look_after(&fs).await });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are not in the cloud. `is_committed`: layouts name them; else that is to be looked at before they are copied.
    pub fn add(&self, keys: Vec<ChunkKey>, is_committed: bool) {
        {
            let mut state = self.state();
            let state = &mut *state;
            let now = now();
            for key in keys {
                let is_full = state.chunks.len() >= CHUNKS_MAX;
                match state.chunks.entry(key) {
                    // Its copies are known: only whether it may be copied is news.
                    Entry::Occupied(mut known) => {
                        let copies = known.get_mut();
                        let was_committed = copies.is_committed;
                        copies.is_committed |= is_committed;
                        if is_committed && !was_committed && !copies.is_busy {
                            copies.queue();
                            state.due.push_back(key);
                        }
                    }
                    Entry::Vacant(_) if is_full => {
                        self.errors.fetch_add(1, Ordering::Relaxed);
                    }
                    Entry::Vacant(place) => {
                        place.insert(Copies {
                            done: Vec::new(),
                            wanted: 0,
                            is_committed,
                            is_tried: false,
                            failures: 0,
                            due: now,
                            is_busy: true,
                            is_queued: true,
                            is_stale: false,
                        });
                        state.due.push_back(key);
                    }
                }
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// These are in the cloud, or nothing any more: the homes may forget them.
    pub fn remove(&self, keys: &[ChunkKey]) {
        let peers = self.cluster.peers();
        let me = self.cluster.me();
        for key in keys {
            let Some(copies) = self.state().chunks.remove(key) else {
                continue;
            };
            // A home that did not answer in time may have taken it all the same.
            let asked = match copies.is_tried {
                true => homes_among(key.id(), &peers, me.as_ref()),
                false => Vec::new(),
            };
            for (at, peer) in peers.iter().enumerate() {
                if asked.contains(&at) || copies.done.iter().any(|(id, _)| *id == peer.id) {
                    self.cluster.release(peer, *key);
                }
            }
        }
        self.copied.notify(usize::MAX);
    }

    /// Nodes that have a copy on their devices, and whose connections are those over which they said so.
    pub fn copies(&self, key: ChunkKey) -> usize {
        let peers = self.cluster.peers();
        let state = self.state();
        let known = state.chunks.get(&key);
        known.map_or(0, |copies| copies.up(&peers))
    }

    /// Somebody waits for these.
    pub fn hurry(&self, keys: &[ChunkKey]) {
        {
            let peers = self.cluster.peers();
            let mut state = self.state();
            let State { chunks, first, .. } = &mut *state;
            for key in keys {
                let Some(copies) = chunks.get_mut(key) else {
                    continue;
                };
                let is_whole = copies.wanted > 0 && copies.up(&peers) >= copies.wanted;
                if copies.is_queued || !(copies.is_busy || is_whole) {
                    copies.failures = 0;
                    copies.queue();
                    first.push_back(*key);
                }
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// Has one of the nodes with a copy take a chunk over. It is not known here any more then: whoever took it gives it to the
    /// homes anew, and those that keep it for this node go on until that.
    pub async fn give_away(&self, key: ChunkKey) -> bool {
        let peers = self.cluster.peers();
        let mut takers: Vec<Arc<Peer>> = {
            let mut state = self.state();
            // What is being copied now would be released where it has been.
            let Some(copies) = state.chunks.get_mut(&key).filter(|c| !c.is_busy) else {
                return false;
            };
            copies.is_busy = true;
            let has_copy = |peer: &&Arc<Peer>| copies.is_up_at(peer);
            peers.iter().filter(has_copy).cloned().collect()
        };
        takers.shuffle(&mut rand::rng());
        for peer in takers {
            match self.cluster.take(&peer, key, TAKE_MAX).await {
                Ok(_) => {
                    self.state().chunks.remove(&key);
                    self.copied.notify(usize::MAX);
                    return true;
                }
                Err(error) => {
                    tracing::debug!(target: "peer", ?peer, %key, %error, "a node did not take a chunk of this full store over");
                }
            }
        }
        if let Some(copies) = self.state().chunks.get_mut(&key) {
            copies.is_busy = false;
        }
        false
    }

    /// The next change of what [`Replicator::copies`] says.
    pub fn copies_changed(&self) -> event_listener::EventListener {
        self.copied.listen()
    }

    /// Completes the counters.
    pub fn fill(&self, stats: &mut PeersStats) {
        let has_others = !self.cluster.peers().is_empty();
        let state = self.state();
        let is_whole = |c: &&Copies| c.wanted > 0 && c.done.len() >= c.wanted;
        let whole = state.chunks.values().filter(is_whole).count();
        stats.replicated_chunks = whole as u64;
        if has_others {
            stats.under_replicated_chunks = (state.chunks.len() - whole) as u64;
        }
        stats.given_replicas = self.given.load(Ordering::Relaxed);
        stats.replica_errors = self.errors.load(Ordering::Relaxed);
    }

    /// Puts into the queue what is due, for ever.
    async fn look_after(&self, fs: &FileSystem) {
        loop {
            sleep(LOOK).await;
            if self.cluster.me().is_none() || !fs.has_recovered() {
                continue;
            }
            let has_looked = std::mem::replace(&mut self.state().has_looked, true);
            if !has_looked {
                self.add(dirty_chunks(fs), false);
            }
            let peers = self.cluster.peers();
            let nodes: Vec<(String, u64)> =
                peers.iter().map(|p| (p.id.clone(), p.changes())).collect();
            let now = now();
            {
                let mut state = self.state();
                let state = &mut *state;
                let is_changed = std::mem::replace(&mut state.nodes, nodes.clone()) != nodes;
                for (key, copies) in &mut state.chunks {
                    let is_moved = is_changed && !copies.done.iter().all(|at| nodes.contains(at));
                    let is_lacking = is_changed && copies.done.len() < copies.wanted.max(1);
                    if copies.is_busy {
                        copies.is_stale |= is_changed;
                    } else if now >= copies.due || is_moved || is_lacking {
                        copies.queue();
                        state.due.push_back(*key);
                    }
                }
            }
            self.changed.notify(usize::MAX);
        }
    }

    async fn work(&self, fs: &FileSystem) {
        loop {
            let listener = self.changed.listen();
            let next = self.state().take();
            match next {
                Some(key) => {
                    self.copy(fs, key).await;
                    self.copied.notify(usize::MAX);
                }
                None => listener.await,
            }
        }
    }

    /// Gives a chunk to those of its homes that do not have it.
    async fn copy(&self, fs: &FileSystem, key: ChunkKey) {
        let (is_committed, is_again, before) = match self.state().chunks.get(&key) {
            Some(c) => (c.is_committed, c.is_tried, c.done.clone()),
            None => return,
        };
        if !is_committed && fs.awaits_commit(key) {
            self.put_off(key, |_| {});
            return;
        }
        let here = fs.find_chunk(key);
        let is_needed = match &here {
            Some(body) => body.is_dirty(),
            // Replaced in this node's store: by what is not committed yet, or by what was refused.
            None if before.is_empty() => false,
            None => fs.is_uncommitted(key.ino) || fs.is_named(key).await != Some(false),
        };
        if !is_needed {
            self.remove(&[key]);
            return;
        }
        let peers = self.cluster.peers();
        let me = self.cluster.me();
        let mut homes = homes_among(key.id(), &peers, me.as_ref());
        // Not always the same one first; nobody can tell which.
        homes.shuffle(&mut rand::rng());
        let mut is_named = !is_again;
        let mut done = Vec::new();
        let mut lost = Vec::new();
        // All at once: one that stands still does not keep a copy from the others.
        let ask = |at: &usize| {
            let (cluster, peer) = (Arc::clone(&self.cluster), Arc::clone(&peers[*at]));
            // A task of its own: the number is that of the moment of the answer, however long another one is given the chunk.
            spawn(async move {
                let held = cluster.hold(&peer, key, HOLD_MAX).await.map(|_| ());
                let changes = peer.changes();
                (peer, held.map(|()| changes))
            })
        };
        let mut asked: FuturesUnordered<_> = homes.iter().map(ask).collect();
        while let Some((peer, mut held)) = asked.next().await {
            if let (Err(AskError::NotFound), Some(body)) = (&held, &here) {
                // Lost there, or never taken: perhaps another node has written the chunk since, and its copy is in place.
                is_named = is_named || fs.is_named(key).await != Some(false);
                if !is_named && !fs.is_uncommitted(key.ino) {
                    self.remove(&[key]);
                    return;
                }
                is_named = true;
                let given = self.give(fs, &peer, key, body.len() as usize).await;
                held = given.map(|()| peer.changes());
            }
            match held {
                Ok(changes) => {
                    let at = (peer.id.clone(), changes);
                    self.has_copy(key, at.clone());
                    done.push(at);
                }
                Err(error) => {
                    if error == AskError::NotFound {
                        lost.push(peer.id.clone());
                    }
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(target: "peer", ?peer, %key, %error, "a home did not take a copy; it is tried again");
                }
            }
        }
        if here.is_none() {
            // Homes that cannot be asked now have it still, and nobody could give it to them again.
            let is_new = |id: &String| !lost.contains(id) && done.iter().all(|(at, _)| at != id);
            let kept: Vec<_> = before.into_iter().filter(|(id, _)| is_new(id)).collect();
            done.extend(kept);
        }
        let is_known = self.put_off(key, |copies| {
            copies.is_committed = true;
            copies.is_tried = true;
            copies.wanted = homes.len();
            if done.len() >= homes.len() {
                copies.failures = 0;
                copies.due = now() + CONFIRM;
            }
            copies.done = done;
        });
        if !is_known {
            // It went to the cloud, or was dropped, while it was copied.
            for at in homes {
                self.cluster.release(&peers[at], key);
            }
        }
    }

    /// A home has a copy: who waits for it need not wait for the others.
    fn has_copy(&self, key: ChunkKey, at: (String, u64)) {
        if let Some(copies) = self.state().chunks.get_mut(&key) {
            copies.done.retain(|(id, _)| *id != at.0);
            copies.done.push(at);
        }
        self.copied.notify(usize::MAX);
    }

    /// The chunk is looked at again after a pause that grows, unless `then` says when. False when it is not known any more.
    fn put_off(&self, key: ChunkKey, then: impl FnOnce(&mut Copies)) -> bool {
        let mut state = self.state();
        let copies = state.chunks.get_mut(&key);
        let is_known = copies.is_some();
        if let Some(copies) = copies {
            copies.failures = copies.failures.saturating_add(1);
            let pause = RETRY.0 * 2u32.saturating_pow(copies.failures.min(10));
            copies.due = now() + pause.min(RETRY.1);
            copies.is_busy = false;
            then(copies);
            if std::mem::take(&mut copies.is_stale) {
                copies.due = now();
            }
        }
        is_known
    }

    async fn give(
        &self,
        fs: &FileSystem,
        peer: &Arc<Peer>,
        key: ChunkKey,
        total: usize,
    ) -> Result<(), AskError> {
        let mut at = 0;
        while at < total {
            let len = (total - at).min(PAYLOAD_MAX);
            let mut front = IoBuf::alloc(PAGE + len.next_multiple_of(BLOCK));
            let bytes = front.split_off(PAGE);
            let first = u32::try_from(at / BLOCK).map_err(|_| AskError::Nonsense)?;
            let (read, mut bytes) = fs.read_for_peer(key, first, bytes).await;
            if read.is_err() {
                // What the other node has of it goes: nothing more comes.
                self.cluster.release(peer, key);
                return Err(AskError::Failed);
            }
            drop(bytes.split_off(len));
            let mut frame = front.split_off(PAGE - HEADER_BYTES);
            assert!(frame.unsplit(bytes).is_ok(), "two halves of one buffer");
            let given = self.cluster.put(peer, key, total, at, frame, GIVE_MAX);
            let given = given.await;
            at += len;
            if given.is_err() && at < total {
                self.cluster.release(peer, key);
            }
            given?;
        }
        self.given.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What is in the store and not in the cloud.
fn dirty_chunks(fs: &FileSystem) -> Vec<ChunkKey> {
    let mut keys = Vec::new();
    let mut from = 0;
    loop {
        let (bodies, next) = fs.store().inventory(from);
        keys.extend(bodies.iter().filter(|b| b.is_dirty()).map(|b| b.key()));
        match next {
            Some(next) => from = next,
            None => return keys,
        }
    }
}

#[cfg(test)]
mod tests;
