//! Goal: a folder that was made here, or in which much is looked up, is known to the data plane: lookups in it ask nobody, and
//! a name that somebody else makes there is found at once. Method: an agent that counts what it is asked, and holds
//! answers until something has overtaken them.

use crate::agent::Agent;
use crate::node::{Kernel, Node, on_node, on_reactor, pattern, soon, start, until};
use fastcache_api::control::DataCall;
use fastcache_api::{Cred, Errno, Ino, Kind, NewInode, NsOp, RenameMode};
use fastcache_cache::KernelNotify;
use fastcache_reactor::boot_nanos;
use std::rc::Rc;
use std::time::Duration;

fn new_of(kind: Kind) -> NewInode {
    NewInode {
        kind,
        mode: 0o755,
        rdev: 0,
        cred: Cred { uid: 0, gid: 0 },
        target: Vec::new(),
        chunk_size: 0,
    }
}

async fn make(node: &Node, parent: Ino, name: &[u8], kind: Kind) -> Ino {
    let made = soon("make", node.fs.make(parent, name, new_of(kind))).await;
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
        node.fs.remember(Ino::ROOT, attr, page.grant).unwrap();
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
        // What a reader has not come to is asked for ahead of it, and attributes are there whether the kernel was told or not.
        assert_eq!(list(&node, 2, false).await, (vec![true; 4], 1));
        assert_eq!(list(&node, 2, false).await.0, vec![true; 4]);
        until("the rest is asked for", || agent.listings.get() == 2).await;
        assert_eq!(list(&node, 6, true).await, (vec![true; 2], 0));
        // Up to what was revoked, and that anew.
        let second = soon("lookup", node.fs.lookup(Ino::ROOT, b"file 1")).await;
        node.revoke(second.unwrap().attr.ino).await;
        assert_eq!(list(&node, 2, true).await, (vec![true], 0));
        assert_eq!(list(&node, 3, true).await, (vec![true; 4], 1));
        assert_eq!(list(&node, 3, true).await, (vec![true; 4], 0));
        node.revoke(Ino::ROOT).await;
        assert_eq!(list(&node, 2, true).await, (vec![true; 4], 1));
    });
}

#[test]
fn what_cannot_exist_is_not_asked_for() {
    on_node(async |node, _| {
        let absent = Err(Errno::ENOENT);
        assert_eq!(look(&node, Ino::ROOT, b"new").await, (absent, 1));
        let new = make(&node, Ino::ROOT, b"new", Kind::Dir).await;
        assert_eq!(look(&node, new, b"a").await, (absent, 0));
        let a = make(&node, new, b"a", Kind::File).await;
        assert_eq!(look(&node, new, b"a").await, (Ok(a), 0));
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
        node.revoke(new).await;
        assert_eq!(look(&node, new, b"c").await, (absent, 1));
        let other = make(&node, Ino::ROOT, b"other", Kind::Dir).await;
        assert_eq!(look(&node, other, b"z").await, (absent, 0));
        node.fs.begin_session(node.arena.clone());
        assert_eq!(look(&node, other, b"z").await, (absent, 1));
    });
}

#[test]
fn a_new_session_trusts_nothing_and_drops_pages_only_of_what_changed() {
    on_node(async |node, agent| {
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
fn what_this_node_does_to_names_is_known_and_what_it_may_have_done_is_asked_for() {
    on_node(async |node, agent| {
        let new = make(&node, Ino::ROOT, b"new", Kind::Dir).await;
        let a = make(&node, new, b"a", Kind::File).await;
        soon(
            "rename",
            node.fs.rename(new, b"a", new, b"b", RenameMode::Replace),
        )
        .await
        .unwrap();
        let absent = Err(Errno::ENOENT);
        assert_eq!(look(&node, new, b"a").await, (absent, 0));
        assert_eq!(look(&node, new, b"b").await, (Ok(a), 0));
        soon("link", node.fs.link(a, new, b"c")).await.unwrap();
        assert_eq!(look(&node, new, b"c").await, (Ok(a), 0));
        // Two names of one file: both stay, says rename(2). The answer does not say so.
        let both = node.fs.rename(new, b"b", new, b"c", RenameMode::Replace);
        soon("rename", both).await.unwrap();
        assert_eq!(look(&node, new, b"b").await.1, 1);
        assert_eq!(look(&node, new, b"c").await, (Ok(a), 1));
        soon("unlink", node.fs.unlink(new, b"c")).await.unwrap();
        assert_eq!(look(&node, new, b"c").await, (absent, 0));
        // Refused, or nobody knows.
        agent.refuses_makes.borrow_mut().push(Errno::ENOSPC);
        assert_eq!(refused(&node, new, b"d").await, Errno::ENOSPC);
        assert_eq!(look(&node, new, b"d").await, (absent, 0));
        agent.refuses_makes.borrow_mut().push(Errno::EIO);
        assert_eq!(refused(&node, new, b"d").await, Errno::EIO);
        assert_eq!(look(&node, new, b"d").await, (absent, 1));
        assert_eq!(look(&node, new, b"e").await, (absent, 1));
    });
}

async fn refused(node: &Node, parent: Ino, name: &[u8]) -> Errno {
    let made = node.fs.make(parent, name, new_of(Kind::File));
    soon("make", made).await.unwrap_err()
}

/// Names of another node in a directory: one was made.
async fn others_make(node: &Node, parent: Ino, name: &[u8]) {
    let call = DataCall::Invalidate {
        touched: Vec::new(),
        entries: vec![(parent, name.to_vec())],
        inos: vec![parent],
    };
    soon("invalidate", node.fs.serve(call)).await.unwrap();
}

#[test]
fn a_folder_that_was_made_here_is_known_where_there_are_others_until_they_change_it() {
    on_node(async |node, agent| {
        node.share().await;
        let absent = Err(Errno::ENOENT);
        let new = make(&node, Ino::ROOT, b"new", Kind::Dir).await;
        assert_eq!(look(&node, new, b"a").await, (absent, 0));
        let a = make(&node, new, b"a", Kind::File).await;
        assert_eq!(look(&node, new, b"a").await, (Ok(a), 0));
        others_make(&node, new, b"b").await;
        assert_eq!(look(&node, new, b"c").await, (absent, 1));
        assert_eq!(look(&node, new, b"a").await, (Ok(a), 1));

        // Found by another node before we hear that it is there: the word of what was made in it comes first.
        agent
            .holds_calls
            .set(Some(|op| matches!(op, NsOp::Make { .. })));
        let early = node.fs.make(Ino::ROOT, b"early", new_of(Kind::Dir));
        let overtaken = async {
            until("it is made", || agent.held_calls() == 1).await;
            others_make(&node, Ino(a.0 + 1), b"theirs").await;
            agent.let_calls_go(&node.link);
        };
        let (made, ()) = soon("make", futures_util::future::join(early, overtaken)).await;
        let early = made.unwrap().attr.ino;
        assert_eq!(early, Ino(a.0 + 1));
        assert_eq!(look(&node, early, b"theirs").await, (absent, 1));
    });
}

/// Looks so many names up that are not there, each with a question; then the agent is asked for all names.
async fn want_all(node: &Node, misses: usize, listings: usize) {
    for n in 0..misses {
        let name = format!("none {n}");
        let found = look(node, Ino::ROOT, name.as_bytes()).await;
        assert_eq!(found, (Err(Errno::ENOENT), 1), "{name}");
    }
    let is_asked = || node.agent.listings.get() == listings;
    until("it is asked for all names", is_asked).await;
}

#[test]
fn a_directory_in_which_much_is_looked_up_is_asked_for_once() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let agent = Rc::new(Agent::default());
    on_reactor(|| async {
        let node = start(dir.path(), &agent, 1).await;
        for n in 0..200 {
            node.create(&format!("file {n:03}")).await;
        }
        let node = start(other.path(), &agent, 2).await;
        node.share().await;
        want_all(&node, 4, 1).await;
        let calls = node.fs.stats().namespace_calls;
        for n in 0..200 {
            let name = format!("file {n:03}");
            let entry = soon("lookup", node.fs.lookup(Ino::ROOT, name.as_bytes())).await;
            let ino = entry.unwrap().attr.ino;
            assert_eq!(
                soon("getattr", node.fs.getattr(ino)).await.unwrap().0.ino,
                ino
            );
        }
        let absent = Err(Errno::ENOENT);
        assert_eq!(look(&node, Ino::ROOT, b"none").await, (absent, 0));
        assert_eq!(node.fs.stats().namespace_calls, calls);
        // Nor does a listing ask, or what is made and removed here.
        assert_eq!(list(&node, 2, true).await, (vec![true; 4], 0));
        let new = make(&node, Ino::ROOT, b"new", Kind::File).await;
        assert_eq!(look(&node, Ino::ROOT, b"new").await, (Ok(new), 0));
        soon("unlink", node.fs.unlink(Ino::ROOT, b"new"))
            .await
            .unwrap();
        assert_eq!(look(&node, Ino::ROOT, b"new").await, (absent, 0));
        // What another node makes is asked for, and so is what it changes.
        let one = soon("lookup", node.fs.lookup(Ino::ROOT, b"file 001")).await;
        node.revoke(one.unwrap().attr.ino).await;
        let calls = node.fs.stats().namespace_calls;
        soon("lookup", node.fs.lookup(Ino::ROOT, b"file 001"))
            .await
            .unwrap();
        assert_eq!(node.fs.stats().namespace_calls, calls + 1);
        others_make(&node, Ino::ROOT, b"theirs").await;
        assert_eq!(look(&node, Ino::ROOT, b"theirs").await, (absent, 1));
        // A lease that ended is the end of it all.
        want_all(&node, 3, 2).await;
        node.fs.begin_session(node.arena.clone());
        assert_eq!(look(&node, Ino::ROOT, b"none").await, (absent, 1));
    });
}

#[test]
fn a_listing_that_was_overtaken_makes_nothing_absent() {
    on_node(async |node, agent| {
        node.create("file").await;
        node.share().await;
        let absent = Err(Errno::ENOENT);
        // By another node's change, and by one of this node; and by one that has begun and not ended.
        for by in 0..3 {
            agent
                .holds_calls
                .set(Some(|op| matches!(op, NsOp::Readdir { .. })));
            let asked = agent.listings.get() + 1;
            node.fs.begin_session(node.arena.clone());
            node.share().await;
            want_all(&node, 4, asked).await;
            let name = format!("made {by}");
            match by {
                0 => others_make(&node, Ino::ROOT, name.as_bytes()).await,
                1 => drop(make(&node, Ino::ROOT, name.as_bytes(), Kind::File).await),
                _ => {
                    agent.holds_calls.set(Some(|op| {
                        matches!(op, NsOp::Readdir { .. } | NsOp::Make { .. })
                    }));
                    let making = node.fs.make(Ino::ROOT, name.as_bytes(), new_of(Kind::File));
                    let looks = async {
                        until("it is asked for", || agent.held_calls() == 2).await;
                        agent.let_listings_go(&node.link);
                        let came = || agent.held_calls() == 1;
                        until("the listing came", came).await;
                        fastcache_reactor::sleep(Duration::from_millis(20)).await;
                        let (found, asked) = look(&node, Ino::ROOT, name.as_bytes()).await;
                        assert_eq!((found, asked), (absent, 1), "not made yet");
                        assert_eq!(look(&node, Ino::ROOT, b"none").await, (absent, 1));
                        agent.let_calls_go(&node.link);
                    };
                    let both = futures_util::future::join(making, looks);
                    let ino = soon("make", both).await.0.unwrap().attr.ino;
                    let found = look(&node, Ino::ROOT, name.as_bytes()).await;
                    assert_eq!(found, (Ok(ino), 0));
                    continue;
                }
            }
            agent.let_calls_go(&node.link);
            fastcache_reactor::sleep(Duration::from_millis(20)).await;
            let (found, asked) = look(&node, Ino::ROOT, b"none 9").await;
            assert_eq!((found, asked), (absent, 1), "{by}: it is not whole");
            if by == 1 {
                assert!(look(&node, Ino::ROOT, name.as_bytes()).await.0.is_ok());
            }
        }
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
    on_node(async |node, _| {
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
