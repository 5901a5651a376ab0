//! The registry: which nodes there are, under which session each was registered last, and how they are.
//!
//! A node is known by its peer id for ever (`peers.json` in the state directory): that it once held leases decides
//! whether a change has to wait after a restart of the coordinator. Sessions are of one run of the coordinator.
//!
//! With the id goes the identity of the directory the node was started in. The same one may take its place again as soon
//! as the process before it is gone. Another one may when the node was not heard of until it is stale, and nothing that it
//! was promised lasts any more.

#[cfg(test)]
mod tests;

use fastcache_api::grpc;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Most nodes of a cluster.
pub const PEERS_MAX: usize = 1000;
/// Longest peer id, bytes.
pub const PEER_ID_MAX: usize = 128;
/// Longest identity, bytes.
const IDENTITY_MAX: usize = 128;

/// Why a registration was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegisterError {
    /// Not an id.
    #[error("a peer id has 1 to {PEER_ID_MAX} characters of A-Z a-z 0-9 . _ -")]
    PeerId,
    /// Another process answers to this id, as far as is known: the same node's of before, or that of a copy.
    #[error(
        "another live node is registered as {0}: give this one an id of its own (--peer-id, or an empty --state-dir)"
    )]
    Taken(String),
    /// The id is that of a node with another directory.
    #[error(
        "another node is registered as {peer_id} and was heard of {heard_seconds} s ago: give this one an id of its own (--peer-id); \
        to take the other one's place, start it with the other one's directory (DIR or --state-dir) and device, or, when they \
        are gone for good, when that one was silent for {stale_seconds} s"
    )]
    OtherNode {
        /// The id.
        peer_id: String,
        /// Since the node that has it was heard of; since the coordinator was started, when it was not.
        heard_seconds: u64,
        /// How long it has to be silent until another one may have the id.
        stale_seconds: u64,
    },
    /// Not an identity.
    #[error("the identity of a node has at most {IDENTITY_MAX} characters")]
    Identity,
    /// The node speaks another version of the namespace operations.
    #[error(
        "this coordinator speaks version {ours} of the namespace operations, the node {theirs}: install the same release on both"
    )]
    Version {
        /// Of this coordinator.
        ours: u32,
        /// Of the node.
        theirs: u32,
    },
    /// Too many nodes.
    #[error("a cluster has at most {PEERS_MAX} nodes, and none of them is stale")]
    Full,
    /// The list of nodes cannot be kept.
    #[error("the list of nodes cannot be written: {0}")]
    Io(String),
}

/// The session is not (any more) one of this coordinator's: register again.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("session {0} is not known: register again")]
pub struct UnknownSession(pub u64);

/// A node, as REST tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id, the same for ever.
    pub peer_id: String,
    /// host:port of its REST API.
    pub rest_address: String,
    /// host:port of its data plane's peer port.
    pub peer_address: String,
    /// `live`, or `stale` when it has not been heard of for a while.
    pub state: String,
    /// Capacity of its store, bytes.
    pub capacity_bytes: u64,
    /// Used of it, bytes.
    pub used_bytes: u64,
    /// Not yet in the cloud, bytes.
    pub dirty_bytes: u64,
    /// Version of its software.
    pub version: String,
    /// Requests of the kernel that its data plane was asked a second, lately.
    pub load: u64,
    /// How they come: `uring` or `dev`; empty while its data plane is away.
    pub transport: String,
    /// Milliseconds since its last heartbeat.
    pub last_heartbeat_ms: u64,
}

impl From<Peer> for grpc::Peer {
    fn from(p: Peer) -> grpc::Peer {
        grpc::Peer {
            is_live: p.state == "live",
            last_heartbeat_ms: p.last_heartbeat_ms,
            node: Some(grpc::Node {
                peer_id: p.peer_id,
                rest_address: p.rest_address,
                peer_address: p.peer_address,
                capacity_bytes: p.capacity_bytes,
                used_bytes: p.used_bytes,
                dirty_bytes: p.dirty_bytes,
                version: p.version,
                identity: String::new(),
                load: p.load,
                transport: p.transport,
            }),
        }
    }
}

#[derive(Debug)]
struct Entry {
    node: grpc::Node,
    session: u64,
    seen: Instant,
    /// Its lease goes on until then.
    leased: Instant,
    /// Registered in this run, and neither stale nor fenced since.
    is_live: bool,
    /// Its watch stream was opened and has ended.
    is_unwatched: bool,
    /// It said that it ends, and is not heard any more.
    has_left: bool,
}

/// The nodes.
#[derive(Debug)]
pub(crate) struct Registry {
    path: PathBuf,
    /// Every peer id that ever was, and whose it is; empty: unknown.
    known: BTreeMap<String, String>,
    opened: Instant,
    peers: BTreeMap<String, Entry>,
    /// Peer of each session of this run that may still hold leases.
    sessions: BTreeMap<u64, String>,
    next_session: u64,
    stale_after: Duration,
    live_for: Duration,
    /// Rises with every node that comes, goes, or is reached in another way.
    version: watch::Sender<u64>,
}

/// `peers.json`.
#[derive(Deserialize)]
#[serde(untagged)]
enum KnownFile {
    Ids(BTreeSet<String>),
    Identities(BTreeMap<String, String>),
}

impl KnownFile {
    fn known(self) -> BTreeMap<String, String> {
        match self {
            KnownFile::Ids(ids) => ids.into_iter().map(|id| (id, String::new())).collect(),
            KnownFile::Identities(known) => known,
        }
    }
}

/// A registration that was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub session: u64,
    /// The node's last session of this run, if another one.
    pub replaced: Option<u64>,
    /// With this node there are two, and before there was one.
    pub is_second: bool,
}

impl Registry {
    /// Opens the list of nodes. `first_session` is above every session of earlier runs. A node without a watch
    /// stream, or without a heartbeat for `live_for`, may be replaced under its id; after `stale_after` it is dropped.
    pub(crate) fn open(
        dir: &Path,
        first_session: u64,
        stale_after: Duration,
        live_for: Duration,
    ) -> std::io::Result<Registry> {
        let path = dir.join("peers.json");
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<KnownFile>(&bytes)?.known(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e),
        };
        Ok(Registry {
            path,
            known,
            opened: Instant::now(),
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: first_session,
            stale_after,
            live_for,
            version: watch::Sender::new(1),
        })
    }

    /// Every node that was, but those that a full list forgot.
    pub(crate) fn known(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }

    /// Whether more than one node was ever registered: only then are there leases to keep.
    pub(crate) fn is_shared(&self) -> bool {
        self.known.len() > 1
    }

    pub(crate) fn register(
        &mut self,
        node: grpc::Node,
        previous: u64,
        now: Instant,
    ) -> Result<Accepted, RegisterError> {
        let id = node.peer_id.clone();
        let is_id_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.is_empty() || id.len() > PEER_ID_MAX || !id.chars().all(is_id_char) {
            return Err(RegisterError::PeerId);
        }
        if node.identity.len() > IDENTITY_MAX {
            return Err(RegisterError::Identity);
        }
        self.check_identity(&node, now)?;
        let mut replaced = None;
        if let Some(old) = self.peers.get(&id) {
            let is_there = old.is_live && !old.is_unwatched && !old.has_left;
            let is_heard = is_there && now < old.seen + self.live_for;
            if is_heard && old.session != previous {
                return Err(RegisterError::Taken(id));
            }
            replaced = Some(old.session);
        }
        let before = self.known.get(&id).cloned();
        if before.is_none() && self.known.len() >= PEERS_MAX {
            let gone = self.longest_gone(now).ok_or(RegisterError::Full)?;
            tracing::warn!(target: "registry", peer_id = gone, "a node that is stale is forgotten: a new one comes, and the list is full");
            self.known.remove(&gone);
            self.peers.remove(&gone);
        }
        if before.as_ref() != Some(&node.identity) {
            self.known.insert(id.clone(), node.identity.clone());
            if let Err(e) = self.save() {
                match before {
                    Some(identity) => self.known.insert(id, identity),
                    None => self.known.remove(&id),
                };
                return Err(RegisterError::Io(e.to_string()));
            }
        }
        let is_second = before.is_none() && self.known.len() == 2;
        self.next_session += 1;
        self.changed();
        let session = self.next_session;
        self.sessions.insert(session, id.clone());
        self.peers.insert(
            id,
            Entry {
                node,
                session,
                seen: now,
                leased: now,
                is_live: true,
                is_unwatched: false,
                has_left: false,
            },
        );
        Ok(Accepted {
            session,
            replaced,
            is_second,
        })
    }

    /// Whether a node may have its id: it is nobody's, its own, or that of one that is gone for good.
    fn check_identity(&self, node: &grpc::Node, now: Instant) -> Result<(), RegisterError> {
        let id = &node.peer_id;
        let Some(owner) = self.known.get(id) else {
            return Ok(());
        };
        if owner.is_empty() || *owner == node.identity {
            return Ok(());
        }
        let heard = self.peers.get(id).map_or(self.opened, |e| e.seen);
        // It may have been promised more than it takes to be stale.
        let is_promised = self.sessions.values().any(|of| of == id);
        if now >= heard + self.stale_after && !is_promised {
            tracing::warn!(target: "registry", peer_id = id, "another node takes the place of one that is stale");
            return Ok(());
        }
        Err(RegisterError::OtherNode {
            peer_id: id.clone(),
            heard_seconds: now.saturating_duration_since(heard).as_secs(),
            stale_seconds: self.stale_after.as_secs(),
        })
    }

    /// The stale node that was not heard of for longest. Nothing is lost with it: when it comes back it is a new one, with what
    /// its device has.
    fn longest_gone(&self, now: Instant) -> Option<String> {
        let heard = |id: &String| self.peers.get(id).map_or(self.opened, |e| e.seen);
        let is_gone = |id: &&String| {
            now >= heard(id) + self.stale_after
                && self.peers.get(*id).is_none_or(|e| !e.is_live || e.has_left)
                && !self.sessions.values().any(|of| of == *id)
        };
        // Those of earlier runs first.
        let key = |id: &&String| (self.peers.contains_key(*id), heard(id));
        self.known.keys().filter(is_gone).min_by_key(key).cloned()
    }

    fn save(&self) -> std::io::Result<()> {
        crate::replace_file(&self.path, &serde_json::to_vec(&self.known)?)
    }

    fn entry(&mut self, session: u64) -> Result<&mut Entry, UnknownSession> {
        let entry = self.last(session).filter(|e| !e.has_left);
        entry.ok_or(UnknownSession(session))
    }

    /// The node whose last session this is, as long as it is live.
    fn last(&mut self, session: u64) -> Option<&mut Entry> {
        let id = self.sessions.get(&session)?;
        let entry = self.peers.get_mut(id)?;
        (entry.session == session && entry.is_live).then_some(entry)
    }

    /// The node ends in order: what it was promised ends now, and it is not heard any more. Its peer id.
    pub(crate) fn leave(&mut self, session: u64, now: Instant) -> Result<String, UnknownSession> {
        let entry = self.entry(session)?;
        entry.has_left = true;
        entry.leased = now;
        Ok(entry.node.peer_id.clone())
    }

    /// A session's own peer id, while it is live.
    pub(crate) fn check(&mut self, session: u64) -> Result<(), UnknownSession> {
        self.entry(session).map(|_| ())
    }

    /// The peer id of a live session.
    pub(crate) fn peer_of(&mut self, session: u64) -> Result<String, UnknownSession> {
        self.entry(session).map(|e| e.node.peer_id.clone())
    }

    /// The session of a node, while it is live.
    pub(crate) fn session_of(&self, peer_id: &str) -> Option<u64> {
        let entry = self.peers.get(peer_id).filter(|e| e.is_live)?;
        Some(entry.session)
    }

    pub(crate) fn heartbeat(
        &mut self,
        session: u64,
        status: Option<grpc::Node>,
        now: Instant,
    ) -> Result<(), UnknownSession> {
        let entry = self.entry(session)?;
        entry.seen = now;
        if let Some(status) = status {
            let peer_id = std::mem::take(&mut entry.node.peer_id);
            let is_moved = entry.node.peer_address != status.peer_address;
            entry.node = grpc::Node { peer_id, ..status };
            if is_moved {
                self.changed();
            }
        }
        Ok(())
    }

    /// Its lease goes on until then.
    pub(crate) fn leased(&mut self, session: u64, until: Instant) {
        if let Ok(entry) = self.entry(session) {
            entry.leased = until;
        }
    }

    /// Whether a node that may come back with what it had open cannot be asked now: it is not registered, or has no lease, and
    /// that not for so long that it is dropped.
    pub(crate) fn is_one_away(&self, now: Instant) -> bool {
        self.known.keys().any(|id| {
            let last = match self.peers.get(id) {
                None => self.opened,
                Some(e) if e.has_left => return false,
                Some(e) if e.is_live && now < e.leased => return false,
                Some(e) => e.leased,
            };
            now < last + self.stale_after
        })
    }

    /// The node's watch stream has ended: whoever held it is gone, or about to register again.
    pub(crate) fn unwatched(&mut self, session: u64) {
        if let Ok(entry) = self.entry(session) {
            entry.is_unwatched = true;
        }
    }

    /// The session is over; what it held stays until [`forget`](Self::forget). When it was last heard of.
    pub(crate) fn fence(&mut self, session: u64) -> Option<Instant> {
        let entry = self.last(session)?;
        entry.is_live = false;
        let seen = entry.seen;
        self.changed();
        Some(seen)
    }

    /// The session holds nothing any more.
    pub(crate) fn forget(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    /// Sessions of nodes that were not heard of for too long.
    pub(crate) fn stale(&self, now: Instant) -> Vec<u64> {
        let is_stale = |e: &&Entry| e.is_live && now >= e.seen + self.stale_after;
        self.peers
            .values()
            .filter(is_stale)
            .map(|e| e.session)
            .collect()
    }

    /// Sessions that are over but not forgotten.
    pub(crate) fn ended(&self) -> Vec<u64> {
        let is_over = |(session, id): &(&u64, &String)| {
            self.peers
                .get(*id)
                .is_none_or(|e| e.session != **session || !e.is_live)
        };
        self.sessions
            .iter()
            .filter(is_over)
            .map(|(session, _)| *session)
            .collect()
    }

    /// The sessions that this one's node had before, as far as they are not forgotten.
    pub(crate) fn earlier(&self, session: u64) -> Vec<u64> {
        let Some(id) = self.sessions.get(&session) else {
            return Vec::new();
        };
        let is_earlier = |(s, of): &(&u64, &String)| **s < session && *of == id;
        let sessions = self.sessions.iter().filter(is_earlier);
        sessions.map(|(s, _)| *s).collect()
    }

    /// Live sessions of other nodes than this session's.
    pub(crate) fn others(&self, session: u64) -> Vec<u64> {
        let is_other = |e: &&Entry| e.is_live && !self.is_same_node(e.session, session);
        self.peers
            .values()
            .filter(is_other)
            .map(|e| e.session)
            .collect()
    }

    /// Whether two sessions are of one node: its data plane may hold what an earlier session of its agent read.
    pub(crate) fn is_same_node(&self, a: u64, b: u64) -> bool {
        a == b
            || matches!((self.sessions.get(&a), self.sessions.get(&b)), (Some(x), Some(y)) if x == y)
    }

    /// Another number than before when the list of nodes changed.
    pub(crate) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// [`Registry::version`], as it changes.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// The nodes that were registered in this run.
    pub(crate) fn peers(&self, now: Instant) -> Vec<Peer> {
        self.peers
            .values()
            .map(|e| Peer {
                peer_id: e.node.peer_id.clone(),
                rest_address: e.node.rest_address.clone(),
                peer_address: e.node.peer_address.clone(),
                state: if e.is_live { "live" } else { "stale" }.to_owned(),
                capacity_bytes: e.node.capacity_bytes,
                used_bytes: e.node.used_bytes,
                dirty_bytes: e.node.dirty_bytes,
                version: e.node.version.clone(),
                load: e.node.load,
                transport: e.node.transport.clone(),
                last_heartbeat_ms: u64::try_from(now.saturating_duration_since(e.seen).as_millis())
                    .unwrap_or(u64::MAX),
            })
            .collect()
    }
}
