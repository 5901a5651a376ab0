//! Promise: after a power cut of the coordinator's machine, what nodes were told is there again as they were told it, once;
//! what cannot be is counted.
//!
//! A power cut: the state as it was when it was last on stable storage, by a coordinator that puts nothing there by itself, and
//! another boot.

use super::*;
use crate::Options;
use crate::coordinator::tests::join;
use fastcache_api::{
    Attr, Commit, Cred, Errno, Ino, Kind, NewInode, NsAnswer, NsOp, NsReply, NsRequest, OpId,
    RenameMode, Run, SetAttr, Time, Version, XattrMode,
};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const LEASE: Duration = Duration::from_millis(400);
/// Long enough for what is to be answered at once, and much shorter than a lease.
const AT_ONCE: Duration = Duration::from_millis(100);

fn start_in(dir: &Path, lease: Duration) -> Coordinator {
    let options = Options {
        lease,
        stale_after: Duration::from_secs(60),
        sync_every: Duration::from_secs(60),
    };
    Coordinator::open(dir, options).unwrap()
}

/// Copies what is on stable storage now.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let there = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &there),
            false => drop(std::fs::copy(entry.path(), there).unwrap()),
        }
    }
}

async fn stable_copy(coordinator: &Coordinator, dir: &Path) -> TempDir {
    coordinator.engine().sync().await.unwrap();
    let to = tempfile::tempdir().unwrap();
    copy(dir, to.path());
    std::fs::write(to.path().join("boot-id"), "another").unwrap();
    to
}

/// A node of its coordinators, one after the other.
struct Node {
    id: &'static str,
    client: u64,
    seq: u64,
    kept: Vec<grpc::Kept>,
    session: u64,
}

impl Node {
    async fn join(coordinator: &Coordinator, id: &'static str) -> Node {
        let mut node = Node {
            id,
            client: u64::from(id.as_bytes()[0]),
            seq: 0,
            kept: Vec::new(),
            session: join(coordinator, id).await,
        };
        assert!(node.bring(coordinator).await.unwrap());
        node.kept.clear();
        node
    }

    async fn again(&mut self, coordinator: &Coordinator) {
        self.session = join(coordinator, self.id).await;
    }

    fn message(&self, coordinator: &Coordinator) -> grpc::ResendRequest {
        grpc::ResendRequest {
            session: self.session,
            file_system: coordinator.engine().owner().0,
            kept: self.kept.clone(),
            is_all: true,
        }
    }

    async fn bring(&mut self, coordinator: &Coordinator) -> Result<bool, ResendError> {
        coordinator.bring(self.message(coordinator)).await
    }

    fn request(&mut self, op: NsOp) -> NsRequest {
        self.seq += 1;
        let id = OpId {
            client: self.client,
            seq: self.seq,
        };
        NsRequest {
            id: op.is_change().then_some(id),
            now: Time {
                sec: 1000 + self.seq.cast_signed(),
                nsec: 5,
            },
            op,
        }
    }

    async fn say(&mut self, coordinator: &Coordinator, op: NsOp) -> NsReply {
        let request = self.request(op);
        let (reply, kept) = coordinator.call_kept(self.session, request).await.unwrap();
        self.kept.extend(kept);
        reply
    }

    async fn attr(&mut self, coordinator: &Coordinator, op: NsOp) -> Attr {
        match self.say(coordinator, op.clone()).await.result {
            Ok(NsAnswer::Entry(attr) | NsAnswer::Attr(attr)) => attr,
            other => panic!("{op:?}: {other:?}"),
        }
    }

    async fn find(&mut self, coordinator: &Coordinator, parent: Ino, name: &str) -> Option<Attr> {
        let name = name.into();
        match self
            .say(coordinator, NsOp::Lookup { parent, name })
            .await
            .result
        {
            Ok(NsAnswer::Entry(attr)) => Some(attr),
            Err(Errno::ENOENT) => None,
            other => panic!("{other:?}"),
        }
    }
}

fn make(parent: Ino, name: &str, kind: Kind) -> NsOp {
    let is_file = kind == Kind::File;
    NsOp::Make {
        at: Some((parent, name.into())),
        new: NewInode {
            kind,
            mode: 0o644,
            rdev: 0,
            cred: Cred { uid: 1, gid: 2 },
            target: Vec::new(),
            chunk_size: if is_file { 4096 } else { 0 },
        },
    }
}

fn rename(name: &str, to: (Ino, &str)) -> NsOp {
    NsOp::Rename {
        parent: Ino::ROOT,
        name: name.into(),
        new_parent: to.0,
        new_name: to.1.into(),
        mode: RenameMode::Replace,
    }
}

fn unlink(name: &str) -> NsOp {
    NsOp::Unlink {
        parent: Ino::ROOT,
        name: name.into(),
    }
}

fn chmod(ino: Ino, mode: u32) -> NsOp {
    let set = SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    NsOp::SetAttr { ino, set }
}

fn commit(ino: Ino, base: Version, version: u64) -> NsOp {
    NsOp::Commit(Commit {
        ino,
        base,
        version: Version(version),
        truncate: None,
        runs: vec![Run {
            first: 0,
            count: 1,
            version: Version(version),
            valid: 7,
        }],
        size: 7,
        mtime: Time { sec: 50, nsec: 0 },
        kill_suid: false,
        conflict_file: false,
    })
}

/// The same but for the record it stands in.
#[track_caller]
fn expect_same(now: &Attr, told: &Attr) {
    assert!(
        now.seq >= told.seq,
        "{now:?} is newer than {told:?} on a node"
    );
    let seq = now.seq;
    assert_eq!(
        *now,
        Attr {
            seq,
            ..told.clone()
        }
    );
}

fn counts(coordinator: &Coordinator) -> (u64, u64) {
    let stats = coordinator.stats();
    (stats.changes_restored, stats.changes_lost)
}

/// A coordinator with two nodes and some names, and what it has on stable storage.
struct World {
    first: Coordinator,
    a: Node,
    b: Node,
    _dir: TempDir,
    copy: TempDir,
}

impl World {
    async fn new() -> World {
        World::with_lease(LEASE).await
    }

    async fn with_lease(lease: Duration) -> World {
        let dir = tempfile::tempdir().unwrap();
        let first = start_in(dir.path(), lease);
        let mut a = Node::join(&first, "a").await;
        let b = Node::join(&first, "b").await;
        for name in ["old", "gone"] {
            a.attr(&first, make(Ino::ROOT, name, Kind::File)).await;
        }
        let copy = stable_copy(&first, dir.path()).await;
        a.kept.clear();
        World {
            first,
            a,
            b,
            _dir: dir,
            copy,
        }
    }

    /// The power is cut, and back.
    async fn cut(&mut self, lease: Duration) -> Coordinator {
        let next = start_in(self.copy.path(), lease);
        self.a.again(&next).await;
        self.b.again(&next).await;
        next
    }
}

/// Changes of both nodes that need each other: the attributes of the file, and of the directory it is in.
async fn entangled(world: &mut World) -> (Attr, Attr) {
    let World { first, a, b, .. } = world;
    let dir = a.attr(first, make(Ino::ROOT, "dir", Kind::Dir)).await;
    let file = b.attr(first, make(dir.ino, "x", Kind::File)).await;
    let same = a.attr(first, chmod(file.ino, 0o600)).await;
    assert_eq!(same.ino, file.ino);
    let version = Version::NONE;
    let file = b.attr(first, commit(file.ino, version, 77)).await;
    assert!(
        a.say(first, rename("dir", (Ino::ROOT, "moved")))
            .await
            .result
            .is_ok()
    );
    assert!(
        b.say(first, rename("old", (dir.ino, "y")))
            .await
            .result
            .is_ok()
    );
    assert!(b.say(first, unlink("gone")).await.result.is_ok());
    let dir = a.attr(first, NsOp::GetAttr { ino: dir.ino }).await;
    assert_eq!((a.kept.len(), b.kept.len()), (3, 4));
    (file, dir)
}

async fn expect_entangled(coordinator: &Coordinator, node: &mut Node, told: &(Attr, Attr)) {
    let (file, dir) = told;
    let found = node.find(coordinator, Ino::ROOT, "moved").await.unwrap();
    expect_same(&found, dir);
    let found = node.find(coordinator, dir.ino, "x").await.unwrap();
    expect_same(&found, file);
    assert!(node.find(coordinator, dir.ino, "y").await.is_some());
    for name in ["dir", "old", "gone"] {
        assert_eq!(
            node.find(coordinator, Ino::ROOT, name).await,
            None,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_nodes_keep_is_made_again_as_it_was_whoever_comes_first() {
    for is_a_first in [true, false] {
        let mut world = World::with_lease(LEASE * 20).await;
        let told = entangled(&mut world).await;
        let next = world.cut(LEASE * 20).await;
        let World { a, b, .. } = &mut world;
        let (one, other) = if is_a_first { (a, b) } else { (b, a) };
        assert!(!one.bring(&next).await.unwrap());
        // Nothing of before is shown, and nothing changed, until it is all there.
        let mut asking = Node::join_only(one);
        let early = asking.find(&next, Ino::ROOT, "old");
        assert!(tokio::time::timeout(AT_ONCE, early).await.is_err());
        assert_eq!(next.stable().position, 0);
        let last = other.bring(&next).await.unwrap();
        assert!(last && next.stable().position > 0);
        assert_eq!(counts(&next), (7, 0));
        expect_entangled(&next, one, &told).await;
        expect_entangled(&next, other, &told).await;
        // Who had no answer asks again: it is done, once.
        let request = NsRequest {
            id: Some(OpId {
                client: u64::from(b'b'),
                seq: 1,
            }),
            now: Time { sec: 1, nsec: 1 },
            op: make(told.1.ino, "x", Kind::File),
        };
        let again = next.call(other.session, request).await.unwrap();
        let Ok(NsAnswer::Entry(attr)) = again.result else {
            panic!("{again:?}")
        };
        assert_eq!(attr.ino, told.0.ino);
        // Brought twice: the first answer was lost.
        assert!(one.bring(&next).await.unwrap() && other.bring(&next).await.unwrap());
        assert_eq!(counts(&next), (7, 0));
        expect_entangled(&next, one, &told).await;
        // What is new has numbers of its own.
        let new = one.attr(&next, make(Ino::ROOT, "new", Kind::File)).await;
        assert!(new.ino > told.0.ino && new.seq > told.1.seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_nodes_bring_theirs_costs_nothing() {
    let mut world = World::with_lease(LEASE * 20).await;
    let told = entangled(&mut world).await;
    let next = world.cut(LEASE * 20).await;
    assert!(!world.a.bring(&next).await.unwrap());
    // What this run wrote last, its begin, is on stable storage.
    world.copy = stable_copy(&next, world.copy.path()).await;
    let third = world.cut(LEASE * 20).await;
    assert!(!world.b.bring(&third).await.unwrap());
    assert!(world.a.bring(&third).await.unwrap());
    assert_eq!(counts(&third), (7, 0));
    expect_entangled(&third, &mut world.a, &told).await;
    // Again, right after it is made again: nodes may not have heard of it.
    world.copy = stable_copy(&third, world.copy.path()).await;
    let fourth = world.cut(LEASE * 20).await;
    assert!(!world.b.bring(&fourth).await.unwrap());
    assert!(world.a.bring(&fourth).await.unwrap());
    assert_eq!(counts(&fourth), (0, 0));
    expect_entangled(&fourth, &mut world.b, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_node_what_can_be_is_made_again_and_the_rest_is_counted() {
    let mut world = World::new().await;
    let told = entangled(&mut world).await;
    let alone = world
        .b
        .attr(&world.first, make(Ino::ROOT, "alone", Kind::Dir))
        .await;
    let next = start_in(world.copy.path(), LEASE);
    world.b.again(&next).await;
    assert!(!world.b.bring(&next).await.unwrap());
    // Within the time of a lease, it is waited for the other one.
    let found = world.b.find(&next, Ino::ROOT, "alone").await.unwrap();
    expect_same(&found, &alone);
    assert_eq!(world.b.find(&next, Ino::ROOT, "gone").await, None);
    // The directory is its that is gone: what was made and moved there, and what was written there, is lost with it.
    assert!(world.b.find(&next, Ino::ROOT, "old").await.is_some());
    assert_eq!(counts(&next), (2, 3));
    // It comes after all, when there were other changes, and only adds.
    let b = &mut world.b;
    b.attr(&next, make(Ino::ROOT, "since", Kind::File)).await;
    world.a.again(&next).await;
    assert!(world.a.bring(&next).await.unwrap());
    let found = world.b.find(&next, Ino::ROOT, "dir").await.unwrap();
    assert_eq!(found.ino, told.1.ino);
    let made = world.b.attr(&next, make(found.ino, "z", Kind::File)).await;
    assert!(made.seq > told.1.seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_changes_nothing_that_others_may_have_changed_since() {
    let mut world = World::new().await;
    let World {
        first, a, b, copy, ..
    } = &mut world;
    b.attr(first, make(Ino::ROOT, "added", Kind::File)).await;
    b.attr(first, make(Ino::ROOT, "taken", Kind::File)).await;
    assert!(b.say(first, unlink("old")).await.result.is_ok());
    let next = start_in(copy.path(), LEASE);
    a.again(&next).await;
    assert!(!a.bring(&next).await.unwrap());
    let taken = a.attr(&next, make(Ino::ROOT, "taken", Kind::Dir)).await;
    next.heartbeat(a.session, None, true).unwrap();
    assert_eq!(a.find(&next, Ino::ROOT, "added").await, None);
    let revoked = next.stats().revocations;
    b.again(&next).await;
    assert!(b.bring(&next).await.unwrap());
    assert_eq!(counts(&next), (1, 2));
    // It had learned that there is none.
    assert!(next.stats().revocations > revoked);
    assert!(a.find(&next, Ino::ROOT, "added").await.is_some());
    assert!(a.find(&next, Ino::ROOT, "old").await.is_some());
    let still = a.find(&next, Ino::ROOT, "taken").await.unwrap();
    assert_eq!(still.ino, taken.ino);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_nobody_waits_and_nothing_is_made_again() {
    let mut world = World::with_lease(LEASE * 20).await;
    let told = entangled(&mut world).await;
    // The operating system has it all.
    world.copy = stable_copy(&world.first, world._dir.path()).await;
    let boot = world._dir.path().join("boot-id");
    std::fs::copy(boot, world.copy.path().join("boot-id")).unwrap();
    let next = start_in(world.copy.path(), LEASE * 20);
    world.a.again(&next).await;
    let reading = expect_entangled(&next, &mut world.a, &told);
    tokio::time::timeout(AT_ONCE * 5, reading).await.unwrap();
    assert!(world.a.bring(&next).await.unwrap());
    assert_eq!(counts(&next), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_an_old_copy_is_found_out_by_what_nodes_bring() {
    let mut world = World::with_lease(LEASE * 20).await;
    let told = entangled(&mut world).await;
    let boot = world._dir.path().join("boot-id");
    std::fs::copy(boot, world.copy.path().join("boot-id")).unwrap();
    let next = world.cut(LEASE * 20).await;
    assert!(!world.a.bring(&next).await.unwrap());
    let mut asking = Node::join_only(&world.b);
    let early = asking.find(&next, Ino::ROOT, "old");
    assert!(tokio::time::timeout(AT_ONCE, early).await.is_err());
    assert!(world.b.bring(&next).await.unwrap());
    assert_eq!(counts(&next), (7, 0));
    expect_entangled(&next, &mut world.a, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_lost_record_is_refused_in_words() {
    let mut world = World::with_lease(LEASE * 20).await;
    entangled(&mut world).await;
    let next = world.cut(LEASE * 20).await;
    let refuse = async |message: grpc::ResendRequest, words: &str| {
        let text = next.bring(message).await.unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    };
    let with = |change: &dyn Fn(&mut grpc::Kept)| {
        let mut message = world.a.message(&next);
        change(&mut message.kept[0]);
        message
    };
    refuse(with(&|k| k.record.clear()), "empty").await;
    refuse(with(&|k| k.record.truncate(9)), "damaged").await;
    refuse(with(&|k| k.record[0] = 99), "version 99").await;
    refuse(with(&|k| k.position += 1), "was said to be").await;
    refuse(with(&|k| k.epoch += 1), "was said to be").await;
    let other = |change: &dyn Fn(&mut fastcache_namespace::Record)| {
        with(&|kept: &mut grpc::Kept| {
            let mut record = fastcache_namespace::Record::decode(&kept.record).unwrap();
            change(&mut record);
            kept.record = record.encode().unwrap();
            (kept.epoch, kept.position) = (record.epoch, record.position);
        })
    };
    refuse(other(&|r| r.position = u64::MAX), "records behind").await;
    refuse(other(&|r| r.id = None), "nobody asked").await;
    refuse(
        other(&|r| r.op = NsOp::Begin { file_system: 1 }),
        "nobody asked",
    )
    .await;
    refuse(other(&|r| r.op = NsOp::Statfs), "nobody asked").await;
    let mut message = world.a.message(&next);
    message.file_system ^= 1;
    refuse(message, "file system").await;
    let mut message = world.a.message(&next);
    message.session += 100;
    refuse(message, "not known").await;
    // Numbers that it cannot have had, and other inodes than it had: what else there is is made again.
    let mut message = world.a.message(&next);
    message.kept[0].inos = u64::MAX;
    message.kept[1].touched ^= 1;
    assert!(!next.bring(message).await.unwrap());
    assert!(world.b.bring(&next).await.unwrap());
    let (_, lost) = counts(&next);
    assert!(lost >= 2, "{lost}");
    assert!(world.b.find(&next, Ino::ROOT, "gone").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_need_not_be_kept_is_not_given_to_be() {
    let mut world = World::new().await;
    let World { first, a, .. } = &mut world;
    a.say(first, NsOp::AllocVersions { count: 5 }).await;
    a.say(first, NsOp::Statfs).await;
    a.say(first, make(Ino::ROOT, "old", Kind::File)).await;
    assert_eq!(a.kept, vec![]);
    // An answer that is given again, and a long record, are on stable storage when they are given.
    let request = a.request(make(Ino::ROOT, "once", Kind::Dir));
    let (reply, kept) = first.call_kept(a.session, request.clone()).await.unwrap();
    assert!(kept.is_some() && first.stable().position < reply.log_position);
    let (again, kept) = first.call_kept(a.session, request).await.unwrap();
    assert_eq!(again.result, reply.result);
    assert!(kept.is_none() && first.stable().position >= reply.log_position);
    let long = vec![7; 65_000];
    let [name, more] = ["user.a", "user.b"].map(|n| n.as_bytes().to_vec());
    let set = |name, value| NsOp::SetXattr {
        ino: Ino::ROOT,
        name,
        value,
        mode: XattrMode::Any,
    };
    let reply = a.say(first, set(name, long.clone())).await;
    assert_eq!((reply.result, a.kept.len()), (Ok(NsAnswer::Done), 1));
    assert!(first.stable().position < reply.log_position);
    let reply = a
        .say(first, set(more, [&long[..], &long[..536]].concat()))
        .await;
    assert_eq!((reply.result, a.kept.len()), (Ok(NsAnswer::Done), 1));
    assert!(first.stable().position >= reply.log_position);
}

impl Node {
    /// The same node, for one that waits.
    fn join_only(of: &Node) -> Node {
        Node {
            kept: Vec::new(),
            seq: 1000,
            ..*of
        }
    }
}
