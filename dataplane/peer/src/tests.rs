//! Goal: two ends over loopback do what they should, and nothing that comes in their way hangs or hurts them. Method: client and
//! server on one reactor, a store in memory; where one end has to misbehave, a socket and frames made by hand.

mod strangers;
mod unfinished;

use crate::frame::{HEADER_BYTES, Status};
use crate::{AskError, Chunks, Cluster, Identity, Part, Peer, PeerAt, Token, listen};
use fastcache_reactor::{Config, Fd, IoBuf, now, remote, run, sleep, spawn, timeout};
use fastcache_types::{CHUNK_MAX, ChunkKey, Ino, Version};
use futures_util::future::join_all;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(5);
const FILE_SYSTEM: u64 = 7;

fn reactor<T, F: Future<Output = T>>(test: impl FnOnce() -> F) -> T {
    let config = Config {
        entries: 64,
        pool_buffers: 4,
        buffer_bytes: (1 << 20) + 8192,
        ..Config::default()
    };
    run(config, || async {
        timeout(BOUND, test()).await.expect("the test hangs")
    })
    .unwrap()
}

fn key(ino: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index: 2,
        version: Version(9),
    }
}

/// Chunks in memory. Those with an inode from 1000 on take as many milliseconds less 1000 to read.
#[derive(Clone, Default)]
struct Memory {
    chunks: Arc<Mutex<HashMap<ChunkKey, Vec<u8>>>>,
    reading: Arc<AtomicU64>,
    abandoned: Arc<AtomicU64>,
}

impl Memory {
    fn put(&self, key: ChunkKey, len: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len)
            .map(|n| (n / 4096 + n % 253 + usize::try_from(key.ino.0).unwrap()) as u8)
            .collect();
        self.chunks.lock().unwrap().insert(key, bytes.clone());
        bytes
    }
}

struct Reading<'m>(&'m Memory, bool);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reading.fetch_sub(1, Ordering::Relaxed);
        self.0
            .abandoned
            .fetch_add(u64::from(!self.1), Ordering::Relaxed);
    }
}

impl Chunks for Memory {
    fn find(&self, key: ChunkKey) -> Option<usize> {
        self.chunks.lock().unwrap().get(&key).map(Vec::len)
    }

    /// Only what has an even inode is in the cloud: one byte of it.
    async fn bring(&self, key: ChunkKey) -> Option<usize> {
        sleep(Duration::from_millis(20)).await;
        key.ino.0.is_multiple_of(2).then(|| self.put(key, 1).len())
    }

    async fn put(&self, owner: &str, key: ChunkKey, len: usize, buf: IoBuf) -> Result<(), Status> {
        assert_eq!((owner, buf.len()), ("b", len.next_multiple_of(4096)));
        if key.ino.0 == 13 {
            return Err(Status::Busy);
        }
        assert!(buf[len..].iter().all(|b| *b == 0));
        if key.ino.0 == 500 {
            sleep(Duration::from_millis(500)).await;
        }
        self.chunks.lock().unwrap().insert(key, buf[..len].to_vec());
        Ok(())
    }

    fn hold(&self, owner: &str, key: ChunkKey) -> Result<usize, Status> {
        assert_eq!(owner, "b");
        self.find(key).ok_or(match key.ino.0 {
            13 => Status::Busy,
            _ => Status::NotFound,
        })
    }

    /// What has an even inode.
    async fn take(&self, owner: &str, key: ChunkKey) -> Result<usize, Status> {
        assert_eq!(owner, "b");
        sleep(Duration::from_millis(20)).await;
        match key.ino.0.is_multiple_of(2) {
            true => self.find(key).ok_or(Status::NotFound),
            false => Err(Status::Busy),
        }
    }

    fn release(&self, _owner: &str, key: ChunkKey) {
        self.chunks.lock().unwrap().remove(&key);
    }

    async fn read(
        &self,
        key: ChunkKey,
        offset: usize,
        mut buf: IoBuf,
    ) -> (Result<Part, Status>, IoBuf) {
        assert!(buf.is_aligned() && buf.len().is_multiple_of(4096));
        self.reading.fetch_add(1, Ordering::Relaxed);
        let mut reading = Reading(self, false);
        if key.ino.0 >= 1000 {
            sleep(Duration::from_millis(key.ino.0 - 1000)).await;
        }
        reading.1 = true;
        let chunks = self.chunks.lock().unwrap();
        let Some(bytes) = chunks.get(&key) else {
            return (Err(Status::NotFound), buf);
        };
        let rest = &bytes[offset.min(bytes.len())..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        buf[n..].fill(0);
        (Ok(Part { total: bytes.len() }), buf)
    }
}

fn token() -> Token {
    Token::new(b"0123456789abcdef").unwrap()
}

fn identity(id: &str) -> Identity {
    Identity {
        id: id.to_owned(),
        file_system: FILE_SYSTEM,
    }
}

/// A server with these chunks.
fn server(memory: &Memory, token: Token, me: Option<Identity>) -> (SocketAddr, Arc<Cluster>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let cluster = Arc::new(Cluster::new(token));
    if let Some(me) = me {
        cluster.set(me, &[]);
    }
    let listener = Fd::from(OwnedFd::from(listener));
    let serving = listen(cluster.clone(), listener, vec![remote()], memory.clone());
    spawn(serving).detach();
    (address, cluster)
}

/// A client that knows the node `a` at an address.
fn client(address: SocketAddr) -> (Arc<Cluster>, Arc<Peer>) {
    let cluster = Arc::new(Cluster::new(token()));
    let a = PeerAt {
        id: "a".to_owned(),
        address,
    };
    cluster.set(identity("b"), &[a]);
    let peer = cluster.peers()[0].clone();
    (cluster, peer)
}

fn pair(memory: &Memory) -> (Arc<Cluster>, Arc<Cluster>, Arc<Peer>) {
    let (address, server) = server(memory, token(), Some(identity("a")));
    let (client, peer) = client(address);
    (server, client, peer)
}

#[test]
fn chunks_of_every_length_come_whole() {
    let memory = Memory::default();
    reactor(|| async {
        let (server, client, peer) = pair(&memory);
        let lengths = [
            1,
            4095,
            4096,
            4097,
            1 << 20,
            (1 << 20) + 1,
            CHUNK_MAX - 1,
            CHUNK_MAX,
        ];
        let mut all = 0;
        for (n, len) in (1..).zip(lengths) {
            let bytes = memory.put(key(n), len);
            // As it should be, less (it was cut), more, and nothing known.
            for expected in [len, len / 2, CHUNK_MAX, 0] {
                let buf = IoBuf::alloc(CHUNK_MAX);
                let got = client.fetch(&peer, key(n), expected, buf, SOON).await;
                let (buf, total) = got.unwrap();
                assert_eq!((total, buf.len()), (len, CHUNK_MAX));
                assert!(buf[..len] == bytes[..], "{len} bytes, {expected} expected");
                all += len as u64;
            }
            assert_eq!(client.has(&peer, key(n), SOON).await, Ok(len));
        }
        let stats = client.stats().peers[0].clone();
        assert_eq!(
            (stats.in_bytes, stats.errors, stats.connections),
            (all, 0, 1)
        );
        assert_eq!(server.stats().served_bytes, all);
        assert!(stats.latency.buckets.iter().sum::<u64>() > 0);
        assert!(peer.usual() > Duration::ZERO);
    });
}

#[test]
fn what_is_not_there_is_said_at_once() {
    let memory = Memory::default();
    reactor(|| async {
        let (server, client, peer) = pair(&memory);
        memory.put(key(1), 100);
        let other = ChunkKey {
            version: Version(10),
            ..key(1)
        };
        for key in [key(2), other] {
            let buf = IoBuf::alloc(CHUNK_MAX);
            let got = client.fetch(&peer, key, 4096, buf, SOON).await;
            assert_eq!(got.unwrap_err(), AskError::NotFound);
            assert_eq!(client.has(&peer, key, SOON).await, Err(AskError::NotFound));
        }
        assert_eq!(server.stats().served_absent, 4);
        assert_eq!(client.stats().peers[0].errors, 0);
    });
}

#[test]
fn a_home_fetches_for_others_as_far_as_it_can() {
    let memory = Memory::default();
    reactor(|| async {
        let (_server, client, peer) = pair(&memory);
        assert_eq!(client.bring(&peer, key(2), SOON).await, Ok(1));
        assert_eq!(client.has(&peer, key(2), SOON).await, Ok(1));
        assert_eq!(
            client.bring(&peer, key(3), SOON).await,
            Err(AskError::NotFound)
        );
        // More than it does at once: those are told so, and others are served meanwhile.
        let asked = (0..100).map(|n| client.bring(&peer, key(4 + 2 * n), SOON));
        let (all, has) = futures_util::join!(join_all(asked), client.has(&peer, key(2), SOON));
        assert_eq!(has, Ok(1));
        let done = all.iter().filter(|a| **a == Ok(1)).count();
        let busy = all.iter().filter(|a| **a == Err(AskError::Busy)).count();
        assert!(
            done >= 32 && busy > 0 && done + busy == 100,
            "{done} and {busy}"
        );
    });
}

#[test]
fn replicas_are_given_held_and_released() {
    let memory = Memory::default();
    reactor(|| async {
        let (_server, client, peer) = pair(&memory);
        let give = async |key: ChunkKey, bytes: &[u8], parts: &[usize]| {
            let mut at = 0;
            for len in parts {
                let mut frame = IoBuf::alloc(HEADER_BYTES + len);
                frame[HEADER_BYTES..].copy_from_slice(&bytes[at..at + len]);
                client.put(&peer, key, bytes.len(), at, frame, SOON).await?;
                at += len;
            }
            Ok::<(), AskError>(())
        };
        let bytes: Vec<u8> = (0..(1 << 20) + 100).map(|n| (n % 251) as u8).collect();
        assert_eq!(
            client.hold(&peer, key(1), SOON).await,
            Err(AskError::NotFound)
        );
        assert_eq!(give(key(1), &bytes, &[1 << 20, 100]).await, Ok(()));
        assert_eq!(memory.chunks.lock().unwrap()[&key(1)], bytes);
        assert_eq!(client.hold(&peer, key(1), SOON).await, Ok(bytes.len()));
        assert_eq!(give(key(2), b"one byte more", &[13]).await, Ok(()));
        let held = client.hold(&peer, key(13), SOON).await;
        assert_eq!(held, Err(AskError::Busy));
        assert_eq!(give(key(13), b"not now", &[7]).await, Err(AskError::Busy));
        // One that was not begun.
        let frame = IoBuf::alloc(HEADER_BYTES + 100);
        let got = client.put(&peer, key(5), 4196, 4096, frame, SOON).await;
        assert_eq!(got, Err(AskError::Busy));
        assert_eq!(client.take(&peer, key(2), SOON).await, Ok(13));
        assert_eq!(client.take(&peer, key(1), SOON).await, Err(AskError::Busy));
        let missing = client.take(&peer, key(4), SOON).await;
        assert_eq!(missing, Err(AskError::NotFound));
        client.release(&peer, key(1));
        // Behind it on the same connection.
        assert_eq!(
            client.has(&peer, key(1), SOON).await,
            Err(AskError::NotFound)
        );
        assert_eq!(client.stats().peers[0].out_bytes, bytes.len() as u64 + 13);
    });
}

#[test]
fn a_core_without_a_connection_releases_what_another_one_gave() {
    let memory = Memory::default();
    reactor(|| async {
        let (_server, client, peer) = pair(&memory);
        let frame = IoBuf::alloc(HEADER_BYTES + 100);
        let given = client.put(&peer, key(1), 100, 0, frame, SOON).await;
        given.expect("it is given");
        let (of_another, at) = (client.clone(), peer.clone());
        let other = std::thread::spawn(move || {
            reactor(|| async { of_another.release(&at, key(1)) });
        });
        let begin = now();
        while client.has(&peer, key(1), SOON).await != Err(AskError::NotFound) {
            assert!(begin.elapsed() < SOON, "it is kept");
            sleep(Duration::from_millis(5)).await;
        }
        other.join().expect("the other core");
    });
}

#[test]
fn many_requests_share_a_connection_and_slow_ones_hold_up_nobody() {
    let memory = Memory::default();
    reactor(|| async {
        let (_server, client, peer) = pair(&memory);
        // Slow: 600 ms.
        memory.put(key(1600), 4096);
        let slow = spawn({
            let (client, peer) = (client.clone(), peer.clone());
            async move {
                let got = client
                    .fetch(&peer, key(1600), 4096, IoBuf::alloc(4096), SOON)
                    .await;
                (got.unwrap().1, now())
            }
        });
        // More than may be in flight, by number and by bytes.
        let few: Vec<_> = (0..4).map(|n| memory.put(key(n), 1 << 20)).collect();
        let asked = (0..400).map(|n| {
            let (client, peer, few) = (&client, &peer, &few);
            async move {
                let n = n % 4;
                let buf = IoBuf::alloc(1 << 20);
                let got = client.fetch(peer, key(n as u64), 1 << 20, buf, BOUND).await;
                let (buf, len) = got.unwrap();
                assert!(len == 1 << 20 && buf[..] == few[n][..]);
            }
        });
        let quick = memory.put(key(9), 5000);
        let got = client
            .fetch(&peer, key(9), 5000, IoBuf::alloc(8192), SOON)
            .await;
        assert!(got.unwrap().0[..5000] == quick[..]);
        let done = now();
        let (len, at) = slow.await;
        assert!(len == 4096 && at > done, "the quick one came first");
        join_all(asked).await;
        assert_eq!(client.stats().peers[0].connections, 1);
    });
}

#[test]
fn who_gives_up_is_no_longer_served() {
    let memory = Memory::default();
    reactor(|| async {
        let (_server, client, peer) = pair(&memory);
        memory.put(key(9999), 4096);
        memory.put(key(1), 4096);
        let buf = IoBuf::alloc(4096);
        let limit = Duration::from_millis(100);
        let got = client.fetch(&peer, key(9999), 4096, buf, limit).await;
        assert_eq!(got.unwrap_err(), AskError::Deadline);
        let since = now();
        while memory.abandoned.load(Ordering::Relaxed) == 0 {
            assert!(since.elapsed() < SOON, "the other node goes on reading");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(memory.reading.load(Ordering::Relaxed), 0);
        // The connection is as good as before.
        let got = client
            .fetch(&peer, key(1), 4096, IoBuf::alloc(4096), SOON)
            .await;
        assert_eq!(got.unwrap().1, 4096);
        let stats = client.stats().peers[0].clone();
        assert_eq!((stats.connections, stats.errors), (1, 1));
    });
}

#[test]
fn a_node_that_is_not_there_is_found_out_once_and_found_again() {
    let memory = Memory::default();
    memory.put(key(1), 4096);
    reactor(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (client, peer) = client(address);
        for _ in 0..50 {
            let got = client
                .fetch(&peer, key(1), 4096, IoBuf::alloc(4096), SOON)
                .await;
            assert_eq!(got.unwrap_err(), AskError::Down);
        }
        let tried = client.stats().peers[0].errors;
        assert!((1..10).contains(&tried), "{tried} connections were tried");
        // It comes up at the same place.
        let cluster = Arc::new(Cluster::new(token()));
        cluster.set(identity("a"), &[]);
        let listener = Fd::from(OwnedFd::from(TcpListener::bind(address).unwrap()));
        spawn(listen(cluster, listener, vec![remote()], memory.clone())).detach();
        let since = now();
        while client
            .fetch(&peer, key(1), 4096, IoBuf::alloc(4096), SOON)
            .await
            .is_err()
        {
            assert!(since.elapsed() < SOON);
            sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_node_that_leaves_the_list_is_hung_up_on() {
    let memory = Memory::default();
    memory.put(key(1), 4096);
    memory.put(key(9999), 4096);
    reactor(|| async {
        let (server, client, peer) = pair(&memory);
        let waiting = spawn({
            let (client, peer) = (client.clone(), peer.clone());
            async move {
                client
                    .fetch(&peer, key(9999), 4096, IoBuf::alloc(4096), BOUND)
                    .await
            }
        });
        while memory.reading.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        client.set(identity("b"), &[]);
        assert_eq!(waiting.await.unwrap_err(), AskError::Cut);
        let since = now();
        while server.stats().served_connections > 0 {
            assert!(since.elapsed() < SOON);
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn tokens_are_neither_short_nor_shown() {
    assert!(Token::new(b"  short  ").is_err());
    assert!(Token::new(&[b'x'; crate::TOKEN_MAX + 1]).is_err());
    let token = Token::new(b"\n0123456789abcdef\n").unwrap();
    assert!(!format!("{token:?}").contains("0123"));
}
