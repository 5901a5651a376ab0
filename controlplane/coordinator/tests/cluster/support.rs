//! A coordinator with a server, nodes of it, and what they ask.

use fastcache_api::grpc::Node;
use fastcache_api::{
    ApiKey, Attr, Cred, Ino, Kind, NewInode, NsAnswer, NsOp, NsReply, NsRequest, OpId, SetAttr,
    Time,
};
use fastcache_coordinator::{Coordinator, Notice, Options, RemoteNamespace, Revocation, serve};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Nothing here takes this long unless it is broken.
pub const BOUND: Duration = Duration::from_secs(20);

pub struct Server {
    pub address: SocketAddr,
    pub coordinator: Coordinator,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start(dir: &Path, lease_ms: u64, at: Option<SocketAddr>) -> Server {
        Server::start_with_key(dir, lease_ms, at, None).await
    }

    pub async fn start_with_key(
        dir: &Path,
        lease_ms: u64,
        at: Option<SocketAddr>,
        key: Option<ApiKey>,
    ) -> Server {
        let lease = Duration::from_millis(lease_ms);
        let options = Options {
            lease,
            stale_after: 6 * lease,
            ..Options::default()
        };
        let since = Instant::now();
        let coordinator = loop {
            // The run before gives its store up within its sync round.
            match Coordinator::open(dir, options) {
                Ok(coordinator) => break coordinator,
                Err(e) if since.elapsed() > BOUND => panic!("{e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let at = at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let task = tokio::spawn(serve(coordinator.clone(), listener, key, shutdown));
        Server {
            address,
            coordinator,
            stop,
            task,
        }
    }

    pub async fn end(self) -> SocketAddr {
        self.stop.send(()).unwrap();
        within(self.task).await.unwrap().unwrap();
        self.address
    }

    pub async fn connect(&self, id: &str) -> (RemoteNamespace, mpsc::Receiver<Revocation>) {
        let address = self.address.to_string();
        let (remote, notices) = within(RemoteNamespace::connect(&address, named(id), None))
            .await
            .unwrap();
        let mut revocations = with_leases_taken(notices);
        let first = within(revocations.recv()).await.unwrap();
        assert!(first.everything);
        first.ack().await;
        (remote, revocations)
    }

    pub async fn http(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "coordinator")
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .unwrap();
        let answer = within(sender.send_request(request)).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        )
    }
}

/// The revocations among the notices; leases are taken at once, as by a data plane that is well.
pub fn with_leases_taken(mut notices: mpsc::Receiver<Notice>) -> mpsc::Receiver<Revocation> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(notice) = notices.recv().await {
            match notice {
                Notice::Lease(lease) => {
                    let _ = lease.heard.send(());
                }
                Notice::Asked(question) => {
                    // Odd ones have something.
                    let chunks = question.ino.0 % 2;
                    question.answer(chunks, chunks * 100).await;
                }
                Notice::Revoked(revocation) => {
                    if sender.send(revocation).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

pub fn acknowledge_all(mut revocations: mpsc::Receiver<Revocation>) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(revocation) = revocations.recv().await {
            revocation.ack().await;
        }
    })
}

/// A node that tells nothing but its name.
pub fn named(id: &str) -> Node {
    Node {
        peer_id: id.to_owned(),
        ..Default::default()
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("in time")
}

pub fn change(op: NsOp) -> NsRequest {
    static SEQ: AtomicU64 = AtomicU64::new(0);
    let seq = SEQ.fetch_add(1, Ordering::Relaxed);
    NsRequest {
        id: Some(OpId { client: 99, seq }),
        now: Time { sec: 5, nsec: 6 },
        op,
    }
}

pub fn read(op: NsOp) -> NsRequest {
    NsRequest {
        id: None,
        now: Time::default(),
        op,
    }
}

pub fn make(name: &str) -> NsOp {
    let new = NewInode {
        kind: Kind::File,
        mode: 0o644,
        rdev: 0,
        cred: Cred { uid: 1, gid: 1 },
        target: Vec::new(),
        chunk_size: 4096,
    };
    NsOp::Make {
        at: Some((Ino::ROOT, name.into())),
        new,
    }
}

pub fn lookup(name: &str) -> NsRequest {
    read(NsOp::Lookup {
        parent: Ino::ROOT,
        name: name.into(),
    })
}

pub fn chmod(ino: Ino, mode: u32) -> NsRequest {
    change(NsOp::SetAttr {
        ino,
        set: SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
    })
}

pub fn entry(reply: &NsReply) -> Attr {
    match &reply.result {
        Ok(NsAnswer::Entry(attr) | NsAnswer::Attr(attr)) => attr.clone(),
        other => panic!("no attributes: {other:?}"),
    }
}
