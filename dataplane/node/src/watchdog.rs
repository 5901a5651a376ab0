//! The watchdog: a thread that serves nothing looks whether every core goes on, says in the log which one does not, since
//! when and what it was doing, and counts it for `status` and the metrics.

use anyhow::Result;
use fastcache_api::control::{DataCall, StuckCore};
use fastcache_fuse::opcode::Opcode;
use fastcache_reactor::Remote;
use fastcache_reactor::watch::{Event, Step, Stuck, Watch};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A core that stays so long in one step is stuck. The longest that a core should be in one is some milliseconds.
pub const LIMIT: Duration = Duration::from_secs(1);
/// Distance of two looks: by so much a stuck core is seen later.
const EVERY: Duration = Duration::from_millis(250);
/// How often it is said again while it lasts.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Labels from here on are calls of the agent; those below are numbers of FUSE operations.
const CALLS: u32 = 1 << 16;
/// The agent's calls, by label.
const CALL_NAMES: [&str; 12] = [
    "other",
    "inventory",
    "read chunk",
    "mark clean",
    "drop",
    "evict",
    "invalidate",
    "read file",
    "write file",
    "seal",
    "stats",
    "abandon",
];

/// The label of a call of the agent.
pub fn label_of(call: &DataCall) -> u32 {
    CALLS
        + match call {
            DataCall::Inventory { .. } => 1,
            DataCall::ReadChunk { .. } => 2,
            DataCall::MarkClean { .. } => 3,
            DataCall::Drop { .. } => 4,
            DataCall::Evict { .. } => 5,
            DataCall::Invalidate { .. } => 6,
            DataCall::ReadFile { .. } => 7,
            DataCall::WriteFile { .. } => 8,
            DataCall::Seal { .. } => 9,
            DataCall::Stats => 10,
            DataCall::Abandon { .. } => 11,
            // Changes a table or two: it takes no time worth a name.
            _ => 0,
        }
}

/// What a core was doing, for people.
fn doing(stuck: &Stuck) -> String {
    let task = || match stuck.label {
        0 => "a task in the background".to_owned(),
        label if label >= CALLS => {
            let at = usize::try_from(label - CALLS).unwrap_or(usize::MAX);
            format!("the agent's call `{}`", CALL_NAMES.get(at).unwrap_or(&"?"))
        }
        number => match Opcode::from_number(number) {
            Some(opcode) => format!("the request `{}`", opcode.name()),
            None => format!("a request of kind {number}"),
        },
    };
    let step = match stuck.step {
        Step::Task | Step::Main => task(),
        Step::Messages => "taking over what other cores sent".to_owned(),
        Step::Ring => "io_uring_enter".to_owned(),
        Step::Asleep => "io_uring_enter, from which it does not wake".to_owned(),
    };
    format!("{step}: {}", stuck.thread)
}

/// What the watchdog has found.
#[derive(Default)]
pub struct Findings {
    /// Cores that are stuck now: which, since when, doing what.
    now: Mutex<Vec<(usize, Instant, String)>>,
    /// Times that a core was stuck.
    total: AtomicU64,
}

impl Findings {
    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Instant, String)>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cores that are stuck now.
    pub fn stuck(&self) -> Vec<StuckCore> {
        let now = self.lock();
        let cores = now.iter().map(|(core, since, doing)| StuckCore {
            core: u64::try_from(*core).unwrap_or(u64::MAX),
            for_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            doing: doing.clone(),
        });
        cores.collect()
    }

    /// Times that a core was stuck since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// Watches these cores until the process ends.
pub fn start(cores: &[Remote]) -> Result<Arc<Findings>> {
    let findings = Arc::new(Findings::default());
    let theirs = findings.clone();
    let mut watch = Watch::new(cores, LIMIT, EVERY);
    let cpus: Vec<usize> = cores.iter().map(Remote::core).collect();
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            let mut said = Instant::now();
            loop {
                std::thread::sleep(EVERY);
                // First what others may ask for: the log may be what a core waits for.
                let events = watch.look();
                note(&theirs, &events);
                for event in &events {
                    tell(&cpus, event);
                    said = Instant::now();
                }
                if said.elapsed() >= SAY_AGAIN {
                    said = Instant::now();
                    for (core, since, doing) in theirs.lock().clone() {
                        let seconds = since.elapsed().as_secs();
                        tracing::error!(target: "control", core, seconds, doing, "a core is still stuck");
                    }
                }
            }
        })?;
    Ok(findings)
}

/// Keeps what is to be asked for in step with what happened.
fn note(findings: &Findings, events: &[Event]) {
    let mut now = findings.lock();
    for event in events {
        match event {
            Event::Began(stuck) => {
                findings.total.fetch_add(1, Ordering::Relaxed);
                now.push((stuck.at, Instant::now() - LIMIT, doing(stuck)));
            }
            Event::Ended { at, .. } => now.retain(|(core, ..)| core != at),
        }
    }
}

fn tell(cpus: &[usize], event: &Event) {
    match event {
        Event::Began(stuck) => {
            let (core, doing) = (stuck.at, doing(stuck));
            tracing::warn!(target: "control", core, cpu = cpus.get(core), doing, "a core has not gone on for {} s: what it serves waits", LIMIT.as_secs());
        }
        Event::Ended { at, after } => {
            tracing::warn!(target: "control", core = at, after_ms = after.as_millis(), "a core that was stuck goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_core_does_is_said_in_words() {
        // A real core, stuck in what the label says; the labels of both kinds.
        let read = label_of(&DataCall::Stats);
        for (label, word) in [
            (Opcode::Write as u32, "the request `write`"),
            (read, "the agent's call `stats`"),
            (0, "a task in the background"),
            (999, "a request of kind 999"),
        ] {
            let (say, hear) = std::sync::mpsc::channel();
            let (go_on, blocked) = std::sync::mpsc::channel::<()>();
            let config = fastcache_reactor::Config {
                entries: 32,
                pool_buffers: 1,
                buffer_bytes: 4096,
                ..fastcache_reactor::Config::default()
            };
            let core = std::thread::spawn(move || {
                fastcache_reactor::run(config, || {
                    fastcache_reactor::watch::labelled(label, async move {
                        say.send(fastcache_reactor::remote()).unwrap();
                        let _ = blocked.recv();
                    })
                })
            });
            let remote = hear.recv().unwrap();
            let mut watch = Watch::new(&[remote], Duration::ZERO, Duration::from_secs(3600));
            let findings = Findings::default();
            assert_eq!(watch.look(), []);
            note(&findings, &watch.look());
            let stuck = findings.stuck();
            assert_eq!((stuck.len(), findings.total()), (1, 1));
            assert!(stuck[0].doing.starts_with(word), "{}", stuck[0].doing);
            assert!(stuck[0].for_ms >= 1000);
            drop(go_on);
            core.join().unwrap().unwrap();
            note(&findings, &watch.look());
            assert_eq!((findings.stuck(), findings.total()), (vec![], 1));
        }
    }
}
