//! Goal: TCP through the ring does what the system calls do. Method: loopback, with the standard library on the other end.

#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_reactor::{Config, Fd, IoBuf, run, spawn, timeout};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(20);

fn reactor<T, F: Future<Output = T>>(test: impl FnOnce() -> F) -> T {
    let config = Config {
        entries: 16,
        pool_buffers: 1,
        buffer_bytes: 4096,
        ..Config::default()
    };
    run(config, || async {
        timeout(BOUND, test()).await.expect("the test hangs")
    })
    .unwrap()
}

fn patterned(len: usize) -> IoBuf {
    let mut buf = IoBuf::alloc(len);
    for (n, byte) in buf.iter_mut().enumerate() {
        *byte = u8::try_from(n % 251).unwrap();
    }
    buf
}

#[test]
fn whole_buffers_go_and_come_over_both_families() {
    let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut listeners = vec![v4];
    // A machine without IPv6 has nothing to test there.
    listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, 0)));
    for listener in listeners {
        let address = listener.local_addr().unwrap();
        // Larger than any socket buffer, so that both sides meet short transfers.
        const LEN: usize = 32 << 20;
        reactor(|| async move {
            let listener = Fd::from(OwnedFd::from(listener));
            let server = spawn(async move {
                let stream = listener.accept().await.unwrap();
                let (got, buf) = stream.recv_whole(IoBuf::alloc(LEN)).await;
                assert_eq!(got.unwrap(), LEN);
                stream.send_whole(buf).await.0.unwrap();
            });
            let stream = Fd::connect(address).await.unwrap();
            let sent = patterned(LEN);
            let (result, sent) = stream.send_whole(sent).await;
            result.unwrap();
            let (got, back) = stream.recv_whole(IoBuf::alloc(LEN)).await;
            assert_eq!(got.unwrap(), LEN);
            assert!(back[..] == sent[..]);
            server.await;
        });
    }
}

#[test]
fn a_stream_that_ends_gives_what_came() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"half").unwrap();
    });
    reactor(|| async move {
        let stream = Fd::connect(address).await.unwrap();
        let (got, buf) = stream.recv_whole(IoBuf::alloc(4096)).await;
        assert_eq!(got.unwrap(), 4);
        assert_eq!((&buf[..4], buf.len()), (&b"half"[..], 4096));
    });
    other.join().unwrap();
}

#[test]
fn nobody_there_is_an_error_and_a_dropped_connect_leaves_nothing() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    reactor(|| async move {
        let refused = Fd::connect(closed).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // Nobody answers there (RFC 5737), or there is no way: either ends.
        let nowhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
        let _ = timeout(Duration::from_millis(50), Fd::connect(nowhere)).await;
    });
}

#[test]
fn a_reader_that_is_gone_is_an_error_and_no_signal() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).unwrap();
    });
    reactor(|| async move {
        let stream = Fd::connect(address).await.unwrap();
        let mut buf = IoBuf::alloc(8 << 20);
        let error = loop {
            let (result, back) = stream.send_whole(buf).await;
            buf = back;
            if let Err(error) = result {
                break error;
            }
        };
        assert_eq!(buf.len(), 8 << 20, "the whole buffer comes back");
        assert!(matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ));
    });
    other.join().unwrap();
}
