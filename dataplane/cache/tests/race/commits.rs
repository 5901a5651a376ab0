use crate::node::{CHUNK, Node, all, try_node, until};
use fastcache_api::Ino;
use fastcache_api::control::DataCall;
use fastcache_reactor::{Task, spawn};
use fastcache_types::BLOCK;

/// Most bytes of a file here.
const FILE: usize = 2 * CHUNK;

/// Writes one chunk of a file.
fn writer(node: &Node, ino: Ino, index: u32) -> Task<()> {
    let node = node.clone();
    spawn(async move {
        let at = u64::from(index) * CHUNK as u64;
        node.write(ino, at, &[index as u8 + 1; CHUNK])
            .await
            .unwrap();
        node.fs.fsync(ino, 0, false).await.unwrap();
        // What `fsync` promised: the coordinator knows of it.
        let (_, layout) = node.agent.file(ino);
        assert!(layout.chunk(index, CHUNK as u32).is_some(), "{index}");
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
    let here = node.read(ino, FILE).await.unwrap();
    node.upload().await;
    node.evict(ino).await;
    assert_eq!(node.read(ino, FILE).await.unwrap(), here);
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
        all([writer(node, ino, 0), writer(node, ino, 1), closer]).await;
        let want = [[1; CHUNK], [2; CHUNK]].concat();
        assert_eq!(node.read(ino, FILE).await.unwrap(), want);
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
