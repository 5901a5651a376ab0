//! Faults of disks, for tests: what a device may answer instead of doing what it is asked. Compiled with the feature
//! `faults` alone, which only tests ask for.
//!
//! A rule belongs to the path under which a [`Disk`](crate::Disk) was opened, so that tests that run at the same time
//! do not meet each other's.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a disk is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Sync,
}

struct Rule {
    path: PathBuf,
    operation: Operation,
    bytes: Range<u64>,
    errno: i32,
    times: usize,
}

static RULES: Mutex<Vec<Rule>> = Mutex::new(Vec::new());

fn rules() -> MutexGuard<'static, Vec<Rule>> {
    RULES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the next `times` operations on the disk at `path` that touch these bytes fail with `errno`. (A flush
/// touches all bytes.)
pub fn inject(path: &Path, operation: Operation, bytes: Range<u64>, errno: i32, times: usize) {
    rules().push(Rule {
        path: path.to_path_buf(),
        operation,
        bytes,
        errno,
        times,
    });
}

/// The disk at `path` is well again.
pub fn clear(path: &Path) {
    rules().retain(|r| r.path != path);
}

/// The error that an operation meets.
pub(crate) fn meet(path: &Path, operation: Operation, from: u64, len: usize) -> Option<io::Error> {
    let to = from.saturating_add(len as u64);
    let mut rules = rules();
    let rule = rules.iter_mut().find(|r| {
        let touches = r.operation == Operation::Sync || (r.bytes.start < to && from < r.bytes.end);
        r.path == path && r.operation == operation && r.times > 0 && touches
    })?;
    rule.times -= 1;
    Some(io::Error::from_raw_os_error(rule.errno))
}
