//! Goal: one node at a time may write a file, whatever became of its session. Method: a coordinator without a network; the
//! tests are the nodes.

#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_api::grpc::{Node, Revocation};
use fastcache_api::locks::{LOCK_END, Lock, LockAnswer, LockOp};
use fastcache_api::{
    Attr, Commit, Cred, Errno, Ino, Kind, NS_VERSION, NewInode, NsAnswer, NsOp, NsReply, NsRequest,
    OpId, SetAttr, Time, Version,
};
use fastcache_coordinator::{Coordinator, Options, Revocations, UnknownSession};
use futures_util::StreamExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Nothing here takes this long unless it is broken.
const BOUND: Duration = Duration::from_secs(20);
/// A revocation that has not come by then does not come.
const QUIET: Duration = Duration::from_millis(200);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("in time")
}

/// A session of a node.
struct Session {
    number: u64,
    revoked: Revocations,
    coordinator: Coordinator,
}

impl Session {
    async fn new(coordinator: &Coordinator, id: &str, previous: u64) -> Session {
        let node = Node {
            peer_id: id.to_owned(),
            ..Default::default()
        };
        let registered = within(coordinator.register(node, NS_VERSION, previous)).await;
        let number = registered.unwrap().session;
        Session {
            number,
            revoked: coordinator.watch(number).unwrap(),
            coordinator: coordinator.clone(),
        }
    }

    /// Two nodes; the first one knows of the second.
    async fn two(dir: &Path, lease: Duration) -> (Session, Session) {
        let options = Options {
            lease,
            stale_after: 100 * lease,
            ..Options::default()
        };
        let coordinator = Coordinator::open(dir, options).unwrap();
        let mut a = Session::new(&coordinator, "a", 0).await;
        let forgotten = async { a.obey().await };
        let (b, all) = tokio::join!(Session::new(&coordinator, "b", 0), forgotten);
        assert!(all.everything);
        (a, b)
    }

    /// The next revocation; that the list of nodes is another one is none.
    async fn revocation(&mut self) -> Revocation {
        loop {
            let next = within(self.revoked.next()).await.unwrap().unwrap();
            if next.peers_version == 0 {
                return next;
            }
        }
    }

    /// The next revocation, acknowledged.
    async fn obey(&mut self) -> Revocation {
        let next = self.revocation().await;
        self.coordinator.acknowledge(self.number, next.number);
        next
    }

    async fn call(&self, op: NsOp) -> Result<NsReply, UnknownSession> {
        static SEQ: AtomicU64 = AtomicU64::new(0);
        let seq = SEQ.fetch_add(1, Ordering::Relaxed);
        let request = NsRequest {
            id: op.is_change().then_some(OpId { client: 9, seq }),
            now: Time::default(),
            op,
        };
        within(self.coordinator.call(self.number, request)).await
    }

    async fn make(&self, name: &str) -> Attr {
        let new = NewInode {
            kind: Kind::File,
            mode: 0o644,
            rdev: 0,
            cred: Cred { uid: 1, gid: 1 },
            target: Vec::new(),
            chunk_size: 4096,
        };
        let at = Some((Ino::ROOT, name.into()));
        match self.call(NsOp::Make { at, new }).await.unwrap().result {
            Ok(NsAnswer::Entry(attr)) => attr,
            other => panic!("no attributes: {other:?}"),
        }
    }

    fn open_to_write(&self, ino: Ino) -> JoinHandle<Result<NsReply, UnknownSession>> {
        let open = NsRequest {
            id: None,
            now: Time::default(),
            op: NsOp::Open { ino, write: true },
        };
        let (coordinator, number) = (self.coordinator.clone(), self.number);
        tokio::spawn(async move { coordinator.call(number, open).await })
    }
}

/// A commit of nothing but a size.
fn commit(ino: Ino, base: Version, version: Version) -> NsOp {
    NsOp::Commit(Commit {
        ino,
        base,
        version,
        truncate: None,
        runs: Vec::new(),
        size: 5,
        mtime: Time::default(),
        kill_suid: false,
        conflict_file: true,
    })
}

/// B asks to write what A may write: A is asked first.
async fn hands_over(a: &mut Session, b: &Session, ino: Ino) {
    let opening = b.open_to_write(ino);
    let asked = tokio::time::timeout(QUIET, a.revocation()).await;
    let Ok(asked) = asked else {
        panic!("the writer was not asked: {asked:?}");
    };
    assert!(!opening.is_finished() && !asked.everything);
    a.coordinator.acknowledge(a.number, asked.number);
    within(opening).await.unwrap().unwrap().result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_write_is_asked_even_when_its_lease_had_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let lease = Duration::from_millis(600);
    let (mut a, b) = Session::two(dir.path(), lease).await;
    let f = a.make("f").await.ino;
    // Its heartbeats come, but its data plane was not heard of: its lease ends.
    a.coordinator.heartbeat(a.number, None, false).unwrap();
    tokio::time::sleep(2 * lease).await;
    within(a.open_to_write(f))
        .await
        .unwrap()
        .unwrap()
        .result
        .unwrap();
    hands_over(&mut a, &b, f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_started_again_keeps_the_files_its_data_plane_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = Session::two(dir.path(), Duration::from_secs(10)).await;
    let (f, g) = (a.make("f").await.ino, a.make("g").await.ino);
    // B waits for the agent that is killed.
    let waiting = b.open_to_write(g);
    tokio::time::sleep(QUIET).await;
    drop(a.revoked);
    let mut again = Session::new(&a.coordinator, "a", a.number).await;
    // It has forgotten what it read; what it wrote is not committed yet.
    again.coordinator.acknowledge(again.number, 0);
    assert!(!waiting.is_finished());
    assert!(!again.obey().await.everything);
    within(waiting).await.unwrap().unwrap().result.unwrap();
    hands_over(&mut again, &b, f).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_waited_for_no_more_is_granted_to_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = Session::two(dir.path(), Duration::from_secs(10)).await;
    let ino = a.make("f").await.ino;
    let lock = Lock {
        owner: 1,
        is_flock: false,
        start: 0,
        end: LOCK_END,
        is_exclusive: true,
        pid: 1,
    };
    let set = |waits| LockOp::Set { ino, lock, waits };
    let held = a.coordinator.lock(a.number, set(false)).await.unwrap();
    assert_eq!(held, LockAnswer::Done);
    let cancel = LockOp::Cancel { ino, lock };
    // Of nothing yet: what comes after it waits.
    b.coordinator.lock(b.number, cancel.clone()).await.unwrap();
    let waiting = {
        let (coordinator, number, set) = (b.coordinator.clone(), b.number, set(true));
        tokio::spawn(async move { coordinator.lock(number, set).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let since = tokio::time::Instant::now();
    while !waiting.is_finished() && since.elapsed() < Duration::from_secs(1) {
        b.coordinator.lock(b.number, cancel.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = within(waiting).await.unwrap().unwrap();
    assert_eq!(answer, LockAnswer::Held(lock));
    assert!(since.elapsed() < Duration::from_secs(1));
    let unlock = LockOp::Unlock { ino, lock };
    a.coordinator.lock(a.number, unlock).await.unwrap();
    let again = a.coordinator.lock(a.number, set(false)).await.unwrap();
    assert_eq!(again, LockAnswer::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stands_still_costs_the_writer_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lease = Duration::from_secs(1);
    let (mut a, b) = Session::two(dir.path(), lease).await;
    let c = Session::new(&a.coordinator, "c", 0).await;
    let f = a.make("f").await.ino;
    let lock = Lock {
        owner: 1,
        is_flock: false,
        start: 0,
        end: LOCK_END,
        is_exclusive: true,
        pid: 1,
    };
    let set = LockOp::Set {
        ino: f,
        lock,
        waits: false,
    };
    let locked = a.coordinator.lock(a.number, set).await.unwrap();
    assert_eq!(locked, LockAnswer::Done);
    c.call(NsOp::GetAttr { ino: f })
        .await
        .unwrap()
        .result
        .unwrap();
    let hearts = {
        let (coordinator, nodes) = (a.coordinator.clone(), [a.number, b.number]);
        tokio::spawn(async move {
            loop {
                for node in nodes {
                    coordinator.heartbeat(node, None, true).unwrap();
                }
                tokio::time::sleep(lease / 20).await;
            }
        })
    };
    let opening = b.open_to_write(f);
    let asked = a.revocation().await;
    // It takes a while to seal what was written, and when it is committed another node has to forget the file and does not.
    tokio::time::sleep(lease / 2).await;
    let versions = a.call(NsOp::AllocVersions { count: 1 }).await.unwrap();
    let Ok(NsAnswer::Versions { first, .. }) = versions.result else {
        panic!("{versions:?}");
    };
    c.coordinator.heartbeat(c.number, None, true).unwrap();
    let committed = a.call(commit(f, Version::NONE, first));
    let committed = committed.await.unwrap();
    assert!(committed.result.is_ok(), "{committed:?}");
    a.coordinator.acknowledge(a.number, asked.number);
    within(opening).await.unwrap().unwrap().result.unwrap();
    // Until whoever is late is fenced.
    tokio::time::sleep(lease / 2).await;
    let stats = a.coordinator.stats();
    assert_eq!((stats.peers_live, stats.locks), (2, 1), "only c is gone");
    hearts.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_asked_for_again_is_answered_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = Session::two(dir.path(), Duration::from_secs(10)).await;
    let f = a.make("f").await.ino;
    let [one, two] = [1, 2].map(|n| Version(1000 + n));
    let first = NsRequest {
        id: Some(OpId { client: 7, seq: 1 }),
        now: Time::default(),
        op: commit(f, Version::NONE, one),
    };
    let (of_a, number) = (a.coordinator.clone(), a.number);
    let ask = async |request: NsRequest| within(of_a.call(number, request)).await.unwrap().result;
    let done = ask(first.clone()).await;
    assert!(done.is_ok(), "{done:?}");
    // The answer is lost; another node writes meanwhile.
    hands_over(&mut a, &b, f).await;
    let (written, _) = tokio::join!(b.call(commit(f, one, two)), a.obey());
    assert!(written.unwrap().result.is_ok());
    let (again, _) = tokio::join!(ask(first.clone()), b.obey());
    assert_eq!(again, done);
    // One that was never done is refused.
    let other = NsRequest {
        id: Some(OpId { client: 7, seq: 2 }),
        op: commit(f, one, Version(2000)),
        ..first
    };
    assert_eq!(ask(other).await, Err(Errno::ESTALE));
}

#[tokio::test]
async fn after_a_restart_changes_go_on_when_every_node_is_back() {
    let dir = tempfile::tempdir().unwrap();
    // Of which a tenth is waited for.
    let lease = Duration::from_secs(10);
    let restore = || LockOp::Restore { held: Vec::new() };
    let (a, b) = Session::two(dir.path(), lease).await;
    let f = a.make("f").await;
    a.coordinator.close().await;
    drop((a, b));
    let options = Options {
        lease,
        ..Options::default()
    };
    let coordinator = Coordinator::open(dir.path(), options).unwrap();
    let a = Session::new(&coordinator, "a", 0).await;
    let chmod = NsRequest {
        id: Some(OpId { client: 8, seq: 1 }),
        now: Time::default(),
        op: NsOp::SetAttr {
            ino: f.ino,
            set: SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            },
        },
    };
    let (of, number) = (coordinator.clone(), a.number);
    let changing = tokio::spawn(async move { of.call(number, chmod).await });
    coordinator.acknowledge(a.number, 0);
    within(coordinator.lock(a.number, restore())).await.unwrap();
    // The other one may use what it was told; then it may have locks.
    let b = Session::new(&coordinator, "b", 0).await;
    coordinator.acknowledge(b.number, 0);
    tokio::time::sleep(lease / 10 + QUIET).await;
    assert!(!changing.is_finished());
    let since = std::time::Instant::now();
    within(coordinator.lock(b.number, restore())).await.unwrap();
    let reply = within(changing).await.unwrap().unwrap();
    assert!(reply.result.is_ok(), "{reply:?}");
    let took = since.elapsed();
    assert!(took >= lease / 10 && took < lease / 2, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_comes_late_is_taken_when_nobody_has_written_since() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = Session::two(dir.path(), Duration::from_secs(10)).await;
    let f = a.make("f").await.ino;
    let [one, two, three] = [1, 2, 3].map(|n| Version(1000 + n));
    a.call(commit(f, Version::NONE, one))
        .await
        .unwrap()
        .result
        .unwrap();
    hands_over(&mut a, &b, f).await;
    // B may write, and has not: A, which had lost its lease, is heard when B has handed over.
    let late = NsRequest {
        id: Some(OpId { client: 7, seq: 1 }),
        now: Time::default(),
        op: commit(f, one, two),
    };
    let (of_a, number) = (a.coordinator.clone(), a.number);
    let ask = |request: &NsRequest| {
        let (coordinator, request) = (of_a.clone(), request.clone());
        tokio::spawn(async move { coordinator.call(number, request).await })
    };
    let committing = ask(&late);
    assert!(!b.obey().await.everything);
    // And forgets what it read.
    assert!(!b.obey().await.everything);
    let reply = within(committing).await.unwrap().unwrap();
    assert!(reply.result.is_ok(), "{reply:?}");
    // B writes; then the same commit again, whose answer was lost, is answered as it was.
    hands_over(&mut a, &b, f).await;
    let (written, _) = tokio::join!(b.call(commit(f, two, three)), a.obey());
    let written = written.unwrap();
    assert!(written.result.is_ok(), "{written:?}");
    let (again, _) = tokio::join!(within(ask(&late)), b.obey());
    assert_eq!(again.unwrap().unwrap().result, reply.result);
    // What B did not know of is refused, and B is not asked.
    let lost = NsRequest {
        id: Some(OpId { client: 7, seq: 2 }),
        op: commit(f, two, Version(2000)),
        ..late
    };
    let refused = within(ask(&lost)).await.unwrap().unwrap();
    assert_eq!(refused.result, Err(Errno::ESTALE));
}
