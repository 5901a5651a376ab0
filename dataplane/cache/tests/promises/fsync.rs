//! Goal: `fsync` of level `peers` returns when what of the file is not in the cloud is on enough other nodes, or in the cloud, and
//! not before; and it does not wait for what can never come. Method: other nodes and an agent by a script.

use crate::agent::Agent;
use crate::node::{CHUNK, Node, on_reactor, pattern, soon, start, until};
use crate::scripted::{Does, Others};
use fastcache_api::control::{FsyncLevel, NodeAnswer};
use fastcache_api::{ChunkKey, Errno, Ino};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A file of two chunks that is being fsynced, at level `peers`.
struct Fsync {
    node: Node,
    agent: Rc<Agent>,
    others: Others,
    ino: Ino,
    keys: Vec<ChunkKey>,
    result: Rc<RefCell<Option<Result<(), Errno>>>>,
}

impl Fsync {
    async fn start(dir: &std::path::Path, homes: Vec<(&'static str, Does)>, copies: u32) -> Fsync {
        let agent = Rc::new(Agent::default());
        let node = start(dir, &agent, 1).await;
        let others = Others::around(&node);
        others.0.lock().unwrap().homes = homes;
        agent.copies.set(Some(copies));
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, CHUNK + 777)).await.unwrap();
        let result = Rc::new(RefCell::new(None));
        let (fs, done) = (node.fs.clone(), Rc::clone(&result));
        fastcache_reactor::spawn(async move {
            let synced = fs.fsync(ino, 0, false).await;
            *done.borrow_mut() = Some(synced);
        })
        .detach();
        until("it waits for copies", || {
            others.0.lock().unwrap().hurried.len() == 2
        })
        .await;
        let keys = others.0.lock().unwrap().hurried.clone();
        Fsync {
            node,
            agent,
            others,
            ino,
            keys,
            result,
        }
    }

    /// So many other nodes have a chunk.
    fn copied(&self, key: ChunkKey, copies: usize) {
        let mut script = self.others.0.lock().unwrap();
        script.copies.insert(key, copies);
        script.changed.notify(usize::MAX);
    }

    async fn still_waits(&self) {
        fastcache_reactor::sleep(Duration::from_millis(50)).await;
        assert_eq!(*self.result.borrow(), None);
    }

    async fn ended(&self) -> Result<(), Errno> {
        until("the fsync returns", || self.result.borrow().is_some()).await;
        self.result.borrow().unwrap()
    }

    async fn asks_for_the_cloud(&self) {
        let agent = Rc::clone(&self.agent);
        until("it asks for the cloud", || {
            !agent.cloud_fsyncs.borrow().is_empty()
        })
        .await;
    }

    /// Fsyncs that reached a level.
    fn counted(&self) -> Vec<(String, u64)> {
        let all = self.node.fs.stats().fsync_latency;
        let of =
            |l: &fastcache_api::control::Latency| (l.operation.clone(), l.buckets.iter().sum());
        all.iter().map(of).filter(|(_, count)| *count > 0).collect()
    }
}

#[test]
fn it_returns_when_each_chunk_has_its_copies() {
    let dir = tempfile::tempdir().unwrap();
    on_reactor(|| async {
        let homes = vec![("b", Does::Has), ("c", Does::Has)];
        let fsync = Fsync::start(dir.path(), homes, 2).await;
        fsync.copied(fsync.keys[0], 2);
        fsync.copied(fsync.keys[1], 1);
        fsync.still_waits().await;
        // The node that had the first is gone meanwhile.
        fsync.copied(fsync.keys[0], 1);
        fsync.copied(fsync.keys[1], 2);
        fsync.still_waits().await;
        fsync.copied(fsync.keys[0], 2);
        assert_eq!(fsync.ended().await, Ok(()));
        assert!(fsync.agent.cloud_fsyncs.borrow().is_empty());
        assert_eq!(fsync.agent.fsyncs.get(), 1);
        assert_eq!(fsync.counted(), [("peers".to_owned(), 1)]);
        // Nothing of it is new.
        assert_eq!(fsync.node.fsync(fsync.ino).await, Ok(()));
    });
}

#[test]
fn what_the_cloud_has_needs_no_copies() {
    let dir = tempfile::tempdir().unwrap();
    on_reactor(|| async {
        let fsync = Fsync::start(dir.path(), vec![("b", Does::Has)], 1).await;
        fsync.copied(fsync.keys[1], 1);
        fsync.still_waits().await;
        fsync.node.upload().await;
        assert_eq!(fsync.ended().await, Ok(()));
        // The record that says so was put on stable storage behind it.
        assert_eq!(fsync.agent.fsyncs.get(), 2);
        assert!(fsync.agent.cloud_fsyncs.borrow().is_empty());
    });
}

#[test]
fn too_few_nodes_or_slow_ones_make_it_wait_for_the_cloud() {
    for homes in [
        vec![],
        vec![("b", Does::Has)],
        vec![("b", Does::Has), ("c", Does::Has)],
    ] {
        let dir = tempfile::tempdir().unwrap();
        on_reactor(|| async {
            let fsync = Fsync::start(dir.path(), homes, 2).await;
            fsync.asks_for_the_cloud().await;
            fsync.still_waits().await;
            let level = FsyncLevel::Peers;
            let done = Ok(NodeAnswer::Synced { level });
            fsync.agent.let_fsyncs_go(&fsync.node.link, done);
            assert_eq!(fsync.ended().await, Ok(()));
            assert_eq!(fsync.counted(), [("peers".to_owned(), 1)]);
        });
    }
}

#[test]
fn a_cloud_that_takes_nothing_is_an_error_unless_other_nodes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    on_reactor(|| async {
        let fsync = Fsync::start(dir.path(), vec![("b", Does::Has)], 1).await;
        let (agent, link) = (&fsync.agent, &fsync.node.link);
        fsync.asks_for_the_cloud().await;
        fsync.copied(fsync.keys[1], 1);
        fsync.still_waits().await;
        agent.let_fsyncs_go(link, Err(Errno::EIO));
        fsync.asks_for_the_cloud().await;
        fsync.still_waits().await;
        agent.let_fsyncs_go(link, Err(Errno::EIO));
        assert_eq!(fsync.ended().await, Err(Errno::EIO));
        assert_eq!(fsync.counted(), []);
        // Asked again it goes on.
        let again = {
            let (fs, ino) = (fsync.node.fs.clone(), fsync.ino);
            fastcache_reactor::spawn(async move { fs.fsync(ino, 0, false).await })
        };
        fsync.copied(fsync.keys[0], 1);
        assert_eq!(soon("the second fsync", again).await, Ok(()));
    });
}

#[test]
fn copies_are_told_by_chunk() {
    let dir = tempfile::tempdir().unwrap();
    on_reactor(|| async {
        use fastcache_api::control::{DataAnswer, DataCall};
        let fsync = Fsync::start(dir.path(), vec![("b", Does::Has)], 1).await;
        fsync.copied(fsync.keys[0], 1);
        let copies = async || match fsync
            .node
            .fs
            .serve(DataCall::Copies { ino: fsync.ino })
            .await
        {
            Ok(DataAnswer::Copies(copies)) => copies,
            other => panic!("{other:?}"),
        };
        let mut told = copies().await;
        told.sort();
        assert_eq!(told, [(fsync.keys[0], 1), (fsync.keys[1], 0)]);
        fsync.node.upload().await;
        assert_eq!(copies().await, []);
    });
}
