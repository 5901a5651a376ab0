//! A worker of the load test as a process of its own; see `fastcache_tests::load`.
//!
//! ```text
//! fastcache-load SEED WORKER WORKERS OPERATIONS MOUNT MODEL
//! ```

use fastcache_tests::load::Task;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [seed, worker, workers, ops, mount, model] = args.as_slice() else {
        eprintln!("usage: fastcache-load SEED WORKER WORKERS OPERATIONS MOUNT MODEL");
        return ExitCode::from(2);
    };
    let numbers: Result<Vec<u64>, _> = [seed, worker, workers, ops]
        .into_iter()
        .map(|n| n.parse())
        .collect();
    let Ok([seed, worker, workers, ops]) =
        numbers.map(|n| <[u64; 4]>::try_from(n).unwrap_or([0; 4]))
    else {
        eprintln!("SEED, WORKER, WORKERS and OPERATIONS are numbers");
        return ExitCode::from(2);
    };
    let task = Task {
        seed,
        worker,
        workers,
        ops,
        mount: mount.into(),
        model: model.into(),
    };
    match task.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(story) => {
            eprintln!("{story}");
            ExitCode::FAILURE
        }
    }
}
