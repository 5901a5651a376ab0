//! A node, started, asked and stopped through `fastcache-ctl`, as an operator would.

use crate::machine::{free_port, output_of, program, run, temp_dir, wait_until};
use crate::plane::{Plane, Stopped, is_dead, kill_9, pid_in, signal};
use crate::s3::S3;
use crate::uring::{UringOn, transport_of};
use serde_json::Value;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where chunks go.
#[derive(Debug)]
pub enum Cloud {
    /// A directory: what `up` does when nothing is said.
    Dir,
    /// A real S3 server.
    S3(S3),
}

/// How a node is started.
#[derive(Debug)]
pub struct Setup {
    /// The third tier.
    pub cloud: Cloud,
    /// `--nvme-capacity`.
    pub capacity: Option<&'static str>,
    /// Further flags of `up`.
    pub flags: Vec<String>,
    /// Further environment of `up`, which its planes inherit.
    pub env: Vec<(&'static str, String)>,
    /// A test that takes longer is stopped by force: a hung file system must not hang CI.
    pub limit: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            cloud: Cloud::Dir,
            capacity: None,
            flags: Vec::new(),
            env: Vec::new(),
            limit: Duration::from_secs(15 * 60),
        }
    }
}

/// How long `up` may take: a cold start formats the store.
const UP_LIMIT_S: u32 = 90;
/// How long an operator's command may take; `flush --wait` of the largest tree included.
const COMMAND_LIMIT_S: u32 = 600;
/// How long a mount may take to answer after its processes were killed.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

/// A running node. Stopped, unmounted and deleted when it is dropped.
#[derive(Debug)]
pub struct Node {
    home: TempDir,
    mount: PathBuf,
    port: u16,
    setup: Setup,
    is_over: Arc<AtomicBool>,
    /// FUSE over io_uring is switched on for this node.
    transport: Option<UringOn>,
    /// Processes that were killed since it last came up.
    killed: Mutex<Vec<u32>>,
}

impl Node {
    /// Starts a node in a folder of its own and returns when its mount answers.
    ///
    /// # Panics
    /// When it does not come up, with what it said.
    #[track_caller]
    pub fn start(setup: Setup) -> Node {
        let node = Node::prepare(setup);
        node.up();
        node
    }

    /// A node in a folder of its own that was not started: for [`Node::try_up`], when it is to be refused.
    ///
    /// # Panics
    /// When there is no room.
    #[track_caller]
    pub fn prepare(setup: Setup) -> Node {
        let home = temp_dir("node");
        let mount = home.path().join("mnt");
        std::fs::create_dir(&mount).unwrap_or_else(|e| panic!("{}: {e}", mount.display()));
        let is_over = Arc::new(AtomicBool::new(false));
        let node = Node {
            home,
            mount,
            port: free_port(),
            transport: transport_of(&setup.flags),
            setup,
            is_over,
            killed: Mutex::default(),
        };
        node.watch();
        node
    }

    /// A node with everything at its default.
    #[track_caller]
    pub fn start_default() -> Node {
        Node::start(Setup::default())
    }

    /// `fastcache-ctl up --detach` with this node's flags; also to start it again after everything was killed.
    ///
    /// # Panics
    /// When it does not come up, with what it said.
    #[track_caller]
    pub fn up(&self) -> String {
        self.up_with(&[])
    }

    /// The same, with further flags.
    ///
    /// # Panics
    /// When it does not come up, with what it said.
    #[track_caller]
    pub fn up_with(&self, flags: &[&str]) -> String {
        let out = self.try_up_with(flags);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "up: {}\n{text}{}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr),
            self.logs()
        );
        assert!(
            self.is_mounted(),
            "up returned, but nothing is mounted at {}",
            self.mount.display()
        );
        text
    }

    /// The same, whatever comes of it.
    pub fn try_up(&self) -> Output {
        self.try_up_with(&[])
    }

    /// The same, with further flags.
    pub fn try_up_with(&self, flags: &[&str]) -> Output {
        // What was killed and is not dead yet still holds its locks.
        let killed = std::mem::take(&mut *self.killed.lock().expect("lock"));
        wait_until("what was killed is dead", Duration::from_secs(30), || {
            killed.iter().all(|pid| is_dead(*pid))
        });
        let mut command = Command::new("timeout");
        command
            .arg(UP_LIMIT_S.to_string())
            .arg(program("fastcache-ctl"))
            .arg("up");
        command
            .arg("--dir")
            .arg(self.dir())
            .arg("--mount")
            .arg(&self.mount)
            .arg("--detach");
        command.arg("--port").arg(self.port.to_string());
        if let Some(capacity) = self.setup.capacity {
            command.arg("--nvme-capacity").arg(capacity);
        }
        self.name_cloud(&mut command);
        if !self.setup.flags.iter().any(|f| f == "--fuse-transport") {
            command
                .arg("--fuse-transport")
                .arg(self.transport.as_ref().map_or("dev", |_| "uring"));
        }
        command.args(&self.setup.flags).args(flags);
        command.envs(self.setup.env.iter().map(|(name, value)| (name, value)));
        output_of(&mut command)
    }

    /// `fastcache-ctl rebuild` of this node, whatever comes of it.
    pub fn try_rebuild(&self, flags: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command
            .arg(COMMAND_LIMIT_S.to_string())
            .arg(program("fastcache-ctl"))
            .args(["rebuild", "--dir"])
            .arg(self.dir());
        self.name_cloud(&mut command);
        output_of(command.args(flags))
    }

    /// The flags and the environment that name the object store.
    fn name_cloud(&self, command: &mut Command) {
        match &self.setup.cloud {
            Cloud::Dir => {}
            Cloud::S3(s3) => {
                command.args(["--cloud-provider", "s3", "--s3-bucket", s3.bucket()]);
                let endpoint = s3.endpoint_for_nodes();
                command.args(["--s3-endpoint", &endpoint, "--s3-region", "us-east-1"]);
                command
                    .env("AWS_ACCESS_KEY_ID", "test")
                    .env("AWS_SECRET_ACCESS_KEY", "test");
            }
        }
    }

    /// The mount.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// A path under the mount.
    pub fn at(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    /// The folder given as `--dir`.
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("dir")
    }

    /// A folder on the disk, outside the mount, that goes when the node goes.
    pub fn outside(&self) -> &Path {
        self.home.path()
    }

    /// Port of the REST API.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address of the REST API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The S3 server.
    ///
    /// # Panics
    /// When this node has none.
    pub fn s3(&self) -> &S3 {
        match &self.setup.cloud {
            Cloud::S3(s3) => s3,
            Cloud::Dir => panic!("this node has no S3 server"),
        }
    }

    /// Objects that hold data: key and bytes.
    pub fn data_objects(&self) -> Vec<(String, u64)> {
        let all = match &self.setup.cloud {
            Cloud::S3(s3) => s3.objects(),
            Cloud::Dir => files_below(&self.dir().join("cloud")),
        };
        all.into_iter()
            .filter(|(key, _)| key.contains("chunks/"))
            .collect()
    }

    // ---- operator's commands ----

    /// An operator's command on this node, whatever comes of it.
    pub fn try_ctl(&self, args: &[&str]) -> Output {
        let (command, rest) = args.split_first().unwrap_or((&"status", &[]));
        let mut process = Command::new("timeout");
        process
            .arg(COMMAND_LIMIT_S.to_string())
            .arg(program("fastcache-ctl"))
            .arg(command);
        process.arg("--dir").arg(self.dir()).args(rest);
        output_of(&mut process)
    }

    /// An operator's command on this node; its standard output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> String {
        let out = self.try_ctl(args);
        assert!(
            out.status.success(),
            "fastcache-ctl {args:?}: {}\n{}{}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            self.logs()
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// An operator's command with `--json`, which has to succeed; `status` may say that the node is not well.
    ///
    /// # Panics
    /// When it fails or does not print JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, value) = self.verdict(args);
        // `status` tells that the node is not well by 1, and has an answer all the same.
        assert!(
            code == 0 || (code == 1 && args.first() == Some(&"status")),
            "fastcache-ctl {args:?}: {code}\n{value:#}\n{}",
            self.logs()
        );
        value
    }

    /// An operator's command with `--json`: its exit code, and what it printed.
    ///
    /// # Panics
    /// When it does not print JSON.
    #[track_caller]
    pub fn verdict(&self, args: &[&str]) -> (i32, Value) {
        let out = self.try_ctl(&[args, &["--json"]].concat());
        let text = String::from_utf8_lossy(&out.stdout);
        let value = serde_json::from_str(&text).unwrap_or_else(|e| {
            panic!(
                "{args:?}: {e}: {}\n{text}{}\n{}",
                out.status,
                String::from_utf8_lossy(&out.stderr),
                self.logs()
            )
        });
        (out.status.code().unwrap_or(-1), value)
    }

    /// `flush --wait`: returns when everything is in the cloud.
    #[track_caller]
    pub fn flush(&self) {
        self.ctl(&["flush", "--wait"]);
    }

    /// `evict --all`.
    #[track_caller]
    pub fn evict(&self) {
        self.ctl(&["evict", "--all"]);
    }

    /// One counter of `status --json`, by its name, wherever in the document it is.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn stat(&self, name: &str) -> u64 {
        let status = self.json(&["status"]);
        find(&status, name)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("status has no number {name}: {status:#}"))
    }

    /// All FUSE requests so far, but those that tell nothing about data: `forget` and its like.
    ///
    /// # Panics
    /// When status does not tell.
    #[track_caller]
    pub fn fuse_requests(&self) -> u64 {
        let status = self.json(&["status"]);
        let table = find(&status, "fuse_requests")
            .unwrap_or_else(|| panic!("status has no fuse_requests: {status:#}"));
        let rows: Vec<(String, u64)> = match table {
            Value::Object(map) => map
                .iter()
                .map(|(k, v)| (k.clone(), v.as_u64().unwrap_or(0)))
                .collect(),
            Value::Array(rows) => rows
                .iter()
                .map(|r| {
                    (
                        r[0].as_str().unwrap_or("").to_owned(),
                        r[1].as_u64().unwrap_or(0),
                    )
                })
                .collect(),
            other => panic!("fuse_requests is {other}"),
        };
        rows.iter()
            .filter(|(name, _)| !name.to_lowercase().contains("forget"))
            .map(|(_, n)| n)
            .sum()
    }

    /// The durability state of a file, as the extended attribute on the mount tells it.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn state_xattr(&self, path: &str) -> String {
        let mut buf = [0u8; 256];
        let n = rustix::fs::getxattr(self.at(path), "user.fastcache.state", &mut buf)
            .unwrap_or_else(|e| panic!("user.fastcache.state of {path}: {e}"));
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    // ---- processes ----

    /// Most memory a plane had resident since it started, bytes; 0 when it does not run. Locked buffers and the shared
    /// arena, as far as it was touched, are in it.
    pub fn peak_memory(&self, plane: Plane) -> u64 {
        let Some(pid) = self.pid(plane) else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:"))
            .and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }

    /// Process id of a plane, from `DIR/node.json`; `None` while there is none.
    pub fn pid(&self, plane: Plane) -> Option<u32> {
        let text = std::fs::read_to_string(self.dir().join("node.json")).ok()?;
        pid_in(&text, plane)
    }

    /// kill -9. Says whether there was something to kill.
    pub fn kill(&self, plane: Plane) -> bool {
        let pid = self.pid(plane).filter(|pid| kill_9(*pid));
        self.killed.lock().expect("lock").extend(pid);
        pid.is_some()
    }

    /// kill -9 of all its processes, the supervisor first, so that it starts nothing again.
    ///
    /// # Panics
    /// When one did not run.
    #[track_caller]
    pub fn kill_all(&self) {
        for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
            assert!(self.kill(plane), "{plane:?} runs");
        }
    }

    /// SIGSTOP. It goes on when what this returns is dropped.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn stop(&self, plane: Plane) -> Stopped {
        let pid = self.pid(plane).expect("it runs");
        assert!(
            signal(pid, rustix::process::Signal::STOP),
            "{plane:?} runs no more"
        );
        Stopped(pid)
    }

    /// Kills everything and unmounts: a test gives up, and nothing may hang.
    pub fn stop_by_force(&self) {
        stop_by_force(&self.dir(), &self.mount);
    }

    /// Waits until the mount answers, reads and writes, without any help.
    ///
    /// # Panics
    /// When it does not, with the logs.
    #[track_caller]
    pub fn wait_for_return(&self) {
        let start = Instant::now();
        let probe = self.at(".probe");
        loop {
            // A process of its own, with a limit: the call may hang while nobody serves the mount.
            let script = format!(
                "echo alive > '{0}' && cat '{0}' && rm '{0}'",
                probe.display()
            );
            let out =
                output_of(Command::new("timeout").args(["-s", "KILL", "10", "sh", "-c", &script]));
            if out.status.success() && self.is_mounted() {
                return;
            }
            assert!(
                start.elapsed() < RETURN_LIMIT,
                "the mount did not come back within {RETURN_LIMIT:?}: {}\n{}",
                String::from_utf8_lossy(&out.stderr),
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether a file system is mounted at the mount.
    pub fn is_mounted(&self) -> bool {
        let here = std::fs::metadata(&self.mount).map(|m| m.dev());
        let parent = std::fs::metadata(self.home.path()).map(|m| m.dev());
        matches!((here, parent), (Ok(a), Ok(b)) if a != b)
    }

    /// `fastcache-ctl down`; what it said.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn down(&self) -> String {
        let text = self.ctl(&["down"]);
        wait_until("unmounted after down", Duration::from_secs(10), || {
            !self.is_mounted()
        });
        text
    }

    /// The ends of the log files, for a failure's message.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (name, _) in files_below(&self.dir()) {
            if name.ends_with(".log") {
                let log = run(Command::new("tail")
                    .args(["-n", "40"])
                    .arg(self.dir().join(&name)));
                text.push_str(&format!("---- {name}\n{log}\n"));
            }
        }
        text
    }

    /// Ends the test by force after its limit.
    fn watch(&self) {
        let (is_over, dir, mount) = (self.is_over.clone(), self.dir(), self.mount.clone());
        let deadline = Instant::now() + self.setup.limit;
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                if Instant::now() > deadline {
                    eprintln!("the test did not end in time; stopping it by force");
                    stop_by_force(&dir, &mount);
                    std::process::exit(101);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        } else if self.dir().join("node.json").exists() {
            let _ = output_of(
                Command::new("timeout")
                    .args(["-s", "KILL", "60"])
                    .arg(program("fastcache-ctl"))
                    .arg("down")
                    .arg("--dir")
                    .arg(self.dir()),
            );
        }
        stop_by_force(&self.dir(), &self.mount);
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Kills what still runs, the supervisor first so that it starts nothing again, and unmounts.
fn stop_by_force(dir: &Path, mount: &Path) {
    let text = std::fs::read_to_string(dir.join("node.json")).unwrap_or_default();
    for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
        if let Some(pid) = pid_in(&text, plane) {
            kill_9(pid);
        }
    }
    let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
}

/// The value of a name, wherever in a document it is.
pub(crate) fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .get(name)
            .or_else(|| map.values().find_map(|v| find(v, name))),
        Value::Array(items) => items.iter().find_map(|v| find(v, name)),
        _ => None,
    }
}

fn files_below(dir: &Path) -> Vec<(String, u64)> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_file())
        .map(|e| {
            let name = e
                .path()
                .strip_prefix(dir)
                .unwrap_or(e.path())
                .to_string_lossy()
                .into_owned();
            (name, e.metadata().map_or(0, |m| m.len()))
        })
        .collect()
}
