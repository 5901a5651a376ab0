//! Whether a node's bucket is the one its coordinator writes the history to.

use super::format::{self, Kind, OBJECT_MAX, ROOT};
use super::shape::Shape;
use super::{LISTED_MAX, claim};
use fastcache_cloud::{Cloud, CloudError};

/// Why a bucket is not known to be a coordinator's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BucketError {
    /// It is another one: what is uploaded there is in no bucket that could be restored from.
    #[error(
        "{place} is not the bucket of this node's coordinator, which writes the file system {file_system:016x}: {found}. \
         Give both the same --cloud-provider, bucket, container or --cloud-dir, endpoint and --cloud-prefix"
    )]
    Other {
        /// The node's.
        place: String,
        /// The coordinator's.
        file_system: u64,
        /// What is there instead.
        found: String,
    },
    /// It does not answer.
    #[error(
        "it is not known yet whether {place} is the bucket of this node's coordinator: {error}"
    )]
    Away {
        /// The node's.
        place: String,
        /// What it said.
        error: String,
    },
}

/// Looks for the object that a coordinator made when it began to write this epoch of this file system.
///
/// # Errors
/// When it is not there, or cannot be looked for.
pub async fn check_bucket(cloud: &Cloud, file_system: u64, epoch: u64) -> Result<(), BucketError> {
    let place = || cloud.place().to_owned();
    let away = |error: String| BucketError::Away {
        place: place(),
        error,
    };
    let other = |found: String| {
        Err(BucketError::Other {
            place: place(),
            file_system,
            found,
        })
    };
    let key = format::epoch_name(epoch);
    match cloud.read(&key, OBJECT_MAX).await {
        Ok(bytes) => match format::unseal(Kind::Epoch, &bytes) {
            Ok((owner, _)) if owner.file_system == file_system => Ok(()),
            Ok((owner, _)) => other(format!(
                "it holds the file system {:016x}",
                owner.file_system
            )),
            Err(e) => other(format!("{key} there cannot be read: {e}")),
        },
        Err(CloudError::NotFound(_)) => {
            let keys = cloud.keys(&format!("{ROOT}/epochs"), LISTED_MAX).await;
            let shape = Shape::of(keys.map_err(|e| away(e.to_string()))?);
            let Some(last) = shape.epochs.last().copied() else {
                return other("it holds no file system".to_owned());
            };
            match claim::read_epoch(cloud, last).await {
                Ok((owner, _)) if owner.file_system == file_system => other(format!(
                    "it holds a copy of it that ends with epoch {last}, and the coordinator writes epoch {epoch}"
                )),
                Ok((owner, _)) => other(format!(
                    "it holds the file system {:016x}",
                    owner.file_system
                )),
                Err(e) => Err(away(format!("{e:?}"))),
            }
        }
        Err(e) => Err(away(e.to_string())),
    }
}
