//! What this node keeps of the coordinator's log: changes that were acknowledged to it and may not be on stable storage yet.
//!
//! They are dropped when the coordinator says that its log is stable up to there. When it comes back from an end without that,
//! it is brought what is left, before this node's first call.

use super::{CALL_DEADLINE, RemoteNamespace, Shared, is_for_good};
use fastcache_api::grpc::{Kept, RegisterReply, ResendRequest, Stable};
use fastcache_api::{NsOp, NsRequest, Time};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tonic::{Code, Status};

/// Most that is kept, bytes; beyond, the log is put on stable storage before the next reply is handed on. The coordinator does
/// that by itself every 50 ms, in which there is far less.
const KEPT_MAX: usize = 4 << 20;
/// What a record takes beside its bytes, about.
const RECORD_OVERHEAD: usize = 128;
/// Bytes of records in one message.
const MESSAGE: usize = 1 << 20;
/// Longest the coordinator may take to make again what is brought: others may have to forget what they learned first.
const BRING_WITHIN: Duration = Duration::from_secs(60);

/// By epoch and position.
type Place = (u64, u64);

#[derive(Default)]
struct Inner {
    records: BTreeMap<Place, Kept>,
    bytes: usize,
    /// The last that the coordinator said.
    stable: Place,
    /// They are of this file system.
    file_system: u64,
    /// What is older than this epoch is being brought, or was.
    closed: u64,
    /// The epoch in which all that is older was brought.
    brought: u64,
}

impl Inner {
    fn drop_upto(&mut self, first: Place, last: Place) {
        while let Some((place, _)) = self.records.range(first..=last).next() {
            let place = *place;
            if let Some(record) = self.records.remove(&place) {
                self.bytes -= size(&record);
            }
        }
    }

    fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }
}

/// What is kept.
#[derive(Default)]
pub(super) struct Records {
    inner: Mutex<Inner>,
    /// Who makes room.
    room: tokio::sync::Mutex<()>,
}

fn size(record: &Kept) -> usize {
    record.record.len() + RECORD_OVERHEAD
}

impl Records {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came with a reply. False: it is of an earlier run, and too late to be brought to this one. It is to be asked for
    /// again.
    pub(super) fn learn(&self, record: Option<Kept>, stable: Option<Stable>) -> bool {
        let mut inner = self.lock();
        if let Some(record) = record {
            let place = (record.epoch, record.position);
            if record.epoch < inner.closed {
                return false;
            }
            // A later reply may have come first.
            if place.0 != inner.stable.0 || place > inner.stable {
                inner.bytes += size(&record);
                if let Some(old) = inner.records.insert(place, record) {
                    inner.bytes -= size(&old);
                }
            }
        }
        let Some(Stable { epoch, position }) = stable else {
            return true;
        };
        let place = (epoch, position);
        if position > 0 && place > inner.stable {
            inner.stable = place;
            let is_brought = inner.brought == epoch;
            let first = if is_brought { (0, 0) } else { (epoch, 0) };
            inner.drop_upto(first, place);
        }
        true
    }

    fn is_full(&self) -> bool {
        self.lock().bytes > KEPT_MAX
    }

    /// What is of runs before this epoch, in messages. Of another file system, nothing is.
    fn older(&self, file_system: u64, epoch: u64) -> Vec<Vec<Kept>> {
        let mut inner = self.lock();
        if inner.file_system != file_system {
            if !inner.records.is_empty() {
                let count = inner.records.len();
                tracing::error!(target: "control", count, "lost: the coordinator has another file system than the one whose changes this node keeps");
                inner.clear();
            }
            inner.file_system = file_system;
        }
        inner.closed = epoch;
        let mut messages = vec![Vec::new()];
        let mut bytes = 0;
        for record in inner.records.range(..(epoch, 0)).map(|(_, r)| r) {
            bytes += size(record);
            if bytes > MESSAGE {
                bytes = size(record);
                messages.push(Vec::new());
            }
            messages
                .last_mut()
                .expect("one at least")
                .push(record.clone());
        }
        messages
    }

    /// All that is older than this epoch was brought, and need not be kept any more if that `is_over`.
    fn brought(&self, epoch: u64, is_over: bool) {
        let mut inner = self.lock();
        inner.brought = epoch;
        if is_over {
            inner.drop_upto((0, 0), (epoch, 0));
        }
    }
}

impl RemoteNamespace {
    /// Has the log on stable storage when more is kept than may be.
    pub(super) async fn make_room(&self) {
        let kept = &self.shared.kept;
        if !kept.is_full() {
            return;
        }
        let _one_at_a_time = kept.room.lock().await;
        if !kept.is_full() {
            return;
        }
        let sync = NsRequest {
            id: None,
            now: Time::now(),
            op: NsOp::Sync,
        };
        let Ok(request) = postcard::to_stdvec(&sync) else {
            return;
        };
        let asked = self.call_until_answered(request);
        if !matches!(tokio::time::timeout(CALL_DEADLINE, asked).await, Ok(Ok(_))) || kept.is_full()
        {
            let mut inner = kept.lock();
            let count = inner.records.len();
            inner.clear();
            tracing::error!(target: "control", count, "the coordinator does not put its log on stable storage: changes are kept no longer, and are lost if its machine loses power");
        }
    }
}

impl Shared {
    /// Brings what is kept of earlier runs, after a registration. What went wrong, for people: it is to be tried again.
    pub(super) async fn bring_back(&self, registered: &RegisterReply) -> Result<(), String> {
        let (file_system, epoch) = (registered.file_system, registered.epoch);
        let messages = self.kept.older(file_system, epoch);
        let count: usize = messages.iter().map(Vec::len).sum();
        let last = messages.len() - 1;
        let mut is_over = false;
        for (n, kept) in messages.into_iter().enumerate() {
            let request = ResendRequest {
                session: registered.session,
                file_system,
                kept,
                is_all: n == last,
            };
            match self.resend(request).await {
                Ok(over) => is_over = over,
                Err(status)
                    if is_for_good(status.code()) || status.code() == Code::ResourceExhausted =>
                {
                    let why = status.message();
                    tracing::error!(target: "control", count, why, "lost: the coordinator does not take back changes that this node keeps");
                    is_over = true;
                    break;
                }
                Err(status) => return Err(status.message().to_owned()),
            }
        }
        self.kept.brought(epoch, is_over);
        Ok(())
    }

    async fn resend(&self, request: ResendRequest) -> Result<bool, Status> {
        let mut client = self.client.clone();
        match tokio::time::timeout(BRING_WITHIN, client.resend(request)).await {
            Ok(reply) => Ok(reply?.into_inner().is_over),
            Err(_) => Err(Status::deadline_exceeded(
                "the coordinator did not answer when it was brought what it may have lost",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64, position: u64) -> Option<Kept> {
        Some(Kept {
            epoch,
            position,
            record: vec![0; 100],
            ..Default::default()
        })
    }

    fn stable(epoch: u64, position: u64) -> Option<Stable> {
        Some(Stable { epoch, position })
    }

    fn kept(records: &Records) -> Vec<Place> {
        let inner = records.lock();
        let bytes: usize = inner.records.values().map(size).sum();
        assert_eq!(inner.bytes, bytes);
        inner.records.keys().copied().collect()
    }

    #[test]
    fn a_record_is_kept_until_the_log_is_stable_up_to_it() {
        let records = Records::default();
        assert_eq!(records.older(9, 1), vec![Vec::new()]);
        records.brought(1, true);
        for position in 2..6 {
            records.learn(record(1, position), stable(1, 1));
        }
        records.learn(None, stable(1, 3));
        assert_eq!(kept(&records), [(1, 4), (1, 5)]);
        // Replies that come late.
        records.learn(record(1, 3), stable(1, 2));
        records.learn(record(1, 4), None);
        assert_eq!(kept(&records), [(1, 4), (1, 5)]);
    }

    #[test]
    fn what_an_earlier_run_acknowledged_is_kept_until_it_was_brought_and_is_stable() {
        let records = Records::default();
        records.older(9, 1);
        records.brought(1, true);
        records.learn(record(1, 5), stable(1, 1));
        records.learn(record(1, 6), stable(1, 1));
        let older = records.older(9, 2);
        let places: Vec<u64> = older.concat().iter().map(|r| r.position).collect();
        assert_eq!(places, [5, 6]);
        records.brought(2, false);
        // Others are waited for. The new run reuses positions.
        records.learn(None, stable(2, 0));
        assert_eq!(kept(&records), [(1, 5), (1, 6)]);
        records.learn(record(2, 6), stable(2, 4));
        assert_eq!(kept(&records), [(2, 6)]);
        // A reply of the run before that was overtaken by its end.
        assert!(!records.learn(record(1, 7), stable(1, 1)));
        // It ended before this node could register.
        records.older(9, 4);
        records.learn(None, stable(4, 9));
        assert_eq!(kept(&records), [(2, 6)]);
        records.brought(4, true);
        assert_eq!(kept(&records), []);
    }

    #[test]
    fn of_another_file_system_nothing_is_brought() {
        let records = Records::default();
        records.older(9, 1);
        records.learn(record(1, 5), stable(1, 1));
        assert_eq!(records.older(10, 2), vec![Vec::new()]);
        assert_eq!(kept(&records), []);
    }

    #[test]
    fn what_is_brought_is_cut_into_messages() {
        let records = Records::default();
        records.older(9, 1);
        for position in 1..=18_396 {
            assert!(!records.is_full());
            records.learn(record(1, position), None);
        }
        records.learn(record(1, 18_397), None);
        assert!(records.is_full());
        let messages = records.older(9, 2);
        assert_eq!(messages.len(), 5);
        assert_eq!(messages.concat().len(), 18_397);
    }
}
