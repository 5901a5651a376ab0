//! What the namespace costs in memory, and what its commits cost in time: the engine alone, under a million changes.
//!
//! ```text
//! cargo run --release -p fastcache-benches --bin namespace-memory [OPERATIONS [DIR]]
//! ```
//!
//! DIR (default: the workspace's target directory) should be on the disk in question, not in memory. Sixteen tasks
//! make, rename, unlink and reap files, each in a directory of its own with 5,000 files at any time. Resident memory is
//! this process's, as the kernel says it. Then the store is opened again, in a process of its own that has done nothing
//! else, after an ordered end.

use fastcache_api::{Cred, Ino, Kind, NewInode, NsAnswer, NsOp, NsRequest, OpId, RenameMode, Time};
use fastcache_coordinator::Engine;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Changes unless told otherwise.
const OPERATIONS: u64 = 1_000_000;
/// Clients at once.
const TASKS: u64 = 16;
/// Files that each of them has at any time.
const FILES: u64 = 5_000;
/// Changes made of one file: made, renamed, unlinked, reaped.
const STEPS: u64 = 4;
/// How long nothing is done before memory is looked at again.
const IDLE: Duration = Duration::from_secs(12);

/// A line of /proc/self/status, MiB.
fn memory(what: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix(what));
    let kib = line.and_then(|l| l.split_whitespace().next());
    Ok(kib.ok_or("no such line")?.parse::<u64>()? >> 10)
}

/// One client's requests.
struct Client {
    engine: Engine,
    number: u64,
    seq: u64,
    times: Vec<Duration>,
}

impl Client {
    async fn ask(&mut self, op: NsOp) -> Result<NsAnswer> {
        self.seq += 1;
        let request = NsRequest {
            id: Some(OpId {
                client: self.number,
                seq: self.seq,
            }),
            now: Time::now(),
            op,
        };
        let start = Instant::now();
        let reply = self.engine.call(request).await;
        self.times.push(start.elapsed());
        Ok(reply.result?)
    }

    async fn make(&mut self, parent: Ino, name: String, kind: Kind) -> Result<Ino> {
        let new = NewInode {
            kind,
            mode: 0o755,
            rdev: 0,
            cred: Cred { uid: 0, gid: 0 },
            target: Vec::new(),
            chunk_size: if kind == Kind::File { 4 << 20 } else { 0 },
        };
        let at = Some((parent, name.into_bytes()));
        match self.ask(NsOp::Make { at, new }).await? {
            NsAnswer::Entry(attr) => Ok(attr.ino),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// A life of files: the oldest goes when a new one comes.
    async fn work(&mut self, files: u64) -> Result<()> {
        let parent = self
            .make(Ino::ROOT, format!("dir-{}", self.number), Kind::Dir)
            .await?;
        let mut alive = std::collections::VecDeque::new();
        for n in 0..files {
            let ino = self.make(parent, format!("new-{n}"), Kind::File).await?;
            self.ask(NsOp::Rename {
                parent,
                name: format!("new-{n}").into_bytes(),
                new_parent: parent,
                new_name: format!("file-{n}").into_bytes(),
                mode: RenameMode::Replace,
            })
            .await?;
            alive.push_back((n, ino));
            if n < FILES {
                continue;
            }
            if let Some((old, ino)) = alive.pop_front() {
                let name = format!("file-{old}").into_bytes();
                self.ask(NsOp::Unlink { parent, name }).await?;
                self.ask(NsOp::Reap { inos: vec![ino] }).await?;
            }
            // As a node does, which waits for its socket in between.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

fn micros(times: &[Duration], part: f64) -> u128 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list that fits in memory"
    )]
    let at = ((times.len() as f64 * part) as usize).min(times.len() - 1);
    times[at].as_micros()
}

async fn changes(dir: &Path, operations: u64) -> Result<()> {
    let engine = Engine::open(dir)?;
    println!("at rest: {} MiB", memory("VmRSS:")?);
    let start = Instant::now();
    let tasks: Vec<_> = (1..=TASKS)
        .map(|number| {
            let mut client = Client {
                engine: engine.clone(),
                number,
                seq: 0,
                times: Vec::new(),
            };
            tokio::spawn(async move {
                client.work(operations / TASKS / STEPS).await?;
                Result::Ok(client.times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let took = start.elapsed().as_secs_f64();
    times.sort_unstable();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = times.len() as f64 / took;
    println!(
        "{} changes in {took:.1} s: {rate:.0}/s, p50 {} us, p99 {} us, p99.99 {} us, longest {} us",
        times.len(),
        micros(&times, 0.5),
        micros(&times, 0.99),
        micros(&times, 0.9999),
        micros(&times, 1.0)
    );
    drop(times);
    println!(
        "after them: {} MiB, at most {} MiB",
        memory("VmRSS:")?,
        memory("VmHWM:")?
    );
    tokio::time::sleep(IDLE).await;
    println!("idle for {IDLE:?}: {} MiB", memory("VmRSS:")?);
    engine.close().await;
    Ok(())
}

fn opened(dir: &Path) -> Result<()> {
    let start = Instant::now();
    let engine = Engine::open(dir)?;
    println!(
        "opened again in {} ms: {} MiB, at most {} MiB, {} inodes, {} MiB on disk",
        start.elapsed().as_millis(),
        memory("VmRSS:")?,
        memory("VmHWM:")?,
        engine.stats().inodes,
        engine.stats().disk_bytes >> 20
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, dir] = args.as_slice()
        && flag == "--open"
    {
        return opened(Path::new(dir));
    }
    let operations = args.first().map_or(Ok(OPERATIONS), |n| n.parse())?;
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let dir = args.get(1).map_or_else(default, PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    let dir = tempfile::tempdir_in(dir)?;
    changes(dir.path(), operations).await?;
    // Only this process's end gives the store up for certain.
    let copy = tempfile::tempdir_in(dir.path().parent().unwrap_or(dir.path()))?;
    Command::new("cp")
        .arg("-a")
        .arg(dir.path().join("."))
        .arg(copy.path())
        .status()?;
    let child = Command::new(std::env::current_exe()?)
        .arg("--open")
        .arg(copy.path())
        .status()?;
    match child.success() {
        true => Ok(()),
        false => Err(format!("opening failed: {child}").into()),
    }
}
