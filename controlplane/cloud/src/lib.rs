//! The object store tier: S3, Azure Blob, or a directory.
//!
//! One object holds one version of one chunk. Each request has a deadline and a bounded number of retries out of a
//! budget; what fails after them is a typed [`CloudError`], and the caller decides when to try again. Uploads carry
//! the CRC32C and length of their bytes as metadata, where the store has metadata (S3, Azure); chunks are compared with
//! what the namespace says of them before anybody sees them.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod check;
mod chunks;
mod config;
mod error;
mod listing;
mod mounted;
mod objects;
mod observe;
mod open;
mod profile;
mod source;
#[cfg(test)]
mod tests;
mod traffic;

pub use config::{AzureConfig, CloudConfig, Encryption, Environment, S3Config, Secret};
pub use error::CloudError;
pub use listing::{Head, Listed};
pub use objects::Created;
pub use open::CREDENTIAL_VARIABLES;

use chunks::Traffic;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longest a connection may take to be made.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest a single HTTP request may take: a 4 MiB object at 0.3 MB/s.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// Longest a call of [`Cloud`] may take, its retries included.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Longest [`Cloud::check`] waits for the store.
pub const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// Metadata key of the CRC32C, eight hexadecimal digits. One word, because Azure wants identifiers.
const META_CRC: &str = "fastcachecrc32c";
/// Metadata key of the length, decimal.
const META_LEN: &str = "fastcachelength";

/// A handle on the object store. Clones share connections, budgets and what is known of the store's state.
#[derive(Clone)]
pub struct Cloud {
    /// Tries again by itself: for all but chunks.
    store: Arc<dyn ObjectStore>,
    /// Does not: for chunks, which have their own rules.
    once: Arc<dyn ObjectStore>,
    place: Arc<str>,
    has_attributes: bool,
    source: source::Source,
    traffic: Arc<Traffic>,
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cloud")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Cloud {
    /// Opens the store a configuration names; `None` for the provider `none`. Makes no request
    /// (except that a missing directory is made).
    ///
    /// # Errors
    /// [`CloudError::Config`], with a sentence that says what to change.
    pub fn open(config: &CloudConfig) -> Result<Option<Cloud>, CloudError> {
        let traffic = Arc::new(Traffic::new());
        let opened = open::open(config, traffic.watch())?;
        Ok(opened.map(|opened| Cloud {
            store: opened.patient,
            once: opened.once,
            place: config.place().into(),
            has_attributes: opened.has_attributes,
            source: opened.source,
            traffic,
        }))
    }

    /// Where objects go, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Until when the store asked not to be asked (`Retry-After`); `None`: it did not, or that is over.
    pub fn paused_until(&self) -> Option<Instant> {
        self.traffic.watch().paused_until()
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn delete(&self, key: &str) -> Result<(), CloudError> {
        bounded(self.delete_unbounded(key)).await
    }

    async fn delete_unbounded(&self, key: &str) -> Result<(), CloudError> {
        match self
            .store
            .delete(&Path::from(key))
            .await
            .map_err(CloudError::of)
        {
            Err(CloudError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    /// Keys and sizes of the objects under a prefix (whole path components), at most `max`, in no
    /// promised order.
    pub async fn list(&self, prefix: &str, max: usize) -> Result<Vec<(String, u64)>, CloudError> {
        bounded(async {
            let prefix = Path::from(prefix);
            let objects: Vec<_> = self
                .store
                .list(Some(&prefix))
                .take(max)
                .map_ok(|m| (m.location.to_string(), m.size))
                .try_collect()
                .await
                .map_err(CloudError::of)?;
            Ok(objects)
        })
        .await
    }
}

/// A call with its deadline.
async fn bounded<T>(call: impl Future<Output = Result<T, CloudError>>) -> Result<T, CloudError> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(done) => done,
        Err(_) => Err(CloudError::Transient(format!(
            "no answer within {CALL_DEADLINE:?}"
        ))),
    }
}
