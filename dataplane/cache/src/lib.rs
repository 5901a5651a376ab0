//! The file system of a node, without FUSE: metadata cache, read path, write path, single flight on misses and
//! eviction from the standing list of victims.
//!
//! A hit (a read of a chunk in the store, an open under a lease) takes a few short locks and one device read; it
//! never crosses the socket. Everything else is asked of the agent through [`Link`]. No lock is held across
//! an await; what several requests change together is gathered first and applied in one go.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod adopt;
mod ahead;
mod attributes;
mod changing;
mod cloud;
mod commit;
mod conflict;
mod content;
mod directory;
mod entries;
mod fetch;
mod first_read;
mod fsync;
mod give;
mod inode;
mod lease;
mod link;
mod locks;
mod memory;
mod names;
mod open_chunk;
mod orphans;
mod pages;
mod parts;
mod read;
mod replicas;
mod seal;
mod serve;
mod sick;
mod space;
mod tiers;
mod versions;
mod write;
mod xattrs;

pub use adopt::{Adopted, LeftReplica};
pub use ahead::READ_AHEAD_BYTES;
pub use lease::Grant;
pub use link::{Link, Outgoing};
pub use memory::{CHUNK_BYTES, MemoryLimits, MemoryUse};
pub use tiers::{PeerMiss, PeerSource, PeerTier};

use fastcache_api::{Attr, DirEntry, Errno, Ino, SetAttr};
use fastcache_chunkstore::Store;
use fastcache_reactor::Arena;
use fastcache_reactor::striped::Striped;
use fastcache_reactor::sync::{
    AtomicBool, AtomicU32, AtomicU64, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use inode::InodeTable;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

/// A name that was found or made.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Attributes.
    pub attr: Attr,
    /// How long the kernel may keep the name.
    pub entry_valid: Duration,
    /// How long the kernel may keep the attributes.
    pub attr_valid: Duration,
}

/// What was found under a name.
#[derive(Clone, Debug)]
pub enum Found {
    /// This.
    Entry(Entry),
    /// Nothing, and how long the kernel may remember that.
    Absent(Duration),
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its handle.
    pub fh: u64,
    /// The kernel's pages of this file are still right.
    pub keep_cache: bool,
    /// It is to be read and written without the kernel's pages: an append where there are other nodes, since the kernel may
    /// not know where the file ends.
    pub is_direct: bool,
    /// The device is about to read what is in it: the answer goes out with that, and not before.
    pub is_being_read: bool,
}

/// A setattr request: size and attributes at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttrRequest {
    /// New size, bytes.
    pub size: Option<u64>,
    /// It is asked for through an open file: its close commits.
    pub is_open: bool,
    /// The rest.
    pub set: SetAttr,
}

/// Counts for statfs(2).
#[derive(Clone, Copy, Debug)]
pub struct StatfsOut {
    /// Size of the file system, in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users without privilege.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size, bytes.
    pub bsize: u32,
    /// Longest name, bytes.
    pub namelen: u32,
    /// Unit of the block counts, bytes.
    pub frsize: u32,
}

/// What the file system tells the kernel unasked. Implementations queue and return at once; they must deliver from
/// a thread that serves no requests.
pub trait KernelNotify: Send + Sync {
    /// Forget the attributes and pages of an inode.
    fn inval_inode(&self, ino: Ino);
    /// Forget the attributes of an inode, and its pages from this offset on.
    fn inval_pages(&self, ino: Ino, _from: u64) {
        self.inval_inode(ino);
    }
    /// Forget the attributes of an inode; its pages are right.
    fn inval_attr(&self, ino: Ino);
    /// Forget a directory entry.
    fn inval_entry(&self, parent: Ino, name: &[u8]);
    /// Ask again for every directory entry, and every name that did not exist, before it is used.
    fn inval_names(&self);
    /// Whether this kernel takes [`KernelNotify::inval_names`] (Linux 6.16).
    fn can_inval_names(&self) -> bool;
    /// Give back these inodes as far as nobody uses them: their pages go, and they are forgotten.
    fn prune(&self, _inos: Vec<Ino>) {}
    /// Whether this kernel takes [`KernelNotify::prune`] (Linux 6.18).
    fn can_prune(&self) -> bool {
        false
    }
    /// Calls `done` when everything queued before has been delivered.
    fn barrier(&self, done: Box<dyn FnOnce() + Send>);
    /// Calls `done` when what was queued before about these inodes, and about names, has been delivered: pages of others that
    /// the kernel cannot drop yet do not hold it up.
    fn barrier_of(&self, _inos: &HashSet<Ino>, done: Box<dyn FnOnce() + Send>) {
        self.barrier(done);
    }
    /// Calls `done` when what was queued before about the pages of this inode has been delivered, and waits for nothing that a
    /// change of names holds up.
    fn barrier_of_pages(&self, _ino: Ino, done: Box<dyn FnOnce() + Send>) {
        self.barrier(done);
    }
}

/// Completes the statistics with what other layers know.
pub type FillStats = Box<dyn Fn(&mut fastcache_api::control::DataStats) + Send + Sync>;

/// Counters of the file system; see `DataStats` for what each means.
#[derive(Default, Debug)]
pub(crate) struct Counters {
    pub hits: Striped<Hits>,
    pub misses: AtomicU64,
    pub fetched_chunks: AtomicU64,
    pub fetched_bytes: AtomicU64,
    pub evicted_chunks: AtomicU64,
    pub evicted_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub write_stalls: AtomicU64,
    pub uncommitted_files: AtomicU64,
    pub conflict_files: AtomicU64,
    pub ahead_chunks: AtomicU64,
    pub ahead_bytes: AtomicU64,
    pub ahead_used: AtomicU64,
    pub ahead_wasted: AtomicU64,
    pub ahead_failed: AtomicU64,
    pub peer_chunks: AtomicU64,
    pub peer_bytes: AtomicU64,
    pub peer_absent: AtomicU64,
    pub peer_hedges: AtomicU64,
    pub peer_parts: AtomicU64,
    pub peer_part_bytes: AtomicU64,
    pub given_chunks: AtomicU64,
    pub taken_chunks: AtomicU64,
}

/// Reads that the store answered, counted by each core.
#[derive(Default, Debug)]
pub(crate) struct Hits {
    pub reads: AtomicU64,
    pub bytes: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The file system. Clones share it; every method that is async runs on a core of the reactor.
#[derive(Clone)]
pub struct FileSystem {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub store: Store,
    pub link: Link,
    pub arena: RwLock<Arena>,
    pub inodes: InodeTable,
    pub versions: versions::Versions,
    pub flights: fetch::Flights,
    pub ahead: ahead::Ahead,
    pub parts: parts::Parts,
    pub first_read: first_read::FirstRead,
    pub unreadable: sick::Unreadable,
    pub space: space::Space,
    pub memory: memory::Memory,
    pub counters: Counters,
    pub notify: OnceLock<Box<dyn KernelNotify>>,
    /// The cores that answer the kernel.
    pub cores: OnceLock<Vec<fastcache_reactor::Remote>>,
    /// Chunk size of new files, bytes; the agent says it at the handshake.
    pub chunk_size: AtomicU32,
    pub lease: lease::Lease,
    pub entries: entries::Entries,
    pub locks: locks::Locks,
    /// There can be other nodes; the agent says it at the handshake.
    pub has_coordinator: AtomicBool,
    /// Dirty chunks are uploaded some time; the agent says it at the handshake.
    pub has_cloud: AtomicBool,
    pub orphans: Mutex<Vec<Ino>>,
    pub is_stopping: AtomicBool,
    /// What was sealed and not committed at the start is known.
    pub has_recovered: AtomicBool,
    pub started: fastcache_reactor::Instant,
    pub extra_stats: OnceLock<FillStats>,
    /// Other nodes; never set where there is to be none.
    pub peers: OnceLock<Box<dyn PeerTier>>,
    pub holds: replicas::Holds,
    pub given: give::Given,
    pub fsyncs: fsync::Fsyncs,
}

impl FileSystem {
    /// A file system over an open store, speaking to the agent through `link`.
    pub fn new(store: Store, link: Link, arena: Arena) -> FileSystem {
        FileSystem {
            inner: Arc::new(Inner {
                store,
                link,
                arena: RwLock::new(arena),
                inodes: InodeTable::default(),
                versions: versions::Versions::default(),
                flights: fetch::Flights::default(),
                ahead: ahead::Ahead::default(),
                parts: parts::Parts::default(),
                first_read: first_read::FirstRead::default(),
                unreadable: sick::Unreadable::default(),
                space: space::Space::default(),
                memory: memory::Memory::default(),
                counters: Counters::default(),
                notify: OnceLock::new(),
                cores: OnceLock::new(),
                chunk_size: AtomicU32::new(4 << 20),
                lease: lease::Lease::default(),
                entries: entries::Entries::default(),
                locks: locks::Locks::default(),
                has_coordinator: AtomicBool::new(false),
                has_cloud: AtomicBool::new(true),
                orphans: Mutex::new(Vec::new()),
                is_stopping: AtomicBool::new(false),
                has_recovered: AtomicBool::new(false),
                started: fastcache_reactor::now(),
                extra_stats: OnceLock::new(),
                peers: OnceLock::new(),
                holds: replicas::Holds::default(),
                given: give::Given::default(),
                fsyncs: fsync::Fsyncs::default(),
            }),
        }
    }

    /// Sets who tells the kernel what to forget. Once, before serving.
    pub fn set_notify(&self, notify: Box<dyn KernelNotify>) {
        let _ = self.inner.notify.set(notify);
    }

    /// Sets the cores that answer the kernel. Once, before serving.
    pub fn set_cores(&self, cores: Vec<fastcache_reactor::Remote>) {
        let _ = self.inner.cores.set(cores);
    }

    /// Sets what completes the statistics (transport, requests). Once, before serving.
    pub fn set_extra_stats(&self, fill: FillStats) {
        let _ = self.inner.extra_stats.set(fill);
    }

    /// Sets the way to other nodes. Once, before serving.
    pub fn set_peers(&self, peers: Box<dyn PeerTier>) {
        let _ = self.inner.peers.set(peers);
    }

    /// Sets the chunk size of new files, bytes (what the agent said at the handshake).
    pub fn set_chunk_size(&self, bytes: u32) {
        self.inner.chunk_size.store(bytes, Ordering::Relaxed);
    }

    /// Sets whether chunks can become clean by an upload (what the agent said at the handshake).
    pub fn set_has_cloud(&self, has_cloud: bool) {
        self.inner.has_cloud.store(has_cloud, Ordering::Relaxed);
    }

    /// Sets whether there can be other nodes (what the agent said at the handshake).
    pub fn set_has_coordinator(&self, has_coordinator: bool) {
        self.inner
            .has_coordinator
            .store(has_coordinator, Ordering::Relaxed);
    }

    /// Whether there can be other nodes.
    pub fn has_coordinator(&self) -> bool {
        self.inner.has_coordinator.load(Ordering::Relaxed)
    }

    /// A new session of the agent has begun, with an arena of its own. The agent before it may have ended between a change
    /// that somebody else made and telling about it: nothing that was known is used before it was asked for again.
    pub fn begin_session(&self, arena: Arena) {
        *lock_write(&self.inner.arena) = arena;
        self.end_lease();
    }

    /// The link to the agent.
    pub fn agent(&self) -> &Link {
        &self.inner.link
    }

    /// The chunk store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Whether the end has begun: no new sessions of the agent.
    pub fn is_stopping(&self) -> bool {
        self.inner.is_stopping.load(Ordering::Relaxed)
    }

    /// Whether there are other nodes.
    pub fn is_shared(&self) -> bool {
        self.inner.lease.is_shared()
    }
}

/// The wall clock of this core, for time stamps.
pub(crate) fn wall_now() -> fastcache_api::Time {
    fastcache_api::Time::of(fastcache_reactor::wall_clock())
}

/// Locks a mutex; a panic elsewhere while it was held does not matter to state that is applied in one go.
pub(crate) fn lock<T: ?Sized>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn lock_write<T: ?Sized>(m: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    m.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn lock_read<T: ?Sized>(m: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    m.read().unwrap_or_else(PoisonError::into_inner)
}

/// A page of a directory.
#[derive(Clone, Debug)]
pub struct DirPage {
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// Nothing follows.
    pub is_end: bool,
    /// What the attributes may be kept for; see [`FileSystem::remember`].
    pub grant: Grant,
}

/// What most operations answer.
pub type Result<T> = std::result::Result<T, Errno>;
