//! The objects of the bucket, in memory, by their chunk.

use super::report::LISTED_MAX;
use super::{CheckError, Teller};
use crate::persist::object_key;
use fastcache_api::{ChunkKey, Ino, Version};
use fastcache_cloud::Cloud;
use futures_util::StreamExt;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::{Duration, SystemTime};

/// Most objects that are looked at: 1 GB of memory.
pub(super) const OBJECTS_MAX: usize = 20_000_000;
/// Where chunks are.
const ROOT: &str = "chunks";

/// An object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) key: ChunkKey,
    pub(super) size: u64,
    /// By the store's clock, seconds.
    pub(super) age_seconds: u32,
    /// Hash of its ETag; 0 without one.
    pub(super) etag: u32,
    /// Something needs it, or has taken care of it.
    pub(super) is_settled: bool,
}

/// All objects, in order of their chunks.
pub(super) struct Survey {
    pub(super) objects: Vec<Object>,
    pub(super) bytes: u64,
    /// Keys that are none of ours: the first, and how many.
    pub(super) foreign: Vec<String>,
    pub(super) foreign_count: u64,
    hasher: RandomState,
}

impl Survey {
    /// Lists the bucket.
    pub(super) async fn take(cloud: &Cloud, teller: &mut Teller) -> Result<Survey, CheckError> {
        let now = cloud.clock().await?;
        let mut survey = Survey {
            objects: Vec::new(),
            bytes: 0,
            foreign: Vec::new(),
            foreign_count: 0,
            hasher: RandomState::new(),
        };
        let mut listing = pin!(cloud.walk(ROOT));
        let mut count = 0;
        teller.tell("objects", 0, None).await?;
        while let Some(listed) = listing.next().await {
            let listed = listed?;
            count += 1;
            let Some(key) = parse(&listed.key) else {
                survey.foreign_count += 1;
                if survey.foreign.len() < LISTED_MAX {
                    survey.foreign.push(listed.key);
                }
                continue;
            };
            if survey.objects.len() >= OBJECTS_MAX {
                return Err(CheckError::TooMany(OBJECTS_MAX));
            }
            survey.bytes += listed.size;
            let object = Object {
                key,
                size: listed.size,
                age_seconds: age(now, listed.modified),
                etag: survey.etag(listed.etag.as_deref()),
                is_settled: false,
            };
            survey.objects.push(object);
            if count % 1000 == 0 {
                teller.tell("objects", count, None).await?;
            }
        }
        survey.objects.sort_unstable_by_key(|o| o.key);
        // A listing that changes while it is read may tell an object twice.
        survey.objects.dedup_by_key(|o| o.key);
        Ok(survey)
    }

    /// What an ETag is remembered by.
    pub(super) fn etag(&self, etag: Option<&str>) -> u32 {
        etag.map_or(0, |e| {
            let hash = self.hasher.hash_one(e.trim_matches('"'));
            u32::try_from(hash >> 32).unwrap_or(0).max(1)
        })
    }

    /// The object of a chunk.
    pub(super) fn find(&mut self, key: ChunkKey) -> Option<&mut Object> {
        let at = self.objects.binary_search_by_key(&key, |o| o.key).ok()?;
        self.objects.get_mut(at)
    }
}

/// Seconds from `then` to `now`; 0 for the future.
fn age(now: SystemTime, then: SystemTime) -> u32 {
    let age = now.duration_since(then).unwrap_or(Duration::ZERO);
    u32::try_from(age.as_secs()).unwrap_or(u32::MAX)
}

/// The chunk of an object, if its key is exactly what we would have made.
pub(super) fn parse(object: &str) -> Option<ChunkKey> {
    let (ino, rest) = object
        .strip_prefix(ROOT)?
        .strip_prefix('/')?
        .split_once('/')?;
    let (index, version) = rest.split_once('-')?;
    let key = ChunkKey {
        ino: Ino(u64::from_str_radix(ino, 16).ok()?),
        index: index.parse().ok()?,
        version: Version(u64::from_str_radix(version, 16).ok()?),
    };
    (object_key(key) == object).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_ours_are_parsed() {
        let key = ChunkKey {
            ino: Ino(0x100_0000_0001),
            index: 12,
            version: Version(0xabc),
        };
        assert_eq!(parse(&object_key(key)), Some(key));
        for other in [
            "chunks",
            "chunks/",
            "chunks/1/2",
            "chunks/1/2-",
            "chunks/1/-3",
            "chunks/1/2-3/4",
            "chunks/01/2-3",
            "chunks/1/02-3",
            "chunks/1/2-A",
            "chunks/+1/2-3",
            "other/1/2-3",
            "chunks/1/4294967296-1",
            "chunks/1/2-10000000000000000",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        assert!(parse("chunks/1/2-3").is_some());
    }

    #[test]
    fn ages_have_no_sign() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(age(now, SystemTime::UNIX_EPOCH), 1000);
        assert_eq!(age(SystemTime::UNIX_EPOCH, now), 0);
    }
}
