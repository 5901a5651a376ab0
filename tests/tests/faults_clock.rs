//! Promise: the wall clock may jump. What is cached stays cached, nothing fails or waits, and ages stay sane: nothing
//! that decides validity asks CLOCK_REALTIME.

use fastcache_tests::{
    Bytes, Cloud, Coordinator, FaultProxy, Node, S3, Setup, drop_page_cache, serial, temp_dir,
    wait_until,
};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// libfaketime for programs with threads, where Debian's package puts it.
fn library() -> PathBuf {
    let name = "faketime/libfaketimeMT.so.1";
    let places = std::fs::read_dir("/usr/lib").expect("/usr/lib");
    let mut places = places.flatten().map(|place| place.path().join(name));
    places
        .find(|path| path.exists())
        .expect("libfaketime is not here: tests/setup/install.sh installs it")
}

fn environment(offset_file: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", offset_file.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        // The wall clock alone.
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
    ]
}

#[test]
fn the_wall_clock_jumps() {
    let _one = serial();
    let folder = temp_dir("clock");
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "+0").expect("write");
    let env = environment(&offset);

    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let bucket = ["--cloud-provider", "s3", "--s3-bucket", s3.bucket()];
    let place = ["--s3-endpoint", &s3.endpoint(), "--s3-region", "us-east-1"];
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, "test".to_owned()));
    let coordinator = Coordinator::start_in(&[bucket, place].concat(), &[&env[..], &keys].concat());
    let node = Node::start(Setup {
        cloud: Cloud::S3(s3.through(&proxy)),
        capacity: Some("256MiB"),
        flags: vec!["--coordinator".to_owned(), coordinator.address()],
        env,
        ..Setup::default()
    });
    let file = |n: u64| (node.at(&format!("f{n}")), Bytes::of(n).range(0, 200_000));
    for n in 0..8 {
        let (path, bytes) = file(n);
        std::fs::write(path, bytes).expect("write");
    }
    node.flush();
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        i64::try_from(since.expect("after 1970").as_secs()).expect("a time")
    };
    for (n, jump) in [(10, 86_400), (11, -86_400), (12, 3), (13, -400_000_000)] {
        std::fs::write(&offset, format!("{jump:+}")).expect("write");
        // The jump is there when new files have its time.
        wait_until("the clock has jumped", Duration::from_secs(10), || {
            std::fs::write(node.at("probe"), "x").expect("write");
            let mtime = std::fs::metadata(node.at("probe")).expect("stat").mtime();
            (mtime - now() - jump).abs() < 60
        });
        proxy.forget();
        let started = Instant::now();
        drop_page_cache();
        for n in 0..8 {
            let (path, bytes) = file(n);
            assert!(std::fs::read(path).expect("read") == bytes);
        }
        let gets = proxy.requests().iter().filter(|r| r.is_get()).count();
        assert_eq!(gets, 0, "{jump}: what is cached was fetched again");
        let (path, bytes) = file(n);
        std::fs::write(&path, &bytes).expect("write");
        node.flush();
        assert!(std::fs::read(&path).expect("read") == bytes);
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{jump}: {:?}",
            started.elapsed()
        );
        let age = node.json(&["status"]).to_string();
        assert!(!age.contains("dirty_old"), "{jump}: {age}");
    }
    node.down();
}
