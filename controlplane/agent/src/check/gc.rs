//! Finds objects that nothing names and nothing ever will, and gives them to the deletion queue.
//!
//! Why none of them can be needed, in the order in which things are looked at:
//!
//! 1. The bucket is listed first: what is uploaded later is not looked at. What is younger than the grace time, by the
//!    store's clock, is left alone.
//! 2. Everything open is sealed and committed: a version that was uploaded ahead of its commit is named from here on,
//!    or never. Then the store's inventory is read: a version on the device, or in the upload queue, is left alone,
//!    since its upload may be under way (and is made again after a crash).
//! 3. The cloud refs and the deletion queue are read. What they name is taken care of.
//! 4. What is left belongs to a file that is gone (inode numbers are never used twice), or to a version that was
//!    replaced. With other nodes, the second kind may be in the upload queue of one of them, and is left alone until
//!    its file is gone.
//! 5. The namespace takes each object with a check of its own, in one step with all other changes, and queues it. The
//!    queue deletes only what no snapshot and no later log of the bucket can bring back.
//!
//! Versions of a later epoch than the namespace's mean that this is not the namespace of this bucket, or an old copy
//! of it: nothing is deleted then. Nor when most of the bucket would go, unless that is forced.

use super::local::Local;
use super::objects::{Object, Survey, parse};
use super::report::{GcReport, LISTED_MAX, Leak};
use super::{CheckError, GcRequest, REFS_PAGE, Teller};
use crate::node::Inner;
use crate::persist::object_key;
use fastcache_api::{COUNTER_BITS, ChunkKey, Errno, Ino, NsAnswer, NsOp, RefUse};
use std::time::{Duration, Instant};

/// Objects given to the namespace with one operation.
const DISCARD_BATCH: usize = 1000;
/// So few leaks are deleted without comparing them with what is named.
const FEW: u64 = 16;
/// Refs of replaced versions dealt with in one run; the next run takes the next ones.
const STALE_MAX: usize = 100_000;
/// Shortest grace time where other nodes use the bucket.
const GRACE_SHARED_MIN: Duration = Duration::from_secs(900);

pub(super) async fn run(
    inner: &Inner,
    mut request: GcRequest,
    teller: &mut Teller,
) -> Result<GcReport, CheckError> {
    let began = Instant::now();
    let cloud = inner.cloud.as_ref().ok_or(CheckError::NoCloud)?;
    let is_alone = inner.config.coordinator.is_none();
    if !is_alone {
        request.grace = request.grace.max(GRACE_SHARED_MIN);
    }
    let mut survey = Survey::take(cloud, teller).await?;
    let mut local = Local::take(inner).await?;
    let (epoch, _) = inner.epoch_and_position().await?;
    let mut report = GcReport {
        objects: survey.objects.len() as u64,
        object_bytes: survey.bytes,
        foreign: std::mem::take(&mut survey.foreign),
        foreign_objects: survey.foreign_count,
        is_dry_run: !request.is_delete,
        ..GcReport::default()
    };
    let mut stale = settle_refs(inner, &mut survey, &mut report, teller).await?;
    settle_queued(inner, &mut survey, &mut report).await?;

    // Refs that no layout named may have been of versions ahead of their commit: commit them, and look again.
    if is_alone && !stale.is_empty() {
        local = Local::take(inner).await?;
    }
    let mut found: Vec<(ChunkKey, String, Leak)> = Vec::new();
    stale.retain(|(key, _)| is_alone && !local.holds(inner, *key));
    for (key, object) in stale {
        if inner.is_named(key).await? == Some(true) {
            report.named += 1;
            continue;
        }
        let known = survey.find(key).copied();
        let age_seconds = known.map_or(0, |o| o.age_seconds);
        if u64::from(age_seconds) < request.grace.as_secs() {
            report.young += 1;
            continue;
        }
        let leak = leak(
            &object,
            known.map_or(0, |o| o.size),
            age_seconds,
            "stale_ref",
        );
        found.push((key, object, leak));
    }
    let mut later = 0u64;
    let mut file: Option<(Ino, bool)> = None;
    let unsettled: Vec<Object> = survey
        .objects
        .iter()
        .filter(|o| !o.is_settled)
        .copied()
        .collect();
    let total = unsettled.len() as u64;
    for (at, object) in unsettled.into_iter().enumerate() {
        teller.tell("confirming", at as u64, Some(total)).await?;
        let key = object.key;
        if key.ino.0 >> COUNTER_BITS > epoch || key.version.0 >> COUNTER_BITS > epoch {
            later += 1;
            continue;
        }
        if u64::from(object.age_seconds) < request.grace.as_secs() {
            report.young += 1;
            continue;
        }
        if local.holds(inner, key) {
            report.in_flight += 1;
            continue;
        }
        let exists = match file {
            Some((ino, exists)) if ino == key.ino => exists,
            _ => {
                let exists = inner.exists(key.ino).await?;
                file = Some((key.ino, exists));
                exists
            }
        };
        if exists && !is_alone {
            report.held_back += 1;
            continue;
        }
        if exists && inner.is_named(key).await? == Some(true) {
            // It was uploaded and not recorded: its bytes are on some device, or it is lost. Never a leak.
            report.in_flight += 1;
            continue;
        }
        let why = if exists { "not_named" } else { "file_gone" };
        let name = object_key(key);
        let leak = leak(&name, object.size, object.age_seconds, why);
        found.push((key, name, leak));
    }
    report.leaks = found.len() as u64;
    report.leak_bytes = found.iter().map(|(_, _, l)| l.bytes).sum();
    report.listed = found
        .iter()
        .take(LISTED_MAX)
        .map(|(_, _, l)| l.clone())
        .collect();
    report.refused = refusal(&report, later, request);
    if request.is_delete && report.refused.is_none() {
        let objects = found.into_iter().map(|(key, object, _)| (key, object));
        report.discarded = discard(inner, &local, objects.collect(), teller).await?;
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

fn leak(object: &str, bytes: u64, age_seconds: u32, why: &str) -> Leak {
    Leak {
        object: object.to_owned(),
        bytes,
        age_seconds: u64::from(age_seconds),
        why: why.to_owned(),
    }
}

/// Why nothing is to be deleted, if so.
fn refusal(report: &GcReport, later: u64, request: GcRequest) -> Option<String> {
    if later > 0 {
        return Some(format!(
            "{later} objects are of a later epoch than this namespace: it is an old copy, or another file system's; \
             use the newest, or rebuild it from the bucket"
        ));
    }
    if !request.is_forced && report.leaks > FEW && report.leaks > report.named {
        return Some(format!(
            "most of the bucket would go ({} objects, {} are in use): if this is the right bucket, say --force",
            report.leaks, report.named
        ));
    }
    None
}

/// Marks what cloud refs name. Refs that no layout names: chunk and object.
async fn settle_refs(
    inner: &Inner,
    survey: &mut Survey,
    report: &mut GcReport,
    teller: &mut Teller,
) -> Result<Vec<(ChunkKey, String)>, CheckError> {
    let mut stale = Vec::new();
    let mut after = None;
    let mut done = 0;
    loop {
        let (refs, is_end) = inner.refs_page(after).await?;
        after = refs.last().map(|r| r.key).or(after);
        done += refs.len() as u64;
        for one in refs {
            if let Some(object) = parse(&one.at.object).and_then(|key| survey.find(key)) {
                object.is_settled = true;
            }
            match one.used {
                RefUse::Named | RefUse::Spare => report.named += 1,
                RefUse::Unnamed | RefUse::NoInode if stale.len() < STALE_MAX => {
                    stale.push((one.key, one.at.object));
                }
                RefUse::Unnamed | RefUse::NoInode => {}
            }
        }
        teller.tell("references", done, None).await?;
        if is_end {
            return Ok(stale);
        }
    }
}

/// Marks what is going to be deleted anyway: in the namespace's queue, or already taken from it by this node.
async fn settle_queued(
    inner: &Inner,
    survey: &mut Survey,
    report: &mut GcReport,
) -> Result<(), CheckError> {
    let mut settle = |object: &str| {
        if let Some(object) = parse(object).and_then(|key| survey.find(key)) {
            report.queued += u64::from(!object.is_settled);
            object.is_settled = true;
        }
    };
    let mut after = 0;
    loop {
        let op = NsOp::QueuedGarbage {
            after,
            max: REFS_PAGE,
        };
        let NsAnswer::QueuedGarbage { objects, is_end } = inner.ask(op).await? else {
            return Err(CheckError::Namespace(Errno::EIO));
        };
        after = objects.last().map_or(after, |(number, _)| *number);
        objects.iter().for_each(|(_, object)| settle(object));
        if is_end {
            break;
        }
    }
    crate::garbage::taken(inner)
        .iter()
        .for_each(|object| settle(object));
    Ok(())
}

/// Gives objects to the deletion queue. How many it took.
async fn discard(
    inner: &Inner,
    local: &Local,
    objects: Vec<(ChunkKey, String)>,
    teller: &mut Teller,
) -> Result<u64, CheckError> {
    let total = objects.len() as u64;
    let mut done = 0;
    for batch in objects.chunks(DISCARD_BATCH) {
        if !local.is_current(inner) {
            // A data plane that was started again may have brought something back.
            return Err(CheckError::DataAway);
        }
        let objects: Vec<_> = batch
            .iter()
            .filter(|(key, _)| !local.holds(inner, *key))
            .cloned()
            .collect();
        match inner.ask(NsOp::Discard { objects }).await? {
            NsAnswer::Discarded(count) => done += count,
            _ => return Err(CheckError::Namespace(Errno::EIO)),
        }
        teller.tell("deleting", done, Some(total)).await?;
    }
    inner.garbage_wake.notify_one();
    Ok(done)
}

impl Inner {
    /// Whether there is such an inode.
    async fn exists(&self, ino: Ino) -> Result<bool, CheckError> {
        let asked = self.request(NsOp::GetAttr { ino });
        match self.namespace.call(asked).await.result {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(CheckError::Namespace(errno)),
        }
    }
}
