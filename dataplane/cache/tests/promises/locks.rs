//! Goal: what the coordinator has of a program's locks is what the program holds, however asking went: a close gives all
//! up, an interrupted wait changes nothing. Method: a coordinator that fails, or answers when it is told to.

use crate::node::{Node, on_node, soon, until};
use fastcache_api::control::{DataAnswer, DataCall};
use fastcache_api::locks::{LOCK_END, Lock};
use fastcache_api::{Errno, Ino};
use fastcache_reactor::Task;

const WHOLE: Lock = Lock {
    owner: 7,
    is_flock: false,
    start: 0,
    end: LOCK_END,
    is_exclusive: true,
    pid: 1,
};

/// What the node would bring a coordinator that was restarted.
async fn held(node: &Node) -> Vec<(Ino, Lock)> {
    match node.fs.serve(DataCall::Locks).await {
        Ok(DataAnswer::Locks(held)) => held,
        other => panic!("Locks: {other:?}"),
    }
}

/// Asks for a lock, with an interrupt's number 33, until the coordinator lets it wait.
async fn waits(node: &Node, ino: Ino, lock: Lock) -> Task<Result<(), Errno>> {
    let fs = node.fs.clone();
    let waiting = fastcache_reactor::spawn(async move { fs.set_lock(ino, lock, Some(33)).await });
    until("it waits", || node.agent.locks.waiting() == 1).await;
    waiting
}

#[test]
fn a_lock_is_gone_with_its_owner_even_when_nobody_could_be_told() {
    on_node(async |node, agent| {
        let (desk, ino) = (&agent.locks, Ino(5));
        node.fs.set_lock(ino, WHOLE, None).await.unwrap();
        desk.fails.set(true);
        let closed = soon("a close", node.fs.unlock_all(ino, 7, false)).await;
        assert_eq!(closed, Err(Errno::EIO));
        assert!(held(&node).await.is_empty(), "nobody asks again");
        // The owner's number may be used again before the coordinator is back.
        let again = Lock { end: 9, ..WHOLE };
        assert_eq!(
            node.fs.set_lock(ino, again, None).await,
            Err(Errno::EIO),
            "it is away"
        );
        let asked = desk.asked.get();
        desk.fails.set(false);
        node.fs.set_lock(ino, again, None).await.unwrap();
        // Both, the close and the lock that failed, are seen to.
        until("the rest is given up", || {
            desk.has(ino) == [again] && desk.asked.get() >= asked + 3
        })
        .await;
        assert_eq!(desk.has(ino), [again], "what it has taken since stays");
        assert_eq!(held(&node).await, [(ino, again)]);
    });
}

#[test]
fn a_lock_whose_answer_was_lost_is_not_left_behind() {
    on_node(async |node, agent| {
        let (desk, ino) = (&agent.locks, Ino(5));
        desk.loses_answers.set(true);
        let asked = node.fs.set_lock(ino, WHOLE, None).await;
        assert_eq!(asked, Err(Errno::EIO));
        assert_eq!(desk.has(ino), [WHOLE]);
        desk.loses_answers.set(false);
        until("it is given back", || desk.has(ino).is_empty()).await;
    });
}

#[test]
fn what_was_written_is_committed_before_a_closed_file_is_unlocked() {
    on_node(async |node, agent| {
        node.share().await;
        let desk = &agent.locks;
        let ino = node.create("file").await;
        node.fs.set_lock(ino, WHOLE, None).await.unwrap();
        node.write(ino, 0, b"under the lock").await.unwrap();
        desk.fails.set(true);
        let closed = soon("a close", node.fs.unlock_all(ino, 7, false)).await;
        assert_eq!(closed, Err(Errno::EIO));
        desk.fails.set(false);
        until("it is given up", || desk.has(ino).is_empty()).await;
        assert_eq!(agent.file(ino).0.size, 14);
    });
}

#[test]
fn an_interrupted_change_of_a_lock_leaves_the_old_one() {
    on_node(async |node, agent| {
        let (desk, ino) = (&agent.locks, Ino(5));
        let reads = Lock {
            is_exclusive: false,
            start: 100,
            end: 199,
            ..WHOLE
        };
        node.fs.set_lock(ino, reads, None).await.unwrap();
        desk.holds_waiting.set(true);
        desk.ignores_cancels.set(true);
        let waiting = waits(&node, ino, WHOLE).await;
        node.fs.interrupt_lock(33);
        assert_eq!(soon("an interrupt", waiting).await, Err(Errno::EINTR));
        desk.answer_waiting(&node.link, true);
        until("it is as it was", || desk.has(ino) == [reads]).await;
        assert_eq!(held(&node).await, [(ino, reads)]);
    });
}

#[test]
fn who_is_interrupted_waits_no_more_at_the_coordinator_either() {
    on_node(async |node, agent| {
        let (desk, ino) = (&agent.locks, Ino(5));
        desk.holds_waiting.set(true);
        let waiting = waits(&node, ino, WHOLE).await;
        node.fs.interrupt_lock(33);
        assert_eq!(soon("an interrupt", waiting).await, Err(Errno::EINTR));
        assert_eq!(desk.waiting(), 0);
        assert!(held(&node).await.is_empty());
    });
}

#[test]
fn a_flock_that_waits_to_become_exclusive_is_none_meanwhile() {
    on_node(async |node, agent| {
        let (desk, ino) = (&agent.locks, Ino(5));
        let shared = Lock {
            is_flock: true,
            is_exclusive: false,
            ..WHOLE
        };
        let exclusive = Lock {
            is_exclusive: true,
            ..shared
        };
        node.fs.set_lock(ino, shared, None).await.unwrap();
        desk.holds_waiting.set(true);
        let waiting = waits(&node, ino, exclusive).await;
        // The coordinator gave the old one up, and another node may have it by now.
        desk.answer_waiting(&node.link, false);
        until("it waits on", || desk.waiting() == 1).await;
        assert!(held(&node).await.is_empty());
        desk.answer_waiting(&node.link, true);
        soon("the lock", waiting).await.unwrap();
        assert_eq!(held(&node).await, [(ino, exclusive)]);
    });
}
