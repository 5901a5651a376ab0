//! Replicas: chunks of other nodes that are not in the cloud yet. They are in the store as cached chunks are, and a *hold* keeps
//! each from eviction until its owner says that it is in the cloud, or nothing any more.
//!
//! Owners give what the coordinator's layout names, so that a commit that never arrives leaves the copies of what it would have
//! replaced. Versions of one owner grow; those of two say nothing about which is newer, which the layout says alone.
//!
//! The device knows which chunks are held, and not for whom. After a restart of this node they are held for nobody, and their
//! owners, who notice, hold them again.
//! What its owner has not confirmed for a while is left: the owner is gone, was started again meanwhile, or its word got lost (and so
//! is what is held for nobody). This node takes it over if a layout still names it and the cloud has not got it (`adopt`), and forgets the hold else.

use crate::inode::PendingCommit;
use crate::open_chunk::device_error;
use crate::seal::keys_of;
use crate::{FileSystem, LeftReplica, lock};
use fastcache_api::{ChunkKey, Errno, Ino, Run, Version};
use fastcache_chunkstore::{ChunkBody, ChunkInfo, SealChunk, SealData};
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::{Instant, IoBuf, now, timeout};
use fastcache_types::{ChunkId, blocks_of};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Replicas take at most this share of the store: with what may be dirty there is room left for reads.
const REPLICA_PERCENT: u64 = 15;
/// What its owner, who is there, has not confirmed for so long is taken over if anybody needs it. Owners confirm three times as
/// often.
const CONFIRMED_FOR: Duration = Duration::from_secs(180);
/// How long the coordinator is asked which of two versions a layout names.
const NAMED_MAX: Duration = Duration::from_secs(5);
/// Room for the header of the largest chunk, blocks.
const HEADER_ROOM: u32 = 8;

struct Hold {
    version: Version,
    owner: String,
    len: u32,
    confirmed: Instant,
}

impl Hold {
    fn key(&self, id: ChunkId) -> ChunkKey {
        ChunkKey {
            ino: id.ino,
            index: id.index,
            version: self.version,
        }
    }
}

/// Who holds what was held before a restart; no node has this id.
const NOBODY: &str = "";

/// Chunks that are kept for other nodes.
#[derive(Default)]
pub(crate) struct Holds {
    map: Mutex<HashMap<ChunkId, Hold>>,
    ended: Mutex<Ended>,
}

/// Holds that are over, which the device has to be told.
#[derive(Default)]
struct Ended {
    due: Vec<ChunkKey>,
    /// It is being told of these.
    telling: HashSet<ChunkKey>,
}

impl Holds {
    /// Whether this version of a chunk is kept for another node.
    pub(crate) fn keeps(&self, key: ChunkKey) -> bool {
        lock(&self.map)
            .get(&key.id())
            .is_some_and(|hold| hold.version == key.version)
    }

    /// What the device is to be told now: what nobody has held again.
    fn begin_to_tell(&self) -> Vec<ChunkKey> {
        let map = lock(&self.map);
        let mut ended = lock(&self.ended);
        let mut due = std::mem::take(&mut ended.due);
        due.retain(|key| {
            let hold = map.get(&key.id());
            hold.is_none_or(|hold| hold.version != key.version)
        });
        ended.telling.extend(&due);
        due
    }

    /// It was told.
    fn told(&self, over: &[ChunkKey]) {
        let mut ended = lock(&self.ended);
        for key in over {
            ended.telling.remove(key);
        }
    }

    /// Whether another version of the chunk is kept, which a cached one must not replace.
    fn keeps_other(&self, key: ChunkKey) -> bool {
        lock(&self.map)
            .get(&key.id())
            .is_some_and(|hold| hold.version != key.version)
    }

    /// The version of a chunk that is kept, and for whom.
    fn of(&self, id: ChunkId) -> Option<(Version, String)> {
        let map = lock(&self.map);
        map.get(&id).map(|hold| (hold.version, hold.owner.clone()))
    }

    fn left(&self, is_live: impl Fn(&str) -> bool, now: Instant) -> Vec<LeftReplica> {
        let map = lock(&self.map);
        let mut are_live: HashMap<&str, bool> = HashMap::new();
        let mut found = Vec::new();
        for (id, hold) in &*map {
            let owner = hold.owner.as_str();
            let is_live =
                owner != NOBODY && *are_live.entry(owner).or_insert_with(|| is_live(owner));
            if !is_live || now.duration_since(hold.confirmed) > CONFIRMED_FOR {
                found.push(LeftReplica {
                    key: hold.key(*id),
                    owner: hold.owner.clone(),
                    len: hold.len,
                });
            }
        }
        found
    }

    /// Chunks and bytes.
    pub(crate) fn levels(&self) -> (u64, u64) {
        let map = lock(&self.map);
        let bytes = map.values().map(|hold| u64::from(hold.len)).sum();
        (map.len() as u64, bytes)
    }
}

impl FileSystem {
    /// Whether a chunk that was fetched may be put into the store.
    pub(crate) fn may_cache(&self, key: ChunkKey) -> bool {
        !self.inner.holds.keeps_other(key)
    }

    /// Ends what is kept of other versions of a chunk: the file has this one.
    pub(crate) fn end_other_holds(&self, key: ChunkKey) {
        let mut map = lock(&self.inner.holds.map);
        let is_other = |hold: &Hold| hold.version != key.version;
        if map.get(&key.id()).is_some_and(is_other) {
            map.remove(&key.id());
        }
    }

    /// Whether the chunk that is in the store under this id is kept for another node.
    pub(crate) fn is_held(&self, id: ChunkId) -> bool {
        let here = self.inner.store.get(id);
        here.is_some_and(|body| self.inner.holds.keeps(body.key()))
    }

    /// Whether a version is kept for this owner.
    pub(crate) fn is_kept_for(&self, owner: &str, key: ChunkKey) -> bool {
        let held = self.inner.holds.of(key.id());
        held.is_some_and(|(version, by)| version == key.version && by == owner)
    }

    /// What is kept for nodes that are not there, or that do not say any more that they want it.
    pub fn left_replicas(&self) -> Vec<LeftReplica> {
        match self.inner.peers.get() {
            Some(tier) => self.inner.holds.left(|owner| tier.is_live(owner), now()),
            None => Vec::new(),
        }
    }

    fn note_hold(&self, owner: &str, key: ChunkKey, len: u32) {
        let hold = Hold {
            version: key.version,
            owner: owner.to_owned(),
            len,
            confirmed: now(),
        };
        lock(&self.inner.holds.map).insert(key.id(), hold);
    }

    /// Keeps a replica that may be here; its length, when it is. What its owner has held already is on stable storage; what is
    /// only cached may not be, and has to be given again.
    pub fn hold_for_peer(&self, owner: &str, key: ChunkKey) -> Option<usize> {
        if !self.is_kept_for(owner, key) {
            return None;
        }
        let len = self.inner.store.find(key)?.len();
        self.note_hold(owner, key, len);
        Some(len as usize)
    }

    /// Whether there is room for a replica, as far as its length is known here.
    pub fn may_keep_for_peer(&self, key: ChunkKey) -> bool {
        let (_, held) = self.inner.holds.levels();
        held + self.expected_len(key) as u64 <= self.replicas_max()
    }

    /// Bytes that replicas may take.
    fn replicas_max(&self) -> u64 {
        self.inner.store.usage().capacity_bytes / 100 * REPLICA_PERCENT
    }

    /// A replica need not be kept any more.
    pub fn release_for_peer(&self, owner: &str, key: ChunkKey) {
        let mut map = lock(&self.inner.holds.map);
        let is_same = |hold: &Hold| hold.version == key.version && hold.owner == owner;
        if map.get(&key.id()).is_some_and(is_same) {
            map.remove(&key.id());
            lock(&self.inner.holds.ended).due.push(key);
        }
    }

    /// What the device has from before a restart is held until somebody says otherwise.
    pub fn hold_again(&self, kept: &[ChunkInfo]) {
        for chunk in kept {
            self.note_hold(NOBODY, chunk.key, chunk.len);
        }
    }

    /// Whether a chunk is held on the device, too; and stays so as long as its hold is noted.
    fn is_kept_here(&self, key: ChunkKey) -> bool {
        // In this order: when it is told no more, its body says what it was told.
        let is_ending = lock(&self.inner.holds.ended).telling.contains(&key);
        let here = self.inner.store.find(key);
        !is_ending && here.is_some_and(|body| body.is_kept() || body.is_dirty())
    }

    /// Seals a chunk once more as something else. Its bytes stay where they are.
    pub(crate) async fn seal_as(
        &self,
        body: &Arc<ChunkBody>,
        is_dirty: bool,
        is_kept: bool,
    ) -> crate::Result<()> {
        let store = &self.inner.store;
        let meta = store.meta(body).await.map_err(|e| device_error(&e))?;
        if !self.make_room_now(HEADER_ROOM).await {
            return Err(Errno::EAGAIN);
        }
        let seal = SealChunk {
            key: body.key(),
            len: body.len(),
            is_dirty,
            is_kept,
            is_pending: false,
            data: SealData::Placed {
                runs: body.runs().to_vec(),
                crcs: meta.crcs.to_vec(),
            },
        };
        let sealed = store.seal(vec![seal], None).await;
        let sealed = sealed.map_err(|e| device_error(&e))?;
        self.tell_stored(&sealed.bodies, &sealed.replaced);
        Ok(())
    }

    /// Takes in a replica: whole blocks, padded with zeros. On stable storage when this returns. EAGAIN when there is no room for
    /// it, or something in its place that must stay: a later version of the same owner, another owner's that the layout may
    /// name, or this node's own. Not to be dropped before it returns: what is stored is told after it is.
    pub async fn put_for_peer(
        &self,
        owner: &str,
        key: ChunkKey,
        len: usize,
        buf: IoBuf,
    ) -> crate::Result<()> {
        let len = u32::try_from(len).map_err(|_| Errno::EINVAL)?;
        let may_replace = match self.inner.holds.of(key.id()) {
            None => true,
            Some((version, by)) if by == owner => version <= key.version,
            Some((version, _)) if version == key.version => true,
            Some(_) => self.is_named(key).await == Some(true),
        };
        if !may_replace || self.inner.given.is_leaving(key) {
            return Err(Errno::EAGAIN);
        }
        if let Some(body) = self.inner.store.find(key) {
            if !body.is_kept() && !body.is_dirty() {
                // It was cached.
                self.seal_as(&body, false, true).await?;
            }
        } else {
            let most = self.replicas_max();
            let (_, held) = self.inner.holds.levels();
            if held + u64::from(len) > most || !self.make_room_now(blocks_of(len) + 3).await {
                return Err(Errno::EAGAIN);
            }
            let seal = SealChunk {
                key,
                len,
                is_dirty: false,
                is_kept: true,
                is_pending: false,
                data: SealData::Inline { buf },
            };
            let sealed = self.inner.store.seal(vec![seal], None).await;
            let sealed = sealed.map_err(|error| {
                tracing::warn!(target: "nvme", %key, owner, %error, "a replica could not be kept");
                Errno::EAGAIN
            })?;
            self.tell_stored(&sealed.bodies, &sealed.replaced);
        }
        // Held from here on, unless it was evicted in between, something else is in its place, or it was just given up.
        self.note_hold(owner, key, len);
        if !self.is_kept_here(key) {
            self.release_for_peer(owner, key);
            return Err(Errno::EAGAIN);
        }
        let flushed = self.inner.store.flush().await;
        flushed.map_err(|error| {
            tracing::warn!(target: "nvme", %key, owner, %error, "a replica is not on stable storage");
            self.release_for_peer(owner, key);
            Errno::EIO
        })
    }

    /// Ends holds of what is not here any more, and tells the device which are over. Called now and then.
    pub(crate) async fn expire_holds(&self) {
        let is_here = |key: ChunkKey| self.inner.store.find(key).is_some();
        lock(&self.inner.holds.map).retain(|id, hold| is_here(hold.key(*id)));
        let over = self.inner.holds.begin_to_tell();
        self.inner.store.unkeep(&over).await;
        self.inner.holds.told(&over);
    }

    /// Whether the coordinator's layout names this version. `None` when it cannot be asked, and while this node has changes of
    /// its own that are not committed.
    pub async fn is_named(&self, key: ChunkKey) -> Option<bool> {
        let loaded = timeout(NAMED_MAX, self.with_layout(key.ino, false)).await;
        let inode = match loaded.ok()? {
            Ok(inode) => inode,
            Err(Errno::ENOENT) => return Some(false),
            Err(_) => return None,
        };
        let state = lock(&inode.state);
        let (Some(attr), Some(layout)) = (&state.attr, &state.layout) else {
            return None;
        };
        if state.has_local_changes() {
            return None;
        }
        let named = layout.chunk(key.index, attr.chunk_size);
        Some(named.is_some_and(|(version, _)| version == key.version))
    }

    /// Whether a version is part of a change that the coordinator has not answered yet; what it replaces is named until then.
    pub fn awaits_commit(&self, key: ChunkKey) -> bool {
        let is_of = |run: &Run| {
            let at = key.index.checked_sub(run.first);
            run.version == key.version && at.is_some_and(|at| at < run.count)
        };
        self.inner.inodes.get(key.ino).is_some_and(|inode| {
            let state = lock(&inode.state);
            let mut runs = state.commits.iter().flat_map(|c| &c.commit.runs);
            state.is_sealing || state.unsealed.runs.iter().any(is_of) || runs.any(is_of)
        })
    }

    /// Whether a file has changes that the coordinator has not answered yet.
    pub fn is_uncommitted(&self, ino: Ino) -> bool {
        let inode = self.inner.inodes.get(ino);
        inode.is_some_and(|inode| lock(&inode.state).is_uncommitted())
    }

    /// Whether it is known what was sealed and not committed when this node was started.
    pub fn has_recovered(&self) -> bool {
        self.inner.has_recovered.load(Ordering::Acquire)
    }

    /// A commit was answered. The layout names its versions from now on, which are copied, and no longer those that they
    /// replaced. One that was refused leaves the layout, and the copies of what it names, as they were.
    pub(crate) fn copies_follow(&self, done: &PendingCommit, refused: Option<Errno>) {
        if self.inner.peers.get().is_none() {
            return;
        }
        if matches!(refused, None | Some(Errno::ENOENT)) {
            self.need_no_replicas(&done.replaced);
        }
        let keys = keys_of(&done.commit);
        match refused {
            None => self.replicate(keys),
            Some(_) => self.need_no_replicas(&keys),
        }
    }

    /// These versions were committed and are not in the cloud: they are to be copied to other nodes.
    pub(crate) fn replicate(&self, mut keys: Vec<ChunkKey>) {
        if let Some(tier) = self.inner.peers.get() {
            // Those that were sealed ahead of their file may be in the cloud by now.
            keys.retain(|key| {
                let here = self.inner.store.find(*key);
                here.is_some_and(|body| body.is_dirty())
            });
            tier.sealed(keys);
        }
    }

    /// These versions are in the cloud, or nothing any more: their copies need not be kept.
    pub(crate) fn need_no_replicas(&self, keys: &[ChunkKey]) {
        if let Some(tier) = self.inner.peers.get() {
            tier.settled(keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_confirms_is_left_whether_its_owner_is_there_or_not() {
        let holds = Holds::default();
        let confirmed =
            fastcache_reactor::run(fastcache_reactor::Config::default(), || async { now() })
                .unwrap();
        for (n, owner) in [(1, "there"), (2, "gone")] {
            let id = ChunkId {
                ino: Ino(n),
                index: 0,
            };
            let hold = Hold {
                version: Version(1),
                owner: owner.to_owned(),
                len: 1,
                confirmed,
            };
            lock(&holds.map).insert(id, hold);
        }
        let left = |after| {
            let left = holds.left(|owner| owner == "there", confirmed + after);
            let mut owners: Vec<String> = left.into_iter().map(|of| of.owner).collect();
            owners.sort();
            owners
        };
        let second = Duration::from_secs(1);
        assert_eq!(left(CONFIRMED_FOR), ["gone"]);
        assert_eq!(left(CONFIRMED_FOR + second), ["gone", "there"]);
    }
}
