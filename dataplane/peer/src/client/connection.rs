//! One connection to another node: requests that wait for their answers.

use super::{AskError, meaning};
use crate::cluster::{Peer, lock};
use crate::frame::{FrameError, HEADER_BYTES, Header, Kind};
use crate::server::SMALL;
use crate::stream::{Broken, Incoming, Out, Outbox, hang_up, join};
use event_listener::Event;
use fastcache_reactor::sync::Mutex;
use fastcache_reactor::{Fd, IoBuf, spawn};
use futures_channel::oneshot;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most requests in flight on one connection; more wait.
const REQUESTS_MAX: usize = 256;
/// Most bytes asked for and not yet come, on one connection; more wait, but for small parts.
const BYTES_MAX: usize = 16 << 20;

/// What is asked.
pub(super) struct Question {
    pub(super) header: Header,
    /// Where the answer's bytes go.
    pub(super) buf: Option<IoBuf>,
    /// The whole frame of a question with bytes; its header is written over the first of them.
    pub(super) frame: Option<IoBuf>,
}

impl Question {
    /// Bytes that it asks for, or brings.
    fn weight(&self) -> usize {
        (self.header.length.max(self.header.payload)) as usize
    }
}

/// What was answered.
pub(super) struct Answered {
    /// The question's buffer, the answer's bytes in front.
    pub(super) buf: Option<IoBuf>,
    /// How many.
    pub(super) payload: usize,
    /// Bytes of the chunk.
    pub(super) total: usize,
}

struct Pending {
    question: Question,
    answer: oneshot::Sender<Result<Answered, AskError>>,
}

#[derive(Default)]
struct State {
    next: u64,
    pending: HashMap<u64, Pending>,
    /// Bytes that all of them ask for.
    bytes: usize,
    is_over: bool,
}

impl State {
    fn take(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.bytes -= pending.question.weight();
        Some(pending)
    }
}

pub(crate) struct Connection {
    stream: Fd,
    outbox: Outbox,
    state: Mutex<State>,
    /// A request ended, or all did.
    room: Event,
}

impl Connection {
    /// Serves a stream on this core after its handshake.
    pub(super) fn start(stream: Fd, incoming: Incoming, peer: Arc<Peer>) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            stream,
            outbox: Outbox::default(),
            state: Mutex::default(),
            room: Event::new(),
        });
        let (writer, at) = (connection.clone(), peer.clone());
        spawn(async move {
            if let Err(error) = writer.outbox.run(&writer.stream, None).await {
                tracing::debug!(target: "peer", peer = ?at, %error, "requests cannot be sent");
            }
            // The reader says what happened.
            hang_up(&writer.stream);
        })
        .detach();
        let reader = connection.clone();
        spawn(async move {
            match reader.receive(incoming).await {
                Ok(()) => tracing::info!(target: "peer", ?peer, "the connection was closed"),
                Err(error) => {
                    tracing::warn!(target: "peer", ?peer, %error, "the connection broke");
                    peer.failed();
                }
            }
            reader.end();
            peer.changes.fetch_add(1, Ordering::Relaxed);
        })
        .detach();
        connection
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.state).is_over
    }

    /// Ends it: whoever waits for an answer gets `Cut`.
    pub(super) fn end(&self) {
        let pending = {
            let mut state = lock(&self.state);
            state.is_over = true;
            state.bytes = 0;
            std::mem::take(&mut state.pending)
        };
        for one in pending.into_values() {
            let _ = one.answer.send(Err(AskError::Cut));
        }
        self.outbox.close();
        hang_up(&self.stream);
        self.room.notify(usize::MAX);
    }

    /// Asks; waits for room on the connection first. The caller sets the deadline, which the other node is told.
    pub(super) async fn ask(
        self: &Arc<Self>,
        mut question: Question,
        deadline: Duration,
    ) -> Result<Answered, AskError> {
        let mut header = question.header;
        header.timeout_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let weight = question.weight();
        let frame = question.frame.take();
        let (answer, answered) = oneshot::channel();
        let mut pending = Some(Pending { question, answer });
        loop {
            let listener = self.room.listen();
            {
                let mut state = lock(&self.state);
                if state.is_over {
                    return Err(AskError::Cut);
                }
                let has_bytes = weight <= SMALL || state.bytes + weight <= BYTES_MAX;
                let has_room =
                    state.pending.is_empty() || (state.pending.len() < REQUESTS_MAX && has_bytes);
                if has_room && let Some(pending) = pending.take() {
                    state.next += 1;
                    header.request = state.next;
                    state.bytes += weight;
                    state.pending.insert(header.request, pending);
                    break;
                }
            }
            listener.await;
        }
        let _asker = Asker {
            connection: self,
            header,
        };
        let out = match frame {
            Some(mut frame) => {
                frame[..HEADER_BYTES].copy_from_slice(&header.encode());
                Out::Whole(frame)
            }
            None => Out::Header(header.encode()),
        };
        self.outbox.push(out, None);
        answered.await.unwrap_or(Err(AskError::Cut))
    }

    /// Says something that has no answer.
    pub(super) fn tell(&self, header: &Header) {
        self.outbox.push(Out::Header(header.encode()), None);
    }

    async fn receive(&self, mut incoming: Incoming) -> Result<(), Broken> {
        while let Some(header) = incoming.header().await? {
            if header.kind != Kind::Answer {
                return Err(FrameError::Unknown.into());
            }
            let pending = lock(&self.state).take(header.request);
            let Some(pending) = pending else {
                // Cancelled meanwhile.
                incoming.skip(&header).await?;
                continue;
            };
            self.room.notify(usize::MAX);
            let Pending { question, answer } = pending;
            let asked = question.header;
            let payload = header.payload as usize;
            let is_fitting = header.key == asked.key
                && header.offset == asked.offset
                && payload <= asked.length as usize;
            if !is_fitting {
                let _ = answer.send(Err(AskError::Nonsense));
                return Err(FrameError::Bounds("an answer to another question").into());
            }
            let buf = match (question.buf, payload) {
                (Some(mut buf), 1..) => {
                    let rest = buf.split_off(payload);
                    // On an error the asker sees its sender dropped.
                    let mut buf = incoming.payload(&header, buf).await?;
                    join(&mut buf, rest);
                    Some(buf)
                }
                (buf, _) => buf,
            };
            // Nobody may wait any more.
            let _ = answer.send(meaning(header.status).map(|()| Answered {
                buf,
                payload,
                total: header.total as usize,
            }));
        }
        Ok(())
    }
}

/// Somebody waits for an answer; when they give up, the other node is told.
struct Asker<'c> {
    connection: &'c Connection,
    header: Header,
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        let left = lock(&self.connection.state).take(self.header.request);
        if left.is_some() {
            self.connection.room.notify(usize::MAX);
            let cancel = Header::new(Kind::Cancel, self.header.request);
            self.connection
                .outbox
                .push(Out::Header(cancel.encode()), None);
        }
    }
}
