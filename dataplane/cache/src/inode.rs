//! The inodes this node knows: attributes and layout under their lease, lookups and opens counted, and what was
//! changed here and is not committed yet.

use crate::ahead::Streams;
use crate::conflict::RefusedHandles;
use crate::lease::{Grant, Moment};
use crate::link::{expect_answer, unexpected};
use crate::open_chunk::OpenChunk;
use crate::pages::KernelPages;
use crate::{FileSystem, Result, lock};
use event_listener::Event;
use fastcache_api::{
    Attr, ChunkKey, Commit, Errno, Ino, InoMap, Layout, NsAnswer, NsOp, Time, Version,
};
use fastcache_chunkstore::ChunkBody;
use fastcache_reactor::Instant;
use fastcache_reactor::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex};
use fastcache_types::{BLOCK, BLOCK_U64};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Stripes of the table: enough that two cores seldom meet.
const STRIPES: usize = 64;
/// RAM that an inode takes beside what it has on the heap, bytes: itself with its `Arc` counts and what malloc adds, and its
/// place in a map that may be half empty.
pub(crate) const INODE_BYTES: u64 = size_of::<Inode>() as u64 + 32 + 48;
// With the counts of its `Arc` as large as a piece of memory of the allocator: one word more takes 128 bytes.
#[cfg(not(any(test, feature = "race")))]
const _: () = assert!(size_of::<Inode>() + 16 <= 512);

/// All inodes in use: looked up by the kernel, open, or with changes that are not committed.
pub(crate) struct InodeTable {
    stripes: Vec<Mutex<InoMap<Arc<Inode>>>>,
    /// How many there are.
    count: AtomicU64,
    /// What those of a stripe have on the heap, bytes, when it was weighed last.
    heaps: Vec<AtomicU64>,
    /// The stripe that is looked at next.
    next: AtomicUsize,
}

impl Default for InodeTable {
    fn default() -> Self {
        InodeTable {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            count: AtomicU64::new(0),
            heaps: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicUsize::new(0),
        }
    }
}

impl InodeTable {
    fn stripe(&self, ino: Ino) -> &Mutex<InoMap<Arc<Inode>>> {
        let n = usize::try_from(ino.0 % STRIPES as u64).unwrap_or(0);
        &self.stripes[n]
    }

    /// The inode, if it is known.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        let stripe = lock(self.stripe(ino));
        stripe.get(&ino).map(|inode| inode.used())
    }

    /// The inode, made known when it was not.
    pub fn get_or_insert(&self, ino: Ino) -> Arc<Inode> {
        let mut stripe = lock(self.stripe(ino));
        let inode = stripe.entry(ino).or_insert_with(|| {
            self.count.fetch_add(1, Ordering::Relaxed);
            Arc::new(Inode::new(ino))
        });
        inode.used()
    }

    /// Forgets the inode when nothing holds it any more.
    pub fn drop_if_idle(&self, ino: Ino) {
        let mut stripe = lock(self.stripe(ino));
        if let Some(inode) = stripe.get(&ino)
            && Arc::strong_count(inode) <= 2
            && lock(&inode.state).is_idle()
        {
            stripe.remove(&ino);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Every inode now.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.those(|_| true)
    }

    /// Every inode of which this is so. Whoever passes all of them also sees what they have on the heap, and has them give
    /// back what they need no more.
    pub fn those(&self, mut is_one: impl FnMut(&InodeState) -> bool) -> Vec<Arc<Inode>> {
        let mut found = Vec::new();
        for (stripe, heap) in self.stripes.iter().zip(&self.heaps) {
            let stripe = lock(stripe);
            let mut bytes = 0;
            for inode in stripe.values() {
                let mut state = lock(&inode.state);
                state.give_back();
                bytes += state.heap_bytes();
                if is_one(&state) {
                    found.push(Arc::clone(inode));
                }
            }
            heap.store(bytes, Ordering::Relaxed);
        }
        found
    }

    /// What all inodes take, bytes: their number is exact, what they have on the heap at most a second old.
    pub fn bytes(&self) -> u64 {
        let heaps = self.heaps.iter().map(|h| h.load(Ordering::Relaxed));
        self.count.load(Ordering::Relaxed) * INODE_BYTES + heaps.sum::<u64>()
    }

    /// The stripe whose turn it is.
    pub fn next_stripe(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % STRIPES
    }

    /// So much went from the heap of a stripe.
    pub fn lighten(&self, at: usize, bytes: u64) {
        let heap = &self.heaps[at];
        let before = heap.load(Ordering::Relaxed);
        heap.store(before.saturating_sub(bytes), Ordering::Relaxed);
    }

    /// Forgets the inodes of a stripe that `keep` does not keep; their map gives back what it does not need.
    pub fn retain(&self, at: usize, mut keep: impl FnMut(&Arc<Inode>) -> bool) {
        let mut stripe = lock(&self.stripes[at]);
        let before = stripe.len();
        stripe.retain(|_, inode| keep(inode));
        let gone = before - stripe.len();
        self.count.fetch_sub(gone as u64, Ordering::Relaxed);
        if stripe.capacity() > 4 * stripe.len().max(64) {
            stripe.shrink_to_fit();
        }
    }
}

/// One inode.
pub(crate) struct Inode {
    pub ino: Ino,
    pub state: Mutex<InodeState>,
    /// One at a time seals, truncates or punches. Taken before any chunk's state.
    pub seal_lock: async_lock::Mutex<()>,
    /// Who changes contents shares it, from before asking for the lease on writing until the change is made; who gives the
    /// lease up has it alone. Taken before `seal_lock`.
    pub writers: async_lock::RwLock<()>,
    /// A commit was acknowledged or given up, or a chunk went from open to sealed.
    pub changed: Event,
    /// Since the table was last looked through for what may go.
    pub was_used: AtomicBool,
}

/// What is known about an inode. Changed in one go, never held across an await.
#[derive(Default)]
pub(crate) struct InodeState {
    /// Lookups the kernel holds.
    pub lookups: u64,
    /// Open handles.
    pub opens: u32,
    /// No name is left.
    pub is_orphan: bool,
    /// Attributes; size and times include local changes.
    pub attr: Option<Attr>,
    /// The epoch of the lease in which attributes and layout were learned; 0: they are to be asked for again.
    pub learned: u64,
    /// The epoch in which this node got the lease on writing.
    pub may_write: u64,
    /// Contents, sealed local chunks included. `None`: not asked for yet.
    pub layout: Option<Layout>,
    /// Chunks being written, by index.
    pub open_chunks: BTreeMap<u32, Arc<OpenChunk>>,
    /// Changes since the last seal.
    pub unsealed: Unsealed,
    /// A seal took `unsealed` and is not among `commits` yet.
    pub is_sealing: bool,
    /// The layout version of the last seal: what the next commit is based on.
    pub sealed_version: Version,
    /// Sealed, not yet acknowledged by the coordinator; oldest first.
    pub commits: VecDeque<PendingCommit>,
    /// A task sends `commits`.
    pub is_committing: bool,
    /// A change that is not committed yet takes setuid and setgid away; until then the coordinator tells the old mode.
    pub kills_suid: bool,
    /// The device may lose what was sealed last: it has to be in the cloud before `close` says that it is safe.
    pub is_volatile: bool,
    /// How often something was sealed that it may lose.
    pub volatile_seals: u32,
    /// Why the last commit was refused, where handles have no numbers; told once, at the next close or fsync.
    pub commit_error: Option<Errno>,
    /// Whom a refusal is still to be told, where handles have numbers.
    pub refused_handles: Option<Box<RefusedHandles>>,
    /// A commit was refused, and those behind it will be: what was written is being saved beside, and nobody writes meanwhile.
    pub is_conflict: bool,
    /// Number of the last commit that was refused.
    pub refused_upto: u64,
    /// Names of the extended attributes, once asked for; the kernel asks for one before the first write to each file.
    pub xattrs: Option<Box<[Vec<u8>]>>,
    /// Who reads it in sequence.
    pub streams: Streams,
    /// The kernel's pages may be wrong: the next open drops them.
    pub is_kernel_stale: bool,
    /// Others may have changed it without this node being told: what is learned next says so.
    pub may_have_missed: bool,
    /// What is wrong with the kernel's pages.
    pub pages: KernelPages,
}

/// What changed since the last seal.
#[derive(Default, Clone)]
pub(crate) struct Unsealed {
    /// Anything at all.
    pub is_dirty: bool,
    /// Since when.
    pub since: Option<Instant>,
    /// Smallest size since then.
    pub truncate: Option<u64>,
    /// Chunks sealed ahead of the file, and holes.
    pub runs: Vec<fastcache_api::Run>,
    /// Clear setuid and setgid.
    pub kill_suid: bool,
    /// Versions that these chunks took the place of in the store.
    pub replaced: Vec<ChunkKey>,
}

/// A sealed state of the file on its way to the coordinator.
pub(crate) struct PendingCommit {
    pub commit: Commit,
    /// Number of its SEAL record.
    pub number: u64,
    /// Change time to stamp.
    pub now: Time,
    /// Versions that its chunks took the place of in the store: the layout names them until it is answered.
    pub replaced: Vec<ChunkKey>,
    /// Those of them that may be nowhere else: put back if it is refused.
    pub kept: Vec<Arc<ChunkBody>>,
}

impl Inode {
    fn new(ino: Ino) -> Inode {
        Inode {
            ino,
            state: Mutex::default(),
            seal_lock: async_lock::Mutex::new(()),
            writers: async_lock::RwLock::new(()),
            changed: Event::new(),
            was_used: AtomicBool::new(true),
        }
    }

    /// A reference, and a note that it was used.
    fn used(self: &Arc<Self>) -> Arc<Inode> {
        // Cores do not take the line from each other for what it says already.
        if !self.was_used.load(Ordering::Relaxed) {
            self.was_used.store(true, Ordering::Relaxed);
        }
        Arc::clone(self)
    }
}

impl InodeState {
    /// Whether nothing would be lost by forgetting it.
    pub fn is_idle(&self) -> bool {
        self.lookups == 0 && self.opens == 0 && self.is_unchanged()
    }

    /// Whether everything about it is at the coordinator, too.
    pub fn is_unchanged(&self) -> bool {
        self.open_chunks.is_empty()
            && !self.unsealed.is_dirty
            && !self.is_sealing
            && self.commits.is_empty()
            && !self.is_committing
            && self.commit_error.is_none()
    }

    /// Whether this version was written here and is not committed yet.
    pub fn is_to_be_committed(&self, key: ChunkKey) -> bool {
        let sealed = self.commits.iter().flat_map(|c| &c.commit.runs);
        sealed.chain(&self.unsealed.runs).any(|run| {
            let is_of_run = key
                .index
                .checked_sub(run.first)
                .is_some_and(|n| n < run.count);
            is_of_run && run.version == key.version
        })
    }

    /// Lays what waits to be committed over attributes and layout that do not have it: those of the coordinator.
    fn lay_commits(&mut self) {
        let (Some(attr), Some(layout)) = (&mut self.attr, &mut self.layout) else {
            return;
        };
        if attr.chunk_size == 0 {
            return;
        }
        for PendingCommit { commit, .. } in &self.commits {
            if let Some(size) = commit.truncate {
                layout.truncate(size, attr.chunk_size);
            }
            layout.lay(&commit.runs, attr.chunk_size);
            attr.size = commit.size;
            attr.mtime = commit.mtime;
            attr.layout_version = commit.version;
            if commit.kill_suid {
                attr.mode = without_suid(attr.mode);
                self.kills_suid = true;
            }
            self.sealed_version = commit.version;
        }
    }

    /// Gives back the memory of queues that a file had while it was written.
    fn give_back(&mut self) {
        if !self.is_unchanged() {
            return;
        }
        if self.commits.capacity() > 0 {
            self.commits = VecDeque::new();
        }
        // An empty tree keeps its root.
        self.open_chunks = BTreeMap::new();
        if self.unsealed.runs.is_empty() {
            self.unsealed.runs = Vec::new();
        }
        if let Some(layout) = &mut self.layout {
            layout.runs.shrink_to_fit();
        }
    }

    /// What it has on the heap and keeps at rest, bytes.
    pub fn heap_bytes(&self) -> u64 {
        let runs = self.layout.as_ref().map_or(0, |l| l.runs.capacity());
        let names = self.xattrs.iter().flat_map(|names| names.iter());
        let names: usize = names.map(|n| n.capacity() + size_of_val(n)).sum();
        (runs * size_of::<fastcache_api::Run>() + names + self.pages.heap_bytes()) as u64
    }

    /// Whether local changes are not at the coordinator yet.
    pub fn has_local_changes(&self) -> bool {
        self.is_uncommitted() || !self.open_chunks.is_empty()
    }

    /// Whether size and layout differ from the coordinator's.
    pub fn is_uncommitted(&self) -> bool {
        self.unsealed.is_dirty || self.is_sealing || !self.commits.is_empty()
    }

    /// The attributes as they are to be told: what is open here counts as allocated.
    pub fn told(&self) -> Option<Attr> {
        let mut attr = self.attr.clone()?;
        if let (true, Some(layout)) = (self.has_local_changes(), &self.layout) {
            attr.allocated = layout.allocated(attr.chunk_size);
            for (index, chunk) in &self.open_chunks {
                let sealed = layout.chunk(*index, attr.chunk_size).map_or(0, |(_, n)| n);
                let sealed = u64::from(sealed).next_multiple_of(BLOCK_U64);
                let open = lock(&chunk.state).len.next_multiple_of(BLOCK) as u64;
                attr.allocated += open.saturating_sub(sealed);
            }
        }
        Some(attr)
    }

    /// Takes newer attributes from the coordinator; size, times of contents and layout version stay local while
    /// there are local changes.
    ///
    /// `learned`: the epoch in which they may be used on; 0 for once.
    pub fn learn(&mut self, new: &Attr, learned: u64) {
        if self.attr.as_ref().is_none_or(|old| old.seq <= new.seq) {
            self.learned = learned;
        }
        // What is open was opened over the layout that is known: a write that is under way commits on top of that, or is refused.
        let has_changes = self.has_local_changes();
        match &mut self.attr {
            Some(old) if old.seq > new.seq => {}
            Some(old) if has_changes => {
                let (size, mtime, ctime, version) = (
                    old.size,
                    old.mtime,
                    old.ctime.max(new.ctime),
                    old.layout_version,
                );
                *old = new.clone();
                (old.size, old.mtime, old.ctime, old.layout_version) =
                    (size, mtime, ctime, version);
                if self.kills_suid {
                    old.mode = without_suid(old.mode);
                }
            }
            Some(old) => {
                self.kills_suid = false;
                if old.layout_version != new.layout_version {
                    self.layout = None;
                    if self.may_have_missed {
                        self.is_kernel_stale = true;
                        self.pages.all_wrong();
                    }
                }
                if old.seq != new.seq && self.may_have_missed {
                    self.xattrs = None;
                }
                // Without a lease nobody tells what comes next.
                self.may_have_missed = learned == 0;
                *old = new.clone();
            }
            None => {
                self.may_have_missed = learned == 0;
                self.attr = Some(new.clone());
            }
        }
    }

    /// Notes a change of contents now. True when that took setuid or setgid away, which the kernel does not expect of a
    /// write: it has to be told ([`FileSystem::mode_changed`]).
    pub fn touch(&mut self, kill_suid: bool) -> bool {
        let now = crate::wall_now();
        let mut is_killed = false;
        if let Some(attr) = &mut self.attr {
            attr.mtime = now;
            attr.ctime = now;
            if kill_suid {
                let before = attr.mode;
                attr.mode = without_suid(before);
                is_killed = attr.mode != before;
                self.kills_suid = true;
            }
        }
        self.unsealed.is_dirty = true;
        self.unsealed.kill_suid |= kill_suid;
        self.unsealed
            .since
            .get_or_insert_with(fastcache_reactor::now);
        is_killed
    }
}

impl FileSystem {
    /// Has the kernel forget the mode it knows: it would go on to run a program that was overwritten as its owner.
    pub(crate) fn mode_changed(&self, ino: Ino) {
        if let Some(notify) = self.inner.notify.get() {
            notify.inval_attr(ino);
        }
    }

    /// Takes in what the coordinator answered about an inode; the kernel drops its pages when they are found to be wrong.
    pub(crate) fn take_in(&self, ino: Ino, state: &mut InodeState, attr: &Attr, grant: Grant) {
        self.take_in_at(ino, state, attr, grant, self.inner.lease.now());
    }

    /// [`FileSystem::take_in`] at a moment.
    pub(crate) fn take_in_at(
        &self,
        ino: Ino,
        state: &mut InodeState,
        attr: &Attr,
        grant: Grant,
        now: Moment,
    ) {
        let was_stale = state.is_kernel_stale;
        state.learn(attr, self.inner.lease.holds_at(grant, ino, now));
        if state.is_kernel_stale
            && !was_stale
            && let Some(notify) = self.inner.notify.get()
        {
            notify.inval_inode(ino);
            state.pages.told();
        }
    }

    /// Takes in what a reply says about inodes that are known here.
    pub(crate) fn learn_touched(&self, reply: &fastcache_api::NsReply, grant: Grant) {
        for attr in &reply.touched {
            if let Some(inode) = self.inner.inodes.get(attr.ino) {
                self.take_in(attr.ino, &mut lock(&inode.state), attr, grant);
            }
        }
    }

    /// The inode with attributes that may be used now.
    pub(crate) async fn with_attr(&self, ino: Ino) -> Result<(Arc<Inode>, Attr)> {
        let inode = self.inner.inodes.get_or_insert(ino);
        {
            let state = lock(&inode.state);
            if self.is_usable(&state)
                && let Some(attr) = state.told()
            {
                drop(state);
                return Ok((inode, attr));
            }
        }
        let asked = self.inner.lease.ask();
        let reply = self.inner.link.ns(NsOp::GetAttr { ino }).await;
        let reply = match reply {
            Ok(r) if r.result.is_ok() => r,
            Ok(r) => {
                drop(inode);
                self.inner.inodes.drop_if_idle(ino);
                return Err(r.result.err().unwrap_or(Errno::EIO));
            }
            Err(e) => return Err(e),
        };
        let grant = asked.answered(reply.lease_ms);
        let attr = expect_answer!(reply, NsAnswer::Attr(attr) | NsAnswer::Entry(attr) => attr)?;
        let mut state = lock(&inode.state);
        self.take_in(ino, &mut state, &attr, grant);
        let attr = state.told().unwrap_or(attr);
        drop(state);
        Ok((inode, attr))
    }

    /// The inode with its layout loaded and usable now. `write`: asks for the lease on writing, too, where it has to be
    /// asked something anyway.
    pub(crate) async fn with_layout(&self, ino: Ino, write: bool) -> Result<Arc<Inode>> {
        let inode = self.inner.inodes.get_or_insert(ino);
        {
            let state = lock(&inode.state);
            if state.layout.is_some() && self.is_usable(&state) {
                drop(state);
                return Ok(inode);
            }
        }
        let loaded = if write {
            let _turn = inode.writers.read().await;
            self.load(&inode, true).await
        } else {
            self.load(&inode, false).await
        };
        match loaded {
            Ok(()) => Ok(inode),
            Err(e) => {
                drop(inode);
                self.inner.inodes.drop_if_idle(ino);
                Err(e)
            }
        }
    }

    /// A turn at changing the contents of an inode, which nobody else may change as long as it is held; its layout is
    /// loaded. Never to be asked for while one is held. EIO while what was written before is being saved beside, and that
    /// takes long.
    pub(crate) async fn turn_to_write<'i>(
        &self,
        inode: &'i Arc<Inode>,
    ) -> Result<async_lock::RwLockReadGuard<'i, ()>> {
        loop {
            let turn = inode.writers.read().await;
            let (is_ready, is_conflict) = {
                let state = lock(&inode.state);
                let is_loaded = state.layout.is_some() && self.is_usable(&state);
                (is_loaded && self.may_write(&state), state.is_conflict)
            };
            if is_conflict {
                drop(turn);
                self.conflict_over(inode).await?;
                continue;
            }
            if !is_ready {
                let _waits = self.inner.space.stalls(inode.ino);
                self.load(inode, true).await?;
            }
            return Ok(turn);
        }
    }

    /// Asks for attributes and layout of what is open here and has no name any more.
    pub(crate) async fn hold(&self, inode: &Arc<Inode>) -> Result<()> {
        self.load(inode, false).await
    }

    /// Asks for attributes and layout. For `write` the caller has a turn.
    pub(crate) async fn load(&self, inode: &Arc<Inode>, write: bool) -> Result<()> {
        let ino = inode.ino;
        loop {
            let epoch = self.inner.lease.epoch();
            let asked = self.inner.lease.ask();
            let reply = self.inner.link.ns(NsOp::Open { ino, write }).await?;
            let grant = asked.answered(reply.lease_ms);
            let (attr, layout) = match reply.result {
                Ok(NsAnswer::Opened { attr, layout }) => (attr, layout),
                Ok(other) => return Err(unexpected(&other)),
                Err(e) => return Err(e),
            };
            let mut state = lock(&inode.state);
            let is_current = state.attr.as_ref().is_none_or(|a| a.seq <= attr.seq);
            let is_changed = state.has_local_changes() && state.layout.is_some();
            self.take_in(ino, &mut state, &attr, grant);
            if is_current && !is_changed {
                state.sealed_version = attr.layout_version;
                state.layout = Some(layout);
                // After a restart they are all that is known of what was written here.
                state.lay_commits();
            }
            if write {
                // Who gives it up waits until this write is done, whatever was revoked meanwhile.
                state.may_write = epoch;
            }
            if state.layout.is_some() {
                return Ok(());
            }
            // Attributes that are newer than this layout came in between: ask again.
        }
    }

    /// Whether attributes can be told: as they were learned, or as they were changed here by whoever may.
    pub(crate) fn is_usable(&self, state: &InodeState) -> bool {
        if state.attr.is_none() {
            return false;
        }
        self.is_trusted(state) || (!self.inner.lease.is_shared() && state.has_local_changes())
    }
}

/// A mode without setuid, and without setgid where the group may execute (write(2)).
pub(crate) fn without_suid(mode: u32) -> u32 {
    let mode = mode & !0o4000;
    if mode & 0o010 != 0 {
        mode & !0o2000
    } else {
        mode
    }
}
