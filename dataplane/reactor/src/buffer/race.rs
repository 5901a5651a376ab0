//! Pieces of memory under every interleaving that shuttle finds: each is held by one thread at a time, comes back exactly
//! once, and whoever waits for one gets it. A lost wake-up is a deadlock, which shuttle reports with the schedule.

use super::arena::{Arena, Slot};
use super::*;
use crate::race::try_schedules;
use shuttle::future::block_on;
use shuttle::sync::mpsc;
use shuttle::thread;

/// Schedules tried of each model.
const RUNS: usize = 100_000;

/// Marks a slot as one's own, lets others run, and finds the mark again.
fn use_alone(slot: &mut Slot, who: u8) {
    slot.buf.fill(who);
    thread::yield_now();
    assert!(
        slot.buf.iter().all(|b| *b == who),
        "slot {} has two holders",
        slot.index
    );
}

#[test]
fn a_slot_has_one_holder_and_waiters_get_it() {
    try_schedules(RUNS, async || {
        let arena = Arena::on_heap(2, PAGE);
        let threads: Vec<_> = (1..=3u8)
            .map(|who| {
                let arena = arena.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        let mut slot = block_on(arena.take());
                        use_alone(&mut slot, who);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(arena.free(), 2);
    });
}

#[test]
fn a_lent_slot_comes_back_once() {
    try_schedules(RUNS, async || {
        let arena = Arena::on_heap(1, PAGE);
        let (lent, to_reclaim) = mpsc::channel::<u32>();
        // Two readers of the socket take back what was lent, however often its number comes.
        let reclaimers: Vec<_> = [(); 2]
            .into_iter()
            .scan(Some(to_reclaim), |receiver, ()| Some(receiver.take()))
            .map(|receiver| {
                let arena = arena.clone();
                thread::spawn(move || match receiver {
                    Some(receiver) => {
                        let mut count = 0;
                        while let Ok(index) = receiver.recv() {
                            if let Some(mut slot) = arena.reclaim(index) {
                                use_alone(&mut slot, 9);
                                count += 1;
                            }
                        }
                        count
                    }
                    // A peer that makes numbers up.
                    None => {
                        let mut count = 0;
                        for _ in 0..2 {
                            if let Some(mut slot) = arena.reclaim(0) {
                                use_alone(&mut slot, 8);
                                count += 1;
                            }
                            assert!(arena.reclaim(7).is_none());
                        }
                        count
                    }
                })
            })
            .collect();
        let lender = {
            let arena = arena.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    let mut slot = block_on(arena.take());
                    use_alone(&mut slot, 1);
                    lent.send(slot.lend()).unwrap();
                }
            })
        };
        lender.join().unwrap();
        let count: u32 = reclaimers.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(count, 2, "each lending ends once");
        assert_eq!(arena.free(), 1);
    });
}

#[test]
fn the_last_part_of_a_buffer_frees_it() {
    try_schedules(RUNS, async || {
        let arena = Arena::on_heap(1, 2 * PAGE);
        let mut slot = arena.try_take().unwrap();
        let tail = slot.buf.split_off(PAGE);
        let other = thread::spawn(move || drop(tail));
        let waiter = {
            let arena = arena.clone();
            thread::spawn(move || block_on(arena.take()).index)
        };
        drop(slot);
        other.join().unwrap();
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(arena.free(), 1);
    });
}
