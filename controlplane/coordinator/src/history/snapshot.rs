//! A snapshot: every key and value of the state at one moment, in parts, the manifest last.
//!
//! The store's own snapshot keeps that moment while changes go on. Two parts are in memory at once: the one that is
//! read and the one that is written.

use super::format::{self, FormatError, Kind, Manifest, Owner, PartInfo, SnapshotName};
use super::ship::{Failed, create_whole};
use super::{HistoryOptions, cloud_error};
use crate::Engine;
use crate::engine::Frozen;
use bytes::Bytes;
use fastcache_cloud::{Cloud, CloudError};
use fastcache_namespace::Pair;
use tokio::sync::mpsc;

/// Tries of one part; then the snapshot is given up, and made again later.
const TRIES: u32 = 8;

/// Takes one and writes it.
pub(super) async fn write(
    engine: Engine,
    cloud: Cloud,
    owner: Owner,
    options: HistoryOptions,
) -> Result<(SnapshotName, Manifest), Failed> {
    let frozen = engine.freeze().map_err(|e| Failed::Again(e.to_string()))?;
    // The bucket must not be ahead of this disk.
    engine
        .sync()
        .await
        .map_err(|()| Failed::Again("the log cannot be put on stable storage".to_owned()))?;
    drop(engine);
    let name = SnapshotName {
        position: frozen.counters.position,
        epoch: owner.epoch,
    };
    let mut manifest = Manifest {
        position: name.position,
        garbage: frozen.counters.garbage,
        bytes: 0,
        parts: Vec::new(),
    };
    let (sender, mut parts) = mpsc::channel(1);
    let reading = tokio::task::spawn_blocking(move || read(&frozen, owner, options, &sender));
    while let Some(part) = parts.recv().await {
        let Part { bytes, pairs, raw } = part;
        let info = PartInfo {
            crc32c: crc_fast::crc32_iscsi(&bytes),
            pairs,
        };
        let key = name.part(manifest.parts.len());
        put(&cloud, &key, bytes, options).await?;
        manifest.parts.push(info);
        manifest.bytes += raw;
    }
    reading
        .await
        .map_err(|e| Failed::Again(e.to_string()))?
        .map_err(Failed::Again)?;
    let bytes = encode_manifest(&manifest, owner).map_err(|error| {
        let error = CloudError::Config(format!("a manifest cannot be encoded: {error}"));
        Failed::Stopped(cloud_error(cloud.place(), &error))
    })?;
    put(&cloud, &name.manifest(), bytes.into(), options).await?;
    Ok((name, manifest))
}

struct Part {
    bytes: Bytes,
    pairs: u32,
    raw: u64,
}

/// Cuts the state into parts.
fn read(
    frozen: &Frozen,
    owner: Owner,
    options: HistoryOptions,
    sender: &mpsc::Sender<Part>,
) -> Result<(), String> {
    let mut payload = Vec::new();
    let mut pairs = 0;
    let flush = |payload: &mut Vec<u8>, pairs: &mut u32| {
        let part = Part {
            bytes: format::seal(Kind::Part, owner, payload).into(),
            pairs: *pairs,
            raw: payload.len() as u64,
        };
        payload.clear();
        *pairs = 0;
        // Fails when the writer gave up: it says why.
        sender.blocking_send(part).map_err(|e| e.to_string())
    };
    for pair in frozen.pairs() {
        let (key, value) = pair?;
        if !payload.is_empty() && payload.len() + key.len() + value.len() > options.part_bytes {
            flush(&mut payload, &mut pairs)?;
        }
        format::put_bytes(&mut payload, &key);
        format::put_bytes(&mut payload, &value);
        pairs += 1;
    }
    flush(&mut payload, &mut pairs)
}

async fn put(
    cloud: &Cloud,
    key: &str,
    bytes: Bytes,
    options: HistoryOptions,
) -> Result<(), Failed> {
    let (mut pause, longest) = options.retry;
    let mut tries = 1;
    loop {
        match create_whole(cloud, key, bytes.clone()).await {
            Err(Failed::Again(_)) if tries < TRIES => {}
            done => return done,
        }
        tries += 1;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn encode_manifest(manifest: &Manifest, owner: Owner) -> Result<Vec<u8>, postcard::Error> {
    Ok(format::seal(
        Kind::Manifest,
        owner,
        &postcard::to_stdvec(manifest)?,
    ))
}

/// Reads a manifest, and checks it against its name.
pub(super) fn decode_manifest(
    name: SnapshotName,
    file_system: u64,
    bytes: &[u8],
) -> Result<Manifest, FormatError> {
    let (owner, payload) = format::unseal(Kind::Manifest, bytes)?;
    format::check_owner(owner, file_system, name.epoch)?;
    let manifest: Manifest = postcard::from_bytes(&payload)
        .map_err(|_| FormatError::Damaged("the manifest cannot be read"))?;
    if manifest.position != name.position {
        return Err(FormatError::Misplaced("it is of another position"));
    }
    Ok(manifest)
}

/// Reads a part, and checks it against what the manifest knows.
pub(super) fn decode_part(
    name: SnapshotName,
    file_system: u64,
    info: PartInfo,
    bytes: &[u8],
) -> Result<Vec<Pair>, FormatError> {
    if crc_fast::crc32_iscsi(bytes) != info.crc32c {
        return Err(FormatError::Damaged("its checksum is not the manifest's"));
    }
    let (owner, payload) = format::unseal(Kind::Part, bytes)?;
    format::check_owner(owner, file_system, name.epoch)?;
    let pairs = format::decode_part(&payload)?;
    match u32::try_from(pairs.len()) == Ok(info.pairs) {
        true => Ok(pairs),
        false => Err(FormatError::Misplaced("it has another number of pairs")),
    }
}
