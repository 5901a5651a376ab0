//! Waiting for the cloud: for as long as it takes something.

use crate::{FileSystem, Result};
use fastcache_api::Errno;
use fastcache_api::control::{NodeAnswer, NodeCall, Waited};
use std::time::Duration;

/// How long a `close` or an `fsync` that needs the cloud waits while the cloud takes nothing; then it is EIO.
const NOTHING_MAX: Duration = Duration::from_secs(60);

impl FileSystem {
    /// Asks the agent for something that may need the cloud, again and again until it is done; what it says then. EIO when
    /// the cloud takes nothing, or the agent does not answer.
    pub(crate) async fn with_the_cloud(
        &self,
        call: impl Fn(Option<Waited>) -> NodeCall,
    ) -> Result<NodeAnswer> {
        let mut waited = None;
        let mut since = fastcache_reactor::now();
        loop {
            match self.inner.link.call(call(waited)).await? {
                NodeAnswer::Waiting {
                    waited: so_far,
                    has_moved,
                } => {
                    waited = Some(so_far);
                    let now = fastcache_reactor::now();
                    if has_moved {
                        since = now;
                    } else if now.duration_since(since) >= NOTHING_MAX {
                        tracing::error!(target: "cache", "a close or an fsync needs the cloud, which has taken nothing for {} s: EIO", NOTHING_MAX.as_secs());
                        return Err(Errno::EIO);
                    }
                }
                done => return Ok(done),
            }
        }
    }
}
