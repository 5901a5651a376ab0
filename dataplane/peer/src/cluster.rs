//! Who this node is and which other nodes there are, as the agent says; and what was exchanged with each.

use crate::client::Place;
use crate::handshake::{Identity, Token};
use fastcache_api::control::{LATENCY_BOUNDS_US, Latency, PeerStats, PeersStats};
use fastcache_reactor::sync::{AtomicU64, Mutex, RwLock};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Least time, beyond what is usual for a node, before the next one is asked.
const HEDGE_MIN: Duration = Duration::from_millis(10);
/// Most time before the next one is asked.
const HEDGE_MAX: Duration = Duration::from_millis(500);
/// Where the numbers of the next node's connections begin: they are nobody else's.
static FIRST_CHANGE: AtomicU64 = AtomicU64::new(0);

/// Another node, as it is named to this one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerAt {
    /// Its id.
    pub id: String,
    /// Where its data plane listens.
    pub address: SocketAddr,
}

/// Another node: its connections and counters. Lives as long as it is in the list, and as somebody talks to it.
pub struct Peer {
    /// Its id.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections, by core.
    pub(crate) places: Mutex<HashMap<usize, Arc<Place>>>,
    pub(crate) counters: PeerCounters,
    /// Connections to it that were made, or ended.
    pub(crate) changes: AtomicU64,
}

/// What was exchanged with one node since it was first named.
#[derive(Default)]
pub(crate) struct PeerCounters {
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) in_bytes: AtomicU64,
    pub(crate) out_bytes: AtomicU64,
    pub(crate) latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    pub(crate) latency_sum_us: AtomicU64,
    /// Smoothed duration of a request and its deviation, µs; as TCP does for its timer (RFC 6298).
    smooth_us: AtomicU64,
    deviation_us: AtomicU64,
}

impl PeerCounters {
    /// A request was answered with bytes.
    pub(crate) fn took(&self, time: Duration, is_small: bool) {
        let us = u64::try_from(time.as_micros())
            .unwrap_or(u64::MAX)
            .min(1 << 40);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(bucket) = self.latency.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.latency_sum_us.fetch_add(us, Ordering::Relaxed);
        // Cores may lose each other's update: it is an estimate. It is one of large answers, which small ones say nothing of.
        let before = self.smooth_us.load(Ordering::Relaxed);
        if is_small && before > 0 {
            return;
        }
        if before == 0 {
            self.smooth_us.store(us.max(1), Ordering::Relaxed);
            self.deviation_us.store(us / 2, Ordering::Relaxed);
            return;
        }
        let deviation = self.deviation_us.load(Ordering::Relaxed);
        let deviation = (3 * deviation + before.abs_diff(us)) / 4;
        self.deviation_us.store(deviation, Ordering::Relaxed);
        let smooth = (7 * before + us) / 8;
        self.smooth_us.store(smooth.max(1), Ordering::Relaxed);
    }
}

impl Peer {
    /// How long it is waited for before somebody else is asked, too.
    pub fn patience(&self) -> Duration {
        (HEDGE_MIN + self.usual()).min(HEDGE_MAX)
    }

    /// A request was answered with bytes, after this time.
    pub fn took(&self, time: Duration) {
        self.counters.took(time, false);
    }

    /// How long almost all of its answers took lately: the smoothed duration and four deviations. Zero before the first.
    pub(crate) fn usual(&self) -> Duration {
        let smooth = self.counters.smooth_us.load(Ordering::Relaxed);
        let deviation = self.counters.deviation_us.load(Ordering::Relaxed);
        Duration::from_micros(smooth + 4 * deviation)
    }

    /// Another number than before when a connection was made or ended: it may have been started again.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn hang_up(&self) {
        let places = std::mem::take(&mut *lock(&self.places));
        for place in places.values() {
            place.hang_up();
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.id, self.address)
    }
}

/// Counters of this node's server.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) parts: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) absent: AtomicU64,
}

/// This node among the others. Shared by all cores.
pub struct Cluster {
    pub(crate) token: Token,
    me: RwLock<Option<Identity>>,
    peers: RwLock<Arc<Vec<Arc<Peer>>>>,
    pub(crate) served: Served,
}

impl Cluster {
    /// Nobody yet.
    pub fn new(token: Token) -> Cluster {
        Cluster {
            token,
            me: RwLock::new(None),
            peers: RwLock::default(),
            served: Served::default(),
        }
    }

    /// Who this node is, once it was told.
    pub fn me(&self) -> Option<Identity> {
        self.me
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The other nodes now.
    pub fn peers(&self) -> Arc<Vec<Arc<Peer>>> {
        Arc::clone(&self.peers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets who this node is and which others there are. Connections to those that are gone, or somewhere else now, end.
    pub fn set(&self, me: Identity, named: &[PeerAt]) {
        let before = self.me();
        *self.me.write().unwrap_or_else(PoisonError::into_inner) = Some(me.clone());
        let is_same_self = before.is_none_or(|before| before == me);
        let old = self.peers();
        let mut new: Vec<Arc<Peer>> = Vec::with_capacity(named.len());
        for at in named {
            let known = old
                .iter()
                .find(|p| is_same_self && p.id == at.id && p.address == at.address);
            new.push(known.cloned().unwrap_or_else(|| {
                Arc::new(Peer {
                    id: at.id.clone(),
                    address: at.address,
                    places: Mutex::default(),
                    counters: PeerCounters::default(),
                    changes: AtomicU64::new(FIRST_CHANGE.fetch_add(1 << 32, Ordering::Relaxed)),
                })
            }));
        }
        let gone: Vec<Arc<Peer>> = old
            .iter()
            .filter(|p| !new.iter().any(|n| Arc::ptr_eq(n, p)))
            .cloned()
            .collect();
        let names = |list: &[Arc<Peer>]| {
            let names: Vec<String> = list.iter().map(|p| format!("{p:?}")).collect();
            names.join(", ")
        };
        let is_changed = !gone.is_empty() || new.len() != old.len();
        if is_changed {
            tracing::info!(target: "peer", peers = names(&new), gone = names(&gone), "other nodes");
        }
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        gone.iter().for_each(|p| p.hang_up());
    }

    /// Counters now.
    pub fn stats(&self) -> PeersStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let peers = self.peers();
        let of = |p: &Arc<Peer>| PeerStats {
            id: p.id.clone(),
            address: p.address.to_string(),
            connections: lock(&p.places).values().filter(|c| c.is_up()).count() as u64,
            requests: get(&p.counters.requests),
            errors: get(&p.counters.errors),
            in_bytes: get(&p.counters.in_bytes),
            out_bytes: get(&p.counters.out_bytes),
            latency: Latency {
                operation: p.id.clone(),
                buckets: p.counters.latency.iter().map(get).collect(),
                sum_us: get(&p.counters.latency_sum_us),
            },
        };
        PeersStats {
            peers: peers.iter().map(of).collect(),
            served_connections: get(&self.served.connections),
            refused_connections: get(&self.served.refused),
            broken_connections: get(&self.served.broken),
            served_parts: get(&self.served.parts),
            served_bytes: get(&self.served.bytes),
            served_absent: get(&self.served.absent),
            ..PeersStats::default()
        }
    }
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> fastcache_reactor::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
