//! Bringing files to this node before they are read (`warmup`), and for as long as they are pinned (`pin`).
//!
//! Chunks that are only in the object store are fetched, several at once; what is here already costs nothing. It stops at
//! the room there is: what was fetched here, or is pinned, is not evicted for the rest, which is counted instead. It ends
//! when nobody listens any more.

use crate::Node;
use crate::link::lock;
use crate::pins::TooMuch;
use fastcache_api::control::{DataAnswer, DataCall};
use fastcache_api::{ChunkKey, Errno, Ino, NsAnswer, NsOp, PIN_XATTR, XattrMode};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

/// Chunks fetched at once: what the agent fetches in all, less some for readers.
const FETCHES: usize = 12;
/// Most of the capacity that dirty, pinned and warmed chunks take together; eviction keeps the store at 90 %.
const FULL_PERCENT: u64 = 85;
/// What a chunk takes of the device beyond its bytes, at most: header and rounding.
const OVERHEAD: u64 = 16 << 10;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);
/// Lines that wait for the reader.
pub(crate) const LINES_MAX: usize = 16;
/// Most chunks of one call: 16 TiB of the largest.
const CHUNKS_MAX: usize = 4 << 20;

/// A line of the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// So far.
    Progress(WarmReport),
    /// All in all; the last line.
    Done(WarmReport),
    /// It did not work; the last line.
    Error(String),
}

/// What was brought here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WarmReport {
    /// Files asked for.
    pub files: u64,
    /// Their chunks with data.
    pub chunks: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Chunks that were here before.
    pub present_chunks: u64,
    /// Bytes of those.
    pub present_bytes: u64,
    /// Chunks that were fetched.
    pub fetched_chunks: u64,
    /// Bytes of those.
    pub fetched_bytes: u64,
    /// Chunks there is no room for.
    pub no_room_chunks: u64,
    /// Bytes of those.
    pub no_room_bytes: u64,
    /// Chunks that could not be fetched; the log says why.
    pub failed_chunks: u64,
    /// Chunks that were rewritten or removed meanwhile.
    pub changed_chunks: u64,
    /// Whether the files are pinned now.
    pub is_pinned: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Why it did not begin, or not end.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// More than may be pinned. Nothing was.
    #[error("{0}")]
    TooMuch(TooMuch),
    /// There is no data plane, or no namespace.
    #[error("the node cannot do it now: {0}")]
    Failed(#[from] Errno),
}

/// Chunks to fetch, and what is known before.
struct Plan {
    missing: Vec<(ChunkKey, u32)>,
    report: WarmReport,
}

impl Node {
    /// Fetches what of these files is not here. With `is_pin` they are pinned first, all or none.
    ///
    /// # Errors
    /// See [`WarmError`]; chunks that cannot be fetched are counted in the report instead.
    pub async fn warm(
        &self,
        files: Vec<Ino>,
        is_pin: bool,
        to: &mpsc::Sender<Line>,
    ) -> Result<WarmReport, WarmError> {
        let began = Instant::now();
        let mut plan = self.plan(&files).await?;
        if is_pin {
            self.pin_all(&files, &plan).await?;
            plan.report.is_pinned = true;
        }
        let mut report = plan.report;
        let fitting = self.fitting(&plan.missing, &mut report);
        let _ = to.try_send(Line::Progress(report.clone()));
        let mut told = Instant::now();
        let mut fetches = futures_util::stream::iter(plan.missing.into_iter().take(fitting))
            .map(|(key, len)| async move { (key, len, self.bring(key).await) })
            .buffer_unordered(FETCHES);
        while let Some((key, len, brought)) = fetches.next().await {
            match brought {
                Ok(()) => {
                    report.fetched_chunks += 1;
                    report.fetched_bytes += u64::from(len);
                }
                Err(Errno::ENOSPC) => {
                    report.no_room_chunks += 1;
                    report.no_room_bytes += u64::from(len);
                }
                Err(_) if !self.is_current(key).await => report.changed_chunks += 1,
                Err(errno) => {
                    warn!(target: "cache", %key, %errno, "a chunk could not be brought here");
                    report.failed_chunks += 1;
                }
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                report.seconds = began.elapsed().as_secs_f64();
                let _ = to.try_send(Line::Progress(report.clone()));
            }
            if to.is_closed() {
                break;
            }
        }
        report.seconds = began.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Removes the pins of these files; how many had one.
    ///
    /// # Errors
    /// Of the namespace.
    pub async fn unpin(&self, files: Vec<Ino>) -> Result<u64, Errno> {
        let mut unpinned = 0;
        for ino in files {
            let name = PIN_XATTR.to_vec();
            match self.ns(NsOp::RemoveXattr { ino, name }).await {
                Ok(_) => unpinned += 1,
                // not pinned, or removed meanwhile
                Err(Errno::ENODATA | Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(unpinned)
    }

    async fn layout(&self, ino: Ino) -> Result<Option<(u32, fastcache_api::Layout)>, Errno> {
        match self.ns(NsOp::Open { ino, write: false }).await {
            Ok(reply) => match reply.result? {
                NsAnswer::Opened { attr, layout } => Ok(Some((attr.chunk_size, layout))),
                _ => Err(Errno::EIO),
            },
            // removed meanwhile, or no file
            Err(Errno::ENOENT | Errno::ESTALE | Errno::EISDIR | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    async fn plan(&self, files: &[Ino]) -> Result<Plan, Errno> {
        let mut plan = Plan {
            missing: Vec::new(),
            report: WarmReport::default(),
        };
        let report = &mut plan.report;
        for ino in files {
            let Some((chunk_size, layout)) = self.layout(*ino).await? else {
                continue;
            };
            report.files += 1;
            let mut cache = lock(&self.inner().cache);
            for (index, version, len) in layout.chunks(chunk_size) {
                let key = ChunkKey {
                    ino: *ino,
                    index,
                    version,
                };
                report.chunks += 1;
                report.bytes += u64::from(len);
                if cache.get(key.id()).is_some_and(|here| here.key == key) {
                    cache.keep(key.id());
                    report.present_chunks += 1;
                    report.present_bytes += u64::from(len);
                } else if plan.missing.len() < CHUNKS_MAX {
                    plan.missing.push((key, len));
                } else {
                    return Err(Errno::EFBIG);
                }
            }
        }
        Ok(plan)
    }

    /// How many of the missing chunks there is room for; the others are counted.
    fn fitting(&self, missing: &[(ChunkKey, u32)], report: &mut WarmReport) -> usize {
        let inner = self.inner();
        let most = inner.capacity_bytes.load(Ordering::Relaxed) / 100 * FULL_PERCENT;
        let (_, dirty) = lock(&inner.queue).left(None);
        let pinned = lock(&inner.cache).pinned().bytes;
        // What of this is pinned is in both: then there is room for a little less than could be.
        let mut room = most.saturating_sub(dirty + pinned + report.present_bytes);
        let mut fitting = 0;
        for (_, len) in missing {
            let takes = u64::from(*len) + OVERHEAD;
            if takes > room {
                break;
            }
            room -= takes;
            fitting += 1;
        }
        let beyond = &missing[fitting..];
        report.no_room_chunks = beyond.len() as u64;
        report.no_room_bytes = beyond.iter().map(|(_, len)| u64::from(*len)).sum();
        fitting
    }

    async fn pin_all(&self, files: &[Ino], plan: &Plan) -> Result<(), WarmError> {
        let inner = self.inner();
        let fresh: Vec<Ino> = {
            let cache = lock(&inner.cache);
            let is_fresh = |ino: &&Ino| !cache.is_pinned(**ino);
            files.iter().filter(is_fresh).copied().collect()
        };
        // What is here of files that are pinned already is counted already.
        let mut bytes: u64 = plan
            .missing
            .iter()
            .map(|(_, len)| u64::from(*len) + OVERHEAD)
            .sum();
        if fresh.len() == files.len() {
            bytes += plan.report.present_bytes;
        }
        inner
            .may_pin(fresh.len() as u64, bytes)
            .map_err(WarmError::TooMuch)?;
        for ino in fresh {
            let op = NsOp::SetXattr {
                ino,
                name: PIN_XATTR.to_vec(),
                value: b"1".to_vec(),
                mode: XattrMode::Any,
            };
            match self.ns(op).await {
                // removed meanwhile
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // From here on the data plane evicts none of them.
        self.tell_victims().await;
        Ok(())
    }

    /// Has the data plane fetch a chunk.
    async fn bring(&self, key: ChunkKey) -> Result<(), Errno> {
        let inner = self.inner();
        let call = DataCall::Promote { key };
        match inner.link.call(Some(key.ino), call).await? {
            DataAnswer::Done => {
                lock(&inner.cache).keep(key.id());
                Ok(())
            }
            other => Err(crate::link::unexpected(&other)),
        }
    }

    /// Whether this is still what the file has there.
    async fn is_current(&self, key: ChunkKey) -> bool {
        match self.layout(key.ino).await {
            Ok(Some((chunk_size, layout))) => layout
                .chunk(key.index, chunk_size)
                .is_some_and(|(version, _)| version == key.version),
            Ok(None) => false,
            Err(_) => true,
        }
    }
}
