//! Goal: what was written here and is refused, because another node has written the file since, is in a file beside it, every
//! byte; and nothing of it gets into the other node's. Method: an agent that refuses a commit, at the moments that matter.

use crate::agent::Agent;
use crate::node::{
    CHUNK, Node, assert_same, on_node, on_reactor, pattern, soon, start, start_detached, until,
};
use fastcache_api::control::DataCall;
use fastcache_api::{Errno, Ino, NsOp};
use fastcache_cache::SetAttrRequest;
use std::rc::Rc;
use std::time::Duration;

fn is_path_of(op: &NsOp) -> bool {
    matches!(op, NsOp::PathOf { .. })
}

/// Writes something that is sealed, and whose commit waits for its answer.
async fn write_unanswered(node: &Node, ino: Ino, ours: &mut [u8]) {
    let agent = &node.agent;
    agent.ignores_commits.set(true);
    let before = agent.commits.borrow().len();
    node.write(ino, 10, b"first").await.unwrap();
    ours[10..15].copy_from_slice(b"first");
    node.fs.sync_all().await.unwrap();
    until("the commit comes", || agent.commits.borrow().len() > before).await;
}

/// A file of two chunks, of which this node has written something that is sealed, and another node both chunks since: its
/// number, what should be in the file beside it, and what is in the file.
async fn refused(node: &Node) -> (Ino, Vec<u8>, Vec<u8>) {
    let agent = &node.agent;
    node.share().await;
    let ino = node.create("file").await;
    let mut ours = pattern(1, 2 * CHUNK - 7);
    node.write(ino, 0, &ours).await.unwrap();
    node.fsync(ino).await.unwrap();
    write_unanswered(node, ino, &mut ours).await;
    let theirs = [pattern(2, CHUNK), pattern(3, CHUNK - 7)];
    agent.others_write(ino, 0, &theirs[0]);
    agent.others_write(ino, 1, &theirs[1]);
    (ino, ours, theirs.concat())
}

/// The commits that wait are answered.
fn answer(node: &Node) {
    node.agent.ignores_commits.set(false);
    node.link.detach(0, 1);
    node.agent.attach(&node.link, &node.arena, 2);
}

async fn expect(node: &Node, name: &str, want: &[u8]) {
    let found = node.fs.lookup(Ino::ROOT, name.as_bytes()).await;
    let ino = found.unwrap().attr.ino;
    let got = node.read(ino, 0, want.len() + 100).await.unwrap();
    assert_same(name, &got, want);
}

/// The one conflict file there is.
fn saved(agent: &Agent) -> String {
    let names = agent.names();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[1].starts_with("file.conflict-"), "{names:?}");
    names[1].clone()
}

#[test]
fn what_was_written_behind_a_commit_that_is_refused_is_saved_with_it() {
    on_node(async |node, agent| {
        let (ino, mut ours, mut theirs) = refused(&node).await;
        // Not sealed when the refusal comes: over what was sealed, and in a chunk that was not written since.
        for (at, bytes) in [(100, b"second"), (CHUNK + 50, b"third!")] {
            node.write(ino, at as u64, bytes).await.unwrap();
            ours[at..at + 6].copy_from_slice(bytes);
        }
        answer(&node);
        until("it is refused", || node.fs.stats().conflict_files == 1).await;
        assert_same(
            "theirs",
            &node.read(ino, 0, 2 * CHUNK).await.unwrap(),
            &theirs,
        );
        assert_eq!(node.flush(ino).await, Err(Errno::EIO));
        assert_eq!(node.flush(ino).await, Ok(()), "told once");
        expect(&node, "file", &theirs).await;
        expect(&node, &saved(&agent), &ours).await;
        // It goes on with what the file has now.
        node.write(ino, 200, b"more").await.unwrap();
        node.fsync(ino).await.unwrap();
        theirs[200..204].copy_from_slice(b"more");
        expect(&node, "file", &theirs).await;
        assert_eq!(node.fs.stats().conflict_files, 1);
        assert_eq!(node.fs.stats().uncommitted_files, 0);
    });
}

#[test]
fn what_the_file_still_has_is_there_after_what_replaced_it_here_is_refused() {
    on_node(async |node, agent| {
        node.share().await;
        let ino = node.create("file").await;
        let mut ours = pattern(1, 2 * CHUNK - 7);
        node.write(ino, 0, &ours).await.unwrap();
        node.fsync(ino).await.unwrap();
        let mut theirs = ours.clone();
        let committed = node.keys_of(ino)[0];
        write_unanswered(&node, ino, &mut ours).await;
        // Nobody else has it: it is given to who asks meanwhile, too.
        assert_ne!(node.keys_of(ino)[0], committed);
        assert_eq!(node.fs.chunk_len(committed), Some(CHUNK));
        let other = pattern(2, CHUNK - 7);
        agent.others_write(ino, 1, &other);
        theirs[CHUNK..].copy_from_slice(&other);
        answer(&node);
        until("it is refused", || node.fs.stats().conflict_files == 1).await;
        expect(&node, &saved(&agent), &ours).await;
        expect(&node, "file", &theirs).await;
        assert_eq!(node.keys_of(ino)[0], committed);
        let mut uploaded = agent.copy_dirty(&node.fs, &node.arena).await;
        uploaded.retain(|key| *key == committed);
        assert_eq!(uploaded.len(), 1, "it is not in the cloud yet");
        assert_eq!(node.flush(ino).await, Err(Errno::EIO));
        // Once a commit is taken, what it replaced goes.
        node.write(ino, 10, b"taken").await.unwrap();
        node.fsync(ino).await.unwrap();
        assert_eq!(node.fs.chunk_len(committed), None);
    });
}

#[test]
fn who_closes_what_is_refused_is_told_whoever_was_told_before() {
    on_node(async |node, _| {
        let (ino, _, _) = refused(&node).await;
        let both = futures_util::future::join(node.flush(ino), node.fsync(ino));
        let answered = async {
            fastcache_reactor::sleep(Duration::from_millis(50)).await;
            answer(&node);
        };
        let (told, ()) = futures_util::future::join(both, answered).await;
        assert_eq!(told, (Err(Errno::EIO), Err(Errno::EIO)));
    });
}

#[test]
fn writers_wait_a_moment_for_a_conflict_and_nobody_else_does() {
    on_node(async |node, agent| {
        let (ino, ours, mut theirs) = refused(&node).await;
        agent.holds_calls.set(Some(is_path_of));
        answer(&node);
        until("it is being saved", || agent.held_calls() == 1).await;
        // Until then it is here what it was.
        assert_same("ours", &node.read(ino, 0, 2 * CHUNK).await.unwrap(), &ours);
        let since = fastcache_reactor::now();
        let call = DataCall::HandOver { inos: vec![ino] };
        soon("handing over", node.fs.serve(call)).await.unwrap();
        node.revoke(ino).await;
        let mut set = SetAttrRequest::default();
        set.set.mode = Some(0o600);
        soon("chmod", node.fs.setattr(ino, set)).await.unwrap();
        assert!(since.elapsed() < Duration::from_secs(2));
        // Nothing is taken that would be in neither file.
        assert_eq!(node.write(ino, 0, b"no").await, Err(Errno::EIO));
        let write = node.write(ino, 500, b"after");
        let going = async {
            fastcache_reactor::sleep(Duration::from_millis(100)).await;
            agent.let_calls_go(&node.link);
        };
        let (written, ()) = futures_util::future::join(write, going).await;
        written.unwrap();
        assert_eq!(node.flush(ino).await, Err(Errno::EIO));
        theirs[500..505].copy_from_slice(b"after");
        expect(&node, "file", &theirs).await;
        expect(&node, &saved(&agent), &ours).await;
    });
}

#[test]
fn a_save_that_fails_is_tried_again() {
    on_node(async |node, agent| {
        let (ino, ours, theirs) = refused(&node).await;
        *agent.refuses_makes.borrow_mut() = vec![Errno::EIO, Errno::ENOSPC];
        answer(&node);
        assert_eq!(node.flush(ino).await, Err(Errno::EIO));
        assert!(agent.refuses_makes.borrow().is_empty());
        expect(&node, "file", &theirs).await;
        expect(&node, &saved(&agent), &ours).await;
    });
}

#[test]
fn what_the_file_had_and_is_nowhere_any_more_does_not_keep_the_rest_from_being_saved() {
    on_node(async |node, agent| {
        node.share().await;
        let ino = node.create("file").await;
        let mut ours = pattern(1, 2 * CHUNK);
        node.write(ino, 0, &ours).await.unwrap();
        node.fsync(ino).await.unwrap();
        node.upload().await;
        write_unanswered(&node, ino, &mut ours).await;
        // The other chunk is not here, and its object went when another node wrote it.
        assert_eq!(node.evict(ino).await, 1);
        agent.cloud.borrow_mut().clear();
        let theirs = pattern(3, CHUNK);
        agent.others_write(ino, 1, &theirs);
        answer(&node);
        let since = fastcache_reactor::now();
        let is_refused = || node.fs.stats().conflict_files == 0 && agent.names().len() == 2;
        until("it is being saved", is_refused).await;
        // Who reads it meanwhile waits for what it is then.
        let got = node.read(ino, CHUNK as u64, CHUNK).await.unwrap();
        assert_same("theirs", &got, &theirs);
        assert_eq!(node.flush(ino).await, Err(Errno::EIO));
        let took = since.elapsed();
        assert!(took < Duration::from_secs(9), "nobody has it: {took:?}");
        ours[CHUNK..].copy_from_slice(&theirs);
        expect(&node, &saved(&agent), &ours).await;
    });
}

#[test]
fn what_is_refused_after_a_restart_is_saved_too() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let (ours, theirs) = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let (ino, mut ours, theirs) = refused(&node).await;
        // Two commits: the second one makes the file shorter, and longer again.
        let shorter = SetAttrRequest {
            size: Some(CHUNK as u64 + 20),
            is_open: true,
            ..SetAttrRequest::default()
        };
        soon("truncate", node.fs.setattr(ino, shorter))
            .await
            .unwrap();
        node.write(ino, CHUNK as u64 + 30, b"last").await.unwrap();
        node.fs.sync_all().await.unwrap();
        ours.truncate(CHUNK + 20);
        ours.resize(CHUNK + 30, 0);
        ours.extend(b"last");
        (ours, theirs)
    });
    agent.ignores_commits.set(false);
    on_reactor(|| async {
        let (node, pending) = start_detached(dir.path(), &agent, 2).await;
        assert_eq!(pending.len(), 2);
        node.share().await;
        *agent.refuses_makes.borrow_mut() = vec![Errno::EIO];
        agent.attach(&node.link, &node.arena, 1);
        soon("recovery", node.fs.recover(pending)).await;
        assert_eq!(node.fs.stats().conflict_files, 1);
        assert_eq!(node.fs.stats().uncommitted_files, 0);
        expect(&node, "file", &theirs).await;
        expect(&node, &saved(&agent), &ours).await;
        // Nobody had it open: nobody is told.
        let ino = node.fs.lookup(Ino::ROOT, b"file").await.unwrap().attr.ino;
        node.fs.open(ino, 0, false).await.unwrap();
        assert_eq!(node.flush(ino).await, Ok(()));
    });
    on_reactor(|| async {
        let (_, pending) = start_detached(dir.path(), &agent, 3).await;
        assert!(pending.is_empty(), "it is over");
    });
}

#[test]
fn a_file_handed_over_before_its_maker_knew_of_it_is_not_written_without_asking() {
    on_node(async |node, agent| {
        node.share().await;
        agent
            .holds_calls
            .set(Some(|op| matches!(op, NsOp::Make { .. })));
        let overtaken = async {
            until("it is being made", || agent.held_calls() == 1).await;
            let call = DataCall::HandOver {
                inos: vec![Ino(1000)],
            };
            node.fs.serve(call).await.unwrap();
            agent.let_calls_go(&node.link);
        };
        let (ino, ()) = futures_util::future::join(node.create("file"), overtaken).await;
        assert_eq!(ino, Ino(1000));
        assert_eq!(agent.write_opens.get(), 0);
        node.write(ino, 0, b"asked").await.unwrap();
        assert_eq!(agent.write_opens.get(), 1);
        // Of one that was not handed over there is no need to.
        let other = node.create("other").await;
        node.write(other, 0, b"not asked").await.unwrap();
        assert_eq!(agent.write_opens.get(), 1);
    });
}

#[test]
fn who_could_write_is_told_and_nobody_else_takes_that_away() {
    on_node(async |node, _| {
        node.fs.set_has_coordinator(true);
        let (ino, ..) = refused(&node).await;
        let open = async |flags| node.fs.open(ino, flags, false).await.unwrap().fh;
        let (writers, reader) = ([open(1).await, open(2).await], open(0).await);
        let closing = |fh| {
            let fs = node.fs.clone();
            fastcache_reactor::spawn(async move { fs.flush(ino, fh).await })
        };
        let early = closing(open(0).await);
        answer(&node);
        until("it is refused", || node.fs.stats().conflict_files == 1).await;
        assert_eq!(early.await, Ok(()), "who only read, and waited for it");
        let later = open(1).await;
        let close = |fh| soon("close", node.fs.flush(ino, fh));
        assert_eq!(close(reader).await, Ok(()));
        assert_eq!(close(later).await, Ok(()));
        for fh in writers {
            assert_eq!(close(fh).await, Err(Errno::EIO));
            assert_eq!(close(fh).await, Ok(()), "told once");
        }
    });
}
