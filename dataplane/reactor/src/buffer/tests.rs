//! Goal: ranges of a backing stay disjoint, come back exactly once, and join only with their neighbours. Method: the
//! public API without system calls (Miri follows it), and random splits and joins against a model of positions.

use proptest::prelude::*;

use super::*;

fn pool(buffers: usize, bytes: usize) -> BufPool {
    BufPool::new(buffers, bytes).unwrap()
}

#[test]
fn alloc_is_zeroed_and_aligned() {
    for len in [0, 1, 4095, 4096, 10_000] {
        let buf = IoBuf::alloc(len);
        assert_eq!(buf.len(), len);
        assert!(buf.is_aligned());
        assert!(buf.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn split_and_unsplit_restore_the_buffer() {
    let mut buf = IoBuf::alloc(10);
    buf.copy_from_slice(b"0123456789");
    let head = buf.split_to(3);
    let tail = buf.split_off(4);
    assert_eq!(
        (&head[..], &buf[..], &tail[..]),
        (&b"012"[..], &b"3456"[..], &b"789"[..])
    );
    assert!(head.is_aligned() && !tail.is_aligned());

    // Not neighbours, or the wrong way round: the other one comes back.
    let mut head = head;
    let tail = head.unsplit(tail).unwrap_err();
    let head = buf.unsplit(head).unwrap_err();

    let mut head = head;
    head.unsplit(buf).unwrap();
    head.unsplit(tail).unwrap();
    assert_eq!(&head[..], b"0123456789");
}

#[test]
#[should_panic(expected = "split_to(5) of a buffer of 4 bytes")]
fn split_beyond_the_end_panics() {
    IoBuf::alloc(4).split_to(5);
}

#[test]
fn neighbours_of_a_pool_do_not_join() {
    let pool = pool(2, PAGE);
    let a = pool.try_get().unwrap();
    let b = pool.try_get().unwrap();
    let (mut first, second) = if a.start() < b.start() {
        (a, b)
    } else {
        (b, a)
    };
    assert_eq!(first.as_ptr_range().end, second.as_ptr());
    assert!(first.unsplit(second).is_err());
}

#[test]
fn a_pool_buffer_returns_with_its_last_piece() {
    let pool = pool(1, 3 * PAGE);
    let mut buf = pool.try_get().unwrap();
    assert_eq!(buf.len(), 3 * PAGE);
    assert!(buf.is_aligned());
    assert!(pool.try_get().is_none());
    let head = buf.split_to(PAGE);
    let tail = buf.split_off(PAGE);
    drop(buf);
    drop(head);
    assert_eq!(pool.free(), 0);
    std::thread::spawn(move || drop(tail)).join().unwrap();
    assert_eq!(pool.free(), 1);
    assert_eq!(pool.try_get().unwrap().len(), 3 * PAGE);
}

#[test]
fn buffers_outlive_their_pool() {
    let pool = pool(2, PAGE);
    let mut buf = pool.try_get().unwrap();
    drop(pool);
    buf.fill(7);
    assert!(buf.iter().all(|byte| *byte == 7));
}

#[test]
fn odd_buffer_sizes_are_aligned() {
    let pool = pool(3, PAGE + 1);
    let all: Vec<IoBuf> = std::iter::from_fn(|| pool.try_get()).collect();
    assert_eq!(all.len(), 3);
    assert!(
        all.iter()
            .all(|buf| buf.is_aligned() && buf.len() == PAGE + 1)
    );
}

#[test]
fn a_lent_slot_comes_back_once() {
    let arena = Arena::on_heap(2, PAGE);
    let mut slot = arena.try_take().unwrap();
    slot.buf[0] = 42;
    let index = slot.lend();
    assert_eq!(arena.free(), 1);
    let other = arena.try_take().unwrap();
    assert!(arena.try_take().is_none());
    assert!(arena.reclaim(other.index).is_none(), "held, not lent");
    assert!(arena.reclaim(99).is_none(), "out of range");
    let slot = arena.reclaim(index).unwrap();
    assert_eq!((slot.index, slot.buf[0]), (index, 42));
    assert!(arena.reclaim(index).is_none(), "taken back already");
    drop(slot);
    assert!(arena.reclaim(index).is_none(), "free");
    assert_eq!(arena.free(), 1);
    drop(other);
    assert_eq!(arena.free(), 2);
}

#[test]
fn a_lent_slot_is_not_reclaimed_while_a_part_is_held() {
    let arena = Arena::on_heap(1, 2 * PAGE);
    let mut slot = arena.try_take().unwrap();
    let part = slot.buf.split_off(PAGE);
    let index = slot.lend();
    assert!(arena.reclaim(index).is_none());
    drop(part);
    assert_eq!(arena.free(), 0, "lent, not free");
    assert_eq!(arena.reclaim(index).unwrap().buf.len(), 2 * PAGE);
    assert_eq!(arena.free(), 1);
}

#[test]
#[should_panic(expected = "with the buffer of another")]
fn lending_an_exchanged_buffer_panics() {
    let arena = Arena::on_heap(2, PAGE);
    let mut a = arena.try_take().unwrap();
    let mut b = arena.try_take().unwrap();
    std::mem::swap(&mut a.buf, &mut b.buf);
    a.lend();
}

#[test]
fn pieces_move_between_threads() {
    let rounds = if cfg!(miri) { 20 } else { 2_000 };
    let pool = pool(4, PAGE);
    std::thread::scope(|scope| {
        for id in 0..3u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                for _ in 0..rounds {
                    let Some(mut buf) = pool.try_get() else {
                        std::thread::yield_now();
                        continue;
                    };
                    buf.fill(id);
                    let tail = buf.split_off(100);
                    assert!(buf.iter().chain(tail.iter()).all(|byte| *byte == id));
                }
            });
        }
    });
    assert_eq!(pool.free(), 4);
}

/// A step of the property test; numbers are taken modulo what exists.
#[derive(Clone, Debug)]
enum Step {
    SplitTo(usize, usize),
    SplitOff(usize, usize),
    Unsplit(usize, usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0usize..1000;
    prop_oneof![
        3 => (n.clone(), n.clone()).prop_map(|(which, at)| Step::SplitTo(which, at)),
        3 => (n.clone(), n.clone()).prop_map(|(which, at)| Step::SplitOff(which, at)),
        4 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::Unsplit(a, b)),
        1 => n.prop_map(Step::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The model of a buffer is its range of positions; the bytes say where they were at the start.
    #[test]
    fn splits_and_joins_keep_every_byte_in_one_place(
        steps in prop::collection::vec(step(), 0..60),
        is_pooled: bool,
    ) {
        let pool = pool(1, 250);
        let mut whole = if is_pooled { pool.try_get().unwrap() } else { IoBuf::alloc(250) };
        for (position, byte) in whole.iter_mut().enumerate() {
            *byte = position as u8;
        }
        let mut parts = vec![(0..250usize, whole)];
        for step in steps {
            if parts.is_empty() {
                break;
            }
            let count = parts.len();
            match step {
                Step::SplitTo(which, at) => {
                    let (range, buf) = &mut parts[which % count];
                    let at = at % (range.len() + 1);
                    let head = (range.start..range.start + at, buf.split_to(at));
                    range.start += at;
                    parts.push(head);
                }
                Step::SplitOff(which, at) => {
                    let (range, buf) = &mut parts[which % count];
                    let at = at % (range.len() + 1);
                    let tail = (range.start + at..range.end, buf.split_off(at));
                    range.end = range.start + at;
                    parts.push(tail);
                }
                Step::Unsplit(a, b) if count > 1 => {
                    let (other_range, other) = parts.swap_remove(b % count);
                    let which = a % (count - 1);
                    let (range, buf) = &mut parts[which];
                    let are_adjacent = range.end == other_range.start;
                    match buf.unsplit(other) {
                        Ok(()) => {
                            prop_assert!(are_adjacent);
                            range.end = other_range.end;
                        }
                        Err(other) => {
                            prop_assert!(!are_adjacent);
                            parts.push((other_range, other));
                        }
                    }
                }
                Step::Unsplit(..) => {}
                Step::Drop(which) => drop(parts.swap_remove(which % count)),
            }
            for (range, buf) in &parts {
                prop_assert_eq!(buf.len(), range.len());
                prop_assert!(buf.iter().enumerate().all(|(i, b)| *b == (range.start + i) as u8));
            }
        }
        let is_held = is_pooled && !parts.is_empty();
        prop_assert_eq!(pool.free(), usize::from(!is_held));
        drop(parts);
        prop_assert_eq!(pool.free(), 1);
    }
}
