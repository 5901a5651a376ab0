//! Goal: the kernel never hears of an end of a file, or of other contents, while it has pages that lack them: it would show the
//! zeros behind the old end, or old bytes. Method: a kernel that is slow to drop pages, and what waits for it.

use crate::node::{CHUNK, Node, on_node, soon, until};
use fastcache_api::control::DataCall;
use fastcache_api::{Cred, Ino, NsOp};
use fastcache_cache::KernelNotify;
use fastcache_reactor::{IoBuf, spawn};
use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Opens to append.
const APPEND: u32 = 0o2002;
const MIB: usize = 1 << 20;
/// More than what does not wait takes.
const MOMENT: Duration = Duration::from_millis(100);

/// A short one.
const LEASE: Duration = Duration::from_secs(4);

type Done = Box<dyn FnOnce() + Send>;

/// A kernel that drops pages when it is let.
#[derive(Clone, Default)]
struct Slow {
    told: Arc<Mutex<Vec<String>>>,
    waiting: Arc<Mutex<Vec<Done>>>,
    holds: Arc<AtomicBool>,
}

impl Slow {
    fn note(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    /// From now on.
    fn hold(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    fn let_go(&self) {
        self.holds.store(false, Ordering::Relaxed);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        waiting.into_iter().for_each(|done| done());
    }
}

impl KernelNotify for Slow {
    fn inval_inode(&self, ino: Ino) {
        self.note(format!("inode {ino}"));
    }
    fn inval_pages(&self, ino: Ino, from: u64) {
        self.note(format!("pages {ino} from {from}"));
    }
    fn inval_attr(&self, _ino: Ino) {}
    fn inval_entry(&self, _parent: Ino, _name: &[u8]) {}
    fn inval_names(&self) {}
    fn can_inval_names(&self) -> bool {
        true
    }
    fn barrier(&self, done: Done) {
        match self.holds.load(Ordering::Relaxed) {
            true => self.waiting.lock().unwrap().push(done),
            false => done(),
        }
    }
    fn barrier_of(&self, inos: &HashSet<Ino>, done: Done) {
        match inos.is_empty() {
            true => done(),
            false => self.barrier(done),
        }
    }
}

/// A node that has other nodes, its kernel, and a file of three bytes that the kernel has read; a handle to append to it.
async fn prepared(node: &Node) -> (Slow, Ino, u64) {
    let kernel = Slow::default();
    node.fs.set_notify(Box::new(kernel.clone()));
    node.fs.set_has_coordinator(true);
    node.share().await;
    let cred = Cred { uid: 0, gid: 0 };
    let made = node
        .fs
        .create(Ino::ROOT, b"log", 0o644, cred, APPEND | 0o100)
        .await;
    let (entry, opened) = made.unwrap();
    assert!(opened.is_direct);
    let ino = entry.attr.ino;
    append(node, ino, opened.fh, b"one").await;
    assert_eq!(node.read(ino, 0, 4096).await.unwrap(), b"one");
    kernel.told();
    (kernel, ino, opened.fh)
}

async fn append(node: &Node, ino: Ino, fh: u64, bytes: &[u8]) {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.copy_from_slice(bytes);
    let (attr, _) = node.fs.getattr(ino).await.unwrap();
    let (done, _) = soon("append", node.fs.append(ino, fh, attr.size, buf, false)).await;
    assert_eq!(done.unwrap() as usize, bytes.len());
}

/// Begins something, and says whether it is over.
fn begin(what: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
    let is_over = Rc::new(Cell::new(false));
    let said = Rc::clone(&is_over);
    spawn(async move {
        what.await;
        said.set(true);
    })
    .detach();
    is_over
}

/// Another node changes a file.
fn revoke(node: &Node, ino: Ino) -> Rc<Cell<bool>> {
    let fs = node.fs.clone();
    begin(async move {
        let call = DataCall::Invalidate {
            touched: Vec::new(),
            entries: Vec::new(),
            inos: vec![ino],
        };
        fs.serve(call).await.unwrap();
    })
}

/// Another node that changes a file waits for nobody here, or less than for a lease.
async fn goes_on(node: &Node, ino: Ino) {
    let began = Instant::now();
    let revoked = revoke(node, ino);
    until("the other node goes on", || revoked.get()).await;
    assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());
}

/// Somebody asks for the size, which is this.
fn told_size(node: &Node, ino: Ino, size: usize) -> Rc<Cell<bool>> {
    let fs = node.fs.clone();
    begin(async move {
        assert_eq!(fs.getattr(ino).await.unwrap().0.size, size as u64);
    })
}

#[test]
fn what_is_appended_is_told_when_the_pages_that_lack_it_are_gone() {
    on_node(async |node, _| {
        let (kernel, ino, fh) = prepared(&node).await;
        kernel.hold();
        let fs = node.fs.clone();
        let appended = begin(async move {
            let mut buf = IoBuf::alloc(3);
            buf.copy_from_slice(b"two");
            fs.append(ino, fh, 3, buf, false).await.0.unwrap();
        });
        let pages = format!("pages {ino} from 3");
        until("the kernel is told", || {
            kernel.told.lock().unwrap().contains(&pages)
        })
        .await;
        let fs = node.fs.clone();
        let told = begin(async move {
            assert_eq!(fs.getattr(ino).await.unwrap().0.size, 6);
        });
        let fs = node.fs.clone();
        let found = begin(async move {
            assert_eq!(fs.lookup(Ino::ROOT, b"log").await.unwrap().attr.size, 6);
        });
        fastcache_reactor::sleep(MOMENT).await;
        let waits = [&appended, &told, &found].map(|over| !over.get());
        assert_eq!(waits, [true; 3], "append, getattr, lookup");
        // A read of the page is what the kernel may wait for.
        assert_eq!(node.read(ino, 0, 4096).await.unwrap(), b"onetwo");
        kernel.let_go();
        until("all of them go on", || {
            [&appended, &told, &found].iter().all(|over| over.get())
        })
        .await;

        // Nothing was read since: it has nothing to drop.
        kernel.told();
        node.fs.flush(ino, fh).await.unwrap();
        append(&node, ino, fh, b"three").await;
        assert_eq!(kernel.told(), [format!("pages {ino} from 6")]);
        append(&node, ino, fh, b"four").await;
        assert_eq!(kernel.told(), Vec::<String>::new());
    });
}

#[test]
fn what_is_written_through_the_kernels_pages_is_in_them() {
    on_node(async |node, _| {
        let (kernel, ino, _) = prepared(&node).await;
        kernel.hold();
        // It has the pages locked until this is answered.
        node.write(ino, 3, b"more").await.unwrap();
        let (attr, _) = soon("getattr", node.fs.getattr(ino)).await.unwrap();
        assert_eq!((attr.size, kernel.told()), (7, Vec::new()));
    });
}

#[test]
fn what_another_node_wrote_is_told_when_the_old_pages_are_gone() {
    on_node(async |node, agent| {
        let (kernel, ino, fh) = prepared(&node).await;
        node.fs.flush(ino, fh).await.unwrap();
        node.fs.release(ino, fh).await.unwrap();
        agent.others_write_anew(ino, CHUNK);
        kernel.hold();
        let revoked = revoke(&node, ino);
        let told = told_size(&node, ino, CHUNK);
        // Longer than for a page that is being read.
        fastcache_reactor::sleep(12 * MOMENT).await;
        assert!(!revoked.get() && !told.get());
        kernel.let_go();
        until("both go on", || revoked.get() && told.get()).await;
    });
}

#[test]
fn a_page_that_is_read_from_another_tier_keeps_no_other_node_waiting() {
    on_node(async |node, agent| {
        let kernel = Slow::default();
        node.fs.set_notify(Box::new(kernel.clone()));
        let ino = node.cold_file("file", b"old").await;
        node.share().await;
        agent.holds_fetches.set(true);
        let asked = || agent.fetches.borrow().len();
        let before = asked();
        let fs = node.fs.clone();
        let read = begin(async move {
            let (n, buf) = fs.read(ino, 0, 0, 4096, IoBuf::alloc(4096)).await;
            assert_eq!(&buf[..n.unwrap()], b"old");
        });
        until("it is fetched", || asked() > before).await;
        kernel.hold();
        let keeps = |node: &Node| {
            let fs = node.fs.clone();
            async move { fs.open(ino, 0, false).await.unwrap().keep_cache }
        };
        goes_on(&node, ino).await;
        assert!(!read.get(), "the cloud has not answered");
        let kept = [keeps(&node).await, keeps(&node).await];
        assert_eq!(kept, [false; 2], "the kernel drops them at each open");
        let told = told_size(&node, ino, 3);
        fastcache_reactor::sleep(MOMENT).await;
        assert!(!told.get(), "its pages may lack what is told");
        agent.let_fetches_go(&node.link, &node.arena);
        until("the read is answered", || read.get()).await;
        kernel.let_go();
        until("the size is told", || told.get()).await;
        assert!(keeps(&node).await, "the old pages are gone");
    });
}

#[test]
fn a_write_that_waits_for_room_keeps_no_other_node_waiting() {
    on_node(async |node, _| {
        node.fs.set_chunk_size(MIB as u32);
        let kernel = Slow::default();
        node.fs.set_notify(Box::new(kernel.clone()));
        let (ino, filler) = (node.create("file").await, node.create("filler").await);
        let stalls = || node.fs.stats().write_stalls;
        let fs = node.fs.clone();
        let filling = begin(async move {
            let before = fs.stats().write_stalls;
            for at in 0.. {
                let mut buf = IoBuf::alloc(MIB);
                buf.fill(7);
                let (n, _) = fs.write(filler, 0, at * MIB as u64, buf, false).await;
                assert_eq!(n.unwrap() as usize, MIB);
                if fs.stats().write_stalls > before {
                    return;
                }
                fs.fsync(filler, 0, false).await.unwrap();
            }
        });
        until("too much is dirty", || stalls() > 0).await;
        node.share().await;
        let fs = node.fs.clone();
        let waits = begin(async move { fs.await_dirty_room(ino, MIB as u64).await.unwrap() });
        until("it waits", || stalls() > 1).await;
        kernel.hold();
        goes_on(&node, ino).await;
        assert!(!waits.get(), "there is no room yet");
        kernel.let_go();
        while !(waits.get() && filling.get()) {
            node.upload().await;
            fastcache_reactor::sleep(MOMENT).await;
        }
    });
}

/// A call of the agent, under way.
fn calls(node: &Node, call: DataCall) -> Rc<Cell<bool>> {
    let fs = node.fs.clone();
    begin(async move { drop(fs.serve(call).await.unwrap()) })
}

#[test]
fn what_earlier_sessions_told_is_gone_when_the_kernel_has_dropped_it() {
    on_node(async |node, _| {
        let (kernel, ino, _) = prepared(&node).await;
        kernel.told();
        kernel.hold();
        let gone = calls(&node, DataCall::ForgetEarlier);
        fastcache_reactor::sleep(MOMENT).await;
        assert!(!gone.get(), "the kernel has the pages still");
        assert!(kernel.told().contains(&format!("inode {ino}")));
        kernel.let_go();
        until("it is gone", || gone.get()).await;
        // The lease of this session stays.
        let (_, valid) = node.fs.getattr(ino).await.unwrap();
        assert!(valid > LEASE, "{valid:?}");
    });
}

/// A coordinator that was restarted gives nobody a lease before this node has forgotten.
#[test]
fn a_write_that_waits_for_its_lease_keeps_nobody_waiting_for_what_is_to_be_forgotten() {
    on_node(async |node, agent| {
        let (kernel, ino, _) = prepared(&node).await;
        node.revoke(ino).await;
        agent
            .holds_calls
            .set(Some(|op| matches!(op, NsOp::Open { .. })));
        let fs = node.fs.clone();
        let written = begin(async move {
            let mut buf = IoBuf::alloc(3);
            buf.copy_from_slice(b"new");
            fs.write(ino, 0, 0, buf, false).await.0.unwrap();
        });
        until("it asks for its lease", || agent.held_calls() == 1).await;
        kernel.hold();
        let began = Instant::now();
        let gone = calls(&node, DataCall::ForgetEarlier);
        until("it is forgotten", || gone.get()).await;
        assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());
        assert!(!written.get(), "it has no lease yet");
        kernel.let_go();
        agent.let_calls_go(&node.link);
        until("it is written", || written.get()).await;
    });
}

#[test]
fn what_a_commit_names_is_here_until_it_is_answered() {
    on_node(async |node, agent| {
        let (_, ino, fh) = prepared(&node).await;
        // It is answered when the other nodes' kernels have dropped their pages, one of which may be being read.
        agent.ignores_commits.set(true);
        let close = || {
            let fs = node.fs.clone();
            begin(async move { fs.flush(ino, fh).await.unwrap() })
        };
        let version = || {
            let chunks = node.fs.store().chunks_of(ino);
            chunks.first().map(|body| body.key().version)
        };
        let first = close();
        until("it is sealed", || version().is_some()).await;
        let before = version();
        append(&node, ino, fh, b"two").await;
        let second = close();
        fastcache_reactor::sleep(MOMENT).await;
        assert!(!first.get() && !second.get());
        assert_eq!(version(), before);
    });
}

#[test]
fn pages_of_an_answer_without_a_lease_are_dropped_when_others_have_written_since() {
    on_node(async |node, agent| {
        let kernel = Slow::default();
        node.fs.set_notify(Box::new(kernel.clone()));
        node.share().await;
        let ino = node.cold_file("file", b"old").await;
        let forget = DataCall::Forget {
            is_shared: true,
            and_commit: false,
        };
        node.fs.serve(forget).await.unwrap();
        node.share().await;
        // Asked before the session was a new one, answered after its lease was over.
        agent.gives_no_lease.set(true);
        assert!(!node.fs.open(ino, 0, false).await.unwrap().keep_cache);
        assert_eq!(node.read(ino, 0, 4096).await.unwrap(), b"old");
        agent.gives_no_lease.set(false);
        // Nobody holds a lease here, so nobody is told.
        agent.others_write(ino, 0, b"new");
        kernel.told();
        let opened = node.fs.open(ino, 0, false).await.unwrap();
        let told = kernel.told();
        assert!(
            !opened.keep_cache || told.contains(&format!("inode {ino}")),
            "the kernel keeps the old page: {told:?}"
        );
        assert_eq!(node.read(ino, 0, 4096).await.unwrap(), b"new");
        assert!(node.fs.open(ino, 0, false).await.unwrap().keep_cache);
    });
}
