use crate::node::{CHUNK, Node, all, try_node, until};
use fastcache_api::Ino;
use fastcache_api::control::DataCall;
use fastcache_reactor::{Task, spawn};
use fastcache_types::BLOCK;

fn rewriter(node: &Node, ino: Ino, byte: u8) -> Task<()> {
    let node = node.clone();
    spawn(async move {
        node.write(ino, 0, &[byte; CHUNK]).await.unwrap();
        node.fs.fsync(ino, 0, false).await.unwrap();
        // What `fsync` promised: the coordinator has a state of the file that holds these bytes or newer ones.
        assert!(node.agent.file(ino).0.size > 0);
    })
}

/// Every commit was answered, none was refused, and the file is what the coordinator and the cloud say.
async fn settled(node: &Node, ino: Ino) {
    node.fs.fsync(ino, 0, false).await.unwrap();
    let stats = node.fs.stats();
    assert_eq!((stats.uncommitted_files, stats.conflict_files), (0, 0));
    let (attr, _) = node.fs.getattr(ino).await.unwrap();
    let (there, _) = node.agent.file(ino);
    assert_eq!(
        (attr.size, attr.layout_version),
        (there.size, there.layout_version)
    );
    let here = node.read(ino, CHUNK).await.unwrap();
    node.upload().await;
    node.evict(ino).await;
    assert_eq!(node.read(ino, CHUNK).await.unwrap(), here);
    node.at_rest().await;
}

#[test]
fn commits_of_a_file_go_out_in_order() {
    try_node(async |node| {
        let ino = node.create("file").await;
        let closer = {
            let node = node.clone();
            spawn(async move {
                node.fs.flush(ino, 0).await.unwrap();
                node.fs.flush(ino, 0).await.unwrap();
            })
        };
        all([rewriter(node, ino, 1), rewriter(node, ino, 2), closer]).await;
        let got = node.read(ino, CHUNK).await.unwrap();
        assert!(got == [1; CHUNK] || got == [2; CHUNK]);
        settled(node, ino).await;
        node.emptied().await;
    });
}

#[test]
fn a_truncation_between_seals_cuts_once() {
    try_node(async |node| {
        let ino = node.create("file").await;
        node.write(ino, 0, &[1; CHUNK]).await.unwrap();
        let cutter = {
            let node = node.clone();
            spawn(async move { node.truncate(ino, BLOCK as u64).await.unwrap() })
        };
        let sync = {
            let node = node.clone();
            spawn(async move { node.fs.fsync(ino, 0, false).await.unwrap() })
        };
        all([cutter, sync]).await;
        assert_eq!(node.read(ino, CHUNK).await.unwrap(), [1; BLOCK]);
        node.truncate(ino, CHUNK as u64).await.unwrap();
        let mut want = [1; CHUNK];
        want[BLOCK..].fill(0);
        assert_eq!(node.read(ino, CHUNK).await.unwrap(), want);
        settled(node, ino).await;
        assert_eq!(node.read(ino, CHUNK).await.unwrap(), want);
        node.emptied().await;
    });
}

#[test]
fn a_removed_file_leaves_nothing() {
    try_node(async |node| {
        let ino = node.create("file").await;
        node.write(ino, 0, &[1; CHUNK]).await.unwrap();
        let writer = {
            let node = node.clone();
            spawn(async move {
                node.write(ino, 0, &[2; BLOCK]).await.unwrap();
                node.fs.flush(ino, 0).await.unwrap();
                node.fs.release(ino, 0).await.unwrap();
            })
        };
        let remover = {
            let node = node.clone();
            spawn(async move {
                node.fs.serve(DataCall::Abandon { ino }).await.unwrap();
            })
        };
        all([writer, remover]).await;
        until("its chunks are dropped", || {
            node.fs.store().chunks_of(ino).is_empty()
        })
        .await;
        until("its commits end", || node.fs.stats().uncommitted_files == 0).await;
        node.emptied().await;
    });
}
