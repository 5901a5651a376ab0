//! What is wrong with the kernel's pages of a file, so that it drops them before it hears of what they lack.
//!
//! A page that was read up to the end of the file has zeros behind that. The kernel shows them as soon as it takes the file to
//! be longer, so whoever tells it a size, or that a write is done, first has those pages dropped that lack bytes: because they
//! were written past the kernel's pages (appends where there are other nodes), or by another node. Writes through its pages are
//! in them already.
//!
//! The kernel has a page locked while it asks for it, and a write through its pages has them locked until it is answered: only
//! what asks for neither may wait here.

use crate::inode::{Inode, InodeState};
use crate::{FileSystem, lock};
use fastcache_api::Ino;
use fastcache_reactor::{now, spawn, timeout};
use futures_channel::oneshot;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Longest that is waited for the kernel: a page that it cannot drop is being read from a slow tier, which takes 40 s at most.
const DROP_MAX: Duration = Duration::from_secs(45);
/// How long another node waits for that. Less than the shortest lease: whoever does not answer within one is fenced.
const READ_PATIENCE: Duration = Duration::from_millis(500);
/// There is no such place in a file.
const NOWHERE: u64 = u64::MAX;

/// What is known of the kernel's pages of an inode; nothing of most.
#[derive(Debug, Default)]
pub(crate) struct KernelPages(Option<Box<Known>>);

#[derive(Debug)]
struct Known {
    /// The first end of the file that was read up to since they were dropped, bytes: from there on they may have zeros.
    end: u64,
    /// From here on they are wrong, bytes.
    wrong: u64,
    /// It is told so already.
    is_told: bool,
    /// So many wait for the kernel to have dropped some.
    dropping: u32,
}

impl Default for Known {
    fn default() -> Known {
        Known {
            end: NOWHERE,
            wrong: NOWHERE,
            is_told: false,
            dropping: 0,
        }
    }
}

impl KernelPages {
    /// What it takes on the heap, bytes.
    pub fn heap_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |_| size_of::<Known>())
    }

    /// The kernel was answered a read that went up to the end of the file, or beyond.
    pub fn read_to_end(&mut self, size: u64) {
        let known = self.0.get_or_insert_default();
        known.end = known.end.min(size);
    }

    /// Bytes were written past the kernel's pages, in a file that was `size` bytes long.
    pub fn written_past(&mut self, from: u64, to: u64, size: u64) {
        let end = self.0.as_ref().map_or(NOWHERE, |known| known.end);
        if from < size {
            self.wrong_from(from);
        } else if to > end {
            self.wrong_from(end);
        }
    }

    fn wrong_from(&mut self, from: u64) {
        let known = self.0.get_or_insert_default();
        known.wrong = known.wrong.min(from);
        known.is_told = false;
    }

    /// The file has other contents.
    pub fn all_wrong(&mut self) {
        self.wrong_from(0);
    }

    /// The kernel was told to drop all of them.
    pub fn told(&mut self) {
        if let Some(known) = &mut self.0 {
            known.is_told = true;
        }
    }

    /// Whether the kernel may be told of the file as it is.
    pub fn are_right(&self) -> bool {
        let known = self.0.as_ref();
        known.is_none_or(|known| known.wrong == NOWHERE) && !self.are_going()
    }

    /// Whether the kernel may have some that it was told to drop.
    pub fn are_going(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.dropping > 0)
    }

    /// Where those begin that the kernel has to be told to drop, bytes.
    fn untold(&self) -> Option<u64> {
        let known = self.0.as_ref()?;
        (known.wrong != NOWHERE && !known.is_told).then_some(known.wrong)
    }
}

/// The kernel drops pages, until this is dropped.
pub(crate) struct Dropping(Arc<Inode>);

impl Dropping {
    /// What is read from now on is right. To be told the kernel under the same lock: who finds nothing wrong after this finds
    /// it in the queue.
    pub fn of(inode: &Arc<Inode>, state: &mut InodeState) -> Dropping {
        let known = state.pages.0.get_or_insert_default();
        **known = Known {
            dropping: known.dropping + 1,
            ..Known::default()
        };
        Dropping(Arc::clone(inode))
    }
}

impl Drop for Dropping {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if let Some(known) = &mut state.pages.0 {
            known.dropping -= 1;
        }
    }
}

impl FileSystem {
    /// [`FileSystem::pages_right`] of an inode that may be known.
    pub(crate) async fn pages_of_right(&self, ino: Ino) {
        if let Some(inode) = self.inner.inodes.get(ino) {
            self.pages_right(&inode).await;
        }
    }

    /// Has the kernel drop the pages of a file that lack something, before it is told what that is: attributes that were found
    /// before this are right when it returns.
    pub(crate) async fn pages_right(&self, inode: &Arc<Inode>) {
        let Some(notify) = self.inner.notify.get() else {
            return;
        };
        let _dropping = {
            let mut state = lock(&inode.state);
            if state.pages.are_right() {
                return;
            }
            let untold = state.pages.untold();
            let dropping = Dropping::of(inode, &mut state);
            if let Some(from) = untold {
                notify.inval_pages(inode.ino, from);
            }
            dropping
        };
        behind(|done| notify.barrier_of_pages(inode.ino, done)).await;
    }

    /// Waits until the kernel has done what it was told about these inodes, and about names. Another node waits for that, so pages
    /// that stay locked for a READ whose bytes come from another tier, or for a WRITE that waits for room or its lease, are not waited for: they go
    /// when it is answered, an `open` and a `stat` wait for that, and who has the file open may find older ones until then.
    pub(crate) async fn kernel_dropped(&self, told: HashSet<Ino>, dropping: Vec<Dropping>) {
        let Some(notify) = self.inner.notify.get() else {
            return;
        };
        let until = now() + DROP_MAX;
        let mut are_locked = HashSet::new();
        while now() < until {
            let others = told.difference(&are_locked).copied().collect();
            let gone = behind(|done| notify.barrier_of(&others, done));
            if timeout(READ_PATIENCE, gone).await.is_ok() {
                break;
            }
            are_locked = self.inner.flights.being_read();
            are_locked.extend(self.inner.space.stalled());
        }
        if told.is_disjoint(&are_locked) {
            return;
        }
        tracing::debug!(target: "cache", "a file is changed by another node while a reader here waits for its bytes, or a writer for room or its lease");
        let fs = self.clone();
        spawn(async move {
            if let Some(notify) = fs.inner.notify.get() {
                behind(|done| notify.barrier_of(&told, done)).await;
            }
            drop(dropping);
        })
        .detach();
    }

    /// Waits until the kernel has been told everything queued so far.
    pub(crate) async fn kernel_knows(&self) {
        if let Some(notify) = self.inner.notify.get() {
            behind(|done| notify.barrier(done)).await;
        }
    }
}

/// Waits for what calls back, [`DROP_MAX`] at most.
async fn behind(barrier: impl FnOnce(Box<dyn FnOnce() + Send>)) {
    let (send, passed) = oneshot::channel();
    barrier(Box::new(move || {
        let _ = send.send(());
    }));
    let _ = timeout(DROP_MAX, passed).await;
}
