//! Versions that belong to this node, asked of the coordinator in ranges.

use crate::link::{CALL_DEADLINE, unexpected};
use crate::{FileSystem, Result, lock};
use event_listener::Event;
use fastcache_api::{Errno, NsAnswer, NsOp, Version};
use fastcache_reactor::sync::{AtomicBool, Mutex};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Versions asked for at once: enough for a second of small files.
const VERSIONS_BATCH: u32 = 65_536;
/// Versions left when the next ones are asked for.
const VERSIONS_LOW: u64 = 8_192;
/// Pause after the coordinator gave none.
const PAUSE: Duration = Duration::from_millis(500);

/// Versions that belong to this node.
#[derive(Default)]
pub(crate) struct Versions {
    range: Mutex<(u64, u64)>,
    is_asking: AtomicBool,
    more: Event,
}

impl FileSystem {
    /// A version nobody else has.
    pub(crate) async fn next_version(&self) -> Result<Version> {
        loop {
            let listener = self.inner.versions.more.listen();
            let (got, is_low) = {
                let mut range = lock(&self.inner.versions.range);
                let got = (range.0 < range.1).then(|| {
                    range.0 += 1;
                    Version(range.0 - 1)
                });
                (got, range.1 - range.0 < VERSIONS_LOW)
            };
            let must_ask = is_low && !self.inner.versions.is_asking.swap(true, Ordering::AcqRel);
            match got {
                Some(version) => {
                    if must_ask {
                        let fs = self.clone();
                        fastcache_reactor::spawn(async move { fs.ask_versions().await }).detach();
                    }
                    return Ok(version);
                }
                None if must_ask => self.ask_versions().await,
                None => {
                    let waited = fastcache_reactor::timeout(CALL_DEADLINE, listener).await;
                    waited.map_err(|_| Errno::EIO)?;
                }
            }
        }
    }

    async fn ask_versions(&self) {
        let op = NsOp::AllocVersions {
            count: VERSIONS_BATCH,
        };
        match self.inner.link.ns(op).await.and_then(|r| r.result) {
            Ok(NsAnswer::Versions { first, count }) => {
                // What is left of the old range is given up: versions are plenty.
                *lock(&self.inner.versions.range) = (first.0, first.0 + u64::from(count));
            }
            Ok(other) => {
                unexpected(&other);
            }
            Err(error) => {
                tracing::warn!(target: "control", %error, "no versions from the coordinator");
                fastcache_reactor::sleep(PAUSE).await;
            }
        }
        self.inner
            .versions
            .is_asking
            .store(false, Ordering::Release);
        self.inner.versions.more.notify(usize::MAX);
    }
}
