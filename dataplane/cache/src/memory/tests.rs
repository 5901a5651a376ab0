//! Goal: the table of inodes stays within its bound; what somebody uses, or what would be lost, stays. Method: the table
//! alone, with inodes in every state.

use super::*;
use fastcache_api::{Layout, Run, Version};

/// All inodes of these tests are in one stripe.
const STRIPE: usize = 1;

fn ino(n: u64) -> Ino {
    Ino(64 * (n + 1) + STRIPE as u64)
}

/// So many inodes that the kernel knows, and used since the table was looked through.
fn known(count: u64) -> InodeTable {
    let table = InodeTable::default();
    for n in 0..count {
        lock(&table.get_or_insert(ino(n)).state).lookups = 1;
    }
    table
}

fn layout(runs: usize) -> Option<Layout> {
    let run = Run {
        first: 0,
        count: 1,
        version: Version(1),
        valid: 1,
    };
    Some(Layout {
        runs: vec![run; runs],
    })
}

fn trim(table: &InodeTable, want: u64, can_prune: bool) -> Trimmed {
    trim_stripe(table, STRIPE, want, false, can_prune)
}

#[test]
fn what_nobody_references_goes_and_what_was_used_has_a_second_chance() {
    let table = known(10);
    for n in 0..5 {
        lock(&table.get(ino(n)).unwrap().state).lookups = 0;
    }
    assert_eq!(table.bytes(), 10 * INODE_BYTES);
    assert_eq!(trim(&table, u64::MAX, false), Trimmed::default());
    // Used again since then.
    assert!(table.get(ino(0)).is_some());
    assert_eq!(trim(&table, u64::MAX, false).freed_bytes, 4 * INODE_BYTES);
    assert_eq!(table.bytes(), 6 * INODE_BYTES);
    assert!(table.get(ino(1)).is_none() && table.get(ino(0)).is_some());
    // Beyond the bound there is none.
    let urgent = trim_stripe(&table, STRIPE, u64::MAX, true, false);
    assert_eq!(urgent.freed_bytes, INODE_BYTES);
}

#[test]
fn no_more_goes_than_is_wanted() {
    let table = known(10);
    trim(&table, u64::MAX, true);
    let done = trim(&table, 3 * INODE_BYTES, true);
    assert_eq!(done.asked.len(), 3);
    assert_eq!(done.asked_bytes, 3 * INODE_BYTES);
    assert_eq!(table.bytes(), 10 * INODE_BYTES, "until the kernel forgets");
}

#[test]
fn layouts_go_where_the_kernel_cannot_be_asked() {
    let table = known(2);
    lock(&table.get(ino(0)).unwrap().state).layout = layout(1000);
    lock(&table.get(ino(1)).unwrap().state).layout = layout(1);
    table.all();
    let heavy = table.bytes();
    assert!(heavy > 2 * INODE_BYTES + 1000 * size_of::<Run>() as u64);
    trim(&table, u64::MAX, false);
    let done = trim(&table, u64::MAX, false);
    assert_eq!(done.freed_bytes, 1000 * size_of::<Run>() as u64);
    assert_eq!(table.bytes(), heavy - done.freed_bytes);
    let has_layout = |n| lock(&table.get(ino(n)).unwrap().state).layout.is_some();
    assert!(!has_layout(0) && has_layout(1), "one run is not worth it");
}

#[test]
fn a_file_that_was_written_gives_its_queues_back() {
    let table = known(1);
    let inode = table.get(ino(0)).unwrap();
    let mut state = lock(&inode.state);
    state.commits.reserve(4);
    state.layout = layout(1);
    state.layout.iter_mut().for_each(|l| l.runs.reserve(100));
    drop(state);
    table.all();
    let state = lock(&inode.state);
    assert_eq!(state.commits.capacity(), 0);
    assert_eq!(state.heap_bytes(), size_of::<Run>() as u64);
}

#[test]
fn what_is_open_changed_or_in_use_stays() {
    let change: [fn(&mut InodeState); 5] = [
        |s| s.opens = 1,
        |s| s.unsealed.is_dirty = true,
        |s| s.is_sealing = true,
        |s| s.is_committing = true,
        |s| s.commit_error = Some(fastcache_api::Errno::EIO),
    ];
    let table = known(change.len() as u64 + 1);
    for (n, change) in change.iter().enumerate() {
        let inode = table.get(ino(n as u64)).unwrap();
        let mut state = lock(&inode.state);
        change(&mut state);
        state.layout = layout(1000);
    }
    let used = table.get(ino(change.len() as u64)).unwrap();
    for can_prune in [true, false] {
        for _ in 0..2 {
            assert_eq!(trim(&table, u64::MAX, can_prune), Trimmed::default());
        }
    }
    drop(used);
    trim(&table, u64::MAX, true);
    assert_eq!(trim(&table, u64::MAX, true).asked.len(), 1);
}

#[test]
fn a_weight_leaves_the_sum_with_its_owner() {
    let sum = Arc::new(AtomicU64::new(0));
    let (a, b) = (Weight::new(&sum, 10), Weight::new(&sum, 5));
    a.set(3);
    assert_eq!(sum.load(Ordering::Relaxed), 8);
    b.set(100);
    drop(a);
    assert_eq!(sum.load(Ordering::Relaxed), 100);
    drop(b);
    assert_eq!(sum.load(Ordering::Relaxed), 0);
}
