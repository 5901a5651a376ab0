//! One node for all tests of a binary: many small tests of what a system call does would each wait for a start.

use crate::node::{Node, Setup};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicPtr, Ordering};

static NODE: AtomicPtr<Node> = AtomicPtr::new(std::ptr::null_mut());

/// The node of this test binary, started by the first test that asks. It is stopped, unmounted and deleted when the
/// process ends, also after a failure. Call it under [`crate::serial`].
///
/// # Panics
/// When the node does not come up.
#[track_caller]
pub fn shared_node() -> &'static Node {
    let mut node = NODE.load(Ordering::Acquire);
    if node.is_null() {
        node = Box::into_raw(Box::new(Node::start(Setup::default())));
        NODE.store(node, Ordering::Release);
        // SAFETY: `stop` is a function without arguments that does not unwind, as atexit(3) wants it.
        let registered = unsafe { libc::atexit(stop) };
        assert_eq!(registered, 0, "atexit takes no more functions");
    }
    // SAFETY: the pointer comes from `Box::into_raw`; it is freed only by `stop`, when the process ends and no test
    // runs any more.
    unsafe { &*node }
}

/// A fresh folder on the shared node, that everybody may write to.
///
/// # Panics
/// When there is a folder of that name: names are those of tests.
#[track_caller]
pub fn shared_folder(test: &str) -> (&'static Node, PathBuf) {
    let node = shared_node();
    let folder = node.at(test);
    std::fs::create_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    (node, folder)
}

extern "C" fn stop() {
    let node = NODE.swap(std::ptr::null_mut(), Ordering::AcqRel);
    if !node.is_null() {
        // SAFETY: made by `Box::into_raw`, and the swap lets this happen once.
        let node = unsafe { Box::from_raw(node) };
        // A panic must not leave a function that C calls.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(node)));
    }
}
