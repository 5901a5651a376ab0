//! Goal: tasks run, wake each other on one core and across cores, wait for time, and end with their core. Method: real
//! rings; every wait is bounded by a timeout of the test's reactor.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use event_listener::Event;
use fastcache_reactor::{
    Config, Elapsed, IoBuf, MAX_IN_FLIGHT, Remote, now, pool, remote, run, sleep, spawn, timeout,
    yield_now,
};

const BOUND: Duration = Duration::from_secs(20);

fn config() -> Config {
    Config {
        cpu: None,
        entries: 64,
        pool_buffers: 2,
        buffer_bytes: 64 << 10,
        wide_entries: false,
    }
}

/// Runs a test on a small core, at most for the bound.
fn reactor<T, F: Future<Output = T>>(test: impl FnOnce() -> F) -> T {
    run(config(), || async {
        timeout(BOUND, test()).await.expect("the test hangs")
    })
    .unwrap()
}

/// A core on a thread of its own, until the guard is dropped.
struct OtherCore {
    remote: Remote,
    stop: Arc<Event>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OtherCore {
    fn start() -> OtherCore {
        let (sender, receiver) = mpsc::channel();
        let stop = Arc::new(Event::new());
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (event, flag) = (stop.clone(), is_stopped.clone());
        let thread = std::thread::spawn(move || {
            run(config(), || async move {
                sender.send(remote()).unwrap();
                while !flag.load(Ordering::SeqCst) {
                    let listener = event.listen();
                    if !flag.load(Ordering::SeqCst) {
                        listener.await;
                    }
                }
            })
            .unwrap();
        });
        OtherCore {
            remote: receiver.recv().unwrap(),
            stop,
            is_stopped,
            thread: Some(thread),
        }
    }
}

impl Drop for OtherCore {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        self.stop.notify(usize::MAX);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn spawned_tasks_return_their_values() {
    let sum = reactor(|| async {
        let tasks: Vec<_> = (0..1000u32).map(|i| spawn(async move { i })).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        sum
    });
    assert_eq!(sum, 499_500);
}

#[test]
fn dropping_a_task_cancels_it_and_detaching_does_not() {
    reactor(|| async {
        let count = Rc::new(Cell::new(0));
        let work = |count: Rc<Cell<u32>>| async move {
            yield_now().await;
            count.set(count.get() + 1);
        };
        drop(spawn(work(count.clone())));
        spawn(work(count.clone())).detach();
        while count.get() < 1 {
            yield_now().await;
        }
        sleep(Duration::from_millis(5)).await;
        assert_eq!(count.get(), 1);
        assert_eq!(Rc::strong_count(&count), 1);
    });
}

#[test]
fn ready_tasks_take_turns() {
    reactor(|| async {
        let log = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|id| {
                let log = log.clone();
                spawn(async move {
                    for _ in 0..3 {
                        log.borrow_mut().push(id);
                        yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(*log.borrow(), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    });
}

#[test]
fn a_busy_core_still_sees_timers_and_completions() {
    reactor(|| async {
        let busy: Vec<_> = (0..200)
            .map(|_| {
                spawn(async {
                    loop {
                        yield_now().await;
                    }
                })
            })
            .collect();
        sleep(Duration::from_millis(10)).await;
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let reader = fastcache_reactor::Fd::from(std::os::fd::OwnedFd::from(reader));
        let receive = spawn(async move { reader.recv(IoBuf::alloc(8)).await.0 });
        sleep(Duration::from_millis(5)).await;
        std::io::Write::write_all(&mut (&writer), b"abc").unwrap();
        assert_eq!(receive.await.unwrap(), 3);
        drop(busy);
    });
}

#[test]
fn sleeps_end_in_order_and_not_early() {
    reactor(|| async {
        let start = now();
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30u64, 10, 20, 10, 0]
            .into_iter()
            .map(|ms| {
                let order = order.clone();
                spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    assert!(start.elapsed() >= Duration::from_millis(ms));
                    order.borrow_mut().push(ms);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
        assert_eq!(
            start + Duration::from_secs(1) - start,
            Duration::from_secs(1)
        );
    });
}

#[test]
fn timeouts_end_what_is_slow_and_let_pass_what_is_fast() {
    reactor(|| async {
        let slow = timeout(Duration::from_millis(5), std::future::pending::<()>());
        assert_eq!(slow.await, Err(Elapsed));
        assert_eq!(timeout(Duration::from_secs(60), async { 7 }).await, Ok(7));
        // Thousands of timers that never fire leave nothing behind.
        for _ in 0..10_000 {
            assert_eq!(timeout(Duration::from_secs(60), yield_now()).await, Ok(()));
        }
    });
}

#[test]
fn cores_wake_each_other() {
    const ROUNDS: usize = 20_000;
    let other = OtherCore::start();
    reactor(|| async {
        let turn = Arc::new(AtomicUsize::new(0));
        let (ping, pong) = (Arc::new(Event::new()), Arc::new(Event::new()));
        let (their_turn, their_ping, their_pong) = (turn.clone(), ping.clone(), pong.clone());
        other.remote.spawn(move || async move {
            for round in 0..ROUNDS {
                wait_for(&their_ping, &their_turn, 2 * round + 1).await;
                their_turn.store(2 * round + 2, Ordering::SeqCst);
                their_pong.notify(1);
            }
        });
        for round in 0..ROUNDS {
            turn.store(2 * round + 1, Ordering::SeqCst);
            ping.notify(1);
            wait_for(&pong, &turn, 2 * round + 2).await;
        }
    });
}

async fn wait_for(event: &Event, turn: &AtomicUsize, value: usize) {
    while turn.load(Ordering::SeqCst) != value {
        let listener = event.listen();
        if turn.load(Ordering::SeqCst) != value {
            listener.await;
        }
    }
}

#[test]
fn a_plain_thread_wakes_the_main_future() {
    reactor(|| async {
        for _ in 0..100 {
            let event = Arc::new(Event::new());
            let listener = event.listen();
            std::thread::spawn(move || event.notify(1));
            listener.await;
        }
    });
}

#[test]
fn remote_spawn_runs_on_the_other_core() {
    let other = OtherCore::start();
    let (sender, receiver) = mpsc::channel();
    for i in 0..100 {
        let sender = sender.clone();
        other.remote.spawn(move || {
            // Not Send: made and used over there.
            let local = Rc::new(i);
            async move {
                yield_now().await;
                sender
                    .send((*local, remote().core(), std::thread::current().id()))
                    .unwrap();
            }
        });
    }
    let thread = other.thread.as_ref().unwrap().thread().id();
    let mut seen: Vec<i32> = (0..100)
        .map(|_| {
            let (i, core, id) = receiver.recv_timeout(BOUND).unwrap();
            assert_eq!((core, id), (other.remote.core(), thread));
            i
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_core_drops_its_tasks_when_it_ends() {
    let held = Arc::new(());
    let (theirs, event) = (held.clone(), Arc::new(Event::new()));
    let waker = event.clone();
    let handle = reactor(|| async move {
        for _ in 0..10 {
            let (held, event) = (theirs.clone(), event.clone());
            spawn(async move {
                let _held = held;
                let _buf = pool().try_get();
                event.listen().await;
            })
            .detach();
        }
        spawn(async move {
            let _held = theirs;
            sleep(Duration::from_secs(3600)).await;
        })
        .detach();
        yield_now().await;
        sleep(Duration::from_millis(1)).await;
        remote()
    });
    assert_eq!(Arc::strong_count(&held), 1);
    // Neither a late wake nor a late spawn does harm.
    waker.notify(usize::MAX);
    handle.spawn(|| async { panic!("runs on a core that has ended") });
}

#[test]
fn a_panic_of_a_task_ends_the_core_and_the_thread_can_run_another() {
    let result = std::panic::catch_unwind(|| {
        reactor(|| async {
            spawn(async { panic!("on purpose") }).detach();
            std::future::pending::<()>().await;
        })
    });
    assert_eq!(
        *result.unwrap_err().downcast::<&str>().unwrap(),
        "on purpose"
    );
    assert_eq!(reactor(|| async { 5 }), 5);
}

#[test]
fn outside_of_a_reactor_the_panic_says_so() {
    let panic = std::panic::catch_unwind(|| drop(spawn(async {}))).unwrap_err();
    assert!(
        panic
            .downcast::<&str>()
            .unwrap()
            .contains("outside of a reactor thread")
    );
}

#[test]
fn a_core_inside_of_a_core_is_refused() {
    let result = std::panic::catch_unwind(|| reactor(|| async { run(config(), || async {}) }));
    assert!(result.is_err());
}

#[test]
fn pinning_to_a_missing_cpu_is_an_error() {
    let config = Config {
        cpu: Some(100_000),
        ..config()
    };
    assert!(run(config, || async {}).is_err());
}

#[test]
fn an_exhausted_pool_serves_waiters_when_other_threads_return_buffers() {
    reactor(|| async {
        let pool = pool();
        assert_eq!((pool.free(), pool.buffers()), (2, 2));
        let a = pool.get().await;
        let b = pool.get().await;
        assert!(pool.try_get().is_none());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                spawn(async move {
                    let buf = pool.get().await;
                    assert!(buf.is_aligned());
                    sleep(Duration::from_millis(1)).await;
                    buf.len()
                })
            })
            .collect();
        sleep(Duration::from_millis(5)).await;
        assert!(waiters.iter().all(|task| !task.is_finished()));
        std::thread::spawn(move || drop((a, b)));
        for waiter in waiters {
            assert_eq!(waiter.await, 64 << 10);
        }
        assert_eq!(pool.free(), 2);
    });
}

#[test]
fn operations_beyond_the_limit_wait() {
    reactor(|| async {
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let fd = fastcache_reactor::Fd::from(eventfd);
        let tasks: Vec<_> = (0..MAX_IN_FLIGHT + 1000)
            .map(|_| {
                let fd = fd.clone();
                spawn(async move { fd.readable().await })
            })
            .collect();
        sleep(Duration::from_millis(50)).await;
        assert!(tasks.iter().all(|task| !task.is_finished()));
        rustix::io::write(fd.as_fd(), &1u64.to_ne_bytes()).unwrap();
        for task in tasks {
            task.await.unwrap();
        }
    });
}
