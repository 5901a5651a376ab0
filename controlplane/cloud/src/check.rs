//! Whether the store can be used, said at start with a sentence that says what to do.

use crate::{CHECK_DEADLINE, Cloud, CloudError};
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

impl Cloud {
    /// Whether the store can be listed, written, read and deleted from, now. The error's text says what to do; its kind
    /// whether waiting may help ([`CloudError::is_passing`]).
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn check(&self) -> Result<(), CloudError> {
        let error = match tokio::time::timeout(CHECK_DEADLINE, self.try_all()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => e,
            Err(_) => CloudError::Transient(format!("no answer within {CHECK_DEADLINE:?}")),
        };
        let place = &self.place;
        if error.is_of_identity() && !error.is_of_certificate() {
            return Err(self.source.unavailable(place, &error));
        }
        Err(match error {
            error if error.is_of_certificate() => CloudError::Config(format!(
                "{place} shows a certificate that is not trusted here, or the service does that gives its credentials; when its authority is one of your own, name the \
                 authority's certificate with --cloud-ca, else check the endpoint's name and this machine's clock. ({error})"
            )),
            CloudError::NotFound(e) => CloudError::NotFound(format!(
                "{place} does not exist; create it, or name another one. ({e})"
            )),
            CloudError::Denied(e) => CloudError::Denied(format!(
                "{place} refuses these credentials; {}. ({e})",
                self.source.todo()
            )),
            CloudError::Config(e) => CloudError::Config(format!(
                "{place} cannot be used as configured; check region, endpoint and name. ({e})"
            )),
            CloudError::Altered(e) => CloudError::Altered(format!(
                "{place} does not give back what was written to it; something between alters bytes. ({e})"
            )),
            CloudError::Throttled(e) => CloudError::Throttled(format!("{place}: {e}")),
            CloudError::Transient(e) => CloudError::Transient(format!(
                "{place} cannot be reached; check the endpoint and the network. ({e})"
            )),
        })
    }

    async fn try_all(&self) -> Result<(), CloudError> {
        let stamp = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos());
        let key = format!("fastcache-check/{}-{stamp}", std::process::id());
        let written = Bytes::from(key.clone());
        let path = Path::from(key.as_str());
        let mut listing = self.store.list(Some(&Path::from("fastcache-check")));
        if let Some(Err(e)) = listing.next().await {
            return Err(CloudError::of(e));
        }
        drop(listing);
        let put = self.store.put(&path, written.clone().into()).await;
        put.map_err(CloudError::of)?;
        let got = self.store.get(&path).await.map_err(CloudError::of)?;
        let read = got.bytes().await.map_err(CloudError::of)?;
        self.delete_unbounded(&key).await?;
        if read == written {
            Ok(())
        } else {
            Err(CloudError::Altered(format!("object {key}")))
        }
    }
}
