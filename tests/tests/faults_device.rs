//! Promise: an NVMe device that fails loses nothing that the cloud can take. A read error is a miss; a write that the
//! device refuses goes to the cloud before `close` or `fsync` returns; wrong bytes are never returned; `status` says it.
//!
//! The device is a loop device over a file of nbdfuse, whose nbdkit fails reads and writes while a trigger file is
//! there.

use fastcache_tests::{
    Bytes, CHUNK, Cloud, Fault, FaultProxy, Files, Node, Plane, S3, Setup, drop_page_cache, run,
    serial, temp_dir, wait_until, write_and_close,
};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Size of the device.
const DISK: &str = "512M";
/// A close that waits for the cloud takes at most this on a busy machine.
const CLOSE_BOUND: Duration = Duration::from_secs(30);
/// With a sick device and without a cloud, `close` and `fsync` wait this long before they fail.
const NOTHING_MAX: Duration = Duration::from_secs(60);
/// The agent's deadline for a fetch is 40 s.
const READ_BOUND: Duration = Duration::from_secs(60);
const MEMORY_MAX: u64 = 768 << 20;

/// A device that fails when it is told to.
struct Disk {
    dir: TempDir,
    nbdkit: Child,
    nbdfuse: Child,
    name: String,
}

impl Disk {
    fn start() -> Disk {
        let dir = temp_dir("disk");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("mnt")).expect("mkdir");
        let trigger = |what: &str| {
            vec![
                format!("error-{what}=EIO"),
                format!("error-{what}-rate=100%"),
                format!("error-{what}-file={}", at(what).display()),
            ]
        };
        let nbdkit = Command::new("nbdkit")
            .arg("-f")
            .arg("-U")
            .arg(at("sock"))
            .args(["--filter=error", "memory", DISK])
            .args(trigger("pread"))
            .args(trigger("pwrite"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit (tests/setup/install.sh installs it)");
        wait_until("nbdkit listens", Duration::from_secs(10), || {
            at("sock").exists()
        });
        let disk = at("mnt").join("disk");
        let nbdfuse = Command::new("nbdfuse")
            .arg(&disk)
            .arg("--unix")
            .arg(at("sock"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdfuse (tests/setup/install.sh installs it)");
        wait_until("nbdfuse serves", Duration::from_secs(10), || disk.exists());
        let name = run(Command::new("losetup").args(["-f", "--show"]).arg(&disk));
        let name = name.trim().to_owned();
        Disk {
            dir,
            nbdkit,
            nbdfuse,
            name,
        }
    }

    fn trigger(&self, what: &str) -> PathBuf {
        self.dir.path().join(what)
    }

    /// From now on it fails every read (`pread`) or write (`pwrite`).
    fn fail(&self, what: &str) {
        std::fs::write(self.trigger(what), "").expect("trigger");
    }

    fn heal(&self, what: &str) {
        std::fs::remove_file(self.trigger(what)).expect("trigger");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.name]).status();
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
        let mount = self.dir.path().join("mnt");
        let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// A node on such a device, with a cloud behind a proxy. Dropped in this order.
struct Rig {
    node: Node,
    proxy: FaultProxy,
    disk: Disk,
}

impl Rig {
    fn start() -> Rig {
        let disk = Disk::start();
        let s3 = S3::start();
        let proxy = FaultProxy::start(s3.port());
        let node = Node::start(Setup {
            cloud: Cloud::S3(s3.through(&proxy)),
            flags: vec!["--nvme".to_owned(), disk.name.clone()],
            limit: Duration::from_secs(300),
            ..Setup::default()
        });
        Rig { node, proxy, disk }
    }

    fn write(&self, what: &str, count: u64) -> Files {
        self.node.write_files(what, count, CLOSE_BOUND)
    }

    fn expect(&self, files: &Files) {
        self.node.expect_files(files, READ_BOUND);
    }

    /// Whether every chunk of a file is an object by now.
    fn is_in_the_cloud(&self, name: &str) -> bool {
        let path = self.node.at(name).display().to_string();
        let state = self.node.json(&["state", &path]);
        let chunks = state["chunks"].as_array().expect("chunks").clone();
        !chunks.is_empty() && chunks.iter().all(|c| c["state"] == "persisted")
    }

    /// What `status` finds wrong.
    fn problems(&self) -> String {
        self.node.json(&["status"]).to_string()
    }

    fn check_memory(&self) {
        for plane in [Plane::Data, Plane::Agent] {
            let peak = self.node.peak_memory(plane);
            println!("{plane:?}: {} MiB at most", peak >> 20);
            assert!(peak < MEMORY_MAX, "{plane:?} took {peak} bytes");
        }
    }
}

#[test]
fn nvme_write_errors_fall_to_the_cloud() {
    let _one = serial();
    let rig = Rig::start();
    let before = rig.write("before", 8);
    rig.disk.fail("pwrite");
    // `close` returns when the cloud has it.
    let after = rig.write("after", 12);
    for (name, _, _) in &after {
        assert!(rig.is_in_the_cloud(name), "{name}");
    }
    rig.expect(&before);
    rig.expect(&after);
    // So does `fsync`, of a file that stays open.
    let synced = std::fs::File::create(rig.node.at("synced")).expect("create");
    let bytes = Bytes::of(5).range(0, 300_000);
    synced.write_all_at(&bytes, 0).expect("write");
    synced.sync_all().expect("fsync");
    assert!(rig.is_in_the_cloud("synced"));
    drop(synced);
    assert!(rig.problems().contains("device_sick"), "{}", rig.problems());
    // More than is kept in memory.
    let many: Files = (0..24).map(|n| (format!("many-{n}"), n, CHUNK)).collect();
    for (name, seed, len) in &many {
        let data = Bytes::of(*seed).range(0, *len);
        write_and_close(rig.node.at(name), &data).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    rig.expect(&many);
    rig.check_memory();
    // The node is killed; the device comes back as it was before it failed.
    rig.disk.heal("pwrite");
    for plane in [Plane::Supervisor, Plane::Data, Plane::Agent] {
        assert!(rig.node.kill(plane));
    }
    rig.node.up();
    for files in [&before, &after, &many] {
        rig.expect(files);
    }
    assert!(std::fs::read(rig.node.at("synced")).expect("read") == bytes);
    // It is well again.
    let again = rig.write("again", 4);
    rig.expect(&again);
    assert!(
        !rig.problems().contains("device_sick"),
        "{}",
        rig.problems()
    );
    rig.node.flush();
    rig.node.down();
}

#[test]
#[ignore = "waits for the bound of a minute: make test-faults"]
fn nvme_write_errors_without_a_cloud_are_errors() {
    let _one = serial();
    let rig = Rig::start();
    let before = rig.write("before", 4);
    rig.node.flush();
    rig.proxy.set(Fault::Refuse);
    rig.disk.fail("pwrite");
    // What `close` says, and what `fsync` says, at the same time; what is here is read, and `sync` ends, too.
    let synced = std::fs::File::create(rig.node.at("synced")).expect("create");
    synced.write_all_at(b"nowhere either", 0).expect("write");
    let nowhere = Bytes::of(1).range(0, 100_000);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let fsync = scope.spawn(|| (synced.sync_all(), started.elapsed()));
        let close = scope.spawn(|| {
            let closed = write_and_close(rig.node.at("nowhere"), &nowhere);
            (closed, started.elapsed())
        });
        rig.expect(&before);
        for end in [fsync, close] {
            let (end, took) = end.join().expect("a thread");
            let error = end.expect_err("nobody takes it");
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
            println!("an error after {took:?}");
            assert!(took >= NOTHING_MAX && took < NOTHING_MAX + CLOSE_BOUND);
        }
    });
    assert!(rig.problems().contains("device_sick"), "{}", rig.problems());
    // Not safe, and not lost either.
    assert!(std::fs::read(rig.node.at("nowhere")).expect("read") == nowhere);
    // The cloud is back: the next file is taken, and the first one was not lost either.
    rig.proxy.set(Fault::Pass);
    let after = rig.write("after", 4);
    rig.expect(&after);
    rig.node.flush();
    synced.sync_all().expect("the cloud takes it now");
    rig.node.evict();
    let got = std::fs::read(rig.node.at("nowhere")).expect("read");
    assert!(got == nowhere);
    let got = std::fs::read(rig.node.at("synced")).expect("read");
    assert_eq!(got, b"nowhere either");
    drop(synced);
    rig.disk.heal("pwrite");
    rig.node.down();
}

#[test]
fn nvme_read_errors_are_misses() {
    let _one = serial();
    let rig = Rig::start();
    let clean = rig.write("clean", 8);
    rig.node.flush();
    // Nothing is uploaded from now on: this one is on the device alone.
    rig.proxy.set_where(Fault::BlackHole, |r| r.is_put());
    let dirty = rig.write("dirty", 1);
    rig.disk.fail("pread");
    rig.expect(&clean);
    assert!(rig.node.stat("device_errors") > 0);
    assert!(rig.node.stat("fetched_chunks") > 0);
    drop_page_cache();
    let error = std::fs::read(rig.node.at("dirty-0")).expect_err("nobody gives it");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(
        rig.problems().contains("data_unreadable"),
        "{}",
        rig.problems()
    );
    let log = std::fs::read_to_string(rig.node.dir().join("log/data.log")).expect("log");
    let said = log.matches("not in the cloud yet cannot be read").count();
    assert_eq!(said, 1, "said once, not for ever");
    // It was the cable.
    rig.disk.heal("pread");
    rig.proxy.set(Fault::Pass);
    rig.expect(&dirty);
    rig.node.flush();
    assert!(!rig.problems().contains("data_unreadable"));
    rig.node.evict();
    rig.expect(&dirty);
    rig.expect(&clean);
    rig.check_memory();
    rig.node.down();
}

#[test]
fn nvme_gone_altogether() {
    let _one = serial();
    let rig = Rig::start();
    let clean = rig.write("clean", 4);
    rig.node.flush();
    rig.disk.fail("pread");
    rig.disk.fail("pwrite");
    rig.expect(&clean);
    let after = rig.write("after", 4);
    rig.expect(&after);
    assert!(rig.problems().contains("device_sick"));
    rig.check_memory();
    rig.disk.heal("pread");
    rig.disk.heal("pwrite");
    rig.node.down();
}

/// Bits flip behind the back of a running node: all over the data region, in headers and data.
#[test]
fn nvme_returns_wrong_bytes() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("128MiB"),
        ..Setup::default()
    });
    let files: Files = (0..12).map(|n| (format!("f{n}"), n, CHUNK + 777)).collect();
    for (name, seed, len) in &files {
        std::fs::write(node.at(name), Bytes::of(*seed).range(0, *len)).expect("write");
    }
    node.flush();
    let nvme = node.dir().join("nvme");
    let device = std::fs::OpenOptions::new()
        .write(true)
        .open(&nvme)
        .expect("open");
    let len = device.metadata().expect("stat").len();
    // Behind superblocks, journal and checkpoints: one block of eight is noise.
    let noise = Bytes::of(99).range(0, 4096);
    for at in (len / 8..len).step_by(8 * 4096) {
        device.write_all_at(&noise, at).expect("write");
    }
    device.sync_all().expect("sync");
    node.expect_files(&files, READ_BOUND);
    assert!(node.stat("checksum_errors") > 0);
    assert!(node.stat("fetched_chunks") >= 12);
    node.down();
}
