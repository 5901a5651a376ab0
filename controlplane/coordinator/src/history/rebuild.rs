//! The state from the bucket alone: the last snapshot that is whole, and the records that follow it.
//!
//! Built beside the place where the namespace is kept and moved there at the end, so that a rebuild that was stopped
//! leaves nothing half done. It raises the epoch first: a coordinator that still writes this history stops, and every
//! record it told anybody about is in what is listed afterwards.

use super::claim::{create_epoch, list, read_epoch};
use super::format::{self, FormatError, OBJECT_MAX, Owner, SnapshotName};
use super::shape::{Chain, Shape};
use super::ship::Failed;
use super::{HistoryError, snapshot};
use crate::engine::{EngineError, Target};
use bytes::Bytes;
use fastcache_api::Ino;
use fastcache_cloud::{Cloud, CloudError};
use futures_util::StreamExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Epochs a rebuild leaves out: a coordinator that could not reach the bucket may have begun the next few.
const EPOCHS_SKIPPED: u64 = 1000;
/// Objects that are read ahead.
const AHEAD: usize = 8;
/// Tries of one object, with a pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// What a rebuild may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct RebuildOptions {
    /// Put an existing namespace aside.
    pub replace: bool,
    /// Where the history is damaged or has a gap, end there instead of failing.
    pub accept_loss: bool,
}

/// How far a rebuild is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The bucket was listed.
    Listed {
        /// The last record of the snapshot; 0: none.
        snapshot: u64,
        /// Segments that follow.
        segments: u64,
    },
    /// So many parts of the snapshot are in.
    Parts {
        /// Done.
        done: u64,
        /// Of so many.
        of: u64,
    },
    /// So many segments are in.
    Segments {
        /// Done.
        done: u64,
        /// Of so many.
        of: u64,
    },
    /// Something is wrong and was got round; the text names the object.
    Warning(String),
}

/// What was rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Number of the file system.
    pub file_system: u64,
    /// The last record.
    pub position: u64,
    /// The epoch the next start will follow.
    pub epoch: u64,
    /// Inodes that exist.
    pub inodes: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files whose newest contents are not in the bucket: reading them fails unless a node has them. Inode and path.
    pub incomplete: Vec<(Ino, String)>,
    /// Where the namespace that was there is now.
    pub put_aside: Option<PathBuf>,
    /// Where the history ended early, and why, if that was accepted.
    pub lost_behind: Option<String>,
}

/// Why nothing was rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// There is a namespace already.
    #[error(
        "{0} is not empty: there is a namespace already; start without --rebuild to use it, or put it aside and rebuild \
         from the bucket with rebuild --force"
    )]
    NotEmpty(PathBuf),
    /// The bucket has no history.
    #[error(
        "{0} has no history of a file system: there is nothing to rebuild from; check bucket and prefix"
    )]
    Nothing(String),
    /// An object of the history is missing or damaged.
    #[error(
        "{object} {why}. The history is whole up to record {position} of {end}; to rebuild up to there, and lose what \
         came after, use rebuild --accept-loss"
    )]
    Broken {
        /// The object.
        object: String,
        /// What is wrong.
        why: String,
        /// The last record before it.
        position: u64,
        /// The last record of the history, as far as names tell.
        end: u64,
    },
    /// The bucket cannot be read.
    #[error("{object}: {error}")]
    Cloud {
        /// The object, or the bucket.
        object: String,
        /// What it said.
        error: CloudError,
    },
    /// The bucket is not what it should be.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The state directory cannot be written.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Moving the state into its place failed.
    #[error("{path}: {error}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Why one object could not be used.
enum Bad {
    /// It is missing or damaged: it will not get better.
    Broken {
        object: String,
        why: String,
    },
    Fatal(RebuildError),
}

impl From<RebuildError> for Bad {
    fn from(error: RebuildError) -> Bad {
        Bad::Fatal(error)
    }
}

impl From<EngineError> for Bad {
    fn from(error: EngineError) -> Bad {
        Bad::Fatal(error.into())
    }
}

/// Rebuilds the namespace of a state directory from a bucket. Nothing is changed in the directory unless it works.
///
/// # Errors
/// See [`RebuildError`].
pub async fn rebuild(
    cloud: &Cloud,
    state_dir: &Path,
    options: RebuildOptions,
    mut told: impl FnMut(Step),
) -> Result<Rebuilt, RebuildError> {
    let place = state_dir.join("namespace");
    let is_there = crate::engine::is_there(&place);
    if is_there && !options.replace {
        return Err(RebuildError::NotEmpty(place));
    }
    if is_there {
        crate::engine::check_unused(&place)?;
    }
    let owner = take_over(cloud).await?;
    let shape = list(cloud).await.map_err(|e| refused(cloud, e))?;
    let beside = state_dir.join("namespace.rebuilding");
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| RebuildError::Io { path, error }
    };
    if beside.exists() {
        std::fs::remove_dir_all(&beside).map_err(io(&beside))?;
    }
    std::fs::create_dir_all(&beside).map_err(io(&beside))?;
    let built = build(cloud, owner, &shape, &beside, options, &mut told).await;
    let (mut rebuilt, built_in) = match built {
        Ok(built) => built,
        Err(error) => {
            // Incomplete, and made anew by the next try.
            let _ = std::fs::remove_dir_all(&beside);
            return Err(error);
        }
    };
    if is_there {
        let aside = state_dir.join(format!("namespace.before-{:x}", rebuilt.epoch));
        std::fs::rename(&place, &aside).map_err(io(&aside))?;
        rebuilt.put_aside = Some(aside);
    } else if place.exists() {
        std::fs::remove_dir(&place).map_err(io(&place))?;
    }
    std::fs::rename(&built_in, &place).map_err(io(&place))?;
    std::fs::remove_dir_all(&beside).map_err(io(&beside))?;
    Ok(rebuilt)
}

fn refused(cloud: &Cloud, failed: Failed) -> RebuildError {
    match failed {
        Failed::Stopped(error) => error.into(),
        Failed::Again(error) => RebuildError::Cloud {
            object: cloud.place().to_owned(),
            error: CloudError::Transient(error),
        },
    }
}

/// Raises the epoch: from now on nobody else writes this history.
async fn take_over(cloud: &Cloud) -> Result<Owner, RebuildError> {
    loop {
        let shape = list(cloud).await.map_err(|e| refused(cloud, e))?;
        let Some(last) = shape.epochs.last().copied() else {
            return Err(RebuildError::Nothing(cloud.place().to_owned()));
        };
        let (theirs, _) = read_epoch(cloud, last)
            .await
            .map_err(|e| refused(cloud, e))?;
        let owner = Owner {
            file_system: theirs.file_system,
            epoch: last + EPOCHS_SKIPPED,
        };
        let created = create_epoch(cloud, owner, rand::random()).await;
        if created.map_err(|e| refused(cloud, e))? {
            return Ok(owner);
        }
    }
}

async fn build(
    cloud: &Cloud,
    owner: Owner,
    shape: &Shape,
    beside: &Path,
    options: RebuildOptions,
    told: &mut impl FnMut(Step),
) -> Result<(Rebuilt, PathBuf), RebuildError> {
    let mut snapshots: Vec<Option<SnapshotName>> =
        shape.snapshots().into_iter().map(Some).rev().collect();
    snapshots.push(None);
    let mut first_bad: Option<(String, String)> = None;
    for (n, snapshot) in snapshots.into_iter().enumerate() {
        let chain = shape.chain_from(snapshot);
        if snapshot.is_none() && chain.end == 0 && first_bad.is_some() {
            break;
        }
        told(Step::Listed {
            snapshot: snapshot.map_or(0, |s| s.position),
            segments: chain.segments.len() as u64,
        });
        let path = beside.join(n.to_string());
        let target = Target::make(&path)?;
        match load(cloud, owner, snapshot, &target, told).await {
            Ok(()) => {}
            Err(Bad::Fatal(error)) => return Err(error),
            Err(Bad::Broken { object, why }) => {
                told(Step::Warning(format!(
                    "{object} {why}: using an older snapshot"
                )));
                first_bad.get_or_insert((object, why));
                continue;
            }
        }
        let rebuilt = finish(cloud, owner, chain, target, options, told).await?;
        return Ok((rebuilt, path));
    }
    let (object, why) = first_bad.unwrap_or_default();
    Err(RebuildError::Broken {
        object,
        why,
        position: 0,
        end: shape.chain().end,
    })
}

/// Brings a snapshot in.
async fn load(
    cloud: &Cloud,
    owner: Owner,
    snapshot: Option<SnapshotName>,
    target: &Target,
    told: &mut impl FnMut(Step),
) -> Result<(), Bad> {
    let Some(name) = snapshot else { return Ok(()) };
    let broken = |object: &str, why: &FormatError| Bad::Broken {
        object: object.to_owned(),
        why: why.to_string(),
    };
    let key = name.manifest();
    let bytes = get(cloud, &key).await?;
    let manifest =
        snapshot::decode_manifest(name, owner.file_system, &bytes).map_err(|e| broken(&key, &e))?;
    let of = manifest.parts.len() as u64;
    let reads = (0..manifest.parts.len()).map(|n| {
        let key = name.part(n);
        async move { (n, get(cloud, &key).await) }
    });
    let mut reads = futures_util::stream::iter(reads).buffered(AHEAD);
    while let Some((n, bytes)) = reads.next().await {
        let info = manifest.parts[n];
        let pairs = snapshot::decode_part(name, owner.file_system, info, &bytes?)
            .map_err(|e| broken(&name.part(n), &e))?;
        target.put(pairs)?;
        told(Step::Parts {
            done: n as u64 + 1,
            of,
        });
    }
    let position = target.counters()?.position;
    if position != name.position {
        let why = FormatError::Misplaced("its state is of another position");
        return Err(broken(&key, &why));
    }
    Ok(())
}

/// Brings the segments in, and makes the state ready to be opened.
async fn finish(
    cloud: &Cloud,
    owner: Owner,
    chain: Chain,
    target: Target,
    options: RebuildOptions,
    told: &mut impl FnMut(Step),
) -> Result<Rebuilt, RebuildError> {
    let of = chain.segments.len() as u64;
    let end = chain.gap.map_or(chain.end, |(_, there)| there);
    let reads = chain.segments.iter().map(|name| async move {
        let bytes = get(cloud, &name.key()).await;
        (*name, bytes)
    });
    let mut reads = futures_util::stream::iter(reads).buffered(AHEAD);
    let mut broken = None;
    let mut done = 0;
    while let Some((name, bytes)) = reads.next().await {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(Bad::Fatal(error)) => return Err(error),
            Err(Bad::Broken { object, why }) => {
                broken = Some((object, why));
                break;
            }
        };
        let records = match format::decode_segment(name, owner.file_system, &bytes) {
            Ok(records) => records,
            Err(error) => {
                broken = Some((name.key(), error.to_string()));
                break;
            }
        };
        if let Err(error) = target.replay(&records) {
            broken = Some((name.key(), error.to_string()));
            break;
        }
        done += 1;
        told(Step::Segments { done, of });
    }
    if broken.is_none()
        && let Some((missing, there)) = chain.gap
    {
        let object = format!("{}/log/{missing:016x}-…", format::ROOT);
        broken = Some((
            object,
            format!("is missing (the next one begins with record {there})"),
        ));
    }
    let position = target.counters()?.position;
    if let Some((object, why)) = &broken
        && !options.accept_loss
    {
        return Err(RebuildError::Broken {
            object: object.clone(),
            why: why.clone(),
            position,
            end,
        });
    }
    if position == 0 {
        return Err(RebuildError::Nothing(cloud.place().to_owned()));
    }
    let incomplete = target.incomplete()?;
    let counters = target.finish(owner.epoch, position)?;
    Ok(Rebuilt {
        file_system: owner.file_system,
        position,
        epoch: owner.epoch,
        inodes: counters.inodes,
        bytes: counters.bytes,
        incomplete,
        put_aside: None,
        lost_behind: broken.map(|(object, why)| format!("{object} {why}")),
    })
}

/// An object, with a few tries.
async fn get(cloud: &Cloud, key: &str) -> Result<Bytes, Bad> {
    let mut tries = 1;
    loop {
        match cloud.read(key, OBJECT_MAX).await {
            Ok(bytes) => return Ok(bytes),
            Err(CloudError::NotFound(why)) => {
                return Err(Bad::Broken {
                    object: key.to_owned(),
                    why: format!("is missing ({why})"),
                });
            }
            Err(error) if error.is_passing() && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                let object = key.to_owned();
                return Err(RebuildError::Cloud { object, error }.into());
            }
        }
    }
}
