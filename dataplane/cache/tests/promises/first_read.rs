//! Goal: a small file is read at its `open` where programs read what they open, and nowhere else; and whoever reads then finds
//! what is in the file at that moment. Method: files that are opened, read, and not read, in turn.

use crate::node::{CHUNK, Node, assert_same, on_node, pattern, soon};
use fastcache_api::Ino;

/// Far more than it takes to believe what programs do.
const MANY: u64 = 200;
const LEN: usize = 4096;

/// Makes a file that is in the store and that nobody has open.
async fn make(node: &Node, name: &str, data: &[u8]) -> Ino {
    let ino = node.create(name).await;
    node.write(ino, 0, data).await.unwrap();
    node.flush(ino).await.unwrap();
    close(node, ino).await;
    ino
}

/// Opens a file to read; whether the device is about to read it.
async fn open(node: &Node, ino: Ino) -> bool {
    let opened = soon("open", node.fs.open(ino, 0, false)).await.unwrap();
    opened.is_being_read
}

async fn close(node: &Node, ino: Ino) {
    soon("release", node.fs.release(ino, 0)).await.unwrap();
}

/// A file, after many that were read when they were open.
async fn after_many(node: &Node, name: &str, data: &[u8]) -> Ino {
    let first = make(node, "first", &pattern(1, LEN)).await;
    for _ in 0..MANY {
        open(node, first).await;
        node.read(first, 0, LEN).await.unwrap();
        close(node, first).await;
    }
    make(node, name, data).await
}

#[test]
fn what_programs_read_is_read_at_its_open_and_nothing_else() {
    on_node(async |node, _| {
        let first = make(&node, "first", &pattern(1, LEN)).await;
        assert!(!open(&node, first).await, "nobody has read anything yet");
        close(&node, first).await;
        for seed in 0..MANY {
            let data = pattern(seed, 1 + 97 * seed as usize);
            let ino = make(&node, &format!("file{seed}"), &data).await;
            let is_being_read = open(&node, ino).await;
            assert!(seed < MANY / 2 || is_being_read, "file {seed}");
            let got = node.read(ino, 0, data.len()).await.unwrap();
            assert_same("as it was opened", &got, &data);
            let again = node.read(ino, 0, data.len()).await.unwrap();
            assert_same("once more", &again, &data);
            close(&node, ino).await;
        }
        let large = make(&node, "large", &pattern(2, CHUNK)).await;
        assert!(!open(&node, large).await);
        let empty = make(&node, "empty", &[]).await;
        assert!(!open(&node, empty).await);
        for _ in 0..MANY {
            open(&node, first).await;
            close(&node, first).await;
        }
        assert!(!open(&node, first).await, "the kernel has the pages");
    });
}

#[test]
fn what_changes_between_open_and_read_is_read_as_it_is_then() {
    on_node(async |node, _| {
        let (old, new) = (pattern(1, LEN), pattern(2, LEN));
        let ino = after_many(&node, "file", &old).await;
        assert!(open(&node, ino).await);
        node.write(ino, 0, &new).await.unwrap();
        let got = node.read(ino, 0, LEN).await.unwrap();
        assert_same("not sealed yet", &got, &new);
        node.fsync(ino).await.unwrap();
        let got = node.read(ino, 0, LEN).await.unwrap();
        assert_same("sealed", &got, &new);
        close(&node, ino).await;

        assert!(open(&node, ino).await);
        node.truncate(ino, 10).await.unwrap();
        node.truncate(ino, LEN as u64).await.unwrap();
        let got = node.read(ino, 0, LEN).await.unwrap();
        let cut = [&new[..10], &[0; LEN - 10]].concat();
        assert_same("cut, and longer again", &got, &cut);
    });
}

#[test]
fn what_leaves_the_store_between_open_and_read_is_there() {
    on_node(async |node, _| {
        let data = pattern(1, LEN);
        let ino = after_many(&node, "file", &data).await;
        node.upload().await;
        assert!(open(&node, ino).await);
        assert_eq!(node.evict(ino).await, 1);
        let got = node.read(ino, 0, LEN).await.unwrap();
        assert_same("the file", &got, &data);
        let other = make(&node, "other", &pattern(2, LEN)).await;
        assert!(open(&node, other).await, "one that is not asked for");
        let got = node.read(ino, 0, LEN).await.unwrap();
        assert_same("the file again", &got, &data);
    });
}
