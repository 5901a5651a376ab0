//! What is measured in a world of some nodes, and the bounds that hold for each.

use crate::cloud::Cloud;
use crate::node::{CHUNK, Node, Shared, must};
use crate::peers::Ends;
use crate::wire::Wires;
use crate::world;
use fastcache_api::placement::HOMES;
use fastcache_api::{ChunkId, Ino, SetAttr};
use fastcache_cache::SetAttrRequest;
use fastcache_coordinator::{Coordinator, LEASE, Options, STALE_AFTER};
use fastcache_peer::homes_among;
use fastcache_reactor::sim::random;
use fastcache_reactor::{now, sleep, spawn};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long nothing is done, and how long nodes work, seconds.
const IDLE_S: u64 = 20;
const WORK_S: u64 = 10;
/// Changes of what every node holds.
const CHANGES: u64 = 10;
/// Files that a node makes in a directory of its own, and in one that all have listed.
const FILES: usize = 20;
/// Chunks of the file that all nodes read at once.
const COLD_CHUNKS: usize = 64;
/// Chunks whose homes are counted.
const PLACED: u64 = 20_000;
/// Longest that anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was measured. Messages are requests to the coordinator, each with one answer; revocations are beside them.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Report {
    /// Nodes.
    pub nodes: usize,
    /// While nothing is done: messages a second and node, by method.
    pub idle: BTreeMap<String, f64>,
    /// Messages for a new file of 4 KiB (create, write, close) in a directory of the node's own.
    pub own_file: f64,
    /// The same in a directory that all nodes have listed, one node after the other; revocations are not messages here.
    pub shared_file: f64,
    /// Revocations for one of those.
    pub shared_file_revocations: f64,
    /// How long one of those took, ms: in its own directory, and in the shared one.
    pub file_ms: (f64, f64),
    /// Messages for stat of a name that is not known.
    pub stat: f64,
    /// Messages for stat, open, read and close of what is known.
    pub known: f64,
    /// Entries of a directory, with attributes, in one message.
    pub listed: f64,
    /// Revocations of one change of attributes that every node holds.
    pub fan_out: f64,
    /// How long such a change took, ms: mean, most.
    pub fan_out_ms: (f64, f64),
    /// Messages a second at the coordinator while every node makes 10 files, looks up 10 names and reads 10 known files a second.
    pub work: f64,
    /// Bytes read of the cloud, as a multiple of the file that all nodes read at once.
    pub cold: f64,
    /// How long that took, s.
    pub cold_s: f64,
    /// The node with most homes, first homes: as multiples of the mean.
    pub balance: (f64, f64),
    /// Of all copies, those that have another place when a node is gone.
    pub moved: f64,
    /// How long a change waited for a node that was cut off, s.
    pub cut_wait_s: f64,
    /// When the others knew that it was gone, s after it was cut off.
    pub cut_known_s: f64,
    /// Messages that were lost on the way.
    pub lost: u64,
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len().max(1) as f64
}

fn most(of: &[f64]) -> f64 {
    of.iter().copied().fold(0.0, f64::max)
}

/// The world and its nodes.
struct Scene {
    shared: Rc<Shared>,
    nodes: Vec<Rc<Node>>,
    at: Rc<std::cell::Cell<u64>>,
}

/// Requests at the coordinator, and revocations, since this was made.
struct Since {
    sent: BTreeMap<String, u64>,
    asked: u64,
    revocations: u64,
}

impl Scene {
    async fn start(tokio: Handle, nodes: usize, seed: u64, dir: &std::path::Path) -> Scene {
        let wires = Wires::new(nodes, seed);
        let coordinator = {
            let _inside = tokio.enter();
            must(
                "a coordinator",
                Coordinator::open(&dir.join("coordinator"), Options::default()),
            )
        };
        let shared = Rc::new(Shared {
            dir: dir.to_path_buf(),
            tokio,
            coordinator,
            ends: Ends::new(wires.clone()),
            wires,
            cloud: Cloud::default().into(),
        });
        let mut started = Vec::new();
        for number in 0..nodes {
            started.push(Rc::new(Node::start(&shared, number).await));
        }
        let scene = Scene {
            shared,
            nodes: started,
            at: Rc::default(),
        };
        let knows_all = |node: &Rc<Node>| node.cluster.peers().len() + 1 == nodes;
        scene
            .until("all know all", || scene.nodes.iter().all(knows_all))
            .await;
        scene
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let since = now();
        while !is_so() {
            assert!(since.elapsed() < PATIENCE, "never happened: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn since(&self) -> Since {
        Since {
            sent: self.shared.wires.sent(),
            asked: self.asked(),
            revocations: self.shared.coordinator.stats().revocations,
        }
    }

    /// Messages since then, by method.
    fn messages(&self, since: &Since) -> BTreeMap<String, u64> {
        let now = self.shared.wires.sent();
        let before = |method: &String| since.sent.get(method).copied().unwrap_or(0);
        now.into_iter()
            .map(|(method, n)| (method.clone(), n - before(&method)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// Messages for what the data planes asked of the namespace since then.
    fn calls(&self, since: &Since) -> f64 {
        (self.asked() - since.asked) as f64
    }

    fn asked(&self) -> u64 {
        let nodes = self.nodes.iter();
        nodes.map(|node| node.fs.stats().namespace_calls).sum()
    }

    fn revocations(&self, since: &Since) -> f64 {
        (self.shared.coordinator.stats().revocations - since.revocations) as f64
    }

    /// A name that nobody had.
    fn name(&self) -> String {
        self.at.set(self.at.get() + 1);
        format!("name-{:06}", self.at.get())
    }

    /// Has every node do something at the same time.
    async fn on_all<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        act: impl Fn(Rc<Node>, usize) -> F,
    ) -> Vec<T> {
        let nodes = self.nodes.iter().enumerate();
        join_all(nodes.map(|(n, node)| spawn(act(Rc::clone(node), n)))).await
    }
}

/// Runs everything in a world of so many nodes that grows from `seed`.
///
/// # Panics
/// When something does not happen, or comes out wrong; the seed is printed then.
pub fn measure(nodes: usize, seed: u64) -> Report {
    // In memory where there is such a place: the log is put on stable storage 20 times a second.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = must("a directory", dir);
    world::run(seed, |tokio| async {
        let scene = Scene::start(tokio, nodes, seed, dir.path()).await;
        let mut report = Report {
            nodes,
            ..Report::default()
        };
        idle(&scene, &mut report).await;
        names(&scene, &mut report).await;
        fan_out(&scene, &mut report).await;
        work(&scene, &mut report).await;
        cold_read(&scene, &mut report).await;
        placement(&scene, &mut report).await;
        report.lost = scene.shared.wires.lost();
        report
    })
}

async fn idle(scene: &Scene, report: &mut Report) {
    // What the start left over.
    sleep(Duration::from_secs(2)).await;
    let since = scene.since();
    sleep(Duration::from_secs(IDLE_S)).await;
    let share = (IDLE_S * scene.nodes.len() as u64) as f64;
    let messages = scene.messages(&since);
    report.idle = messages
        .into_iter()
        .map(|(method, n)| (method, n as f64 / share))
        .collect();
}

/// Files and names, of one node's own and of all.
async fn names(scene: &Scene, report: &mut Report) {
    let bytes = vec![7; 4096];
    let first = &scene.nodes[0];
    let own = first.mkdir(Ino::ROOT, "own").await;
    let (mut calls, mut own_ms) = (0.0, Vec::new());
    for _ in 0..FILES {
        let (since, begun) = (scene.since(), now());
        first.write_new(own, &scene.name(), &bytes).await;
        own_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        calls += scene.calls(&since);
    }
    report.own_file = calls / FILES as f64;

    // A node's first file asks for numbers of versions, which last long.
    let block = bytes.clone();
    scene
        .on_all(move |node, n| {
            let block = block.clone();
            async move {
                node.write_new(Ino::ROOT, &format!("first-{n}"), &block)
                    .await
            }
        })
        .await;
    let shared = first.mkdir(Ino::ROOT, "shared").await;
    let (mut calls, mut revocations, mut shared_ms) = (0.0, 0.0, Vec::new());
    for n in 0..FILES {
        scene
            .on_all(move |node, _| async move { node.list(shared).await })
            .await;
        let node = &scene.nodes[n % scene.nodes.len()];
        let (since, begun) = (scene.since(), now());
        node.write_new(shared, &scene.name(), &bytes).await;
        shared_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        calls += scene.calls(&since);
        revocations += scene.revocations(&since);
    }
    report.shared_file = calls / FILES as f64;
    report.shared_file_revocations = revocations / FILES as f64;
    report.file_ms = (mean(&own_ms), mean(&shared_ms));

    // Another node has seen none of it.
    let other = &scene.nodes[1];
    let listed: Vec<String> = {
        let page = must("readdir", first.fs.readdir(own, 0, 1024, false).await);
        let names = page.entries.iter();
        names
            .map(|e| String::from_utf8_lossy(&e.name).into_owned())
            .collect()
    };
    let since = scene.since();
    let mut found = Vec::new();
    for name in &listed {
        found.push(must("stat", other.stat(own, name).await).ino);
    }
    report.stat = scene.calls(&since) / listed.len() as f64;
    for ino in &found {
        assert_eq!(must("read", other.read(*ino).await), bytes);
    }
    let since = scene.since();
    for (name, ino) in listed.iter().zip(&found) {
        assert_eq!(must("stat", other.stat(own, name).await).size, 4096);
        assert_eq!(must("read", other.read(*ino).await), bytes);
    }
    report.known = scene.calls(&since) / listed.len() as f64;
    let since = scene.since();
    let last = scene.nodes.last().map(|node| node.list(own));
    let entries = match last {
        Some(listing) => listing.await,
        None => 0,
    };
    report.listed = entries as f64 / scene.calls(&since).max(1.0);
}

/// Every node holds a file's attributes, and one changes them.
async fn fan_out(scene: &Scene, report: &mut Report) {
    let ino = scene.nodes[0].write_new(Ino::ROOT, "held", b"x").await;
    let mut times = Vec::new();
    let mut revocations = 0.0;
    for n in 0..CHANGES {
        let mode = 0o600 + u32::from(n % 2 == 0) * 0o44;
        let seen = scene
            .on_all(|node, _| async move { node.stat(Ino::ROOT, "held").await })
            .await;
        assert!(seen.iter().all(|attr| attr.is_ok()));
        let node = &scene.nodes[usize::try_from(n).unwrap_or(0) % scene.nodes.len()];
        let (since, begun) = (scene.since(), now());
        chmod(node, ino, mode).await;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        revocations += scene.revocations(&since);
        // Whoever looks after the change has returned sees it.
        let seen = scene
            .on_all(|node, _| async move { node.stat(Ino::ROOT, "held").await })
            .await;
        for attr in seen {
            assert_eq!(must("stat", attr).mode & 0o777, mode, "a stale answer");
        }
    }
    report.fan_out = revocations / CHANGES as f64;
    report.fan_out_ms = (mean(&times), most(&times));
    let stats = scene.shared.coordinator.stats();
    assert_eq!(stats.revocations_unanswered, 0, "{stats:?}");
}

async fn chmod(node: &Node, ino: Ino, mode: u32) {
    let request = SetAttrRequest {
        set: SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        },
        ..SetAttrRequest::default()
    };
    must("chmod", node.fs.setattr(ino, request).await);
}

/// All nodes work for a while, each in a directory of its own.
async fn work(scene: &Scene, report: &mut Report) {
    let lookups = scene.nodes[0].mkdir(Ino::ROOT, "many").await;
    let per_node = usize::try_from(10 * WORK_S).unwrap_or(0);
    for n in 0..per_node {
        scene.nodes[0]
            .write_new(lookups, &format!("{n}"), b"")
            .await;
    }
    let mut dirs = Vec::new();
    for n in 0..scene.nodes.len() {
        let dir = scene.nodes[n].mkdir(Ino::ROOT, &format!("node-{n}")).await;
        let known = scene.nodes[n].write_new(dir, "known", &[3; 4096]).await;
        dirs.push((dir, known));
    }
    let since = scene.since();
    let begun = now();
    scene
        .on_all(|node, n| {
            let (dir, known) = dirs[n];
            async move {
                for turn in 0..per_node {
                    let next = Duration::from_millis(100 * turn as u64 + random(50));
                    sleep(next.saturating_sub(begun.elapsed())).await;
                    node.write_new(dir, &format!("{turn}"), &[5; 4096]).await;
                    must("stat", node.stat(lookups, &format!("{turn}")).await);
                    must("read", node.read(known).await);
                }
            }
        })
        .await;
    let took = begun.elapsed().as_secs_f64();
    let messages: u64 = scene.messages(&since).values().sum();
    report.work = messages as f64 / took;
}

/// All nodes read a file at once that only the cloud has.
async fn cold_read(scene: &Scene, report: &mut Report) {
    let bytes: Vec<u8> = (0..COLD_CHUNKS * CHUNK)
        .map(|n| u8::try_from(n / 1000 % 251).unwrap_or(0))
        .collect();
    let ino = scene.nodes[0].write_new(Ino::ROOT, "cold", &bytes).await;
    scene.nodes[0].upload_and_evict(ino).await;
    let (_, before) = scene.shared.cloud.read();
    let begun = now();
    let bytes = Rc::new(bytes);
    scene
        .on_all(|node, _| {
            let bytes = Rc::clone(&bytes);
            async move {
                sleep(Duration::from_millis(random(50))).await;
                let ino = must("stat", node.stat(Ino::ROOT, "cold").await).ino;
                let got = must("read", node.read(ino).await);
                assert!(got == *bytes, "wrong bytes");
            }
        })
        .await;
    report.cold_s = begun.elapsed().as_secs_f64();
    let (_, after) = scene.shared.cloud.read();
    report.cold = (after - before) as f64 / bytes.len() as f64;
}

/// The homes of a chunk by their ids, as a node computes them; the first one first.
fn homes_by(node: &Node, id: ChunkId) -> Vec<String> {
    let peers = node.cluster.peers();
    let me = node.cluster.me();
    let others = homes_among(id, &peers, me.as_ref());
    let mut ids: Vec<String> = others.iter().map(|at| peers[*at].id.clone()).collect();
    if ids.len() < HOMES.min(peers.len() + 1)
        && let Some(me) = me
    {
        ids.push(me.id);
    }
    ids
}

fn placed(n: u64) -> ChunkId {
    ChunkId {
        ino: Ino((1 << 40) + n / 16),
        index: u32::try_from(n % 16).unwrap_or(0),
    }
}

/// Where chunks are, and where when a node is gone.
async fn placement(scene: &Scene, report: &mut Report) {
    let nodes = scene.nodes.len();
    // All compute the same, whatever their list leaves out (themselves).
    for n in 0..200 {
        let sets: BTreeSet<BTreeSet<String>> = scene
            .nodes
            .iter()
            .map(|node| homes_by(node, placed(n)).into_iter().collect())
            .collect();
        assert_eq!(sets.len(), 1, "nodes disagree about {:?}", placed(n));
    }
    // The last node is going to be cut off: the first one's view before and after.
    let view = &scene.nodes[0];
    let count =
        |all: &mut BTreeMap<String, u64>, id: &str| *all.entry(id.to_owned()).or_default() += 1;
    let (mut all, mut first) = (BTreeMap::new(), BTreeMap::new());
    let before: Vec<Vec<String>> = (0..PLACED).map(|n| homes_by(view, placed(n))).collect();
    for (n, homes) in before.iter().enumerate() {
        homes.iter().for_each(|id| count(&mut all, id));
        // Of any node but those whose own it is, the first in the list is the first home.
        let id = placed(n as u64);
        let outside = scene.nodes.iter().find(|node| {
            let me = node.cluster.me().map(|me| me.id);
            !homes.iter().any(|home| Some(home) == me.as_ref())
        });
        if let Some(outside) = outside {
            count(&mut first, &homes_by(outside, id)[0]);
        }
    }
    let ratio = |of: &BTreeMap<String, u64>| {
        let total: u64 = of.values().sum();
        let most = of.values().max().copied().unwrap_or(0);
        most as f64 * nodes as f64 / total.max(1) as f64
    };
    // With three nodes everybody has everything.
    report.balance = (ratio(&all), if nodes > HOMES { ratio(&first) } else { 1.0 });

    // The last node holds what the first one changes, and is cut off.
    let gone = nodes - 1;
    let ino = must("stat", view.stat(Ino::ROOT, "held").await).ino;
    must("stat", scene.nodes[gone].stat(Ino::ROOT, "held").await);
    scene.shared.wires.cut(gone);
    let begun = now();
    chmod(view, ino, 0o640).await;
    report.cut_wait_s = begun.elapsed().as_secs_f64();
    let knows = |node: &Rc<Node>| node.cluster.peers().len() + 2 == nodes;
    scene
        .until("the others know who is gone", || {
            scene.nodes[..gone].iter().all(knows)
        })
        .await;
    report.cut_known_s = begun.elapsed().as_secs_f64();
    let (mut moved, mut total) = (0u64, 0u64);
    for (n, homes) in before.iter().enumerate() {
        let after = homes_by(view, placed(n as u64));
        total += homes.len() as u64;
        moved += homes.iter().filter(|id| !after.contains(id)).count() as u64;
    }
    report.moved = moved as f64 / total as f64;
}

/// What each report must keep, by a sentence; the first that is not kept.
///
/// # Errors
/// That sentence, with the numbers.
pub fn keeps_bounds(report: &Report) -> Result<(), String> {
    let n = report.nodes as f64;
    let others = n - 1.0;
    let idle: f64 = report.idle.values().sum();
    let lease_s = LEASE.as_secs_f64();
    let stale_s = STALE_AFTER.as_secs_f64();
    let checks = [
        (
            "an idle node sends at most one message a second",
            idle <= 1.0,
            idle,
        ),
        (
            "a new file costs at most 4 messages",
            report.own_file <= 4.0,
            report.own_file,
        ),
        (
            "in a shared directory, too",
            report.shared_file <= 4.0,
            report.shared_file,
        ),
        (
            "a name in it is revoked once from each other node",
            report.shared_file_revocations <= 2.0 * others,
            report.shared_file_revocations,
        ),
        (
            "stat of an unknown name costs one message",
            report.stat <= 1.1,
            report.stat,
        ),
        (
            "what is known costs none",
            report.known == 0.0,
            report.known,
        ),
        (
            "one change, one revocation for each other node",
            report.fan_out <= others,
            report.fan_out,
        ),
        (
            "a change does not wait for one node after the other",
            report.fan_out_ms.0 <= 250.0,
            report.fan_out_ms.0,
        ),
        (
            "a cold file is read once from the cloud",
            report.cold <= 1.05,
            report.cold,
        ),
        (
            "homes are balanced",
            report.balance.0 <= 1.25,
            report.balance.0,
        ),
        (
            "first homes are balanced",
            report.balance.1 <= 1.25,
            report.balance.1,
        ),
        ("few chunks move", report.moved <= 1.5 / n, report.moved),
        (
            "a node that is cut off delays a change by a lease",
            report.cut_wait_s <= lease_s + 1.5,
            report.cut_wait_s,
        ),
        (
            "it is known to be gone",
            report.cut_known_s <= stale_s + lease_s,
            report.cut_known_s,
        ),
    ];
    match checks.into_iter().find(|(_, is_kept, _)| !is_kept) {
        Some((what, _, got)) => Err(format!("{} nodes: {what}: {got}", report.nodes)),
        None => Ok(()),
    }
}
