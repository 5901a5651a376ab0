//! The namespace operations of one node, on one stream: read as they come, answered as they are done.
//!
//! An operation is begun where it is read: most are done then, and their answer goes out with no other task woken. What has to
//! wait (for another node, for its turn) waits beside the others. No more is read while [`CALLS_AT_ONCE`] wait: that the node
//! waits for its window then is the backpressure.

use super::OPERATION_MAX;
use crate::Coordinator;
use fastcache_api::grpc::{CallReply, CallRequest, Kept};
use fastcache_api::{NsAnswer, NsReply};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio_stream::wrappers::WatchStream;
use tonic::{Code, Status};

/// Operations of one node that wait at once: as many as its data plane has in flight on a lane. What they wait for may be
/// an operation of this node behind them (a commit), so that it should never be reached.
const CALLS_AT_ONCE: usize = 16_384;

/// Bytes of an answer that has no list.
const SHORT: usize = 256;
/// Bytes of an entry of a listing without its name: numbers travel in as many bytes as they need.
const ENTRY: usize = 128;

/// The answers for one node. Ends when the node asks no more, or the coordinator ends, once all is answered.
pub(crate) struct Answers<S> {
    coordinator: Coordinator,
    asked: S,
    stopping: WatchStream<bool>,
    is_over: bool,
    waiting: FuturesUnordered<BoxFuture<'static, CallReply>>,
}

impl<S> Answers<S> {
    /// To what comes on `asked`.
    pub(crate) fn new(coordinator: Coordinator, asked: S) -> Answers<S> {
        Answers {
            stopping: WatchStream::new(coordinator.stopping()),
            coordinator,
            asked,
            is_over: false,
            waiting: FuturesUnordered::new(),
        }
    }
}

impl<S> Stream for Answers<S>
where
    S: Stream<Item = Result<CallRequest, Status>> + Unpin,
{
    type Item = Result<CallReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(Some(reply)) = this.waiting.poll_next_unpin(cx) {
                return Poll::Ready(Some(Ok(reply)));
            }
            while !this.is_over
                && let Poll::Ready(stopping) = this.stopping.poll_next_unpin(cx)
            {
                this.is_over = stopping.unwrap_or(true);
            }
            if this.is_over && this.waiting.is_empty() {
                return Poll::Ready(None);
            }
            if this.is_over || this.waiting.len() >= CALLS_AT_ONCE {
                return Poll::Pending;
            }
            match this.asked.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => {
                    let mut call = answer(this.coordinator.clone(), request).boxed();
                    // When it has to wait, it is polled again at once, with a waker that does something.
                    match call.poll_unpin(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(reply) => return Poll::Ready(Some(Ok(reply))),
                        Poll::Pending => this.waiting.push(call),
                    }
                }
                // Who asked is gone.
                Poll::Ready(Some(Err(_)) | None) => this.is_over = true,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// One operation. What is wrong with it is said in the answer: the stream goes on.
async fn answer(coordinator: Coordinator, request: CallRequest) -> CallReply {
    let number = request.number;
    match reply(&coordinator, &request).await {
        Ok((reply, kept)) => CallReply {
            reply,
            number,
            code: Code::Ok.into(),
            message: String::new(),
            kept,
            stable: Some(coordinator.stable()),
        },
        Err(status) => CallReply {
            number,
            code: status.code().into(),
            message: status.message().to_owned(),
            ..CallReply::default()
        },
    }
}

async fn reply(
    coordinator: &Coordinator,
    request: &CallRequest,
) -> Result<(Vec<u8>, Option<Kept>), Status> {
    let asked = postcard::from_bytes(&request.request)
        .map_err(|e| Status::invalid_argument(format!("not a namespace request: {e}")))?;
    let (reply, kept) = coordinator.call_kept(request.session, asked).await?;
    let room = Vec::with_capacity(length_of(&reply));
    let reply = postcard::to_extend(&reply, room).map_err(|e| Status::internal(e.to_string()))?;
    if reply.len() > OPERATION_MAX {
        return Err(Status::out_of_range("the answer is too long"));
    }
    Ok((reply, kept))
}

/// About how long an answer is, bytes: one that tells of very many would be copied again and again while it grows.
fn length_of(reply: &NsReply) -> usize {
    match &reply.result {
        Ok(NsAnswer::Dir { entries, .. }) => {
            let names: usize = entries.iter().map(|entry| entry.name.len()).sum();
            SHORT + names + entries.len() * ENTRY
        }
        _ => SHORT,
    }
}
