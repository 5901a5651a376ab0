//! Asks the nodes what their stores have of a file, when somebody wants to know. Nothing is kept: a cache changes all the time.

use super::{Coordinator, REVOCATIONS_QUEUED};
use crate::registry::UnknownSession;
use fastcache_api::{Ino, grpc};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long nodes may take to answer; those that do not are left out.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Questions at once; one that is too much finds nobody.
const QUESTIONS_MAX: usize = 64;

/// What a node's store has of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Chunks.
    pub chunks: u64,
    /// What they take of its device, bytes.
    pub bytes: u64,
}

/// Questions that wait for answers, by number.
#[derive(Default)]
pub(super) struct Questions {
    last: u64,
    open: HashMap<u64, mpsc::Sender<(String, Held)>>,
}

/// Takes the question back when it is over, or the asker is gone.
struct Asked<'c> {
    coordinator: &'c Coordinator,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut tables = self.coordinator.tables();
        tables.questions.open.remove(&self.number);
    }
}

impl Coordinator {
    /// What the stores of the nodes that answer within a second have of a file, by peer id. Nodes without any of it are not
    /// listed.
    pub async fn held(&self, ino: Ino) -> BTreeMap<String, Held> {
        let mut found = BTreeMap::new();
        let (number, asked, mut answers) = {
            let mut tables = self.tables();
            if tables.questions.open.len() >= QUESTIONS_MAX {
                return found;
            }
            tables.questions.last += 1;
            let number = tables.questions.last;
            let question = grpc::Revocation {
                number,
                asked_ino: ino.0,
                ..Default::default()
            };
            // Only those that listen: a node that registered by REST does not.
            let live = tables.registry.others(0).into_iter();
            let outlets = live.filter_map(|session| tables.outlets.get(&session));
            let asked = outlets
                .filter(|o| o.receiver.is_none() && o.sender.capacity() > REVOCATIONS_QUEUED / 2)
                .filter(|o| o.sender.try_send(question.clone()).is_ok())
                .count();
            let (sender, answers) = mpsc::channel(asked.max(1));
            tables.questions.open.insert(number, sender);
            (number, asked, answers)
        };
        let _asked = Asked {
            coordinator: self,
            number,
        };
        let answered = async {
            for _ in 0..asked {
                match answers.recv().await {
                    Some((peer, held)) if held.chunks > 0 => drop(found.insert(peer, held)),
                    Some(_) => {}
                    None => return,
                }
            }
        };
        if tokio::time::timeout(ANSWER_MAX, answered).await.is_err() {
            tracing::debug!(target: "registry", asked, "not every node said what it has of a file");
        }
        found
    }

    /// A node's answer; one that comes too late is dropped.
    ///
    /// # Errors
    /// When the session is over.
    pub(crate) fn hold(&self, session: u64, number: u64, held: Held) -> Result<(), UnknownSession> {
        let mut tables = self.tables();
        let peer = tables.registry.peer_of(session)?;
        if let Some(asker) = tables.questions.open.get(&number) {
            let _ = asker.try_send((peer, held));
        }
        Ok(())
    }
}
