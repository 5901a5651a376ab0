//! Promise: files may be larger than the NVMe store, whose capacity is never exceeded; while the cloud takes nothing, as much
//! larger as other nodes keep of it.

use fastcache_tests::{
    Bytes, Cloud, HeldNodes, Node, S3, Setup, drop_page_cache, lose_everything, serial,
    sha256_file, wait_until,
};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PIECE: usize = 1 << 20;

fn goes_through(cloud: Cloud, bytes: u64, capacity: &'static str) {
    let _one = serial();
    let node = Node::start(Setup {
        cloud,
        capacity: Some(capacity),
        ..Setup::default()
    });
    let limit = node.stat("capacity_bytes");
    let is_over = AtomicBool::new(false);

    let (most, sum) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                let used = node.stat("used_bytes");
                assert!(used <= limit, "{used} bytes used of {limit}");
                most = used.max(most);
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        });
        // What fails in here must end the watch, too.
        let sum = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let beside = node.outside().join("same");
            let mut local = std::fs::File::create(&beside).expect("a file on the disk");
            let mut file = std::fs::File::create(node.at("large")).expect("create on the mount");
            let content = Bytes::of(2);
            let mut buf = vec![0; PIECE];
            for at in (0..bytes).step_by(PIECE) {
                content.fill(at, &mut buf);
                local.write_all(&buf).expect("write to the disk");
                file.write_all(&buf).expect("write to the mount");
            }
            drop(file);
            node.flush();
            // What was just written is in the kernel's page cache, and would be read from there.
            drop_page_cache();
            let sum = sha256_file(&node.at("large"));
            assert_eq!(sum, sha256_file(&beside));
            sum
        }));
        is_over.store(true, Ordering::Relaxed);
        (watch.join(), sum)
    });
    let sum = sum.unwrap_or_else(|e| std::panic::resume_unwind(e));
    let most = most.unwrap_or_else(|e| std::panic::resume_unwind(e));
    println!("{bytes} bytes, sha256 {sum}; at most {most} of {limit} bytes used");

    assert!(
        node.stat("evicted_chunks") > 0,
        "what does not fit was evicted, and counted"
    );
    assert!(
        node.stat("evicted_bytes") >= bytes - limit,
        "at least what does not fit"
    );
    assert!(
        node.stat("fetched_bytes") > 0,
        "and came back when it was read"
    );

    // A piece in the middle, after everything: neither first nor last in any order of eviction.
    drop_page_cache();
    let at = bytes / 2 + 12_345;
    let mut buf = vec![0; 100_000];
    let file = std::fs::File::open(node.at("large")).expect("open on the mount");
    file.read_exact_at(&mut buf, at)
        .expect("read from the mount");
    assert_eq!(Bytes::of(2).first_difference(at, &buf), None);
}

#[test]
fn two_gib_through_a_store_of_256_mib() {
    goes_through(Cloud::Dir, 2 << 30, "256MiB");
}

#[test]
fn half_a_gib_through_a_store_of_64_mib_and_s3() {
    goes_through(Cloud::S3(S3::start()), 512 << 20, "64MiB");
}

/// Most time that writing and reading may take.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_full_store_gives_chunks_to_other_nodes_while_the_cloud_takes_none() {
    let _one = serial();
    let held = HeldNodes::start(3, &[]);
    let [first, second, third] = &held.nodes[..] else {
        panic!("three nodes");
    };
    // Of 256 MiB at most three quarters may be dirty.
    let len = 216 << 20;
    let content = Bytes::of(7);
    let began = Instant::now();
    let mut file = std::fs::File::create(first.at("file")).expect("create");
    let mut buf = vec![0; PIECE];
    for at in (0..len).step_by(PIECE) {
        content.fill(at, &mut buf);
        file.write_all(&buf)
            .unwrap_or_else(|e| panic!("at {at}: {e}\n{}", first.logs()));
    }
    drop(file);
    let taken = || -> Vec<u64> {
        let nodes = held.nodes.iter();
        nodes.map(|node| node.stat("taken_chunks")).collect()
    };
    let (given, taken) = (first.stat("given_chunks"), taken());
    println!(
        "written in {:?}, {given} chunks given, {taken:?} taken",
        began.elapsed()
    );
    assert!(given >= 6, "24 MiB more than may be dirty here: {given}");
    assert_eq!(taken.iter().sum::<u64>(), given);
    assert_eq!(
        first.state_xattr("file"),
        "dirty",
        "the cloud has none of it"
    );

    // Whoever of the others is lost: what it took is on the third, too.
    wait_until("what was taken has its copies", SOON, || {
        second.stat("under_replicated_chunks") == 0 || second.stat("replicated_chunks") > 0
    });
    let began = Instant::now();
    lose_everything(second);
    drop_page_cache();
    let whole = std::fs::File::open(first.at("file")).expect("open");
    for at in (0..len).step_by(PIECE) {
        whole
            .read_exact_at(&mut buf, at)
            .unwrap_or_else(|e| panic!("at {at}: {e}\n{}", first.logs()));
        let differs = content.first_difference(at, &buf);
        assert_eq!(differs, None, "in the piece at {at}");
    }
    println!("read in {:?}", began.elapsed());
    assert_eq!(first.stat("gets"), 0, "the cloud has none of it");
    // Nothing waits for the cloud at their end.
    lose_everything(first);
    lose_everything(third);
}
