//! Promise (P7): the bucket alone rebuilds the file system. Every disk of the node is deleted after kill -9; what was
//! said to be persisted is there again, with equal bytes.

use fastcache_tests::{
    Bytes, Cloud, Coordinator, Fault, FaultProxy, Node, Plane, S3, Setup, SourceTree,
    assert_same_tree, drop_page_cache, lose_everything, number, run, seed, serial, temp_dir,
    wait_until,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Rounds of the random test, unless `FASTCACHE_LOSS_ROUNDS` says otherwise.
const ROUNDS: u64 = 4;

fn a_tree_comes_back(cloud: Cloud) {
    let _one = serial();
    let node = Node::start(Setup {
        cloud,
        capacity: Some("2GiB"),
        ..Setup::default()
    });
    let tree = SourceTree::new(2_000, 30_000_000);
    let copy = node.at("tree");
    run(Command::new("cp").arg("-a").arg(tree.path()).arg(&copy));
    // What a copy does not have: extended attributes, renames, deletions, links that come and go, new contents.
    let twin = temp_dir("twin");
    let twin = twin.path().join("tree");
    run(Command::new("cp").arg("-a").arg(tree.path()).arg(&twin));
    for side in [&copy, &twin] {
        change(side);
    }
    let xattrs = |root: &Path| {
        run(Command::new("getfattr")
            .args(["-R", "-h", "-d", "-m", "^user\\.test", "."])
            .current_dir(root))
    };
    let want_xattrs = xattrs(&copy);
    assert!(want_xattrs.contains("user.test.long"));
    assert_same_tree(&twin, &copy);
    let times = all_times(&copy);

    node.flush();
    let state = node.state_xattr("tree/odd/several-chunks");
    assert_eq!(state, "persisted");

    lose_everything(&node);
    // Without being told what to do, an empty node does not begin a new file system over the old one.
    let refused = node.try_up();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("--rebuild"),
        "{text}"
    );
    node.up_with(&["--rebuild"]);
    drop_page_cache();
    assert_same_tree(&twin, &copy);
    assert_eq!(xattrs(&copy), want_xattrs);
    assert_eq!(all_times(&copy), times);
    assert_eq!(node.stat("checksum_errors"), 0);

    // And it is a file system like any other.
    std::fs::write(node.at("tree/new"), b"after").expect("write");
    node.flush();
    lose_everything(&node);
    let told = rebuild(&node, &["--json"]);
    assert!(told.contains("\"incomplete\": []"), "{told}");
    node.up();
    assert_eq!(std::fs::read(node.at("tree/new")).expect("read"), b"after");
    let out = node.try_rebuild(&[]);
    assert!(
        !out.status.success(),
        "a namespace that is there is not replaced unasked"
    );
    let out = node.try_rebuild(&["--force"]);
    assert!(!out.status.success(), "nor under a process that uses it");
}

fn rebuild(node: &Node, flags: &[&str]) -> String {
    let out = node.try_rebuild(flags);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "rebuild: {text}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The same changes on both sides.
fn change(root: &Path) {
    let script = r#"
        set -eu
        setfattr -h -n user.test.short -v x odd/several-chunks
        setfattr -n user.test.long -v "$(head -c 3000 /dev/zero | tr '\0' y)" odd/block
        setfattr -n user.test.gone -v x odd/block
        setfattr -x user.test.gone odd/block
        setfattr -n user.test.dir -v d odd/sticky
        mkdir -p moved/from/here
        for n in $(seq 1 200); do echo "file $n" > moved/from/here/$n; done
        rm moved/from/here/1*
        mv moved/from moved/to
        ln moved/to/here/20 moved/hard
        ln moved/to/here/20 moved/hard-too
        rm moved/to/here/20
        ln -s to/here/22 moved/soft
        mv -f moved/to/here/21 moved/to/here/22
        head -c 9000000 /dev/zero > moved/zeros
        printf island | dd of=moved/zeros bs=1 seek=5000000 conv=notrunc status=none
        truncate -s 7000000 moved/zeros
        truncate -s 12000000 moved/zeros
        cp odd/several-chunks moved/rewritten
        dd if=odd/chunk-and-one of=moved/rewritten bs=1000003 count=2 seek=3 conv=notrunc status=none
        chmod 2711 moved/to
        chown 7:8 moved/hard
        touch -d '2011-11-11 11:11:11.111111111' moved/hard moved/to moved/zeros moved/rewritten moved/to/here
        touch -d '2012-12-12 12:12:12' moved moved/to/here/*
        touch -h -d '2013-01-01' moved/soft
        touch -d '2014-01-01' .
    "#;
    run(Command::new("bash").args(["-c", script]).current_dir(root));
}

/// Change and access times of everything, which `cp -a` does not keep.
fn all_times(root: &Path) -> String {
    run(Command::new("sh")
        .args(["-c", "find . -printf '%p %C@ %A@ %n\\n' | sort"])
        .current_dir(root))
}

#[test]
fn a_tree_comes_back_from_a_directory() {
    a_tree_comes_back(Cloud::Dir);
}

#[test]
fn a_tree_comes_back_from_s3() {
    a_tree_comes_back(Cloud::S3(S3::start()));
}

/// What is known of one file: its contents now, and those that were said to be persisted.
#[derive(Clone, Debug, Default)]
struct Known {
    now: Option<(u64, usize)>,
}

#[test]
fn what_was_said_to_be_persisted_survives_the_loss_of_every_disk() {
    let _one = serial();
    let rounds = number("FASTCACHE_LOSS_ROUNDS", ROUNDS);
    let seed = seed("FASTCACHE_SEED", "FASTCACHE_LOSS_ROUNDS");
    println!("FASTCACHE_SEED={seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let node = Node::start(Setup {
        capacity: Some("1GiB"),
        limit: Duration::from_secs(300 + rounds * 120),
        ..Setup::default()
    });
    let mut files: BTreeMap<PathBuf, Known> = BTreeMap::new();
    let mut next = 0;
    for round in 0..rounds {
        for _ in 0..rng.random_range(20..120) {
            step(&node, &mut rng, &mut files, &mut next);
        }
        // Said of everything, or of some files one by one.
        let persisted: BTreeMap<PathBuf, Known> = if rng.random_bool(0.5) {
            node.flush();
            files.clone()
        } else {
            let mut some = BTreeMap::new();
            for (path, known) in files.iter().filter(|(_, k)| k.now.is_some()).take(10) {
                let name = path.to_str().expect("utf-8");
                node.ctl(&["flush", "--wait", name]);
                assert_eq!(node.state_xattr(name), "persisted");
                some.insert(path.clone(), known.clone());
            }
            some
        };
        // And what nobody was told of, of other files.
        for n in 0..rng.random_range(0..10) {
            let path = node.at(&format!("late-{round}-{n}"));
            std::fs::write(&path, Bytes::of(n).range(0, 100_000)).expect("write");
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
        lose_everything(&node);
        node.up_with(&["--rebuild"]);
        let mut wrong = Vec::new();
        for (path, known) in &persisted {
            let found = std::fs::read(node.mount().join(path)).ok();
            let is_right = match (&known.now, &found) {
                (None, None) => true,
                (Some((seed, len)), Some(bytes)) => {
                    bytes.len() == *len && Bytes::of(*seed).first_difference(0, bytes).is_none()
                }
                _ => false,
            };
            if !is_right {
                let len = found.map(|b| b.len());
                wrong.push(format!(
                    "{}: {known:?}, found {len:?} bytes",
                    path.display()
                ));
            }
        }
        // Whatever else is there reads as it was written, or fails: never as something else.
        for n in 0..10 {
            let path = node.at(&format!("late-{round}-{n}"));
            if let Ok(bytes) = std::fs::read(&path)
                && !bytes.is_empty()
                && (bytes.len() != 100_000 || Bytes::of(n).first_difference(0, &bytes).is_some())
            {
                wrong.push(format!("{}: wrong bytes", path.display()));
            }
            let _ = std::fs::remove_file(&path);
        }
        assert!(
            wrong.is_empty(),
            "round {round}: {}\n{}",
            wrong.join("\n"),
            node.logs()
        );
        println!(
            "round {round}: {} files said to be persisted, all there",
            persisted.len()
        );
        // The others are what they are now.
        files = persisted;
        for entry in std::fs::read_dir(node.mount()).expect("list") {
            let name = PathBuf::from(entry.expect("entry").file_name());
            if !files.contains_key(&name) {
                std::fs::remove_file(node.mount().join(&name)).expect("remove");
            }
        }
    }
}

/// One random change.
fn step(node: &Node, rng: &mut StdRng, files: &mut BTreeMap<PathBuf, Known>, next: &mut u64) {
    let there: Vec<PathBuf> = files
        .iter()
        .filter(|(_, k)| k.now.is_some())
        .map(|(p, _)| p.clone())
        .collect();
    let content = (rng.random(), rng.random_range(0..300_000));
    let put = |path: &Path, (seed, len): (u64, usize)| {
        std::fs::write(node.mount().join(path), Bytes::of(seed).range(0, len)).expect("write");
    };
    match rng.random_range(0..10) {
        0..=4 => {
            *next += 1;
            let path = PathBuf::from(format!("f{next}"));
            put(&path, content);
            files.insert(path, Known { now: Some(content) });
        }
        5..=6 if !there.is_empty() => {
            let path = &there[rng.random_range(0..there.len())];
            std::fs::remove_file(node.mount().join(path)).expect("remove");
            files.insert(path.clone(), Known::default());
        }
        7 if !there.is_empty() => {
            let path = &there[rng.random_range(0..there.len())];
            put(path, content);
            files.insert(path.clone(), Known { now: Some(content) });
        }
        _ if !there.is_empty() => {
            let old = &there[rng.random_range(0..there.len())];
            *next += 1;
            let new = PathBuf::from(format!("r{next}"));
            std::fs::rename(node.mount().join(old), node.mount().join(&new)).expect("rename");
            let known = files.insert(old.clone(), Known::default());
            files.insert(new, known.unwrap_or_default());
        }
        _ => {}
    }
}

/// A file whose bytes were in no object when the disks were lost: its name is there, and reading it fails.
#[test]
fn bytes_that_were_never_uploaded_are_an_error_and_not_zeros() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("1GiB"),
        ..Setup::default()
    });
    std::fs::write(node.at("kept"), Bytes::of(1).range(0, 50_000)).expect("write");
    node.flush();
    // The directory takes no more chunks, but the log.
    let chunks = node.dir().join("cloud/chunks");
    std::fs::rename(&chunks, node.outside().join("chunks")).expect("rename");
    std::fs::write(&chunks, b"in the way").expect("write");
    std::fs::write(node.at("lost"), Bytes::of(2).range(0, 50_000)).expect("write");
    let file = std::fs::File::open(node.at("lost")).expect("open");
    file.sync_all().expect("fsync");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.state_xattr("lost"), "dirty");
    drop(file);
    std::fs::remove_file(&chunks).expect("remove");
    std::fs::rename(node.outside().join("chunks"), &chunks).expect("rename");
    lose_everything(&node);
    let told = rebuild(&node, &[]);
    assert!(told.contains("lost (inode"), "{told}");
    node.up();
    let kept = std::fs::read(node.at("kept")).expect("read");
    assert_eq!(Bytes::of(1).first_difference(0, &kept), None);
    let lost = std::fs::File::open(node.at("lost")).expect("the name is there");
    assert_eq!(lost.metadata().expect("stat").len(), 50_000);
    let error = lost
        .read_at(&mut [0; 100], 0)
        .expect_err("it was never uploaded");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(
        node.logs().contains("lost before it was uploaded"),
        "{}",
        node.logs()
    );
}

#[test]
fn a_coordinator_of_its_own_is_rebuilt_from_the_bucket() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let at = bucket.path().to_str().expect("utf-8");
    let flags = ["--cloud-provider", "dir", "--cloud-dir", at, "--rebuild"];
    let first = Coordinator::start_with(&flags[..4]);
    let node_on = |coordinator: &Coordinator| {
        let mut all = vec!["--coordinator".to_owned(), coordinator.address()];
        all.extend(flags[..4].iter().map(|f| (*f).to_owned()));
        Node::start(Setup {
            flags: all,
            capacity: Some("1GiB"),
            ..Setup::default()
        })
    };
    let node = node_on(&first);
    std::fs::create_dir_all(node.at("a/b")).expect("mkdir");
    for n in 0..20 {
        let path = node.at(&format!("a/b/{n}"));
        std::fs::write(path, Bytes::of(n).range(0, 30_000)).expect("write");
    }
    std::fs::rename(node.at("a/b"), node.at("c")).expect("rename");
    node.flush();
    assert_eq!(node.state_xattr("c/7"), "persisted");
    node.stop_by_force();
    drop((node, first));

    let second = Coordinator::start_with(&flags);
    let node = node_on(&second);
    for n in 0..20 {
        let got = std::fs::read(node.at(&format!("c/{n}"))).expect("read");
        assert_eq!(got.len(), 30_000);
        assert_eq!(Bytes::of(n).first_difference(0, &got), None);
    }
    assert!(!node.at("a/b").exists());
}

#[test]
fn a_coordinator_without_a_bucket_never_says_persisted() {
    let _one = serial();
    let coordinator = Coordinator::start_with(&["--cloud-provider", "none"]);
    let flags = ["--coordinator", &coordinator.address(), "--fsync", "cloud"];
    let node = Node::start(Setup {
        flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        capacity: Some("1GiB"),
        ..Setup::default()
    });
    let mut file = std::fs::File::create(node.at("f")).expect("create");
    std::io::Write::write_all(&mut file, b"bytes").expect("write");
    let error = file
        .sync_all()
        .expect_err("there is no bucket for the namespace");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    let out = node.try_ctl(&["flush", "--wait"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && text.contains("no bucket"),
        "{text}"
    );
    assert_eq!(node.state_xattr("f"), "dirty");
}

/// Bytes of a chunk.
const CHUNK: usize = 4 << 20;

/// A node whose uploads of chunks can be made to fail, while the log goes to the bucket.
struct Blocked {
    node: Node,
    proxy: FaultProxy,
}

/// What the files are before and after they are written again.
struct Contents {
    old: BTreeMap<&'static str, Vec<u8>>,
    new: BTreeMap<&'static str, Vec<u8>>,
}

impl Blocked {
    fn start() -> Blocked {
        let s3 = S3::start();
        let proxy = FaultProxy::start(s3.port());
        let node = Node::start(Setup {
            cloud: Cloud::S3(s3.through(&proxy)),
            capacity: Some("1GiB"),
            ..Setup::default()
        });
        Blocked { node, proxy }
    }

    fn block(&self) {
        let fault = Fault::Status {
            code: 500,
            share: 1.0,
            retry_after_s: None,
        };
        self.proxy
            .set_where(fault, |r| r.is_put() && r.path.contains("/chunks/"));
    }

    /// The bucket has the log up to now.
    fn wait_recorded(&self) {
        let position = self.node.stat("log_position");
        wait_until("the log is in the bucket", Duration::from_secs(20), || {
            self.node.stat("shipped_position") >= position
        });
    }

    /// Files that were persisted, then written in place, so that what is new is on the device only: some chunks of one,
    /// the end of another, all of a third at once. The log in the bucket has it all.
    fn overwrite(&self) -> Contents {
        let node = &self.node;
        let mut old = BTreeMap::new();
        for (seed, (name, len)) in [
            ("chunks", 5 * CHUNK - 1000),
            ("grown", 50_000),
            ("anew", 70_000),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = Bytes::of(seed as u64).range(0, len);
            std::fs::write(node.at(name), &bytes).expect("write");
            old.insert(name, bytes);
        }
        node.flush();
        assert_eq!(node.state_xattr("chunks"), "persisted");
        self.block();

        let mut new = old.clone();
        let mut put = |name: &'static str, at: usize, len: usize| {
            let bytes = Bytes::of(77).range(at as u64, len);
            let file = std::fs::File::options()
                .write(true)
                .open(node.at(name))
                .expect("open");
            file.write_all_at(&bytes, at as u64).expect("write");
            file.sync_all().expect("fsync");
            let all = new.get_mut(name).expect("known");
            all.resize(all.len().max(at + len), 0);
            all[at..at + len].copy_from_slice(&bytes);
        };
        put("chunks", CHUNK, CHUNK);
        put("chunks", 3 * CHUNK + 5, 100);
        // Twice: the version in between was never uploaded either.
        put("chunks", 3 * CHUNK + 5000, 100_000);
        put("grown", 50_000, 30_000);
        let anew = Bytes::of(78).range(0, 70_000);
        std::fs::write(node.at("anew"), &anew).expect("write");
        new.insert("anew", anew);
        self.wait_recorded();
        assert_eq!(node.state_xattr("chunks"), "dirty");
        Contents { old, new }
    }

    #[track_caller]
    fn reads(&self, want: &BTreeMap<&'static str, Vec<u8>>) {
        drop_page_cache();
        for (name, bytes) in want {
            let got = std::fs::read(self.node.at(name))
                .unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.node.logs()));
            let at = got.iter().zip(bytes).position(|(a, b)| a != b);
            assert!(
                got == *bytes,
                "{name}: {} bytes, {} wanted, first difference {at:?}",
                got.len(),
                bytes.len()
            );
        }
    }

    #[track_caller]
    fn is_sound(&self) {
        let (code, report) = self.node.verdict(&["fsck", "--deep", "--grace", "0s"]);
        assert_eq!(code, 0, "{report:#}");
        assert_eq!(report["repairable"].as_u64(), Some(0), "{report:#}");
    }

    fn reverted(&self) -> u64 {
        let metrics =
            run(Command::new("curl").args(["-sSf", &format!("{}/metrics", self.node.url())]));
        let line = metrics
            .lines()
            .find_map(|l| l.strip_prefix("fastcache_reverted_chunks_total "));
        line.map_or(0, |n| n.trim().parse().expect("a count"))
    }
}

/// Persisted, written again in place, and lost with every disk before the upload: what was persisted is there.
#[test]
fn what_was_persisted_comes_back_where_what_replaced_it_was_lost() {
    let _one = serial();
    let b = Blocked::start();
    let contents = b.overwrite();
    let before = b.node.data_objects();
    let (_, report) = b
        .node
        .verdict(&["gc", "--delete", "--force", "--grace", "0s"]);
    assert_eq!(report["discarded"].as_u64(), Some(0), "{report:#}");
    // What is on the device is not lost, and nothing is wrong.
    b.is_sound();
    b.reads(&contents.new);
    b.wait_recorded();
    assert_eq!(b.node.data_objects(), before);

    lose_everything(&b.node);
    b.proxy.set(Fault::Pass);
    b.node.up_with(&["--rebuild"]);
    b.reads(&contents.old);
    assert_eq!(b.reverted(), 4, "{}", b.node.logs());
    let logs = b.node.logs();
    assert!(logs.contains("was lost before it was uploaded"), "{logs}");
    b.node.flush();
    assert_eq!(b.node.state_xattr("chunks"), "persisted");
    b.is_sound();

    // They are files like any other: written, persisted, lost again.
    let mut now = contents.old;
    let bytes = Bytes::of(79).range(0, 1000);
    let file = std::fs::File::options()
        .write(true)
        .open(b.node.at("chunks"))
        .expect("open");
    file.write_all_at(&bytes, CHUNK as u64 + 7).expect("write");
    drop(file);
    now.get_mut("chunks").expect("known")[CHUNK + 7..CHUNK + 1007].copy_from_slice(&bytes);
    b.node.flush();
    lose_everything(&b.node);
    b.node.up_with(&["--rebuild"]);
    b.reads(&now);
    assert_eq!(b.reverted(), 0);
    b.is_sound();
}

/// Only the namespace was lost: the device has what is new, and nothing goes back.
#[test]
fn a_rebuild_undoes_nothing_that_the_device_has() {
    let _one = serial();
    let b = Blocked::start();
    let contents = b.overwrite();
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        assert!(b.node.kill(plane), "{plane:?} runs");
    }
    b.node.stop_by_force();
    std::fs::remove_dir_all(b.node.dir().join("state/namespace")).expect("the namespace is lost");
    b.node.up_with(&["--rebuild"]);
    b.reads(&contents.new);
    b.is_sound();
    assert_eq!(b.reverted(), 0);
    b.proxy.set(Fault::Pass);
    b.node.flush();
    b.reads(&contents.new);
    lose_everything(&b.node);
    b.node.up_with(&["--rebuild"]);
    b.reads(&contents.new);
    b.is_sound();
}

/// Only the device was lost. What is gone is an error, never something older, until an operator says that it is gone.
#[test]
fn fsck_brings_back_what_was_persisted_when_it_is_asked_to() {
    let _one = serial();
    let b = Blocked::start();
    let contents = b.overwrite();
    std::fs::write(b.node.at("never"), Bytes::of(5).range(0, 9000)).expect("write");
    b.wait_recorded();
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        assert!(b.node.kill(plane), "{plane:?} runs");
    }
    b.node.stop_by_force();
    std::fs::remove_file(b.node.dir().join("nvme")).expect("the device is lost");
    b.node.up();
    let file = std::fs::File::open(b.node.at("chunks")).expect("open");
    let read = |at: usize| {
        let mut buf = vec![0; 1000];
        file.read_exact_at(&mut buf, at as u64).map(|()| buf)
    };
    let is_lost = |at: usize| {
        let error = read(at).expect_err("it is on no device and in no object");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    };
    is_lost(CHUNK);
    is_lost(3 * CHUNK);
    let (code, report) = b.node.verdict(&["fsck"]);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(report["repairable"].as_u64(), Some(4), "{report:#}");
    assert_eq!(report["repaired"].as_u64(), Some(0), "{report:#}");
    is_lost(CHUNK);

    let (code, report) = b.node.verdict(&["fsck", "--repair"]);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(report["repaired"].as_u64(), Some(4), "{report:#}");
    assert_eq!(report["repairable"].as_u64(), Some(0), "{report:#}");
    let listed = report["listed"].as_array().expect("findings");
    let of = |code: &str| {
        let found = listed.iter().filter(|f| f["code"] == code);
        found
            .map(|f| f["path"].as_str().unwrap_or("").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("lost_chunk"), ["never"], "{report:#}");
    let repaired = ["anew", "chunks", "chunks", "grown"];
    assert_eq!(of("repaired_chunk"), repaired, "{report:#}");
    // Who had the file open all the time sees it, too.
    let old = &contents.old["chunks"];
    assert_eq!(read(CHUNK).expect("read"), old[CHUNK..CHUNK + 1000]);
    b.reads(&contents.old);
    assert_eq!(b.reverted(), 4);
    std::fs::remove_file(b.node.at("never")).expect("remove");
    b.proxy.set(Fault::Pass);
    b.node.flush();
    b.is_sound();
    assert_eq!(b.node.stat("checksum_errors"), 0);
}

/// Nobody but an operator knows which nodes there are: with a coordinator of its own nothing goes back by itself.
#[test]
fn a_coordinator_of_its_own_brings_nothing_back_by_itself() {
    let _one = serial();
    let bucket = temp_dir("bucket");
    let at = bucket.path().to_str().expect("utf-8");
    let flags = ["--cloud-provider", "dir", "--cloud-dir", at, "--rebuild"];
    let node_on = |coordinator: &Coordinator| {
        let mut all = vec!["--coordinator".to_owned(), coordinator.address()];
        all.extend(flags[..4].iter().map(|f| (*f).to_owned()));
        Node::start(Setup {
            flags: all,
            capacity: Some("1GiB"),
            ..Setup::default()
        })
    };
    let old = Bytes::of(1).range(0, 100_000);
    let first = Coordinator::start_with(&flags[..4]);
    let node = node_on(&first);
    std::fs::write(node.at("f"), &old).expect("write");
    node.flush();
    // The directory takes no more chunks, but the log.
    let (chunks, aside) = (bucket.path().join("chunks"), bucket.path().join("aside"));
    std::fs::rename(&chunks, &aside).expect("rename");
    std::fs::write(&chunks, b"in the way").expect("write");
    let file = std::fs::File::options()
        .write(true)
        .open(node.at("f"))
        .expect("open");
    file.write_all_at(b"new", 500).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    let position = node.stat("log_position");
    wait_until("the log is in the bucket", Duration::from_secs(20), || {
        node.stat("shipped_position") >= position
    });
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        assert!(node.kill(plane), "{plane:?} runs");
    }
    node.stop_by_force();
    drop((node, first));
    std::fs::remove_file(&chunks).expect("remove");
    std::fs::rename(&aside, &chunks).expect("rename");

    let second = Coordinator::start_with(&flags);
    let node = node_on(&second);
    let error = std::fs::read(node.at("f")).expect_err("this node does not have it");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // Another node may have it: nothing is wrong yet.
    let (code, report) = node.verdict(&["fsck"]);
    assert_eq!(
        (code, report["repairable"].as_u64()),
        (0, Some(1)),
        "{report:#}"
    );
    let (code, report) = node.verdict(&["fsck", "--repair"]);
    assert_eq!(
        (code, report["repaired"].as_u64()),
        (1, Some(1)),
        "{report:#}"
    );
    assert!(std::fs::read(node.at("f")).expect("read") == old);
    let (code, report) = node.verdict(&["fsck", "--deep"]);
    assert_eq!(
        (code, report["repairable"].as_u64()),
        (0, Some(0)),
        "{report:#}"
    );
}
