//! Runs models in the interleavings that shuttle finds (feature `race`).

use crate::sim::threads::Disk;
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};
use std::path::Path;
use std::sync::Arc;

/// Bytes of each task's stack: the futures of the file system are deep, the more so without optimisation.
const STACK_BYTES: usize = 256 << 10;
/// Preemptions of a PCT schedule.
const PREEMPTIONS: usize = 3;

/// Tries so many schedules of a model with each of two schedulers; `FASTCACHE_RACE_RUNS` sets another number.
///
/// # Panics
/// When the model does, with the schedule, and when it hangs: a lost wake-up is a deadlock.
pub fn try_schedules(runs: usize, model: impl AsyncFn() + Send + Sync + 'static) {
    let wanted = std::env::var("FASTCACHE_RACE_RUNS");
    let runs = wanted.ok().and_then(|n| n.parse().ok()).unwrap_or(runs);
    let model = Arc::new(model);
    run(RandomScheduler::new(runs), &model);
    // Few preemptions at the worst places, which random schedules rarely hit.
    run(PctScheduler::new(PREEMPTIONS, runs), &model);
}

fn run(scheduler: impl Scheduler + 'static, model: &Arc<impl AsyncFn() + Send + Sync + 'static>) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    // Said once: orderings weaker than SeqCst are tried as SeqCst.
    config.silence_warnings = true;
    let model = Arc::clone(model);
    Runner::new(scheduler, config).run(move || {
        Disk::forget_all();
        block_on(model());
    });
}

/// Whoever opens the disk `path` from now on finds what a power cut would leave now. Who has it open goes on.
pub fn cut_power(path: &Path) {
    Disk::cut_power(path);
}
