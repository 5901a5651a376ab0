//! The whole path of a request: a system call, the kernel, `/dev/fuse`, the data plane, and back. A node of the release
//! binaries (`make build`) with nothing but defaults, on the disk of the temporary folder. Needs root, to mount.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastcache_reactor::IoBuf;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const O_DIRECT: i32 = 0o40000;
/// Bytes of the file.
const FILE: u64 = 64 << 20;

fn ctl() -> PathBuf {
    let dir = std::env::var_os("FASTCACHE_BIN_DIR").map(PathBuf::from);
    let dir =
        dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"));
    dir.join("fastcache-ctl")
}

/// A node, until it is dropped.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mount")).unwrap();
        let node = Node { dir };
        let mount = node.mount();
        let up = [
            "up",
            "--detach",
            "--nvme-capacity",
            "1GiB",
            "--port",
            "18099",
            "--mount",
        ];
        let started = Command::new(ctl())
            .args(up)
            .arg(&mount)
            .arg("--dir")
            .arg(node.dir.path())
            .status();
        assert!(started.unwrap().success(), "the node does not start");
        node
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mount")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let down = Command::new(ctl())
            .arg("down")
            .arg("--dir")
            .arg(self.dir.path())
            .status();
        assert!(down.unwrap().success(), "the node does not stop");
    }
}

fn fuse_round_trip(c: &mut Criterion) {
    if !rustix::process::geteuid().is_root() {
        println!("fuse_round_trip: needs root to mount; nothing was measured");
        return;
    }
    if !ctl().exists() {
        println!(
            "fuse_round_trip: {} is not there: `make build` first; nothing was measured",
            ctl().display()
        );
        return;
    }
    let node = Node::start();
    let path = node.mount().join("file");
    std::fs::write(&path, vec![7; usize::try_from(FILE).unwrap()]).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(&path)
        .unwrap();
    c.bench_function("statfs", |b| {
        b.iter(|| rustix::fs::statfs(&path).unwrap());
    });
    c.bench_function("look up a name that is not there", |b| {
        let mut n = 0u64;
        b.iter(|| {
            n += 1;
            assert!(std::fs::symlink_metadata(node.mount().join(n.to_string())).is_err());
        });
    });
    let mut group = c.benchmark_group("direct");
    for (name, bytes) in [("4 KiB", 4096usize), ("1 MiB", 1 << 20)] {
        // On a page, as direct I/O wants it.
        let mut buf = IoBuf::alloc(bytes);
        let places = FILE / bytes as u64;
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut n = 0u64;
        let mut next = || {
            n += 1;
            n.wrapping_mul(0x9E37_79B9) % places * bytes as u64
        };
        group.bench_function(format!("read {name}"), |b| {
            b.iter(|| file.read_exact_at(&mut buf, next()).unwrap());
        });
        group.bench_function(format!("write {name}"), |b| {
            b.iter(|| file.write_all_at(&buf, next()).unwrap());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = fuse_round_trip
}
criterion_main!(benches);
