//! The line: one stream that carries the namespace operations of all who ask, answered in any order.
//!
//! It is opened with the first question, outlives sessions (each question names its own), and ends with the connection: all
//! who wait then are told, and the next question opens another one. Who goes away before the answer is forgotten; the
//! operation is done nevertheless.

use super::Client;
use crate::grpc::OPERATION_MAX;
use fastcache_api::grpc::{CallReply, CallRequest};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Questions that wait to be sent; who comes then waits.
const QUESTIONS_QUEUED: usize = 1024;

type Answer = Result<CallReply, Status>;

/// Asks, on the stream there is.
pub(super) struct Line {
    /// Where the stream is read: where the connection is, whoever asks.
    runtime: Handle,
    stream: Mutex<Option<(Arc<Asked>, AbortHandle)>>,
}

/// What was asked on one stream.
struct Asked {
    out: mpsc::Sender<CallRequest>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last_number: u64,
    askers: HashMap<u64, oneshot::Sender<Answer>>,
    /// The stream is over: so is what is asked on it.
    over: Option<Status>,
}

/// Somebody waits.
struct Asker<'a> {
    asked: &'a Asked,
    number: u64,
    answered: oneshot::Receiver<Answer>,
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        self.asked.waiting().askers.remove(&self.number);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let stream = self
            .stream
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reading)) = stream.take() {
            reading.abort();
        }
    }
}

impl Line {
    /// Whose stream is read on the runtime this is called in.
    pub(super) fn new() -> Line {
        Line {
            runtime: Handle::current(),
            stream: Mutex::default(),
        }
    }

    /// Asks, and waits for the answer, whose `reply` is postcard of an `NsReply`.
    ///
    /// # Errors
    /// What the coordinator refused the question with, or why the stream is over: then it may have been done.
    pub(super) async fn ask(&self, client: &Client, session: u64, request: Vec<u8>) -> Answer {
        if request.len() > OPERATION_MAX {
            return Err(Status::out_of_range("the question is too long"));
        }
        let asked = self.stream(client);
        let mut asker = asked.register()?;
        let request = CallRequest {
            session,
            request,
            number: asker.number,
        };
        // When nobody takes it any more, the answer says why.
        let _ = asked.out.send(request).await;
        match (&mut asker.answered).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::unavailable("the stream of calls is over")),
        }
    }

    /// The stream now, or a new one.
    fn stream(&self, client: &Client) -> Arc<Asked> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stream {
            Some((asked, _)) if asked.waiting().over.is_none() => Arc::clone(asked),
            _ => {
                let (out, outgoing) = mpsc::channel(QUESTIONS_QUEUED);
                let asked = Arc::new(Asked {
                    out,
                    waiting: Mutex::default(),
                });
                let ends = Ends(Arc::clone(&asked));
                let reading = self.runtime.spawn(read(client.clone(), ends, outgoing));
                *stream = Some((Arc::clone(&asked), reading.abort_handle()));
                asked
            }
        }
    }
}

impl Asked {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<Asker<'_>, Status> {
        let mut waiting = self.waiting();
        if let Some(status) = &waiting.over {
            return Err(status.clone());
        }
        let (answer, answered) = oneshot::channel();
        waiting.last_number += 1;
        let number = waiting.last_number;
        waiting.askers.insert(number, answer);
        Ok(Asker {
            asked: self,
            number,
            answered,
        })
    }

    fn answered(&self, reply: CallReply) {
        // It may have gone away.
        let Some(asker) = self.waiting().askers.remove(&reply.number) else {
            return;
        };
        let answer = match Code::from_i32(reply.code) {
            Code::Ok => Ok(reply),
            code => Err(Status::new(code, reply.message)),
        };
        let _ = asker.send(answer);
    }

    fn is_over(&self, status: &Status) {
        let askers = {
            let mut waiting = self.waiting();
            waiting.over.get_or_insert_with(|| status.clone());
            std::mem::take(&mut waiting.askers)
        };
        for (_, asker) in askers {
            let _ = asker.send(Err(status.clone()));
        }
    }
}

/// The stream is over when this is dropped, however that comes.
struct Ends(Arc<Asked>);

impl Drop for Ends {
    fn drop(&mut self) {
        let status = Status::unavailable("the stream of calls is over");
        self.0.is_over(&status);
    }
}

/// Opens the stream, and hands out the answers until it ends.
async fn read(mut client: Client, asked: Ends, outgoing: mpsc::Receiver<CallRequest>) {
    let mut answers = match client.calls(ReceiverStream::new(outgoing)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return asked.0.is_over(&status),
    };
    loop {
        match answers.message().await {
            Ok(Some(reply)) => asked.0.answered(reply),
            Ok(None) => {
                let status = Status::unavailable("the coordinator ended it");
                return asked.0.is_over(&status);
            }
            Err(status) => return asked.0.is_over(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(number: u64) -> CallReply {
        CallReply {
            reply: vec![7],
            number,
            ..Default::default()
        }
    }

    /// Answers find who asked, whatever else comes; who is gone is not waited for; the end is told to all, and to who comes after.
    #[tokio::test]
    async fn an_answer_is_for_who_asked() {
        let (out, _outgoing) = mpsc::channel(1);
        let asked = Asked {
            out,
            waiting: Mutex::default(),
        };
        let mut first = asked.register().unwrap();
        let mut second = asked.register().unwrap();
        let gone = asked.register().unwrap();
        let number = gone.number;
        drop(gone);
        for number in [number, 0, u64::MAX, second.number, second.number] {
            asked.answered(reply(number));
        }
        let answer = (&mut second.answered).await.unwrap();
        assert_eq!(answer.unwrap().reply, [7]);
        assert!(first.answered.try_recv().is_err(), "it was not answered");
        asked.is_over(&Status::unavailable("over"));
        let ended = (&mut first.answered).await.unwrap();
        assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
        let late = asked.register().err().unwrap();
        assert_eq!(late.code(), Code::Unavailable);
    }
}
