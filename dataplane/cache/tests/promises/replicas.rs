//! Goal: what is kept for other nodes stays as long as they need it, and harms nothing of this one. Method: replicas that a
//! test gives to the node, and an agent with the cloud.

use crate::node::{CHUNK, Node, assert_same, on_node, pattern, until};
use crate::scripted::with_others;
use fastcache_api::{ChunkKey, Errno, Ino, Version};
use fastcache_reactor::IoBuf;

fn key_of(ino: u64, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index: 0,
        version: Version(version),
    }
}

/// Gives a node a replica of `len` bytes.
async fn give_of(node: &Node, owner: &str, key: ChunkKey, len: usize) -> Result<(), Errno> {
    node.keep_for(owner, key, &pattern(key.version.0, len))
        .await
}

async fn give(node: &Node, key: ChunkKey, len: usize) -> Result<(), Errno> {
    give_of(node, "other", key, len).await
}

#[test]
fn replicas_stay_until_they_are_released() {
    on_node(async |node, _| {
        let key = key_of(77, 5);
        assert_eq!(node.fs.hold_for_peer("other", key), None);
        give(&node, key, 5000).await.unwrap();
        assert_eq!(node.fs.hold_for_peer("other", key), Some(5000));
        let held = || {
            let stats = node.fs.stats();
            (
                stats.peers.held_chunks,
                stats.peers.held_bytes,
                stats.dirty_chunks,
            )
        };
        assert_eq!(held(), (1, 5000, 0));
        assert_eq!(node.evict(Ino(77)).await, 0, "it is kept");
        let (read, buf) = node.fs.read_for_peer(key, 0, IoBuf::alloc(8192)).await;
        assert_eq!(read, Ok(5000));
        assert_same("a replica", &buf[..5000], &pattern(5, 5000));
        // A later version takes its place, an earlier one does not.
        give(&node, key_of(77, 6), 100).await.unwrap();
        assert_eq!(give(&node, key, 5000).await, Err(Errno::EAGAIN));
        assert_eq!(held(), (1, 100, 0));
        node.fs.release_for_peer("other", key);
        node.fs.release_for_peer("somebody else", key_of(77, 6));
        assert_eq!(node.evict(Ino(77)).await, 0, "neither of them may");
        node.fs.release_for_peer("other", key_of(77, 6));
        assert_eq!(held(), (0, 0, 0));
        assert_eq!(node.evict(Ino(77)).await, 1);
    });
}

#[test]
fn a_replica_harms_nothing_of_this_node() {
    on_node(async |node, _| {
        let data = pattern(1, CHUNK);
        let ino = node.create("own").await;
        node.write(ino, 0, &data).await.unwrap();
        node.fsync(ino).await.unwrap();
        // Whatever version comes, what is not in the cloud stays.
        let own = node.fs.store().chunks_of(ino)[0].key().version.0;
        for version in [own + 1, 1 << 40] {
            let got = give(&node, key_of(ino.0, version), 4096).await;
            assert_eq!(got, Err(Errno::EAGAIN));
        }
        assert_same("own", &node.read(ino, 0, CHUNK).await.unwrap(), &data);
        // And they do not take all the room.
        let mut taken = 0;
        while give(&node, key_of(1 << 20 | taken, 1), 4 << 20)
            .await
            .is_ok()
        {
            taken += 1;
        }
        assert!(
            (1..=3).contains(&taken),
            "{taken} of 4 MiB in a store of 64"
        );
    });
}

/// Has another node write the first chunk of a file, then writes into the middle of it here.
async fn others_write_then_this(node: &Node, ino: Ino) {
    let theirs = pattern(9, CHUNK - 50);
    node.agent.others_write(ino, 0, &theirs);
    node.revoke(ino).await;
    let before = node.agent.fetches.borrow().len();
    node.write(ino, 1000, b"ours").await.unwrap();
    node.flush(ino).await.unwrap();
    assert_eq!(
        node.agent.fetches.borrow().len(),
        before + 1,
        "fetched once"
    );
    let mut want = theirs;
    want[1000..1004].copy_from_slice(b"ours");
    want.extend(vec![0; (node.agent.file(ino).0.size as usize) - want.len()]);
    let got = node.read(ino, 0, CHUNK).await.unwrap();
    assert_same("what both wrote", &got, &want);
    assert_eq!(node.fs.stats().conflict_files, 0);
}

#[test]
fn what_is_not_in_the_cloud_makes_way_for_what_another_node_wrote_since() {
    on_node(async |node, agent| {
        node.share().await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, CHUNK)).await.unwrap();
        node.flush(ino).await.unwrap();
        assert_eq!(node.fs.stats().dirty_chunks, 1);
        // Not for somebody who only says so, and without a fetch.
        let said = key_of(ino.0, 1 << 60);
        assert_eq!(node.fs.bring_for_peer(said).await, None);
        assert!(agent.fetches.borrow().is_empty());
        assert_eq!(node.fs.stats().dirty_chunks, 1);
        others_write_then_this(&node, ino).await;
        // A reader makes way, too.
        let theirs = pattern(10, CHUNK);
        let key = node.agent.others_write(ino, 0, &theirs);
        node.revoke(ino).await;
        assert_same("read", &node.read(ino, 0, CHUNK).await.unwrap(), &theirs);
        let is_kept = || node.fs.chunk_len(key) == Some(CHUNK);
        until("it is kept", is_kept).await;
    });
}

#[test]
fn what_is_kept_for_others_makes_way_for_what_the_file_has() {
    on_node(async |node, _| {
        node.share().await;
        let ino = node.create("file").await;
        node.write(ino, 0, &pattern(1, CHUNK)).await.unwrap();
        node.flush(ino).await.unwrap();
        node.upload().await;
        assert_eq!(node.evict(ino).await, 1);
        let held = key_of(ino.0, 1 << 45);
        give(&node, held, 5000).await.unwrap();
        let said = key_of(ino.0, 1 << 60);
        assert_eq!(node.fs.bring_for_peer(said).await, None);
        assert_eq!(node.fs.hold_for_peer("other", held), Some(5000));
        others_write_then_this(&node, ino).await;
        assert_eq!(node.fs.stats().peers.held_chunks, 0);
    });
}

#[test]
fn of_two_owners_the_one_that_the_layout_names_is_kept() {
    on_node(async |node, agent| {
        let (_others, ino, _) = with_others(&node, true).await;
        let (_, layout) = agent.file(ino);
        let named = key_of(ino.0, layout.runs[0].version.0);
        let before = key_of(ino.0, 1 << 40);
        // Its number is greater, and it is older.
        give_of(&node, "b", before, 5000).await.unwrap();
        give_of(&node, "a", named, 3000).await.unwrap();
        assert_eq!(node.fs.hold_for_peer("b", before), None);
        assert_eq!(node.fs.hold_for_peer("b", named), None, "it is a's");
        assert_eq!(node.fs.hold_for_peer("a", named), Some(3000));
        // What was on its way for long changes nothing.
        let late = give_of(&node, "b", before, 5000).await;
        assert_eq!(late, Err(Errno::EAGAIN));
        assert_eq!(node.fs.hold_for_peer("a", named), Some(3000));
        // Nor where the file is gone, or nobody can be asked.
        let gone = [key_of(77, 5), key_of(77, 6)];
        give_of(&node, "b", gone[0], 100).await.unwrap();
        assert_eq!(give_of(&node, "a", gone[1], 100).await, Err(Errno::EAGAIN));
        assert_eq!(node.fs.hold_for_peer("b", gone[0]), Some(100));
    });
}
