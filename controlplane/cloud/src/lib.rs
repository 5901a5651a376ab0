//! The object store tier: S3, Azure Blob, or a directory.
//!
//! One object holds one version of one chunk. Each request has a deadline and a bounded number of retries;
//! what fails after them is a typed [`CloudError`], and the caller decides when to try again. Objects carry
//! the CRC32C and length of their bytes as metadata, where the store has metadata (S3, Azure).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod config;
mod error;
#[cfg(test)]
mod tests;

pub use config::{CloudConfig, Secret};
pub use error::CloudError;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attribute, BackoffConfig, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutOptions,
    PutPayload, RetryConfig,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest a single HTTP request may take: a 4 MiB object at 0.3 MB/s.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// Longest a call of [`Cloud`] may take, its retries included.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Longest [`Cloud::check`] waits for the store.
pub const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// Retries within one call; the queues above retry for ever, with longer pauses.
const RETRIES: usize = 3;
/// Largest object that is read into memory, bytes: the largest chunk.
const OBJECT_MAX: u64 = 4 << 20;
/// Metadata key of the CRC32C, eight hexadecimal digits. One word, because Azure wants identifiers.
const META_CRC: &str = "fastcachecrc32c";
/// Metadata key of the length, decimal.
const META_LEN: &str = "fastcachelength";

/// An object as it was read.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its ETag, where the store gives one.
    pub etag: Option<String>,
    /// The CRC32C its metadata names; the caller verifies.
    pub crc32c: Option<u32>,
}

/// A handle on the object store. Clones share connections.
#[derive(Clone)]
pub struct Cloud {
    store: Arc<dyn ObjectStore>,
    place: Arc<str>,
    has_attributes: bool,
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
    pub fn open(config: &CloudConfig) -> Result<Option<Cloud>, CloudError> {
        let place: Arc<str> = config.place().into();
        let refused = |e: object_store::Error| CloudError::Config(format!("{place}: {e}"));
        let (store, has_attributes): (Arc<dyn ObjectStore>, bool) = match config {
            CloudConfig::None => return Ok(None),
            CloudConfig::S3 {
                bucket,
                region,
                endpoint,
                access_key,
                secret_key,
            } => {
                if bucket.is_empty() {
                    return Err(CloudError::Config(
                        "no bucket is named; set --s3-bucket".to_owned(),
                    ));
                }
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_region(region)
                    .with_disable_bulk_delete(true)
                    .with_retry(retry());
                let mut is_http = false;
                if let Some(endpoint) = endpoint {
                    is_http = is_plain_http(endpoint)?;
                    builder = builder
                        .with_endpoint(endpoint)
                        .with_virtual_hosted_style_request(false);
                }
                builder = builder
                    .with_client_options(client(is_http))
                    .with_allow_http(is_http);
                match (access_key, secret_key) {
                    (Some(access), Some(secret)) => {
                        builder = builder
                            .with_access_key_id(access)
                            .with_secret_access_key(secret.expose());
                    }
                    (None, None) => {}
                    _ => {
                        return Err(CloudError::Config(
                            "only one half of the S3 credentials is set; set both \
                             AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither"
                                .to_owned(),
                        ));
                    }
                }
                (Arc::new(builder.build().map_err(refused)?), true)
            }
            CloudConfig::Azure {
                account,
                key,
                container,
                endpoint,
            } => {
                if account.is_empty() {
                    return Err(CloudError::Config(
                        "no storage account is named; set --azure-account or \
                         AZURE_STORAGE_ACCOUNT"
                            .to_owned(),
                    ));
                }
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_account(account)
                    .with_container_name(container)
                    .with_retry(retry());
                let mut is_http = false;
                if let Some(endpoint) = endpoint {
                    is_http = is_plain_http(endpoint)?;
                    builder = builder.with_endpoint(endpoint.clone());
                }
                builder = builder
                    .with_client_options(client(is_http))
                    .with_allow_http(is_http);
                if let Some(key) = key {
                    builder = builder.with_access_key(key.expose());
                }
                (Arc::new(builder.build().map_err(refused)?), true)
            }
            CloudConfig::Dir { path } => {
                std::fs::create_dir_all(path).map_err(|e| {
                    CloudError::Config(format!(
                        "cannot make the directory {}: {e}; choose another with --cloud-dir",
                        path.display()
                    ))
                })?;
                let store = LocalFileSystem::new_with_prefix(path)
                    .map_err(refused)?
                    .with_fsync(true)
                    .with_automatic_cleanup(true);
                (Arc::new(store), false)
            }
        };
        Ok(Some(Cloud {
            store,
            place,
            has_attributes,
        }))
    }

    /// Where objects go, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether the store can be listed, written and deleted from, now. The error's text says what to do.
    pub async fn check(&self) -> Result<(), CloudError> {
        let stamp = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos());
        let probe = format!("fastcache-check/{}-{stamp}", std::process::id());
        let tried = tokio::time::timeout(CHECK_DEADLINE, async {
            let prefix = Path::from("fastcache-check");
            let mut listing = self.store.list(Some(&prefix));
            if let Some(Err(e)) = listing.next().await {
                return Err(CloudError::of(e));
            }
            self.put_unbounded(&probe, Bytes::from_static(b"ok"), 0)
                .await?;
            self.delete_unbounded(&probe).await
        });
        let error = match tried.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e,
            Err(_) => CloudError::Transient(format!("no answer within {CHECK_DEADLINE:?}")),
        };
        let place = &self.place;
        Err(match error {
            CloudError::NotFound(e) => CloudError::NotFound(format!(
                "{place} does not exist; create it, or name another one. ({e})"
            )),
            CloudError::Denied(e) => CloudError::Denied(format!(
                "{place} refuses these credentials; check the keys, and that they may list, get, \
                 put and delete. ({e})"
            )),
            CloudError::Config(e) => CloudError::Config(format!(
                "{place} cannot be used as configured; check region, endpoint and name. ({e})"
            )),
            CloudError::Throttled(e) => CloudError::Throttled(format!("{place}: {e}")),
            CloudError::Transient(e) => CloudError::Transient(format!(
                "{place} cannot be reached; check the endpoint and the network. ({e})"
            )),
        })
    }

    /// Writes an object. Returns its ETag, where the store gives one.
    pub async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        crc32c: u32,
    ) -> Result<Option<String>, CloudError> {
        bounded(self.put_unbounded(key, bytes, crc32c)).await
    }

    async fn put_unbounded(
        &self,
        key: &str,
        bytes: Bytes,
        crc32c: u32,
    ) -> Result<Option<String>, CloudError> {
        let mut options = PutOptions::default();
        if self.has_attributes {
            let crc = format!("{crc32c:08x}");
            options
                .attributes
                .insert(Attribute::Metadata(META_CRC.into()), crc.into());
            let len = bytes.len().to_string();
            options
                .attributes
                .insert(Attribute::Metadata(META_LEN.into()), len.into());
        }
        let path = Path::from(key);
        let done = self
            .store
            .put_opts(&path, PutPayload::from_bytes(bytes), options)
            .await;
        done.map(|r| r.e_tag).map_err(CloudError::of)
    }

    /// Reads a whole object of at most 4 MiB.
    pub async fn get(&self, key: &str) -> Result<Object, CloudError> {
        self.get_with(key, GetOptions::default()).await
    }

    /// Reads `len` bytes of an object from `offset` on; fewer when it ends before.
    pub async fn get_range(&self, key: &str, offset: u64, len: u32) -> Result<Object, CloudError> {
        let range = offset..offset.saturating_add(u64::from(len));
        self.get_with(
            key,
            GetOptions {
                range: Some(range.into()),
                ..GetOptions::default()
            },
        )
        .await
    }

    async fn get_with(&self, key: &str, options: GetOptions) -> Result<Object, CloudError> {
        bounded(async {
            let got = self
                .store
                .get_opts(&Path::from(key), options)
                .await
                .map_err(CloudError::of)?;
            if got.range.end - got.range.start > OBJECT_MAX {
                return Err(CloudError::NotFound(format!(
                    "object {key} has {} bytes, more than any chunk: it is not one of ours",
                    got.meta.size
                )));
            }
            let etag = got.meta.e_tag.clone();
            let crc32c = got
                .attributes
                .get(&Attribute::Metadata(META_CRC.into()))
                .and_then(|v| u32::from_str_radix(v.as_ref(), 16).ok());
            let bytes = got.bytes().await.map_err(CloudError::of)?;
            Ok(Object {
                bytes,
                etag,
                crc32c,
            })
        })
        .await
    }

    /// Deletes an object; one that is not there is fine.
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

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: RETRIES,
        retry_timeout: CALL_DEADLINE,
    }
}

fn client(is_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(is_http)
        .with_timeout(REQUEST_DEADLINE)
        .with_connect_timeout(Duration::from_secs(5))
}

fn is_plain_http(endpoint: &str) -> Result<bool, CloudError> {
    if endpoint.starts_with("http://") {
        Ok(true)
    } else if endpoint.starts_with("https://") {
        Ok(false)
    } else {
        Err(CloudError::Config(format!(
            "the endpoint `{endpoint}` must start with http:// or https://"
        )))
    }
}
