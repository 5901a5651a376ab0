//! Writing the journal and flushing the device, for everybody who waits, by one task at a time. The task is not the
//! future of a caller, so that a caller who goes away never leaves a group half written.

use crate::error::StoreError;
use crate::index::STRIPES;
use crate::journal::{Admission, Group, Journal, encode_group, submission_blocks};
use crate::record::{Record, TICKET_BYTES};
use crate::store::{Inner, Store};
use event_listener::Event;
use fastcache_reactor::sync::{Mutex, MutexGuard};
use fastcache_reactor::{IoBuf, spawn};
use fastcache_types::BLOCK;
use std::io;
use std::sync::PoisonError;

/// How often a group is written before the journal is given up.
const WRITE_ATTEMPTS: usize = 3;

#[derive(Default)]
struct FlushState {
    /// Flushes asked for, started, and ended well. A caller needs one that starts after its call.
    wanted: u64,
    started: u64,
    done: u64,
    /// The last flush that failed, and how.
    failed: Option<(u64, io::ErrorKind, String)>,
    is_running: bool,
}

/// Device flushes, shared by all who wait for one.
#[derive(Default)]
pub(crate) struct Flusher {
    state: Mutex<FlushState>,
    event: Event,
}

impl Flusher {
    fn lock(&self) -> MutexGuard<'_, FlushState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes that ended well.
    #[cfg(test)]
    pub(crate) fn done(&self) -> u64 {
        self.lock().done
    }
}

/// Says that the appending task ended, also when its core does. Whoever waits starts it again.
struct Appending<'a>(&'a Journal);

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        self.0.lock().is_appending = false;
        self.0.event.notify(usize::MAX);
    }
}

/// The same of the flushing task, and takes back the flush that it has started.
struct Flushing<'a> {
    flusher: &'a Flusher,
    is_started: bool,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let mut st = self.flusher.lock();
        st.is_running = false;
        st.started -= u64::from(self.is_started);
        drop(st);
        self.flusher.event.notify(usize::MAX);
    }
}

impl Store {
    /// Starts the appending task if there is work and it does not run.
    pub(crate) fn kick(&self) {
        let mut st = self.inner.journal.lock();
        if st.is_appending || st.is_idle() {
            return;
        }
        st.is_appending = true;
        drop(st);
        let store = self.clone();
        spawn(async move { store.append_all().await }).detach();
    }

    async fn append_all(&self) {
        let journal = &self.inner.journal;
        let guard = Appending(journal);
        loop {
            while !journal.drop_queue()
                && let Some(group) = journal.take_group()
            {
                match self.inner.write_group(&group).await {
                    Ok(()) => journal.end_group(&group),
                    Err(error) => self.inner.lose_journal(&error),
                }
                journal.event.notify(usize::MAX);
                if journal.wants_checkpoint() {
                    self.start_checkpoint();
                }
            }
            journal.event.notify(usize::MAX);
            // Whoever queues after this look finds the task ended and starts another.
            let mut st = journal.lock();
            if st.is_idle() {
                st.is_appending = false;
                std::mem::forget(guard);
                return;
            }
        }
    }

    /// Waits for room in the journal for a submission of so many bytes.
    pub(crate) async fn admit(&self, bytes: usize) -> Admission<'_> {
        self.admit_blocks(submission_blocks(bytes)).await
    }

    /// Waits for room in the journal for so many blocks.
    pub(crate) async fn admit_blocks(&self, blocks: u32) -> Admission<'_> {
        loop {
            let listener = self.inner.journal.event.listen();
            if let Some(admission) = self.inner.journal.try_admit(blocks) {
                return admission;
            }
            // What is queued shrinks when it is written; what is written is forgotten by a checkpoint.
            self.kick();
            self.start_checkpoint();
            listener.await;
        }
    }

    /// Waits until the record with this ticket is in the journal (not flushed), or the journal is lost.
    pub(crate) async fn wait_written(&self, ticket: u64) {
        let journal = &self.inner.journal;
        loop {
            let listener = journal.event.listen();
            if journal.written() >= ticket {
                return;
            }
            self.kick();
            listener.await;
        }
    }

    /// Device flush that covers everything written and journaled before the call. Concurrent callers share one. Ends
    /// the quarantine of what was freed before.
    ///
    /// # Errors
    /// `Device` when the device cannot flush, `Sick` when the journal is lost: the cloud is then the only safe place.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let ticket = self.inner.journal.last();
        self.wait_written(ticket).await;
        if self.inner.journal.is_lost() {
            // Nothing on the device will ever name what was freed: see `lose_journal` for what it names now.
            self.inner.pool.space.flushed(u64::MAX);
            return Err(StoreError::Sick);
        }
        let flusher = &self.inner.flusher;
        let mine = {
            let mut st = flusher.lock();
            st.wanted = st.started + 1;
            st.wanted
        };
        loop {
            let listener = flusher.event.listen();
            {
                let mut st = flusher.lock();
                if st.done >= mine {
                    return Ok(());
                }
                if let Some((n, kind, text)) = &st.failed
                    && *n >= mine
                {
                    return Err(StoreError::Device(io::Error::new(*kind, text.clone())));
                }
                if !st.is_running {
                    st.is_running = true;
                    let store = self.clone();
                    spawn(async move { store.flush_all().await }).detach();
                }
            }
            listener.await;
        }
    }

    async fn flush_all(&self) {
        let flusher = &self.inner.flusher;
        let mut guard = Flushing {
            flusher,
            is_started: false,
        };
        loop {
            let n = {
                let mut st = flusher.lock();
                if st.started >= st.wanted {
                    // As in `append_all`: nobody asks between this look and the end.
                    st.is_running = false;
                    std::mem::forget(guard);
                    return;
                }
                st.started += 1;
                st.started
            };
            guard.is_started = true;
            let covered = self.inner.journal.written();
            let result = self.inner.device.sync().await;
            guard.is_started = false;
            match &result {
                Ok(()) => {
                    self.inner.journal.flushed(covered);
                    self.inner.pool.space.flushed(covered);
                }
                // What it should have covered may be gone, whatever a later one says.
                Err(error) => self.inner.lose_journal(error),
            }
            let mut st = flusher.lock();
            match result {
                Ok(()) => st.done = n,
                Err(StoreError::Device(e)) => st.failed = Some((n, e.kind(), e.to_string())),
                Err(e) => st.failed = Some((n, io::ErrorKind::Other, e.to_string())),
            }
            drop(st);
            flusher.event.notify(usize::MAX);
        }
    }
}

impl Inner {
    /// The journal cannot be written: the next start will find the device's records as they are now. What is dirty in
    /// them must still be there then, so those chunks keep their blocks until the end of this process.
    pub(crate) fn lose_journal(&self, error: &StoreError) {
        if !self.journal.lose() {
            return;
        }
        tracing::error!(target: "nvme", %error, "the journal cannot be made durable: files go to the cloud before they are acknowledged; replace the device");
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for at in 0..STRIPES {
            let stripe = self.index.stripe(at);
            let bodies = stripe.current.values();
            let bodies = bodies.chain(stripe.pending.values().flatten());
            kept.extend(bodies.filter(|b| b.is_dirty()).cloned());
        }
        drop(kept);
        self.pool.space.keep_quarantine();
        self.journal.event.notify(usize::MAX);
    }

    /// Writes a group at its place; in two pieces where the ring ends.
    async fn write_group(&self, group: &Group) -> Result<(), StoreError> {
        let mut buf = IoBuf::alloc(group.blocks as usize * BLOCK);
        let journal = &self.journal;
        let mut flushed = Vec::with_capacity(TICKET_BYTES);
        Record::Flushed(group.flushed).encode(&mut flushed);
        let records = group.submissions.iter().map(|(_, bytes)| bytes.as_slice());
        let records = std::iter::once(flushed.as_slice()).chain(records);
        encode_group(
            &mut buf,
            journal.store,
            group.position,
            journal.generation,
            records,
        );
        let (first, room) = Journal::place(journal.ring, group.position);
        let mut attempt = 1;
        loop {
            let result;
            (result, buf) = if room < group.blocks {
                let head = buf.split_to(room as usize * BLOCK);
                let (a, head) = self.device.write(first, head).await;
                let (b, tail) = self.device.write(journal.ring.start, buf).await;
                (a.and(b), crate::device::join(Some(head), tail))
            } else {
                self.device.write(first, buf).await
            };
            match result {
                Err(error) if attempt < WRITE_ATTEMPTS => {
                    tracing::warn!(target: "nvme", %error, position = group.position, "writing the journal again");
                    attempt += 1;
                }
                result => return result,
            }
        }
    }
}
