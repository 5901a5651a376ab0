//! Promise: what is wrong between metadata, bucket and device is found and named; what nothing names is deleted, and
//! nothing else is, however busy the file system is.

use fastcache_tests::{
    Bytes, Cloud, Fault, FaultProxy, Node, Plane, S3, Setup, run, serial, wait_until,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The long form goes on for two minutes.
fn is_long() -> bool {
    std::env::var_os("FASTCACHE_GC_LONG").is_some()
}

/// Files of several chunks, of one, of one byte, and without contents.
const SIZES: [usize; 5] = [9_000_000, 5_000_000, 4 << 20, 1, 0];

fn fill(node: &Node) -> BTreeMap<String, Vec<u8>> {
    std::fs::create_dir(node.at("dir")).expect("mkdir");
    let mut files = BTreeMap::new();
    for (i, size) in SIZES.iter().enumerate() {
        let name = format!("dir/{i}");
        let bytes = Bytes::of(i as u64).range(0, *size);
        std::fs::write(node.at(&name), &bytes).expect("write");
        files.insert(name, bytes);
    }
    std::os::unix::fs::symlink("dir/0", node.at("link")).expect("symlink");
    std::fs::hard_link(node.at("dir/1"), node.at("hard")).expect("link");
    files.insert("hard".to_owned(), files["dir/1"].clone());
    node.flush();
    files
}

fn reads_back(node: &Node, files: &BTreeMap<String, Vec<u8>>) {
    node.evict();
    for (name, bytes) in files {
        let got = std::fs::read(node.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(got == *bytes, "{name} does not read back");
    }
}

/// Objects of a file's chunks, in order.
fn objects_of(node: &Node, file: &str) -> Vec<String> {
    let state = node.json(&["state", file]);
    let chunks = state["chunks"].as_array().expect("chunks");
    chunks
        .iter()
        .map(|c| c["object"].as_str().expect("persisted").to_owned())
        .collect()
}

/// Code, path and object of each finding.
fn findings(report: &Value) -> BTreeSet<(String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let listed = report["listed"].as_array().expect("findings");
    assert_eq!(report["findings"].as_u64(), Some(listed.len() as u64));
    listed
        .iter()
        .map(|f| (text(&f["code"]), text(&f["path"]), text(&f["object"])))
        .collect()
}

fn object_path(node: &Node, object: &str) -> PathBuf {
    node.dir().join("cloud").join(object)
}

fn all_objects(node: &Node) -> BTreeSet<(String, u64)> {
    node.data_objects().into_iter().collect()
}

#[test]
fn a_leak_a_missing_a_short_and_an_altered_object_are_named_and_only_the_leak_goes() {
    let _one = serial();
    let node = Node::start_default();
    let files = fill(&node);

    let (code, report) = node.verdict(&["fsck", "--deep", "--grace", "0s"]);
    assert_eq!(
        (code, &report["is_clean"]),
        (0, &Value::Bool(true)),
        "{report:#}"
    );
    let data: u64 = files.values().map(|b| b.len() as u64).sum::<u64>() - 5_000_000;
    assert!(report["read_bytes"].as_u64() >= Some(data), "{report:#}");
    let (code, report) = node.verdict(&["gc", "--grace", "0s"]);
    assert_eq!((code, report["leaks"].as_u64()), (0, Some(0)), "{report:#}");

    // What goes wrong.
    let missing = objects_of(&node, "dir/0")[1].clone();
    let short = objects_of(&node, "dir/1")[0].clone();
    let altered = objects_of(&node, "dir/2")[0].clone();
    let kept = node.outside().join("kept");
    std::fs::create_dir(&kept).expect("mkdir");
    let mut hidden: Vec<(PathBuf, PathBuf)> = Vec::new();
    for (i, object) in [&missing, &short, &altered].into_iter().enumerate() {
        let (at, copy) = (object_path(&node, object), kept.join(i.to_string()));
        std::fs::copy(&at, &copy).expect("copy");
        hidden.push((at, copy));
    }
    std::fs::remove_file(&hidden[0].0).expect("remove");
    let cut = std::fs::File::options()
        .write(true)
        .open(&hidden[1].0)
        .expect("open");
    cut.set_len(1000).expect("cut");
    let mut bytes = std::fs::read(&hidden[2].0).expect("read");
    bytes[12_345] ^= 1;
    std::fs::write(&hidden[2].0, &bytes).expect("write");
    // An object of a version that the file does not have (a chunk it does not even reach), and one of a file that there
    // never was: as if their uploads had ended too late.
    let (ino, rest) = missing["chunks/".len()..].split_once('/').expect("a key");
    let version = rest.split_once('-').expect("a key").1;
    let other = u64::from_str_radix(ino, 16).expect("a number") + 0xfff;
    let leaks = [
        format!("chunks/{ino}/77-{version}"),
        format!("chunks/{other:x}/0-{version}"),
    ];
    for leak in &leaks {
        let at = object_path(&node, leak);
        std::fs::create_dir_all(at.parent().expect("a folder")).expect("mkdir");
        std::fs::write(at, b"nobody needs this").expect("write");
    }
    let foreign = object_path(&node, "chunks/README");
    std::fs::write(&foreign, b"not ours").expect("write");

    // Each is found, and named.
    let found = |code: &str, path: &str, object: &str| {
        (code.to_owned(), path.to_owned(), object.to_owned())
    };
    // A file with two names is told by either.
    let name = |report: &Value| {
        let listed = report["listed"].as_array().expect("findings");
        let of = |f: &&Value| f["object"] == short.as_str();
        let path = listed.iter().find(of).map(|f| f["path"].clone());
        let path = path
            .and_then(|p| p.as_str().map(str::to_owned))
            .unwrap_or_default();
        assert!(["dir/1", "hard"].contains(&path.as_str()), "{report:#}");
        path
    };
    let (code, report) = node.verdict(&["fsck", "--deep", "--grace", "0s"]);
    let want = BTreeSet::from([
        found("missing_object", "dir/0", &missing),
        found("wrong_length", &name(&report), &short),
        found("wrong_checksum", "dir/2", &altered),
        found("leak", "", &leaks[0]),
        found("leak", "", &leaks[1]),
    ]);
    assert_eq!((code, findings(&report)), (1, want), "{report:#}");
    // They are young, and this is what the grace time is for.
    let (code, report) = node.verdict(&["gc", "--delete"]);
    assert_eq!((code, report["leaks"].as_u64()), (0, Some(0)), "{report:#}");
    assert_eq!(report["young"].as_u64(), Some(2), "{report:#}");

    // A dry run deletes nothing.
    let before = all_objects(&node);
    let (code, report) = node.verdict(&["gc", "--grace", "0s"]);
    assert_eq!((code, report["leaks"].as_u64()), (1, Some(2)), "{report:#}");
    assert_eq!(report["foreign"][0], "chunks/README", "{report:#}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(all_objects(&node), before);
    // Only the leaks go: to the deletion queue, and when a snapshot in the bucket is past that, for good.
    let (code, report) = node.verdict(&["gc", "--delete", "--grace", "0s"]);
    assert_eq!(
        (code, report["discarded"].as_u64()),
        (0, Some(2)),
        "{report:#}"
    );
    let (code, report) = node.verdict(&["gc", "--grace", "0s"]);
    assert_eq!((code, report["leaks"].as_u64()), (0, Some(0)), "{report:#}");
    let without: BTreeSet<_> = before
        .iter()
        .filter(|(object, _)| !leaks.contains(object))
        .cloned()
        .collect();
    assert_eq!(without.len() + 2, before.len());
    let left = all_objects(&node);
    assert!(left.is_superset(&without), "something else was deleted");

    // Put right, everything reads back.
    for (at, copy) in hidden {
        std::fs::copy(copy, at).expect("copy");
    }
    reads_back(&node, &files);
    let (code, report) = node.verdict(&["fsck", "--deep", "--grace", "0s"]);
    assert_eq!(
        (code, &report["is_clean"]),
        (0, &Value::Bool(true)),
        "{report:#}"
    );
}

/// `--garbage-grace`, the shortest there is.
const GRACE: Duration = Duration::from_secs(60);
/// Beyond it: a snapshot half a minute after the last one, and a look every 5 s.
const GRACE_BOUND: Duration = Duration::from_secs(120);

#[test]
fn what_nothing_names_is_deleted_after_the_grace_time_and_nothing_else() {
    let _one = serial();
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let node = Node::start(Setup {
        cloud: Cloud::S3(s3.through(&proxy)),
        flags: vec!["--garbage-grace".into(), GRACE.as_secs().to_string()],
        ..Setup::default()
    });
    let mut files = fill(&node);
    // A ref that no layout names: its version is replaced while its upload is under way.
    let delay = Duration::from_secs(5);
    proxy.forget();
    proxy.set_where(Fault::Delay { delay, share: 1.0 }, |r| {
        r.is_put() && r.path.contains("/chunks/")
    });
    std::fs::write(node.at("replaced"), b"old").expect("write");
    wait_until("its upload is under way", Duration::from_secs(30), || {
        proxy.hurt() > 0
    });
    std::fs::write(node.at("replaced"), b"new").expect("write");
    files.insert("replaced".to_owned(), b"new".to_vec());
    node.flush();
    proxy.set(Fault::Pass);
    // An object that was never anybody's, and one whose file is deleted.
    let (ino, rest) = objects_of(&node, "dir/0")[1]["chunks/".len()..]
        .split_once('/')
        .map(|(ino, rest)| (ino.to_owned(), rest.to_owned()))
        .expect("a key");
    let orphan = format!("chunks/{ino}/77-{}", rest.split_once('-').expect("a key").1);
    let url = format!("{}/{}/{orphan}", node.s3().endpoint(), node.s3().bucket());
    run(Command::new("curl").args(["-sSf", "-X", "PUT", "--data", "nobody's", &url]));
    std::fs::write(node.at("deleted"), b"for now").expect("write");
    node.flush();
    let deleted = objects_of(&node, "deleted").remove(0);
    std::fs::remove_file(node.at("deleted")).expect("remove");
    let dropped = Instant::now();

    let (code, report) = node.verdict(&["gc", "--grace", "0s"]);
    assert_eq!((code, report["leaks"].as_u64()), (1, Some(2)), "{report:#}");
    let listed = report["listed"].as_array().expect("leaks");
    let why = |why: &str| {
        let found = listed.iter().find(|l| l["why"] == why);
        let found = found.unwrap_or_else(|| panic!("no {why}: {report:#}"));
        found["object"].as_str().expect("an object").to_owned()
    };
    assert_eq!(why("not_named"), orphan);
    let stale = why("stale_ref");
    assert!(!objects_of(&node, "replaced").contains(&stale));
    let (code, report) = node.verdict(&["fsck", "--grace", "0s"]);
    let want = BTreeSet::from([("leak".to_owned(), String::new(), orphan.clone())]);
    assert_eq!((code, findings(&report)), (1, want), "{report:#}");
    assert_eq!(report["unnamed_refs"].as_u64(), Some(1), "{report:#}");

    let (code, report) = node.verdict(&["gc", "--delete", "--grace", "0s"]);
    let discarded = report["discarded"].as_u64();
    assert_eq!((code, discarded), (0, Some(2)), "{report:#}");
    let before = all_objects(&node);
    let gone = [orphan, stale, deleted];
    let is_named = |object: &str| !gone.iter().any(|g| g == object);
    let (named, unnamed): (BTreeSet<_>, BTreeSet<_>) =
        before.into_iter().partition(|(object, _)| is_named(object));
    assert_eq!(unnamed.len(), 3, "{unnamed:?}");
    wait_until("they are deleted", GRACE + GRACE_BOUND, || {
        let now = all_objects(&node);
        assert!(now.is_superset(&named), "something else was deleted");
        let is_early = dropped.elapsed() < GRACE - Duration::from_secs(1);
        assert!(
            !is_early || now.is_superset(&unnamed),
            "deleted after {:?}",
            dropped.elapsed()
        );
        now == named
    });
    println!("deleted after {:?}", dropped.elapsed());
    reads_back(&node, &files);
    let (code, report) = node.verdict(&["fsck", "--deep", "--grace", "0s"]);
    let is_clean = &report["is_clean"];
    assert_eq!((code, is_clean), (0, &Value::Bool(true)), "{report:#}");
}

#[test]
fn a_collection_beside_writers_takes_nothing_that_is_needed() {
    let _one = serial();
    let seconds = if is_long() { 120 } else { 12 };
    let node = Node::start(Setup {
        cloud: Cloud::S3(S3::start()),
        capacity: Some("200MiB"),
        ..Setup::default()
    });
    let is_over = AtomicBool::new(false);
    let until = Instant::now() + Duration::from_secs(seconds);
    // Each writer rewrites, truncates and deletes its own files; what it left is compared at the end.
    let left = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let (node, is_over) = (&node, &is_over);
                scope.spawn(move || write_until(node, writer, is_over))
            })
            .collect();
        let mut rounds = 0;
        while Instant::now() < until {
            // No grace at all: only the look at what is under way keeps it from harm.
            let (code, report) = node.verdict(&["gc", "--delete", "--force", "--grace", "0s"]);
            assert!(code <= 1, "{report:#}");
            if rounds % 3 == 2 {
                node.evict();
            }
            rounds += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        println!("{rounds} collections");
        assert!(rounds > 2, "only {rounds} collections ran");
        let mut all = BTreeMap::new();
        for writer in writers {
            all.extend(writer.join().expect("a writer"));
        }
        all
    });
    node.flush();
    reads_back(&node, &left);
    let (code, report) = node.verdict(&["fsck", "--deep"]);
    assert_eq!(
        (code, &report["is_clean"]),
        (0, &Value::Bool(true)),
        "{report:#}"
    );
}

fn write_until(node: &Node, writer: u64, is_over: &AtomicBool) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut step = 0u64;
    while !is_over.load(Ordering::Relaxed) {
        step += 1;
        let random = Bytes::of(writer * 1000).range(step * 8, 8);
        let name = format!("{writer}-{}", random[0] % 5);
        match random[1] % 6 {
            0 => {
                files.remove(&name);
                // It may not be there.
                let _ = std::fs::remove_file(node.at(&name));
            }
            1 if files.contains_key(&name) => {
                use std::os::unix::fs::FileExt as _;
                let bytes = files.get_mut(&name).expect("known");
                let file = std::fs::File::options()
                    .write(true)
                    .open(node.at(&name))
                    .expect("open");
                let at = usize::from(random[2]) * 20_000;
                if at < bytes.len() {
                    file.write_all_at(&random, at as u64).expect("write");
                    let end = (at + 8).max(bytes.len());
                    bytes.resize(end, 0);
                    bytes[at..at + 8].copy_from_slice(&random);
                }
            }
            2 if files.contains_key(&name) => {
                let len = usize::from(random[2]) * 30_000;
                let file = std::fs::File::options()
                    .write(true)
                    .open(node.at(&name))
                    .expect("open");
                file.set_len(len as u64).expect("truncate");
                files.get_mut(&name).expect("known").resize(len, 0);
            }
            _ => {
                let len = usize::from(random[3]) * 40_000 + 1;
                let bytes = Bytes::of(step ^ (writer << 32)).range(0, len);
                std::fs::write(node.at(&name), &bytes).expect("write");
                files.insert(name, bytes);
            }
        }
    }
    files
}

#[test]
fn what_cannot_be_checked_ends_with_2() {
    let _one = serial();
    let node = Node::start(Setup {
        flags: ["--cloud-provider", "none"].map(str::to_owned).into(),
        ..Setup::default()
    });
    for command in ["gc", "fsck"] {
        let out = node.try_ctl(&[command]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{text}");
        assert!(text.contains("no cloud tier"), "{text}");
    }
    assert!(node.kill(Plane::Supervisor) && node.kill(Plane::Agent));
    let nobody = |pid: Option<u32>| pid.is_none_or(|p| !Path::new(&format!("/proc/{p}")).exists());
    wait_until("the agent is gone", Duration::from_secs(10), || {
        nobody(node.pid(Plane::Agent))
            || std::net::TcpStream::connect(node.url().trim_start_matches("http://")).is_err()
    });
    let out = node.try_ctl(&["fsck"]);
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("does not answer"), "{text}");
    let nowhere = fastcache_tests::output_of(
        Command::new(fastcache_tests::program("fastcache-ctl")).args(["gc", "--grace", "soon"]),
    );
    assert_eq!(nowhere.status.code(), Some(2));
}
