//! The chunks of this node's store, asked of the data plane itself: the agent's own view is only a view.

use super::CheckError;
use crate::link::{Session, lock};
use crate::node::Inner;
use fastcache_api::control::{DataAnswer, DataCall, DataStats, LocalChunk};
use fastcache_api::{ChunkId, ChunkKey, Errno, Version};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the store holds.
pub(super) struct Local {
    session: Arc<Session>,
    pub(super) chunks: BTreeMap<ChunkKey, LocalChunk>,
}

impl Local {
    /// Seals and commits what is open, so that every version that is going to be named is named, then asks what the
    /// store holds. A file being written has new versions right afterwards; those are younger than this.
    pub(super) async fn take(inner: &Inner) -> Result<Local, CheckError> {
        let session = inner.link.current().ok_or(CheckError::DataAway)?;
        if !lock(&inner.queue).is_synced() {
            return Err(CheckError::DataAway);
        }
        let seal = DataCall::Seal {
            ino: None,
            is_durable: false,
        };
        match session.call(session.any_lane(), seal).await {
            Ok(_) => {}
            Err(Errno::ENOTCONN) => return Err(CheckError::DataAway),
            Err(errno) => return Err(CheckError::NotSealed(errno)),
        }
        // News of other lanes may still be under way: an answer on each lane is behind them.
        for lane in 0..session.lane_count() {
            session
                .call(lane, DataCall::Stats)
                .await
                .map_err(|_| CheckError::DataAway)?;
        }
        let mut local = Local {
            session,
            chunks: BTreeMap::new(),
        };
        local.refresh().await?;
        Ok(local)
    }

    /// Asks again what the store holds, without sealing.
    pub(super) async fn refresh(&mut self) -> Result<(), CheckError> {
        let mut chunks = BTreeMap::new();
        let mut from = None;
        loop {
            let call = DataCall::Inventory { from };
            match self.session.call(0, call).await {
                Ok(DataAnswer::Inventory { chunks: page, next }) => {
                    chunks.extend(page.into_iter().map(|c| (c.key, c)));
                    match next {
                        Some(next) => from = Some(next),
                        None => break,
                    }
                }
                _ => return Err(CheckError::DataAway),
            }
        }
        self.chunks = chunks;
        Ok(())
    }

    /// Counters of the data plane.
    pub(super) async fn stats(&self) -> Result<DataStats, CheckError> {
        match self.session.call(0, DataCall::Stats).await {
            Ok(DataAnswer::Stats(stats)) => Ok(*stats),
            _ => Err(CheckError::DataAway),
        }
    }

    /// Reads a chunk: its bytes are verified by the data plane.
    pub(super) async fn read(&self, key: ChunkKey) -> Result<(), Errno> {
        let call = DataCall::ReadChunk {
            key,
            is_patient: false,
        };
        let lane = self.session.any_lane();
        self.session.call_for_slot(lane, call).await.map(drop)
    }

    /// Whether this version is on the device, or on its way to the cloud.
    pub(super) fn holds(&self, inner: &Inner, key: ChunkKey) -> bool {
        self.chunks.contains_key(&key) || lock(&inner.queue).holds(key)
    }

    /// Whether a version of this chunk is dirty: one that is going to be named, or was until now.
    pub(super) fn holds_dirty(&self, inner: &Inner, id: ChunkId) -> bool {
        let version = |version| ChunkKey {
            ino: id.ino,
            index: id.index,
            version: Version(version),
        };
        let all = version(0)..=version(u64::MAX);
        self.chunks.range(all).any(|(_, c)| c.is_dirty) || lock(&inner.queue).holds_some(id)
    }

    /// Whether the data plane is still the one that was asked.
    pub(super) fn is_current(&self, inner: &Inner) -> bool {
        inner
            .link
            .current()
            .is_some_and(|now| Arc::ptr_eq(&now, &self.session))
    }
}
