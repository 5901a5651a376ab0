//! The threads that serve connections, each with a runtime of its own: what comes on a connection is read, done and answered
//! with no other thread woken. For one that sleeps, that would take longer than most questions do.

use axum::Router;
use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};

/// One thread for so many processors: the others are for what is done beside (history, REST of others, the disk).
const PROCESSORS_EACH: usize = 2;
/// Most threads: changes are made one at a time, and reads take microseconds.
const THREADS_MAX: usize = 16;

type Accepted = (std::net::TcpStream, SocketAddr);

/// The threads. They end when this is dropped.
pub(super) struct Threads {
    all: Vec<Thread>,
    next: usize,
    /// True: no connection takes another request.
    ending: watch::Sender<bool>,
}

struct Thread {
    connections: mpsc::UnboundedSender<Accepted>,
    /// Dropped: it ends at once.
    may_run: oneshot::Sender<()>,
    /// Closed when it has ended.
    ended: oneshot::Receiver<()>,
}

impl Threads {
    /// For connections that came to `at`.
    ///
    /// # Errors
    /// When there can be no more threads or open files.
    pub(super) fn start(router: &Router, at: SocketAddr) -> io::Result<Threads> {
        let processors = available_parallelism().map_or(1, NonZero::get);
        let count = (processors / PROCESSORS_EACH).clamp(1, THREADS_MAX);
        let ending = watch::Sender::new(false);
        let all = (0..count).map(|_| start(router.clone(), at, ending.subscribe()));
        Ok(Threads {
            all: all.collect::<io::Result<_>>()?,
            next: 0,
            ending,
        })
    }

    /// Hands a connection to the next one. To be called where it was accepted.
    pub(super) fn take(&mut self, stream: TcpStream, from: SocketAddr) {
        self.next = (self.next + 1) % self.all.len();
        match stream.into_std() {
            // It ends with this only.
            Ok(stream) => drop(self.all[self.next].connections.send((stream, from))),
            Err(error) => {
                tracing::warn!(target: "registry", %error, %from, "a connection is lost");
            }
        }
    }

    /// Ends them in order: requests are answered within this time, then connections are closed.
    pub(super) async fn end(self, within: Duration) {
        self.ending.send_replace(true);
        let until = tokio::time::Instant::now() + within;
        for thread in self.all {
            let mut ended = thread.ended;
            if tokio::time::timeout_at(until, &mut ended).await.is_err() {
                drop(thread.may_run);
                // What a thread does now (a change, a read) is a matter of milliseconds.
                let _ = ended.await;
            }
        }
    }
}

fn start(router: Router, at: SocketAddr, mut ending: watch::Receiver<bool>) -> io::Result<Thread> {
    let (connections, accepted) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    let (may_run, must_end) = oneshot::channel::<()>();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("nodes".to_owned())
        .spawn(move || {
            let incoming = Incoming { at, accepted };
            let served = axum::serve(incoming, router).with_graceful_shutdown(async move {
                // Without a sender everything is over.
                let _ = ending.wait_for(|is_ending| *is_ending).await;
            });
            runtime.block_on(async {
                tokio::select! {
                    _ = served => {}
                    _ = must_end => {}
                }
            });
            drop(runtime);
            drop(end);
        })?;
    Ok(Thread {
        connections,
        may_run,
        ended,
    })
}

/// The connections of one thread.
struct Incoming {
    at: SocketAddr,
    accepted: mpsc::UnboundedReceiver<Accepted>,
}

impl Listener for Incoming {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        while let Some((stream, from)) = self.accepted.recv().await {
            match TcpStream::from_std(stream) {
                Ok(stream) => return (stream, from),
                Err(error) => {
                    tracing::warn!(target: "registry", %error, %from, "a connection is lost");
                }
            }
        }
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }
}
