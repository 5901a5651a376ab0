//! Two executors, one world. The data planes run on a core of a simulated world, with its clock; the coordinator and the agents
//! on tokio with its clock paused, on the same thread: a task of the core has tokio do what it can, once in each millisecond of
//! the core's clock, and then go on by one millisecond itself.

use fastcache_reactor::{now, sim, sleep, spawn};
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};

/// By what tokio's clock goes on at a time: the least it tells apart.
const TICK: Duration = Duration::from_millis(1);

/// Runs a future on the core of the world that grows from `seed`, to its end. It gets the tokio runtime beside it.
///
/// # Panics
/// When anything in the world does; the seed is printed then.
pub fn run<T, F: Future<Output = T>>(seed: u64, main: impl FnOnce(Handle) -> F) -> T {
    sim::run(seed, || async {
        let built = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            // What another thread woke (the log is put on stable storage by one) has its turn when nothing else has: the clock
            // waits for that thread, so that this is one order. By default it is whichever task is the 31st.
            .global_queue_interval(u32::MAX)
            .build();
        let runtime = match built {
            Ok(runtime) => Rc::new(runtime),
            Err(error) => panic!("no runtime: {error}"),
        };
        let handle = runtime.handle().clone();
        spawn(go_on(Rc::clone(&runtime))).detach();
        main(handle).await
    })
}

/// Has both clocks go on together, for ever.
async fn go_on(runtime: Rc<Runtime>) {
    let mut next = now();
    loop {
        next += TICK;
        sleep(next.duration_since(now())).await;
        // Auto-advance: the clock goes on when every task waits.
        runtime.block_on(async { tokio::time::sleep(TICK).await });
    }
}
