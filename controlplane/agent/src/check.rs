//! `gc` and `fsck`: metadata, objects and this node's chunks against each other.
//!
//! Both look at a file system that is in use. Whatever seems wrong may be something that is just happening, so it is
//! looked at a second time, on its own, before it is told. Memory is bounded by the objects of the bucket (48 bytes
//! each) and the chunks of the store; everything else is read in pages.

mod fsck;
mod gc;
mod local;
mod objects;
pub mod report;
mod revert;

use crate::node::{Inner, Node};
use fastcache_api::{AuditedRef, ChunkKey, Errno, Ino, NsAnswer, NsOp};
use fastcache_cloud::CloudError;
use report::{FsckReport, GcReport, Line, Progress};
pub(crate) use revert::settle_loop;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Shortest time between two tellings of progress.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Cloud refs, and queued objects, of a page.
const REFS_PAGE: u32 = 10_000;
/// Lines of progress a slow reader may be behind; beyond it the check waits for it.
pub const LINES_MAX: usize = 64;
/// Grace time unless told otherwise: younger objects are left alone, and not called leaks.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(3600);

/// Why a check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// One is running.
    #[error("another gc or fsck is running on this node: wait until it has ended")]
    Busy,
    /// There is nothing to check against.
    #[error("this node has no cloud tier (--cloud-provider none): there are no objects to check")]
    NoCloud,
    /// The object store cannot be read.
    #[error("the object store cannot be read: {0}")]
    Cloud(#[from] CloudError),
    /// The namespace does not answer, or refuses.
    #[error("the namespace does not answer ({0}): start the coordinator, then check again")]
    Namespace(Errno),
    /// The data plane is away, or went away meanwhile.
    #[error(
        "the data plane is away, and only it knows which chunks are still to be uploaded: start it, then check again"
    )]
    DataAway,
    /// Something that is open cannot be committed now.
    #[error("open files cannot be sealed and committed now ({0}): check again later")]
    NotSealed(Errno),
    /// More objects than fit in memory.
    #[error("the bucket has more than {0} objects under chunks/: this program checks up to that")]
    TooMany(usize),
    /// Whoever asked is gone.
    #[error("nobody reads the answer any more")]
    Gone,
}

/// What `gc` is to do.
#[derive(Clone, Copy, Debug)]
pub struct GcRequest {
    /// Delete; else only tell.
    pub is_delete: bool,
    /// Objects younger than this are left alone.
    pub grace: Duration,
    /// Delete also when most of the bucket would go.
    pub is_forced: bool,
}

/// What `fsck` is to do.
#[derive(Clone, Copy, Debug)]
pub struct FsckRequest {
    /// Read the bytes of every object and of every local chunk.
    pub is_deep: bool,
    /// Bring lost chunks back as they were when they were last persisted. With a coordinator of its own process, what
    /// this node does not have counts as lost.
    pub is_repair: bool,
    /// Objects younger than this are not called leaks.
    pub grace: Duration,
}

/// Tells whoever asked how far it is.
pub(crate) struct Teller {
    to: mpsc::Sender<Line>,
    said: Option<Instant>,
    stage: &'static str,
}

impl Teller {
    fn new(to: mpsc::Sender<Line>) -> Teller {
        Teller {
            to,
            said: None,
            stage: "",
        }
    }

    /// How far a stage is. `Gone` ends the check when nobody listens any more.
    pub(crate) async fn tell(
        &mut self,
        stage: &'static str,
        done: u64,
        total: Option<u64>,
    ) -> Result<(), CheckError> {
        if self.to.is_closed() {
            return Err(CheckError::Gone);
        }
        if self.stage == stage && self.said.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return Ok(());
        }
        self.stage = stage;
        self.said = Some(Instant::now());
        let line = Line::Progress(Progress {
            stage: stage.to_owned(),
            done,
            total,
        });
        self.to.send(line).await.map_err(|_| CheckError::Gone)
    }
}

impl Node {
    /// Looks for objects that nothing names, and with `is_delete` gives them to the deletion queue. Progress goes to
    /// `to`; one check at a time on a node.
    ///
    /// # Errors
    /// See [`CheckError`].
    pub async fn gc(
        &self,
        request: GcRequest,
        to: mpsc::Sender<Line>,
    ) -> Result<GcReport, CheckError> {
        let _only = self
            .inner()
            .checking
            .try_acquire()
            .map_err(|_| CheckError::Busy)?;
        gc::run(self.inner(), request, &mut Teller::new(to)).await
    }

    /// Checks metadata, objects and this node's chunks against each other. Changes nothing, unless it is to repair, but
    /// that open files are sealed and committed as at `flush`.
    ///
    /// # Errors
    /// See [`CheckError`].
    pub async fn fsck(
        &self,
        request: FsckRequest,
        to: mpsc::Sender<Line>,
    ) -> Result<FsckReport, CheckError> {
        let _only = self
            .inner()
            .checking
            .try_acquire()
            .map_err(|_| CheckError::Busy)?;
        fsck::run(self.inner(), request, &mut Teller::new(to)).await
    }
}

impl Inner {
    /// One read of the namespace.
    async fn ask(&self, op: NsOp) -> Result<NsAnswer, CheckError> {
        self.namespace
            .call(self.request(op))
            .await
            .result
            .map_err(CheckError::Namespace)
    }

    /// A page of all cloud refs, and whether it is the last.
    async fn refs_page(
        &self,
        after: Option<ChunkKey>,
    ) -> Result<(Vec<AuditedRef>, bool), CheckError> {
        let max = REFS_PAGE;
        match self.ask(NsOp::AllRefs { after, max }).await? {
            NsAnswer::AllRefs { refs, is_end } => Ok((refs, is_end)),
            _ => Err(CheckError::Namespace(Errno::EIO)),
        }
    }

    /// The namespace's epoch and log position.
    async fn epoch_and_position(&self) -> Result<(u64, u64), CheckError> {
        let op = NsOp::Audit {
            after: Ino(u64::MAX - 1),
            max: 1,
        };
        match self.ask(op).await? {
            NsAnswer::Audit {
                epoch, position, ..
            } => Ok((epoch, position)),
            _ => Err(CheckError::Namespace(Errno::EIO)),
        }
    }

    /// Whether a layout names this version now; `None` when the inode is gone.
    async fn is_named(&self, key: ChunkKey) -> Result<Option<bool>, CheckError> {
        let open = self.request(NsOp::Open {
            ino: key.ino,
            write: false,
        });
        match self.namespace.call(open).await.result {
            Ok(NsAnswer::Opened { attr, layout }) => Ok(Some(
                layout
                    .chunk(key.index, attr.chunk_size)
                    .is_some_and(|(version, _)| version == key.version),
            )),
            Err(Errno::ENOENT) => Ok(None),
            Ok(_) => Err(CheckError::Namespace(Errno::EIO)),
            Err(errno) => Err(CheckError::Namespace(errno)),
        }
    }
}
