//! Promise: a node works the same with a coordinator in a process of its own (gRPC) as with the embedded one.

use fastcache_tests::{Bytes, Coordinator, Node, Setup, serial, temp_dir};

#[test]
fn a_node_with_a_coordinator_of_its_own_process() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let (mut coordinator, flags) = Coordinator::start_with_folder(bucket.path());
    let node = Node::start(Setup {
        flags,
        ..Setup::default()
    });

    std::fs::create_dir_all(node.at("a/b/c")).expect("mkdir");
    for n in 0..50 {
        std::fs::write(
            node.at(&format!("a/b/c/{n}")),
            Bytes::of(n).range(0, 50_000),
        )
        .expect("write");
    }
    std::fs::write(node.at("large"), Bytes::of(99).range(0, 20 << 20)).expect("write");
    node.flush();

    // kill -9: what was acknowledged is in its log.
    coordinator.kill();
    coordinator.start();
    node.evict();
    for n in 0..50 {
        let got = std::fs::read(node.at(&format!("a/b/c/{n}"))).expect("read");
        assert_eq!(
            (got.len(), Bytes::of(n).first_difference(0, &got)),
            (50_000, None)
        );
    }
    std::fs::rename(node.at("a/b/c"), node.at("moved")).expect("changes work again");
    assert_eq!(
        std::fs::read_dir(node.at("moved")).expect("list").count(),
        50
    );
    let got = std::fs::read(node.at("large")).expect("read");
    assert_eq!(
        (got.len(), Bytes::of(99).first_difference(0, &got)),
        (20 << 20, None)
    );
}
