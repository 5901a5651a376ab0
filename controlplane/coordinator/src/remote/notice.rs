//! What a node is told by its coordinator, and how it answers.

use super::{ANSWER_WITHIN, Client};
use fastcache_api::grpc::{AckRequest, HoldRequest};
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
    /// Somebody wants to know where a file is.
    Asked(Question),
}

/// What does this node's store have of a file? May be left unanswered.
#[derive(Debug)]
pub struct Question {
    /// The file.
    pub ino: Ino,
    pub(super) client: Box<Client>,
    pub(super) session: u64,
    pub(super) number: u64,
}

impl Question {
    /// So many chunks, and what they take of the device.
    pub async fn answer(mut self, chunks: u64, bytes: u64) {
        let told = self.client.hold(HoldRequest {
            session: self.session,
            number: self.number,
            chunks,
            bytes,
        });
        // Without it the asker goes on after a second.
        if !matches!(tokio::time::timeout(ANSWER_WITHIN, told).await, Ok(Ok(_))) {
            tracing::debug!(target: "control", ino = self.ino.0, "a question of the coordinator could not be answered");
        }
    }
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
