//! Promise: what the device refuses to write is in the cloud or on another node before `close` says that it is safe; what it does not give
//! back is fetched again, and is an error that is counted where nothing else has it.

use crate::agent::Agent;
use crate::node::{CHUNK, Node, STORE_FILE, assert_same, on_reactor, pattern, soon, start, until};
use crate::scripted::{Does, Others};
use fastcache_api::control::Waited;
use fastcache_api::{Errno, Ino};
use fastcache_reactor::faults::{Operation, clear, inject};
use fastcache_reactor::timeout;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Behind superblocks, journal and checkpoints of a store of 64 MiB (docs/disk-layout.md): 32 + 1024 + 2 · 102 blocks.
const DATA_FROM: u64 = 1260 * 4096;

/// Faults of one store's data region; gone when this is dropped.
struct Sick(PathBuf);

impl Sick {
    fn of(dir: &Path) -> Sick {
        Sick(dir.join(STORE_FILE))
    }
    fn fail(&self, operation: Operation) {
        inject(
            &self.0,
            operation,
            DATA_FROM..u64::MAX,
            libc::EIO,
            usize::MAX,
        );
    }
}

impl Drop for Sick {
    fn drop(&mut self) {
        clear(&self.0);
    }
}

/// Runs `main` with a node whose device can be made to fail.
fn on_sick_node(main: impl AsyncFnOnce(Node, Rc<Agent>, &Sick)) {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let sick = Sick::of(dir.path());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        main(node, Rc::clone(&agent), &sick).await;
    });
}

#[test]
fn close_waits_for_the_cloud_while_the_device_refuses_writes() {
    on_sick_node(async |node, agent, sick| {
        let well = node.create("well").await;
        node.write(well, 0, &pattern(1, 100_000)).await.unwrap();
        node.flush(well).await.unwrap();
        assert!(agent.persists.borrow().is_empty());
        sick.fail(Operation::Write);
        // Large writes and small ones, several chunks.
        let ino = node.create("file").await;
        let bytes = pattern(2, 3 * CHUNK + 777);
        node.write(ino, 0, &bytes[..2 * CHUNK]).await.unwrap();
        for (n, piece) in bytes[2 * CHUNK..].chunks(5000).enumerate() {
            let at = (2 * CHUNK + n * 5000) as u64;
            node.write(ino, at, piece).await.unwrap();
        }
        assert_same(
            "open",
            &node.read(ino, 0, bytes.len()).await.unwrap(),
            &bytes,
        );
        let closing = node.closing(ino);
        until("close asks for the cloud", || {
            !agent.persists.borrow().is_empty()
        })
        .await;
        assert!(node.fs.stats().spilled_bytes > 0);
        // It takes longer than an answer may: close goes on with the same wait.
        let waited = Waited {
            mark: 7,
            ..Waited::default()
        };
        agent.let_persists_wait(&node.link, waited);
        until("close asks again", || !agent.persists.borrow().is_empty()).await;
        assert_eq!(agent.persists.borrow()[0].1, Some(waited));
        node.upload().await;
        agent.let_persists_go(&node.link, Ok(()));
        closing.await.unwrap();
        // What was in memory alone has left it, and comes from the cloud.
        assert_eq!(node.fs.stats().spilled_bytes, 0);
        assert!(node.fs.stats().bad_bytes > 0);
        assert_same(
            "cloud",
            &node.read(ino, 0, bytes.len()).await.unwrap(),
            &bytes,
        );
        // The cloud takes nothing either: that is an error, and nothing is lost while the process lives.
        let lost = node.create("lost").await;
        node.write(lost, 0, &pattern(3, 5000)).await.unwrap();
        let closing = node.closing(lost);
        until("close asks again", || !agent.persists.borrow().is_empty()).await;
        agent.let_persists_go(&node.link, Err(Errno::EIO));
        assert_eq!(closing.await, Err(Errno::EIO));
        assert_same(
            "kept",
            &node.read(lost, 0, 5000).await.unwrap(),
            &pattern(3, 5000),
        );
        node.upload().await;
        assert_same(
            "well",
            &node.read(well, 0, 100_000).await.unwrap(),
            &pattern(1, 100_000),
        );
    });
}

#[test]
fn another_nodes_device_is_as_good_as_the_cloud_while_this_one_refuses_writes() {
    on_sick_node(async |node, agent, sick| {
        let others = Others::around(&node);
        others.0.lock().unwrap().homes = vec![("b", Does::Has)];
        sick.fail(Operation::Write);
        let ino = node.create("file").await;
        let bytes = pattern(1, CHUNK + 777);
        node.write(ino, 0, &bytes).await.unwrap();
        let mut closing = node.closing(ino);
        let hurried = || others.0.lock().unwrap().hurried.clone();
        let both_begin = || hurried().len() == 2 && !agent.persists.borrow().is_empty();
        until("both are asked", both_begin).await;
        for key in hurried() {
            let pause = Duration::from_millis(50);
            assert!(timeout(pause, &mut closing).await.is_err(), "it waits");
            let mut script = others.0.lock().unwrap();
            script.copies.insert(key, 1);
            script.changed.notify(usize::MAX);
        }
        soon("the close", closing).await.unwrap();
        assert!(agent.cloud.borrow().is_empty());
        let got = node.read(ino, 0, bytes.len()).await.unwrap();
        assert_same("it is in memory still", &got, &bytes);
        agent.let_persists_go(&node.link, Ok(()));
    });
}

#[test]
fn a_read_error_of_a_clean_chunk_is_a_miss() {
    on_sick_node(async |node, agent, sick| {
        let ino = node.create("file").await;
        let bytes = pattern(4, 2 * CHUNK);
        node.write(ino, 0, &bytes).await.unwrap();
        node.flush(ino).await.unwrap();
        node.upload().await;
        sick.fail(Operation::Read);
        // Again and again: what was fetched cannot be read from the device either.
        for _ in 0..3 {
            assert_same(
                "read",
                &node.read(ino, 0, bytes.len()).await.unwrap(),
                &bytes,
            );
        }
        assert!(node.fs.stats().device_errors > 0);
        clear(&sick.0);
        let fetched = agent.fetches.borrow().len();
        assert_same(
            "read",
            &node.read(ino, 0, bytes.len()).await.unwrap(),
            &bytes,
        );
        assert_same(
            "read",
            &node.read(ino, 0, bytes.len()).await.unwrap(),
            &bytes,
        );
        assert!(
            agent.fetches.borrow().len() <= fetched + 2,
            "kept once it can be"
        );
    });
}

#[test]
fn a_dirty_chunk_that_cannot_be_read_is_an_error_that_is_counted() {
    on_sick_node(async |node, _, sick| {
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(5, CHUNK)).await.unwrap();
        node.flush(ino).await.unwrap();
        sick.fail(Operation::Read);
        for _ in 0..3 {
            assert_eq!(node.read(ino, 0, CHUNK).await.err(), Some(Errno::EIO));
        }
        assert_eq!(node.fs.stats().unreadable_chunks, 1);
        // The device comes to its senses: nothing was thrown away.
        clear(&sick.0);
        assert_same(
            "read",
            &node.read(ino, 0, CHUNK).await.unwrap(),
            &pattern(5, CHUNK),
        );
        node.upload().await;
        assert_eq!(node.fs.stats().unreadable_chunks, 0);
    });
}

#[test]
fn a_truncation_that_fails_takes_nothing_from_what_is_behind_it() {
    on_sick_node(async |node, _, sick| {
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(6, 2 * CHUNK)).await.unwrap();
        node.flush(ino).await.unwrap();
        // Both chunks are open: the first with one block that does not need what it had before, the second anew.
        node.write(ino, 0, &pattern(7, 4096)).await.unwrap();
        let new = pattern(8, CHUNK);
        node.write(ino, CHUNK as u64, &new).await.unwrap();
        // The block in which the file is to end has to be read, and written with zeros.
        sick.fail(Operation::Read);
        assert_eq!(node.truncate(ino, 5 * 4096 + 13).await, Err(Errno::EIO));
        clear(&sick.0);
        let size = node.fs.getattr(ino).await.unwrap().0.size;
        assert_eq!(size, 2 * CHUNK as u64);
        node.fsync(ino).await.unwrap();
        let got = node.read(ino, CHUNK as u64, CHUNK).await.unwrap();
        assert_same("behind", &got, &new);
        node.truncate(ino, 5 * 4096 + 13).await.unwrap();
        let size = node.fs.getattr(ino).await.unwrap().0.size;
        assert_eq!(size, 5 * 4096 + 13);
    });
}

/// Writes and closes a file that the device refuses to take: it is safe when it is in the cloud.
async fn close_refused(
    node: &Node,
    sick: &Sick,
    bytes: &[u8],
    when_asked: impl AsyncFnOnce(),
) -> Ino {
    sick.fail(Operation::Write);
    let ino = node.create("file").await;
    node.write(ino, 0, bytes).await.unwrap();
    let closing = node.closing(ino);
    until("close asks for the cloud", || {
        !node.agent.persists.borrow().is_empty()
    })
    .await;
    when_asked().await;
    node.upload().await;
    node.agent.let_persists_go(&node.link, Ok(()));
    soon("close", closing).await.unwrap();
    clear(&sick.0);
    ino
}

/// The records that say that a chunk is in the cloud are not on the device, its own is, and its bytes never were.
#[test]
fn what_was_brought_to_the_cloud_comes_from_there_after_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (store, before) = (dir.path().join(STORE_FILE), dir.path().join("before"));
    let agent = Rc::new(Agent::default());
    let sick = Sick::of(dir.path());
    let bytes = pattern(6, 2 * CHUNK + 777);
    let ino = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let copy = async || {
            std::fs::copy(&store, &before).unwrap();
        };
        close_refused(&node, &sick, &bytes, copy).await
    });
    std::fs::rename(&before, &store).unwrap();
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 2).await;
        // Nobody can upload them, and nobody has to.
        assert_eq!(node.fs.stats().dirty_chunks, 3);
        let read = node.read(ino, 0, bytes.len()).await.unwrap();
        assert_same("read", &read, &bytes);
        assert_eq!(node.fs.stats().unreadable_chunks, 0);
    });
}

/// The same where the journal is lost before it could say so; the machine keeps its power.
#[test]
fn what_was_brought_to_the_cloud_comes_from_there_after_the_journal_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    let sick = Sick::of(dir.path());
    let bytes = pattern(7, 2 * CHUNK + 777);
    let ino = on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let lose = async || {
            inject(&sick.0, Operation::Sync, 0..u64::MAX, libc::EIO, 1);
            assert!(node.fs.store().flush().await.is_err());
            assert!(node.fs.store().health().is_lost);
        };
        close_refused(&node, &sick, &bytes, lose).await
    });
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 2).await;
        // Part of a chunk is written anew: the rest comes from the cloud.
        node.write(ino, CHUNK as u64 + 10, b"new").await.unwrap();
        let mut bytes = bytes;
        bytes[CHUNK + 10..CHUNK + 13].copy_from_slice(b"new");
        let read = node.read(ino, 0, bytes.len()).await.unwrap();
        assert_same("read", &read, &bytes);
        node.flush(ino).await.unwrap();
        node.upload().await;
        assert_eq!(node.fs.stats().dirty_chunks, 0);
    });
}

#[test]
fn a_write_that_failed_leaves_nothing_that_hides_what_another_node_writes() {
    on_sick_node(async |node, agent, sick| {
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, CHUNK)).await.unwrap();
        node.fsync(ino).await.unwrap();
        node.share().await;
        agent.has_peers.set(true);
        // The rest of its block cannot be read.
        sick.fail(Operation::Read);
        assert_eq!(node.write(ino, 5, b"lost").await, Err(Errno::EIO));
        clear(&sick.0);
        let key = agent.others_write_anew(ino, CHUNK);
        let mut theirs = pattern(2, CHUNK);
        agent.cloud.borrow_mut().insert(key, theirs.clone());
        node.revoke(ino).await;
        let got = node.read(ino, 0, CHUNK).await.unwrap();
        assert_same("what the other node wrote", &got, &theirs);
        node.write(ino, 5, b"new").await.unwrap();
        node.fsync(ino).await.unwrap();
        theirs[5..8].copy_from_slice(b"new");
        let got = node.read(ino, 0, CHUNK).await.unwrap();
        assert_same("what both wrote", &got, &theirs);
        assert_eq!(node.fs.stats().conflict_files, 0);
    });
}
