//! Changes that were acknowledged and then lost with the end of the log, made again in a later epoch: with the inode numbers,
//! versions and times that were told.

use crate::kv::Kv;
use crate::state::{Counters, Done, State};
use crate::{Outcome, Record, make};
use fastcache_api::{COUNTER_BITS, Errno, Ino, NsAnswer, NsOp, NsRequest, Time};
use serde::{Deserialize, Serialize};

/// Counters of an epoch go up to this.
const COUNTER_MAX: u64 = 1 << COUNTER_BITS;
/// Most numbers that one change takes.
const TAKEN_MAX: u64 = 1 << 24;

/// From where a change took its numbers: the counters before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The epoch it was made in first.
    pub epoch: u64,
    /// The last inode counter used before it.
    pub ino: u64,
    /// The last version counter used before it.
    pub version: u64,
}

impl Origin {
    pub(crate) fn of(before: &Counters) -> Origin {
        Origin {
            epoch: before.epoch,
            ino: before.ino,
            version: before.version,
        }
    }
}

/// Makes a change of an earlier epoch again; `origin`: as it came with it then. Answered: the state has it (by its
/// [`OpId`](fastcache_api::OpId)), or it cannot be made. EINVAL: its numbers are none that an earlier epoch gave.
///
/// # Errors
/// When the store cannot be read or holds damaged values; nothing has changed then.
pub fn restore(kv: &impl Kv, lost: &Record, origin: Origin) -> Done<Outcome> {
    let request = NsRequest {
        id: lost.id,
        now: lost.now,
        op: lost.op.clone(),
    };
    make(kv, request, Some(origin))
}

impl<K: Kv> State<'_, K> {
    /// Does a change with the numbers of another epoch.
    pub(crate) fn change_again(&mut self, origin: &Origin, op: &NsOp, now: Time) -> Done<NsAnswer> {
        let own = self.counters;
        let counters = [origin.ino, origin.version];
        if origin.epoch >= own.epoch
            || counters.iter().any(|c| *c >= COUNTER_MAX - TAKEN_MAX)
            || matches!(op, NsOp::Begin { .. })
        {
            return Err(Errno::EINVAL.into());
        }
        self.counters.epoch = origin.epoch;
        self.counters.ino = origin.ino;
        self.counters.version = origin.version;
        if matches!(op, NsOp::Make { .. }) {
            let ino = Ino((origin.epoch << COUNTER_BITS) | (origin.ino + 1));
            if self.has_inode(ino)? {
                return Err(Errno::EEXIST.into());
            }
        }
        let answer = self.change(op, now)?;
        self.counters.epoch = own.epoch;
        self.counters.ino = own.ino;
        self.counters.version = own.version;
        Ok(answer)
    }

    fn has_inode(&self, ino: Ino) -> Done<bool> {
        Ok(self.kv.get(&crate::keys::attr(ino))?.is_some())
    }
}
