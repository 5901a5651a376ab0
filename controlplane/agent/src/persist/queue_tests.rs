//! Goal: the order and the times of uploads. Method: seals and completions by hand, with a clock of our own.

use super::queue::{Next, Pace, Queue};
use fastcache_api::{ChunkKey, Ino, Version};
use std::time::Duration;
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);

fn key(ino: u64, version: u64) -> ChunkKey {
    ChunkKey {
        ino: Ino(ino),
        index: 0,
        version: Version(version),
    }
}

fn queue() -> (Queue, Instant) {
    let mut queue = Queue::new(Pace {
        quiet: S,
        longest: 30 * S,
    });
    queue.begin_inventory();
    queue.end_inventory();
    (queue, Instant::now())
}

#[test]
fn first_in_first_out_after_a_quiet_second() {
    let (mut q, t) = queue();
    q.add(key(9, 1), 10, t);
    q.add(key(3, 2), 20, t + S / 10);
    assert_eq!(q.next(t, false), Next::At(t + S));
    assert_eq!(q.next(t + 2 * S, false), Next::Take(key(9, 1)));
    assert_eq!(q.next(t + 2 * S, false), Next::Take(key(3, 2)));
    assert_eq!(q.next(t + 2 * S, false), Next::Idle);
    assert_eq!(q.left(None), (2, 30));
    q.done(key(9, 1));
    q.done(key(3, 2));
    assert_eq!(q.left(None), (0, 0));
    assert!(!q.is_left(None, q.mark()));
}

#[test]
fn a_chunk_rewritten_for_ever_is_uploaded_all_the_same() {
    let (mut q, t) = queue();
    let mut now = t;
    let mut version = 0;
    let taken = loop {
        version += 1;
        // Replaced versions may be told as gone first.
        q.gone(key(5, version - 1), now);
        q.add(key(5, version), 10, now);
        if let Next::Take(key) = q.next(now, false) {
            break key;
        }
        now += S / 2;
        assert!(now < t + 31 * S, "starved");
    };
    assert_eq!(taken, key(5, version), "the newest version wins");
    let mark = q.mark();
    q.add(key(5, version + 1), 10, now);
    assert!(q.is_left(None, mark));
    q.done(key(5, version));
    assert!(
        !q.is_left(Some(Ino(5)), mark),
        "what came after the mark is not waited for"
    );
    assert_eq!(q.left(Some(Ino(5))).0, 1);
    assert_eq!(q.oldest(), Some(now));
}

#[test]
fn less_quiet_is_for_what_waits_too_and_more_is_for_all() {
    let (mut q, t) = queue();
    q.add(key(1, 1), 10, t);
    q.add(key(2, 2), 10, t);
    assert_eq!(q.next(t + S, false), Next::Take(key(1, 1)));
    q.add(key(3, 3), 10, t + S);
    q.set_quiet(S / 20);
    assert_eq!(q.next(t + S, false), Next::Take(key(2, 2)));
    assert_eq!(q.next(t + S, false), Next::At(t + S + S / 20));
    q.set_quiet(S);
    assert_eq!(q.next(t + S, false), Next::At(t + 2 * S));
    q.done(key(1, 1));
    q.done(key(2, 2));
    assert_eq!(q.next(t + 2 * S, false), Next::Take(key(3, 3)));
}

#[test]
fn a_file_that_is_being_written_waits_as_a_whole_but_not_for_ever() {
    let (mut q, t) = queue();
    let chunk = |index| ChunkKey { index, ..key(5, 1) };
    let mut now = t;
    for index in 0..299 {
        q.add(chunk(index), 10, now);
        assert!(
            !matches!(q.next(now, false), Next::Take(_)),
            "uploaded beside its writer after {:?}",
            now - t
        );
        now += S / 10;
    }
    assert_eq!(q.next(now, true), Next::Take(chunk(0)), "room is needed");
    q.add(chunk(299), 10, now);
    // Only the oldest have waited for 30 s.
    now = t + 30 * S + S / 10;
    q.add(chunk(300), 10, now);
    assert_eq!(q.next(now, false), Next::Take(chunk(1)));
    assert!(matches!(q.next(now, false), Next::At(_)));
    // Another file does not wait for this one.
    q.add(key(6, 1), 10, now - S);
    assert_eq!(q.next(now, false), Next::Take(key(6, 1)));
    for index in 2..300 {
        let next = q.next(now + S, false);
        assert_eq!(next, Next::Take(chunk(index)), "in order once it is quiet");
    }
}

#[test]
fn a_chunk_whose_next_version_is_being_written_waits_but_not_for_ever() {
    let (mut q, t) = queue();
    q.add(key(5, 1), 10, t);
    let mut now = t + S;
    loop {
        assert_eq!(q.next(now, false), Next::Take(key(5, 1)));
        if !q.is_patient(key(5, 1), now) {
            break;
        }
        // What the data plane answers while somebody writes.
        q.postpone(key(5, 1), now);
        assert_eq!(q.next(now, false), Next::At((now + S).min(t + 30 * S)));
        now += S;
    }
    assert_eq!(now, t + 30 * S);
    assert_eq!(q.failures(key(5, 1)), 0);

    // Nor when somebody waits for it.
    q.add(key(6, 1), 10, now);
    assert_eq!(q.next(now + S, false), Next::Take(key(6, 1)));
    assert!(q.is_patient(key(6, 1), now + S));
    q.hurry(Some(Ino(6)));
    q.postpone(key(6, 1), now + S);
    assert_eq!(q.next(now + S, false), Next::Take(key(6, 1)));
    assert!(!q.is_patient(key(6, 1), now + S));
}

#[test]
fn failures_wait_and_urgency_does_not_override_them() {
    let (mut q, t) = queue();
    q.add(key(2, 1), 10, t);
    q.add(key(3, 1), 10, t);
    assert_eq!(q.next(t, true), Next::Take(key(2, 1)));
    q.failed(key(2, 1), 5 * S, t);
    assert_eq!(q.failures(key(2, 1)), 1);
    assert_eq!(q.next(t, true), Next::Take(key(3, 1)));
    assert_eq!(q.next(t, true), Next::At(t + 5 * S));
    q.forgive();
    assert_eq!(q.next(t, true), Next::Take(key(2, 1)));
    q.failed(key(2, 1), 5 * S, t);
    q.hurry(Some(Ino(2)));
    assert_eq!(q.next(t, false), Next::Take(key(2, 1)));
}

#[test]
fn ages_survive_a_reconnect() {
    let (mut q, t) = queue();
    q.add(key(2, 1), 10, t);
    q.begin_inventory();
    assert!(!q.is_synced());
    q.add(key(2, 1), 10, t + 20 * S);
    q.end_inventory();
    assert_eq!(q.oldest(), Some(t));
    assert_eq!(q.next(t + 30 * S, false), Next::Take(key(2, 1)));
    // Gone while it is being uploaded: nothing is left, and the end of the upload finds nothing.
    q.gone(key(2, 1), t);
    q.failed(key(2, 1), S, t);
    q.done(key(2, 1));
    assert_eq!(q.left(None), (0, 0));
    assert_eq!(q.next(t + 60 * S, true), Next::Idle);
}
