//! Promise: the manifests in k8s/ are what Kubernetes takes and what the programs understand; and the check that says so
//! sees what is wrong. `tests/manifests.py` does the checking, without a cluster. And what they run works, with the rights
//! they give it.

use fastcache_tests::{
    Container, Http, on_an_island, output_of, program, repository, run, serial, temp_dir,
    wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

fn check(root: &Path) -> Output {
    let bin = program("fastcache-ctl");
    output_of(
        Command::new(repository().join(".venv/bin/python"))
            .arg(repository().join("tests/manifests.py"))
            .arg("check")
            .arg(bin.parent().expect("a folder"))
            .arg(root),
    )
}

fn text(out: &Output) -> String {
    let bytes = [&out.stdout[..], &out.stderr[..]].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn the_manifests_are_right() {
    let out = check(&repository());
    assert!(out.status.success(), "{}", text(&out));
    println!("{}", text(&out));
}

#[test]
fn the_check_sees_what_is_wrong() {
    // File, what is in it, what stands there instead, what has to be said.
    let wrongs = [
        (
            "base/client-daemonset.yaml",
            "priorityClassName",
            "priorityClass",
            "priorityClass",
        ),
        (
            "base/client-daemonset.yaml",
            "cpu: \"1\"",
            "cpu: [1]",
            "fastcache-node",
        ),
        (
            "base/client-daemonset.yaml",
            "+sys_admin,",
            "+sys_admin,+sys_module,",
            "capabilities",
        ),
        (
            "base/client-daemonset.yaml",
            "/api/health/live",
            "/api/health",
            "livenessProbe does not ask /api/health/live",
        ),
        (
            "base/client-daemonset.yaml",
            "OnDelete",
            "RollingUpdate",
            "updated by itself",
        ),
        (
            "base/client-daemonset.yaml",
            ", mountPropagation: Bidirectional",
            "",
            "stays in the container",
        ),
        (
            "base/client-daemonset.yaml",
            "containerPort: 8082",
            "containerPort: 8083",
            "port for other nodes",
        ),
        (
            "base/client-daemonset.yaml",
            "status.podIP",
            "status.hostIP",
            "POD_IP",
        ),
        (
            "base/client-daemonset.yaml",
            "terminationGracePeriodSeconds: 120",
            "terminationGracePeriodSeconds: 30",
            "killed before",
        ),
        (
            "base/client-daemonset.yaml",
            "name: fastcache-bucket",
            "name: fastcache-buckets",
            "no ConfigMap fastcache-buckets",
        ),
        (
            "base/configmap.yaml",
            "FASTCACHE_CHUNK_SIZE: \"4\"",
            "FASTCACHE_CHUNK_SIZE: \"5\"",
            "refused",
        ),
        (
            "base/configmap.yaml",
            "FASTCACHE_CHUNK_SIZE",
            "FASTCACHE_CHUNKSIZE",
            "does not know FASTCACHE_CHUNKSIZE",
        ),
        (
            "base/configmap.yaml",
            "fuse-system.svc:8080",
            "fuse-system.svc:8081",
            "the coordinator is at",
        ),
        (
            "base/coordinator-deployment.yaml",
            "--state-dir=",
            "--statedir=",
            "does not know --statedir",
        ),
        (
            "base/coordinator-deployment.yaml",
            "targetPort: api",
            "targetPort: http",
            "no such port",
        ),
        (
            "base/coordinator-deployment.yaml",
            "replicas: 1",
            "replicas: 2",
            "one at a time",
        ),
        (
            "base/secrets.yaml",
            "replace-me",
            "replace-me-with-a-secret",
            "would be accepted",
        ),
        (
            "base/serviceaccount.yaml",
            "  name: fastcache",
            "  name: fastcaches",
            "no ServiceAccount",
        ),
        (
            "overlays/dev/client-daemonset.yaml",
            "name: fastcache-node",
            "name: fastcache-nodes",
            "to patch",
        ),
        (
            "overlays/dev/kustomization.yaml",
            "name: fastcache",
            "name: fastcached",
            "no container has the image",
        ),
    ];
    let home = temp_dir("manifests");
    let copy = |from: &str| {
        run(Command::new("cp")
            .arg("-a")
            .arg(repository().join(from))
            .arg(home.path()));
    };
    copy("k8s");
    std::fs::create_dir(home.path().join("docs")).expect("a folder");
    std::fs::copy(
        repository().join("docs/operations.md"),
        home.path().join("docs/operations.md"),
    )
    .expect("a copy");
    let out = check(home.path());
    assert!(out.status.success(), "the copy is right: {}", text(&out));
    for (file, from, to, want) in wrongs {
        let path = home.path().join("k8s").join(file);
        let right = std::fs::read_to_string(&path).expect("a manifest");
        let wrong = right.replace(from, to);
        assert_ne!(wrong, right, "{file} has no {from}");
        std::fs::write(&path, wrong).expect("write");
        let out = check(home.path());
        let said = text(&out);
        assert!(!out.status.success(), "{file}: {to} was taken");
        assert!(said.contains(want), "{file}: {to}:\n{said}");
        std::fs::write(&path, right).expect("write");
    }
    let first = home.path().join("k8s/00-namespace.yaml");
    std::fs::remove_file(first).expect("the link");
    let said = text(&check(home.path()));
    let want = "k8s/client-daemonset.yaml: applied before its namespace";
    assert!(said.contains(want), "{said}");
}

/// A process that is asked to end, also when the test fails.
struct Running(Child);

impl Running {
    fn stop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
            let _ = kill_process(pid.expect("a pid"), Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts a container's command without a container, with nothing in its environment but what the manifests say.
fn start(prefix: &[&str], container: &Container, log: &Path) -> Running {
    let bin = program("fastcache-ctl");
    let bin = bin.parent().expect("a folder").display();
    let child = Command::new(prefix[0])
        .args(&prefix[1..])
        .args(&container.command)
        .env_clear()
        .env("PATH", format!("{bin}:/usr/sbin:/usr/bin:/sbin:/bin"))
        .envs(container.environment.clone())
        .stderr(std::fs::File::create(log).expect("a log"))
        .spawn()
        .expect("setpriv and unshare");
    Running(child)
}

/// A folder whose mounts are seen from mounts that come from here, and the other way round.
struct Shared(PathBuf);

impl Shared {
    fn new(path: &Path) -> Shared {
        run(Command::new("mount").arg("--bind").args([path, path]));
        let shared = Shared(path.to_owned());
        run(Command::new("mount").arg("--make-rshared").arg(path));
        shared
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        output_of(
            Command::new("umount")
                .args(["--recursive", "--lazy"])
                .arg(&self.0),
        );
    }
}

/// Effective capabilities of a process.
fn capabilities(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|l| l.strip_prefix("CapEff:"));
    u64::from_str_radix(line.expect("CapEff").trim(), 16).expect("a number")
}

#[test]
fn what_they_run_works_with_the_rights_they_give() {
    let _one = serial();
    // Named as the service is, so that the nodes' configuration is used as it stands.
    on_an_island(
        &[("127.0.0.1", "fastcache-coordinator.fuse-system.svc")],
        || {
            let home = temp_dir("kube");
            let root = home.path();
            let coordinator = Container::of("overlays/dev", "coordinator").below(root);
            let mut node = Container::of("overlays/dev", "node").below(root);
            node.environment.push(("POD_IP".into(), "127.0.0.1".into()));
            for made in [
                "bucket",
                "nvme",
                "etc/fastcache",
                "mnt/fastcache",
                "var/lib/fastcache-coordinator",
            ] {
                std::fs::create_dir_all(root.join(made)).expect("a folder");
            }
            let token = root.join("etc/fastcache/cluster-token");
            std::fs::write(token, "of the test alone").expect("the token");
            let health = |port: u16| {
                let answer = Http::on(port).try_ask("GET", "/api/health", &[], b"");
                answer.is_ok_and(|a| a.status == 200)
            };

            // No capability at all.
            let user = coordinator.user.to_string();
            let drop_all = [
                "setpriv",
                "--reuid",
                &user,
                "--no-new-privs",
                "--inh-caps=-all",
                "--bounding-set=-all",
            ];
            let mut coordinator = start(&drop_all, &coordinator, &root.join("coordinator.log"));
            wait_until(
                "the coordinator is healthy",
                Duration::from_secs(20),
                || health(8080),
            );
            assert_eq!(capabilities(coordinator.0.id().into()), 0);

            // In mounts of its own, of which one is shared: bidirectional propagation.
            let shared = root.join("mnt/fastcache");
            let _shared = Shared::new(&shared);
            let mut running = start(
                &["unshare", "--mount", "--propagation", "unchanged"],
                &node,
                &root.join("node.log"),
            );
            wait_until("the node is healthy", Duration::from_secs(40), || {
                health(8081)
            });
            let file = shared.join("fuse/file");
            wait_until("its mount is seen outside", Duration::from_secs(10), || {
                std::fs::write(&file, b"hello").is_ok()
                    && std::fs::read_to_string("/proc/thread-self/mounts")
                        .is_ok_and(|m| m.contains("fastcache/fuse fuse"))
            });
            assert_eq!(std::fs::read(&file).expect("read"), b"hello");
            let text = std::fs::read_to_string(root.join("var/lib/fastcache/node.json"))
                .expect("node.json");
            let pids: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            // CAP_LINUX_IMMUTABLE, CAP_IPC_LOCK, CAP_SYS_ADMIN.
            let kept = (1 << 9) | (1 << 14) | (1 << 21);
            for plane in ["data_pid", "agent_pid", "supervisor_pid"] {
                assert_eq!(
                    capabilities(pids[plane].as_u64().expect("a pid")),
                    kept,
                    "{plane}"
                );
            }
            let said = std::fs::read_to_string(root.join("node.log")).expect("what it logged");
            assert!(
                said.contains("mounted") && said.contains("agent runs"),
                "both planes: {said}"
            );
            assert!(!root.join("var/lib/fastcache/log/data.log").exists());
            // As `kubectl exec` runs it.
            let mut status = Command::new(program("fastcache-ctl"));
            let text = run(status
                .arg("status")
                .env_clear()
                .envs(node.environment.clone()));
            assert!(text.contains("mnt/fastcache/fuse"), "{text}");
            let peers = Http::on(8080).ask("GET", "/api/peers", &[], b"").text();
            assert!(
                peers.contains("127.0.0.1:8082"),
                "POD_IP is where others reach it: {peers}"
            );

            running.stop();
            assert!(!file.exists(), "unmounted outside, too");
            coordinator.stop();
        },
    );
}
