//! Three nodes, one of them at the far end of a cable, their coordinator, and what is done to them.

use fastcache_tests::program::NODES;
use fastcache_tests::{Cable, CabledNodes, Coordinator, Node, Plane, Stopped, wait_until};
use rand::Rng as _;
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

/// The node at the far end.
const FAR: usize = NODES - 1;
/// Of the coordinator.
pub const LEASE: Duration = Duration::from_secs(3);
/// Until nodes that are back know each other.
const SOON: Duration = Duration::from_secs(30);
/// Longest a test may take, the long form included.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// What is done, by node where it is one that it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    KillData(usize),
    KillAgent(usize),
    /// Supervisor, agent and data plane; started again afterwards.
    KillNode(usize),
    /// Started again afterwards.
    KillCoordinator,
    StopData(usize),
    StopAgent(usize),
    StopCoordinator,
    /// The far node from the others and from the coordinator.
    CutOff,
}

/// What is done, and when, from the beginning of a round on.
#[derive(Clone, Copy, Debug)]
pub struct Hurt {
    pub what: What,
    pub after: Duration,
    /// Until it is undone, as far as it can be.
    pub lasts: Duration,
}

/// A fault as it was.
#[derive(Clone, Debug)]
pub struct Outage {
    pub what: What,
    pub from: Instant,
    /// When every mount had answered again.
    pub to: Instant,
}

impl Outage {
    /// What a node had written and not committed can get lost: its data plane went, or its lease can have ended.
    pub fn concerns(&self, node: usize) -> bool {
        match self.what {
            What::KillData(n) | What::KillAgent(n) | What::KillNode(n) => n == node,
            What::StopData(n) | What::StopAgent(n) => n == node,
            What::KillCoordinator | What::StopCoordinator => true,
            What::CutOff => node == FAR,
        }
    }

    /// The node's mount ended.
    pub fn ends_mount(&self, node: usize) -> bool {
        matches!(self.what, What::KillData(n) | What::KillNode(n) if n == node)
    }

    /// What only the node has cannot be read elsewhere.
    pub fn hides(&self, node: usize) -> bool {
        match self.what {
            What::KillCoordinator | What::StopCoordinator => false,
            // The others, from the far one.
            What::CutOff => true,
            _ => self.concerns(node),
        }
    }

    /// Whether it was under way at some time between these.
    pub fn is_in(&self, from: Instant, to: Instant) -> bool {
        self.from <= to && from <= self.to
    }
}

impl Hurt {
    /// Kinds of [`What`].
    pub const KINDS: usize = 8;

    /// One of a kind, shorter or longer than a lease.
    pub fn of(kind: usize, rng: &mut StdRng) -> Hurt {
        let node = rng.random_range(0..NODES);
        let what = match kind {
            0 => What::KillData(node),
            1 => What::KillAgent(node),
            2 => What::KillNode(node),
            3 => What::KillCoordinator,
            4 => What::StopData(node),
            5 => What::StopAgent(node),
            6 => What::StopCoordinator,
            _ => What::CutOff,
        };
        Hurt {
            what,
            after: Duration::from_millis(rng.random_range(500..2000)),
            lasts: LEASE.mul_f64(match rng.random_bool(0.5) {
                true => rng.random_range(0.1..0.8),
                false => rng.random_range(1.1..1.7),
            }),
        }
    }
}

/// Waits until each node reads what each other one has just written: one that has just come has no connections yet, and tells
/// EIO for a moment.
fn meet(nodes: &[Node]) {
    for (n, node) in nodes.iter().enumerate() {
        let name = format!("meet{n}");
        wait_until("a node writes", SOON, || {
            std::fs::write(node.at(&name), [b'.'; 5000]).is_ok()
        });
        for other in nodes {
            wait_until("the others read it", SOON, || {
                std::fs::read(other.at(&name)).is_ok()
            });
        }
    }
}

/// What undoes a fault.
enum Undo {
    Nothing,
    GoOn(Stopped),
    Up(usize),
    Coordinator,
    PlugIn,
}

/// Three nodes that know each other. To be called on an island.
pub fn start() -> CabledNodes {
    let cluster = CabledNodes::start(NODES, LEASE, LIMIT);
    meet(&cluster.nodes);
    cluster
}

/// The nodes, which many use at once, and the rest.
pub fn split(cluster: &mut CabledNodes) -> (&[Node], Rest<'_>) {
    let rest = Rest {
        coordinator: &mut cluster.coordinator,
        cable: &cluster.cable,
    };
    (&cluster.nodes, rest)
}

/// What a cluster has beside its nodes.
pub struct Rest<'c> {
    coordinator: &'c mut Coordinator,
    cable: &'c Cable,
}

impl Rest<'_> {
    /// Does all of it, in its time, and returns when every mount answers again.
    pub fn hurt(&mut self, nodes: &[Node], hurts: &[Hurt]) -> Vec<Outage> {
        let start = Instant::now();
        let mut outages = Vec::new();
        let mut undone: Vec<(Instant, Undo)> = Vec::new();
        let mut hurts = hurts.to_vec();
        hurts.sort_by_key(|hurt| hurt.after);
        let mut hurts = hurts.into_iter().peekable();
        std::thread::scope(|scope| {
            loop {
                undone.sort_by_key(|(at, _)| *at);
                let next_hurt = hurts.peek().map(|hurt| start + hurt.after);
                let next_undo = undone.first().map(|(at, _)| *at);
                let Some(next) = next_hurt.into_iter().chain(next_undo).min() else {
                    break;
                };
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                if next_undo == Some(next) {
                    match undone.remove(0).1 {
                        // It waits for the coordinator, which may be the next to come back.
                        Undo::Up(FAR) => {
                            let cable = self.cable;
                            scope.spawn(move || cable.at_far_end(|| nodes[FAR].up()));
                        }
                        Undo::Up(node) => {
                            scope.spawn(move || nodes[node].up());
                        }
                        undo => self.undo(undo),
                    }
                } else if let Some(hurt) = hurts.next() {
                    outages.push((hurt.what, Instant::now()));
                    if let Some(undo) = self.act(nodes, hurt.what) {
                        undone.push((Instant::now() + hurt.lasts, undo));
                    }
                }
            }
        });
        for node in nodes {
            node.wait_for_return();
        }
        meet(nodes);
        let to = Instant::now();
        let outages = outages.into_iter();
        let outages = outages.map(|(what, from)| Outage { what, from, to });
        outages.collect()
    }

    /// What undoes it; `None` where what it is done to does not run.
    fn act(&mut self, nodes: &[Node], what: What) -> Option<Undo> {
        let stop = |node: usize, plane| {
            let node = &nodes[node];
            node.pid(plane).map(|_| Undo::GoOn(node.stop(plane)))
        };
        match what {
            What::KillData(node) => nodes[node].kill(Plane::Data).then_some(Undo::Nothing),
            What::KillAgent(node) => nodes[node].kill(Plane::Agent).then_some(Undo::Nothing),
            What::KillNode(node) => {
                for plane in [Plane::Supervisor, Plane::Agent, Plane::Data] {
                    nodes[node].kill(plane);
                }
                Some(Undo::Up(node))
            }
            What::KillCoordinator => {
                self.coordinator.kill();
                Some(Undo::Coordinator)
            }
            What::StopData(node) => stop(node, Plane::Data),
            What::StopAgent(node) => stop(node, Plane::Agent),
            What::StopCoordinator => self.coordinator.stop().map(Undo::GoOn),
            What::CutOff => {
                self.cable.pull();
                Some(Undo::PlugIn)
            }
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing | Undo::Up(_) => {}
            Undo::GoOn(stopped) => drop(stopped),
            Undo::Coordinator => self.coordinator.start(),
            Undo::PlugIn => self.cable.plug_in(),
        }
    }
}
