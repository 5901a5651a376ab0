//! Goal: a commit reaches the coordinator once, however often the agent goes away; and what close returned is there
//! after a kill, what was not closed is not. Method: an agent that does not answer, then the next connection; a node
//! that is dropped without an end, then the next one on the same store.

use crate::agent::Agent;
use crate::node::{
    CHUNK, STORE_FILE, assert_same, on_node, on_reactor, pattern, soon, start, start_detached,
    until,
};
use fastcache_api::control::DataCall;
use fastcache_api::{Errno, Ino, NsOp};
use fastcache_cache::SetAttrRequest;
use std::rc::Rc;

#[test]
fn an_unanswered_commit_is_sent_again_exactly_the_same() {
    on_node(async |node, agent| {
        let ino = node.create("file").await;
        let data = pattern(1, 100_000);
        node.write(ino, 0, &data).await.unwrap();
        agent.ignores_commits.set(true);
        node.flush(ino).await.unwrap();
        until("the commit comes", || agent.commits.borrow().len() == 1).await;
        assert_eq!(node.fs.stats().uncommitted_files, 1);

        // The second connection does not answer, either; the third one does.
        node.link.detach(0, 1);
        agent.attach(&node.link, &node.arena, 2);
        until("the commit comes again", || {
            agent.commits.borrow().len() == 2
        })
        .await;
        node.link.detach(0, 2);
        agent.ignores_commits.set(false);
        agent.attach(&node.link, &node.arena, 3);
        node.fsync(ino).await.unwrap();

        let commits = agent.commits.take();
        let connections: Vec<u64> = commits.iter().map(|c| c.0).collect();
        assert_eq!(connections, [1, 2, 3]);
        for (_, id, request) in &commits[1..] {
            assert_eq!(
                (id, request),
                (&commits[0].1, &commits[0].2),
                "the same call"
            );
        }
        assert_eq!(agent.file(ino).0.size, data.len() as u64);
        assert_eq!(node.fs.stats().uncommitted_files, 0);
        assert_same(
            "the file",
            &node.read(ino, 0, data.len()).await.unwrap(),
            &data,
        );
    });
}

/// Perhaps it is done: under another number it would be done once more, on top of what others have written since.
#[test]
fn a_commit_whose_answer_was_not_waited_for_is_asked_again_as_the_same_one() {
    on_node(async |node, agent| {
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 5000)).await.unwrap();
        agent.ignores_commits.set(true);
        node.flush(ino).await.unwrap();
        until("the commit comes", || agent.commits.borrow().len() == 1).await;
        agent.ignores_commits.set(false);
        let call = agent.commits.borrow()[0].1;
        node.link.answered(0, call, Err(Errno::EIO));
        node.fsync(ino).await.unwrap();
        let commits = agent.commits.take();
        assert_eq!(commits.len(), 2);
        assert_ne!(commits[0].1, commits[1].1, "another call");
        assert_eq!(commits[0].2, commits[1].2, "the same change");
        node.write(ino, 0, &pattern(2, 10)).await.unwrap();
        node.fsync(ino).await.unwrap();
        assert_ne!(agent.commits.take()[0].2.id, commits[0].2.id);
    });
}

#[test]
fn an_answer_lost_on_the_way_changes_nothing_twice() {
    on_node(async |node, agent| {
        let ino = node.create("file").await;
        for round in 0..5 {
            let connection = 2 * round + 2;
            agent.ignores_commits.set(true);
            let before = agent.commits.borrow().len();
            node.write(ino, round * 10, &pattern(round, 10))
                .await
                .unwrap();
            node.flush(ino).await.unwrap();
            until("the commit comes", || agent.commits.borrow().len() > before).await;
            // The file goes on meanwhile: the next commit waits behind this one.
            node.write(ino, 5000, &pattern(round + 100, 10))
                .await
                .unwrap();
            node.flush(ino).await.unwrap();
            node.link.detach(0, connection - 1);
            agent.ignores_commits.set(false);
            agent.attach(&node.link, &node.arena, connection);
            node.fsync(ino).await.unwrap();
            // And a connection that is replaced while nothing waits.
            agent.attach(&node.link, &node.arena, connection + 1);
        }
        // Each commit is based on the one before: none was lost, none came out of order.
        let mut versions = Vec::new();
        for (_, _, request) in agent.commits.take() {
            let NsOp::Commit(commit) = request.op else {
                panic!("only commits are noted")
            };
            if versions.last() != Some(&commit.version) {
                if let Some(last) = versions.last() {
                    assert_eq!(commit.base, *last);
                }
                versions.push(commit.version);
            }
        }
        assert_eq!(versions.len(), 10);
        assert_eq!(agent.file(ino).0.layout_version, versions[9]);
        assert_eq!(node.fs.stats().conflict_files, 0);
    });
}

#[test]
fn a_file_written_over_and_over_while_open_has_a_small_commit() {
    on_node(async |node, agent| {
        let ino = node.create("file").await;
        let mut sealed = Vec::new();
        let mut last = Vec::new();
        for round in 0..10 {
            last = pattern(round, 2 * CHUNK);
            node.write(ino, 0, &last).await.unwrap();
            until("both chunks are sealed ahead", || {
                let bodies = node.fs.store().chunks_of(ino);
                let mut now: Vec<_> = bodies.iter().map(|b| b.key()).collect();
                now.sort();
                let is_new =
                    now.len() >= 2 && now.iter().filter(|k| !sealed.contains(*k)).count() == 2;
                if is_new {
                    sealed = now;
                }
                is_new
            })
            .await;
        }
        node.fsync(ino).await.unwrap();
        let commits = agent.commits.take();
        let Some(NsOp::Commit(commit)) = commits.last().map(|(_, _, request)| &request.op) else {
            panic!("only commits are noted")
        };
        assert_eq!(commit.runs.len(), 2, "one run a chunk: {:?}", commit.runs);
        assert_same(
            "the file",
            &node.read(ino, 0, last.len()).await.unwrap(),
            &last,
        );
    });
}

#[test]
fn what_close_returned_survives_a_kill_and_nothing_else_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    // Whole chunks, so that they are sealed ahead of their file, and a tail that waits in memory.
    let (closed, open) = (pattern(1, 3 * CHUNK + 777), pattern(2, 3 * CHUNK + 777));
    let (first, second) = (pattern(3, 2 * CHUNK + 10), pattern(4, 2 * CHUNK + 10));
    let inos: [Ino; 3] = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let inos = [
            node.create("closed").await,
            node.create("open").await,
            node.create("closed, then changed").await,
        ];
        agent.ignores_commits.set(true);
        node.write(inos[0], 0, &closed).await.unwrap();
        node.flush(inos[0]).await.unwrap();
        node.write(inos[2], 0, &first).await.unwrap();
        node.flush(inos[2]).await.unwrap();
        let of = |ino| node.fs.store().chunks_of(ino);
        let sealed: Vec<_> = of(inos[2]).iter().map(|b| b.key()).collect();
        node.write(inos[1], 0, &open).await.unwrap();
        node.write(inos[2], 0, &second).await.unwrap();
        until("full chunks are sealed ahead", || {
            of(inos[1]).len() == 3
                && of(inos[2])
                    .iter()
                    .filter(|b| !sealed.contains(&b.key()))
                    .count()
                    == 2
        })
        .await;
        assert!(agent.heard_of(inos[1]), "their upload can begin");
        assert_same(
            "open",
            &node.read(inos[1], 0, open.len()).await.unwrap(),
            &open,
        );
        inos
    });
    for ino in inos {
        assert_eq!(
            agent.file(ino).0.size,
            0,
            "nothing was committed before the kill"
        );
    }
    agent.ignores_commits.set(false);
    on_reactor(|| async {
        let (node, pending) = start_detached(dir.path(), &agent, 2).await;
        let mut waiting: Vec<Ino> = pending.iter().map(|p| p.ino).collect();
        waiting.sort();
        assert_eq!(
            waiting,
            [inos[0], inos[2]],
            "the closed files wait for their commit"
        );
        agent.attach(&node.link, &node.arena, 1);
        node.fs.recover(pending).await;
        assert_eq!(node.fs.stats().uncommitted_files, 0);
        for (ino, want) in [
            (inos[0], &closed[..]),
            (inos[1], &[][..]),
            (inos[2], &first[..]),
        ] {
            assert_eq!(
                agent.file(ino).0.size,
                want.len() as u64,
                "size after recovery"
            );
            let got = node.read(ino, 0, open.len()).await.unwrap();
            assert_same("after recovery", &got, want);
        }
        assert!(
            node.fs.store().chunks_of(inos[1]).is_empty(),
            "what was not closed takes no room"
        );
    });
    // Once committed, it is not handed out again, and the next kill changes nothing.
    on_reactor(|| async {
        let (node, pending) = start_detached(dir.path(), &agent, 3).await;
        agent.attach(&node.link, &node.arena, 1);
        let before = agent.commits.borrow().len();
        node.fs.recover(pending).await;
        assert_eq!(
            agent.commits.borrow().len(),
            before,
            "nothing is committed twice"
        );
        let got = node.read(inos[0], 0, closed.len()).await.unwrap();
        assert_same("after the second kill", &got, &closed);
    });
}

#[test]
fn a_chunk_that_is_opened_under_a_seal_belongs_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let want = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let ino = node.create("file").await;
        // A block on the device and bytes in memory: the seal has to write before it can go on.
        node.write(ino, 8192, &pattern(1, 4096)).await.unwrap();
        node.write(ino, 0, &pattern(2, 100)).await.unwrap();
        let more = pattern(3, 5000);
        let (sealed, written) =
            futures_util::future::join(node.flush(ino), node.write(ino, CHUNK as u64, &more)).await;
        sealed.unwrap();
        written.unwrap();
        node.flush(ino).await.unwrap();
        node.read(ino, 0, 2 * CHUNK).await.unwrap()
    });
    assert_same("behind the first chunk", &want[CHUNK..], &pattern(3, 5000));
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 2).await;
        let ino = node.fs.lookup(Ino::ROOT, b"file").await.unwrap().attr.ino;
        let got = node.read(ino, 0, 2 * CHUNK).await.unwrap();
        assert_same("after a kill", &got, &want);
    });
}

/// A power cut took a file's last seal, which the coordinator has, and the note that the one before was committed.
#[test]
fn a_commit_that_was_overtaken_is_not_taken_for_one_that_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, before) = (dir.path().join(STORE_FILE), dir.path().join("before"));
    let agent = Rc::new(Agent::default());
    let (first, second) = (pattern(5, CHUNK), pattern(6, CHUNK));
    let ino = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let ino = node.create("file").await;
        node.write(ino, 0, &first).await.unwrap();
        node.fsync(ino).await.unwrap();
        std::fs::copy(&store, &before).unwrap();
        node.write(ino, CHUNK as u64, &second).await.unwrap();
        node.fsync(ino).await.unwrap();
        ino
    });
    std::fs::rename(&before, &store).unwrap();
    assert_eq!(agent.commits.take().len(), 2);
    on_reactor(|| async {
        let (node, pending) = start_detached(dir.path(), &agent, 2).await;
        assert_eq!(pending.len(), 1, "the first is not known to be done");
        agent.attach(&node.link, &node.arena, 1);
        node.fs.recover(pending).await;
        assert!(agent.commits.borrow().is_empty(), "it is not sent again");
        assert_eq!(node.fs.stats().conflict_files, 0);
        let got = node.read(ino, 0, CHUNK).await.unwrap();
        assert_same("what the first one named", &got, &first);
        let lost = node.read(ino, CHUNK as u64, CHUNK).await;
        assert_eq!(lost.err(), Some(Errno::EIO), "the cut took it");
        node.write(ino, CHUNK as u64, &first).await.unwrap();
        node.fsync(ino).await.unwrap();
    });
}

#[test]
fn a_lease_is_given_back_when_nothing_needs_it() {
    on_node(async |node, agent| {
        node.share().await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, 5000)).await.unwrap();
        node.fs.leave().await;
        assert!(!agent.has_left.get(), "it is not committed");
        soon("write back", node.fs.write_back()).await;
        node.fs.leave().await;
        assert!(agent.has_left.get());
    });
}

/// The coordinator has it, the note of that is missing, and somebody waits for it before that is found out.
#[test]
fn who_waits_for_a_commit_that_was_done_before_the_restart_does_not_wait_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, before) = (dir.path().join(STORE_FILE), dir.path().join("before"));
    let agent = Rc::new(Agent::default());
    let ino = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(5, 1000)).await.unwrap();
        node.fsync(ino).await.unwrap();
        std::fs::copy(&store, &before).unwrap();
        ino
    });
    std::fs::rename(&before, &store).unwrap();
    on_reactor(|| async {
        let (node, pending) = start_detached(dir.path(), &agent, 2).await;
        assert_eq!(pending.len(), 1, "it is not known to be done");
        let holds = |op: &NsOp| matches!(op, NsOp::GetAttr { .. });
        agent.holds_calls.set(Some(holds));
        agent.attach(&node.link, &node.arena, 1);
        let fs = node.fs.clone();
        let recovery = fastcache_reactor::spawn(async move { fs.recover(pending).await });
        until("it asks", || agent.held_calls() == 1).await;
        let answering = async {
            fastcache_reactor::sleep(std::time::Duration::from_millis(20)).await;
            agent.let_calls_go(&node.link);
        };
        let (synced, ()) = futures_util::future::join(node.fsync(ino), answering).await;
        synced.unwrap();
        soon("recovery", recovery).await;
        node.write(ino, 0, &pattern(6, 1000)).await.unwrap();
        node.fsync(ino).await.unwrap();
    });
}

/// Of a cut alone nothing is dirty, open or waiting to be committed while it is sealed.
#[test]
fn a_cut_that_is_being_sealed_is_committed_before_the_file_is_handed_over() {
    on_node(async |node, agent| {
        node.share().await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(3, 8000)).await.unwrap();
        node.fsync(ino).await.unwrap();
        let cut = SetAttrRequest {
            size: Some(5000),
            is_open: true,
            ..SetAttrRequest::default()
        };
        soon("cut", node.fs.setattr(ino, cut)).await.unwrap();
        let before = agent.commits.borrow().len();
        let handing_over = async {
            let call = DataCall::HandOver { inos: vec![ino] };
            soon("handing over", node.fs.serve(call)).await.unwrap();
            agent.commits.borrow().len() - before
        };
        let (closed, committed) = futures_util::future::join(node.flush(ino), handing_over).await;
        closed.unwrap();
        assert_eq!((committed, agent.file(ino).0.size), (1, 5000));
    });
}
