//! The loop of a core and its tasks.
//!
//! A turn: take what other threads sent, run a bounded batch of tasks, fire timers, give the ring everything that was
//! queued meanwhile with one system call (waiting in it only if there is nothing to run), harvest completions.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use async_task::Runnable;
pub use async_task::Task;
use crossbeam_queue::SegQueue;
use event_listener::Event;
use rustix::event::EventfdFlags;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::buffer::BufPool;
use crate::remote::{MainWaker, Message, Remote, Shared};
use crate::ring::{Driver, Harvest};
use crate::slab::{Key, Slab};
use crate::time::{Instant, Timers, system_now};
use crate::watch::{Pulse, Step};

/// Most tasks polled before completions are looked at again: a completion waits for at most so many polls.
const TASKS_PER_TURN: usize = 64;

/// Most messages of other threads taken in one turn.
const MESSAGES_PER_TURN: usize = 256;

/// Most rounds of dropping tasks when a core ends; a task whose drop starts another one takes a round.
const SHUTDOWN_ROUNDS: usize = 64;

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// CPU to pin the thread to.
    pub cpu: Option<usize>,
    /// Entries of the submission queue.
    pub entries: u32,
    /// Number of registered buffers.
    pub pool_buffers: usize,
    /// Bytes of each registered buffer.
    pub buffer_bytes: usize,
    /// Submission entries of 128 bytes, for [`Fd::command`](crate::Fd::command).
    pub wide_entries: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cpu: None,
            entries: 512,
            pool_buffers: 16,
            buffer_bytes: 1 << 20,
            wide_entries: false,
        }
    }
}

/// One reactor thread.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    ready: RefCell<VecDeque<Runnable>>,
    pub(crate) driver: RefCell<Driver>,
    /// Notified when an operation leaves the table and somebody waits for that.
    pub(crate) room: Event,
    /// Number of those who wait for room.
    pub(crate) waiting: Cell<usize>,
    pub(crate) timers: RefCell<Timers>,
    /// A waker of every living task, to end them with the core.
    tasks: RefCell<Slab<Option<Waker>>>,
    scratch: RefCell<Harvest>,
    pool: BufPool,
    /// What it has instead of the operating system, when it is simulated.
    #[cfg(feature = "sim")]
    pub(crate) world: Option<crate::sim::world::World>,
}

thread_local! {
    /// The core of this thread, between the start and the end of `run`.
    static CORE: Cell<*const Core> = const { Cell::new(std::ptr::null()) };
}

/// Calls `f` with this thread's core, if it has one.
pub(crate) fn try_with_core<T>(f: impl FnOnce(&Core) -> T) -> Option<T> {
    // The thread-local has no destructor, so it can be read at any time.
    let core = CORE.get();
    // SAFETY: `run` sets the pointer to a core it owns and clears it before that is dropped; the reference does not
    // leave this call.
    unsafe { core.as_ref() }.map(f)
}

/// Calls `f` with this thread's core.
///
/// # Panics
/// Outside of a reactor thread.
pub(crate) fn with_core<T>(f: impl FnOnce(&Core) -> T) -> T {
    match try_with_core(f) {
        Some(value) => value,
        None => panic!(
            "fastcache-reactor: called outside of a reactor thread (only code that runs inside `run` can do this)"
        ),
    }
}

/// Turns this thread into a reactor until the future that `main` makes is done. Then all tasks are dropped and all
/// operations cancelled or awaited, for a bounded time.
///
/// # Errors
/// If io_uring or the buffers cannot be set up, or if the ring fails.
///
/// # Panics
/// If the thread is a reactor already. A panic of a task ends the core and goes on in the caller.
pub fn run<T, F: Future<Output = T>>(config: Config, main: impl FnOnce() -> F) -> io::Result<T> {
    run_core(|| Core::new(&config), main)
}

/// The same in a simulated world, if one is given.
#[cfg(feature = "sim")]
pub(crate) fn run_in<T, F: Future<Output = T>>(
    config: Config,
    world: Option<crate::sim::world::World>,
    main: impl FnOnce() -> F,
) -> io::Result<T> {
    let make = || {
        let mut core = Core::new(&config)?;
        core.world = world;
        Ok(core)
    };
    run_core(make, main)
}

fn run_core<T, F: Future<Output = T>>(
    make: impl FnOnce() -> io::Result<Core>,
    main: impl FnOnce() -> F,
) -> io::Result<T> {
    assert!(
        CORE.get().is_null(),
        "fastcache-reactor: run inside of a reactor thread"
    );
    let core = make()?;
    let running = Running::start(&core);
    let result = core.run_main(pin!(main()));
    drop(running);
    result
}

/// Makes a core the thread's own for as long as it lives, and ends its tasks afterwards, on panic too.
struct Running<'a>(&'a Core);

impl<'a> Running<'a> {
    fn start(core: &'a Core) -> Self {
        CORE.set(core);
        Running(core)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.end_tasks();
        CORE.set(std::ptr::null());
    }
}

impl Core {
    fn new(config: &Config) -> io::Result<Core> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        static NEXT_CORE: AtomicUsize = AtomicUsize::new(0);
        if let Some(cpu) = config.cpu {
            if cpu >= CpuSet::MAX_CPU {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("no CPU {cpu}"),
                ));
            }
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set).map_err(|error| {
                io::Error::new(error.kind(), format!("pin to CPU {cpu}: {error}"))
            })?;
        }
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            queue: SegQueue::new(),
            sleeping: AtomicBool::new(false),
            main_woken: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            eventfd,
            id,
            core: config
                .cpu
                .unwrap_or_else(|| NEXT_CORE.fetch_add(1, Ordering::Relaxed)),
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            pulse: Pulse::default(),
        });
        let pool = BufPool::new(config.pool_buffers, config.buffer_bytes)?;
        let driver = Driver::new(
            config.entries,
            config.wide_entries,
            shared.eventfd.as_raw_fd(),
            id,
        )?;
        driver.register_pool(pool.region());
        Ok(Core {
            shared,
            ready: RefCell::default(),
            driver: RefCell::new(driver),
            room: Event::new(),
            waiting: Cell::new(0),
            timers: RefCell::default(),
            tasks: RefCell::new(Slab::with_capacity(0)),
            scratch: RefCell::default(),
            pool,
            #[cfg(feature = "sim")]
            world: None,
        })
    }

    /// The time on this core's clock.
    pub(crate) fn now(&self) -> Instant {
        #[cfg(feature = "sim")]
        if let Some(world) = &self.world {
            return world.now();
        }
        system_now()
    }

    pub(crate) fn push_ready(&self, runnable: Runnable) {
        self.ready.borrow_mut().push_back(runnable);
    }

    fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let key = self.tasks.borrow_mut().insert(None);
        let tracked = Tracked {
            future,
            _entry: Registered {
                key,
                core_id: self.shared.id,
            },
        };
        let shared = self.shared.clone();
        let (runnable, task) =
            async_task::spawn_local(tracked, move |runnable| shared.schedule(runnable));
        if let Some(place) = self.tasks.borrow_mut().get_mut(key) {
            *place = Some(runnable.waker());
        }
        runnable.schedule();
        task
    }

    fn run_main<T>(&self, mut main: Pin<&mut impl Future<Output = T>>) -> io::Result<T> {
        let waker = Waker::from(Arc::new(MainWaker(self.shared.clone())));
        let mut cx = Context::from_waker(&waker);
        loop {
            if self.shared.main_woken.swap(false, Ordering::AcqRel) {
                self.shared.pulse.begin(Step::Main);
                if let Poll::Ready(output) = main.as_mut().poll(&mut cx) {
                    return Ok(output);
                }
            }
            self.turn()?;
        }
    }

    /// A turn in a simulated world: any of the ready tasks, or else the next moment at which one is.
    #[cfg(feature = "sim")]
    fn simulated_turn(&self, world: &crate::sim::world::World) {
        self.take_messages();
        let ready = self.ready.borrow().len() as u64;
        let picked = usize::try_from(world.random(ready)).unwrap_or(0);
        let runnable = self.ready.borrow_mut().swap_remove_back(picked);
        if let Some(runnable) = runnable {
            runnable.run();
            world.step();
        } else if !self.shared.main_woken.load(Ordering::Relaxed) {
            let next = self.timers.borrow().next();
            match next {
                Some(then) => world.wait_until(then),
                None => panic!("all tasks of a simulated world wait, and nothing will happen"),
            }
        }
        self.fire_timers();
    }

    fn turn(&self) -> io::Result<()> {
        #[cfg(feature = "sim")]
        if let Some(world) = &self.world {
            self.simulated_turn(world);
            return Ok(());
        }
        let pulse = &self.shared.pulse;
        pulse.begin(Step::Messages);
        self.take_messages();
        for _ in 0..TASKS_PER_TURN {
            let Some(runnable) = self.ready.borrow_mut().pop_front() else {
                break;
            };
            pulse.begin(Step::Task);
            runnable.run();
            pulse.begin(Step::Ring);
            self.driver.borrow_mut().submit_batch()?;
        }
        self.fire_timers();
        let is_idle = self.ready.borrow().is_empty() && self.shared.prepare_sleep();
        if is_idle {
            let limit = self
                .timers
                .borrow()
                .next()
                .map(|at| at.duration_since(system_now()));
            pulse.begin(Step::Asleep);
            let result = self.driver.borrow_mut().submit_and_wait(limit);
            pulse.begin(Step::Ring);
            self.shared.sleeping.store(false, Ordering::Relaxed);
            result?;
        } else {
            pulse.begin(Step::Ring);
            self.driver.borrow_mut().submit()?;
        }
        self.harvest();
        Ok(())
    }

    fn take_messages(&self) {
        for _ in 0..MESSAGES_PER_TURN {
            match self.shared.queue.pop() {
                None => break,
                Some(Message::Run(runnable)) => self.push_ready(runnable),
                Some(Message::Spawn(spawn)) => spawn(),
            }
        }
    }

    fn fire_timers(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let mut scratch = self.scratch.take();
        self.timers
            .borrow_mut()
            .expire(self.now(), &mut scratch.wakers);
        scratch.wake();
        self.scratch.replace(scratch);
    }

    fn harvest(&self) {
        let mut scratch = self.scratch.take();
        self.driver.borrow_mut().harvest(&mut scratch);
        let freed = scratch.clean_up();
        if freed > 0 && self.waiting.get() > 0 {
            self.room
                .notify(event_listener::IntoNotification::additional(freed));
        }
        scratch.wake();
        self.scratch.replace(scratch);
    }

    /// Drops all tasks, so that their operations are abandoned, their buffers and handles released.
    fn end_tasks(&self) {
        for round in 0..SHUTDOWN_ROUNDS {
            let wakers: Vec<Waker> = self
                .tasks
                .borrow_mut()
                .iter_mut()
                .filter_map(Option::take)
                .collect();
            if round + 1 == SHUTDOWN_ROUNDS {
                self.shared.closed.store(true, Ordering::Release);
            }
            let mut is_done = wakers.is_empty();
            for waker in wakers {
                waker.wake();
            }
            loop {
                let runnable = self.ready.borrow_mut().pop_front();
                let Some(runnable) = runnable else { break };
                is_done = false;
                drop(runnable);
            }
            while let Some(message) = self.shared.queue.pop() {
                is_done = false;
                drop(message);
            }
            if is_done {
                // A task that is woken by another thread from here on is left to that thread, which leaks it.
                if self.shared.closed.swap(true, Ordering::AcqRel) {
                    break;
                }
            }
        }
        // Timers and wakers of foreign futures.
        let timers = self.timers.take();
        drop(timers);
    }
}

/// A task's future together with its place in the registry of tasks.
struct Tracked<F> {
    future: F,
    _entry: Registered,
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is only ever used pinned, and Tracked has no Drop of its own and moves nothing out of it.
        unsafe { self.map_unchecked_mut(|this| &mut this.future) }.poll(cx)
    }
}

struct Registered {
    key: Key,
    core_id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let waker = try_with_core(|core| {
            if core.shared.id == self.core_id {
                core.tasks.borrow_mut().remove(self.key).flatten()
            } else {
                None
            }
        });
        drop(waker);
    }
}

/// Runs a future on this core. The task ends when its handle is dropped, unless that was detached. A panic in it ends
/// the core.
///
/// # Panics
/// Outside of a reactor thread.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    with_core(|core| core.spawn(future))
}

/// Handle of this core, for other threads.
///
/// # Panics
/// Outside of a reactor thread.
pub fn remote() -> Remote {
    with_core(|core| Remote {
        shared: core.shared.clone(),
    })
}

/// This core's registered buffers.
///
/// # Panics
/// Outside of a reactor thread.
pub fn pool() -> BufPool {
    with_core(|core| core.pool.clone())
}

/// Lets the other ready tasks of the core run first.
pub async fn yield_now() {
    let mut has_yielded = false;
    std::future::poll_fn(|cx| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
