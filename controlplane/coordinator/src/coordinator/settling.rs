//! Leases that are out and that the table does not know: changes wait until they are over.

use super::{Coordinator, Inner};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

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
