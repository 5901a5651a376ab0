//! Promise: two commands are enough, twice in a row; what a node says about its files is true; it comes back warm.

use fastcache_tests::{
    Bytes, Node, Plane, Setup, UringOn, drop_page_cache, free_port, output_of, program, repository,
    run, serial, temp_dir, wait_until,
};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

/// Stops the node of `make run`, also when the test fails.
struct MakeRun {
    args: Vec<String>,
}

impl MakeRun {
    fn make(&self, target: &str) -> std::process::Output {
        output_of(
            Command::new("timeout")
                .arg("600")
                .arg("make")
                .arg("-C")
                .arg(repository())
                .arg("-s")
                .arg(target)
                .args(&self.args),
        )
    }
}

impl Drop for MakeRun {
    fn drop(&mut self) {
        self.make("stop");
    }
}

#[test]
fn make_run_works_twice_and_make_stop_ends_it() {
    let _one = serial();
    let _built = program("fastcache-ctl");
    let home = temp_dir("make");
    let (dir, mount) = (home.path().join("dir"), home.path().join("mnt"));
    let make = MakeRun {
        args: vec![
            format!("DIR={}", dir.display()),
            format!("MOUNT={}", mount.display()),
            format!("PORT={}", free_port()),
        ],
    };
    let said = |target: &str| {
        let out = make.make(target);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(
            out.status.success(),
            "make {target}: {}\n{text}",
            out.status
        );
        text
    };
    let first = said("run");
    assert!(first.contains("ready"), "{first}");
    assert!(
        first.contains(&*mount.to_string_lossy()),
        "says where it is mounted: {first}"
    );
    std::fs::write(mount.join("hello"), b"hello").expect("write on the mount");
    let second = said("run");
    assert!(second.contains("already running"), "{second}");
    assert_eq!(
        std::fs::read(mount.join("hello")).expect("the same node"),
        b"hello"
    );
    said("stop");
    assert!(!mount.join("hello").exists(), "unmounted");
    said("run");
    assert_eq!(
        std::fs::read(mount.join("hello")).expect("the file is back"),
        b"hello"
    );
}

#[test]
fn state_tells_the_truth() {
    let _one = serial();
    let node = Node::start_default();
    let content = Bytes::of(9).range(0, 9 << 20);
    std::fs::write(node.at("file"), &content).expect("write on the mount");
    // Uploads start after a second of quiet, so this is asked before.
    assert_eq!(node.state_xattr("file"), "dirty");
    let state = node.json(&["state", "file"]);
    assert!(state.to_string().contains("dirty"), "{state}");

    node.flush();
    assert_eq!(node.state_xattr("file"), "persisted");
    let objects = node.data_objects();
    assert_eq!(objects.len(), 3);
    let state = node.json(&["state", "file"]).to_string();
    for (key, _) in &objects {
        assert!(
            state.contains(key.rsplit('/').next().unwrap_or(key)),
            "{key} in {state}"
        );
    }

    // One byte in the middle: one chunk is dirty, and one object more comes of it.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(node.at("file"))
        .expect("open");
    file.write_all_at(b"!", 5 << 20).expect("write");
    drop(file);
    assert_eq!(node.state_xattr("file"), "dirty");
    node.ctl(&["flush", "file", "--wait"]);
    assert_eq!(node.state_xattr("file"), "persisted");
    let mut want = content;
    want[5 << 20] = b'!';
    node.evict();
    assert!(std::fs::read(node.at("file")).expect("read from the cloud") == want);

    // Nobody but fastcache tells the state.
    let set = rustix::fs::setxattr(
        node.at("file"),
        "user.fastcache.state",
        b"persisted",
        rustix::fs::XattrFlags::empty(),
    );
    assert!(set.is_err(), "the attribute is read only");
    let missing = node.try_ctl(&["state", "no-such-file"]);
    assert!(
        !missing.status.success(),
        "a file that is not there has no state"
    );
}

#[test]
fn a_node_comes_back_warm() {
    let _one = serial();
    let node = Node::start_default();
    let content = Bytes::of(3).range(0, 40 << 20);
    std::fs::write(node.at("file"), &content).expect("write on the mount");
    node.flush();
    node.down();
    assert!(!node.is_mounted());
    for plane in [Plane::Data, Plane::Agent, Plane::Supervisor] {
        assert!(node.pid(plane).is_none(), "{plane:?} is gone");
    }
    node.up();
    assert!(std::fs::read(node.at("file")).expect("read") == content);
    assert_eq!(
        node.stat("fetched_chunks"),
        0,
        "everything was still on NVMe"
    );
    assert!(node.stat("nvme_hit_bytes") >= 40 << 20);
}

#[test]
fn the_index_made_from_the_headers_is_as_warm() {
    let _one = serial();
    let node = Node::start_default();
    let content = Bytes::of(6).range(0, 20 << 20);
    std::fs::write(node.at("file"), &content).expect("write on the mount");
    std::fs::write(node.at("small"), b"some bytes").expect("write on the mount");
    node.flush();
    node.down();
    node.up_with(&["--rebuild-index"]);
    assert!(node.logs().contains("made anew from the headers"));
    drop_page_cache();
    assert!(std::fs::read(node.at("file")).expect("read") == content);
    assert_eq!(
        std::fs::read(node.at("small")).expect("read"),
        b"some bytes"
    );
    assert_eq!(
        node.stat("fetched_chunks"),
        0,
        "nothing came from the cloud"
    );
    // Once: the data plane that is started again has the index.
    assert!(node.kill(Plane::Data), "it was there");
    node.wait_for_return();
    assert!(std::fs::read(node.at("file")).expect("read") == content);
    assert_eq!(node.logs().matches("made anew from the headers").count(), 1);
}

#[test]
fn a_stale_mount_is_cleaned_up_by_the_next_up() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(node.at("file"), b"closed").expect("write on the mount");
    node.kill_all();
    wait_until("nobody serves the mount", Duration::from_secs(10), || {
        std::fs::read(node.at("file")).is_err()
    });
    node.up();
    assert_eq!(
        std::fs::read(node.at("file")).expect("close returned, so it is there"),
        b"closed"
    );
    assert_eq!(
        run(Command::new("sh")
            .args(["-c", "grep -c \" $0 \" /proc/self/mounts"])
            .arg(node.mount())),
        "1\n"
    );
}

#[test]
fn what_is_dirty_at_the_end_is_uploaded_after_the_next_start() {
    let _one = serial();
    let node = Node::start(Setup {
        flags: vec!["--chunk-size".into(), "1".into()],
        ..Setup::default()
    });
    std::fs::write(node.at("file"), Bytes::of(4).range(0, 3 << 20)).expect("write on the mount");
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        node.kill(plane);
    }
    node.up();
    // Without being asked: the queue is rebuilt from the device.
    wait_until(
        "the queue goes on by itself",
        Duration::from_secs(45),
        || node.state_xattr("file") == "persisted",
    );
    assert_eq!(node.data_objects().len(), 3);
    node.evict();
    let got = std::fs::read(node.at("file")).expect("read from the cloud");
    assert_eq!(
        (got.len(), Bytes::of(4).first_difference(0, &got)),
        (3 << 20, None)
    );
}

#[test]
fn a_reread_makes_no_request() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(node.at("file"), Bytes::of(5).range(0, 64 << 20)).expect("write on the mount");
    drop_page_cache();
    let mut file = std::fs::File::open(node.at("file")).expect("open");
    let mut buf = Vec::with_capacity(64 << 20);
    file.read_to_end(&mut buf).expect("first reading");
    // Others may take pages away when the machine is short of memory, and what the kernel asks for ahead of a reader is
    // counted late: then the reading before was another first one.
    let mut again = vec![0; 64 << 20];
    wait_until("the page cache answers", Duration::from_secs(60), || {
        let before = node.fuse_requests();
        file.read_exact_at(&mut again, 0).expect("next reading");
        assert!(buf == again);
        node.fuse_requests() == before
    });
}

#[test]
fn the_benchmark_runs() {
    let _one = serial();
    let bin = program("fastcache-ctl");
    let text = run(Command::new("timeout")
        .args(["300", "python3"])
        .arg(repository().join("tests/bench.py"))
        .arg("--quick")
        .env("FASTCACHE_BIN_DIR", bin.parent().expect("a folder")));
    println!("{text}");
    if UringOn::is_possible() {
        assert!(text.contains("| dev | uring |"), "both transports");
    }
    for profile in [
        "seq_read",
        "rand_read_128k",
        "rand_read_d1",
        "rand_read",
        "rand_read_crc_cold",
        "rand_write",
        "checkpoint_write",
        "buffered_write",
        "buffered_read",
        "reread",
        "open_read_close",
        "open_read_close_cold",
        "small_files",
        "mixed",
        "ingest",
    ] {
        assert!(text.contains(profile), "{profile} was measured");
    }
}
