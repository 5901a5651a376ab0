//! `fastcache-ctl`: the node's agent, the coordinator, the supervisor of a whole node, and the operator's commands.
//!
//! Exit codes: 0 done, 1 failed, 2 not understood.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )
)]

mod agent;
mod cli;
mod client;
mod commands;
mod config_command;
mod coordinator;
mod node_file;
mod output;
mod path;
mod rebuild;
mod settings;
mod up;

use clap::Parser;
use cli::{Cli, Command};
use settings::UsageError;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// glibc keeps what many threads freed (docs/adr/0006-memory-of-the-control-plane.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a command that was not understood, as clap's own.
const NOT_UNDERSTOOD: u8 = 2;

/// What is logged unless `FASTCACHE_LOG` says otherwise: the retries of a library are told by whoever called it.
const QUIET_LIBRARIES: &str = "info,object_store=warn,fjall=warn,lsm_tree=warn";

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(match &cli.command {
        None | Some(Command::Coordinator(_) | Command::Up(_)) => QUIET_LIBRARIES,
        Some(_) => "warn",
    });
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let done = runtime.block_on(run(cli));
    // what still runs is a call that hangs on a dead mount: it ends with the process
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let done = match cli.command {
        Some(Command::Status(flags)) if flags.cluster => {
            return commands::cluster::cluster(&flags).await;
        }
        Some(Command::Status(flags)) => return commands::status::status(&flags.node).await,
        Some(Command::Stats(flags)) => return commands::stats::stats(&flags).await,
        Some(Command::Gc(flags)) => return Ok(commands::check::gc(&flags).await),
        Some(Command::Fsck(flags)) => return Ok(commands::check::fsck(&flags).await),
        Some(Command::Tune(flags)) => return commands::tune::tune(&flags),
        None => agent::run(&cli.agent).await,
        Some(Command::Coordinator(flags)) => coordinator::run(*flags).await,
        Some(Command::Rebuild(flags)) => rebuild::run(*flags).await,
        Some(Command::Up(flags)) => up::run(*flags).await,
        Some(Command::Down(flags)) => up::down(flags).await,
        Some(Command::State(flags)) => commands::state(&flags).await,
        Some(Command::Flush(flags)) => commands::flush(&flags).await,
        Some(Command::Warmup(flags)) => return commands::warm::warmup(&flags).await,
        Some(Command::Pin(flags)) => return commands::warm::pin(&flags).await,
        Some(Command::Unpin(flags)) => commands::warm::unpin(&flags).await,
        Some(Command::Evict(flags)) => commands::evict(&flags).await,
        Some(Command::Config(flags)) => config_command::run(&flags),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("fastcache-ctl: {error:#}");
    if error.is::<UsageError>() {
        ExitCode::from(NOT_UNDERSTOOD)
    } else {
        ExitCode::FAILURE
    }
}

/// Logs go to standard error; `FASTCACHE_LOG` chooses, as in `info,cloud=debug`.
fn log(level: &str) {
    let filter = EnvFilter::try_from_env("FASTCACHE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
