//! Locks of this node's programs, where other nodes may lock, too: the coordinator decides, through the agent; what is
//! held is kept here as well, for a coordinator that was restarted, and to know what a close gives up.
//!
//! Who gives a lock up has what it wrote under it committed first, as with a close: the next one to lock finds it.

use crate::link::unexpected;
use crate::{FileSystem, Result, lock};
use event_listener::Event;
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::locks::{self, LOCK_END, Lock, LockAnswer, LockOp};
use fastcache_api::{Errno, Ino};
use fastcache_reactor::sync::{AtomicU64, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Programs that may wait for a lock at once; more are refused with ENOLCK. Each takes a request's place.
const WAITING_MAX: usize = 512;
/// Interrupts remembered that came before their request waited.
const EARLY_MAX: usize = 64;

/// Locks and those who wait for them.
#[derive(Default)]
pub(crate) struct Locks {
    held: Mutex<HashMap<Ino, Vec<Lock>>>,
    waiting: Mutex<Waiting>,
    /// Owners of fcntl locks that were asked for through an open file: those of open file descriptions end with it, and
    /// the kernel does not say so.
    by_handle: Mutex<HashMap<u64, Vec<u64>>>,
    next_handle: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    by_request: HashMap<u64, Arc<Event>>,
    early: VecDeque<u64>,
}

/// A request waits, until this is dropped.
struct Waiter<'f> {
    locks: &'f Locks,
    request: u64,
    interrupted: Arc<Event>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        lock(&self.locks.waiting).by_request.remove(&self.request);
    }
}

impl Locks {
    /// `None` when there are too many.
    fn wait(&self, request: u64) -> Option<Waiter<'_>> {
        let mut waiting = lock(&self.waiting);
        if waiting.by_request.len() >= WAITING_MAX {
            return None;
        }
        let interrupted = Arc::new(Event::new());
        waiting.by_request.insert(request, Arc::clone(&interrupted));
        Some(Waiter {
            locks: self,
            request,
            interrupted,
        })
    }

    fn is_interrupted_early(&self, request: u64) -> bool {
        let mut waiting = lock(&self.waiting);
        let at = waiting.early.iter().position(|r| *r == request);
        at.and_then(|at| waiting.early.remove(at)).is_some()
    }

    fn edit(&self, ino: Ino, change: impl FnOnce(&mut Vec<Lock>)) {
        let mut held = lock(&self.held);
        let of_file = held.entry(ino).or_default();
        change(of_file);
        if of_file.is_empty() {
            held.remove(&ino);
        }
    }

    fn has(&self, ino: Ino, owner: u64, is_flock: bool) -> bool {
        let held = lock(&self.held);
        let of_file = held.get(&ino).into_iter().flatten();
        of_file
            .into_iter()
            .any(|l| l.owner == owner && l.is_flock == is_flock)
    }

    /// All of them.
    pub fn all(&self) -> Vec<(Ino, Lock)> {
        let held = lock(&self.held);
        let of_files = held.iter();
        of_files
            .flat_map(|(ino, locks)| locks.iter().map(|l| (*ino, *l)))
            .collect()
    }
}

impl FileSystem {
    async fn ask_lock(&self, op: LockOp) -> Result<LockAnswer> {
        match self.inner.link.call(NodeCall::Lock(op)).await? {
            NodeAnswer::Lock(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Who is in the way of a lock.
    pub async fn test_lock(&self, ino: Ino, asked: Lock) -> Result<Option<Lock>> {
        match self.ask_lock(LockOp::Test { ino, lock: asked }).await? {
            LockAnswer::Held(lock) => Ok(Some(lock)),
            _ => Ok(None),
        }
    }

    /// Takes a lock. EAGAIN when it is held, EDEADLK, ENOLCK; for a request that waits EINTR when it is
    /// [interrupted](FileSystem::interrupt_lock).
    pub async fn set_lock(&self, ino: Ino, new: Lock, waits: Option<u64>) -> Result<()> {
        let locks = &self.inner.locks;
        let waiter = match waits {
            Some(request) => Some(locks.wait(request).ok_or(Errno::ENOLCK)?),
            None => None,
        };
        loop {
            let interrupted = waiter.as_ref().map(|w| w.interrupted.listen());
            if waits.is_some_and(|request| locks.is_interrupted_early(request)) {
                return Err(Errno::EINTR);
            }
            let op = LockOp::Set {
                ino,
                lock: new,
                waits: waits.is_some(),
            };
            let asked = Box::pin({
                let fs = self.clone();
                async move { fs.ask_lock(op).await }
            });
            let answer = match interrupted {
                None => asked.await?,
                Some(interrupted) => match futures_util::future::select(asked, interrupted).await {
                    futures_util::future::Either::Left((answer, _)) => answer?,
                    futures_util::future::Either::Right(((), asked)) => {
                        let fs = self.clone();
                        fastcache_reactor::spawn(async move {
                            // It may be granted all the same.
                            if matches!(asked.await, Ok(LockAnswer::Done)) {
                                let _ = fs.ask_lock(LockOp::Unlock { ino, lock: new }).await;
                            }
                        })
                        .detach();
                        return Err(Errno::EINTR);
                    }
                },
            };
            match answer {
                LockAnswer::Done => {
                    locks.edit(ino, |held| locks::lock(held, new));
                    return Ok(());
                }
                LockAnswer::Held(_) if waits.is_some() => {}
                LockAnswer::Held(_) | LockAnswer::Free => return Err(Errno::EAGAIN),
                LockAnswer::Deadlock => return Err(Errno::EDEADLK),
                LockAnswer::Full => return Err(Errno::ENOLCK),
            }
        }
    }

    /// A request that waits for a lock is to wait no more.
    pub fn interrupt_lock(&self, request: u64) {
        let mut waiting = lock(&self.inner.locks.waiting);
        if let Some(interrupted) = waiting.by_request.get(&request) {
            interrupted.notify(usize::MAX);
        }
        if waiting.early.len() == EARLY_MAX {
            waiting.early.pop_front();
        }
        waiting.early.push_back(request);
    }

    /// A number for an open file; 0 where the kernel's own locks do.
    pub(crate) fn next_handle(&self) -> u64 {
        match self.has_coordinator() {
            true => 1 + self.inner.locks.next_handle.fetch_add(1, Ordering::Relaxed),
            false => 0,
        }
    }

    /// A lock is asked for through an open file.
    pub fn note_lock(&self, fh: u64, lock_asked: &Lock) {
        if fh == 0 || lock_asked.is_flock {
            return;
        }
        let mut by_handle = lock(&self.inner.locks.by_handle);
        let owners = by_handle.entry(fh).or_default();
        if !owners.contains(&lock_asked.owner) {
            owners.push(lock_asked.owner);
        }
    }

    /// Whose locks end with an open file: owner, and whether of flock.
    pub fn locks_of_handle(&self, fh: u64) -> Vec<(u64, bool)> {
        let owners = lock(&self.inner.locks.by_handle).remove(&fh);
        let owners = owners.unwrap_or_default().into_iter();
        owners.map(|owner| (owner, false)).collect()
    }

    /// Gives up a range.
    pub async fn unlock(&self, ino: Ino, gone: Lock) -> Result<()> {
        if !self.inner.locks.has(ino, gone.owner, gone.is_flock) {
            return Ok(());
        }
        if let Some(inode) = self.inner.inodes.get(ino)
            && self.is_shared()
            && lock(&inode.state).has_local_changes()
        {
            self.seal_file(&inode, false).await?;
            self.commits_sent(&inode).await?;
        }
        self.ask_lock(LockOp::Unlock { ino, lock: gone }).await?;
        self.inner
            .locks
            .edit(ino, |held| locks::unlock(held, &gone));
        Ok(())
    }

    /// Gives up all that an owner has of a file: it closed it.
    pub async fn unlock_all(&self, ino: Ino, owner: u64, is_flock: bool) -> Result<()> {
        let all = Lock {
            owner,
            is_flock,
            start: 0,
            end: LOCK_END,
            is_exclusive: false,
            pid: 0,
        };
        self.unlock(ino, all).await
    }
}
