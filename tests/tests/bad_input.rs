//! Promise: whatever an operator or a stranger gives to it, fastcache answers with a sentence that names what is wrong
//! and says what to do; it starts nothing half, and what runs already goes on.

use fastcache_tests::{
    Bytes, Coordinator, Fault, FaultProxy, Node, Plane, S3, Setup, output_of, program, run, serial,
    temp_dir, wait_until,
};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longer than any refusal may take, seconds.
const REFUSAL_LIMIT_S: u32 = 90;

/// A folder in which nothing should start.
struct Place {
    home: tempfile::TempDir,
    mount: PathBuf,
}

impl Place {
    fn new() -> Place {
        let home = temp_dir("bad");
        let mount = home.path().join("mnt");
        std::fs::create_dir(&mount).expect("mkdir");
        Place { home, mount }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn dir(&self) -> PathBuf {
        self.at("dir")
    }

    /// `up` with these flags, on a mount of our own unless they name another.
    fn up(&self, flags: &[&str]) -> Command {
        let mut command = limited("fastcache-ctl");
        command.arg("up").arg("--dir").arg(self.dir());
        if !flags.contains(&"--mount") {
            command.arg("--mount").arg(&self.mount);
        }
        command.args(["--port", "0", "--nvme-capacity", "64MiB"]);
        command.args(flags);
        command.args(["--detach"]);
        command
    }

    /// The same without the flags that the case gives another value.
    fn up_plain(&self, flags: &[&str]) -> Command {
        let mut command = limited("fastcache-ctl");
        command.arg("up").arg("--dir").arg(self.dir());
        command.arg("--mount").arg(&self.mount).args(flags);
        command.args(["--detach"]);
        command
    }

    /// `fastcache-data` alone.
    fn data(&self, nvme: &Path) -> Command {
        let mut command = limited("fastcache-data");
        command.arg("--nvme").arg(nvme);
        command.arg("--mount").arg(&self.mount);
        command.arg("--socket").arg(self.at("sock"));
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = limited("fastcache-ctl")
            .arg("down")
            .arg("--dir")
            .arg(self.dir())
            .output();
        let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
    }
}

fn limited(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg(REFUSAL_LIMIT_S.to_string()).arg(program(name));
    command
}

/// Runs what must be refused: it fails, in time, and what it says has all of these words. No backtrace.
#[track_caller]
fn refused(command: &mut Command, says: &[&str]) -> String {
    let out = output_of(command);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let text = text + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success(), "{command:?} was accepted: {text}");
    assert_ne!(out.status.code(), Some(124), "{command:?}: no end: {text}");
    for word in says {
        assert!(
            text.contains(word),
            "{command:?} does not say {word:?}: {text}"
        );
    }
    assert!(!text.contains("panicked"), "{command:?}: {text}");
    text
}

/// Writes a file, and it comes back.
#[track_caller]
fn works(node: &Node) {
    let path = node.at(&format!("works-{}", rand::random::<u32>()));
    let bytes = Bytes::of(7).range(0, 100_000);
    std::fs::write(&path, &bytes).expect("write");
    assert!(std::fs::read(&path).expect("read") == bytes);
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let _one = serial();
    let place = Place::new();
    for (flags, says) in [
        (
            ["--fsync", "sometimes"],
            &["sometimes", "local, peers, cloud"][..],
        ),
        (["--nvme-capacity", "10GB"], &["10GB", "10GiB"]),
        (["--nvme-capacity", "-1"], &["-1"]),
        (["--chunk-size", "9"], &["--chunk-size", "1, 2, 3 or 4"]),
        (["--cores", "4000"], &["4000", "available"]),
        (["--cores", "a-b"], &["a-b", "0-3"]),
        (["--port", "99999"], &["99999", "65535"]),
        (
            ["--cloud-provider", "gcs"],
            &["gcs", "s3, azure, dir, none"],
        ),
        (["--put-limit", "lots"], &["lots", "10GiB"]),
        (["--listen", "here"], &["here", "ADDR"]),
        (["--listen", "0.0.0.0:8082"], &["--cluster-token-file"]),
        (["--cluster-token", "short"], &["5 bytes", "16"]),
        (["--no-such-flag", "1"], &["--no-such-flag"]),
    ] {
        refused(&mut place.up_plain(&flags), says);
    }
    refused(limited("fastcache-ctl").args(["up"]), &["--dir"]);
    let mount_in_dir = place.dir().join("..");
    refused(
        limited("fastcache-ctl")
            .arg("up")
            .arg("--dir")
            .arg(place.dir())
            .arg("--mount")
            .arg(mount_in_dir),
        &["hide", "choose another"],
    );
}

#[test]
fn a_configuration_file_is_read_or_its_error_names_the_line() {
    let _one = serial();
    let place = Place::new();
    let file = place.at("config.toml");
    let with = |text: &[u8]| {
        std::fs::write(&file, text).expect("write");
        file.to_str().expect("path").to_owned()
    };
    let missing = place.at("no-such.toml");
    let missing = missing.to_str().expect("path");
    let folder = place.home.path().to_str().expect("path");
    refused(
        &mut place.up(&["--config", missing]),
        &["no-such.toml", "--config"],
    );
    refused(&mut place.up(&["--config", folder]), &[folder, "--config"]);
    for (text, says) in [
        (
            &b"fsync = \"local\"\ns3-buket = \"x\"\n"[..],
            &["line 2", "s3-buket", "did you mean `s3-bucket`"][..],
        ),
        (
            b"stop_timeout = 3\n",
            &["stop_timeout", "did you mean `stop-timeout`"],
        ),
        (b"port = \"high\"\n", &["line 1", "port"]),
        (b"fsync = \"often\"\n", &["line 1", "often"]),
        (b"port = \n", &["line 1"]),
        (b"\xff\xfe = 1\n", &["UTF-8"]),
        (b"[section]\nport = 1\n", &["section"]),
    ] {
        let path = with(text);
        refused(&mut place.up(&["--config", &path]), says);
    }
    // The data plane says the same of its file, and a secret in the line is not repeated.
    let path = with(b"nvme_capacity = \"1GiB\"\n");
    let mut data = place.data(&place.at("nvme"));
    data.args(["--config", &path]);
    refused(
        &mut data,
        &["nvme_capacity", "did you mean `nvme-capacity`"],
    );
    let path = with(b"api-kee = \"hunter2\"\n");
    for command in [
        &mut place.up(&["--config", &path]),
        place.data(&place.at("nvme")).args(["--config", &path]),
    ] {
        let said = refused(command, &["did you mean `api-key`"]);
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let _one = serial();
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port().to_string();
    refused(
        &mut place.up_plain(&["--port", &port, "--nvme-capacity", "64MiB"]),
        &[&port, "--port"],
    );
    let listen = format!("127.0.0.1:{port}");
    refused(
        limited("fastcache-ctl")
            .args(["coordinator", "--listen", &listen, "--state-dir"])
            .arg(place.at("state")),
        &[&port, "--listen"],
    );
    // The agent alone, as a service manager runs it.
    refused(
        limited("fastcache-ctl")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--cloud-provider",
                "none",
            ])
            .arg("--socket")
            .arg(place.at("sock"))
            .arg("--state-dir")
            .arg(place.at("state2")),
        &[&port, "--port"],
    );
}

#[test]
fn a_second_instance_is_refused_and_the_first_goes_on() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("64MiB"),
        ..Setup::default()
    });
    works(&node);
    let place = Place::new();
    // Another node in the same folder.
    let mut same_dir = limited("fastcache-ctl");
    same_dir.arg("up").arg("--dir").arg(node.dir());
    same_dir.arg("--mount").arg(&place.mount).arg("--detach");
    refused(&mut same_dir, &["already runs", "status", "down"]);
    // Another data plane on the same device.
    refused(
        &mut place.data(&node.dir().join("nvme")),
        &["another process is using this chunk store", "--nvme"],
    );
    // Another node on the same device.
    let nvme = node.dir().join("nvme");
    refused(
        &mut place.up(&["--nvme", nvme.to_str().expect("path")]),
        &["another process is using this chunk store"],
    );
    // Another node on the same mount point: the first one's mount stays.
    let mount = node.mount().to_str().expect("path").to_owned();
    refused(
        &mut place.up(&["--mount", &mount]),
        &[&mount, "choose another"],
    );
    // Another data plane on the same mount point, and on the same socket.
    let mut data = limited("fastcache-data");
    data.arg("--nvme").arg(place.at("nvme"));
    data.args(["--nvme-capacity", "64MiB", "--mount", &mount, "--socket"]);
    data.arg(node.dir().join("run/data.sock"));
    refused(&mut data, &["another fastcache-data listens", "--socket"]);
    works(&node);
    assert!(node.is_mounted());
}

#[test]
fn a_bucket_that_is_missing_or_refuses_is_said_at_start() {
    let _one = serial();
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let place = Place::new();
    let endpoint = proxy.endpoint();
    let up = |bucket: &str| {
        let mut command = place.up(&["--cloud-provider", "s3", "--s3-endpoint", &endpoint]);
        command.args(["--s3-bucket", bucket]);
        command.env("AWS_ACCESS_KEY_ID", "test");
        command.env("AWS_SECRET_ACCESS_KEY", "test");
        command
    };
    refused(&mut up("no-such-bucket"), &["no-such-bucket", "bucket"]);
    for code in [401, 403] {
        proxy.set(Fault::Status {
            code,
            share: 1.0,
            retry_after_s: None,
        });
        refused(&mut up(s3.bucket()), &[s3.bucket(), "credentials"]);
    }
    // One half of the credentials.
    let mut half = up(s3.bucket());
    half.env_remove("AWS_SECRET_ACCESS_KEY");
    refused(&mut half, &["AWS_SECRET_ACCESS_KEY"]);
    // Nothing is left behind: with the right answers it starts.
    proxy.set(Fault::Pass);
    run(&mut up(s3.bucket()));
}

/// A loop device.
struct Loop(String);

impl Loop {
    fn over(file: &Path, flags: &[&str]) -> Loop {
        let name = run(Command::new("losetup")
            .args(flags)
            .args(["-f", "--show"])
            .arg(file));
        Loop(name.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = output_of(Command::new("losetup").args(["-d", &self.0]));
    }
}

#[test]
fn a_device_that_cannot_hold_a_store_is_refused() {
    let _one = serial();
    let place = Place::new();
    // Too small, as a file, as a device, and by what was asked for.
    let small = place.at("small");
    std::fs::write(&small, vec![0; 1 << 20]).expect("write");
    refused(&mut place.data(&small), &["1048576", "larger"]);
    let device = Loop::over(&small, &[]);
    refused(
        &mut place.data(Path::new(&device.0)),
        &["1048576", "larger"],
    );
    drop(device);
    refused(
        &mut place.up_plain(&["--port", "0", "--nvme-capacity", "1MiB"]),
        &["1048576", "--nvme-capacity"],
    );
    // Larger than the disk, and larger than any store: nothing is left that a smaller one would trip over.
    refused(
        &mut place.up_plain(&["--port", "0", "--nvme-capacity", "9TiB"]),
        &["nvme", "--nvme-capacity"],
    );
    refused(
        &mut place.up_plain(&["--port", "0", "--nvme-capacity", "90TiB"]),
        &["--nvme-capacity"],
    );
    // Read-only.
    let file = place.at("readonly");
    std::fs::File::create(&file)
        .and_then(|f| f.set_len(64 << 20))
        .expect("file");
    let device = Loop::over(&file, &["-r"]);
    refused(
        &mut place.data(Path::new(&device.0)),
        &[&device.0, "read-only"],
    );
    drop(device);
    // Not a device at all.
    refused(
        &mut place.data(Path::new("/dev/null")),
        &["/dev/null", "block device"],
    );
    refused(
        &mut place.data(&place.at("a/b/c")),
        &["a/b/c", "check the path"],
    );
    // Somebody else's: as its own mkfs made it.
    let theirs = place.at("ext4");
    std::fs::File::create(&theirs)
        .and_then(|f| f.set_len(64 << 20))
        .expect("file");
    run(Command::new("mkfs.ext4").arg("-q").arg(&theirs));
    let before = std::fs::read(&theirs).expect("read");
    refused(&mut place.data(&theirs), &["ext4", "--format --force"]);
    assert!(
        std::fs::read(&theirs).expect("read") == before,
        "refused, and changed"
    );
    // All of these were refused; now it starts.
    run(&mut place.up(&[]));
}

#[test]
fn a_mount_point_that_cannot_be_one_is_refused() {
    let _one = serial();
    let place = Place::new();
    let file = place.at("file");
    std::fs::write(&file, "mine").expect("write");
    let path = file.to_str().expect("path").to_owned();
    refused(
        &mut place.up(&["--mount", &path]),
        &[&path, "not a directory", "mkdir"],
    );
    let mut data = limited("fastcache-data");
    data.args(["--mount", &path, "--nvme"])
        .arg(place.at("nvme"));
    data.args(["--nvme-capacity", "64MiB", "--socket"])
        .arg(place.at("sock"));
    refused(&mut data, &[&path, "not a directory", "mkdir"]);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "mine");
    // Missing: `up` makes it; the data plane alone says how.
    let missing = place.at("no/such/mnt");
    let mut data = limited("fastcache-data");
    data.arg("--mount")
        .arg(&missing)
        .arg("--nvme")
        .arg(place.at("nvme"));
    data.args(["--nvme-capacity", "64MiB", "--socket"])
        .arg(place.at("sock"));
    refused(&mut data, &["no/such/mnt", "mkdir"]);
    // In use by another file system.
    let busy = place.at("busy");
    std::fs::create_dir(&busy).expect("mkdir");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&busy));
    std::fs::write(busy.join("theirs"), "theirs").expect("write");
    let busy_name = busy.to_str().expect("path").to_owned();
    let out = output_of(&mut place.up(&["--mount", &busy_name]));
    let theirs = std::fs::read_to_string(busy.join("theirs"));
    run(Command::new("umount").arg("-l").arg(&busy));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("tmpfs"), "{text}");
    assert_eq!(theirs.expect("read"), "theirs");
}

#[test]
fn a_stale_mount_is_cleaned_and_used_again() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("64MiB"),
        ..Setup::default()
    });
    let bytes = Bytes::of(3).range(0, 1_000_000);
    std::fs::write(node.at("kept"), &bytes).expect("write");
    for plane in [Plane::Supervisor, Plane::Data, Plane::Agent] {
        assert!(node.kill(plane));
    }
    wait_until("the mount is dead", Duration::from_secs(10), || {
        std::fs::metadata(node.at("kept")).is_err()
    });
    node.up();
    assert!(std::fs::read(node.at("kept")).expect("read") == bytes);
}

/// Peak of a process's memory, bytes.
fn peak_rss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// What a stranger may send: nothing, noise, half a message, a length without an end.
fn garbage(rng: &mut StdRng) -> Vec<u8> {
    let mut noise = vec![0; rng.random_range(0..70_000)];
    rng.fill_bytes(&mut noise);
    match rng.random_range(0..6) {
        0 => Vec::new(),
        1 => noise,
        2 => [&u32::MAX.to_le_bytes()[..], &noise].concat(),
        3 => [&(8u32 << 20).to_le_bytes()[..], &noise].concat(),
        4 => [&20u32.to_le_bytes()[..], &noise[..noise.len().min(20)]].concat(),
        _ => {
            let mut text = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            text.extend(noise);
            text
        }
    }
}

#[test]
fn garbage_on_the_control_socket_is_refused_and_the_node_serves_on() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("64MiB"),
        ..Setup::default()
    });
    works(&node);
    let pid = node.pid(Plane::Data);
    let before = pid.map_or(0, peak_rss);
    let socket = node.dir().join("run/data.sock");
    let mut rng = StdRng::seed_from_u64(11);
    let mut open = Vec::new();
    for n in 0..60 {
        let mut stream = UnixStream::connect(&socket).expect("connect");
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("timeout");
        let _ = stream.write_all(&garbage(&mut rng));
        if n % 10 == 0 {
            // Some say nothing and stay.
            open.push(stream);
        } else if n % 2 == 0 {
            stream
                .set_read_timeout(Some(Duration::from_millis(50)))
                .expect("timeout");
            let _ = stream.read(&mut [0; 4096]);
        }
    }
    works(&node);
    drop(open);
    works(&node);
    node.flush();
    assert_eq!(
        node.pid(Plane::Data),
        pid,
        "the data plane was started again"
    );
    let grown = pid.map_or(0, peak_rss).saturating_sub(before);
    assert!(grown < 128 << 20, "memory grew by {grown} bytes");
}

#[test]
fn garbage_on_the_coordinators_port_is_refused_and_it_serves_on() {
    let _one = serial();
    let coordinator = Coordinator::start_with(&[]);
    let port = coordinator.port();
    let before = peak_rss(coordinator.pid());
    let mut rng = StdRng::seed_from_u64(12);
    let mut open = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("timeout");
        let _ = stream.write_all(&garbage(&mut rng));
        if n % 10 == 0 {
            open.push(stream);
        }
    }
    // A gRPC call whose message is none.
    let url = format!("http://127.0.0.1:{port}");
    let file = coordinator.dir().join("body");
    for body in [&b""[..], b"\0\0\0\0\x05abcde", b"\x01\x7f\x7f\x7f\x7fx"] {
        std::fs::write(&file, body).expect("write");
        let _ = output_of(Command::new("curl").args([
            "-sS",
            "--http2-prior-knowledge",
            "--max-time",
            "3",
            "-H",
            "content-type: application/grpc",
            "--data-binary",
            &format!("@{}", file.display()),
            &format!("{url}/fastcache.v1.Coordinator/Call"),
        ]));
    }
    let mut flags = coordinator.bucket();
    flags.extend(["--coordinator".to_owned(), coordinator.address()]);
    let node = Node::start(Setup {
        capacity: Some("64MiB"),
        flags,
        ..Setup::default()
    });
    works(&node);
    let grown = peak_rss(coordinator.pid()).saturating_sub(before);
    assert!(grown < 128 << 20, "memory grew by {grown} bytes");
    node.down();
    drop(open);
}

#[test]
fn names_and_sizes_at_their_limits() {
    let _one = serial();
    let node = Node::start(Setup {
        capacity: Some("256MiB"),
        ..Setup::default()
    });
    let started = Instant::now();
    // A path longer than PATH_MAX, a name longer than NAME_MAX.
    let deep = node.at(&"d/".repeat(2500));
    let error = std::fs::write(&deep, "x").expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let error = std::fs::write(node.at(&"n".repeat(256)), "x").expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    std::fs::write(node.at(&"n".repeat(255)), "x").expect("255 bytes");
    // Any bytes but a slash and NUL.
    for name in [
        &b"new\nline"[..],
        b"\xff\xfe\x80",
        b" ",
        b"-rf",
        b"\t\\\"'*?",
    ] {
        let path = node.mount().join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(&path, name).expect("write");
        assert_eq!(std::fs::read(&path).expect("read"), name);
    }
    let sizes = [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1];
    for size in sizes {
        let bytes = Bytes::of(size as u64).range(0, size);
        std::fs::write(node.at(&format!("size-{size}")), bytes).expect("write");
    }
    let sparse = std::fs::File::create(node.at("sparse")).expect("create");
    let last = (1u64 << 40) - 5;
    sparse.write_all_at(b"first", 0).expect("write");
    sparse.write_all_at(b"-last", last).expect("write");
    sparse.sync_all().expect("fsync");
    drop(sparse);
    node.flush();
    node.evict();
    for size in sizes {
        let bytes = Bytes::of(size as u64).range(0, size);
        let back = std::fs::read(node.at(&format!("size-{size}"))).expect("read");
        assert!(back == bytes, "{size} bytes");
    }
    let sparse = std::fs::File::open(node.at("sparse")).expect("open");
    assert_eq!(sparse.metadata().expect("stat").len(), 1 << 40);
    let mut five = [1; 5];
    for (at, want) in [(0, b"first"), (last, b"-last"), (1 << 39, b"\0\0\0\0\0")] {
        sparse.read_exact_at(&mut five, at).expect("read");
        assert_eq!(&five, want);
    }
    assert!(started.elapsed() < Duration::from_secs(120));
}
