//! Locks as nodes ask for them: waiting, and what ends it.

use super::Coordinator;
use crate::locks::Wish;
use crate::registry::UnknownSession;
use fastcache_api::locks::{LockAnswer, LockOp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest a node is kept waiting for a lock before it is answered that it is still held: it asks again, and need not be
/// told apart from one that is gone.
const WAIT: Duration = Duration::from_secs(2);

/// A lock is wanted, until this is dropped.
struct Wanted<'c> {
    coordinator: &'c Coordinator,
    wish: Wish,
    /// Taken before the wish is given up.
    is_cancelled: Option<Arc<AtomicBool>>,
}

impl Wanted<'_> {
    fn is_cancelled(&self) -> bool {
        let flag = self.is_cancelled.as_ref();
        flag.is_some_and(|flag| flag.load(Ordering::Acquire))
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut tables = self.coordinator.tables();
        drop(self.is_cancelled.take());
        tables.locks.answered(&self.wish);
    }
}

/// An owner waits, until this is dropped.
struct Waiter<'c> {
    coordinator: &'c Coordinator,
    peer: String,
    owner: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut tables = self.coordinator.tables();
        tables.locks.waited(&self.peer, self.owner);
    }
}

impl Coordinator {
    /// One operation on locks.
    ///
    /// # Errors
    /// When the session is over.
    pub async fn lock(&self, session: u64, op: LockOp) -> Result<LockAnswer, UnknownSession> {
        // A node's own come back first, after a restart.
        if !matches!(op, LockOp::Restore { .. }) {
            self.settled_for(session).await;
        }
        let until = tokio::time::Instant::now() + WAIT;
        let mut wanted: Option<Wanted> = None;
        loop {
            let mut freed = self.inner.freed.subscribe();
            let waiter = {
                let mut tables = self.tables();
                let peer = tables.registry.peer_of(session)?;
                let answer = tables.locks.apply(&peer, &op);
                if matches!(op, LockOp::Restore { .. }) {
                    tables.returning.has_locks(&peer);
                }
                let waits = match &op {
                    LockOp::Set { ino, lock, waits } if *waits => Some((*ino, *lock)),
                    _ => None,
                };
                let (LockAnswer::Held(_), Some((ino, lock))) = (answer, waits) else {
                    drop(tables);
                    // A lock may be a weaker one than before, too.
                    if !matches!(op, LockOp::Test { .. }) {
                        self.inner.freed.send_replace(());
                    }
                    return Ok(answer);
                };
                let is_over = wanted.as_ref().is_some_and(Wanted::is_cancelled);
                if is_over || tokio::time::Instant::now() >= until {
                    return Ok(answer);
                }
                wanted.get_or_insert_with(|| {
                    let (wish, is_cancelled) = tables.locks.want(&peer, ino, &lock);
                    Wanted {
                        coordinator: self,
                        wish,
                        is_cancelled: Some(is_cancelled),
                    }
                });
                if !tables.locks.wait(&peer, ino, &lock) {
                    return Ok(LockAnswer::Deadlock);
                }
                Waiter {
                    coordinator: self,
                    peer,
                    owner: lock.owner,
                }
            };
            // The sender is in `inner`.
            let _ = tokio::time::timeout_at(until, freed.changed()).await;
            drop(waiter);
        }
    }
}
