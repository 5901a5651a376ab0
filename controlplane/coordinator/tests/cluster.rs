//! What a coordinator promises its nodes, over real connections on loopback: a change is answered when no other node
//! can still be using what it replaced; REST says what there is.

#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_api::grpc::Node;
use fastcache_api::locks::{Lock, LockAnswer, LockOp};
use fastcache_api::{
    ApiKey, Attr, Commit, Cred, Errno, Ino, Kind, NewInode, NsAnswer, NsOp, NsReply, NsRequest,
    OpId, SetAttr, Time, Version,
};
use fastcache_coordinator::{
    Coordinator, Held, Namespace, Notice, Options, RemoteError, RemoteNamespace, Revocation, serve,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Nothing here takes this long unless it is broken.
const BOUND: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    coordinator: Coordinator,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(dir: &Path, lease_ms: u64, at: Option<SocketAddr>) -> Server {
        Server::start_with_key(dir, lease_ms, at, None).await
    }

    async fn start_with_key(
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

    async fn end(self) -> SocketAddr {
        self.stop.send(()).unwrap();
        within(self.task).await.unwrap().unwrap();
        self.address
    }

    async fn connect(&self, id: &str) -> (RemoteNamespace, mpsc::Receiver<Revocation>) {
        let address = self.address.to_string();
        let node = Node {
            peer_id: id.to_owned(),
            ..Default::default()
        };
        let (remote, notices) = within(RemoteNamespace::connect(&address, node, None))
            .await
            .unwrap();
        let mut revocations = with_leases_taken(notices);
        let first = within(revocations.recv()).await.unwrap();
        assert!(first.everything);
        first.ack().await;
        (remote, revocations)
    }

    async fn http(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value, String) {
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
fn with_leases_taken(mut notices: mpsc::Receiver<Notice>) -> mpsc::Receiver<Revocation> {
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

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("in time")
}

fn change(op: NsOp) -> NsRequest {
    static SEQ: AtomicU64 = AtomicU64::new(0);
    let seq = SEQ.fetch_add(1, Ordering::Relaxed);
    NsRequest {
        id: Some(OpId { client: 99, seq }),
        now: Time { sec: 5, nsec: 6 },
        op,
    }
}

fn read(op: NsOp) -> NsRequest {
    NsRequest {
        id: None,
        now: Time::default(),
        op,
    }
}

fn make(name: &str) -> NsOp {
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

fn lookup(name: &str) -> NsRequest {
    read(NsOp::Lookup {
        parent: Ino::ROOT,
        name: name.into(),
    })
}

fn chmod(ino: Ino, mode: u32) -> NsRequest {
    change(NsOp::SetAttr {
        ino,
        set: SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
    })
}

fn entry(reply: &NsReply) -> Attr {
    match &reply.result {
        Ok(NsAnswer::Entry(attr) | NsAnswer::Attr(attr)) => attr.clone(),
        other => panic!("no attributes: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_waits_until_the_other_node_has_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    let (a, mut a_revoked) = server.connect("a").await;
    // Alone: no end of leases.
    let made = a.call(change(make("f"))).await;
    let f = entry(&made).ino;
    assert_eq!(made.lease_ms, None);
    assert_eq!(a.call(lookup("f")).await.lease_ms, None);

    // The second node: the first forgets everything before the second has its session.
    let second = tokio::spawn({
        let address = server.address.to_string();
        let node = Node {
            peer_id: "b".to_owned(),
            ..Default::default()
        };
        async move {
            RemoteNamespace::connect(&address, node, None)
                .await
                .unwrap()
        }
    });
    let all = within(a_revoked.recv()).await.unwrap();
    assert!(all.everything && !second.is_finished());
    all.ack().await;
    let (b, b_notices) = within(second).await.unwrap();
    let mut b_revoked = with_leases_taken(b_notices);
    within(b_revoked.recv()).await.unwrap().ack().await;

    // b reads, a changes: a waits for b.
    let seen = b.call(lookup("f")).await;
    assert_eq!(entry(&seen).mode, 0o644);
    assert!(seen.lease_ms.is_some_and(|ms| ms > 5_000 && ms <= 10_000));
    let a = std::sync::Arc::new(a);
    let changing = tokio::spawn({
        let a = std::sync::Arc::clone(&a);
        async move { a.call(chmod(f, 0o600)).await }
    });
    let revoked = within(b_revoked.recv()).await.unwrap();
    assert_eq!((revoked.everything, &revoked.inos), (false, &vec![f]));
    assert_eq!(revoked.touched[0].mode, 0o600);
    assert!(revoked.entries.is_empty());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!changing.is_finished());
    revoked.ack().await;
    assert_eq!(entry(&within(changing).await.unwrap()).mode, 0o600);
    assert_eq!(entry(&b.call(lookup("f")).await).mode, 0o600);

    // An absent name is leased, too, and a's own leases are not in its way.
    assert_eq!(b.call(lookup("g")).await.result, Err(Errno::ENOENT));
    assert_eq!(a.call(lookup("g")).await.result, Err(Errno::ENOENT));
    let changing = tokio::spawn({
        let a = std::sync::Arc::clone(&a);
        async move { a.call(change(make("g"))).await }
    });
    let revoked = within(b_revoked.recv()).await.unwrap();
    assert_eq!(revoked.entries, vec![(Ino::ROOT, b"g".to_vec())]);
    assert_eq!(revoked.inos, vec![Ino::ROOT]);
    revoked.ack().await;
    let g = entry(&within(changing).await.unwrap()).ino;
    assert_eq!(entry(&b.call(lookup("g")).await).ino, g);

    // What another node may have open is not reaped under it.
    let unlink = NsOp::Unlink {
        parent: Ino::ROOT,
        name: b"g".to_vec(),
    };
    let changing = tokio::spawn({
        let a = std::sync::Arc::clone(&a);
        async move { a.call(change(unlink)).await }
    });
    within(b_revoked.recv()).await.unwrap().ack().await;
    within(changing).await.unwrap().result.unwrap();
    b.call(read(NsOp::GetAttr { ino: g })).await.result.unwrap();
    a.call(change(NsOp::Reap { inos: vec![g] }))
        .await
        .result
        .unwrap();
    a.call(change(NsOp::ReapAllBut { open: Vec::new() }))
        .await
        .result
        .unwrap();
    b.call(read(NsOp::GetAttr { ino: g })).await.result.unwrap();
    assert_eq!(server.coordinator.stats().revocations_unanswered, 0);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_goes_when_every_node_that_may_have_it_open_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 1000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let acking = acknowledge_all(a_revoked);
    let (b, mut b_revoked) = server.connect("b").await;
    let a = std::sync::Arc::new(a);
    let orphan = async |name: &str| {
        let ino = entry(&a.call(change(make(name))).await).ino;
        let unlink = NsOp::Unlink {
            parent: Ino::ROOT,
            name: name.into(),
        };
        a.call(change(unlink)).await.result.unwrap();
        ino
    };
    let reap = |ino| {
        let a = std::sync::Arc::clone(&a);
        tokio::spawn(async move { a.call(change(NsOp::Reap { inos: vec![ino] })).await })
    };
    let is_there = async |ino| {
        let asked = a.call(read(NsOp::CloudRefs { ino, only: None }));
        asked.await.result.is_ok()
    };
    // Open on b, which holds no lease on it.
    let open = orphan("open").await;
    let reaping = reap(open);
    let asked = within(b_revoked.recv()).await.unwrap();
    assert_eq!((&asked.orphans, asked.inos.len()), (&vec![open], 0));
    let held = NsOp::Open {
        ino: open,
        write: false,
    };
    b.call(read(held)).await.result.unwrap();
    asked.ack().await;
    within(reaping).await.unwrap().result.unwrap();
    assert!(is_there(open).await);
    let reaping = reap(open);
    let asked = within(b_revoked.recv()).await.unwrap();
    assert_eq!(asked.orphans, [open]);
    assert!(!reaping.is_finished());
    // Closed by now.
    asked.ack().await;
    within(reaping).await.unwrap().result.unwrap();
    assert!(!is_there(open).await);
    // A node that is away has everything open, until it is dropped.
    let last = orphan("last").await;
    drop((b, b_revoked));
    let since = Instant::now();
    while is_there(last).await {
        within(reap(last)).await.unwrap().result.unwrap();
        assert!(since.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        since.elapsed() > Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    // One that nobody asks for, because its node was killed, is found.
    let nobodys = orphan("nobodys").await;
    while is_there(nobodys).await {
        assert!(since.elapsed() < 2 * BOUND);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_delays_by_its_lease_and_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 1000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let acking = acknowledge_all(a_revoked);
    let (b, mut b_revoked) = server.connect("b").await;
    let f = entry(&a.call(change(make("f"))).await).ino;
    b.call(lookup("f")).await.result.unwrap();
    let since = Instant::now();
    assert_eq!(entry(&a.call(chmod(f, 0o600)).await).mode, 0o600);
    let waited = since.elapsed();
    assert!(
        waited > Duration::from_millis(700) && waited < Duration::from_secs(5),
        "{waited:?}"
    );
    // It is told, comes back under a new session, and sees the change.
    let revoked = within(b_revoked.recv()).await.unwrap();
    assert_eq!(revoked.inos, vec![f]);
    let all = within(b_revoked.recv()).await.unwrap();
    assert!(all.everything);
    all.ack().await;
    assert_eq!(entry(&within(b.call(lookup("f"))).await).mode, 0o600);
    assert_eq!(server.coordinator.stats().revocations_unanswered, 1);
    drop(revoked);
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_node_that_has_left() {
    const LEASE: Duration = Duration::from_secs(30);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 30_000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let acking = acknowledge_all(a_revoked);
    let (b, b_revoked) = server.connect("b").await;
    let (f, g) = (
        entry(&a.call(change(make("f"))).await).ino,
        entry(&a.call(change(make("g"))).await).ino,
    );
    let lock = Lock {
        start: 0,
        end: 9,
        is_exclusive: true,
        owner: 1,
        pid: 1,
        is_flock: false,
    };
    let set = |waits| LockOp::Set {
        ino: g,
        lock,
        waits,
    };
    b.call(lookup("f")).await.result.unwrap();
    assert_eq!(b.lock(&set(false)).await, Ok(LockAnswer::Done));
    // Under way when it leaves, and not acknowledged.
    let since = Instant::now();
    let address = server.address;
    let changing = tokio::spawn(async move {
        let reply = a.call(chmod(f, 0o600)).await;
        (a, reply)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!changing.is_finished());
    b.leave().await;
    let (a, reply) = within(changing).await.unwrap();
    assert_eq!(entry(&reply).mode, 0o600);
    // Begun afterwards.
    assert_eq!(entry(&within(a.call(chmod(g, 0o600))).await).mode, 0o600);
    assert_eq!(within(a.lock(&set(true))).await, Ok(LockAnswer::Done));
    assert!(since.elapsed() < LEASE / 2, "{:?}", since.elapsed());
    assert_eq!(b.call(lookup("f")).await.result, Err(Errno::EIO));
    assert_eq!(server.coordinator.stats().peers_live, 2, "it may be back");
    // And it is.
    drop((b, b_revoked));
    let (b, _b_revoked) = server.connect("b").await;
    assert_eq!(entry(&within(b.call(lookup("f"))).await).mode, 0o600);
    assert_eq!(server.end().await, address);
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_to_write_wait_for_one_hand_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    let (a, mut a_revoked) = server.connect("a").await;
    let second = async { within(a_revoked.recv()).await.unwrap().ack().await };
    let ((b, b_revoked), ()) = tokio::join!(server.connect("b"), second);
    let acking = acknowledge_all(b_revoked);
    let (a, b) = (std::sync::Arc::new(a), std::sync::Arc::new(b));
    let f = entry(&a.call(change(make("f"))).await).ino;
    let open = |node: &std::sync::Arc<RemoteNamespace>| {
        let node = std::sync::Arc::clone(node);
        let open = read(NsOp::Open {
            ino: f,
            write: true,
        });
        tokio::spawn(async move { node.call(open).await })
    };
    let quiet = Duration::from_millis(200);
    let first = open(&b);
    let asked = within(a_revoked.recv()).await.unwrap();
    assert_eq!(asked.hand_over, [f]);
    // The second one of that node is not another question: a may have the lease again when it comes to it.
    let second = open(&b);
    assert!(tokio::time::timeout(quiet, a_revoked.recv()).await.is_err());
    // Asked for anew meanwhile, it is another lease; when that is handed over, whoever waits for the one before goes on.
    within(open(&a)).await.unwrap().result.unwrap();
    let third = open(&b);
    let again = within(a_revoked.recv()).await.unwrap();
    assert_eq!(again.hand_over, [f]);
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished());
    again.ack().await;
    for opened in [first, second, third] {
        within(opened).await.unwrap().result.unwrap();
    }
    asked.ack().await;
    // The late acknowledgement takes nothing away: b may write, a may not.
    let version = match b
        .call(change(NsOp::AllocVersions { count: 1 }))
        .await
        .result
    {
        Ok(NsAnswer::Versions { first, .. }) => first,
        other => panic!("{other:?}"),
    };
    let commit = change(NsOp::Commit(Commit {
        ino: f,
        base: Version::NONE,
        version,
        truncate: None,
        runs: Vec::new(),
        size: 5,
        mtime: Time::default(),
        kill_suid: false,
        conflict_file: true,
    }));
    let stale = within(a.call(commit.clone())).await;
    assert_eq!(stale.result, Err(Errno::ESTALE));
    let forgotten = async { within(a_revoked.recv()).await.unwrap().ack().await };
    let (done, ()) = tokio::join!(within(b.call(commit)), forgotten);
    assert_eq!(entry(&done).size, 5);
    server.end().await;
    acking.abort();
}

fn acknowledge_all(mut revocations: mpsc::Receiver<Revocation>) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(revocation) = revocations.recv().await {
            revocation.ack().await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_coordinator_is_a_delay() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 1000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let (b, b_revoked) = {
        let acking = acknowledge_all(a_revoked);
        let b = server.connect("b").await;
        drop(acking);
        b
    };
    let acking = acknowledge_all(b_revoked);
    let f = entry(&a.call(change(make("f"))).await).ino;
    let address = server.end().await;
    let calling = tokio::spawn(async move {
        let reply = a.call(chmod(f, 0o611)).await;
        (a, reply)
    });
    let server = Server::start(dir.path(), 1000, Some(address)).await;
    let (a, reply) = within(calling).await.unwrap();
    assert_eq!(entry(&reply).mode, 0o611);
    let b = Namespace::Remote(b);
    assert_eq!(entry(&within(b.call(lookup("f"))).await).mode, 0o611);
    drop(a);
    b.close(false).await;
    assert_eq!(b.call(lookup("f")).await.result, Err(Errno::EIO));
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_goes_or_moves_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // No heartbeat within this test: a quarter of the lease.
    let server = Server::start(dir.path(), 300_000, None).await;
    let (a, a_revoked) = server.connect("a").await;
    let mut versions = a.peers_version();
    let acking = acknowledge_all(a_revoked);
    let (b, _b_revoked) = server.connect("b").await;
    within(versions.changed()).await.unwrap();
    within(async { while a.peers().await.unwrap().len() < 2 {} }).await;
    let addresses = async || {
        let peers = a.peers().await.unwrap().into_iter();
        let addresses = peers.map(|p| p.node.unwrap().peer_address);
        addresses.collect::<Vec<_>>()
    };
    // What was told already is not told again: only b's move is news.
    tokio::time::sleep(Duration::from_millis(200)).await;
    versions.mark_unchanged();
    b.set_peer_address("10.0.0.2:8082");
    within(b.heartbeat()).await.unwrap();
    within(versions.changed()).await.unwrap();
    assert_eq!(addresses().await, ["", "10.0.0.2:8082"]);
    b.set_activity(7, "uring");
    within(b.heartbeat()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!versions.has_changed().unwrap(), "the list is the same");
    let b_told = a.peers().await.unwrap().remove(1).node.unwrap();
    assert_eq!((b_told.load, &*b_told.transport), (7, "uring"));
    let (_c, _c_revoked) = server.connect("c").await;
    within(versions.changed()).await.unwrap();
    assert_eq!(addresses().await.len(), 3);
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_version_is_told_both() {
    use fastcache_api::NS_VERSION;
    use fastcache_api::grpc::RegisterRequest;
    use fastcache_api::grpc::coordinator_client::CoordinatorClient;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    let address = format!("http://{}", server.address);
    let mut client = within(CoordinatorClient::connect(address)).await.unwrap();
    for theirs in [NS_VERSION + 1, NS_VERSION - 1, 0, u32::MAX] {
        let request = RegisterRequest {
            node: Some(Node {
                peer_id: "a".to_owned(),
                ..Default::default()
            }),
            ns_version: theirs,
            previous_session: 0,
        };
        let refused = within(client.register(request)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        let text = refused.message();
        for said in [format!("version {NS_VERSION} "), format!("node {theirs}:")] {
            assert!(text.contains(&said), "{said}: {text}");
        }
    }
    assert!(
        server.coordinator.peers().is_empty(),
        "nobody was registered"
    );
    let (_a, _revocations) = server.connect("a").await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_there_before_its_coordinator_registers_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let (tell, mut told) = mpsc::unbounded_channel();
    let connecting = tokio::spawn(async move {
        let node = Node {
            peer_id: "a".to_owned(),
            ..Default::default()
        };
        let address = address.to_string();
        let tell = move |why: &str| drop(tell.send((std::time::Instant::now(), why.to_owned())));
        RemoteNamespace::connect_telling(&address, node, None, tell).await
    });
    // Five attempts, each wait twice as long as the one before; then slowly.
    let mut at = Vec::new();
    for _ in 0..5 {
        let (when, why) = within(told.recv()).await.unwrap();
        assert!(!why.is_empty());
        at.push(when);
    }
    let waits: Vec<_> = at.windows(2).map(|w| w[1] - w[0]).collect();
    for (wait, least) in waits.iter().zip([100, 200, 400, 800]) {
        assert!(*wait >= Duration::from_millis(least), "{waits:?}");
    }
    assert!(!connecting.is_finished());
    let server = Server::start(dir.path(), 10_000, Some(address)).await;
    let (_remote, _notices) = within(connecting).await.unwrap().unwrap();
    assert_eq!(server.coordinator.peers().len(), 1);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_belongs_to_one_live_node() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 2000, None).await;
    let (a, revocations) = server.connect("a").await;
    let node = Node {
        peer_id: "a".to_owned(),
        ..Default::default()
    };
    let address = server.address.to_string();
    let other = RemoteNamespace::connect(&address, node, None);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), other)
            .await
            .is_err()
    );
    // Gone without a word: its stream ended, and the id is free at once.
    drop((a, revocations));
    let (_again, _revocations) = server.connect("a").await;
    let bad = Node {
        peer_id: "no id".to_owned(),
        ..Default::default()
    };
    let refused = RemoteNamespace::connect(&address, bad, None).await;
    assert!(matches!(refused, Err(RemoteError::Refused { .. })));
    let nowhere = RemoteNamespace::connect("no address", Node::default(), None).await;
    assert!(matches!(nowhere, Err(RemoteError::Address(_))));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_refused_to_another_node_until_its_own_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 2000, None).await;
    let address = server.address.to_string();
    let connect = |identity: &str| {
        let node = Node {
            peer_id: "a".to_owned(),
            identity: identity.to_owned(),
            ..Default::default()
        };
        let address = address.clone();
        within(async move { RemoteNamespace::connect(&address, node, None).await })
    };
    let (a, notices) = connect("here").await.unwrap();
    let others = |refused: Result<_, RemoteError>| match refused.map(drop) {
        Err(RemoteError::Refused { why, .. }) => {
            assert!(why.contains("another node is registered as a"), "{why}");
            assert!(why.contains("--peer-id"), "{why}");
        }
        other => panic!("{other:?}"),
    };
    others(connect("there").await);
    // Its process is killed, and the coordinator started again: it is waited for.
    drop((a, notices));
    others(connect("there").await);
    let (_a, _notices) = connect("here").await.unwrap();
    let address = server.end().await;
    let server = Server::start(dir.path(), 2000, Some(address)).await;
    others(connect("there").await);
    let (_, peers, _) = server.http("GET", "/api/peers", None).await;
    assert!(!peers.to_string().contains("here"), "{peers}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_nothing_but_health_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let key = Some(ApiKey::new("right"));
    let server = Server::start_with_key(dir.path(), 10_000, None, key).await;
    assert_eq!(server.http("GET", "/api/health", None).await.0, 200);
    for path in ["/api/peers", "/metrics", "/openapi.json", "/nothing"] {
        let (status, error, text) = server.http("GET", path, None).await;
        assert_eq!(
            (status, &error["error"]["code"]),
            (401, &json!("unauthorized"))
        );
        assert!(!text.contains("right"), "{text}");
    }
    let node = json!({"peer_id": "n1"});
    let refused = server.http("POST", "/api/peers/register", Some(node)).await;
    assert_eq!(refused.0, 401);
    let address = server.address.to_string();
    for key in [None, Some("wrong"), Some("")] {
        let node = Node {
            peer_id: "n1".to_owned(),
            ..Default::default()
        };
        let refused = within(RemoteNamespace::connect(&address, node, key)).await;
        assert!(
            matches!(&refused, Err(RemoteError::Refused { why, .. }) if why.contains("--api-key")),
            "{:?}",
            refused.err()
        );
    }
    let unsendable = RemoteNamespace::connect(&address, Node::default(), Some("\n")).await;
    assert!(matches!(unsendable, Err(RemoteError::Key)));
    let node = Node {
        peer_id: "n1".to_owned(),
        ..Default::default()
    };
    let (remote, notices) = within(RemoteNamespace::connect(&address, node, Some("right")))
        .await
        .unwrap();
    let mut revocations = with_leases_taken(notices);
    within(revocations.recv()).await.unwrap().ack().await;
    let root = read(NsOp::GetAttr { ino: Ino::ROOT });
    assert!(within(remote.call(root)).await.result.is_ok());
    within(remote.heartbeat()).await.unwrap();
    drop(remote);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_asked_what_they_have_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    let (_a, a_revoked) = server.connect("a").await;
    let acking = acknowledge_all(a_revoked);
    let (_b, _b_revoked) = server.connect("b").await;
    let coordinator = &server.coordinator;
    // Each has opened its stream a moment after it was let in.
    let held = within(async {
        loop {
            let held = coordinator.held(Ino(7)).await;
            if held.len() > 1 {
                return held;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let held = held.await;
    let one = Held {
        chunks: 1,
        bytes: 100,
    };
    assert_eq!(held, [("a".to_owned(), one), ("b".to_owned(), one)].into());
    assert!(within(coordinator.held(Ino(8))).await.is_empty());
    // One that registered by REST listens to nobody, and is not waited for; one that listens and is silent is, for a second.
    let deaf = json!({"peer_id": "deaf"});
    assert_eq!(
        server
            .http("POST", "/api/peers/register", Some(deaf))
            .await
            .0,
        200
    );
    let since = Instant::now();
    assert_eq!(within(coordinator.held(Ino(7))).await.len(), 2);
    assert!(since.elapsed() < Duration::from_millis(900));
    let node = Node {
        peer_id: "silent".to_owned(),
        ..Default::default()
    };
    let address = server.address.to_string();
    let (_silent, _notices) = within(RemoteNamespace::connect(&address, node, None))
        .await
        .unwrap();
    within(async {
        loop {
            let since = Instant::now();
            assert_eq!(coordinator.held(Ino(7)).await.len(), 2);
            if since.elapsed() >= Duration::from_secs(1) {
                break;
            }
        }
    })
    .await;
    server.end().await;
    acking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_tells_nodes_files_and_counters() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), 10_000, None).await;
    assert_eq!(server.http("GET", "/api/health", None).await.0, 200);
    let node = json!({"peer_id": "n1", "rest_address": "h:8081", "capacity_bytes": 100});
    let (status, registered, _) = server
        .http("POST", "/api/peers/register", Some(node.clone()))
        .await;
    assert_eq!((status, &registered["lease_ms"]), (200, &json!(10_000)));
    let (status, error, _) = server.http("POST", "/api/peers/register", Some(node)).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (409, &json!("peer_id_taken"))
    );
    let how = json!({"peer_id": "n1", "session": registered["session"], "used_bytes": 7,
        "load": 12, "transport": "dev"});
    assert_eq!(
        server.http("PUT", "/api/peers/status", Some(how)).await.0,
        200
    );
    let unknown = json!({"peer_id": "n1", "session": 1});
    assert_eq!(
        server
            .http("PUT", "/api/peers/status", Some(unknown))
            .await
            .0,
        404
    );
    let (_, peers, _) = server.http("GET", "/api/peers", None).await;
    assert_eq!(peers["peers"][0]["peer_id"], json!("n1"));
    assert_eq!(peers["peers"][0]["used_bytes"], json!(7));
    assert_eq!(peers["peers"][0]["state"], json!("live"));
    assert_eq!(peers["peers"][0]["load"], json!(12));
    assert_eq!(peers["peers"][0]["transport"], json!("dev"));

    let session = registered["session"].as_u64().unwrap();
    server
        .coordinator
        .call(session, change(make("a file")))
        .await
        .unwrap()
        .result
        .unwrap();
    let at = "/api/files/location?path=a%20file";
    let here = json!({"peer_id": "n1"});
    assert_eq!(server.http("PUT", at, Some(here)).await.0, 200);
    let (status, place, _) = server.http("GET", at, None).await;
    assert_eq!((status, &place["peers"][0]["peer_id"]), (200, &json!("n1")));
    let gone = json!({"peer_id": "n1", "present": false});
    assert_eq!(server.http("PUT", at, Some(gone)).await.0, 200);
    assert_eq!(server.http("GET", at, None).await.1["peers"], json!([]));
    let stranger = json!({"peer_id": "n2"});
    assert_eq!(server.http("PUT", at, Some(stranger)).await.0, 404);
    for (path, expected) in [
        ("nothing", 404),
        ("%ff", 404),
        ("/a%20file", 400),
        ("../x", 400),
        ("a//b", 400),
        ("", 400),
        ("%00", 400),
    ] {
        let at = format!("/api/files/location?path={path}");
        let (status, error, _) = server.http("GET", &at, None).await;
        assert_eq!(status, expected, "{path}");
        assert!(error["error"]["message"].is_string());
    }
    assert_eq!(server.http("GET", "/api/files/location", None).await.0, 400);
    let (status, error, _) = server
        .http("POST", "/api/peers/register", Some(json!([])))
        .await;
    assert!((400..500).contains(&status) && error["error"]["code"].is_string());
    let (status, error, _) = server.http("DELETE", "/api/peers", None).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (405, &json!("method_not_allowed"))
    );
    let (status, error, _) = server.http("GET", "/nothing", None).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (404, &json!("not_found"))
    );
    let (_, stats, _) = server.http("GET", "/api/stats", None).await;
    assert_eq!(stats["namespace"]["inodes"], json!(2));
    assert_eq!(stats["coordinator"]["peers_live"], json!(1));
    let (_, _, text) = server.http("GET", "/metrics", None).await;
    assert!(text.contains("\nfastcache_namespace_inodes 2\n"), "{text}");
    for held in ["cache_bytes", "write_buffer_bytes"] {
        let line = format!("\nfastcache_namespace_{held} ");
        assert!(text.contains(&line), "{text}");
    }
    server.end().await;
}
