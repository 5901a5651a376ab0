//! The task that keeps the session: it registers, sends heartbeats, and hands on what the watch stream brings.

use super::notice::{Ack, Lease, Notice, Question, Revocation};
use super::{
    ANSWER_WITHIN, CLOSED, Client, FAST_ATTEMPTS, FAST_WAIT, NONE, RemoteError, SLOW_WAIT, Shared,
    is_for_good,
};
use crate::revocation::What;
use fastcache_api::grpc::{
    AckRequest, HeartbeatReply, HeartbeatRequest, RegisterReply, RegisterRequest, WatchRequest,
};
use fastcache_api::{Ino, NS_VERSION, grpc};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

/// When a heartbeat was sent, and what came of it.
type Beat = (Duration, Result<HeartbeatReply, Status>);

/// The task that keeps the session.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) sender: mpsc::Sender<Notice>,
    /// CLOCK_BOOTTIME, but for tests.
    pub(super) clock: fn() -> Duration,
}

impl Keeper {
    /// Registers, however long it takes. Returns with it when the request was sent. See [`super::RemoteNamespace::connect_telling`].
    pub(super) async fn register(
        &self,
        previous: u64,
        tell: impl Fn(&str) + Send + Sync,
    ) -> Result<(RegisterReply, Duration), RemoteError> {
        let mut wait = FAST_WAIT;
        for attempt in 1.. {
            let sent = (self.clock)();
            let request = RegisterRequest {
                node: Some(self.shared.node().clone()),
                ns_version: NS_VERSION,
                previous_session: previous,
            };
            let status = match self.shared.client.clone().register(request).await {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    self.shared
                        .owner
                        .send_replace((reply.file_system, reply.epoch));
                    // Also when it is the number of before: it may be that of another run.
                    self.shared.peers_version.send_replace(reply.peers_version);
                    return Ok((reply, sent));
                }
                Err(status) => status,
            };
            let coordinator = &self.shared.coordinator;
            // One that runs has its id back when the other node is gone.
            let is_others = status.code() == Code::AlreadyExists && previous == NONE;
            if is_for_good(status.code()) || is_others {
                let why = status.message().to_owned();
                return Err(RemoteError::Refused {
                    coordinator: coordinator.clone(),
                    why,
                });
            }
            tell(status.message());
            wait = if attempt < FAST_ATTEMPTS {
                wait
            } else {
                SLOW_WAIT
            };
            tracing::warn!(
                target: "control",
                coordinator,
                attempt,
                "not registered ({}): trying again in {} ms",
                status.message(),
                wait.as_millis()
            );
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SLOW_WAIT);
        }
        unreachable!("attempts do not end")
    }

    /// Tells the user that everything is void. `None` when there is no user any more.
    pub(super) async fn revoke_everything(&self) -> Option<oneshot::Receiver<()>> {
        self.shared.revoked.fetch_add(1, Ordering::AcqRel);
        let (done, told) = oneshot::channel();
        let all = Revocation {
            everything: true,
            inos: Vec::new(),
            entries: Vec::new(),
            touched: Vec::new(),
            hand_over: Vec::new(),
            orphans: Vec::new(),
            is_shared: false,
            ack: Ack::Local(done),
        };
        let all = Notice::Revoked(all);
        self.sender.send(all).await.ok().map(|()| told)
    }

    /// Tells the user how long the lease is; answered when its data plane has that.
    fn tell_lease(&self, until: Duration, is_shared: bool) -> Option<oneshot::Receiver<()>> {
        let (heard, told) = oneshot::channel();
        let lease = Notice::Lease(Lease {
            until,
            is_shared,
            heard,
        });
        self.sender.try_send(lease).ok().map(|()| told)
    }

    pub(super) async fn keep(
        self,
        first: (RegisterReply, Duration),
        mut forgotten: Option<oneshot::Receiver<()>>,
    ) {
        let (mut reply, mut sent) = first;
        loop {
            let lease = Duration::from_millis(u64::from(reply.lease_ms));
            let why = self.session(&reply, sent, lease, forgotten.take()).await;
            self.shared.session.send_replace(NONE);
            tracing::warn!(target: "control", coordinator = self.shared.coordinator, session = reply.session, "session lost ({why}): registering again");
            // The leases of the old session are in use until the user has forgotten what came with them.
            (reply, sent) = match self.register(reply.session, |_| ()).await {
                Ok(registered) => registered,
                Err(error) => {
                    tracing::error!(target: "control", %error, "this node can change nothing until its agent is started again");
                    self.shared.session.send_replace(CLOSED);
                    return;
                }
            };
            forgotten = self.revoke_everything().await;
        }
    }

    /// Runs one session until it is lost; says why it was. `forgotten`: comes when the user has forgotten what the agent
    /// before this one was told.
    async fn session(
        &self,
        reply: &RegisterReply,
        sent: Duration,
        lease: Duration,
        forgotten: Option<oneshot::Receiver<()>>,
    ) -> String {
        let session = reply.session;
        if let Err(why) = self.shared.bring_back(reply).await {
            return why;
        }
        let mut client = self.shared.client.clone();
        let mut stream = match client.watch(WatchRequest { session }).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return status.message().to_owned(),
        };
        if let Some(forgotten) = forgotten {
            let client = client.clone();
            tokio::spawn(tell_forgotten(client, session, forgotten));
        }
        let mut told = self.tell_lease(sent + lease, reply.is_shared);
        self.shared.session.send_replace(session);
        tracing::info!(target: "control", coordinator = self.shared.coordinator, session, "registered");
        let mut heard = sent;
        let mut ticks = tokio::time::interval_at(Instant::now() + lease / 4, lease / 4);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heartbeat = None;
        let mut last = (sent + lease, reply.is_shared);
        loop {
            let beating = async {
                match &mut heartbeat {
                    Some(beat) => std::pin::Pin::new(beat).await,
                    None => std::future::pending::<Result<Beat, tokio::task::JoinError>>().await,
                }
            };
            // In this order: the same happens every time. What is rare comes first, so that nothing is kept waiting for ever.
            tokio::select! {
                biased;
                beat = beating => {
                    heartbeat = None;
                    match beat {
                        Ok((at, Ok(reply))) => {
                            self.shared.kept.learn(None, reply.stable);
                            heard = at;
                            let until = at + Duration::from_millis(u64::from(reply.lease_ms));
                            last = (until.max(last.0), last.1 || reply.is_shared);
                            told = self.tell_lease(last.0, last.1);
                            self.shared.learn_peers(reply.peers_version);
                        }
                        Ok((_, Err(status))) if status.code() == Code::Unauthenticated => {
                            return status.message().to_owned();
                        }
                        _ => {}
                    }
                }
                _ = ticks.tick() => {
                    if (self.clock)().saturating_sub(heard) >= lease {
                        return "no heartbeat was answered for one lease".to_owned();
                    }
                    if heartbeat.is_none() {
                        let is_heard = told.as_mut().is_some_and(|told| told.try_recv().is_ok());
                        if !is_heard {
                            told = self.tell_lease(last.0, last.1);
                        }
                        heartbeat = Some(self.beat(session, is_heard));
                    }
                }
                () = self.shared.lost.notified() => {
                    let asked = client.heartbeat(HeartbeatRequest {
                        session,
                        node: Some(self.shared.node().clone()),
                        is_heard: false,
                    });
                    // A call was told that its session is over: of this one, or of one before?
                    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(status)) => return status.message().to_owned(),
                        Err(_) => return "no answer to a heartbeat".to_owned(),
                    }
                }
                message = stream.message() => match message {
                    Ok(Some(news)) if news.asked_ino != 0 => {
                        let client = Box::new(self.shared.client.clone());
                        // One that cannot be taken now is not answered.
                        let _ = self.sender.try_send(Notice::Asked(Question {
                            ino: Ino(news.asked_ino),
                            client,
                            session,
                            number: news.number,
                        }));
                    }
                    Ok(Some(news)) if news.peers_version != 0 => {
                        self.shared.learn_peers(news.peers_version);
                    }
                    Ok(Some(revocation)) => {
                        // A heartbeat's answer may be from before the second node.
                        let everything = revocation.everything;
                        last.1 |= everything;
                        if let Err(why) = self.hand_on(session, revocation) {
                            return why;
                        }
                        if everything {
                            // The lease itself goes on: for what is learned from now on.
                            told = self.tell_lease(last.0, last.1);
                        }
                    }
                    Ok(None) => return "the coordinator ended it".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
            }
        }
    }

    /// Sends a heartbeat; its answer comes with when it was sent.
    fn beat(&self, session: u64, is_heard: bool) -> tokio::task::JoinHandle<Beat> {
        let mut client = self.shared.client.clone();
        let node = Some(self.shared.node().clone());
        let clock = self.clock;
        tokio::spawn(async move {
            let at = clock();
            let asked = client.heartbeat(HeartbeatRequest {
                session,
                node,
                is_heard,
            });
            let answer = match tokio::time::timeout(ANSWER_WITHIN, asked).await {
                Ok(answer) => answer.map(tonic::Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded("no answer to a heartbeat")),
            };
            (at, answer)
        })
    }

    fn hand_on(&self, session: u64, revocation: grpc::Revocation) -> Result<(), String> {
        self.shared.revoked.fetch_add(1, Ordering::AcqRel);
        let What {
            inos,
            entries,
            touched,
            hand_over,
            orphans,
        } = match revocation.everything {
            true => What::default(),
            false => postcard::from_bytes(&revocation.what)
                .map_err(|e| format!("a revocation cannot be read: {e}"))?,
        };
        let client = Box::new(self.shared.client.clone());
        let ack = Ack::Session {
            client,
            session,
            number: revocation.number,
        };
        let everything = revocation.everything;
        self.sender
            .try_send(Notice::Revoked(Revocation {
                everything,
                inos,
                entries,
                touched,
                hand_over,
                orphans,
                is_shared: true,
                ack,
            }))
            .map_err(|_| "revocations are not taken".to_owned())
    }
}

/// Tells the coordinator that the sessions before this one hold nothing any more, once that is so.
async fn tell_forgotten(mut client: Client, session: u64, forgotten: oneshot::Receiver<()>) {
    if forgotten.await.is_ok() {
        let told = client.ack_revocation(AckRequest { session, number: 0 });
        // Without it the coordinator waits until their leases are over.
        if !matches!(tokio::time::timeout(ANSWER_WITHIN, told).await, Ok(Ok(_))) {
            tracing::debug!(target: "control", session, "the coordinator could not be told that earlier leases are given up");
        }
    }
}
