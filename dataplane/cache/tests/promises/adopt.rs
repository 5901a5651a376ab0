//! Goal: what is kept for a node that is gone becomes this node's own, to be uploaded, and nothing else does. Method: other nodes
//! and an agent by a script.

use crate::agent::Agent;
use crate::node::{CHUNK, Node, assert_same, on_reactor, pattern, soon, start};
use crate::scripted::Others;
use fastcache_api::{ChunkKey, Ino};
use fastcache_cache::{Adopted, LeftReplica};
use std::path::Path;
use std::rc::Rc;

const LEN: usize = CHUNK - 100;

/// A node that keeps a replica for `a`, which wrote it and is gone; the cloud has it or not.
async fn with_replica(
    dir: &Path,
    agent: &Rc<Agent>,
    is_in_cloud: bool,
) -> (Node, Others, LeftReplica) {
    let node = start(dir, agent, 1).await;
    let others = Others::around(&node);
    let data = pattern(5, LEN);
    node.cold_file("file", &data).await;
    let key = agent.cloud.borrow().keys().copied().next().unwrap();
    if !is_in_cloud {
        agent.cloud.borrow_mut().clear();
    }
    others.0.lock().unwrap().sealed.clear();
    node.keep_for("a", key, &data).await.unwrap();
    assert_eq!(node.fs.left_replicas(), [], "its owner is there");
    others.0.lock().unwrap().gone.push("a");
    let of = LeftReplica {
        key,
        owner: "a".to_owned(),
        len: LEN as u32,
    };
    assert_eq!(node.fs.left_replicas(), std::slice::from_ref(&of));
    (node, others, of)
}

fn levels(node: &Node) -> (u64, u64) {
    let stats = node.fs.stats();
    (stats.peers.held_chunks, stats.dirty_chunks)
}

#[test]
fn a_replica_of_a_node_that_is_gone_becomes_this_nodes_own() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let key: ChunkKey = on_reactor(|| async {
        let (node, others, of) = with_replica(dir.path(), &agent, false).await;
        agent.events.borrow_mut().clear();
        assert_eq!(levels(&node), (1, 0));
        assert_eq!(soon("adopt", node.fs.adopt(&of)).await, Adopted::Own);
        assert_eq!(levels(&node), (0, 1));
        assert_eq!(node.fs.left_replicas(), []);
        // It is copied like what was written here, and the agent hears of it.
        assert_eq!(others.0.lock().unwrap().sealed, [of.key]);
        crate::node::until("the agent hears of it", || agent.heard_of(of.key.ino)).await;
        let got = node.read(of.key.ino, 0, LEN).await.unwrap();
        assert_same("what was taken over", &got, &pattern(5, LEN));
        of.key
    });
    // Killed: it is dirty still, and can be uploaded.
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 2).await;
        assert_eq!(levels(&node), (0, 1));
        node.upload().await;
        assert_same("the object", &agent.cloud.borrow()[&key], &pattern(5, LEN));
        assert_eq!(levels(&node), (0, 0));
    });
}

#[test]
fn what_the_cloud_has_is_only_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let (node, _, of) = with_replica(dir.path(), &agent, true).await;
        assert_eq!(soon("adopt", node.fs.adopt(&of)).await, Adopted::Needless);
        assert_eq!(levels(&node), (0, 0));
        assert_eq!(node.evict(of.key.ino).await, 1);
    });
}

#[test]
fn what_the_file_has_no_more_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let (node, _, of) = with_replica(dir.path(), &agent, false).await;
        node.share().await;
        agent.others_write(of.key.ino, 0, &pattern(9, 500));
        node.revoke(of.key.ino).await;
        assert_eq!(soon("adopt", node.fs.adopt(&of)).await, Adopted::Needless);
        assert_eq!(levels(&node), (0, 0));
        // Of a file that is gone.
        let key = ChunkKey {
            ino: Ino(4711),
            ..of.key
        };
        node.keep_for("a", key, &[0; 4096]).await.unwrap();
        let of = LeftReplica { key, ..of };
        assert_eq!(soon("adopt", node.fs.adopt(&of)).await, Adopted::Needless);
        assert_eq!(levels(&node), (0, 0));
    });
}

#[test]
fn what_another_node_keeps_here_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let (node, _, of) = with_replica(dir.path(), &agent, false).await;
        // One that took it over before has its copy here.
        let kept = node.keep_for("b", of.key, &pattern(5, LEN)).await;
        kept.unwrap();
        assert_eq!(node.fs.left_replicas(), []);
        assert_eq!(soon("adopt", node.fs.adopt(&of)).await, Adopted::Needless);
        assert_eq!(levels(&node), (1, 0));
        assert_eq!(node.fs.hold_for_peer("b", of.key), Some(LEN));
    });
}

/// Kills the node and starts it again; the other nodes are as they were.
async fn restarted(dir: &Path, agent: &Rc<Agent>, client: u64, others: &Others) -> Node {
    let node = start(dir, agent, client).await;
    node.fs.set_peers(Box::new(others.clone()));
    node
}

/// Of nobody, as after a restart.
fn of_nobody(of: &LeftReplica) -> LeftReplica {
    LeftReplica {
        owner: String::new(),
        ..of.clone()
    }
}

#[test]
fn a_restart_forgets_for_whom_a_replica_is_kept_but_not_that_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let (others, of) = on_reactor(|| async {
        let (_node, others, of) = with_replica(dir.path(), &agent, false).await;
        (others, of)
    });
    on_reactor(|| async {
        let node = restarted(dir.path(), &agent, 2, &others).await;
        assert_eq!(levels(&node), (1, 0));
        assert_eq!(node.evict(of.key.ino).await, 0, "it may be the only one");
        assert_eq!(node.fs.left_replicas(), [of_nobody(&of)]);
        // Its owner is there after all, and gives it again.
        assert_eq!(node.fs.hold_for_peer("a", of.key), None);
        node.keep_for("a", of.key, &[0; LEN]).await.unwrap();
        assert_eq!(node.fs.hold_for_peer("a", of.key), Some(LEN));
        let got = node.read(of.key.ino, 0, LEN).await.unwrap();
        assert_same("what was there", &got, &pattern(5, LEN));
    });
    on_reactor(|| async {
        let node = restarted(dir.path(), &agent, 3, &others).await;
        let of = of_nobody(&of);
        assert_eq!(soon("adopt", node.fs.adopt(&of)).await, Adopted::Own);
        assert_eq!(levels(&node), (0, 1));
    });
    on_reactor(|| async {
        let node = restarted(dir.path(), &agent, 4, &others).await;
        assert_eq!(levels(&node), (0, 1));
        node.upload().await;
        let object = &agent.cloud.borrow()[&of.key];
        assert_same("the object", object, &pattern(5, LEN));
    });
}

#[test]
fn what_was_released_is_not_kept_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let (others, key) = on_reactor(|| async {
        let (node, others, of) = with_replica(dir.path(), &agent, true).await;
        let fs = node.fs.clone();
        fastcache_reactor::spawn(async move { fs.background().await }).detach();
        node.fs.release_for_peer("a", of.key);
        let body = node.fs.store().find(of.key).unwrap();
        crate::node::until("the device hears of it", || !body.is_kept()).await;
        // It is cached, and can become a replica again.
        node.keep_for("a", of.key, &[0; LEN]).await.unwrap();
        assert!(node.fs.store().find(of.key).unwrap().is_kept());
        node.fs.release_for_peer("a", of.key);
        let body = node.fs.store().find(of.key).unwrap();
        crate::node::until("it hears of it again", || !body.is_kept()).await;
        (others, of.key)
    });
    on_reactor(|| async {
        let node = restarted(dir.path(), &agent, 2, &others).await;
        assert_eq!(levels(&node), (0, 0));
        assert_eq!(node.evict(key.ino).await, 1);
    });
}
