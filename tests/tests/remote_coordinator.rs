//! Promise: a node works the same with a coordinator in a process of its own (gRPC) as with the embedded one.

use fastcache_tests::{Bytes, Node, Setup, free_port, program, serial, temp_dir, wait_until};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Coordinator {
    child: Child,
}

impl Coordinator {
    fn start(state: &Path, port: u16) -> Coordinator {
        let child = Command::new(program("fastcache-ctl"))
            .args([
                "coordinator",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--state-dir",
            ])
            .arg(state)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fastcache-ctl coordinator");
        let coordinator = Coordinator { child };
        wait_until("the coordinator answers", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        coordinator
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_with_a_coordinator_of_its_own_process() {
    let _one = serial();
    let state = temp_dir("coordinator");
    let port = free_port();
    let coordinator = Coordinator::start(state.path(), port);
    let flags = vec!["--coordinator".to_owned(), format!("127.0.0.1:{port}")];
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
    drop(coordinator);
    let _coordinator = Coordinator::start(state.path(), port);
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
