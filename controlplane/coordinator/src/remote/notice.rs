//! What a node is told by its coordinator, and how it answers.

use super::{ANSWER_WITHIN, Client};
use fastcache_api::grpc::AckRequest;
use fastcache_api::{Attr, Ino};
use std::time::Duration;
use tokio::sync::oneshot;

/// Something learned from the coordinator is no longer true. To be acknowledged when it is forgotten everywhere on this
/// node; the change that caused it waits for that.
#[derive(Debug)]
#[must_use = "a revocation has to be acknowledged"]
pub struct Revocation {
    /// Forget everything that was ever learned.
    pub everything: bool,
    /// Inodes whose attributes and contents are to be forgotten.
    pub inos: Vec<Ino>,
    /// Directory entries (directory, name) to be forgotten, present or absent.
    pub entries: Vec<(Ino, Vec<u8>)>,
    /// New attributes of those inodes, for comparison; no lease comes with them.
    pub touched: Vec<Attr>,
    /// Inodes that another node wants to write: what was written here is to be committed, and no more be written before it
    /// is asked for again. What is cached stays.
    pub hand_over: Vec<Ino>,
    /// Inodes that lost their last name. They go, but for those that are open here: on these a lease is to be taken before
    /// this is acknowledged.
    pub orphans: Vec<Ino>,
    /// There are other nodes, from now on.
    pub is_shared: bool,
    pub(super) ack: Ack,
}

/// What was learned in this session is good until then.
#[derive(Debug)]
pub struct Lease {
    /// On CLOCK_BOOTTIME.
    pub until: Duration,
    /// There are other nodes.
    pub is_shared: bool,
    /// To be used when the data plane has it: otherwise the lease is not renewed.
    pub heard: oneshot::Sender<()>,
}

/// What a node is told by its coordinator.
#[derive(Debug)]
pub enum Notice {
    /// Something is to be forgotten.
    Revoked(Revocation),
    /// The lease goes on.
    Lease(Lease),
}

#[derive(Debug)]
pub(super) enum Ack {
    Session {
        client: Box<Client>,
        session: u64,
        number: u64,
    },
    Local(oneshot::Sender<()>),
}

impl Revocation {
    /// It is forgotten.
    pub async fn ack(self) {
        match self.ack {
            Ack::Session {
                mut client,
                session,
                number,
            } => {
                let acked = client.ack_revocation(AckRequest { session, number });
                // Without it the coordinator waits until the lease is over.
                if !matches!(tokio::time::timeout(ANSWER_WITHIN, acked).await, Ok(Ok(_))) {
                    tracing::warn!(target: "control", session, number, "a revocation could not be acknowledged");
                }
            }
            // The session's task may have gone on without.
            Ack::Local(done) => drop(done.send(())),
        }
    }
}
