//! Repair: what is kept here for nodes that are gone is taken over, so that it gets to the cloud, and to new homes meanwhile.
//!
//! A node is gone when the coordinator has dropped it and it has not come back for a while. Chunks of which no other home has a
//! copy come first, at once; of the others each home waits for its turn, in their order, so that one of them does it and the others
//! find it done: in the cloud, or kept for a node that is there.

use fastcache_api::ChunkKey;
use fastcache_api::control::PeersStats;
use fastcache_cache::{Adopted, FileSystem, LeftReplica};
use fastcache_peer::{Cluster, all_homes, homes_among};
use fastcache_reactor::{Instant, Remote, now, sleep};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often it is looked for replicas of nodes that are gone.
const LOOK: Duration = Duration::from_secs(2);
/// How long a node is missing in the coordinator's list before it is gone: after a restart of the coordinator, or a fence, it
/// registers again.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// How much longer each further home waits.
const TURN: Duration = Duration::from_secs(10);
/// How long another node may take to say whether it has a chunk.
const HAS_MAX: Duration = Duration::from_secs(2);
/// Chunks that are taken over at once.
const AT_ONCE: usize = 8;
/// Chunks that others are asked about before some are taken over.
const ASK_MAX: usize = 512;
/// Chunks that are looked at before it is looked anew which are left.
const PASS_MAX: usize = 4096;

#[derive(Default)]
struct State {
    /// Owners that are not there, and since when.
    absent: HashMap<String, Instant>,
    /// How many other homes have a replica.
    others: HashMap<ChunkKey, usize>,
    /// What was taken over and is not in the cloud yet, with its length.
    own: HashMap<ChunkKey, u32>,
    /// What could not be taken over when it was tried: others come first.
    put_off: HashSet<ChunkKey>,
    /// Replicas of nodes that are not there: chunks, bytes.
    left: (u64, u64),
}

/// Takes over what nodes that are gone left here.
pub struct Repair {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    repaired: AtomicU64,
}

impl Repair {
    /// Begins, on one core.
    pub fn start(cluster: Arc<Cluster>, fs: &FileSystem, core: Option<&Remote>) -> Arc<Repair> {
        let this = Arc::new(Repair {
            cluster,
            state: Mutex::default(),
            repaired: AtomicU64::new(0),
        });
        if let Some(core) = core {
            let (this, fs) = (Arc::clone(&this), fs.clone());
            core.spawn(move || async move { this.look_after(&fs).await });
        }
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes the counters.
    pub fn fill(&self, stats: &mut PeersStats) {
        let state = self.state();
        let own: u64 = state.own.values().map(|len| u64::from(*len)).sum();
        stats.repair_chunks = state.left.0 + state.own.len() as u64;
        stats.repair_bytes = state.left.1 + own;
        stats.repaired_chunks = self.repaired.load(Ordering::Relaxed);
    }

    async fn look_after(&self, fs: &FileSystem) {
        loop {
            sleep(LOOK).await;
            if self.cluster.me().is_none() || !fs.has_recovered() {
                continue;
            }
            let due = self.due(fs);
            if due.is_empty() {
                continue;
            }
            self.ask_for_copies(&due).await;
            self.take_over(fs, due).await;
            self.due(fs);
        }
    }

    /// Replicas of nodes that are gone, with the time since when. Keeps account of what is left.
    fn due(&self, fs: &FileSystem) -> Vec<(LeftReplica, Instant)> {
        let left = fs.left_replicas();
        let now = now();
        let mut state = self.state();
        let state = &mut *state;
        let bytes = left.iter().map(|o| u64::from(o.len)).sum();
        state.left = (left.len() as u64, bytes);
        state.own.retain(|key, _| {
            let here = fs.store().find(*key);
            here.is_some_and(|body| body.is_dirty())
        });
        let mut absent = HashMap::new();
        for of in &left {
            if !absent.contains_key(&of.owner) {
                let since = state.absent.get(&of.owner).copied().unwrap_or(now);
                absent.insert(of.owner.clone(), since);
            }
        }
        for owner in absent.keys().filter(|o| !state.absent.contains_key(*o)) {
            if owner.is_empty() {
                tracing::info!(target: "peer", "copies were kept here before the restart: what no node asks for again is looked after");
                continue;
            }
            tracing::warn!(target: "peer", owner, "a node is gone, or lost its device, that wrote what is not in the cloud: unless it wants that again, others take it over");
        }
        state.absent = absent;
        let mut due = Vec::new();
        let mut others = HashMap::new();
        for of in left {
            let since = state.absent.get(&of.owner).copied().unwrap_or(now);
            others.extend(state.others.remove_entry(&of.key));
            if now.duration_since(since) >= GONE_AFTER {
                due.push((of, since));
            }
        }
        state.others = others;
        let keys: HashSet<ChunkKey> = due.iter().map(|(of, _)| of.key).collect();
        state.put_off.retain(|key| keys.contains(key));
        due
    }

    /// Finds out how many other homes have each.
    async fn ask_for_copies(&self, due: &[(LeftReplica, Instant)]) {
        let peers = self.cluster.peers();
        let me = self.cluster.me();
        let ask = async |key: ChunkKey| {
            let homes = homes_among(key.id(), &peers, me.as_ref());
            let asked = homes
                .iter()
                .map(|at| self.cluster.has(&peers[*at], key, HAS_MAX));
            let answers = join_all(asked).await;
            (key, answers.iter().filter(|has| has.is_ok()).count())
        };
        let unknown: Vec<ChunkKey> = {
            let state = self.state();
            let keys = due.iter().map(|(of, _)| of.key);
            let unknown = keys.filter(|key| !state.others.contains_key(key));
            unknown.take(ASK_MAX).collect()
        };
        for some in unknown.chunks(AT_ONCE) {
            let counted = join_all(some.iter().map(|key| ask(*key))).await;
            self.state().others.extend(counted);
        }
    }

    /// Takes over those whose turn it is, single copies first.
    async fn take_over(&self, fs: &FileSystem, mut due: Vec<(LeftReplica, Instant)>) {
        let peers = self.cluster.peers();
        let me = self.cluster.me();
        {
            let state = self.state();
            let others = |of: &LeftReplica| state.others.get(&of.key).copied().unwrap_or(0);
            due.retain(|(of, since)| {
                let homes = all_homes(of.key.id(), &peers, me.as_ref());
                let place = homes.iter().position(|at| *at == peers.len());
                let turn = u32::try_from(place.unwrap_or(homes.len())).unwrap_or(u32::MAX);
                let is_asked = state.others.contains_key(&of.key);
                is_asked && others(of) == 0 || since.elapsed() >= GONE_AFTER + TURN * turn
            });
            due.sort_by_key(|(of, _)| (state.put_off.contains(&of.key), others(of)));
            due.truncate(PASS_MAX);
        }
        let taken = stream::iter(due).map(async |(of, _)| (fs.adopt(&of).await, of));
        let mut taken = std::pin::pin!(taken.buffer_unordered(AT_ONCE));
        while let Some((adopted, of)) = taken.next().await {
            let mut state = self.state();
            state.put_off.remove(&of.key);
            match adopted {
                Adopted::Own => {
                    self.repaired.fetch_add(1, Ordering::Relaxed);
                    state.own.insert(of.key, of.len);
                }
                Adopted::Needless => {}
                Adopted::Later => {
                    state.put_off.insert(of.key);
                }
            }
        }
    }
}
