//! Replicas whose owner is gone: this node takes them over. They are dirty chunks of its own then, which are uploaded, copied to
//! other nodes and found again after a restart like what was written here.
//!
//! Several nodes may take over one chunk, and its owner may come back: all of them upload the same bytes to the same object, and
//! record the same, so that the only price is the traffic. What no layout names any more is never uploaded.

use crate::inode::Inode;
use crate::open_chunk::device_error;
use crate::{FileSystem, Result};
use fastcache_api::{ChunkKey, NsAnswer, NsOp};
use fastcache_reactor::timeout;
use std::sync::Arc;
use std::time::Duration;

/// How long the coordinator is asked whether the cloud has a chunk.
const RECORDED_MAX: Duration = Duration::from_secs(5);

/// A replica that is kept for a node that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftReplica {
    /// The chunk.
    pub key: ChunkKey,
    /// Whose it is.
    pub owner: String,
    /// Its length, bytes.
    pub len: u32,
}

/// What came of a replica whose owner is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopted {
    /// It is this node's own now.
    Own,
    /// Nobody needs it: it is in the cloud, or no layout names it; or another node keeps it here as its own.
    Needless,
    /// It could not be found out, or there is no room: to be tried again.
    Later,
}

impl FileSystem {
    /// Takes over a replica whose owner is gone for good, as far as anybody knows.
    pub async fn adopt(&self, of: &LeftReplica) -> Adopted {
        let key = of.key;
        match (self.is_named(key).await, self.is_recorded(key).await) {
            (Some(false), _) | (_, Some(true)) => {
                self.release_for_peer(&of.owner, key);
                return Adopted::Needless;
            }
            (Some(true), Some(false)) => {}
            _ => return Adopted::Later,
        }
        let inode = self.inner.inodes.get_or_insert(key.ino);
        let taken = self.take_over(&inode, of).await;
        drop(inode);
        self.inner.inodes.drop_if_idle(key.ino);
        match taken {
            Ok(true) => Adopted::Own,
            Ok(false) => Adopted::Needless,
            Err(errno) => {
                tracing::debug!(target: "peer", %key, owner = of.owner, %errno, "a replica cannot be taken over now");
                Adopted::Later
            }
        }
    }

    /// Whether the coordinator knows a version of a chunk to be in the cloud; `None` when it cannot be asked.
    async fn is_recorded(&self, key: ChunkKey) -> Option<bool> {
        let asked = self.inner.link.ns(NsOp::CloudRefs {
            ino: key.ino,
            only: Some((key.index, key.version)),
        });
        match timeout(RECORDED_MAX, asked).await.ok()?.ok()?.result {
            Ok(NsAnswer::CloudRefs(refs)) => {
                let is_it = |&(index, version, _)| (index, version) == (key.index, key.version);
                Some(refs.iter().any(is_it))
            }
            _ => None,
        }
    }

    /// Makes it a dirty chunk, on stable storage. False when something else is in its place.
    async fn take_over(&self, inode: &Arc<Inode>, of: &LeftReplica) -> Result<bool> {
        // Whoever writes the file here seals behind this, and in its place.
        let _one_at_a_time = inode.seal_lock.lock().await;
        let (key, store) = (of.key, &self.inner.store);
        let Some(body) = store.get(key.id()).filter(|body| body.key() == key) else {
            return Ok(false);
        };
        if !self.is_kept_for(&of.owner, key) {
            return Ok(false);
        }
        if !body.is_dirty() {
            self.seal_as(&body, true, false).await?;
        }
        store.flush().await.map_err(|e| device_error(&e))?;
        self.release_for_peer(&of.owner, key);
        self.replicate(vec![key]);
        Ok(true)
    }
}
