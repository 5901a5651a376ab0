//! A change is answered when no other node can still be using what it replaced, and not later.

use crate::support::{
    BOUND, Server, acknowledge_all, change, chmod, entry, lookup, make, named, read,
    with_leases_taken, within,
};
use fastcache_api::locks::{Lock, LockAnswer, LockOp};
use fastcache_api::{Commit, Errno, Ino, NsAnswer, NsOp, Time, Version};
use fastcache_coordinator::RemoteNamespace;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
        let node = named("b");
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
    let ((b, mut b_revoked), ()) = tokio::join!(server.connect("b"), second);
    let handed_over = std::sync::Arc::new(AtomicUsize::new(0));
    let by_b = std::sync::Arc::clone(&handed_over);
    let acking = tokio::spawn(async move {
        while let Some(revoked) = b_revoked.recv().await {
            by_b.fetch_add(revoked.hand_over.len(), Ordering::Relaxed);
            revoked.ack().await;
        }
    });
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
    assert_eq!(handed_over.load(Ordering::Relaxed), 0);
    assert_eq!(entry(&within(a.call(commit)).await).size, 5);
    assert_eq!(handed_over.load(Ordering::Relaxed), 1, "b, which may write");
    server.end().await;
    acking.abort();
}
