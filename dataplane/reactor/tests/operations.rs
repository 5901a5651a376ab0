//! Goal: operations do what their system calls do, and own their buffers until the kernel is done. Method: real files,
//! sockets and rings.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use fastcache_reactor::{
    Arena, COMMAND_BYTES, Config, Disk, DiskOptions, Fd, IoBuf, PAGE, Place, now, pool, run, sleep,
    spawn, timeout,
};

const BOUND: Duration = Duration::from_secs(20);
const BUF: usize = 128 << 10;

fn reactor<T, F: Future<Output = T>>(test: impl FnOnce() -> F) -> T {
    reactor_of(false, test)
}

fn reactor_of<T, F: Future<Output = T>>(is_wide: bool, test: impl FnOnce() -> F) -> T {
    let config = Config {
        cpu: None,
        entries: 16,
        pool_buffers: 4,
        buffer_bytes: BUF,
        wide_entries: is_wide,
    };
    run(config, || async {
        timeout(BOUND, test()).await.expect("the test hangs")
    })
    .unwrap()
}

/// Polls a future once and drops it.
async fn start_and_drop(future: impl Future) -> bool {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// Waits for a condition with the test's bound.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = now();
    while !condition() {
        assert!(start.elapsed() < BOUND, "never: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

fn pair() -> (Fd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Fd::from(OwnedFd::from(ours)), theirs)
}

/// A file on a real file system, where O_DIRECT works.
fn disk(dir: &tempfile::TempDir, len: u64) -> Disk {
    Disk::open(
        dir.path().join("disk"),
        DiskOptions {
            create_len: Some(len),
        },
    )
    .unwrap()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_disk_returns_what_was_written_from_every_kind_of_buffer() {
    let dir = dir();
    reactor(|| async {
        let disk = disk(&dir, 1 << 20);
        assert_eq!(disk.len(), 1 << 20);
        let arena = Arena::new(2, BUF).unwrap();
        let slot = arena.take().await;
        let bufs = [pool().get().await, IoBuf::alloc(BUF), slot.buf];
        for (i, mut buf) in (1u8..).zip(bufs) {
            buf.fill(i);
            let offset = u64::from(i) * BUF as u64;
            let (written, mut buf) = disk.write(buf, offset).await;
            assert_eq!(written.unwrap(), BUF);
            disk.sync().await.unwrap();
            buf.fill(0);
            let (read, buf) = disk.read(buf, offset).await;
            assert_eq!(read.unwrap(), BUF);
            assert!(buf.iter().all(|byte| *byte == i));
        }
        assert_eq!((arena.free(), pool().free()), (2, 4));
    });
}

#[test]
fn parts_of_a_pool_buffer_are_read_and_written() {
    let dir = dir();
    reactor(|| async {
        let disk = disk(&dir, 1 << 20);
        let mut head = pool().get().await;
        for (i, page) in head.chunks_mut(PAGE).enumerate() {
            page.fill(u8::try_from(i).unwrap());
        }
        let mut middle = head.split_off(3 * PAGE);
        let tail = middle.split_off(5 * PAGE);
        let (written, middle) = disk.write(middle, 0).await;
        assert_eq!(written.unwrap(), 5 * PAGE);
        let (read, tail) = disk.read(tail, 0).await;
        assert_eq!(read.unwrap(), tail.len());
        assert!((0..5).all(|i| usize::from(tail[i * PAGE]) == i + 3));
        head.unsplit(middle).unwrap();
        head.unsplit(tail).unwrap();
        assert_eq!(head.len(), BUF);
    });
}

#[test]
fn a_read_over_the_end_is_short() {
    let dir = dir();
    reactor(|| async {
        let disk = disk(&dir, 3 * PAGE as u64);
        let (read, buf) = disk.read(IoBuf::alloc(4 * PAGE), PAGE as u64).await;
        assert_eq!((read.unwrap(), buf.len()), (2 * PAGE, 4 * PAGE));
        let (read, _) = disk.read(buf, 1 << 30).await;
        assert_eq!(read.unwrap(), 0);
    });
}

#[test]
fn errors_give_the_buffer_back() {
    let dir = dir();
    reactor(|| async {
        let disk = disk(&dir, 1 << 20);
        for offset in [1 << 63, u64::MAX] {
            let (result, buf) = disk.read(pool().get().await, offset).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(buf.len(), BUF);
        }
        let (ours, theirs) = pair();
        drop(theirs);
        let (result, buf) = ours.send(IoBuf::alloc(10)).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(buf.len(), 10);
    });
}

#[test]
fn a_missing_file_is_only_created_when_asked() {
    let dir = dir();
    let path = dir.path().join("absent");
    let error = Disk::open(&path, DiskOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        Disk::open(dir.path(), DiskOptions::default()).is_err(),
        "a directory"
    );
    drop(
        Disk::open(
            &path,
            DiskOptions {
                create_len: Some(100),
            },
        )
        .unwrap(),
    );
    let longer = Disk::open(
        &path,
        DiskOptions {
            create_len: Some(50),
        },
    )
    .unwrap();
    assert_eq!(longer.len(), 100, "never made shorter");
}

#[test]
fn a_file_system_in_memory_works_too() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    reactor(|| async {
        let disk = disk(&dir, 1 << 20);
        let (written, buf) = disk.write(pool().get().await, 0).await;
        assert_eq!(written.unwrap(), buf.len());
        disk.sync().await.unwrap();
    });
}

#[test]
fn the_lock_refuses_a_second_instance_and_ends_with_the_disk() {
    let dir = dir();
    reactor(|| async {
        let first = disk(&dir, 1 << 20);
        first.try_lock_exclusive().unwrap();
        // The ring knows the file from here on.
        first.read(IoBuf::alloc(PAGE), 0).await.0.unwrap();
        let second = disk(&dir, 1 << 20);
        assert_eq!(
            second.try_lock_exclusive().unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        drop(first);
        second.try_lock_exclusive().unwrap();
    });
}

#[test]
fn many_disks_share_the_registered_places() {
    let dir = dir();
    reactor(|| async {
        let open = |i: usize| {
            let path = dir.path().join(i.to_string());
            Disk::open(
                path,
                DiskOptions {
                    create_len: Some(PAGE as u64),
                },
            )
            .unwrap()
        };
        // More than there are places, alive at once; then again in place of those dropped.
        for _ in 0..2 {
            let disks: Vec<Disk> = (0..100).map(open).collect();
            for (i, disk) in (0u8..).zip(&disks) {
                let mut buf = IoBuf::alloc(PAGE);
                buf.fill(i);
                disk.write(buf, 0).await.0.unwrap();
            }
            for (i, disk) in (0u8..).zip(&disks) {
                let (read, buf) = disk.read(IoBuf::alloc(PAGE), 0).await;
                assert_eq!((read.unwrap(), buf[0], buf[PAGE - 1]), (PAGE, i, i));
            }
        }
    });
}

#[test]
fn a_disk_keeps_many_operations_in_flight() {
    let dir = dir();
    reactor(|| async {
        let disk = disk(&dir, 1 << 20);
        let tasks: Vec<_> = (0..2000u64)
            .map(|i| {
                let disk = disk.clone();
                spawn(async move {
                    let offset = i % 256 * PAGE as u64;
                    disk.read(IoBuf::alloc(PAGE), offset).await.0.unwrap()
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await, PAGE);
        }
    });
}

#[test]
fn the_buffer_of_a_dropped_receive_is_free_only_after_its_completion() {
    reactor(|| async {
        let pool = pool();
        let (ours, mut theirs) = pair();
        let before = pool.free();
        assert!(start_and_drop(ours.recv(pool.try_get().unwrap())).await);
        // The future is gone and the kernel may still write: the buffer must not be.
        assert_eq!(pool.free(), before - 1);
        until("the receive is cancelled", || pool.free() == before).await;
        // Nothing was taken from the stream, and nothing is written to the buffer any more.
        let mut all: Vec<IoBuf> = std::iter::from_fn(|| pool.try_get()).collect();
        all.iter_mut().for_each(|buf| buf.fill(0));
        theirs.write_all(b"late").unwrap();
        let (received, buf) = ours.recv(IoBuf::alloc(16)).await;
        assert_eq!(&buf[..received.unwrap()], b"late");
        assert!(all.iter().all(|buf| buf.iter().all(|byte| *byte == 0)));
    });
}

#[test]
fn the_buffer_of_a_dropped_disk_read_is_free_only_after_its_completion() {
    let dir = dir();
    reactor(|| async {
        let disk = disk(&dir, 1 << 20);
        let mut buf = pool().get().await;
        buf.fill(9);
        let (written, buf) = disk.write(buf, 0).await;
        written.unwrap();
        drop(buf);
        let pool = pool();
        for _ in 0..200 {
            let before = pool.free();
            assert!(start_and_drop(disk.read(pool.get().await, 0)).await);
            assert_eq!(pool.free(), before - 1);
            // Never handed out while the read can write to it: what we put in stays.
            let mut buf = pool.get().await;
            buf.fill(1);
            sleep(Duration::from_micros(50)).await;
            assert!(buf.iter().all(|byte| *byte == 1));
        }
        until("all reads completed", || pool.free() == 4).await;
    });
}

#[test]
fn a_core_that_ends_waits_for_its_operations() {
    let dir = dir();
    for _ in 0..20 {
        let (pool, _theirs) = reactor(|| async {
            let disk = disk(&dir, 1 << 20);
            let (ours, theirs) = pair();
            start_and_drop(disk.read(pool().get().await, 0)).await;
            let recv_pool = pool();
            spawn(async move { ours.recv(recv_pool.get().await).await.0 }).detach();
            start_and_drop(disk.sync()).await;
            fastcache_reactor::yield_now().await;
            (pool(), theirs)
        });
        assert_eq!(pool.free(), 4);
    }
}

#[test]
fn a_dropped_accept_leaks_no_connection() {
    let dir = dir();
    reactor(|| async {
        let path = dir.path().join("socket");
        let listener = Fd::from(OwnedFd::from(UnixListener::bind(&path).unwrap()));
        // The connection is there before the accept is submitted: it is taken, and then nobody wants it.
        let mut client = UnixStream::connect(&path).unwrap();
        assert!(start_and_drop(listener.accept()).await);
        client
            .set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        let start = now();
        let mut byte = [0];
        loop {
            sleep(Duration::from_millis(1)).await;
            match client.read(&mut byte) {
                Ok(0) => break,
                // The cancel came first: the connection is still in the listener's queue.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = timeout(Duration::from_millis(100), listener.accept()).await;
                }
                other => panic!("unexpected {other:?}"),
            }
            assert!(start.elapsed() < BOUND);
        }
    });
}

#[test]
fn an_echo_over_a_unix_socket() {
    let dir = dir();
    reactor(|| async {
        let path = dir.path().join("socket");
        let listener = Fd::from(OwnedFd::from(UnixListener::bind(&path).unwrap()));
        spawn(async move {
            loop {
                let peer = listener.accept().await.unwrap();
                spawn(async move {
                    let mut buf = IoBuf::alloc(1 << 16);
                    loop {
                        let (received, mut full) = peer.recv(buf).await;
                        let received = received.unwrap();
                        if received == 0 {
                            break;
                        }
                        let rest = full.split_off(received);
                        let mut sent = 0;
                        while sent < received {
                            let part = full.split_off(sent);
                            let (count, part) = peer.send(part).await;
                            sent += count.unwrap();
                            full.unsplit(part).unwrap();
                        }
                        full.unsplit(rest).unwrap();
                        buf = full;
                    }
                })
                .detach();
            }
        })
        .detach();
        let clients: Vec<_> = (0..8u8)
            .map(|id| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let mut stream = UnixStream::connect(path).unwrap();
                    for round in 0..50usize {
                        let data = vec![id; 1 + round * 997];
                        stream.write_all(&data).unwrap();
                        let mut back = vec![0; data.len()];
                        stream.read_exact(&mut back).unwrap();
                        assert_eq!(back, data);
                    }
                })
            })
            .collect();
        until("all clients are done", || {
            clients.iter().all(|client| client.is_finished())
        })
        .await;
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
    });
}

#[test]
fn a_poller_says_when_there_is_something_to_read() {
    reactor(|| async {
        let (ours, mut theirs) = pair();
        rustix::io::ioctl_fionbio(ours.as_fd(), true).unwrap();
        let mut poller = ours.poller();
        let mut bytes = [0; 64];
        for round in 0..100u8 {
            let result = rustix::io::read(ours.as_fd(), &mut bytes);
            assert_eq!(result.unwrap_err(), rustix::io::Errno::AGAIN);
            theirs.write_all(&[round]).unwrap();
            poller.next().await.unwrap();
            assert_eq!(
                (rustix::io::read(ours.as_fd(), &mut bytes), bytes[0]),
                (Ok(1), round)
            );
        }
        // No event without data, and none lost after a dropped wait.
        assert!(
            timeout(Duration::from_millis(5), poller.next())
                .await
                .is_err()
        );
        theirs.write_all(b"x").unwrap();
        poller.next().await.unwrap();
        drop(poller);
        timeout(BOUND, ours.readable()).await.unwrap().unwrap();
    });
}

#[test]
fn descriptors_stay_open_until_their_operations_end() {
    reactor(|| async {
        let (ours, mut theirs) = pair();
        let copy = ours.clone();
        let receive = spawn(async move { copy.recv(IoBuf::alloc(8)).await });
        drop(ours);
        sleep(Duration::from_millis(1)).await;
        theirs.write_all(b"still").unwrap();
        let (count, buf) = receive.await;
        assert_eq!(&buf[..count.unwrap()], b"still");
        theirs.set_read_timeout(Some(BOUND)).unwrap();
        assert_eq!(
            theirs.read(&mut [0]).unwrap(),
            0,
            "closed with the last clone"
        );
    });
}

#[test]
fn an_arena_is_seen_by_who_maps_its_descriptor() {
    reactor(|| async {
        let arena = Arena::new(4, PAGE).unwrap();
        let all: Vec<_> = std::iter::from_fn(|| arena.try_take()).collect();
        assert_eq!((all.len(), arena.slots(), arena.free()), (4, 4, 0));
        let file = std::fs::File::from(arena.fd().try_clone_to_owned().unwrap());
        for mut slot in all {
            let byte = u8::try_from(slot.index).unwrap() + 1;
            slot.buf.fill(byte);
            let index = slot.lend();
            let mut seen = [0; PAGE];
            let offset = u64::from(index) * PAGE as u64;
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut seen, offset).unwrap();
            assert!(seen.iter().all(|b| *b == byte));
            std::os::unix::fs::FileExt::write_all_at(&file, &[99], offset).unwrap();
        }
        assert!(
            file.set_len(0).is_err(),
            "sealed: nobody can take the memory away"
        );
        let waiter = spawn({
            let arena = arena.clone();
            async move { arena.take().await.index }
        });
        sleep(Duration::from_millis(2)).await;
        assert!(!waiter.is_finished());
        let slot = arena.reclaim(2).unwrap();
        assert_eq!((slot.buf[0], slot.buf[1]), (99, 3));
        drop(slot);
        assert_eq!(waiter.await, 2);
    });
    assert!(Arena::new(0, PAGE).is_err());
    assert!(Arena::new(1, 100).is_err());
}

/// SOCKET_URING_OP_SIOCINQ: how many bytes can be read from a socket (Linux 6.7).
const SIOCINQ: u32 = 0;

async fn waiting_bytes(place: &Place) -> std::io::Result<usize> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .send_to(b"five!", socket.local_addr().unwrap())
        .unwrap();
    let socket = Fd::from(OwnedFd::from(socket));
    // SAFETY: the command touches no memory at all.
    unsafe { socket.command(SIOCINQ, [0; COMMAND_BYTES], place, None) }.await
}

#[test]
fn a_wide_ring_carries_commands_and_everything_else() {
    if let Err(error) = fastcache_reactor::has_wide_entries() {
        println!("not tested: no wide ring here: {error}");
        return;
    }
    reactor_of(true, || async {
        let dir = tempfile::tempdir_in(".").unwrap();
        let disk = disk(&dir, 1 << 20);
        let mut buf = pool().get().await;
        buf.fill(5);
        let (written, buf) = disk.write(buf, 0).await;
        assert_eq!(written.unwrap(), BUF);
        drop(buf);
        let (read, buf) = disk.read(IoBuf::alloc(PAGE), PAGE as u64).await;
        assert!(read.unwrap() == PAGE && buf.iter().all(|b| *b == 5));

        let place = pool().try_pin().unwrap();
        match waiting_bytes(&place).await {
            Ok(bytes) => assert_eq!(bytes, 5),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}"),
        }
        let held = place.take().unwrap();
        let error = waiting_bytes(&place).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "the place is held");
        drop(held);
    });
    reactor(|| async {
        let place = Place::lazy(PAGE).unwrap();
        let error = waiting_bytes(&place).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "a narrow ring");
    });
}
