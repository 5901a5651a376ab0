//! What was persisted, written again and lost before that was uploaded: it goes back, where nothing newer is left.

use fastcache_tests::{
    Bytes, Cloud, Fault, FaultProxy, Node, S3, Setup, drop_page_cache, lose_everything, run,
    serial, wait_until,
};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

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
    b.node.kill_all();
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
    b.node.kill_all();
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
