//! Goal: a core that does not go on is named, with what it does; one that sleeps or works is not. Method: real cores whose
//! tasks really block or spin, a clock that the test sets, and bounded waits for what other threads do.

use super::*;
use crate::{Config, remote, run, sleep, spawn};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(250);
/// How long other threads may take.
const BOUND: Duration = Duration::from_secs(20);

/// A core on a thread of its own, until the sender is dropped.
struct Other {
    remote: Remote,
    stop: Option<futures_channel::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Other {
    fn start() -> Other {
        let (say, hear) = mpsc::channel();
        let (stop, stopped) = futures_channel::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let config = Config {
                entries: 32,
                pool_buffers: 1,
                buffer_bytes: 4096,
                ..Config::default()
            };
            run(config, || async move {
                say.send(remote()).unwrap();
                let _ = stopped.await;
            })
            .unwrap();
        });
        Other {
            remote: hear.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn beat(&self) -> u64 {
        self.remote.shared.pulse.beat.load(Ordering::Relaxed)
    }

    fn step(&self) -> Step {
        Pulse::step(self.beat())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.stop.take();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn watch(core: &Other) -> Watch {
    Watch::new(std::slice::from_ref(&core.remote), LIMIT, EVERY)
}

/// Looks at these times after `from`, milliseconds.
fn looks(watch: &mut Watch, from: Instant, at_ms: &[u64]) -> Vec<Event> {
    let at = at_ms.iter().map(|ms| from + Duration::from_millis(*ms));
    at.flat_map(|at| watch.look_at(at)).collect()
}

#[test]
fn a_task_that_blocks_its_thread_is_named_and_its_end_is_seen() {
    let core = Other::start();
    let (go_on, blocked) = mpsc::channel::<()>();
    let (say, hear) = mpsc::channel();
    core.remote.spawn(move || {
        labelled(77, async move {
            say.send(()).unwrap();
            blocked.recv().unwrap();
        })
    });
    hear.recv_timeout(BOUND).unwrap();
    let in_a_system_call = || ThreadState::of(core.remote.shared.thread).letter == 'S';
    until("the thread waits", in_a_system_call);

    let mut watch = watch(&core);
    let t0 = system_now();
    assert_eq!(looks(&mut watch, t0, &[0, 250, 500, 750, 999]), []);
    let events = looks(&mut watch, t0, &[1000, 1250, 1500]);
    let [Event::Began(stuck)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!((stuck.at, stuck.since), (0, t0));
    assert_eq!((stuck.step, stuck.label), (Step::Task, 77));
    assert_eq!(stuck.thread.letter, 'S');
    assert_eq!(watch.stuck().count(), 1);

    go_on.send(()).unwrap();
    let beat = stuck_beat(&watch);
    until("the core goes on", || core.beat() != beat);
    let events = looks(&mut watch, t0, &[1750]);
    let after = Duration::from_millis(1750);
    assert_eq!(events, [Event::Ended { at: 0, after }]);
    assert_eq!(watch.stuck().count(), 0);
}

fn stuck_beat(watch: &Watch) -> u64 {
    watch.cores[0].beat
}

#[test]
fn a_task_that_spins_is_named() {
    let core = Other::start();
    let is_over = Arc::new(AtomicBool::new(false));
    let theirs = is_over.clone();
    let (say, hear) = mpsc::channel();
    core.remote.spawn(move || async move {
        say.send(()).unwrap();
        while !theirs.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    hear.recv_timeout(BOUND).unwrap();
    let mut watch = watch(&core);
    let t0 = system_now();
    let events = looks(&mut watch, t0, &[0, 500, 1000]);
    is_over.store(true, Ordering::Relaxed);
    let [Event::Began(stuck)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!((stuck.step, stuck.label), (Step::Task, 0));
    assert_eq!(stuck.thread.letter, 'R');
}

#[test]
fn a_core_that_sleeps_is_woken_and_is_well() {
    let core = Other::start();
    until("it sleeps", || core.step() == Step::Asleep);
    let mut watch = watch(&core);
    let t0 = system_now();
    let beat = core.beat();
    assert_eq!(looks(&mut watch, t0, &[0, 500]), []);
    assert_eq!(core.beat(), beat, "it was woken too early");
    assert_eq!(looks(&mut watch, t0, &[1000]), []);
    until("it woke and sleeps again", || {
        core.beat() != beat && core.step() == Step::Asleep
    });
    assert_eq!(looks(&mut watch, t0, &[1250, 1500, 2000]), []);
}

#[test]
fn a_core_that_sleeps_and_does_not_wake_is_stuck_in_the_ring() {
    let core = Other::start();
    until("it sleeps", || core.step() == Step::Asleep);
    let mut watch = watch(&core);
    let t0 = system_now();
    assert_eq!(looks(&mut watch, t0, &[0]), []);
    // As if somebody had woken it already and it did not come: nobody writes the eventfd.
    core.remote.shared.sleeping.store(false, Ordering::Relaxed);
    let events = looks(&mut watch, t0, &[1000, 1500, 2000]);
    let [Event::Began(stuck)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(stuck.step, Step::Asleep);
    assert_eq!(stuck.since, t0 + LIMIT);
    // So that it ends.
    core.remote.shared.sleeping.store(true, Ordering::Relaxed);
}

#[test]
fn a_core_with_much_to_do_is_well() {
    let core = Other::start();
    core.remote.spawn(|| async {
        for _ in 0..4 {
            spawn(async {
                loop {
                    crate::yield_now().await;
                }
            })
            .detach();
        }
        sleep(Duration::from_secs(3600)).await;
    });
    let mut watch = watch(&core);
    let t0 = system_now();
    for n in 0..20 {
        let beat = core.beat();
        until("it works", || core.beat() != beat);
        assert_eq!(looks(&mut watch, t0, &[n * 250]), []);
    }
}

#[test]
fn a_machine_that_stood_still_is_no_stuck_core() {
    let core = Other::start();
    let (go_on, blocked) = mpsc::channel::<()>();
    let (say, hear) = mpsc::channel();
    core.remote.spawn(move || async move {
        say.send(()).unwrap();
        let _ = blocked.recv();
    });
    hear.recv_timeout(BOUND).unwrap();
    let mut watch = watch(&core);
    let t0 = system_now();
    assert_eq!(looks(&mut watch, t0, &[0, 250]), []);
    // An hour without a look; then it counts anew.
    let late = 3_600_000;
    assert_eq!(looks(&mut watch, t0, &[late, late + 500]), []);
    assert_eq!(looks(&mut watch, t0, &[late + 1000]).len(), 1);
    drop(go_on);
}

#[test]
fn a_label_lasts_as_long_as_its_poll() {
    let core = Other::start();
    let (say, hear) = mpsc::channel();
    core.remote.spawn(move || async move {
        let label = || try_with_core(|core| core.shared.pulse.label.load(Ordering::Relaxed));
        let mut seen = vec![label()];
        let inner = labelled(2, async move {
            let before = label();
            crate::yield_now().await;
            (before, label())
        });
        let outer = labelled(1, async move {
            let before = label();
            let inner = inner.await;
            (before, inner, label())
        });
        let (before, inner, after) = outer.await;
        seen.extend([before, inner.0, inner.1, after, label()]);
        say.send(seen).unwrap();
    });
    let seen: Vec<u32> = hear
        .recv_timeout(BOUND)
        .unwrap()
        .into_iter()
        .map(Option::unwrap)
        .collect();
    assert_eq!(seen, [0, 1, 2, 2, 1, 0]);
}
