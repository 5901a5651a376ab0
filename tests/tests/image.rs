//! Promise: the image of `k8s/Dockerfile` runs what the manifests say, with the capabilities and the system calls that
//! docs/operations.md names, and not with less. `make test-image` builds it first.
//!
//! Method: buildah runs containers without a daemon (its isolation `chroot`: a root and mounts of their own, capabilities and
//! seccomp, but no network or processes of their own). The volumes are folders. What it cannot do is let a mount out of the
//! container: `manifests.rs` looks at that.

use fastcache_tests::{
    Container, Http, on_an_island, output_of, repository, run, serial, temp_dir, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the image is called.
const IMAGE: &str = "localhost/fastcache:dev";
/// The runtime's default: what Kubernetes calls RuntimeDefault, and what refuses io_uring.
const DEFAULT_PROFILE: &str = "/usr/share/containers/seccomp.json";
/// What a node needs beyond it.
const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];
/// How long a container may take to end.
const STOP_MAX: Duration = Duration::from_secs(60);
/// The user of the coordinator in the manifests.
const USER: u32 = 10001;

fn buildah() -> Command {
    let store = repository().join("target/image");
    let mut command = Command::new("buildah");
    command.arg("--root").arg(store.join("store"));
    command.arg("--runroot").arg(store.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command
}

/// A container that runs.
struct Running {
    id: String,
    child: Child,
    /// The end of its program's command line, by which it is found: behind the program's path, which may be a longer one.
    words: Vec<u8>,
    log: std::path::PathBuf,
}

impl Running {
    /// `seccomp`: the profile. Volumes are folders below `root`.
    fn start(
        container: &Container,
        user: u32,
        capabilities: &[&str],
        seccomp: &Path,
        root: &Path,
    ) -> Running {
        let mut from = buildah();
        from.args(["from", "--pull-never", "--security-opt"]);
        from.arg(format!("seccomp={}", seccomp.display()));
        for capability in capabilities {
            from.args(["--cap-add", capability]);
        }
        let id = run(from.arg(IMAGE)).trim().to_owned();
        let mut command = buildah();
        command.args(["run", "--isolation", "chroot", "--user", &user.to_string()]);
        for (name, value) in &container.environment {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        for path in container.mounts.iter().filter(|m| *m != "/dev/fuse") {
            let folder = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(&folder).expect("a volume");
            command
                .arg("--volume")
                .arg(format!("{}:{path}", folder.display()));
        }
        let log = root.join(format!("{id}.log"));
        let file = std::fs::File::create(&log).expect("a log");
        command.arg(&id).arg("--").args(&container.command);
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("buildah");
        let program = container.command.iter().position(|w| w == "fastcache-ctl");
        let words = &container.command[program.expect("fastcache-ctl") + 1..];
        let words = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat());
        Running {
            id,
            child,
            words: words.collect(),
            log,
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The program in it: below the process that was started here, so that it is no other container's.
    fn pid(&self) -> Option<i32> {
        let parent = |pid: u32| -> Option<u32> {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
        };
        let found = std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .find_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let words = std::fs::read(entry.path().join("cmdline")).ok()?;
                let mut above = std::iter::successors(Some(pid), |pid| parent(*pid));
                let at = words.iter().position(|byte| *byte == 0)?;
                let is_it =
                    words[..at].ends_with(b"fastcache-ctl") && words[at + 1..] == self.words;
                (is_it && above.any(|pid| pid == self.child.id())).then_some(pid)
            });
        found.and_then(|pid| pid.try_into().ok())
    }

    /// As Kubernetes ends it: kindly, and after a while by force. Whether it ended well.
    fn stop(&mut self) -> bool {
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + STOP_MAX;
        let is_well = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.success(),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
                _ => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break false;
                }
            }
        };
        output_of(buildah().args(["rm", &self.id]));
        is_well
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

#[track_caller]
fn healthy(port: u16, container: &mut Running) {
    wait_until("it is healthy", Duration::from_secs(60), || {
        let ended = container.child.try_wait().expect("a child");
        assert!(ended.is_none(), "{ended:?}: {}", container.said());
        let answer = Http::on(port).try_ask("GET", "/api/health", &[], b"");
        answer.is_ok_and(|a| a.status == 200)
    });
}

#[test]
#[ignore = "make test-image builds the image first"]
fn the_image_runs_what_the_manifests_say() {
    let _one = serial();
    on_an_island(
        &[("127.0.0.1", "fastcache-coordinator.fuse-system.svc")],
        || {
            let home = temp_dir("image");
            let root = home.path();
            let coordinator = Container::of("overlays/dev", "coordinator");
            let mut node = Container::of("overlays/dev", "node");
            node.environment.push(("POD_IP".into(), "127.0.0.1".into()));
            // The bucket is everybody's, as a bucket is; the coordinator's volume is its user's, as fsGroup has it.
            for (path, mode, owner) in [
                ("", "711", 0),
                ("bucket", "777", 0),
                ("etc/fastcache", "700", 0),
                ("var/lib/fastcache-coordinator", "700", USER),
            ] {
                let path = root.join(path);
                std::fs::create_dir_all(&path).expect("a folder");
                run(Command::new("chmod").arg(mode).arg(&path));
                run(Command::new("chown").arg(owner.to_string()).arg(&path));
            }
            std::fs::write(
                root.join("etc/fastcache/cluster-token"),
                "of the test alone",
            )
            .expect("the token");
            let default = Path::new(DEFAULT_PROFILE);
            let mut coordinator = Running::start(&coordinator, USER, &[], default, root);
            healthy(8080, &mut coordinator);

            // As RuntimeDefault would have it: refused, with the reason.
            let capabilities = ["CAP_SYS_ADMIN", "CAP_IPC_LOCK", "CAP_LINUX_IMMUTABLE"];
            let mut refused = Running::start(&node, 0, &capabilities, default, root);
            wait_until("it gives up", Duration::from_secs(60), || {
                matches!(refused.child.try_wait(), Ok(Some(_)))
            });
            let said = refused.said();
            assert!(
                said.contains("seccomp") && said.contains("io_uring_setup"),
                "{said}"
            );
            assert!(!refused.stop(), "{said}");

            let text = std::fs::read_to_string(default).expect("buildah's profile");
            let mut profile: Value = serde_json::from_str(&text).expect("JSON");
            let more = serde_json::json!({ "names": IO_URING, "action": "SCMP_ACT_ALLOW" });
            profile["syscalls"]
                .as_array_mut()
                .expect("a list")
                .push(more);
            let seccomp = root.join("seccomp.json");
            std::fs::write(&seccomp, profile.to_string()).expect("write");
            let mut node = Running::start(&node, 0, &capabilities, &seccomp, root);
            healthy(8081, &mut node);
            let inside = |path: &str| {
                format!(
                    "/proc/{}/root/mnt/fastcache/fuse/{path}",
                    node.pid().expect("a pid")
                )
            };
            wait_until("it is mounted", Duration::from_secs(30), || {
                node.said().contains("ready: ")
            });
            std::fs::write(inside("hello"), b"hello").expect("write on the mount");
            let got = Http::on(8081).ask("GET", "/api/files/hello", &[], b"");
            assert_eq!(
                (got.status, &got.body[..]),
                (200, &b"hello"[..]),
                "{}",
                got.text()
            );
            let said = node.said();
            assert!(
                said.contains("mounted") && said.contains("agent runs"),
                "both planes log: {said}"
            );
            assert!(
                !said.contains("cannot be registered"),
                "locked memory is allowed: {said}"
            );
            assert!(node.stop(), "{}", node.said());
            assert!(coordinator.stop(), "{}", coordinator.said());
        },
    );
}
