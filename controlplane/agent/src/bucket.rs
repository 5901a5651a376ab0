//! Whether this node's bucket is its coordinator's. With two different ones each would work, and nothing could ever be
//! restored: the bytes would be in one and what names them in the other. So nothing is said to be persisted before it is
//! known, and a node that was given another bucket does not start; one whose coordinator changes to another while it
//! runs stops uploading and says so.

use crate::error::AgentError;
use crate::link::lock;
use crate::namespace::NamespaceHandle;
use crate::node::Inner;
use fastcache_api::{HistoryState, HistoryStatus, NsAnswer, NsOp, NsRequest, Time};
use fastcache_cloud::Cloud;
use fastcache_coordinator::{BucketError, check_bucket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Between two looks at a bucket that does not answer, or a coordinator that does not write yet.
const LOOK: Duration = Duration::from_secs(1);
/// A bucket that does not answer is said in the log once in so many looks.
const SAY_EVERY: u32 = 60;

/// What is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Bucket {
    /// Nothing yet.
    Unknown,
    /// It is; of an embedded coordinator always.
    Same,
    /// It is not, with what to do.
    Other(String),
}

impl Inner {
    pub(crate) fn is_bucket_another(&self) -> bool {
        matches!(*lock(&self.bucket), Bucket::Other(_))
    }

    /// What a coordinator says of its bucket, as far as it holds for this node's.
    pub(crate) fn judged(&self, status: HistoryStatus) -> HistoryStatus {
        if status.state != HistoryState::Shipping {
            return status;
        }
        let (state, error) = match &*lock(&self.bucket) {
            Bucket::Same => return status,
            Bucket::Unknown => (HistoryState::Claiming, status.error.clone()),
            Bucket::Other(error) => (HistoryState::Stopped, Some(error.clone())),
        };
        HistoryStatus {
            state,
            error,
            shipped_position: 0,
            is_covered: false,
            ..status
        }
    }
}

async fn is_shipping(namespace: &NamespaceHandle) -> bool {
    let request = NsRequest {
        id: None,
        now: Time::now(),
        op: NsOp::History { ino: None },
    };
    let answer = namespace.call(request).await.result;
    matches!(answer, Ok(NsAnswer::History(status)) if status.state == HistoryState::Shipping)
}

/// Refuses, at a start, a bucket that is known to be another one. Whether the coordinator is another process, whose
/// bucket is to be watched.
pub(crate) async fn expect_same(
    namespace: &NamespaceHandle,
    cloud: Option<&Cloud>,
) -> Result<Option<watch::Receiver<(u64, u64)>>, AgentError> {
    let (Some(owner), Some(cloud)) = (namespace.owner(), cloud) else {
        return Ok(None);
    };
    let (file_system, epoch) = *owner.borrow();
    if is_shipping(namespace).await {
        match check_bucket(cloud, file_system, epoch).await {
            Err(other @ BucketError::Other { .. }) if !owner.has_changed().unwrap_or(true) => {
                return Err(AgentError::Cloud(other.to_string()));
            }
            _ => {}
        }
    }
    Ok(Some(owner))
}

/// Finds out, for each run of the coordinator.
pub(crate) async fn watch_loop(
    inner: Arc<Inner>,
    cloud: Cloud,
    mut owner: watch::Receiver<(u64, u64)>,
) {
    let mut looks = 0;
    loop {
        let (file_system, epoch) = *owner.borrow_and_update();
        if is_shipping(&inner.namespace).await {
            let found = check_bucket(&cloud, file_system, epoch).await;
            // Another run of the coordinator may have begun meanwhile: then this is no news.
            let is_current = !owner.has_changed().unwrap_or(true);
            match found {
                Ok(()) if is_current => {
                    info!(target: "cloud", "the bucket is the coordinator's");
                    *lock(&inner.bucket) = Bucket::Same;
                }
                Err(other @ BucketError::Other { .. }) if is_current => {
                    error!(target: "cloud", "nothing is uploaded: {other}");
                    *lock(&inner.bucket) = Bucket::Other(other.to_string());
                }
                Err(error @ BucketError::Away { .. }) => {
                    if looks % SAY_EVERY == 0 {
                        warn!(target: "cloud", %error, "nothing is said to be persisted until it is known");
                    }
                    looks += 1;
                }
                _ => {}
            }
        }
        let is_known = *lock(&inner.bucket) != Bucket::Unknown;
        tokio::select! {
            changed = owner.changed() => match changed {
                Ok(()) => *lock(&inner.bucket) = Bucket::Unknown,
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK), if !is_known => {}
            () = inner.stop.cancelled() => return,
        }
    }
}
