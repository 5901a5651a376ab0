//! Locks of this node's programs, where other nodes may lock, too: the coordinator decides, through the agent; what is
//! held is kept here as well, for a coordinator that was restarted, and to know what a close gives up.
//!
//! Who gives a lock up has what it wrote under it committed first, as with a close: the next one to lock finds it.
//!
//! What the coordinator has of an owner is not known when it did not answer, or granted a lock that nobody waited for any
//! more. Then it is brought in step with what is held here, however long that takes ([`FileSystem::settle_lock`]); operations of
//! that owner on that file wait for each try, so that it undoes none of them. A lock that a close gives up is held here no
//! more, whatever fails: nobody would ask a second time.

use crate::conflict::handle_number;
use crate::link::unexpected;
use crate::{FileSystem, Result, lock};
use async_lock::{RwLock, RwLockReadGuardArc};
use event_listener::Event;
use fastcache_api::control::{NodeAnswer, NodeCall};
use fastcache_api::locks::{self, LOCK_END, Lock, LockAnswer, LockOp};
use fastcache_api::{Errno, Ino};
use fastcache_reactor::sync::{AtomicU64, Mutex};
use futures_util::future::{Either, select};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Programs that may wait for a lock at once; more are refused with ENOLCK. Each takes a request's place.
const WAITING_MAX: usize = 512;
/// Interrupts remembered that came before their request waited.
const EARLY_MAX: usize = 64;
/// Turns remembered before those that nobody holds are forgotten.
const TURNS_KEPT: usize = 1024;
/// How often the coordinator is told that a lock is waited for no more, before its answer is left to the background.
const CANCELS: usize = 10;
/// Pause between two of them: the first may have overtaken what it is about.
const CANCEL_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two tries to bring the coordinator in step.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// The coordinator's answer, and the owner's turn.
type Asked = (Result<LockAnswer>, RwLockReadGuardArc<()>);

/// Whose locks on which file, and whether those of flock.
type Owner = (Ino, u64, bool);

/// Locks and those who wait for them.
#[derive(Default)]
pub(crate) struct Locks {
    held: Mutex<HashMap<Ino, Vec<Lock>>>,
    waiting: Mutex<Waiting>,
    /// Owners of fcntl locks that were asked for through an open file: those of open file descriptions end with it, and
    /// the kernel does not say so.
    by_handle: Mutex<HashMap<u64, Vec<u64>>>,
    next_handle: AtomicU64,
    /// Shared by an owner's operations on a file while the coordinator is asked; taken alone to bring it in step.
    turns: Mutex<HashMap<Owner, Weak<RwLock<()>>>>,
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

    /// What an owner holds of a range, cut to it.
    fn within(&self, ino: Ino, range: &Lock) -> Vec<Lock> {
        let held = lock(&self.held);
        let of_file = held.get(&ino).into_iter().flatten();
        let of_owner = of_file.filter(|l| l.owner == range.owner && l.is_flock == range.is_flock);
        let of_range = of_owner.filter(|l| l.start <= range.end && range.start <= l.end);
        let cut = |l: &Lock| Lock {
            start: l.start.max(range.start),
            end: l.end.min(range.end),
            ..*l
        };
        of_range.map(cut).collect()
    }

    /// Where an owner's operations on a file take turns with what brings the coordinator in step.
    fn turn(&self, ino: Ino, of: &Lock) -> Arc<RwLock<()>> {
        let mut turns = lock(&self.turns);
        if turns.len() >= TURNS_KEPT {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = turns.entry((ino, of.owner, of.is_flock)).or_default();
        turn.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *turn = Arc::downgrade(&new);
            new
        })
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

    /// Asks for a lock once. The owner's turn comes with the answer.
    async fn ask_to_set(self, ino: Ino, new: Lock, waits: bool) -> Asked {
        let turn = self.inner.locks.turn(ino, &new).read_arc().await;
        let op = LockOp::Set {
            ino,
            lock: new,
            waits,
        };
        (self.ask_lock(op).await, turn)
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
            let asked = Box::pin(self.clone().ask_to_set(ino, new, waits.is_some()));
            let (answered, is_over) = match interrupted {
                None => (Ok(asked.await), false),
                Some(interrupted) => match select(asked, interrupted).await {
                    Either::Left((answered, _)) => (Ok(answered), false),
                    Either::Right(((), asked)) => (self.cancel_lock(ino, new, asked).await, true),
                },
            };
            let Ok((answer, turn)) = answered else {
                return Err(Errno::EINTR);
            };
            match answer {
                Ok(LockAnswer::Done) => locks.edit(ino, |held| locks::lock(held, new)),
                Ok(LockAnswer::Held(_)) => self.not_converted(ino, &new),
                Ok(_) => {}
                Err(_) => {
                    self.not_converted(ino, &new);
                    self.settle_lock(ino, new);
                }
            }
            drop(turn);
            match answer? {
                LockAnswer::Done => return Ok(()),
                LockAnswer::Held(_) if is_over => return Err(Errno::EINTR),
                LockAnswer::Held(_) if waits.is_some() => {}
                LockAnswer::Held(_) | LockAnswer::Free => return Err(Errno::EAGAIN),
                LockAnswer::Deadlock => return Err(Errno::EDEADLK),
                LockAnswer::Full => return Err(Errno::ENOLCK),
            }
        }
    }

    /// Has the coordinator answer who waits for a lock now: a lock that is granted to nobody is in the way of others. EINTR
    /// when it does not answer soon; what it answers then is seen to in the background.
    async fn cancel_lock<A>(&self, ino: Ino, new: Lock, mut asked: A) -> Result<Asked>
    where
        A: Future<Output = Asked> + Unpin + 'static,
    {
        for _ in 0..CANCELS {
            let fs = self.clone();
            fastcache_reactor::spawn(async move {
                let _ = fs.ask_lock(LockOp::Cancel { ino, lock: new }).await;
            })
            .detach();
            let pause = std::pin::pin!(fastcache_reactor::sleep(CANCEL_PAUSE));
            match select(asked, pause).await {
                Either::Left((answered, _)) => return Ok(answered),
                Either::Right((_, still)) => asked = still,
            }
        }
        self.not_converted(ino, &new);
        let fs = self.clone();
        fastcache_reactor::spawn(async move {
            // It may be granted all the same, in place of what the owner had there.
            let (_, turn) = asked.await;
            drop(turn);
            fs.settle_lock(ino, new);
        })
        .detach();
        Err(Errno::EINTR)
    }

    /// An owner did not get a lock: of flock it lost the one it had, too (flock(2): a conversion gives that up first).
    fn not_converted(&self, ino: Ino, asked: &Lock) {
        if asked.is_flock {
            let locks = &self.inner.locks;
            locks.edit(ino, |held| locks::unlock(held, asked));
        }
    }

    /// Brings the coordinator in step with what an owner holds of a range, in the background, until it has answered.
    fn settle_lock(&self, ino: Ino, range: Lock) {
        let fs = self.clone();
        fastcache_reactor::spawn(async move {
            while let Err(error) = fs.try_to_settle_lock(ino, &range).await {
                tracing::debug!(target: "cache", %ino, owner = range.owner, %error, "the coordinator may have locks that are not held: it is told again");
                if fs.inner.is_stopping.load(Ordering::Relaxed) {
                    return;
                }
                fastcache_reactor::sleep(SETTLE_PAUSE).await;
            }
        })
        .detach();
    }

    async fn try_to_settle_lock(&self, ino: Ino, range: &Lock) -> Result<()> {
        if let Some(inode) = self.inner.inodes.get(ino) {
            self.commits_sent(&inode).await?;
        }
        let turn = self.inner.locks.turn(ino, range);
        let _alone = turn.write().await;
        let mut gone = vec![*range];
        for lock in self.inner.locks.within(ino, range) {
            locks::unlock(&mut gone, &lock);
            let waits = false;
            // First what stays: nobody else is to come in between.
            match self.ask_lock(LockOp::Set { ino, lock, waits }).await? {
                LockAnswer::Done => {}
                other => {
                    tracing::error!(target: "cache", %ino, pid = lock.pid, answer = ?other, "a lock was lost: a change of it that was given up came true, and another program has it now");
                }
            }
        }
        for lock in gone {
            self.ask_lock(LockOp::Unlock { ino, lock }).await?;
        }
        Ok(())
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
    pub(crate) fn next_handle(&self, is_write: bool, is_direct: bool) -> u64 {
        match self.has_coordinator() {
            true => {
                let n = 1 + self.inner.locks.next_handle.fetch_add(1, Ordering::Relaxed);
                handle_number(n, is_write, is_direct)
            }
            false => 0,
        }
    }

    /// No number that was given out is greater; 0 where none are.
    pub(crate) fn last_handle(&self) -> u64 {
        match self.has_coordinator() {
            true => handle_number(
                self.inner.locks.next_handle.load(Ordering::Relaxed),
                true,
                true,
            ),
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

    /// Gives up a range. When what was written cannot be committed, that is the error, and the lock stays; after any other
    /// the lock is gone, or will be.
    pub async fn unlock(&self, ino: Ino, gone: Lock) -> Result<()> {
        if !self.inner.locks.has(ino, gone.owner, gone.is_flock) {
            return Ok(());
        }
        self.show_written(ino).await?;
        self.give_up_lock(ino, gone).await
    }

    /// Commits what was written to a file, for those to see who lock it next.
    async fn show_written(&self, ino: Ino) -> Result<()> {
        if let Some(inode) = self.inner.inodes.get(ino)
            && self.is_shared()
            && lock(&inode.state).has_local_changes()
        {
            self.seal_file(&inode, false).await?;
            self.commits_sent(&inode).await?;
        }
        Ok(())
    }

    async fn give_up_lock(&self, ino: Ino, gone: Lock) -> Result<()> {
        let locks = &self.inner.locks;
        let turn = locks.turn(ino, &gone);
        let sharing = turn.read().await;
        locks.edit(ino, |held| locks::unlock(held, &gone));
        let answer = self.ask_lock(LockOp::Unlock { ino, lock: gone }).await;
        drop(sharing);
        if answer.is_err() {
            self.settle_lock(ino, gone);
        }
        answer.map(|_| ())
    }

    /// Gives up all that an owner has of a file: it closed it. After an error the coordinator is told later, once what was
    /// sealed is committed.
    pub async fn unlock_all(&self, ino: Ino, owner: u64, is_flock: bool) -> Result<()> {
        let all = Lock {
            owner,
            is_flock,
            start: 0,
            end: LOCK_END,
            is_exclusive: false,
            pid: 0,
        };
        let locks = &self.inner.locks;
        if !locks.has(ino, owner, is_flock) {
            return Ok(());
        }
        if let Err(error) = self.show_written(ino).await {
            locks.edit(ino, |held| locks::unlock(held, &all));
            self.settle_lock(ino, all);
            return Err(error);
        }
        self.give_up_lock(ino, all).await
    }
}
