//! One writer: every start raises the epoch in the bucket, with a conditional PUT, before it writes anything else there.
//!
//! The epoch now is the highest number under `history/epochs/`. Whoever wrote a segment looks whether it is still its
//! own before it tells anybody: so what was told is in the bucket before a successor lists it. Creating is the only
//! condition this needs; replacing on condition (If-Match) is not, because not every store has it.

use super::format::{self, EpochBody, Kind, OBJECT_MAX, Owner, ROOT};
use super::shape::Shape;
use super::ship::Failed;
use super::{HistoryError, LISTED_MAX};
use fastcache_api::Time;
use fastcache_cloud::{Cloud, Created};

/// How often a claim looks again because another one came between.
const TRIES: usize = 8;

/// Who claims.
#[derive(Clone, Debug)]
pub(crate) struct Claimant {
    pub owner: Owner,
    /// Drawn at the start of this process.
    pub holder: u64,
    /// The highest epoch this state knew before this start.
    pub previous_epoch: u64,
    /// Its last record then.
    pub previous_position: u64,
}

pub(super) async fn list(cloud: &Cloud) -> Result<Shape, Failed> {
    let keys = cloud.keys(ROOT, LISTED_MAX).await;
    keys.map(Shape::of).map_err(Failed::of)
}

/// The epoch object with the highest number.
pub(super) async fn read_epoch(cloud: &Cloud, epoch: u64) -> Result<(Owner, EpochBody), Failed> {
    let key = format::epoch_name(epoch);
    let bytes = cloud.read(&key, OBJECT_MAX).await.map_err(Failed::of)?;
    let damaged = |error: &str| {
        Failed::Stopped(HistoryError::Cloud {
            place: cloud.place().to_owned(),
            error: format!("{key}: {error}"),
        })
    };
    let (owner, body) = format::unseal(Kind::Epoch, &bytes).map_err(|e| damaged(&e.to_string()))?;
    if owner.epoch != epoch {
        return Err(damaged("its name and its contents differ"));
    }
    let body = postcard::from_bytes(&body).map_err(|e| damaged(&e.to_string()))?;
    Ok((owner, body))
}

/// Writes an epoch object; false when there is one.
pub(super) async fn create_epoch(cloud: &Cloud, owner: Owner, holder: u64) -> Result<bool, Failed> {
    let body = EpochBody {
        holder,
        at_seconds: Time::now().sec,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    let body = postcard::to_stdvec(&body).map_err(|e| {
        Failed::Stopped(HistoryError::Cloud {
            place: cloud.place().to_owned(),
            error: e.to_string(),
        })
    })?;
    let bytes = format::seal(Kind::Epoch, owner, &body);
    let created = cloud
        .create(&format::epoch_name(owner.epoch), bytes.into())
        .await
        .map_err(Failed::of)?;
    Ok(created == Created::New)
}

/// Makes this process the writer. What is in the bucket then.
pub(super) async fn claim(cloud: &Cloud, me: &Claimant) -> Result<Shape, Failed> {
    let place = || cloud.place().to_owned();
    for _ in 0..TRIES {
        let shape = list(cloud).await?;
        if let Some(last) = shape.epochs.last().copied() {
            let (owner, body) = read_epoch(cloud, last).await?;
            if owner.file_system != me.owner.file_system {
                return Err(Failed::Stopped(HistoryError::Other {
                    place: place(),
                    ours: me.owner.file_system,
                    theirs: owner.file_system,
                }));
            }
            if last == me.owner.epoch && body.holder == me.holder {
                return Ok(shape);
            }
            if last >= me.owner.epoch || last > me.previous_epoch {
                return Err(Failed::Stopped(overtaken(cloud, me, last, &body)));
            }
            if shape.has_beyond(me.previous_epoch, me.previous_position) {
                return Err(Failed::Stopped(HistoryError::Older {
                    place: place(),
                    position: me.previous_position,
                }));
            }
        } else if !shape.is_empty() {
            return Err(Failed::Stopped(HistoryError::Cloud {
                place: place(),
                error: "there are objects of a history and none that says whose (history/epochs/): name another \
                        bucket or prefix, or remove what is under history/"
                    .to_owned(),
            }));
        }
        create_epoch(cloud, me.owner, me.holder).await?;
    }
    Err(Failed::Again("others keep claiming the history".to_owned()))
}

fn overtaken(cloud: &Cloud, me: &Claimant, theirs: u64, body: &EpochBody) -> HistoryError {
    HistoryError::Overtaken {
        place: cloud.place().to_owned(),
        ours: me.owner.epoch,
        theirs,
        by: format!("{} at {} s (1970)", body.host, body.at_seconds),
    }
}

/// Whether this process is the writer still; to be asked after each write and before telling anybody of it.
pub(super) async fn check_still(cloud: &Cloud, me: &Claimant) -> Result<(), Failed> {
    let keys = cloud
        .keys(&format!("{ROOT}/epochs"), LISTED_MAX)
        .await
        .map_err(Failed::of)?;
    let shape = Shape::of(keys);
    match shape.epochs.last().copied() {
        Some(last) if last > me.owner.epoch => {
            let (_, body) = read_epoch(cloud, last).await?;
            Err(Failed::Stopped(overtaken(cloud, me, last, &body)))
        }
        Some(last) if last == me.owner.epoch => Ok(()),
        // Nothing is written anew: it may be another bucket for a moment.
        _ => Err(Failed::Again(format!(
            "{} is gone: nothing is persisted until it is there again. Where what is under history/ was removed, start \
             the coordinator again: it writes a snapshot",
            format::epoch_name(me.owner.epoch)
        ))),
    }
}

/// For a state directory that is empty: the bucket must be, too.
pub(crate) async fn expect_free(cloud: &Cloud) -> Result<(), HistoryError> {
    let place = cloud.place().to_owned();
    let listed = tokio::time::timeout(super::START_WITHIN, list(cloud)).await;
    let shape = match listed {
        Ok(Ok(shape)) => shape,
        Ok(Err(Failed::Stopped(error))) => return Err(error),
        Ok(Err(Failed::Again(error))) => return Err(HistoryError::Away { place, error }),
        Err(_) => {
            let error = format!("no answer within {:?}", super::START_WITHIN);
            return Err(HistoryError::Away { place, error });
        }
    };
    let Some(last) = shape.epochs.last().copied() else {
        return Ok(());
    };
    match read_epoch(cloud, last).await {
        Ok((owner, _)) => Err(HistoryError::Occupied {
            place,
            file_system: owner.file_system,
            epoch: last,
        }),
        Err(Failed::Stopped(error)) => Err(error),
        Err(Failed::Again(error)) => Err(HistoryError::Away { place, error }),
    }
}
