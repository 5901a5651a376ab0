//! Small objects that are not chunks: made once and never overwritten, read whole, listed.
//!
//! [`Cloud::create`] is the only way to write one. It is the conditional PUT that every store of ours has
//! (`If-None-Match: *`, on a directory a hard link), so that of two writers of one key exactly one succeeds.

use crate::{Cloud, CloudError, bounded};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, PutMode, PutOptions, PutPayload};

/// What came of [`Cloud::create`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object was not there, and is now.
    New,
    /// There was one of this key: nothing was written. After an answer that was lost it may be one's own.
    Exists,
}

impl Cloud {
    /// Writes an object if there is none of this key.
    ///
    /// # Errors
    /// See [`CloudError`]; after a transient one the object may have been written.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Created, CloudError> {
        bounded(async {
            let options = PutOptions::from(PutMode::Create);
            let payload = PutPayload::from_bytes(bytes);
            match self
                .store
                .put_opts(&Path::from(key), payload, options)
                .await
            {
                Ok(_) => Ok(Created::New),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    Ok(Created::Exists)
                }
                Err(e) => Err(CloudError::of(e)),
            }
        })
        .await
    }

    /// Reads a whole object of at most `max` bytes.
    ///
    /// # Errors
    /// See [`CloudError`]; `NotFound` also for a larger one, which is none of ours.
    pub async fn read(&self, key: &str, max: u64) -> Result<Bytes, CloudError> {
        bounded(async {
            let got = self
                .store
                .get_opts(&Path::from(key), GetOptions::default())
                .await
                .map_err(CloudError::of)?;
            if got.meta.size > max {
                return Err(CloudError::NotFound(format!(
                    "object {key} has {} bytes, more than the {max} it may have: it is not one of ours",
                    got.meta.size
                )));
            }
            got.bytes().await.map_err(CloudError::of)
        })
        .await
    }

    /// Keys of the objects under a prefix (whole path components), in no promised order.
    ///
    /// # Errors
    /// See [`CloudError`]; `Config` when there are more than `max`.
    pub async fn keys(&self, prefix: &str, max: usize) -> Result<Vec<String>, CloudError> {
        bounded(async {
            let prefix = Path::from(prefix);
            let mut listing = self.store.list(Some(&prefix));
            let mut keys = Vec::new();
            while let Some(meta) = listing.try_next().await.map_err(CloudError::of)? {
                if keys.len() >= max {
                    return Err(CloudError::Config(format!(
                        "there are more than {max} objects under {prefix}: something else writes there"
                    )));
                }
                keys.push(meta.location.to_string());
            }
            Ok(keys)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CloudConfig;

    #[tokio::test]
    async fn of_many_who_create_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        let cloud = Cloud::open(&CloudConfig::Dir { path }).unwrap().unwrap();
        let tries = (0..16u8).map(|n| cloud.create("a/b", Bytes::from(vec![n; 1000])));
        let done = futures_util::future::try_join_all(tries).await.unwrap();
        assert_eq!(done.iter().filter(|c| **c == Created::New).count(), 1);
        let bytes = cloud.read("a/b", 1000).await.unwrap();
        let winner = done.iter().position(|c| *c == Created::New).unwrap();
        assert!(bytes.iter().all(|b| usize::from(*b) == winner));
        assert!(cloud.read("a/b", 999).await.is_err());
        assert_eq!(cloud.keys("a", 1).await.unwrap(), ["a/b"]);
        cloud.create("a/c", Bytes::new()).await.unwrap();
        assert!(cloud.keys("a", 1).await.is_err());
        assert!(cloud.keys("nothing", 1).await.unwrap().is_empty());
    }
}
