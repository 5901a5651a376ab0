//! Goal: a folder that was made here is known to the data plane: the lookup before each create in it asks nobody, and a
//! name that somebody else makes there is found at once.

use crate::agent::Agent;
use crate::node::{Kernel, Node, on_reactor, pattern, soon, start};
use fastcache_api::control::DataCall;
use fastcache_api::{Cred, Errno, Ino, Kind, NewInode, RenameMode};
use fastcache_cache::KernelNotify;
use fastcache_reactor::boot_nanos;
use std::rc::Rc;
use std::time::Duration;

async fn make(node: &Node, parent: Ino, name: &[u8], kind: Kind) -> Ino {
    let new = NewInode {
        kind,
        mode: 0o755,
        rdev: 0,
        cred: Cred { uid: 0, gid: 0 },
        target: Vec::new(),
        chunk_size: 0,
    };
    let made = soon("make", node.fs.make(parent, name, new)).await;
    made.unwrap().attr.ino
}

/// What a lookup answers, and how many questions to the agent it took.
async fn look(node: &Node, parent: Ino, name: &[u8]) -> (Result<Ino, Errno>, usize) {
    let before = node.agent.lookups.get();
    let found = soon("lookup", node.fs.lookup(parent, name)).await;
    let asked = node.agent.lookups.get() - before;
    (found.map(|entry| entry.attr.ino), asked)
}

/// A part of the root's listing: whether each entry has attributes, and how many questions it took.
async fn list(node: &Node, after: u64, take_in: bool) -> (Vec<bool>, usize) {
    let before = node.agent.listings.get();
    let page = soon("readdir", node.fs.readdir(Ino::ROOT, after, 4, true)).await;
    let page = page.unwrap();
    let attrs = page.entries.iter().map(|e| e.attr.as_ref());
    for attr in attrs.clone().flatten().filter(|_| take_in) {
        node.fs.remember(Ino::ROOT, attr, page.grant);
    }
    let has = attrs.map(|attr| attr.is_some()).collect();
    (has, node.agent.listings.get() - before)
}

#[test]
fn a_listing_that_is_kept_has_attributes_or_is_asked_for_again() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        for n in 0..6 {
            node.create(&format!("file {n}")).await;
        }
        let node = start(other.path(), &agent, 2).await;
        node.share().await;
        // Asked for, and not told the kernel.
        assert_eq!(list(&node, 2, false).await, (vec![true; 4], 1));
        assert_eq!(list(&node, 2, true).await, (vec![true; 4], 1));
        assert_eq!(list(&node, 2, true).await, (vec![true; 4], 0));
        assert_eq!(list(&node, 6, true).await, (vec![true; 2], 1));
    });
}

#[test]
fn what_cannot_exist_is_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let absent = Err(Errno::ENOENT);
        assert_eq!(look(&node, Ino::ROOT, b"new").await, (absent, 1));
        let new = make(&node, Ino::ROOT, b"new", Kind::Dir).await;
        assert_eq!(look(&node, new, b"a").await, (absent, 0));
        let a = make(&node, new, b"a", Kind::File).await;
        assert_eq!(look(&node, new, b"a").await, (Ok(a), 1));
        assert_eq!(look(&node, new, b"b").await, (absent, 0));

        // What somebody else makes is found as soon as its maker goes on.
        let call = DataCall::Invalidate {
            touched: Vec::new(),
            entries: vec![(new, b"b".to_vec())],
            inos: Vec::new(),
        };
        soon("invalidate", node.fs.serve(call)).await.unwrap();
        assert_eq!(look(&node, new, b"b").await, (absent, 1));
        assert_eq!(look(&node, new, b"c").await, (absent, 0));

        // Nor is a folder trusted whose attributes were revoked, or any after a new session began.
        let call = DataCall::Invalidate {
            touched: Vec::new(),
            entries: Vec::new(),
            inos: vec![new],
        };
        soon("invalidate", node.fs.serve(call)).await.unwrap();
        assert_eq!(look(&node, new, b"c").await, (absent, 1));
        let other = make(&node, Ino::ROOT, b"other", Kind::Dir).await;
        assert_eq!(look(&node, other, b"z").await, (absent, 0));
        node.fs.begin_session(node.arena.clone());
        assert_eq!(look(&node, other, b"z").await, (absent, 1));
    });
}

#[test]
fn a_new_session_trusts_nothing_and_drops_pages_only_of_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let kernel = Kernel::default();
        node.fs.set_notify(Box::new(kernel.clone()));
        let (same, cut) = (node.create("same").await, node.create("cut").await);
        for ino in [same, cut] {
            node.write(ino, 0, &pattern(ino.0, 10_000)).await.unwrap();
            node.fsync(ino).await.unwrap();
        }
        let size = async |ino| soon("getattr", node.fs.getattr(ino)).await.unwrap().0.size;
        agent.others_truncate(cut, 5_000);
        kernel.told();
        assert_eq!(size(cut).await, 10_000, "nobody has told");

        node.fs.begin_session(node.arena.clone());
        let mut told = kernel.told();
        told.sort();
        let wanted = [same, cut].map(|ino| format!("attributes {ino}"));
        assert!(wanted.iter().all(|w| told.contains(w)), "{told:?}");
        assert!(told.contains(&"names".to_owned()), "{told:?}");
        assert!(!told.iter().any(|t| t.starts_with("inode")), "{told:?}");

        assert_eq!((size(same).await, size(cut).await), (10_000, 5_000));
        assert_eq!(kernel.told(), [format!("inode {cut}")]);
        assert_eq!(node.read(cut, 0, 10_000).await.unwrap().len(), 5_000);
        let open = soon("open", node.fs.open(same, 0, false)).await.unwrap();
        assert!(open.keep_cache, "its pages are right");
        let open = soon("open", node.fs.open(cut, 0, false)).await.unwrap();
        assert!(!open.keep_cache, "its pages are of the contents before");
        assert_eq!(kernel.told(), Vec::<String>::new());
    });
}

#[test]
fn names_that_links_and_renames_make_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        let new = make(&node, Ino::ROOT, b"new", Kind::Dir).await;
        let a = make(&node, new, b"a", Kind::File).await;
        soon(
            "rename",
            node.fs.rename(new, b"a", new, b"b", RenameMode::Replace),
        )
        .await
        .unwrap();
        assert_eq!(look(&node, new, b"b").await, (Ok(a), 1));
        soon("link", node.fs.link(a, new, b"c")).await.unwrap();
        assert_eq!(look(&node, new, b"c").await, (Ok(a), 1));
        soon("unlink", node.fs.unlink(new, b"c")).await.unwrap();
        assert_eq!(look(&node, new, b"c").await, (Err(Errno::ENOENT), 1));
    });
}

/// A kernel that cannot be told to forget names (before 6.16).
struct OldKernel(Kernel);

impl KernelNotify for OldKernel {
    fn inval_inode(&self, ino: Ino) {
        self.0.inval_inode(ino);
    }
    fn inval_attr(&self, ino: Ino) {
        self.0.inval_attr(ino);
    }
    fn inval_entry(&self, parent: Ino, name: &[u8]) {
        self.0.inval_entry(parent, name);
    }
    fn inval_names(&self) {}
    fn can_inval_names(&self) -> bool {
        false
    }
    fn barrier(&self, done: Box<dyn FnOnce() + Send>) {
        self.0.barrier(done);
    }
}

#[test]
fn a_second_node_waits_for_the_names_that_a_kernel_cannot_be_told_to_forget() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        node.fs.set_notify(Box::new(OldKernel(Kernel::default())));
        let lease = |is_shared| DataCall::Lease {
            until_ns: Some(boot_nanos() + 1_000_000_000),
            is_shared,
        };
        node.fs.serve(lease(false)).await.unwrap();
        make(&node, Ino::ROOT, b"a", Kind::File).await;
        let told = boot_nanos();
        let entry = node.fs.lookup(Ino::ROOT, b"a").await.unwrap();
        assert!(entry.entry_valid > Duration::from_millis(500));
        // The word that there are others comes with the lease, too.
        node.fs.serve(lease(true)).await.unwrap();
        let forget = DataCall::Forget {
            is_shared: true,
            and_commit: true,
        };
        soon("forget", node.fs.serve(forget)).await.unwrap();
        let since = Duration::from_nanos(boot_nanos() - told);
        assert!(since >= entry.entry_valid, "{since:?}");
        node.fs.serve(lease(true)).await.unwrap();
        let entry = node.fs.lookup(Ino::ROOT, b"a").await.unwrap();
        assert_eq!(entry.entry_valid, Duration::ZERO);
    });
}
