//! Goal: a reader whose file another node changes meanwhile is told the new contents, not an error; and what the lease names
//! but nobody has yet is waited for, within bounds. Method: an agent that holds its answers until the file was changed.

use crate::node::{CHUNK, Node, assert_same, on_node, pattern, soon, until};
use fastcache_api::control::DataCall;
use fastcache_api::{ChunkKey, Errno, Ino, Version};
use fastcache_reactor::{IoBuf, now, timeout};
use std::time::Duration;

/// Looks at a file whose lease is taken away under each of them.
const LOOKS: u64 = 20;

/// A node that has other nodes, and a file of one chunk that is only in the cloud.
async fn shared(node: &Node, data: &[u8]) -> Ino {
    let ino = node.cold_file("file", data).await;
    node.share().await;
    node.agent.has_peers.set(true);
    ino
}

/// Another node writes the file anew `times` times, each time while it is fetched, and what was there before goes. The last one
/// is in the cloud. What the reader gets.
async fn changed_under_a_reader(node: &Node, ino: Ino, times: u64) -> Result<Vec<u8>, Errno> {
    let agent = &node.agent;
    agent.holds_fetches.set(true);
    let before = agent.fetches.borrow().len();
    let changes = async {
        for n in 1..=times {
            let asked = || agent.fetches.borrow().len() == before + n as usize;
            until("it is asked for", asked).await;
            let key = agent.others_write_anew(ino, CHUNK);
            agent.cloud.borrow_mut().clear();
            if n == times {
                agent.cloud.borrow_mut().insert(key, pattern(n, CHUNK));
                agent.holds_fetches.set(false);
            }
            node.revoke(ino).await;
            agent.answer_held(&node.link, &node.arena);
        }
    };
    let read = node.read(ino, 0, CHUNK);
    soon("the read", futures_util::future::join(read, changes))
        .await
        .0
}

#[test]
fn a_file_that_is_changed_under_its_reader_is_looked_at_again() {
    on_node(async |node, _| {
        let ino = shared(&node, &pattern(9, CHUNK)).await;
        for times in [1, LOOKS] {
            let got = changed_under_a_reader(&node, ino, times).await.unwrap();
            assert_same("the new contents", &got, &pattern(times, CHUNK));
            let kept = || !node.fs.store().chunks_of(ino).is_empty();
            until("it is kept", kept).await;
            assert_eq!(node.evict(ino).await, 1);
        }
        let slots = || node.arena.free() == node.arena.slots();
        until("every slot came back", slots).await;
    });
}

#[test]
fn an_older_version_in_its_place_keeps_nobody_from_writing() {
    on_node(async |node, agent| {
        let ino = shared(&node, &pattern(9, CHUNK)).await;
        // What this node wrote and nobody uploaded, and then what it keeps for another node, with a version of any number.
        for (round, is_replica) in [(1, false), (2, true)] {
            let own = pattern(20 + round, CHUNK);
            if is_replica {
                assert_eq!(node.evict(ino).await, 1);
                let key = ChunkKey {
                    ino,
                    index: 0,
                    version: Version(1 << 40),
                };
                node.keep_for("other", key, &own).await.unwrap();
            } else {
                node.write(ino, 0, &own).await.unwrap();
                node.fsync(ino).await.unwrap();
            }
            let key = agent.others_write_anew(ino, CHUNK);
            let mut theirs = pattern(round, CHUNK);
            agent.cloud.borrow_mut().insert(key, theirs.clone());
            node.revoke(ino).await;
            node.write(ino, 5, b"new").await.unwrap();
            theirs[5..8].copy_from_slice(b"new");
            let got = node.read(ino, 0, CHUNK).await.unwrap();
            assert_same("what both wrote", &got, &theirs);
            node.fsync(ino).await.unwrap();
            node.upload().await;
            let got = node.read(ino, 0, CHUNK).await.unwrap();
            assert_same("sealed", &got, &theirs);
        }
    });
}

#[test]
fn a_write_to_part_of_what_another_node_wrote_waits_for_a_lease() {
    on_node(async |node, agent| {
        let ino = shared(&node, &pattern(9, CHUNK)).await;
        node.write(ino, 0, &pattern(21, CHUNK)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let key = agent.others_write_anew(ino, CHUNK);
        let mut theirs = pattern(1, CHUNK);
        agent.cloud.borrow_mut().insert(key, theirs.clone());
        node.revoke(ino).await;
        // The coordinator has ended the session, and the next heartbeat is on its way: whether what is in the store may go is
        // not known until then.
        let ended = DataCall::Lease {
            until_ns: Some(1),
            is_shared: true,
        };
        node.fs.serve(ended).await.unwrap();
        let renewed = async {
            fastcache_reactor::sleep(Duration::from_millis(200)).await;
            node.share().await;
        };
        let written = node.write(ino, 5, b"new");
        let (written, ()) = futures_util::future::join(written, renewed).await;
        written.unwrap();
        theirs[5..8].copy_from_slice(b"new");
        let got = node.read(ino, 0, CHUNK).await.unwrap();
        assert_same("what both wrote", &got, &theirs);
    });
}

#[test]
fn an_append_without_a_lease_goes_where_the_file_ends_when_there_is_one() {
    on_node(async |node, agent| {
        let ino = shared(&node, &pattern(9, 1000)).await;
        node.write(ino, 0, &pattern(21, 1000)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let others_write = |len| {
            let key = agent.others_write_anew(ino, len);
            let theirs = pattern(len as u64, len);
            agent.cloud.borrow_mut().insert(key, theirs.clone());
            theirs
        };
        others_write(1000);
        node.revoke(ino).await;
        let ended = DataCall::Lease {
            until_ns: Some(1),
            is_shared: true,
        };
        node.fs.serve(ended).await.unwrap();
        let mut buf = IoBuf::alloc(3);
        buf.copy_from_slice(b"end");
        let appended = soon("append", node.fs.append(ino, 0, 1000, buf, false));
        let meanwhile = async {
            fastcache_reactor::sleep(Duration::from_millis(100)).await;
            // Whoever has the lease meanwhile makes the file longer.
            let mut theirs = others_write(1500);
            fastcache_reactor::sleep(Duration::from_millis(100)).await;
            node.share().await;
            theirs.extend(b"end");
            theirs
        };
        let ((done, _), want) = futures_util::future::join(appended, meanwhile).await;
        assert_eq!(done, Ok(3));
        let got = node.read(ino, 0, CHUNK).await.unwrap();
        assert_same("what both wrote", &got, &want);
    });
}

#[test]
fn a_write_that_waits_for_what_the_file_has_does_not_keep_the_turn() {
    on_node(async |node, agent| {
        let mut data = pattern(9, CHUNK);
        let ino = shared(&node, &data).await;
        let before = agent.write_opens.get();
        agent.holds_fetches.set(true);
        let fetches = || agent.fetches.borrow().len();
        let asked = fetches();
        let other = async {
            until("it is asked for", || fetches() > asked).await;
            // Another node has its turn meanwhile.
            let call = DataCall::HandOver { inos: vec![ino] };
            soon("handing over", node.fs.serve(call)).await.unwrap();
            agent.let_fetches_go(&node.link, &node.arena);
        };
        let (written, ()) = futures_util::future::join(node.write(ino, 5, b"new"), other).await;
        written.unwrap();
        assert_eq!(agent.write_opens.get(), before + 1, "it asked anew");
        data[5..8].copy_from_slice(b"new");
        let got = node.read(ino, 0, CHUNK).await.unwrap();
        assert_same("what both wrote", &got, &data);
    });
}

#[test]
fn what_the_lease_names_and_nobody_has_yet_is_waited_for() {
    on_node(async |node, agent| {
        let data = pattern(9, CHUNK);
        let ino = shared(&node, &data).await;
        let in_cloud = agent.cloud.take();
        let before = agent.fetches.borrow().len();
        let comes = async {
            let asked = || agent.fetches.borrow().len() == before + 3;
            until("it was asked for in vain", asked).await;
            agent.cloud.replace(in_cloud);
        };
        let read = node.read(ino, 0, CHUNK);
        let (got, ()) = soon("the read", futures_util::future::join(read, comes)).await;
        assert_same("it came", &got.unwrap(), &data);

        let kept = || !node.fs.store().chunks_of(ino).is_empty();
        until("it is kept", kept).await;
        assert_eq!(node.evict(ino).await, 1);
        agent.cloud.borrow_mut().clear();
        let since = now();
        assert_eq!(node.read(ino, 0, CHUNK).await, Err(Errno::EIO));
        let took = since.elapsed();
        let usual = Duration::from_secs(8)..Duration::from_secs(20);
        assert!(usual.contains(&took), "{took:?}");
        // Alone, it is nowhere else.
        let lease = DataCall::Lease {
            until_ns: None,
            is_shared: false,
        };
        node.fs.serve(lease).await.unwrap();
        let since = now();
        assert_eq!(node.read(ino, 0, CHUNK).await, Err(Errno::EIO));
        assert!(since.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn what_is_fetched_for_another_node_is_given_up_when_the_agent_stands() {
    on_node(async |node, agent| {
        shared(&node, &pattern(1, CHUNK)).await;
        let key = agent.cloud.borrow().keys().copied().next().unwrap();
        agent.holds_fetches.set(true);
        let fs = node.fs.clone();
        let mut bringing = fastcache_reactor::spawn(async move { fs.bring_for_peer(key).await });
        // The cloud is slow, and the agent is there.
        let pause = Duration::from_secs(2);
        assert!(timeout(pause, &mut bringing).await.is_err(), "it waits");
        agent.stands.set(true);
        let since = now();
        assert_eq!(soon("the end of it", bringing).await, None);
        assert!(since.elapsed() < Duration::from_secs(2));
    });
}
