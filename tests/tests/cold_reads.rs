//! How fast cold data is read: the bytes are in the bucket alone. Measured as a ratio to the same client library
//! (`fastcache-cloud`) that fetches the same objects in parallel without a file system, in the same run and from the
//! same server, which is what limits most. Not part of `make test`: `make bench-cold`.

use fastcache_api::CloudRef;
use fastcache_cloud::{Cloud as Client, CloudConfig, S3Config, Secret};
use fastcache_tests::{Bytes, Cloud, Node, S3, S3s, Setup, drop_page_cache, serial};
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the large file.
const LARGE: u64 = 1 << 30;
/// Bytes of one read(2), as `dd bs=1M` does.
const PIECE: usize = 1 << 20;
/// Small files, and bytes of each.
const SMALL: usize = 2000;
const SMALL_BYTES: usize = 4096;
/// Threads that read small files.
const THREADS: usize = 8;
/// Objects that are fetched at once without a file system: as many as the agent does.
const PARALLEL: usize = 16;
/// Runs of each; the median counts.
const RUNS: usize = 3;

/// [`RUNS`], or what `FASTCACHE_COLD_RUNS` says.
fn runs() -> usize {
    let asked = std::env::var("FASTCACHE_COLD_RUNS").ok();
    asked.map_or(RUNS, |n| {
        n.parse().expect("FASTCACHE_COLD_RUNS is a number")
    })
}

/// Fetches objects with the client library; how long it took.
fn fetch_all(client: &Client, refs: &[CloudRef], parallel: usize) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let start = Instant::now();
    let done = futures_util::stream::iter(refs.to_vec())
        .map(|at| {
            let client = client.clone();
            async move {
                tokio::spawn(async move { client.get_chunk(&at).await.map(|b| b.len()) }).await
            }
        })
        .buffer_unordered(parallel)
        .try_fold(
            0,
            |sum, one| async move { Ok(sum + one.expect("an object")) },
        );
    let bytes = runtime.block_on(done).expect("no panic");
    assert_eq!(
        bytes as u64,
        refs.iter().map(|r| u64::from(r.len)).sum::<u64>()
    );
    start.elapsed()
}

/// Where each object of the bucket is, with the checksum its metadata names.
fn refs_of(client: &Client) -> Vec<CloudRef> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let found = client.walk("chunks").map(|listed| async {
            let listed = listed.expect("a listing");
            let head = client.head(&listed.key).await.expect("metadata");
            CloudRef {
                object: listed.key,
                offset: 0,
                len: u32::try_from(head.size).expect("a chunk"),
                crc32c: head.crc32c.expect("a checksum in the metadata"),
                etag: None,
            }
        });
        found.buffer_unordered(PARALLEL).collect().await
    })
}

fn median(mut runs: Vec<Duration>) -> Duration {
    runs.sort_unstable();
    runs[runs.len() / 2]
}

fn make_cold(node: &Node) {
    node.evict();
    drop_page_cache();
    assert_eq!(node.stat("chunks"), 0, "everything is cold");
}

fn read_large(node: &Node) -> Duration {
    let mut file = File::open(node.at("large")).expect("open");
    let mut buf = vec![0; PIECE];
    let start = Instant::now();
    let mut at = 0;
    loop {
        let n = file.read(&mut buf).expect("read");
        if n == 0 {
            break;
        }
        if at % (64 << 20) == 0 {
            assert_eq!(Bytes::of(1).first_difference(at, &buf[..n]), None);
        }
        at += n as u64;
    }
    assert_eq!(at, LARGE);
    start.elapsed()
}

fn read_small(node: &Node) -> Duration {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= SMALL {
                        return;
                    }
                    let got = std::fs::read(node.at(&format!("small/{i}"))).expect("read");
                    assert_eq!(got.len(), SMALL_BYTES);
                }
            });
        }
    });
    start.elapsed()
}

fn measure(server: &str, setup: Setup, client: &Client) {
    let node = Node::start(setup);
    let mut file = File::create(node.at("large")).expect("create");
    let mut buf = vec![0; PIECE];
    for at in (0..LARGE).step_by(PIECE) {
        Bytes::of(1).fill(at, &mut buf);
        file.write_all(&buf).expect("write");
    }
    drop(file);
    std::fs::create_dir(node.at("small")).expect("mkdir");
    for i in 0..SMALL {
        let data = Bytes::of(2 + i as u64).range(0, SMALL_BYTES);
        std::fs::write(node.at(&format!("small/{i}")), data).expect("write");
    }
    node.flush();
    let (large, small): (Vec<_>, Vec<_>) = refs_of(client)
        .into_iter()
        .partition(|r| r.len as usize > SMALL_BYTES);

    let (mut mounts, mut directs) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        directs.push(fetch_all(client, &large, PARALLEL));
        make_cold(&node);
        mounts.push(read_large(&node));
    }
    let rate = |took: Duration| LARGE as f64 / took.as_secs_f64() / 1e6;
    let (direct, mount) = (rate(median(directs)), rate(median(mounts)));
    println!(
        "{server}: 1 GiB, one reader: mount {mount:.0} MB/s, the client alone ({PARALLEL} at once) {direct:.0} MB/s: \
         ratio {:.2}",
        mount / direct
    );

    let (mut mounts, mut directs) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        directs.push(fetch_all(client, &small, THREADS));
        make_cold(&node);
        mounts.push(read_small(&node));
    }
    let rate = |took: Duration| SMALL as f64 / took.as_secs_f64();
    let (direct, mount) = (rate(median(directs)), rate(median(mounts)));
    println!(
        "{server}: {SMALL} files of {SMALL_BYTES} bytes, {THREADS} readers: mount {mount:.0} files/s, the client alone \
         ({THREADS} at once) {direct:.0} objects/s: ratio {:.2}",
        mount / direct
    );
}

fn client(endpoint: String, bucket: &str, access_key: &str, secret_key: &str) -> Client {
    let config = S3Config {
        bucket: bucket.to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(endpoint),
        access_key: Some(access_key.to_owned()),
        secret_key: Some(Secret::new(secret_key)),
        ..S3Config::default()
    };
    let opened = Client::open(&CloudConfig::S3(Box::new(config)));
    opened.expect("a client").expect("a store")
}

#[test]
#[ignore = "a measurement: make bench-cold"]
fn moto() {
    let _one = serial();
    let s3 = S3::start();
    let client = client(s3.endpoint(), s3.bucket(), "test", "test");
    let setup = Setup {
        cloud: Cloud::S3(s3),
        capacity: Some("4GiB"),
        ..Setup::default()
    };
    measure("moto", setup, &client);
}

#[test]
#[ignore = "a measurement: make bench-cold"]
fn s3s() {
    let _one = serial();
    let s3s = S3s::start();
    let (access_key, secret_key) = s3s.keys();
    let client = client(s3s.endpoint(), s3s.bucket(), access_key, secret_key);
    let endpoint = s3s.endpoint();
    let flags = ["--cloud-provider", "s3", "--s3-bucket", s3s.bucket()];
    let more = ["--s3-endpoint", &endpoint, "--s3-region", "us-east-1"];
    let setup = Setup {
        capacity: Some("4GiB"),
        flags: [flags, more]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        env: vec![
            ("AWS_ACCESS_KEY_ID", access_key.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret_key.to_owned()),
        ],
        ..Setup::default()
    };
    measure("s3s-fs", setup, &client);
}
