//! What a stranger sends to a socket.

use super::place::{small_node, works};
use fastcache_tests::{Coordinator, Node, Plane, Setup, output_of, serial};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

/// Peak of a process's memory, bytes.
fn peak_rss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// What a stranger may send: nothing, noise, half a message, a length without an end.
fn garbage(rng: &mut StdRng) -> Vec<u8> {
    let mut noise = vec![0; rng.random_range(0..70_000)];
    rng.fill_bytes(&mut noise);
    match rng.random_range(0..6) {
        0 => Vec::new(),
        1 => noise,
        2 => [&u32::MAX.to_le_bytes()[..], &noise].concat(),
        3 => [&(8u32 << 20).to_le_bytes()[..], &noise].concat(),
        4 => [&20u32.to_le_bytes()[..], &noise[..noise.len().min(20)]].concat(),
        _ => {
            let mut text = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            text.extend(noise);
            text
        }
    }
}

#[test]
fn garbage_on_the_control_socket_is_refused_and_the_node_serves_on() {
    let _one = serial();
    let node = small_node();
    works(&node);
    let pid = node.pid(Plane::Data);
    let before = pid.map_or(0, peak_rss);
    let socket = node.dir().join("run/data.sock");
    let mut rng = StdRng::seed_from_u64(11);
    let mut open = Vec::new();
    for n in 0..60 {
        let mut stream = UnixStream::connect(&socket).expect("connect");
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("timeout");
        let _ = stream.write_all(&garbage(&mut rng));
        if n % 10 == 0 {
            // Some say nothing and stay.
            open.push(stream);
        } else if n % 2 == 0 {
            stream
                .set_read_timeout(Some(Duration::from_millis(50)))
                .expect("timeout");
            let _ = stream.read(&mut [0; 4096]);
        }
    }
    works(&node);
    drop(open);
    works(&node);
    node.flush();
    assert_eq!(
        node.pid(Plane::Data),
        pid,
        "the data plane was started again"
    );
    let grown = pid.map_or(0, peak_rss).saturating_sub(before);
    assert!(grown < 128 << 20, "memory grew by {grown} bytes");
}

#[test]
fn garbage_on_the_coordinators_port_is_refused_and_it_serves_on() {
    let _one = serial();
    let coordinator = Coordinator::start_with(&[]);
    let port = coordinator.port();
    let before = peak_rss(coordinator.pid());
    let mut rng = StdRng::seed_from_u64(12);
    let mut open = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("timeout");
        let _ = stream.write_all(&garbage(&mut rng));
        if n % 10 == 0 {
            open.push(stream);
        }
    }
    // A gRPC call whose message is none.
    let url = format!("http://127.0.0.1:{port}");
    let file = coordinator.dir().join("body");
    for body in [&b""[..], b"\0\0\0\0\x05abcde", b"\x01\x7f\x7f\x7f\x7fx"] {
        std::fs::write(&file, body).expect("write");
        let _ = output_of(Command::new("curl").args([
            "-sS",
            "--http2-prior-knowledge",
            "--max-time",
            "3",
            "-H",
            "content-type: application/grpc",
            "--data-binary",
            &format!("@{}", file.display()),
            &format!("{url}/fastcache.v1.Coordinator/Call"),
        ]));
    }
    let mut flags = coordinator.bucket();
    flags.extend(["--coordinator".to_owned(), coordinator.address()]);
    let node = Node::start(Setup {
        capacity: Some("64MiB"),
        flags,
        ..Setup::default()
    });
    works(&node);
    let grown = peak_rss(coordinator.pid()).saturating_sub(before);
    assert!(grown < 128 << 20, "memory grew by {grown} bytes");
    node.down();
    drop(open);
}
