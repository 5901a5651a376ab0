//! The connections: how many there are, and how long one may do nothing.
//!
//! A client that is slow or gone must not hold what others need. So each wait for a client has an end: for the head
//! of a request (and so for an idle connection) [`HEAD_MAX`], for it to take bytes [`STALL_MAX`], for it to send a
//! body what `upload` says. When the end comes the connection is dropped, and with it the handler and all that the
//! handler held.

use super::router;
use super::starting::Front;
use crate::types::Starting;
use crate::{AgentConfig, Node};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// Connections at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// How long the head of a request may take to come, and so how long a connection may be idle.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// How long a client may take no bytes of an answer.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Bytes of a connection's buffers, and so the longest head of a request: a path of 4096 bytes, each of them
/// encoded, with room.
const BUFFER_MAX: usize = 64 << 10;
/// Pause after a connection could not be accepted (no file descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Seconds after which a silent peer is probed, so that one that is gone without a word is found.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A listening REST server.
pub struct RestServer {
    address: SocketAddr,
    front: Arc<Front>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RestServer {
    /// Says what the node is at from then on, until [`RestServer::open`]: for [`Node::start_telling`].
    pub fn telling(&self) -> impl Fn(Starting) + Send + Sync + use<> {
        let front = self.front.clone();
        move |what| front.tell(what)
    }

    /// The node has started: it is asked from now on.
    pub fn open(&self, node: Node) {
        self.front.open(router(node));
    }

    /// Where it listens: the port it got when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and waits, at most `bound`, until the requests that run have ended.
    pub async fn stop(self, bound: Duration) {
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout(bound, self.task).await.is_err() {
            abort.abort();
            tracing::warn!(target: "rest", ?bound, "requests still ran when REST had to stop");
        }
    }
}

/// [`listen`], of a node that has started.
pub async fn serve(node: Node) -> io::Result<RestServer> {
    let server = listen(node.config()).await?;
    server.open(node);
    Ok(server)
}

/// Listens on the configured address and port, and answers until stopped: that the node has not started yet, until
/// [`RestServer::open`]. Needs a tokio runtime.
pub async fn listen(config: &AgentConfig) -> io::Result<RestServer> {
    let at = SocketAddr::new(config.listen, config.port);
    let listener = TcpListener::bind(at).await.map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot listen on {at}: {e}; choose another --port, or stop who has it"),
        )
    })?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let front = Arc::new(Front::new(config));
    let task = tokio::spawn(accept(listener, front.clone(), stopped));
    Ok(RestServer {
        address,
        front,
        stop,
        task,
    })
}

/// Accepts until stopped; then ends when every connection has.
async fn accept(listener: TcpListener, front: Arc<Front>, mut stopped: oneshot::Receiver<()>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(BUFFER_MAX);
    loop {
        let accepted = async {
            // never closed
            let place = connections.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => match accepted {
                Some((place, Ok((stream, _)))) => (place, stream),
                Some((_, Err(error))) => {
                    tracing::warn!(target: "rest", %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                None => break,
            },
            _ = &mut stopped => break,
        };
        tune(&stream);
        let io = TokioIo::new(Hasty::new(stream));
        let front = front.clone();
        // For each request: a connection may have begun before the node had started.
        let service = service_fn(move |request: Request<Incoming>| {
            let front = front.clone();
            async move {
                match front.app() {
                    Some(app) => TowerToHyperService::new(app).call(request).await,
                    None => Ok(front.answer(&request)),
                }
            }
        });
        let connection = http.serve_connection(io, service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: "rest", %error, "a connection broke");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

fn tune(stream: &TcpStream) {
    let set = stream.set_nodelay(true).and_then(|()| {
        rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
        rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        Ok(())
    });
    if let Err(error) = set {
        tracing::debug!(target: "rest", %error, "a connection keeps its defaults");
    }
}

/// A stream whose writes fail when the other side takes nothing for [`STALL_MAX`].
struct Hasty {
    stream: TcpStream,
    /// Runs while a write waits.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Hasty {
    fn new(stream: TcpStream) -> Hasty {
        Hasty {
            stream,
            patience: None,
        }
    }

    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
        ready!(patience.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client took no bytes",
        )))
    }
}

impl AsyncRead for Hasty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Hasty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
