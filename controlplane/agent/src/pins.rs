//! Pinned files: their chunks are not evicted.
//!
//! The truth is an extended attribute of the inode, [`PIN_XATTR`]: it survives every restart and a rebuild from the bucket,
//! and `setfattr` sets it as `fastcache-ctl pin` does. The agent keeps the set of inodes that have it, which it asks of the
//! namespace at its start; every change since comes through it. A pin belongs to a file, not to its name: it moves along
//! with a rename, ends with the last name, and does not pass to a file that takes the name over.

use crate::link::lock;
use crate::node::Inner;
use fastcache_api::{Attr, Errno, Ino, Kind, NsAnswer, NsOp, NsReply, NsRequest, PIN_XATTR};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::{info, warn};

/// Most of the capacity that may be pinned; the rest is for what is read and written meanwhile.
pub(crate) const PINNED_PERCENT: u64 = 50;
/// Most files that are pinned at once: each is an inode number that `evict --all` sends along.
pub(crate) const PINNED_FILES_MAX: u64 = 200_000;
/// Attributes looked at in one question.
const PAGE: u32 = 256;
/// Pause before the namespace is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why something is not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// Files it would be.
    pub files: u64,
    /// Bytes it would be, on the device.
    pub bytes: u64,
    /// Bytes it may be.
    pub most_bytes: u64,
}

impl std::fmt::Display for TooMuch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if self.files > PINNED_FILES_MAX {
            return write!(
                f,
                "{} files would be pinned, and at most {PINNED_FILES_MAX} can be: pin fewer, or unpin others",
                self.files
            );
        }
        write!(
            f,
            "{} MiB would be pinned, and at most {} MiB ({PINNED_PERCENT} % of the store) can be: pin less, unpin something \
             else, or give the node a larger store",
            mib(self.bytes),
            mib(self.most_bytes)
        )
    }
}

impl Inner {
    /// Most bytes of the device that may be pinned.
    pub(crate) fn pins_most_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Relaxed) / 100 * PINNED_PERCENT
    }

    /// Whether so many more files with so many bytes that are not counted yet may be pinned.
    pub(crate) fn may_pin(&self, files: u64, bytes: u64) -> Result<(), TooMuch> {
        let pinned = lock(&self.cache).pinned();
        let would = TooMuch {
            files: pinned.files + files,
            bytes: pinned.bytes + bytes,
            most_bytes: self.pins_most_bytes(),
        };
        if would.files > PINNED_FILES_MAX || would.bytes > would.most_bytes {
            return Err(would);
        }
        Ok(())
    }

    /// An operation of the namespace, with what it means for pins: ENOSPC where one would be too much, EINVAL for what is no
    /// file.
    pub(crate) async fn namespace_call(&self, request: NsRequest) -> NsReply {
        let pin = match &request.op {
            NsOp::SetXattr { ino, name, .. } if name == PIN_XATTR => Some((*ino, true)),
            NsOp::RemoveXattr { ino, name } if name == PIN_XATTR => Some((*ino, false)),
            _ => None,
        };
        let mut indices = 0;
        if let Some((ino, is_pinned)) = pin {
            match self.pinnable(ino, is_pinned).await {
                Ok(chunks) => indices = chunks,
                Err(errno) => return refused(errno),
            }
        }
        let reply = self.namespace.call(request).await;
        if reply.result.is_ok()
            && let Some((ino, is_pinned)) = pin
        {
            self.pinned(ino, is_pinned, indices);
        }
        let gone = reply.touched.iter().filter(|attr| attr.nlink == 0);
        for attr in gone {
            if lock(&self.cache).is_pinned(attr.ino) {
                self.pinned(attr.ino, false, indices_of(attr));
            }
        }
        reply
    }

    /// How many chunks a file that is to be pinned may have.
    async fn pinnable(&self, ino: Ino, is_pinned: bool) -> Result<u32, Errno> {
        let asked = self.namespace.call(self.request(NsOp::GetAttr { ino }));
        let attr = match asked.await.result? {
            NsAnswer::Attr(attr) | NsAnswer::Entry(attr) => attr,
            _ => return Err(Errno::EIO),
        };
        if attr.kind != Kind::File {
            return Err(Errno::EINVAL);
        }
        let is_more = is_pinned && !lock(&self.cache).is_pinned(ino);
        if is_more && let Err(much) = self.may_pin(1, attr.allocated) {
            warn!(target: "cache", %ino, "not pinned: {much}");
            return Err(Errno::ENOSPC);
        }
        Ok(indices_of(&attr))
    }

    /// A file is pinned, or not any more: the data plane gets a list of victims that says so.
    fn pinned(&self, ino: Ino, is_pinned: bool, indices: u32) {
        lock(&self.cache).pin(ino, is_pinned, indices);
        self.victims_wake.notify_one();
    }
}

/// One more than the last index of a file's chunks.
fn indices_of(attr: &Attr) -> u32 {
    let chunks = attr.size.div_ceil(u64::from(attr.chunk_size).max(1));
    u32::try_from(chunks).unwrap_or(u32::MAX)
}

fn refused(errno: Errno) -> NsReply {
    NsReply {
        result: Err(errno),
        touched: Vec::new(),
        log_position: 0,
        lease_ms: None,
    }
}

/// Learns what is pinned; no victims are named before. Tried until the namespace answers.
pub(crate) async fn learn(inner: Arc<Inner>) {
    while !inner.stop.is_cancelled() {
        match all(&inner).await {
            Ok(files) => {
                if !files.is_empty() {
                    info!(target: "cache", files = files.len(), "learned which files are pinned");
                }
                lock(&inner.cache).set_pins(files);
                inner.pins_known.send_replace(true);
                return;
            }
            Err(errno) => {
                warn!(target: "cache", %errno, "cannot learn which files are pinned; nothing is evicted before");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = inner.stop.cancelled() => {}
        }
    }
}

async fn all(inner: &Inner) -> Result<HashSet<Ino>, Errno> {
    let mut files = HashSet::new();
    let mut after = None;
    loop {
        let op = NsOp::WithXattr {
            name: PIN_XATTR.to_vec(),
            after,
            max: PAGE,
        };
        let (inos, last) = match inner.namespace.call(inner.request(op)).await.result? {
            NsAnswer::WithXattr { inos, last } => (inos, last),
            _ => return Err(Errno::EIO),
        };
        files.extend(inos);
        match last {
            Some(last) => after = Some(last),
            None => return Ok(files),
        }
    }
}
