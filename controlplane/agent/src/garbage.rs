//! Deletes objects that nothing names any more.
//!
//! The namespace hands each such object out once and forgets it; from then on the list is here: in memory and in
//! a file of the state directory, written before the first deletion, so that a kill leaks nothing.

use crate::link::lock;
use crate::node::Inner;
use fastcache_api::{NsAnswer, NsOp};
use fastcache_cloud::Cloud;
use futures_util::StreamExt;
use metrics::counter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::{debug, warn};

/// Between two looks for garbage.
const LOOK: Duration = Duration::from_secs(5);
/// Longest pause while deletions fail.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Objects taken at once; with none left over from before.
const TAKE: u32 = 1000;
/// Deletions at once.
const PARALLEL: usize = 8;

/// Deletes garbage until the node stops.
pub(crate) async fn collect_loop(inner: Arc<Inner>, cloud: Cloud) {
    let list = list_of(&inner);
    let mut left = load(&list);
    let mut pause = LOOK;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.garbage_wake.notified() => {}
            () = inner.stop.cancelled() => return,
        }
        pause = LOOK;
        loop {
            if left.is_empty() {
                left = take(&inner).await;
                if left.is_empty() {
                    break;
                }
                save(&list, &left).await;
            }
            let failed = delete_all(&inner, &cloud, std::mem::take(&mut left)).await;
            save(&list, &failed).await;
            left = failed;
            if !left.is_empty() {
                pause = PAUSE_MAX;
                break;
            }
        }
    }
}

fn list_of(inner: &Inner) -> PathBuf {
    inner.config.state_dir.join("garbage")
}

/// Objects that were taken from the namespace's queue, and whose deletion is still under way.
pub(crate) fn taken(inner: &Inner) -> Vec<String> {
    load(&list_of(inner))
}

async fn take(inner: &Inner) -> Vec<String> {
    match inner
        .namespace
        .call(inner.request(NsOp::TakeGarbage {
            max: TAKE,
            upto: u64::MAX,
        }))
        .await
        .result
    {
        Ok(NsAnswer::Garbage(objects)) => objects,
        Ok(_) => Vec::new(),
        Err(errno) => {
            debug!(target: "cloud", %errno, "cannot ask for garbage");
            Vec::new()
        }
    }
}

/// Deletes, and returns what could not be.
async fn delete_all(inner: &Arc<Inner>, cloud: &Cloud, objects: Vec<String>) -> Vec<String> {
    let count = objects.len();
    let failed: Vec<Option<String>> = futures_util::stream::iter(objects)
        .map(|object| async move {
            match cloud.delete(&object).await {
                Ok(()) => {
                    inner.counters.deletes.fetch_add(1, Ordering::Relaxed);
                    counter!("fastcache_cloud_deletes_total").increment(1);
                    None
                }
                Err(error) => {
                    inner.counters.errors.fetch_add(1, Ordering::Relaxed);
                    counter!("fastcache_cloud_errors_total", "op" => "delete").increment(1);
                    debug!(target: "cloud", object, %error, "cannot delete");
                    Some(object)
                }
            }
        })
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    if failed.is_empty() {
        debug!(target: "cloud", objects = count, "deleted garbage");
    } else {
        let text = lock(&inner.breaker).error().unwrap_or_default();
        warn!(target: "cloud", objects = failed.len(), text,
            "some objects could not be deleted; trying again later");
    }
    failed
}

fn load(list: &Path) -> Vec<String> {
    std::fs::read_to_string(list)
        .map(|text| text.lines().map(str::to_owned).collect())
        .unwrap_or_default()
}

async fn save(list: &Path, objects: &[String]) {
    let (list, text): (PathBuf, String) = (list.to_owned(), objects.join("\n"));
    let new = list.with_extension("new");
    let written = async {
        tokio::fs::write(&new, text).await?;
        tokio::fs::rename(&new, &list).await
    };
    if let Err(error) = written.await {
        warn!(target: "cloud", path = %list.display(), %error,
            "cannot write the list of objects to delete; a kill now would leave them behind");
    }
}
