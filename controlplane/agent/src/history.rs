//! What the namespace's history in the bucket means for this node: `persisted` is said only when it has the record as
//! well as the bytes, and nothing is uploaded before it is known whose the bucket is.

use crate::node::{Inner, Node};
use fastcache_api::{Errno, HistoryState, HistoryStatus, Ino, NsAnswer, NsOp};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, warn};

/// Between two looks at a coordinator that does not know yet whether the bucket is its own, or does not answer.
const LOOK: Duration = Duration::from_millis(200);

impl Inner {
    /// How far the history is, and whether it covers an inode.
    pub(crate) async fn history(&self, ino: Option<Ino>) -> Result<HistoryStatus, Errno> {
        let asked = self.namespace.call(self.request(NsOp::History { ino }));
        told(asked.await.result).map(|status| self.judged(status))
    }

    /// Waits until `record`, or everything that was acknowledged so far (which is put there), is in the bucket. ENOTSUP when
    /// it never will be.
    pub(crate) async fn wait_recorded(
        &self,
        record: &mut Option<u64>,
        deadline: Option<Instant>,
    ) -> Result<(), Errno> {
        let upto = match *record {
            Some(upto) => upto,
            None => *record.insert(self.history(None).await?.log_position),
        };
        loop {
            let asked = self.namespace.call(self.request(NsOp::Persist { upto }));
            let answer = tokio::select! {
                answer = asked => told(answer.result).map(|status| self.judged(status)),
                () = self.stop.cancelled() => return Err(Errno::EIO),
            };
            match answer {
                Ok(status) if status.state == HistoryState::Off => {
                    error!(target: "cloud", "{}", problem(&status).unwrap_or_default());
                    return Err(Errno::ENOTSUP);
                }
                Ok(status) if status.shipped_position >= upto => return Ok(()),
                Ok(status) if status.state == HistoryState::Stopped => {
                    error!(target: "cloud", "{}", problem(&status).unwrap_or_default());
                    return Err(Errno::ENOTSUP);
                }
                // The coordinator answers at once where its bucket is not known to be this node's.
                Ok(status) if status.state == HistoryState::Claiming => {
                    tokio::time::sleep(LOOK).await;
                }
                Ok(_) => {}
                Err(errno) => {
                    warn!(target: "cloud", %errno, "the coordinator does not say how far the history is; asking again");
                    tokio::time::sleep(LOOK).await;
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// Waits until it is known whose the bucket is. False when it is not this coordinator's, or the node stops.
    pub(crate) async fn may_write(self: &Arc<Inner>) -> bool {
        loop {
            match self.history(None).await.map(|status| status.state) {
                Ok(HistoryState::Off | HistoryState::Shipping) => return true,
                Ok(HistoryState::Stopped) if !self.is_bucket_another() => {
                    error!(target: "cloud", "nothing is uploaded: the bucket belongs to another coordinator");
                    return false;
                }
                Ok(_) | Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.cancelled() => return false,
            }
        }
    }
}

impl Node {
    /// Whether there is a cloud tier.
    pub fn has_cloud(&self) -> bool {
        self.inner().cloud.is_some()
    }

    /// Why nothing can be persisted, for people; `None` when it can.
    pub async fn history_problem(&self) -> Option<String> {
        problem(&self.inner().history(None).await.ok()?)
    }
}

fn told(answer: Result<NsAnswer, Errno>) -> Result<HistoryStatus, Errno> {
    match answer? {
        NsAnswer::History(status) => Ok(status),
        _ => Err(Errno::EIO),
    }
}

pub(crate) fn problem(status: &HistoryStatus) -> Option<String> {
    match status.state {
        HistoryState::Off => Some(
            "nothing can be persisted: the coordinator was given no bucket for the namespace's history; start it \
             with the same --cloud-provider and bucket as the nodes"
                .to_owned(),
        ),
        HistoryState::Stopped => Some(format!(
            "nothing can be persisted: {}",
            status.error.as_deref().unwrap_or("the history is not written any more")
        )),
        HistoryState::Claiming | HistoryState::Shipping => None,
    }
}
