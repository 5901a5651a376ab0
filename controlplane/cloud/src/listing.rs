//! What is in the store, without reading it: for `gc` and `fsck`.

use crate::{CALL_DEADLINE, Cloud, CloudError, META_CRC, bounded};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::path::Path;
use object_store::{Attribute, GetOptions, ObjectStore};
use std::time::{SystemTime, UNIX_EPOCH};

/// An object as a listing tells it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// Its ETag, where the store gives one.
    pub etag: Option<String>,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// An object's metadata.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its bytes.
    pub size: u64,
    /// Its ETag, where the store gives one.
    pub etag: Option<String>,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
    /// The CRC32C its metadata names; `None` where the store has no metadata, or the object none of ours.
    pub crc32c: Option<u32>,
}

impl Cloud {
    /// Every object under a prefix (whole path components), in no promised order, however many. Ends with the first
    /// error; the store may take [`CALL_DEADLINE`] for each page.
    pub fn walk(
        &self,
        prefix: &str,
    ) -> impl Stream<Item = Result<Listed, CloudError>> + Send + 'static {
        let listing = self.store.list(Some(&Path::from(prefix)));
        futures_util::stream::unfold(Some(listing), |listing| async {
            let mut listing = listing?;
            match tokio::time::timeout(CALL_DEADLINE, listing.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(meta))) => {
                    let listed = Listed {
                        key: meta.location.to_string(),
                        size: meta.size,
                        etag: meta.e_tag,
                        modified: meta.last_modified.into(),
                    };
                    Some((Ok(listed), Some(listing)))
                }
                Ok(Some(Err(e))) => Some((Err(CloudError::of(e)), None)),
                Err(_) => {
                    let text = format!("the listing did not go on within {CALL_DEADLINE:?}");
                    Some((Err(CloudError::Transient(text)), None))
                }
            }
        })
    }

    /// An object's metadata.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn head(&self, key: &str) -> Result<Head, CloudError> {
        bounded(async {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            let got = self
                .store
                .get_opts(&Path::from(key), options)
                .await
                .map_err(CloudError::of)?;
            let crc32c = got
                .attributes
                .get(&Attribute::Metadata(META_CRC.into()))
                .and_then(|v| u32::from_str_radix(v.as_ref(), 16).ok());
            Ok(Head {
                size: got.meta.size,
                etag: got.meta.e_tag,
                modified: got.meta.last_modified.into(),
                crc32c,
            })
        })
        .await
    }

    /// The store's clock: the ages of objects are by it, whatever this machine's says. Writes and deletes a small
    /// object of its own to see it.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn clock(&self) -> Result<SystemTime, CloudError> {
        let stamp = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos());
        let probe = format!("fastcache-check/clock-{}-{stamp}", std::process::id());
        self.put(&probe, Bytes::from_static(b"ok"), 0).await?;
        let head = self.head(&probe).await;
        let deleted = self.delete(&probe).await;
        let now = head?.modified;
        deleted?;
        Ok(now)
    }
}
