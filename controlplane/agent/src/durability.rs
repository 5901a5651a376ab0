//! Where files are safe: what an `fsync` has reached, and what is said of a file.

use crate::link::{lock, unexpected};
use crate::node::{Inner, Node};
use crate::types::{ChunkState, Durability, FileState};
use fastcache_api::control::{DataAnswer, DataCall, FsyncLevel, NodeAnswer, Waited};
use fastcache_api::{CloudRef, Errno, Ino, Kind, NsAnswer, NsOp};
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::{info, warn};

/// In the state directory, once there was another node.
pub(crate) const HAD_PEERS: &str = "had-peers";
/// How long after a start it is waited until it is known which other nodes there are.
const TOLD_MAX: Duration = Duration::from_secs(10);

impl Inner {
    /// What an fsync waits for now. Without a configured level: for other nodes as soon as there was one, which does not end
    /// with it while there is a cloud to wait for instead.
    pub(crate) fn fsync_level(&self) -> FsyncLevel {
        let is_there = || self.cloud.is_some() || self.has_peers.load(Ordering::Relaxed);
        match self.config.fsync {
            Some(level) => level,
            None if self.had_peers.load(Ordering::Relaxed) && is_there() => FsyncLevel::Peers,
            None => FsyncLevel::Local,
        }
    }

    /// The data plane knows these many other nodes: says so where that is another level.
    pub(crate) fn peers_are_told(&self, peers: usize) {
        if peers > 0 && !self.had_peers.swap(true, Ordering::Relaxed) {
            let path = self.config.state_dir.join(HAD_PEERS);
            let kept = File::create(&path).and_then(|file| file.sync_all());
            if let Err(error) = kept {
                warn!(target: "control", path = %path.display(), %error, "cannot note that there are other nodes: after a restart an fsync may wait for less until they are heard of");
            }
        }
        let level = self.fsync_level();
        let before = lock(&self.level_told).replace(level);
        if self.config.fsync.is_none() && before != Some(level) {
            match (before, level) {
                (_, FsyncLevel::Peers) => {
                    info!(target: "control", "there are other nodes: from now on an fsync waits for a copy on one, or for the cloud (level peers)");
                }
                (Some(_), _) => {
                    warn!(target: "control", "no other node is live and there is no cloud: from now on an fsync waits for this node's device alone (level local)");
                }
                (None, _) => {}
            }
        }
        if level == FsyncLevel::Peers && peers == 0 {
            warn!(target: "control", "no other node is live: an fsync waits for the cloud");
        }
        self.are_peers_told.send_replace(true);
    }

    /// Just started, it is not known yet which other nodes there are: waits until it is, for a bounded time.
    pub(crate) async fn peers_told(&self) {
        if self.namespace.owner().is_some() {
            let mut told = self.are_peers_told.subscribe();
            let _ = tokio::time::timeout(TOLD_MAX, told.wait_for(|is_told| *is_told)).await;
        }
    }

    /// What the data plane asks when a file is on its device and committed.
    pub(crate) async fn fsync(
        &self,
        ino: Ino,
        waited: Option<Waited>,
        is_cloud: bool,
    ) -> Result<NodeAnswer, Errno> {
        self.namespace.call(self.request(NsOp::Sync)).await.result?;
        let is_outside = self.namespace.owner().is_some();
        if self.config.fsync.is_none() {
            // Which nodes there are decides.
            self.peers_told().await;
        }
        let level = match self.fsync_level() {
            FsyncLevel::Local if !is_cloud => {
                let level = FsyncLevel::Local;
                return Ok(NodeAnswer::Synced { level });
            }
            FsyncLevel::Peers if is_outside && !is_cloud => {
                let copies = self.config.fsync_copies;
                return Ok(NodeAnswer::Copies { copies });
            }
            // With the log on this node alone, only the bucket has it, too.
            _ if !is_outside => FsyncLevel::Cloud,
            level => level,
        };
        match self.wait_a_while(Some(ino), waited).await {
            Ok(NodeAnswer::Done) => Ok(NodeAnswer::Synced { level }),
            Ok(waiting) => Ok(waiting),
            Err(errno) => {
                warn!(target: "cloud", %ino, %errno, "fsync could not reach the object store");
                Err(Errno::EIO)
            }
        }
    }

    /// Durability of a file's committed contents, without the copies on other nodes.
    pub(crate) async fn file_state(&self, ino: Ino) -> Result<FileState, Errno> {
        let open = self.request(NsOp::Open { ino, write: false });
        let (attr, layout) = match self.namespace.call(open).await.result {
            Ok(NsAnswer::Opened { attr, layout }) => (attr, layout),
            Ok(_) => return Err(Errno::EIO),
            // Not a file: a directory, a link. It has no chunks.
            Err(Errno::EISDIR | Errno::EINVAL) => {
                return Ok(FileState {
                    state: self.durability(ino, &[]).await,
                    size: 0,
                    chunks: Vec::new(),
                });
            }
            Err(errno) => return Err(errno),
        };
        let mut chunks = Vec::new();
        if attr.kind == Kind::File && !layout.runs.is_empty() {
            let mut refs: HashMap<_, CloudRef> = self
                .cloud_refs(ino, None)
                .await?
                .into_iter()
                .map(|(index, version, at)| ((index, version), at))
                .collect();
            for (index, version, len) in layout.chunks(attr.chunk_size) {
                let at = refs.remove(&(index, version));
                let state = if at.is_some() {
                    Durability::Persisted
                } else {
                    Durability::Dirty
                };
                let (object, etag) = at.map_or((None, None), |at| (Some(at.object), at.etag));
                chunks.push(ChunkState {
                    index,
                    version,
                    len,
                    state,
                    object,
                    etag,
                });
            }
        }
        Ok(FileState {
            state: self.durability(ino, &chunks).await,
            size: attr.size,
            chunks,
        })
    }

    /// The same with the copies that this node's chunks have on others. What another node wrote and has not uploaded is
    /// `dirty` here: that node knows of its copies.
    pub(crate) async fn state_with_copies(&self, ino: Ino) -> Result<FileState, Errno> {
        let mut state = self.file_state(ino).await?;
        let is_dirty = |c: &ChunkState| c.state == Durability::Dirty;
        if !self.has_peers.load(Ordering::Relaxed) || !state.chunks.iter().any(is_dirty) {
            return Ok(state);
        }
        let known: HashMap<_, u32> = match self.link.call(Some(ino), DataCall::Copies { ino }).await
        {
            Ok(DataAnswer::Copies(known)) => known
                .into_iter()
                .map(|(key, copies)| ((key.index, key.version), copies))
                .collect(),
            Ok(other) => return Err(unexpected(&other)),
            Err(errno) => {
                warn!(target: "control", %ino, %errno, "the data plane does not say which copies a file has");
                return Ok(state);
            }
        };
        for chunk in state.chunks.iter_mut().filter(|c| is_dirty(c)) {
            let copies = known.get(&(chunk.index, chunk.version)).copied();
            if let Some(copies) = copies.filter(|copies| *copies > 0) {
                chunk.state = Durability::Replicated(copies);
            }
        }
        state.state = self.durability(ino, &state.chunks).await;
        Ok(state)
    }

    /// What is said of a file: `persisted` only when the bucket has its bytes and the records that name them.
    async fn durability(&self, ino: Ino, chunks: &[ChunkState]) -> Durability {
        match fewest(chunks) {
            Durability::Persisted if self.cloud.is_none() => Durability::Dirty,
            Durability::Persisted => match self.history(Some(ino)).await {
                Ok(history) if history.is_covered => Durability::Persisted,
                _ => Durability::Dirty,
            },
            other => other,
        }
    }
}

/// The worst of the chunks.
fn fewest(chunks: &[ChunkState]) -> Durability {
    let mut worst = Durability::Persisted;
    for chunk in chunks {
        worst = match (worst, chunk.state) {
            (Durability::Dirty, _) | (_, Durability::Dirty) => return Durability::Dirty,
            (Durability::Replicated(a), Durability::Replicated(b)) => {
                Durability::Replicated(a.min(b))
            }
            (Durability::Persisted, other) | (other, Durability::Persisted) => other,
        };
    }
    worst
}

impl Node {
    /// Durability of a file: of its committed contents.
    pub async fn file_state(&self, ino: Ino) -> Result<FileState, Errno> {
        self.inner().state_with_copies(ino).await
    }

    /// What an fsync waits for now.
    pub fn fsync_level(&self) -> FsyncLevel {
        self.inner().fsync_level()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastcache_api::Version;

    #[test]
    fn a_file_is_as_safe_as_its_worst_chunk() {
        use Durability::{Dirty, Persisted, Replicated};
        let of = |states: &[Durability]| {
            let chunk = |(index, state): (u32, &Durability)| ChunkState {
                index,
                version: Version(1),
                len: 1,
                state: *state,
                object: None,
                etag: None,
            };
            let chunks: Vec<ChunkState> = (0..).zip(states).map(chunk).collect();
            fewest(&chunks)
        };
        assert_eq!(of(&[]), Persisted);
        assert_eq!(
            of(&[Persisted, Replicated(2), Replicated(1)]),
            Replicated(1)
        );
        assert_eq!(of(&[Replicated(2), Persisted]), Replicated(2));
        assert_eq!(of(&[Replicated(2), Dirty, Persisted]), Dirty);
    }
}
