//! Chunks between two processes over loopback, next to plain TCP between two processes: throughput of chunks of 4 MiB, and how long
//! 4 KiB take.
//!
//! `cargo run --release -p fastcache-peer --example loopback`. Chunks are in memory: what is measured is the protocol.

use fastcache_peer::{Chunks, Cluster, Identity, Part, PeerAt, Status, Token, listen};
use fastcache_reactor::{Config, Fd, IoBuf, now, pool, remote, run};
use fastcache_types::{CHUNK_MAX, ChunkKey, Ino, Version};
use futures_util::stream::{self, StreamExt};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 8 << 30;
const CHUNKS_AT_ONCE: usize = 4;
const SMALL_ROUNDS: usize = 20_000;
const LIMIT: Duration = Duration::from_secs(30);

type Failure = Box<dyn std::error::Error>;

/// Every chunk is there: 4 MiB, or 4 KiB with the index 1.
#[derive(Clone)]
struct Everything;

impl Chunks for Everything {
    fn find(&self, key: ChunkKey) -> Option<usize> {
        Some(if key.index == 1 { 4096 } else { CHUNK_MAX })
    }

    async fn bring(&self, key: ChunkKey) -> Option<usize> {
        self.find(key)
    }

    async fn put(&self, _: &str, _: ChunkKey, _: usize, _: IoBuf) -> Result<(), Status> {
        Ok(())
    }

    fn hold(&self, _: &str, key: ChunkKey) -> Result<usize, Status> {
        self.find(key).ok_or(Status::NotFound)
    }

    async fn take(&self, _: &str, key: ChunkKey) -> Result<usize, Status> {
        self.find(key).ok_or(Status::NotFound)
    }

    fn release(&self, _: &str, _: ChunkKey) {}

    async fn read(
        &self,
        key: ChunkKey,
        _offset: usize,
        buf: IoBuf,
    ) -> (Result<Part, Status>, IoBuf) {
        let total = self.find(key).unwrap_or(0);
        (Ok(Part { total }), buf)
    }
}

fn config() -> Config {
    Config {
        pool_buffers: 32,
        buffer_bytes: (1 << 20) + 12_288,
        ..Config::default()
    }
}

fn identity(id: &str) -> Identity {
    Identity {
        id: id.to_owned(),
        file_system: 1,
    }
}

fn serve(listener: TcpListener) -> Result<(), Failure> {
    let cluster = Arc::new(Cluster::new(Token::new(b"0123456789abcdef")?));
    cluster.set(identity("server"), &[]);
    let listener = Fd::from(OwnedFd::from(listener));
    run(config(), || async {
        listen(cluster, listener, vec![remote()], Everything).await;
    })?;
    Ok(())
}

fn serve_plain(listener: &TcpListener) -> Result<(), Failure> {
    let (mut stream, _) = listener.accept()?;
    let part = vec![7; 1 << 20];
    for _ in 0..BYTES / part.len() {
        stream.write_all(&part)?;
    }
    Ok(())
}

fn key(index: u32) -> ChunkKey {
    ChunkKey {
        ino: Ino(1),
        index,
        version: Version(1),
    }
}

fn client(address: SocketAddr) -> Result<(f64, Vec<u64>), Failure> {
    let cluster = Arc::new(Cluster::new(Token::new(b"0123456789abcdef")?));
    let server = PeerAt {
        id: "server".to_owned(),
        address,
    };
    cluster.set(identity("client"), &[server]);
    let peer = cluster.peers()[0].clone();
    let (cluster, peer) = (&cluster, &peer);
    let measured = run(config(), || async move {
        // Its memory is touched, and there is a connection.
        let mut buffers: Vec<IoBuf> = (0..CHUNKS_AT_ONCE)
            .map(|_| IoBuf::alloc(CHUNK_MAX))
            .collect();
        buffers.iter_mut().for_each(|b| b.fill(1));
        let mut small = IoBuf::alloc(4096);
        let mut times = Vec::with_capacity(SMALL_ROUNDS);
        for _ in 0..SMALL_ROUNDS {
            let since = now();
            let got = cluster.fetch(peer, key(1), 4096, small, LIMIT).await;
            times.push(u64::try_from(since.elapsed().as_nanos()).unwrap_or(0));
            small = got?.0;
        }
        let since = now();
        let done = stream::iter(buffers)
            .map(|mut buf| async move {
                for _ in 0..BYTES / CHUNK_MAX / CHUNKS_AT_ONCE {
                    buf = cluster.fetch(peer, key(0), CHUNK_MAX, buf, LIMIT).await?.0;
                }
                Ok::<_, fastcache_peer::AskError>(())
            })
            .buffer_unordered(CHUNKS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        done.into_iter().collect::<Result<Vec<()>, _>>()?;
        let seconds = since.elapsed().as_secs_f64();
        assert_eq!(pool().free(), pool().buffers());
        Ok::<_, fastcache_peer::AskError>((seconds, times))
    })?;
    Ok(measured?)
}

fn client_plain(address: SocketAddr) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(address)?;
    let mut part = vec![0; 1 << 20];
    let since = Instant::now();
    while stream.read(&mut part)? > 0 {}
    Ok(since.elapsed().as_secs_f64())
}

fn main() -> Result<(), Failure> {
    if let Some(kind) = std::env::args().nth(1) {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        println!("{}", listener.local_addr()?);
        return match kind.as_str() {
            "plain" => serve_plain(&listener),
            _ => serve(listener),
        };
    }
    let with_server = |kind: &str, test: &mut dyn FnMut(SocketAddr) -> Result<(), Failure>| {
        let mut server = Command::new(std::env::current_exe()?)
            .arg(kind)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = server.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let tested = test(line.trim().parse()?);
        server.kill()?;
        server.wait()?;
        tested
    };
    let gigabytes = |seconds: f64| BYTES as f64 / seconds / 1e9;
    let mut plain = 0.0;
    with_server("plain", &mut |at| {
        plain = gigabytes(client_plain(at)?);
        Ok(())
    })?;
    println!("plain TCP        {plain:.2} GB/s");
    with_server("peer", &mut |at| {
        let (seconds, mut times) = client(at)?;
        let chunks = gigabytes(seconds);
        println!(
            "chunks of 4 MiB  {chunks:.2} GB/s, {:.2} of plain TCP",
            chunks / plain
        );
        times.sort_unstable();
        let at = |share: usize| times[times.len() * share / 100] / 1000;
        println!("4 KiB            {} µs median, {} µs 99 %", at(50), at(99));
        Ok(())
    })
}
