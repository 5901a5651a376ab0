//! Chunks that were lost before they were uploaded come back as they were when they were last persisted.
//!
//! By itself that happens once, after a rebuild: the disk that had the namespace is gone, and what this node's device
//! does not have is nowhere. Never at another start: a chunk that cannot be read is an error then, not an older one.

use super::local::Local;
use super::{CheckError, REFS_PAGE};
use crate::link::lock;
use crate::node::Inner;
use fastcache_api::control::DataCall;
use fastcache_api::{ChunkId, ChunkKey, Errno, Ino, NsAnswer, NsOp, Spare};
use metrics::counter;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Chunks brought back with one operation.
pub(super) const REVERT_BATCH: usize = 1000;
/// Between two tries to learn what the device has: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Longest an application's first look at a file waits for the chunks of it that come back.
const SETTLE_WAIT: Duration = Duration::from_secs(10);

/// After a rebuild: brings back what this node's device does not have, and ends.
pub(crate) async fn settle_loop(inner: Arc<Inner>) {
    let mut pause = LOOK.0;
    let mut is_early = true;
    let mut is_said = false;
    loop {
        let tried = tokio::select! {
            tried = settle(&inner) => tried,
            () = inner.stop.cancelled() => return,
        };
        match tried {
            Ok(Settled::Whole) => match inner.namespace.settled() {
                Ok(()) => break,
                Err(error) => {
                    warn!(target: "namespace", error, "cannot note that lost chunks came back; looking again");
                }
            },
            // Nobody can use the mount yet.
            Ok(Settled::TooEarly) | Err(CheckError::DataAway) => is_early = true,
            Ok(Settled::Partly(chunks)) => {
                inner.is_settled.send_replace(true);
                if !std::mem::replace(&mut is_said, true) {
                    info!(target: "namespace", chunks, "of some lost chunks another version waits to be uploaded: looking again later");
                }
            }
            Err(error) => {
                inner.is_settled.send_replace(true);
                if !std::mem::replace(&mut is_said, true) {
                    warn!(target: "namespace", %error, "cannot find out which chunks went with the disks; trying on");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.stop.cancelled() => return,
        }
        pause = match std::mem::take(&mut is_early) {
            true => LOOK.0,
            false => (pause * 2).min(LOOK.1),
        };
    }
    inner.is_settled.send_replace(true);
}

/// How far it got.
enum Settled {
    /// What can come back came back, on stable storage.
    Whole,
    /// But for so many.
    Partly(usize),
    /// The data plane is not ready.
    TooEarly,
}

async fn settle(inner: &Inner) -> Result<Settled, CheckError> {
    // It mounts when the commits that it found on its device are through: no layout is behind the device from then on.
    let session = inner.link.current().ok_or(CheckError::DataAway)?;
    let is_mounted = match session.call(0, DataCall::Stats).await {
        Ok(fastcache_api::control::DataAnswer::Stats(stats)) => !stats.transport.is_empty(),
        _ => return Err(CheckError::DataAway),
    };
    if !is_mounted || !lock(&inner.queue).is_synced() {
        return Ok(Settled::TooEarly);
    }
    let local = Local::take(inner).await?;
    let (mut count, mut waiting, mut after) = (0, 0, None);
    loop {
        let (spares, is_end) = inner.spares_page(after, REFS_PAGE).await?;
        after = spares.last().map(|s| s.named.id()).or(after);
        let mut lost = Vec::new();
        for spare in spares {
            if local.holds(inner, spare.named) {
                continue;
            }
            if local.holds_dirty(inner, spare.named.id()) {
                waiting += 1;
            } else {
                lost.push(spare.named);
            }
        }
        for batch in lost.chunks(REVERT_BATCH) {
            count += inner.revert(&local, batch).await?.len();
        }
        if is_end {
            break;
        }
    }
    inner.ask(NsOp::Sync).await?;
    if count > 0 {
        warn!(target: "namespace", chunks = count,
            "chunks were lost before they were uploaded: they are again what they were when they were last persisted");
    }
    Ok(match waiting {
        0 => Settled::Whole,
        _ => Settled::Partly(waiting),
    })
}

impl Inner {
    /// Waits for what comes back after a rebuild, so that nobody sees an error in its place; for a while.
    pub(crate) async fn wait_settled(&self) {
        if *self.is_settled.borrow() {
            return;
        }
        let mut settled = self.is_settled.subscribe();
        // Whoever asks goes on in any case.
        let _ = tokio::time::timeout(SETTLE_WAIT, settled.wait_for(|is_settled| *is_settled)).await;
    }

    async fn spares_page(
        &self,
        after: Option<ChunkId>,
        max: u32,
    ) -> Result<(Vec<Spare>, bool), CheckError> {
        match self.ask(NsOp::Spares { after, max }).await? {
            NsAnswer::Spares { spares, is_end } => Ok((spares, is_end)),
            _ => Err(CheckError::Namespace(Errno::EIO)),
        }
    }

    /// The spare of a chunk.
    pub(super) async fn spare_of(&self, id: ChunkId) -> Result<Option<Spare>, CheckError> {
        let before = match id.index.checked_sub(1) {
            Some(index) => ChunkId { index, ..id },
            None => ChunkId {
                ino: Ino(id.ino.0.saturating_sub(1)),
                index: u32::MAX,
            },
        };
        let (spares, _) = self.spares_page(Some(before), 1).await?;
        Ok(spares.into_iter().find(|s| s.named.id() == id))
    }

    /// Brings lost versions back as what they were, where they have a spare; caches know when it returns. Which came
    /// back. What this node has now, or another version of it, is left alone.
    pub(super) async fn revert(
        &self,
        local: &Local,
        lost: &[ChunkKey],
    ) -> Result<BTreeSet<ChunkId>, CheckError> {
        if !local.is_current(self) {
            // A data plane that was started again may have brought something back.
            return Err(CheckError::DataAway);
        }
        let is_lost =
            |key: &&ChunkKey| !local.holds(self, **key) && !local.holds_dirty(self, key.id());
        let chunks: Vec<ChunkKey> = lost.iter().filter(is_lost).copied().collect();
        if chunks.is_empty() {
            return Ok(BTreeSet::new());
        }
        let request = self.request(NsOp::Revert {
            chunks: chunks.clone(),
        });
        let reply = self.namespace.call(request).await;
        let files = match reply.result.map_err(CheckError::Namespace)? {
            NsAnswer::Reverted(files) => files,
            _ => return Err(CheckError::Namespace(Errno::EIO)),
        };
        let mut reverted = BTreeSet::new();
        for (ino, indexes) in &files {
            let path = match self.ask(NsOp::PathOf { ino: *ino }).await {
                Ok(NsAnswer::Bytes(path)) => String::from_utf8_lossy(&path).into_owned(),
                _ => String::new(),
            };
            for index in indexes {
                warn!(target: "namespace", path, %ino, chunk = index,
                    "a chunk was lost before it was uploaded: it is again what it was when it was last persisted");
                reverted.insert(ChunkId {
                    ino: *ino,
                    index: *index,
                });
            }
        }
        if !files.is_empty() {
            counter!("fastcache_reverted_chunks_total").increment(reverted.len() as u64);
            // By number as well: a file with changes of its own is committed first, and then asked for anew.
            self.invalidate(DataCall::Invalidate {
                touched: reply.touched,
                entries: Vec::new(),
                inos: files.iter().map(|(ino, _)| *ino).collect(),
            })
            .await;
        }
        Ok(reverted)
    }
}
