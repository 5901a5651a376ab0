//! An object store that misbehaves: a proxy on a free port in front of a real server, whose faults can be switched
//! while it runs.
//!
//! ```no_run
//! # use fastcache_tests::{Fault, FaultProxy, S3};
//! # use std::time::Duration;
//! let s3 = S3::start();
//! let proxy = FaultProxy::start(s3.port());
//! // give `proxy.endpoint()` to the node instead of `s3.endpoint()`, then:
//! proxy.set(Fault::Status { code: 500, share: 0.3, retry_after_s: None });   // 30 % of all requests
//! proxy.set_where(Fault::Corrupt, |r| r.is_get() && r.path.contains("/chunks/"));
//! proxy.set(Fault::Refuse);                                                  // the server is gone
//! proxy.set(Fault::Pass);                                                    // and back, on the same port
//! ```
//!
//! A fault holds for requests that are read from then on. Connections stay open from one fault to another, except
//! that [`Fault::Refuse`] ends them all; a request that was swallowed by [`Fault::BlackHole`] is never answered, also
//! when the fault is over. Each request goes to the server on a connection of its own, unchanged but for
//! hop-by-hop headers: signatures stay right. Dropped, it ends every connection.

mod http;

use http::Message;
use rand::Rng as _;
use rustix::net::{AddressFamily, SocketAddrV4, SocketType, sockopt};
use std::fmt;
use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections at once; more are ended at once. A node opens some tens.
const CONNECTIONS_MAX: usize = 512;
/// Waiting in the kernel to be accepted.
const BACKLOG: i32 = 128;
/// Requests remembered by [`FaultProxy::requests`].
const REQUESTS_MAX: usize = 100_000;
/// A body that is dribbled out goes in so many parts a second.
const PARTS_PER_SECOND: u32 = 20;

/// What goes wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Fault {
    /// Nothing: requests and answers pass unchanged.
    #[default]
    Pass,
    /// Nobody listens: connections are refused, the open ones are reset. Always for every request.
    Refuse,
    /// Half-dead: connections are accepted and requests read, and nothing is ever answered.
    BlackHole,
    /// A share (0 to 1) of the requests waits so long before it is passed on.
    Delay {
        /// How long.
        delay: Duration,
        /// Of the requests, 0 to 1.
        share: f64,
    },
    /// Bodies of answers come at this pace.
    Slow {
        /// Bytes a second.
        bytes_per_second: u64,
    },
    /// A share of the requests never reaches the server and is answered with this status and an XML error as S3 has
    /// it (503 and 429 say `SlowDown`, others `InternalError`).
    Status {
        /// HTTP status.
        code: u16,
        /// Of the requests, 0 to 1.
        share: f64,
        /// Header `Retry-After`, seconds.
        retry_after_s: Option<u32>,
    },
    /// A share of the requests is answered by a reset connection, before the server has seen it.
    Reset {
        /// Of the requests, 0 to 1.
        share: f64,
    },
    /// The connection ends in the middle of the answer's body: the length that was announced does not come.
    Truncate,
    /// The second half of the answer's body is missing and its `Content-Length` says so: a well-formed, wrong answer.
    Shorten,
    /// One byte in the middle of the answer's body is another.
    Corrupt,
    /// The request reaches the server and takes effect, and the connection ends before the answer: the client cannot
    /// tell.
    LoseAnswer,
}

/// A request, as far as a fault may choose by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// When it was read.
    pub at: Instant,
    /// `GET`, `PUT`, …
    pub method: String,
    /// Path and query, as they were sent.
    pub path: String,
    /// Header `Range`.
    pub range: Option<String>,
    /// Header `Authorization`: whose credentials were used.
    pub authorization: Option<String>,
    /// The customer's key for encryption that came with it (SSE-C of S3, the same of Azure).
    pub customer_key: Option<String>,
}

impl SeenRequest {
    /// Whether it reads an object or a listing.
    pub fn is_get(&self) -> bool {
        self.method == "GET"
    }

    /// Whether it writes an object.
    pub fn is_put(&self) -> bool {
        self.method == "PUT"
    }
}

type Chooser = Box<dyn Fn(&SeenRequest) -> bool + Send + Sync>;

/// The proxy, for as long as this value lives.
pub struct FaultProxy {
    shared: Arc<Shared>,
}

struct Shared {
    port: u16,
    upstream: u16,
    /// Bound and never listening: keeps the port ours while connections are refused.
    _placeholder: OwnedFd,
    listener: Mutex<Option<Arc<TcpListener>>>,
    fault: Mutex<(Fault, Option<Chooser>)>,
    connections: Mutex<Vec<(u64, TcpStream)>>,
    next_connection: AtomicU64,
    requests: Mutex<Vec<SeenRequest>>,
    hurt: AtomicU64,
    is_over: AtomicBool,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy")
            .field("port", &self.shared.port)
            .field("upstream", &self.shared.upstream)
            .field("fault", &lock(&self.shared.fault).0)
            .finish_non_exhaustive()
    }
}

impl FaultProxy {
    /// Starts one in front of the server on this port of 127.0.0.1. Everything passes until told otherwise.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn start(upstream: u16) -> FaultProxy {
        let placeholder = reusable_socket(0).unwrap_or_else(|e| panic!("no socket: {e}"));
        let port = rustix::net::getsockname(&placeholder)
            .and_then(SocketAddrV4::try_from)
            .unwrap_or_else(|e| panic!("no port: {e}"))
            .port();
        let proxy = FaultProxy {
            shared: Arc::new(Shared {
                port,
                upstream,
                _placeholder: placeholder,
                listener: Mutex::new(None),
                fault: Mutex::new((Fault::Pass, None)),
                connections: Mutex::new(Vec::new()),
                next_connection: AtomicU64::new(0),
                requests: Mutex::new(Vec::new()),
                hurt: AtomicU64::new(0),
                is_over: AtomicBool::new(false),
            }),
        };
        proxy.shared.listen();
        proxy
    }

    /// Its port on 127.0.0.1: the same for as long as it lives, also through [`Fault::Refuse`].
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.shared.port)
    }

    /// From now on every request meets this fault.
    pub fn set(&self, fault: Fault) {
        self.switch(fault, None);
    }

    /// From now on the requests that are chosen meet this fault, and others pass. [`Fault::Refuse`] cannot choose: it
    /// meets every connection.
    pub fn set_where(
        &self,
        fault: Fault,
        choose: impl Fn(&SeenRequest) -> bool + Send + Sync + 'static,
    ) {
        self.switch(fault, Some(Box::new(choose)));
    }

    /// What it does now.
    pub fn fault(&self) -> Fault {
        lock(&self.shared.fault).0.clone()
    }

    /// Every request read since the start, or since [`FaultProxy::forget`], in order (the first 100,000).
    pub fn requests(&self) -> Vec<SeenRequest> {
        lock(&self.shared.requests).clone()
    }

    /// Forgets the requests and the count of [`FaultProxy::hurt`].
    pub fn forget(&self) {
        lock(&self.shared.requests).clear();
        self.shared.hurt.store(0, Ordering::Relaxed);
    }

    /// How many requests met a fault: a test can see that its fault has happened.
    pub fn hurt(&self) -> u64 {
        self.shared.hurt.load(Ordering::Relaxed)
    }

    fn switch(&self, fault: Fault, choose: Option<Chooser>) {
        let is_refusing = fault == Fault::Refuse;
        *lock(&self.shared.fault) = (fault, choose);
        if is_refusing {
            self.shared.unlisten();
            self.shared.end_connections();
        } else if lock(&self.shared.listener).is_none() {
            self.shared.listen();
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.unlisten();
        self.shared.end_connections();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bound socket whose port others of the same kind may bind, too.
fn reusable_socket(port: u16) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}

impl Shared {
    fn listen(self: &Arc<Self>) {
        let socket = reusable_socket(self.port)
            .and_then(|s| rustix::net::listen(&s, BACKLOG).map(|()| s))
            .unwrap_or_else(|e| panic!("cannot listen on port {}: {e}", self.port));
        let listener = Arc::new(TcpListener::from(socket));
        *lock(&self.listener) = Some(listener.clone());
        let shared = self.clone();
        std::thread::spawn(move || {
            // Ends when `unlisten` shuts the socket down.
            while let Ok((stream, _)) = listener.accept() {
                shared.clone().adopt(stream);
            }
        });
    }

    fn unlisten(&self) {
        if let Some(listener) = lock(&self.listener).take() {
            let _ = rustix::net::shutdown(listener.as_fd(), rustix::net::Shutdown::Both);
        }
    }

    fn end_connections(&self) {
        for (_, stream) in lock(&self.connections).drain(..) {
            reset(&stream);
        }
    }

    fn adopt(self: Arc<Self>, stream: TcpStream) {
        let Ok(handle) = stream.try_clone() else {
            return;
        };
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        {
            let mut connections = lock(&self.connections);
            let is_over = self.is_over.load(Ordering::Relaxed);
            if is_over || connections.len() >= CONNECTIONS_MAX {
                return;
            }
            connections.push((id, handle));
        }
        if lock(&self.fault).0 == Fault::Refuse {
            self.end_connections();
        }
        std::thread::spawn(move || {
            // An error is the end of this connection, for the client to see.
            let _ = self.serve(&stream);
            lock(&self.connections).retain(|(other, _)| *other != id);
        });
    }

    fn serve(&self, client: &TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client);
        let mut writer = client;
        while let Some(request) = Message::read_request(&mut reader, &mut writer)? {
            let method = request.word(0).to_owned();
            let fault = self.note(&request);
            let mut answer = match &fault {
                Fault::BlackHole => {
                    // Whatever else is sent is read and forgotten until the client gives up.
                    std::io::copy(&mut reader, &mut std::io::sink())?;
                    return Ok(());
                }
                // A request can still be read from a connection that was shut down for reading.
                Fault::Reset { .. } | Fault::Refuse => {
                    reset(client);
                    return Ok(());
                }
                Fault::Status {
                    code,
                    retry_after_s,
                    ..
                } => refusal(*code, *retry_after_s, &method),
                Fault::Delay { delay, .. } => {
                    std::thread::sleep(*delay);
                    self.pass_on(request, &method)?
                }
                _ => self.pass_on(request, &method)?,
            };
            if fault == Fault::LoseAnswer {
                reset(client);
                return Ok(());
            }
            match fault {
                Fault::Corrupt => {
                    let middle = answer.body.len() / 2;
                    if let Some(byte) = answer.body.get_mut(middle) {
                        *byte ^= 0x20;
                    }
                }
                Fault::Shorten if method != "HEAD" => {
                    answer.body.truncate(answer.body.len() / 2);
                    let length = answer.body.len().to_string();
                    answer.set("Content-Length", &length);
                }
                _ => {}
            }
            writer.write_all(&answer.head())?;
            match fault {
                Fault::Truncate => {
                    writer.write_all(&answer.body[..answer.body.len() / 2])?;
                    return Ok(());
                }
                Fault::Slow { bytes_per_second } => {
                    dribble(writer, &answer.body, bytes_per_second)?;
                }
                _ => writer.write_all(&answer.body)?,
            }
        }
        Ok(())
    }

    /// Remembers a request and decides what it meets.
    fn note(&self, request: &Message) -> Fault {
        let seen = SeenRequest {
            at: Instant::now(),
            method: request.word(0).to_owned(),
            path: request.word(1).to_owned(),
            range: request.header("range").map(str::to_owned),
            authorization: request.header("authorization").map(str::to_owned),
            customer_key: [
                "x-amz-server-side-encryption-customer-key",
                "x-ms-encryption-key",
            ]
            .iter()
            .find_map(|name| request.header(name))
            .map(str::to_owned),
        };
        let fault = {
            let current = lock(&self.fault);
            let is_chosen = current.1.as_ref().is_none_or(|choose| choose(&seen));
            let share = match current.0 {
                Fault::Status { share, .. }
                | Fault::Reset { share }
                | Fault::Delay { share, .. } => share,
                _ => 1.0,
            };
            if is_chosen && rand::rng().random::<f64>() < share {
                current.0.clone()
            } else {
                Fault::Pass
            }
        };
        if fault != Fault::Pass {
            self.hurt.fetch_add(1, Ordering::Relaxed);
        }
        let mut requests = lock(&self.requests);
        if requests.len() < REQUESTS_MAX {
            requests.push(seen);
        }
        fault
    }

    fn pass_on(&self, mut request: Message, method: &str) -> std::io::Result<Message> {
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.upstream))?;
        server.set_nodelay(true)?;
        request.set("Connection", "close");
        server.write_all(&request.head())?;
        server.write_all(&request.body)?;
        let mut answer = Message::read_response(&mut BufReader::new(server), method)?;
        answer.remove("connection");
        answer.remove("keep-alive");
        // An HTTP/1.0 server's answer would end the client's connection.
        answer.first = answer.first.replacen("HTTP/1.0", "HTTP/1.1", 1);
        Ok(answer)
    }
}

/// Ends a connection with RST, so that the client sees an error and not an end.
fn reset(stream: &TcpStream) {
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    // Only closing sends the RST; the reader of this connection holds the descriptor, so it is woken first.
    let _ = stream.shutdown(Shutdown::Read);
}

fn refusal(code: u16, retry_after_s: Option<u32>, method: &str) -> Message {
    let (reason, name) = match code {
        503 => ("Service Unavailable", "SlowDown"),
        429 => ("Too Many Requests", "SlowDown"),
        500 => ("Internal Server Error", "InternalError"),
        _ => ("Error", "InternalError"),
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{name}</Code><Message>by order of a \
         test</Message></Error>"
    );
    let mut message = Message {
        first: format!("HTTP/1.1 {code} {reason}"),
        headers: vec![("Content-Type".to_owned(), "application/xml".to_owned())],
        body: body.into_bytes(),
    };
    message.set("Content-Length", &message.body.len().to_string());
    if let Some(seconds) = retry_after_s {
        message.set("Retry-After", &seconds.to_string());
    }
    if method == "HEAD" {
        message.body.clear();
    }
    message
}

fn dribble(mut to: &TcpStream, body: &[u8], bytes_per_second: u64) -> std::io::Result<()> {
    let part =
        usize::try_from(bytes_per_second / u64::from(PARTS_PER_SECOND)).unwrap_or(usize::MAX);
    for part in body.chunks(part.max(1)) {
        std::thread::sleep(Duration::from_secs(1) / PARTS_PER_SECOND);
        to.write_all(part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
