//! `up` and `down`: a whole node under one supervisor, with everything it keeps in one directory.
//!
//! ```text
//! DIR/lock       held by the supervisor as long as it lives
//! DIR/node.json  what runs: process ids, port, mount
//! DIR/nvme       the chunk store, unless --nvme says otherwise
//! DIR/cloud      the object store, unless --cloud-provider says otherwise
//! DIR/state      peer id and namespace
//! DIR/run        the control socket
//! DIR/log        data.log, agent.log (unless --log-to says otherwise), and supervisor.log of --detach
//! ```
//!
//! The planes are in process groups of their own: Ctrl-C on the terminal reaches the supervisor alone, which stops
//! them in order. They do not die with it: when the supervisor is killed, the node goes on, and the next `up` (or
//! `down`) on the directory finds the planes by `node.json`.

pub mod mount_point;
mod process;
mod stop;
mod supervise;

use crate::cli::{DownFlags, LogTo, UpFlags};
use crate::client::Api;
use crate::node_file::{Lock, NodeFile, Phase};
use crate::output::{bytes, say};
use crate::rebuild;
use crate::settings::cloud::{CLUSTER_TOKEN, SECRET_FLAGS};
use crate::settings::{AgentSettings, DataSettings, Defaults, FileConfig, UsageError, environment};
use anyhow::{Context, bail, ensure};
use mount_point::MountPoint;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a node may take until its mount answers.
pub const READY_BOUND: Duration = Duration::from_secs(30);
/// How long `--detach` waits beyond that, and beyond the wait for a coordinator, for the supervisor to say so, or why not.
const DETACH_GRACE: Duration = Duration::from_secs(30);
/// How long `down` waits beyond the uploads: unmount, close, ends of processes.
const DOWN_GRACE: Duration = Duration::from_secs(75);
/// Set for the process that `--detach` leaves behind.
const DETACHED: &str = "FASTCACHE_UP_IS_DETACHED";
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a log that are shown when something did not start.
const TAIL_LINES: usize = 15;
/// A log larger than this is put aside at the next start, bytes.
const LOG_MAX: u64 = 16 << 20;
/// How long a port may still be taken by a process that was just killed.
const PORT_WAIT: Duration = Duration::from_secs(3);
/// Port of REST that is tried first.
const PORT_FIRST: u16 = 8081;

/// A node's directory and what was decided about it.
pub struct Plan {
    /// Absolute.
    pub dir: PathBuf,
    /// The mount point.
    pub mount: PathBuf,
    /// Of the agent; its port is decided.
    pub agent: AgentSettings,
    /// Of the data plane.
    pub data: DataSettings,
    /// Where both log.
    pub log_to: LogTo,
}

/// `up`.
pub async fn run(flags: UpFlags) -> anyhow::Result<()> {
    let is_detached = std::env::var_os(DETACHED).is_some();
    let dir = absolute(&flags.dir, "--dir")?;
    let mount = absolute(&flags.mount, "--mount")?;
    ensure_apart(&dir, &mount)?;
    let file = FileConfig::read(flags.agent.config.as_deref())?;
    let mut agent =
        AgentSettings::resolve(&flags.agent, &file, &environment, &Defaults::of_up(&dir))?;
    let mut data = DataSettings::resolve(&flags.data, &file, &dir)?;
    // the planes run in `/`, so that a node holds on to no directory
    agent.socket = absolute(&agent.socket, "--socket")?;
    agent.state_dir = absolute(&agent.state_dir, "--state-dir")?;
    data.nvme = absolute(&data.nvme, "--nvme")?;
    if let Some(path) = &mut data.cluster_token_file {
        *path = absolute(path, "--cluster-token-file")?;
    }
    if let Some(cloud) = &agent.cloud_dir {
        agent.cloud_dir = Some(absolute(cloud, "--cloud-dir")?);
    }
    let files = [
        (&mut agent.cloud.ca_file, "--cloud-ca"),
        (&mut agent.cloud.azure_token_file, "--azure-token-file"),
    ];
    for (file, flag) in files {
        if let Some(path) = file {
            *path = absolute(path, flag)?;
        }
    }
    for made in ["run", "log", "state"] {
        std::fs::create_dir_all(dir.join(made))
            .with_context(|| format!("cannot make {}", dir.join(made).display()))?;
    }
    if flags.agent.rebuild && !is_detached {
        if agent.coordinator.is_some() {
            let text = "--rebuild is for the coordinator: it keeps the namespace";
            return Err(UsageError(text.to_owned()).into());
        }
        rebuild::if_empty(&agent.to_config().cloud, &agent.state_dir).await?;
    }
    if flags.detach && !is_detached {
        return detach(&dir).await;
    }
    if is_detached {
        // out of the terminal's session; fails only where we lead one already
        let _ = rustix::process::setsid();
    }
    let Some(lock) = Lock::take(&dir)? else {
        bail!(
            "a node already runs in {0}: fastcache-ctl status --dir {0}, or down --dir {0}",
            dir.display()
        );
    };
    // They may have the port.
    supervise::stop_leftovers(&dir).await?;
    let start = Instant::now();
    agent.port = Some(loop {
        match free_port(&agent) {
            // An agent that was just killed has it for a moment longer.
            Err(_) if start.elapsed() < PORT_WAIT => tokio::time::sleep(POLL).await,
            found => break found?,
        }
    });
    let done = supervise::run(Plan {
        dir,
        mount,
        agent,
        data,
        log_to: flags.log_to.unwrap_or_default(),
    })
    .await;
    drop(lock);
    done
}

fn absolute(path: &Path, flag: &str) -> Result<PathBuf, UsageError> {
    let path = std::path::absolute(path).map_err(|e| UsageError(format!("{flag}: {e}")))?;
    // without a trailing slash, as the kernel tells mounts; `..` would make two names of one place
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    Ok(clean)
}

fn ensure_apart(dir: &Path, mount: &Path) -> Result<(), UsageError> {
    if dir.starts_with(mount) {
        return Err(UsageError(format!(
            "--dir {} is under --mount {}: the mount would hide it; choose another place",
            dir.display(),
            mount.display()
        )));
    }
    Ok(())
}

/// The port REST will have: the one asked for, or a free one for 0; unasked the usual one, if it is free.
fn free_port(agent: &AgentSettings) -> anyhow::Result<u16> {
    let free = |port: u16| -> std::io::Result<u16> {
        Ok(std::net::TcpListener::bind((agent.bind, port))?
            .local_addr()?
            .port())
    };
    match agent.port {
        Some(0) => free(0).context("no free port for REST"),
        Some(port) => free(port).with_context(|| {
            format!("port {port} for REST cannot be used; choose another with --port, or --port 0")
        }),
        None => free(PORT_FIRST)
            .or_else(|_| free(0))
            .context("no free port for REST"),
    }
}

/// Starts the supervisor in the background and returns when it is ready.
async fn detach(dir: &Path) -> anyhow::Result<()> {
    if Lock::take(dir)?.is_none() {
        bail!(
            "a node already runs in {0}: fastcache-ctl status --dir {0}, or down --dir {0}",
            dir.display()
        );
    }
    let log_path = dir.join("log/supervisor.log");
    let log = append(&log_path)?;
    let before = log.metadata().map_or(0, |m| m.len());
    let (args, secrets) = without_secrets(std::env::args_os().skip(1));
    let mut child = Command::new(std::env::current_exe().context("own program")?)
        .args(args)
        .envs(secrets)
        .env(DETACHED, "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let mut start = Instant::now();
    let mut told = None;
    loop {
        if let Some(status) = child.try_wait()? {
            eprint!("{}", text_from(&log_path, before));
            bail!("the node did not start ({status})");
        }
        let node = NodeFile::read(dir).ok().flatten();
        if let Some(node) = node.filter(|n| n.supervisor_pid == Some(pid)) {
            if node.phase == Phase::Ready {
                print_ready(dir, &node);
                return Ok(());
            }
            if node.waits_for.is_some() {
                start = Instant::now();
            }
            if told != node.waits_for {
                told = node.waits_for;
                told.iter().for_each(|why| eprintln!("waiting: {why}"));
            }
        }
        if start.elapsed() > READY_BOUND + DETACH_GRACE {
            process::signal(pid, rustix::process::Signal::TERM);
            bail!(
                "the supervisor does not say that the node is ready: see {}",
                log_path.display()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Moves secrets from a command line, which every process list shows, into the environment.
fn without_secrets(
    args: impl Iterator<Item = OsString>,
) -> (Vec<OsString>, Vec<(&'static str, OsString)>) {
    let (mut kept, mut secrets) = (Vec::new(), Vec::new());
    let mut args = args;
    'args: while let Some(arg) = args.next() {
        for (flag, variable) in SECRET_FLAGS.into_iter().chain([CLUSTER_TOKEN]) {
            if arg == flag {
                secrets.extend(args.next().map(|value| (variable, value)));
                continue 'args;
            }
            let value = arg.as_bytes().strip_prefix(flag.as_bytes());
            if let Some(value) = value.and_then(|v| v.strip_prefix(b"=")) {
                secrets.push((variable, OsStr::from_bytes(value).to_owned()));
                continue 'args;
            }
        }
        kept.push(arg);
    }
    (kept, secrets)
}

/// Opens a log to add to it. One that became large is put aside, so that logs are bounded by twice [`LOG_MAX`] at each
/// start.
fn append(path: &Path) -> anyhow::Result<File> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LOG_MAX) {
        std::fs::rename(path, path.with_extension("log.old"))
            .with_context(|| path.display().to_string())?;
    }
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// What a log says from a byte on.
fn text_from(path: &Path, from: u64) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let new = text
        .get(usize::try_from(from).unwrap_or(0)..)
        .unwrap_or_default();
    String::from_utf8_lossy(new).into_owned()
}

/// The last lines of a log, from a byte on.
fn tail(path: &Path, from: u64) -> String {
    let text = text_from(path, from);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn print_ready(dir: &Path, node: &NodeFile) {
    let (dir, mount, port) = (dir.display(), node.mount.display(), node.port);
    say!(
        "ready: fastcache is mounted at {mount}, REST is at http://127.0.0.1:{port}

try:
  cp -a /usr/include {mount}/
  fastcache-ctl state {mount}/include/stdio.h --dir {dir}
  fastcache-ctl flush --wait --dir {dir}
  fastcache-ctl evict --all --dir {dir}
  fastcache-ctl status --dir {dir}
  curl http://127.0.0.1:{port}/api/files/include/stdio.h
stop:
  fastcache-ctl down --dir {dir}"
    );
}

/// `down`.
pub async fn down(flags: DownFlags) -> anyhow::Result<()> {
    let dir = absolute(&flags.dir, "--dir")?;
    let Some(mut node) = NodeFile::read(&dir)? else {
        bail!("no node was ever started in {}", dir.display());
    };
    let bound = flags
        .stop_timeout
        .map_or(node.stop_timeout_seconds, u64::from);
    let bound = Duration::from_secs(bound);
    let was_running = node.is_running();
    if flags.force {
        kill_supervisor(&dir, &node).await?;
    }
    match Lock::take(&dir)? {
        Some(_lock) if flags.force => {
            let mount = MountPoint::of(&node.mount);
            stop::by_force(&dir, &mut node, &mount).await?;
        }
        // its supervisor was killed: do its work
        Some(_lock) if was_running => {
            let api = Api::new(node.port, flags.api_key.clone());
            let mount = MountPoint::of(&node.mount);
            stop::run(&dir, &mut node, &api, &mount, bound).await?;
        }
        Some(_lock) => {}
        None => {
            if flags.stop_timeout.is_some() {
                std::fs::write(dir.join(stop::TIMEOUT_FILE), bound.as_secs().to_string())?;
            }
            let pid = node
                .supervisor_pid
                .context("node.json names no supervisor")?;
            ensure!(
                process::is_program(pid, "fastcache-ctl"),
                "process {pid}, which node.json names, is not fastcache-ctl"
            );
            process::signal(pid, rustix::process::Signal::TERM);
            let start = Instant::now();
            while Lock::take(&dir)?.is_none() {
                ensure!(
                    start.elapsed() < bound + DOWN_GRACE,
                    "the node does not stop; its log is {}",
                    dir.join("log").display()
                );
                tokio::time::sleep(POLL).await;
            }
            node = NodeFile::read(&dir)?.context("node.json is gone")?;
        }
    }
    let left = node.left.unwrap_or_default();
    if flags.json {
        let answer = json!({
            "was_running": was_running,
            "dirty_chunks": left.dirty_chunks,
            "dirty_bytes": left.dirty_bytes,
        });
        say!("{answer:#}");
    } else {
        say!(
            "{}",
            if was_running {
                "stopped"
            } else {
                "nothing runs there"
            }
        );
        if left.dirty_chunks > 0 {
            say!(
                "{} in {} chunks are not in the cloud yet; they are kept in {} and go on at the next up",
                bytes(left.dirty_bytes),
                left.dirty_chunks,
                dir.display()
            );
        }
    }
    Ok(())
}

/// Kills the supervisor, which would start again what is killed next. Returns when it has let go of the directory.
async fn kill_supervisor(dir: &Path, node: &NodeFile) -> anyhow::Result<()> {
    let Some(pid) = node
        .supervisor_pid
        .filter(|pid| process::is_alive(*pid) && process::is_program(*pid, "fastcache-ctl"))
    else {
        return Ok(());
    };
    ensure!(
        Lock::take(dir)?.is_none(),
        "process {pid}, which node.json names, is not this node's supervisor"
    );
    ensure!(
        process::kill(pid).await,
        "the supervisor ({pid}) does not die"
    );
    let start = Instant::now();
    while Lock::take(dir)?.is_none() {
        ensure!(
            start.elapsed() < DOWN_GRACE,
            "{} stays locked",
            dir.display()
        );
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A command in a process group of its own, without the settings of its environment: it gets everything by flags. Without
/// a log it writes to our standard error.
fn plane(program: &Path, log: Option<File>) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let is_setting = name.to_str().is_some_and(|n| n.starts_with("FASTCACHE_"));
        if is_setting && name != "FASTCACHE_LOG" {
            command.env_remove(name);
        }
    }
    let log = match log {
        Some(log) => OwnedFd::from(log),
        None => std::io::stderr().as_fd().try_clone_to_owned()?,
    };
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("log")?)
        .stderr(log)
        .current_dir("/")
        .process_group(0);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_leave_the_command_line() {
        let args = [
            "up",
            "--api-key",
            "a",
            "--port=1",
            "--azure-key=b",
            "--api-keys",
            "--cluster-token=c",
            "--cluster-token-file=f",
            "--api-key",
        ];
        let (kept, secrets) = without_secrets(args.iter().map(OsString::from));
        let left = ["up", "--port=1", "--api-keys", "--cluster-token-file=f"];
        assert_eq!(kept, left);
        let want = [
            ("FASTCACHE_API_KEY", "a"),
            ("FASTCACHE_AZURE_KEY", "b"),
            ("FASTCACHE_CLUSTER_TOKEN", "c"),
        ];
        assert_eq!(
            secrets,
            want.map(|(name, value)| (name, OsString::from(value)))
        );
    }

    #[test]
    fn the_mount_does_not_hide_the_directory() {
        assert!(ensure_apart(Path::new("/a/d"), Path::new("/a")).is_err());
        assert!(ensure_apart(Path::new("/a"), Path::new("/a")).is_err());
        assert!(ensure_apart(Path::new("/a"), Path::new("/a/mnt")).is_ok());
        assert_eq!(
            absolute(Path::new("/a/../b/./c/"), "--dir").unwrap(),
            Path::new("/b/c")
        );
    }
}
