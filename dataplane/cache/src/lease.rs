//! Until when what the coordinator told may be used, and what of it was taken back meanwhile.
//!
//! There is one lease for all that is known. It ends by itself, on CLOCK_BOOTTIME, unless the agent lengthens it; then, and
//! when everything is revoked, a new *epoch* of trust begins, and what was learned before it is asked for again. An
//! answer can be overtaken by a revocation on its way here: so who asks notes how many revocations there were
//! ([`Lease::ask`]), and an answer about something that was revoked since is used once and not kept.

use crate::inode::{Inode, InodeState};
use crate::{FileSystem, lock};
use fastcache_api::Ino;
use fastcache_reactor::boot_nanos;
use fastcache_reactor::sync::{AtomicBool, AtomicU64};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the kernel may keep names and attributes that are under a lease without end.
const ENDLESS_LEASE: Duration = Duration::from_secs(3600);
/// Stands for a lease without end where nanoseconds are kept.
const ENDLESS: u64 = u64::MAX;
/// Most that a lease ends earlier here than the agent said: time to have the kernel forget its pages.
const MARGIN_NS: u64 = 500_000_000;
/// The margin is no more than this share of a lease.
const MARGIN_SHARE: u64 = 10;
/// Rounds of a core's executor after which what it had ready is with the kernel: an answer over io_uring is handed in at the
/// end of the round that made it.
const CORE_PASSES: usize = 2;
/// How long writers of this node rest after another one was given their turn: longer than the word of it takes.
const REST: Duration = Duration::from_millis(10);
/// Inodes whose revocations are told apart; more share a place.
const PLACES: u64 = 1024;

/// The lease of this node.
pub(crate) struct Lease {
    /// CLOCK_BOOTTIME, nanoseconds, the margin taken off; 0: there is none.
    until: AtomicU64,
    /// From 1 on.
    epoch: AtomicU64,
    /// Revocations so far.
    revocations: AtomicU64,
    /// Answers to questions from before this revocation are not kept.
    floor: AtomicU64,
    /// The last revocation of the inodes of each place.
    places: Box<[AtomicU64]>,
    /// The same of changes of names in directories that this node made: nobody revokes what it does itself.
    names: Box<[AtomicU64]>,
    is_shared: AtomicBool,
    /// Until when a kernel that cannot be told to forget names may use those it was told; CLOCK_BOOTTIME, nanoseconds.
    names_until: AtomicU64,
}

/// How many revocations there were when something was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked(u64);

/// What an answer may be kept for.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    asked: u64,
    is_leased: bool,
}

impl Asked {
    /// What the answer's `lease_ms` makes of it: with 0 it is good for one use.
    pub(crate) fn answered(self, lease_ms: Option<u32>) -> Grant {
        Grant {
            asked: self.0,
            is_leased: lease_ms != Some(0),
        }
    }
}

/// The lease as it is now. To be used at once: what is done with it does not wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// How long it lasts; `None`: it has ended.
    left: Option<Duration>,
}

impl Moment {
    /// Whether what is known may be used.
    pub fn is_live(self) -> bool {
        self.left.is_some()
    }

    /// How long the lease lasts.
    pub fn left(self) -> Duration {
        self.left.unwrap_or_default()
    }
}

fn place(ino: Ino) -> usize {
    usize::try_from(ino.0 % PLACES).unwrap_or(0)
}

impl Default for Lease {
    fn default() -> Lease {
        Lease {
            until: AtomicU64::new(ENDLESS),
            epoch: AtomicU64::new(1),
            revocations: AtomicU64::new(1),
            floor: AtomicU64::new(0),
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            names: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            is_shared: AtomicBool::new(false),
            names_until: AtomicU64::new(0),
        }
    }
}

impl Lease {
    /// Without end, and with other nodes.
    #[cfg(test)]
    pub fn shared() -> Lease {
        let lease = Lease::default();
        lease.is_shared.store(true, Ordering::Release);
        lease
    }

    /// Whether what is known may be used now.
    pub fn is_live(&self) -> bool {
        self.now().is_live()
    }

    /// How it is now, for who asks many times in a row: each look at the clock costs.
    pub fn now(&self) -> Moment {
        let left = match self.until.load(Ordering::Acquire) {
            ENDLESS => Some(ENDLESS_LEASE),
            0 => None,
            until => {
                let left = until.checked_sub(boot_nanos()).filter(|left| *left > 0);
                left.map(Duration::from_nanos)
            }
        };
        Moment { left }
    }

    /// Whether there are other nodes.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Acquire)
    }

    /// The kernel is told a name for good until the lease ends: for how long that is.
    pub fn tell_name(&self, notify: &dyn crate::KernelNotify, now: Moment) -> Duration {
        let left = now.left();
        if !notify.can_inval_names() {
            let left = u64::try_from(left.as_nanos()).unwrap_or(ENDLESS);
            let until = boot_nanos().saturating_add(left);
            self.names_until.fetch_max(until, Ordering::AcqRel);
        }
        left
    }

    /// How long a kernel that cannot be told to forget names may still use what it was told.
    fn names_left(&self) -> Duration {
        let until = self.names_until.load(Ordering::Acquire);
        Duration::from_nanos(until.saturating_sub(boot_nanos()))
    }

    /// The epoch of trust now.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// To be called before something is asked.
    pub fn ask(&self) -> Asked {
        Asked(self.revocations.load(Ordering::Acquire))
    }

    /// Whether something about an inode was revoked since something was asked. In doubt it was.
    pub fn is_revoked_since(&self, asked: Asked, ino: Ino) -> bool {
        let last = self.places[place(ino)].load(Ordering::Acquire);
        asked.0 < last.max(self.floor.load(Ordering::Acquire))
    }

    /// The epoch in which an answer about an inode may be kept; 0: not at all. To be called under the lock of what it
    /// becomes part of.
    pub fn holds(&self, grant: Grant, ino: Ino) -> u64 {
        self.holds_at(grant, ino, self.now())
    }

    /// [`Lease::holds`] at a moment.
    pub fn holds_at(&self, grant: Grant, ino: Ino, now: Moment) -> u64 {
        let place = self.places[place(ino)].load(Ordering::Acquire);
        let is_good = grant.is_leased
            && grant.asked >= self.floor.load(Ordering::Acquire)
            && grant.asked >= place
            && now.is_live();
        if is_good { self.epoch() } else { 0 }
    }

    /// [`Lease::holds`] of an answer about the names in a directory: not when this node changed them since it was asked for.
    pub fn holds_names(&self, grant: Grant, directory: Ino) -> u64 {
        self.holds_names_at(grant, directory, self.now())
    }

    /// [`Lease::holds_names`] at a moment.
    pub fn holds_names_at(&self, grant: Grant, directory: Ino, now: Moment) -> u64 {
        let changed = self.names[place(directory)].load(Ordering::Acquire);
        match grant.asked >= changed {
            true => self.holds_at(grant, directory, now),
            false => 0,
        }
    }

    /// This node has changed names in a directory: answers to questions from before may tell what was.
    pub fn names_changed(&self, directory: Ino) {
        let number = self.revocations.fetch_add(1, Ordering::AcqRel) + 1;
        self.names[place(directory)].fetch_max(number, Ordering::AcqRel);
    }

    /// Something about an inode is revoked, or was changed here. Before what is kept of it is dropped.
    pub fn revoked(&self, ino: Ino) {
        let number = self.revocations.fetch_add(1, Ordering::AcqRel) + 1;
        self.places[place(ino)].fetch_max(number, Ordering::AcqRel);
    }

    /// Nothing that was learned is good any more.
    fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let number = self.revocations.fetch_add(1, Ordering::AcqRel) + 1;
        self.floor.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether it has ended and nobody has seen to that.
    pub fn has_lapsed(&self) -> bool {
        match self.until.load(Ordering::Acquire) {
            ENDLESS | 0 => false,
            until => boot_nanos() >= until,
        }
    }
}

impl FileSystem {
    /// Whether what is known of an inode may be used now.
    pub(crate) fn is_trusted(&self, state: &InodeState) -> bool {
        self.is_trusted_at(state, self.inner.lease.now())
    }

    /// [`FileSystem::is_trusted`] at a moment.
    pub(crate) fn is_trusted_at(&self, state: &InodeState, now: Moment) -> bool {
        state.learned == self.inner.lease.epoch() && now.is_live()
    }

    /// Whether an inode may be written without asking for it.
    pub(crate) fn may_write(&self, state: &InodeState) -> bool {
        !self.inner.lease.is_shared()
            || (state.may_write == self.inner.lease.epoch() && self.inner.lease.is_live())
    }

    /// What the agent says of the lease.
    pub(crate) fn set_lease(&self, until_ns: Option<u64>, is_shared: bool) {
        let lease = &self.inner.lease;
        self.see_to_lapse();
        lease.is_shared.store(is_shared, Ordering::Release);
        let until = until_ns.map_or(ENDLESS, |until| {
            let left = until.saturating_sub(boot_nanos());
            until.saturating_sub(MARGIN_NS.min(left / MARGIN_SHARE))
        });
        lease.until.store(until, Ordering::Release);
    }

    /// Everything that was learned is void.
    pub(crate) fn end_lease(&self) {
        self.inner.lease.until.store(0, Ordering::Release);
        self.distrust_all();
    }

    /// Stops trusting when the lease has ended. Called often enough that the margin covers it.
    pub(crate) fn see_to_lapse(&self) {
        if self.inner.lease.has_lapsed() {
            tracing::warn!(target: "control", "the lease ended: no word from the agent, or it has none from the coordinator; nothing is used before it was asked for again");
            self.end_lease();
        }
    }

    /// Has everything asked for again before it is used, by the kernel too. Where others may have changed something, its
    /// pages go, too; else only those whose contents turn out to be others.
    pub(crate) fn distrust_all(&self) {
        self.inner.lease.begin_epoch();
        self.inner.entries.forget_all();
        let is_shared = self.inner.lease.is_shared();
        let notify = self.inner.notify.get();
        for inode in self.inner.inodes.all() {
            let mut state = lock(&inode.state);
            state.learned = 0;
            state.xattrs = None;
            state.may_have_missed = true;
            state.is_kernel_stale |= is_shared;
            drop(state);
            if let Some(notify) = notify {
                match is_shared {
                    true => notify.inval_inode(inode.ino),
                    false => notify.inval_attr(inode.ino),
                }
            }
        }
        if let Some(notify) = notify {
            notify.inval_names();
        }
    }

    /// The coordinator revoked everything.
    pub(crate) async fn forget_everything(&self, is_shared: bool, and_commit: bool) {
        let lease = &self.inner.lease;
        lease.is_shared.fetch_or(is_shared, Ordering::AcqRel);
        self.end_lease();
        self.answers_sent().await;
        // What was told meanwhile.
        self.distrust_all();
        let fs = self.clone();
        let committing = async move {
            for inode in fs.inner.inodes.all() {
                // What is being written was not asked for: it is waited for, and what comes later asks.
                fs.give_up_writing(&inode).await;
            }
        };
        if and_commit {
            committing.await;
        } else {
            fastcache_reactor::spawn(committing).detach();
        }
        self.all_dropped(is_shared).await;
    }

    /// What was told before this session is used no more, by the kernel either. What was learned in it is asked for again, too.
    pub(crate) async fn forget_earlier(&self) {
        // Answers that were found before it began may be on their way.
        self.answers_sent().await;
        self.distrust_all();
        self.all_dropped(self.inner.lease.is_shared()).await;
    }

    /// Waits until the kernel has nothing of what it was told.
    async fn all_dropped(&self, is_shared: bool) {
        let all = self.inner.inodes.all();
        let all = all.iter().map(|inode| inode.ino).collect();
        self.kernel_dropped(all, Vec::new()).await;
        if is_shared {
            fastcache_reactor::sleep(self.inner.lease.names_left()).await;
        }
    }

    /// Waits until every core has sent the answers that it had found before: from the look at what is trusted to the answer
    /// no core does anything else. What the kernel is told to forget after this, it is not told anew.
    pub(crate) async fn answers_sent(&self) {
        let cores = self.inner.cores.get().map_or(&[][..], Vec::as_slice);
        let passed: Vec<_> = cores
            .iter()
            .map(|core| {
                let (send, receive) = futures_channel::oneshot::channel();
                core.spawn(move || async move {
                    for _ in 0..CORE_PASSES {
                        fastcache_reactor::yield_now().await;
                    }
                    let _ = send.send(());
                });
                receive
            })
            .collect();
        for passed in passed {
            // A core that has ended answers nobody.
            let _ = passed.await;
        }
    }

    /// [`FileSystem::give_up_writing`], and a rest for who writes here: the other node is to have its turn before this one
    /// asks again.
    pub(crate) async fn hand_over(&self, inode: &Arc<Inode>) {
        let (send, receive) = futures_channel::oneshot::channel();
        let (fs, inode) = (self.clone(), Arc::clone(inode));
        fastcache_reactor::spawn(async move {
            let nobody_writes = inode.writers.write().await;
            fs.commit_written(&inode).await;
            let _ = send.send(());
            fastcache_reactor::sleep(REST).await;
            drop(nobody_writes);
        })
        .detach();
        let _ = receive.await;
    }

    /// Commits what was written to a file; from then on writers ask first.
    pub(crate) async fn give_up_writing(&self, inode: &Arc<Inode>) {
        let _nobody_writes = inode.writers.write().await;
        self.commit_written(inode).await;
    }

    /// For who has `writers` alone.
    async fn commit_written(&self, inode: &Arc<Inode>) {
        lock(&inode.state).may_write = 0;
        if let Err(error) = self.seal_file(inode, false).await {
            tracing::error!(target: "cache", ino = %inode.ino, %error, "a file that another node wants to write could not be sealed");
        }
        if let Err(error) = self.commits_answered(inode).await {
            tracing::warn!(target: "cache", ino = %inode.ino, %error, "a file that another node wants to write is not committed yet");
        }
    }
}
