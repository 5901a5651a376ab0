//! Leases that are out and that the table does not know: changes wait until they are over.
//!
//! After a start they are over with the longest lease of the run before; or sooner, when every node that there was is back,
//! has forgotten what it was told, and has brought its locks. What it had written it commits as soon as it is back.

use super::{Coordinator, Inner};
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Notify;

/// The share of a lease in which nodes that are back commit what they had written, before another one may write it.
const COMMITS_SHARE: u32 = 10;

/// Nodes of the run before that are not back yet.
pub(super) struct Returning {
    /// They may use what they were told then.
    using: BTreeSet<String>,
    /// They may have locks.
    locking: BTreeSet<String>,
    are_back: std::sync::Arc<Notify>,
}

impl Returning {
    /// These; `None`: it is not known which.
    pub(super) fn new(known: Option<Vec<String>>) -> Returning {
        // Nobody has an empty id.
        let known: BTreeSet<String> = known
            .unwrap_or_else(|| vec![String::new()])
            .into_iter()
            .collect();
        Returning {
            using: known.clone(),
            locking: known,
            are_back: std::sync::Arc::default(),
        }
    }

    /// A node has forgotten what it was told in earlier sessions.
    pub(super) fn forgot(&mut self, peer: &str) {
        let was_out = self.using.remove(peer);
        self.look(was_out);
    }

    /// A node has brought the locks that its programs hold.
    pub(super) fn has_locks(&mut self, peer: &str) {
        let was_out = self.locking.remove(peer);
        self.look(was_out);
    }

    fn look(&self, was_out: bool) {
        if was_out && self.using.is_empty() && self.locking.is_empty() {
            self.are_back.notify_one();
        }
    }
}

/// Since when, and until when, changes are not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Yes,
    /// Any node may hold what this run does not know of.
    No,
    /// This session may; it is the only one, and need not wait for itself.
    NotFor(u64),
}

impl Inner {
    /// One of those who wait is through.
    pub(super) fn is_settled(&self) {
        // Whoever registers meanwhile says otherwise.
        let _tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if self.settling.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.send_replace(Settled::Yes);
        }
    }
}

/// Waits until nothing that the run before promised is in use: for `longest` at most. True when it took less.
pub(super) async fn are_back(inner: std::sync::Weak<Inner>, longest: Duration) -> bool {
    let notified = match inner.upgrade() {
        Some(inner) => {
            let tables = inner.tables.lock().unwrap_or_else(PoisonError::into_inner);
            std::sync::Arc::clone(&tables.returning.are_back)
        }
        None => return false,
    };
    let back = async {
        notified.notified().await;
        tokio::time::sleep(longest / COMMITS_SHARE).await;
    };
    let is_sooner = tokio::time::timeout(longest, back).await.is_ok();
    // What was lost is made again before anybody may write.
    is_sooner
        && inner
            .upgrade()
            .is_some_and(|inner| inner.resent.is_made_again())
}

impl Coordinator {
    /// Waits until no leases are out that the table does not know, but the asker's own.
    pub(super) async fn settled_for(&self, session: u64) {
        let mut settled = self.inner.settled.subscribe();
        loop {
            let now = *settled.borrow_and_update();
            let is_settled = match now {
                Settled::Yes => true,
                Settled::No => false,
                Settled::NotFor(only) => self.tables().registry.is_same_node(only, session),
            };
            // The sender is in `inner`, which is there as long as `self` is.
            if is_settled || settled.changed().await.is_err() {
                return;
            }
        }
    }
}
