//! Metadata against objects against this node's chunks.
//!
//! Two passes over the namespace in pages: cloud refs against the bucket's listing, inodes against refs and local
//! chunks. What seems wrong is a suspect; a suspect is a finding when it still seems wrong by itself, a moment
//! later. What the namespace finds wrong with its own tables comes from one moment of it and needs no second look.

use super::local::Local;
use super::objects::{Survey, parse};
use super::report::{Finding, FsckReport, LISTED_MAX};
use super::revert::REVERT_BATCH;
use super::{CheckError, FsckRequest, REFS_PAGE, Teller};
use crate::link::lock;
use crate::node::Inner;
use crate::persist::object_key;
use fastcache_api::{
    Audited, AuditedRef, ChunkKey, CloudRef, Errno, Ino, Kind, NsAnswer, NsOp, RefUse,
};
use fastcache_cloud::{Cloud, CloudError};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Inodes of a page.
const INODES_PAGE: u32 = 512;
/// Requests to the object store at once.
const PARALLEL: usize = 16;
/// Between a suspicion and the second look: commits and records that were under way are through by then.
const SECOND_LOOK: Duration = Duration::from_millis(1500);
/// Most suspects that get a second look; more are told as they are, and more than that only counted.
const SUSPECTS_MAX: usize = 10_000;
/// Tries to see the store's counts while nothing changes.
const COUNT_TRIES: usize = 5;

/// Something that may be wrong.
#[derive(Clone, Debug)]
enum Suspect {
    /// A ref's object.
    Object { key: ChunkKey, at: CloudRef },
    /// A chunk of a layout that neither the cloud nor this node has, or that this node has clean without a ref.
    Chunk(ChunkKey),
    /// A chunk on the device that no layout names.
    Stray(ChunkKey),
    /// An object that nothing names.
    Leak(ChunkKey),
}

struct Check<'a> {
    inner: &'a Inner,
    cloud: &'a Cloud,
    request: FsckRequest,
    report: FsckReport,
    survey: Survey,
    local: Local,
    suspects: Vec<Suspect>,
    suspected: u64,
    /// Lost, and there is a spare: what `--repair` brings back.
    to_revert: Vec<ChunkKey>,
}

pub(super) async fn run(
    inner: &Inner,
    request: FsckRequest,
    teller: &mut Teller,
) -> Result<FsckReport, CheckError> {
    let began = Instant::now();
    let cloud = inner.cloud.as_ref().ok_or(CheckError::NoCloud)?;
    let survey = Survey::take(cloud, teller).await?;
    let local = Local::take(inner).await?;
    let mut check = Check {
        inner,
        cloud,
        request,
        report: FsckReport::default(),
        survey,
        local,
        suspects: Vec::new(),
        suspected: 0,
        to_revert: Vec::new(),
    };
    check.report.objects = check.survey.objects.len() as u64;
    check.report.object_bytes = check.survey.bytes;
    check.report.local_chunks = check.local.chunks.len() as u64;
    check.refs(teller).await?;
    check.inodes(teller).await?;
    check.leaks();
    check.accounting().await?;
    if check.request.is_deep {
        check.read_local(teller).await?;
    }
    check.second_look(teller).await?;
    check.repair(teller).await?;
    let mut report = check.report;
    report.listed.sort();
    report.is_clean = report.findings == 0;
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

impl Check<'_> {
    fn suspect(&mut self, suspect: Suspect) {
        self.suspected += 1;
        if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push(suspect);
        }
    }

    async fn find(&mut self, code: &str, what: String, ino: Option<Ino>, key: Option<ChunkKey>) {
        self.report.findings += 1;
        if self.report.listed.len() >= LISTED_MAX {
            return;
        }
        let path = match ino {
            Some(ino) => self.path_of(ino).await,
            None => None,
        };
        self.report.listed.push(Finding {
            code: code.to_owned(),
            what,
            path,
            ino: ino.map(|i| i.to_string()),
            chunk: key.map(|k| k.index),
            object: key.map(object_key),
        });
    }

    async fn path_of(&self, ino: Ino) -> Option<String> {
        match self.inner.ask(NsOp::PathOf { ino }).await {
            Ok(NsAnswer::Bytes(path)) => Some(String::from_utf8_lossy(&path).into_owned()),
            _ => None,
        }
    }

    /// Every ref against the listing, and with `--deep` against its object's bytes.
    async fn refs(&mut self, teller: &mut Teller) -> Result<(), CheckError> {
        let mut after = None;
        loop {
            let (refs, is_end) = self.inner.refs_page(after).await?;
            after = refs.last().map(|r| r.key).or(after);
            self.report.refs += refs.len() as u64;
            let mut to_look_at = Vec::new();
            for one in refs {
                if let Some(at) = self.check_ref(one).await {
                    to_look_at.push(at);
                }
            }
            self.look_at(to_look_at, teller).await?;
            teller.tell("references", self.report.refs, None).await?;
            if is_end {
                return Ok(());
            }
        }
    }

    /// What the listing says of a ref. The ref, when its object has to be looked at itself.
    async fn check_ref(&mut self, one: AuditedRef) -> Option<(ChunkKey, CloudRef)> {
        let AuditedRef { key, at, used } = one;
        let etag = self.survey.etag(at.etag.as_deref());
        let listed = parse(&at.object).and_then(|of| self.survey.find(of));
        let listed = listed.map(|object| {
            object.is_settled = true;
            *object
        });
        match used {
            RefUse::Named | RefUse::Spare => {}
            RefUse::Unnamed => {
                self.report.unnamed_refs += 1;
                return None;
            }
            RefUse::NoInode => {
                let what = format!(
                    "the namespace has an object of inode {}, which does not exist",
                    key.ino
                );
                self.find("ref_without_inode", what, None, Some(key)).await;
                return None;
            }
        }
        let is_ours = parse(&at.object).is_some();
        let Some(object) = listed else {
            // Uploaded after the listing, or missing; one that has another shape of key is asked for by itself.
            self.suspect(Suspect::Object { key, at });
            return None;
        };
        if is_ours && object.size != at.offset + u64::from(at.len) {
            self.suspect(Suspect::Object { key, at });
            return None;
        }
        // Another ETag is another upload, of the same bytes unless somebody wrote there.
        let is_altered = etag != 0 && object.etag != 0 && etag != object.etag;
        (self.request.is_deep || is_altered).then_some((key, at))
    }

    /// Reads objects, and compares their bytes.
    async fn look_at(
        &mut self,
        refs: Vec<(ChunkKey, CloudRef)>,
        teller: &mut Teller,
    ) -> Result<(), CheckError> {
        let cloud = self.cloud;
        let mut reads = futures_util::stream::iter(refs)
            .map(|(key, at)| async move {
                let read = compare(cloud, &at).await;
                (key, at, read)
            })
            .buffer_unordered(PARALLEL);
        let mut suspects = Vec::new();
        while let Some((key, at, read)) = reads.next().await {
            match read {
                Ok(()) => self.report.read_bytes += u64::from(at.len),
                Err(Wrong::Store(error)) if error.is_passing() => {
                    return Err(CheckError::Cloud(error));
                }
                Err(_) => suspects.push(Suspect::Object { key, at }),
            }
            teller.tell("reading", self.report.read_bytes, None).await?;
        }
        drop(reads);
        for suspect in suspects {
            self.suspect(suspect);
        }
        Ok(())
    }

    /// Every inode: its own flaws, and where the chunks of its contents are.
    async fn inodes(&mut self, teller: &mut Teller) -> Result<(), CheckError> {
        let mut refs = RefsInOrder::default();
        let mut strays: BTreeMap<ChunkKey, ()> =
            self.local.chunks.keys().map(|k| (*k, ())).collect();
        let total = match self.inner.ask(NsOp::Statfs).await? {
            NsAnswer::Statfs(s) => Some(s.inodes),
            _ => None,
        };
        let mut after = Ino(0);
        let mut positions = None;
        loop {
            let op = NsOp::Audit {
                after,
                max: INODES_PAGE,
            };
            let NsAnswer::Audit {
                inodes,
                flaws,
                is_end,
                position,
                ..
            } = self.inner.ask(op).await?
            else {
                return Err(CheckError::Namespace(Errno::EIO));
            };
            let (first, _) = *positions.get_or_insert((position, position));
            positions = Some((first, position));
            after = inodes.last().map_or(after, |i| i.attr.ino);
            for flaw in flaws {
                self.find(&flaw.code, flaw.text, None, None).await;
            }
            for inode in inodes {
                self.report.inodes += 1;
                self.inode(inode, &mut refs, &mut strays).await?;
            }
            teller.tell("namespace", self.report.inodes, total).await?;
            if is_end {
                break;
            }
        }
        let still = positions.is_some_and(|(first, last)| first == last);
        if let Some(total) = total.filter(|t| still && *t != self.report.inodes) {
            let what = format!(
                "the namespace counts {total} inodes and has {}",
                self.report.inodes
            );
            self.find("accounting", what, None, None).await;
        }
        for (key, ()) in strays {
            self.suspect(Suspect::Stray(key));
        }
        Ok(())
    }

    async fn inode(
        &mut self,
        inode: Audited,
        refs: &mut RefsInOrder,
        strays: &mut BTreeMap<ChunkKey, ()>,
    ) -> Result<(), CheckError> {
        let ino = inode.attr.ino;
        for flaw in inode.flaws {
            self.find(&flaw.code, flaw.text, Some(ino), None).await;
        }
        if inode.attr.kind != Kind::File {
            return Ok(());
        }
        for (index, version, _) in inode.layout.chunks(inode.attr.chunk_size) {
            let key = ChunkKey {
                ino,
                index,
                version,
            };
            strays.remove(&key);
            let has_ref = refs.has(self.inner, key).await?;
            let is_dirty_here = self.local.chunks.get(&key).is_some_and(|c| c.is_dirty);
            if !has_ref && !is_dirty_here {
                self.suspect(Suspect::Chunk(key));
            }
        }
        Ok(())
    }

    /// Objects that no ref named.
    fn leaks(&mut self) {
        let grace = self.request.grace.as_secs();
        let leaks: Vec<ChunkKey> = self
            .survey
            .objects
            .iter()
            .filter(|o| !o.is_settled && u64::from(o.age_seconds) >= grace)
            .map(|o| o.key)
            .collect();
        for key in leaks {
            self.suspect(Suspect::Leak(key));
        }
    }

    /// The data plane's counts against its own inventory, and the agent's queue against both. Only what is seen while
    /// nothing changes is told.
    async fn accounting(&mut self) -> Result<(), CheckError> {
        for _ in 0..COUNT_TRIES {
            let before = self.local.stats().await?;
            self.local.refresh().await?;
            let queued = lock(&self.inner.queue).left(None).0;
            let after = self.local.stats().await?;
            let counts = |s: &fastcache_api::control::DataStats| {
                let levels = (s.chunks, s.dirty_chunks, s.dirty_bytes, s.used_bytes);
                (levels, s.written_bytes, s.fetched_chunks)
            };
            let dirty: Vec<_> = self.local.chunks.values().filter(|c| c.is_dirty).collect();
            let inventory = (
                self.local.chunks.len() as u64,
                dirty.len() as u64,
                dirty.iter().map(|c| u64::from(c.device_bytes)).sum::<u64>(),
            );
            let counted = (after.chunks, after.dirty_chunks, after.dirty_bytes);
            if counts(&before) == counts(&after) {
                if inventory == counted && queued == counted.1 {
                    return Ok(());
                }
                if inventory != counted {
                    let what = format!(
                        "the store counts {} chunks, {} dirty with {} bytes; its inventory has {}, {} with {}",
                        counted.0, counted.1, counted.2, inventory.0, inventory.1, inventory.2
                    );
                    self.find("accounting", what, None, None).await;
                    return Ok(());
                }
            }
            tokio::time::sleep(SECOND_LOOK).await;
        }
        Ok(())
    }

    /// Reads every chunk on the device.
    async fn read_local(&mut self, teller: &mut Teller) -> Result<(), CheckError> {
        let chunks: Vec<_> = self.local.chunks.values().copied().collect();
        let total = chunks.len() as u64;
        for (at, chunk) in chunks.into_iter().enumerate() {
            teller.tell("chunks", at as u64, Some(total)).await?;
            match self.local.read(chunk.key).await {
                Ok(()) => self.report.read_bytes += u64::from(chunk.len),
                // Evicted or replaced meanwhile.
                Err(Errno::ENOENT) => {}
                Err(Errno::ENOTCONN) => return Err(CheckError::DataAway),
                Err(errno) => {
                    let what = if chunk.is_dirty {
                        format!(
                            "a chunk that is not in the cloud cannot be read from the device ({errno})"
                        )
                    } else {
                        format!(
                            "a chunk cannot be read from the device ({errno}); the cloud has it"
                        )
                    };
                    self.find(
                        "unreadable_chunk",
                        what,
                        Some(chunk.key.ino),
                        Some(chunk.key),
                    )
                    .await;
                }
            }
        }
        Ok(())
    }

    /// What still seems wrong is told.
    async fn second_look(&mut self, teller: &mut Teller) -> Result<(), CheckError> {
        if self.suspects.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(SECOND_LOOK).await;
        self.local = Local::take(self.inner).await?;
        let queued = self.queued().await?;
        let suspects = std::mem::take(&mut self.suspects);
        let total = suspects.len() as u64;
        self.report.findings += self.suspected - total;
        for (at, suspect) in suspects.into_iter().enumerate() {
            teller.tell("confirming", at as u64, Some(total)).await?;
            match suspect {
                Suspect::Object { key, at } => self.object_again(key, at).await?,
                Suspect::Chunk(key) => self.chunk_again(key).await?,
                Suspect::Stray(key) => self.stray_again(key).await?,
                Suspect::Leak(key) => self.leak_again(key, &queued).await?,
            }
        }
        Ok(())
    }

    /// The ref of a chunk now.
    async fn ref_of(&self, key: ChunkKey) -> Result<Option<CloudRef>, CheckError> {
        let only = Some((key.index, key.version));
        match self.inner.cloud_refs(key.ino, only).await {
            Ok(refs) => Ok(refs.into_iter().next().map(|(_, _, at)| at)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(CheckError::Namespace(errno)),
        }
    }

    async fn object_again(&mut self, key: ChunkKey, at: CloudRef) -> Result<(), CheckError> {
        let is_named = self.inner.is_named(key).await? == Some(true);
        let is_spare = !is_named
            && self
                .inner
                .spare_of(key.id())
                .await?
                .is_some_and(|spare| spare.version == key.version);
        if !(is_named || is_spare) || self.ref_of(key).await?.as_ref() != Some(&at) {
            return Ok(());
        }
        let (code, what) = match compare(self.cloud, &at).await {
            Ok(()) => {
                self.report.read_bytes += u64::from(at.len);
                return Ok(());
            }
            Err(Wrong::Store(CloudError::NotFound(_))) => (
                "missing_object",
                "the object is not in the bucket".to_owned(),
            ),
            Err(Wrong::Store(error)) if error.is_passing() => return Err(error.into()),
            Err(Wrong::Store(error)) => (
                "unreadable_object",
                format!("the object cannot be read: {error}"),
            ),
            Err(Wrong::Length(is)) => (
                "wrong_length",
                format!(
                    "the object has {is} bytes and has to have {}",
                    at.offset + u64::from(at.len)
                ),
            ),
            Err(Wrong::Checksum) => (
                "wrong_checksum",
                "the object's bytes are not those that were uploaded".to_owned(),
            ),
            Err(Wrong::Metadata) => (
                "wrong_metadata",
                "the checksum in the object's metadata is not the one that was uploaded".to_owned(),
            ),
        };
        let has_copy = self.local.chunks.contains_key(&key);
        let what = if is_spare {
            format!("{what}; it is of the version before the newest, which is not uploaded yet")
        } else if has_copy {
            format!("{what}; this node still has the chunk")
        } else {
            format!("{what}; this node does not have the chunk, reading it fails")
        };
        self.find(code, what, Some(key.ino), Some(key)).await;
        Ok(())
    }

    async fn chunk_again(&mut self, key: ChunkKey) -> Result<(), CheckError> {
        if self.inner.is_named(key).await? != Some(true) || self.ref_of(key).await?.is_some() {
            return Ok(());
        }
        match self.local.chunks.get(&key) {
            Some(chunk) if chunk.is_dirty => {}
            Some(_) => {
                let what = "this node has the chunk as clean, and no object of it is known: it is not uploaded, and lost when it is evicted";
                self.find("no_object", what.to_owned(), Some(key.ino), Some(key))
                    .await;
            }
            None => {
                let has_spare = self.inner.spare_of(key.id()).await?.is_some();
                if has_spare && self.request.is_repair {
                    self.to_revert.push(key);
                    return Ok(());
                }
                self.report.repairable += u64::from(has_spare);
                // Another node may have it.
                if self.inner.config.coordinator.is_none() || self.request.is_repair {
                    self.find_lost(key, has_spare).await;
                }
            }
        }
        Ok(())
    }

    async fn find_lost(&mut self, key: ChunkKey, has_spare: bool) {
        let way_back = match has_spare {
            true => "fsck --repair brings back what it was when it was last persisted",
            false => "there is no way back",
        };
        let what =
            format!("neither the cloud nor this node has the chunk: reading it fails; {way_back}");
        self.find("lost_chunk", what, Some(key.ino), Some(key))
            .await;
    }

    /// Brings back what was found to be lost.
    async fn repair(&mut self, teller: &mut Teller) -> Result<(), CheckError> {
        let lost = std::mem::take(&mut self.to_revert);
        let total = lost.len() as u64;
        for batch in lost.chunks(REVERT_BATCH) {
            teller
                .tell("repairing", self.report.repaired, Some(total))
                .await?;
            let reverted = self.inner.revert(&self.local, batch).await?;
            for key in batch {
                if reverted.contains(&key.id()) {
                    self.report.repaired += 1;
                    let what = "the chunk was lost before it was uploaded: it is again what it was when it was last persisted";
                    self.find("repaired_chunk", what.to_owned(), Some(key.ino), Some(*key))
                        .await;
                } else if self.inner.is_named(*key).await? == Some(true)
                    && self.ref_of(*key).await?.is_none()
                    && !self.local.holds(self.inner, *key)
                {
                    self.find_lost(*key, true).await;
                }
            }
        }
        Ok(())
    }

    async fn stray_again(&mut self, key: ChunkKey) -> Result<(), CheckError> {
        if self.inner.is_named(key).await? == Some(true) {
            return Ok(());
        }
        if let Some(chunk) = self.local.chunks.get(&key).copied() {
            // Sealed ahead of its commit since: seal once more, and it is named or gone.
            self.local = Local::take(self.inner).await?;
            if !self.local.chunks.contains_key(&key)
                || self.inner.is_named(key).await? == Some(true)
            {
                return Ok(());
            }
            let what = format!(
                "{} bytes of the device hold a chunk{} that no file names",
                chunk.device_bytes,
                if chunk.is_dirty { " (dirty)" } else { "" }
            );
            self.find("stray_chunk", what, None, Some(key)).await;
        }
        Ok(())
    }

    async fn leak_again(
        &mut self,
        key: ChunkKey,
        queued: &std::collections::HashSet<String>,
    ) -> Result<(), CheckError> {
        let object = object_key(key);
        if queued.contains(&object)
            || self.local.holds(self.inner, key)
            || self.ref_of(key).await?.is_some()
        {
            return Ok(());
        }
        match self.cloud.head(&object).await {
            Ok(head) => {
                let what = format!(
                    "nothing names this object of {} bytes: gc deletes it",
                    head.size
                );
                self.find("leak", what, None, Some(key)).await;
                Ok(())
            }
            Err(CloudError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Objects that are going to be deleted.
    async fn queued(&self) -> Result<std::collections::HashSet<String>, CheckError> {
        let mut all: std::collections::HashSet<String> =
            crate::garbage::taken(self.inner).into_iter().collect();
        let mut after = 0;
        loop {
            let op = NsOp::QueuedGarbage {
                after,
                max: REFS_PAGE,
            };
            let NsAnswer::QueuedGarbage { objects, is_end } = self.inner.ask(op).await? else {
                return Err(CheckError::Namespace(Errno::EIO));
            };
            after = objects.last().map_or(after, |(number, _)| *number);
            all.extend(objects.into_iter().map(|(_, object)| object));
            if is_end {
                return Ok(all);
            }
        }
    }
}

/// How an object is not what was uploaded.
enum Wrong {
    Store(CloudError),
    Length(u64),
    Checksum,
    Metadata,
}

/// Reads an object, and compares it with its ref.
async fn compare(cloud: &Cloud, at: &CloudRef) -> Result<(), Wrong> {
    let head = cloud.head(&at.object).await.map_err(Wrong::Store)?;
    let end = at.offset + u64::from(at.len);
    if head.size < end || (at.offset == 0 && head.size != end) {
        return Err(Wrong::Length(head.size));
    }
    match cloud.get_chunk(at).await {
        Ok(_) => {}
        Err(CloudError::Altered(_)) => return Err(Wrong::Checksum),
        Err(error) => return Err(Wrong::Store(error)),
    }
    if at.offset == 0 && head.crc32c.is_some_and(|crc| crc != at.crc32c) {
        return Err(Wrong::Metadata);
    }
    Ok(())
}

/// The cloud refs in order, for questions that come in order.
#[derive(Default)]
struct RefsInOrder {
    page: std::collections::VecDeque<ChunkKey>,
    after: Option<ChunkKey>,
    is_end: bool,
}

impl RefsInOrder {
    /// Whether a chunk has a ref. Chunks are asked for in their order.
    async fn has(&mut self, inner: &Inner, key: ChunkKey) -> Result<bool, CheckError> {
        loop {
            while let Some(first) = self.page.front() {
                if *first >= key {
                    return Ok(*first == key);
                }
                self.page.pop_front();
            }
            if self.is_end {
                return Ok(false);
            }
            let (refs, is_end) = inner.refs_page(self.after).await?;
            self.after = refs.last().map(|r| r.key).or(self.after);
            self.is_end = is_end;
            self.page = refs.into_iter().map(|r| r.key).collect();
        }
    }
}
