//! The supervisor: starts both planes, restarts one that died, stops them in order.

use super::mount_point::MountPoint;
use super::{Plan, READY_BOUND, append, plane, print_ready, process, stop, tail};
use crate::agent::Stop;
use crate::cli::LogTo;
use crate::client::Api;
use crate::node_file::{NodeFile, Phase};
use crate::output::{bytes, say};
use crate::settings::cloud::CLUSTER_TOKEN;
use anyhow::{Context, bail};
use fastcache_agent::rest::types::HealthBody;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::Child;

/// First pause before a restart; each further one is twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A plane that ran this long before it died is restarted after the first pause again.
const STEADY: Duration = Duration::from_secs(30);
/// A registration that takes longer is said.
const TELL_WAIT_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked whether a plane is dying and cannot.
const DYING_POLL: Duration = Duration::from_millis(500);
/// How often a start is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Which plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Data,
    Agent,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::Data => "fastcache-data",
            Kind::Agent => "fastcache-ctl",
        }
    }

    fn log(self) -> &'static str {
        match self {
            Kind::Data => "log/data.log",
            Kind::Agent => "log/agent.log",
        }
    }
}

/// A plane and its restarts.
struct Plane {
    kind: Kind,
    child: Option<Child>,
    started: Instant,
    pause: Duration,
    restart_at: tokio::time::Instant,
    /// Where this run begins in its log, bytes.
    log_from: u64,
}

/// What happened to a plane.
enum Event {
    Died(ExitStatus),
    RestartDue,
}

impl Plane {
    fn new(kind: Kind) -> Plane {
        Plane {
            kind,
            child: None,
            started: Instant::now(),
            pause: BACKOFF_FIRST,
            restart_at: tokio::time::Instant::now(),
            log_from: 0,
        }
    }

    fn pid(&self) -> Option<i32> {
        self.child
            .as_ref()
            .and_then(Child::id)
            .and_then(|pid| i32::try_from(pid).ok())
    }

    /// Waits for its end, or for the time to start it again.
    async fn next(&mut self) -> std::io::Result<Event> {
        match &mut self.child {
            Some(child) => child.wait().await.map(Event::Died),
            None => {
                tokio::time::sleep_until(self.restart_at).await;
                Ok(Event::RestartDue)
            }
        }
    }

    /// It died: when it is to be started again.
    fn schedule(&mut self) -> Duration {
        self.child = None;
        if self.started.elapsed() > STEADY {
            self.pause = BACKOFF_FIRST;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(BACKOFF_MAX);
        self.restart_at = tokio::time::Instant::now() + pause;
        pause
    }
}

struct Supervisor {
    plan: Plan,
    mount: MountPoint,
    node: NodeFile,
    api: Api,
    /// Of this run, once: a restart must not format again.
    is_first: bool,
    /// The dead mount was taken away, and the new one is not there yet.
    is_exposed: bool,
}

/// Stops what a supervisor that was killed left running.
pub async fn stop_leftovers(dir: &Path) -> anyhow::Result<()> {
    let before = NodeFile::read(dir)?;
    if let Some(mut before) = before.filter(NodeFile::is_running) {
        let mount = MountPoint::of(&before.mount);
        stop::planes(&mut before, &mount).await?;
    }
    Ok(())
}

/// Runs a node until a signal ends it.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let mut asked_to_stop = Stop::new()?;
    let mount = MountPoint::prepare(&plan.mount)?;
    let port = plan.agent.port.unwrap_or_default();
    let node = NodeFile::new(
        mount.path().to_path_buf(),
        plan.agent.socket.clone(),
        port,
        plan.agent.stop_timeout.as_secs(),
    );
    node.write(&plan.dir)?;
    let _ = std::fs::remove_file(plan.dir.join(stop::TIMEOUT_FILE));
    let api = Api::new(port, plan.agent.api_key.clone());
    let mut supervisor = Supervisor {
        plan,
        mount,
        node,
        api,
        is_first: true,
        is_exposed: false,
    };

    let mut data = Plane::new(Kind::Data);
    let mut agent = Plane::new(Kind::Agent);
    let started = tokio::select! {
        started = supervisor.start(&mut data, &mut agent) => started,
        () = asked_to_stop.asked() => Err(anyhow::anyhow!("stopped before it was ready")),
    };
    if let Err(error) = started {
        supervisor.give_up().await;
        return Err(error);
    }
    let ended = supervisor
        .watch(&mut data, &mut agent, &mut asked_to_stop)
        .await;
    let stopped = supervisor.stop(&mut asked_to_stop).await;
    ended.and(stopped)
}

impl Supervisor {
    fn spawn(&mut self, plane_of: &mut Plane) -> anyhow::Result<()> {
        let kind = plane_of.kind;
        let program = beside_us(kind.program())?;
        let log = match self.plan.log_to {
            LogTo::Files => Some(append(&self.plan.dir.join(kind.log()))?),
            LogTo::Stderr => None,
        };
        let length = log.as_ref().and_then(|log| log.metadata().ok());
        plane_of.log_from = length.map_or(0, |m| m.len());
        let mut command = plane(&program, log)?;
        match kind {
            Kind::Data => {
                let data = &self.plan.data;
                command.arg("--nvme").arg(&data.nvme);
                command
                    .arg("--nvme-capacity")
                    .arg(data.nvme_capacity.to_string());
                command.arg("--mount").arg(self.mount.path());
                command.arg("--socket").arg(&self.plan.agent.socket);
                if let Some(listen) = &data.listen {
                    command.arg("--listen").arg(listen);
                }
                if let Some(token) = &data.cluster_token {
                    command.env(CLUSTER_TOKEN.1, token.expose());
                }
                if let Some(path) = &data.cluster_token_file {
                    command.arg("--cluster-token-file").arg(path);
                }
                if let Some(cores) = &data.cores {
                    command.arg("--cores").arg(cores);
                }
                if let Some(transport) = data.fuse_transport {
                    command.arg("--fuse-transport").arg(transport.name());
                }
                if let Some(bytes) = data.read_ahead {
                    command.arg("--read-ahead").arg(bytes.to_string());
                }
                if let Some(bytes) = data.memory {
                    command.arg("--memory").arg(bytes.to_string());
                }
                if let Some(bytes) = data.checksum_memory {
                    command.arg("--checksum-memory").arg(bytes.to_string());
                }
                if self.is_first && data.format {
                    command.arg("--format");
                    if data.force {
                        command.arg("--force");
                    }
                }
                if self.is_first && data.rebuild_index {
                    command.arg("--rebuild-index");
                }
            }
            Kind::Agent => {
                let (args, secrets) = self.plan.agent.to_command();
                command.args(args).envs(secrets);
            }
        }
        let child = tokio::process::Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        plane_of.child = Some(child);
        plane_of.started = Instant::now();
        match kind {
            Kind::Data => self.node.data_pid = plane_of.pid(),
            Kind::Agent => self.node.agent_pid = plane_of.pid(),
        }
        self.node.write(&self.plan.dir)
    }

    /// What a plane logged last, from a byte on.
    fn end_of_log(&self, kind: Kind, from: u64) -> String {
        match self.plan.log_to {
            LogTo::Files => {
                let tail = tail(&self.plan.dir.join(kind.log()), from);
                format!("The log {} ends with:\n{tail}", self.log_of(kind))
            }
            LogTo::Stderr => "What it logged is above".to_owned(),
        }
    }

    /// Where a plane logs.
    fn log_of(&self, kind: Kind) -> String {
        match self.plan.log_to {
            LogTo::Files => self.plan.dir.join(kind.log()).display().to_string(),
            LogTo::Stderr => "stderr".to_owned(),
        }
    }

    /// Starts both, and waits until the mount answers and the node is healthy: as long as its agent says that it waits for
    /// its coordinator, and [`READY_BOUND`] beyond that.
    async fn start(&mut self, data: &mut Plane, agent: &mut Plane) -> anyhow::Result<()> {
        self.spawn(data)?;
        self.spawn(agent)?;
        self.is_first = false;
        let mut start = Instant::now();
        let mut waits_since = None;
        loop {
            for plane in [&mut *data, &mut *agent] {
                if let Some(child) = &mut plane.child
                    && let Some(status) = child.try_wait()?
                {
                    bail!(
                        "{} did not start ({}). {}",
                        plane.kind.program(),
                        describe(status),
                        self.end_of_log(plane.kind, plane.log_from)
                    );
                }
            }
            let health = self.api.health().await;
            let is_registering = health.as_ref().is_some_and(|h| h.status == "registering");
            waits_since = waits_since
                .filter(|_| is_registering)
                .or_else(|| is_registering.then(Instant::now));
            if waits_since.is_some() {
                start = Instant::now();
            }
            let is_long = waits_since.is_some_and(|since| since.elapsed() > TELL_WAIT_AFTER);
            self.tell_wait(health.as_ref().filter(|_| is_long))?;
            let is_mounted = self.mount.is_mounted();
            let is_healthy = health.is_some_and(|h| h.status == "ok");
            if is_mounted && is_healthy && self.mount.answers().await {
                break;
            }
            if start.elapsed() > READY_BOUND {
                let (kind, from, what) = if is_mounted {
                    (
                        Kind::Agent,
                        agent.log_from,
                        "the node is not healthy, or its mount does not answer",
                    )
                } else {
                    (Kind::Data, data.log_from, "nothing is mounted")
                };
                bail!(
                    "after {READY_BOUND:?} {what}. {}",
                    self.end_of_log(kind, from)
                );
            }
            tokio::time::sleep(POLL).await;
        }
        self.node.phase = Phase::Ready;
        self.node.write(&self.plan.dir)?;
        print_ready(&self.plan.dir, &self.node);
        Ok(())
    }

    /// Says what the agent waits for, and writes it down, when that changes.
    fn tell_wait(&mut self, registering: Option<&HealthBody>) -> anyhow::Result<()> {
        let why = registering.and_then(|h| h.waits_for.clone());
        if self.node.waits_for == why {
            return Ok(());
        }
        if let Some(why) = &why {
            say!("waiting: {why}");
        }
        self.node.waits_for = why;
        self.node.write(&self.plan.dir)
    }

    /// Restarts what dies, until a signal comes.
    async fn watch(
        &mut self,
        data: &mut Plane,
        agent: &mut Plane,
        asked_to_stop: &mut Stop,
    ) -> anyhow::Result<()> {
        loop {
            let data_pid = data.pid();
            let (plane, event) = tokio::select! {
                () = asked_to_stop.asked() => return Ok(()),
                event = data.next() => (&mut *data, event?),
                event = agent.next() => (&mut *agent, event?),
                // the bare directory takes files again as soon as it is covered
                () = covered(&self.mount, self.is_exposed) => {
                    self.mount.set_immutable(false);
                    self.is_exposed = false;
                    continue;
                }
                // a thread of it waits in the kernel for an answer that only it would have given
                () = cannot_die(data_pid) => {
                    tracing::warn!(target: "supervisor", "the data plane is dying and a thread of it waits for the mount: its connection is cut");
                    self.mount.set_immutable(true);
                    self.is_exposed = true;
                    self.mount.abort();
                    continue;
                }
            };
            let program = plane.kind.program();
            match event {
                Event::Died(status) => {
                    let pause = plane.schedule();
                    tracing::error!(
                        target: "supervisor",
                        program,
                        status = describe(status),
                        log = %self.log_of(plane.kind),
                        restart_in = ?pause,
                        "a plane died"
                    );
                    match plane.kind {
                        Kind::Data => self.node.data_pid = None,
                        Kind::Agent => self.node.agent_pid = None,
                    }
                    self.node.write(&self.plan.dir)?;
                }
                Event::RestartDue => {
                    if plane.kind == Kind::Data {
                        self.is_exposed = true;
                        if let Err(error) = self.mount.clean() {
                            tracing::error!(target: "supervisor", %error, "the dead mount stays");
                        }
                    }
                    if let Err(error) = self.spawn(plane) {
                        let pause = plane.schedule();
                        tracing::error!(target: "supervisor", program, %error, restart_in = ?pause, "a plane does not start");
                    }
                }
            }
        }
    }

    /// Stops everything in order; a second signal ends the wait for uploads.
    async fn stop(&mut self, asked_to_stop: &mut Stop) -> anyhow::Result<()> {
        say!("stopping");
        let bound = std::fs::read_to_string(self.plan.dir.join(stop::TIMEOUT_FILE))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map_or(self.plan.agent.stop_timeout, Duration::from_secs);
        let mut node = self.node.clone();
        let stopped = tokio::select! {
            stopped = stop::run(&self.plan.dir, &mut node, &self.api, &self.mount, bound) => Some(stopped),
            () = asked_to_stop.asked() => None,
        };
        match stopped {
            Some(stopped) => {
                stopped?;
                self.node = node;
            }
            None => {
                stop::run(
                    &self.plan.dir,
                    &mut self.node,
                    &self.api,
                    &self.mount,
                    Duration::ZERO,
                )
                .await?;
            }
        }
        match self.node.left {
            Some(left) if left.dirty_chunks > 0 => say!(
                "stopped; {} in {} chunks are not in the cloud yet; they are kept in {} and go on at the \
                 next up",
                bytes(left.dirty_bytes),
                left.dirty_chunks,
                self.plan.dir.display()
            ),
            _ => say!("stopped"),
        }
        Ok(())
    }

    /// A start that failed: nothing of it stays.
    async fn give_up(&mut self) {
        if let Err(error) = stop::planes(&mut self.node, &self.mount).await {
            tracing::error!(target: "supervisor", %error, "cannot clean up");
        }
        self.node.phase = Phase::Stopped;
        self.node.waits_for = None;
        self.node.supervisor_pid = None;
        if let Err(error) = self.node.write(&self.plan.dir) {
            tracing::error!(target: "supervisor", %error, "cannot clean up");
        }
    }
}

/// Waits until a new mount covers the bare directory; for ever when it is not exposed.
async fn covered(mount: &MountPoint, is_exposed: bool) {
    if !is_exposed {
        std::future::pending::<()>().await;
    }
    while !mount.is_mounted() {
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until a process has died and is not gone, for ever when there is none.
async fn cannot_die(pid: Option<i32>) {
    let Some(pid) = pid else {
        return std::future::pending().await;
    };
    loop {
        // when all of its threads are gone somebody else hears of it first
        tokio::time::sleep(DYING_POLL).await;
        if !process::is_alive(pid) {
            return;
        }
    }
}

/// A program beside our own; else whatever PATH has.
fn beside_us(name: &str) -> anyhow::Result<PathBuf> {
    let us = std::env::current_exe().context("own program")?;
    // of a program that was built anew since, Linux says "… (deleted)"
    let beside = us.parent().unwrap_or(Path::new("/")).join(name);
    if beside.exists() {
        return Ok(beside);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|p| p.join(name))
        .find(|p| p.is_file())
        .with_context(|| {
            format!(
                "{} is missing: it belongs beside fastcache-ctl, or in PATH",
                beside.display()
            )
        })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}
