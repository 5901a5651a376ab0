//! A program on a mount as a process of its own; see `fastcache_tests::program`.

use fastcache_tests::program::{Program, Task};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(task) = Task::parse(&args) else {
        eprintln!("usage: fastcache-program MOUNT OUTSIDE NODE PROGRAM FOLDER SEED");
        return ExitCode::from(2);
    };
    let noted = Program::new(task).run(std::io::stdin());
    match serde_json::to_writer(std::io::stdout().lock(), &noted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
