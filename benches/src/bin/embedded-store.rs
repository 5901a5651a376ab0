//! fjall against redb as the store under the namespace and its log: what a commit costs, and what opening costs.
//!
//! ```text
//! cargo run --release -p fastcache-benches --bin embedded-store [DIR]
//! ```
//!
//! DIR (default: the workspace's target directory) should be on the disk in question, not in memory.
//!
//! One record is what one change of the namespace writes, in one atomic batch: 300 bytes in the log, and 4 keys of
//! the state (24-byte keys, 120-byte values; two of them change again and again, as a directory does). Each
//! case runs for 2 s. For opening, a child process writes 1,000,000 keys and is killed by SIGABRT without closing anything
//! (or closes in order); the parent opens the store, counts what is there, and reads one key.

use fjall::{Database as Fjall, Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::{
    Database as Redb, Durability, ReadableDatabase, ReadableTableMetadata, TableDefinition,
};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Length of one case.
const CASE: Duration = Duration::from_secs(2);
/// Bytes of a record in the log.
const RECORD: usize = 300;
/// Bytes of a value in the state.
const VALUE: usize = 120;
/// Keys of the state that one record changes.
const STATE_KEYS: u64 = 4;
/// Keys in the store that is opened.
const OPEN_KEYS: u64 = 1_000_000;
/// Keys written in one transaction when the store that is opened is filled.
const FILL_BATCH: u64 = 10_000;
/// Cache of either store, bytes.
const CACHE: u64 = 64 << 20;
/// How often the log is put on stable storage where that is not waited for.
const SYNC_EVERY: Duration = Duration::from_millis(50);

const LOG: TableDefinition<&[u8], &[u8]> = TableDefinition::new("log");
const STATE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("state");

/// A key of the state: half of them hot, half of them new each time and spread over the key space.
fn state_key(record: u64, i: u64) -> [u8; 24] {
    let mut key = [0; 24];
    let n = if i < STATE_KEYS / 2 {
        record % 16 + i
    } else {
        (record * STATE_KEYS + i).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    };
    key[..8].copy_from_slice(&n.to_be_bytes());
    key[8] = u8::try_from(i).unwrap_or(0);
    key
}

/// A key of the store that is opened: in order, as inode numbers are.
fn open_key(n: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&n.to_be_bytes());
    key
}

/// Bytes that do not compress to nothing.
fn value(record: u64, len: usize) -> Vec<u8> {
    let mut x = record | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

struct FjallStore {
    db: Fjall,
    log: Keyspace,
    state: Keyspace,
}

impl FjallStore {
    fn open(dir: &Path) -> Result<FjallStore> {
        let db = Fjall::builder(dir).cache_size(CACHE).open()?;
        let log = db.keyspace("log", KeyspaceCreateOptions::default)?;
        let state = db.keyspace("state", KeyspaceCreateOptions::default)?;
        Ok(FjallStore { db, log, state })
    }

    fn record(&self, n: u64) -> Result<()> {
        let mut batch = self.db.batch();
        batch.insert(&self.log, n.to_be_bytes(), value(n, RECORD));
        for i in 0..STATE_KEYS {
            batch.insert(&self.state, state_key(n, i), value(n + i, VALUE));
        }
        Ok(batch.commit()?)
    }

    /// Commits records one by one; after each `group` of them, waits for stable storage (0: never).
    fn run(&self, group: u64) -> Result<Measured> {
        let mut times = Vec::new();
        let mut n = 0;
        let start = Instant::now();
        while start.elapsed() < CASE {
            let one = Instant::now();
            for _ in 0..group.max(1) {
                n += 1;
                self.record(n)?;
            }
            if group > 0 {
                self.db.persist(PersistMode::SyncData)?;
            }
            times.push(one.elapsed());
        }
        Ok(Measured {
            records: n,
            took: start.elapsed(),
            times,
        })
    }

    /// Commits records one by one while another thread puts them on stable storage every 50 ms.
    fn run_synced_behind(&self) -> Result<Measured> {
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    std::thread::sleep(SYNC_EVERY);
                    if let Err(e) = self.db.persist(PersistMode::SyncData) {
                        eprintln!("fjall cannot sync: {e}");
                    }
                }
            });
            let measured = self.run(0);
            is_done.store(true, Ordering::Relaxed);
            measured
        })
    }
}

struct RedbStore {
    db: Redb,
}

impl RedbStore {
    fn open(dir: &Path) -> Result<RedbStore> {
        std::fs::create_dir_all(dir)?;
        let cache = usize::try_from(CACHE)?;
        let db = Redb::builder()
            .set_cache_size(cache)
            .create(dir.join("store.redb"))?;
        Ok(RedbStore { db })
    }

    /// Commits `group` records in one transaction.
    fn records(&self, from: u64, group: u64, durability: Durability) -> Result<()> {
        let mut tx = self.db.begin_write()?;
        tx.set_durability(durability)?;
        {
            let mut log = tx.open_table(LOG)?;
            let mut state = tx.open_table(STATE)?;
            for n in from..from + group {
                log.insert(n.to_be_bytes().as_slice(), value(n, RECORD).as_slice())?;
                for i in 0..STATE_KEYS {
                    state.insert(state_key(n, i).as_slice(), value(n + i, VALUE).as_slice())?;
                }
            }
        }
        Ok(tx.commit()?)
    }

    fn run(&self, group: u64, durability: Durability) -> Result<Measured> {
        let mut times = Vec::new();
        let mut n = 1;
        let start = Instant::now();
        while start.elapsed() < CASE {
            let one = Instant::now();
            self.records(n, group, durability)?;
            n += group;
            times.push(one.elapsed());
        }
        Ok(Measured {
            records: n - 1,
            took: start.elapsed(),
            times,
        })
    }
}

struct Measured {
    records: u64,
    took: Duration,
    /// Of each step that is waited for: a commit, or a group with its sync.
    times: Vec<Duration>,
}

fn line(name: &str, survives: &str, measured: Measured) {
    let Measured {
        records,
        took,
        mut times,
    } = measured;
    times.sort_unstable();
    let at = |part: usize| {
        times
            .get(times.len() * part / 100)
            .copied()
            .unwrap_or_default()
    };
    let us = |d: Duration| format!("{:.0}", d.as_secs_f64() * 1e6);
    let rate = u128::from(records) * 1000 / took.as_millis().max(1);
    println!(
        "| {name} | {survives} | {rate} | {} | {} |",
        us(at(50)),
        us(at(99))
    );
}

fn commits(dir: &Path) -> Result<()> {
    println!("| commit | survives | records/s | p50 us | p99 us |");
    println!("|---|---|---|---|---|");
    let fjall = |name: &str, survives: &str, group: Option<u64>| -> Result<()> {
        let dir = tempfile::tempdir_in(dir)?;
        let store = FjallStore::open(dir.path())?;
        let measured = match group {
            Some(group) => store.run(group)?,
            None => store.run_synced_behind()?,
        };
        line(name, survives, measured);
        Ok(())
    };
    fjall("fjall, batch a record, to the OS", "kill -9", Some(0))?;
    fjall(
        "fjall, batch a record, fsync every 50 ms behind",
        "kill -9; power after 50 ms",
        None,
    )?;
    fjall("fjall, fsync each record", "power", Some(1))?;
    fjall("fjall, fsync each 16", "power", Some(16))?;
    fjall("fjall, fsync each 256", "power", Some(256))?;
    let redb = |name: &str, survives: &str, group: u64, durability| -> Result<()> {
        let dir = tempfile::tempdir_in(dir)?;
        line(
            name,
            survives,
            RedbStore::open(dir.path())?.run(group, durability)?,
        );
        Ok(())
    };
    redb(
        "redb, transaction a record, Durability::None",
        "nothing",
        1,
        Durability::None,
    )?;
    redb(
        "redb, transaction a record, Immediate",
        "power",
        1,
        Durability::Immediate,
    )?;
    redb(
        "redb, transaction of 16, Immediate",
        "power",
        16,
        Durability::Immediate,
    )?;
    redb(
        "redb, transaction of 256, Immediate",
        "power",
        256,
        Durability::Immediate,
    )?;
    Ok(())
}

/// Child: writes the keys, then ends in order or is killed.
fn fill(store: &str, dir: &Path, is_killed: bool) -> Result<()> {
    let pairs = |from: u64| (from..from + FILL_BATCH).map(|n| (open_key(n), value(n, VALUE)));
    let end = || {
        if is_killed {
            std::process::abort();
        }
    };
    if store == "fjall" {
        let fjall = FjallStore::open(dir)?;
        for from in (0..OPEN_KEYS).step_by(usize::try_from(FILL_BATCH)?) {
            let mut batch = fjall.db.batch();
            for (key, value) in pairs(from) {
                batch.insert(&fjall.state, key, value);
            }
            batch.commit()?;
        }
        end();
        fjall.db.persist(PersistMode::SyncAll)?;
    } else {
        let redb = RedbStore::open(dir)?;
        for from in (0..OPEN_KEYS).step_by(usize::try_from(FILL_BATCH)?) {
            let tx = redb.db.begin_write()?;
            {
                let mut state = tx.open_table(STATE)?;
                for (key, value) in pairs(from) {
                    state.insert(key.as_slice(), value.as_slice())?;
                }
            }
            tx.commit()?;
        }
        end();
    }
    Ok(())
}

/// Opens the store until one key is read; the time, and how many keys there are.
fn open(store: &str, dir: &Path) -> Result<(Duration, u64)> {
    let start = Instant::now();
    let key = open_key(OPEN_KEYS / 2);
    if store == "fjall" {
        let fjall = FjallStore::open(dir)?;
        let is_there = fjall.state.get(key)?.is_some();
        let took = start.elapsed();
        Ok((
            took,
            if is_there {
                u64::try_from(fjall.state.len()?)?
            } else {
                0
            },
        ))
    } else {
        let redb = RedbStore::open(dir)?;
        let tx = redb.db.begin_read()?;
        let table = tx.open_table(STATE)?;
        let is_there = table.get(key.as_slice())?.is_some();
        let took = start.elapsed();
        Ok((took, if is_there { table.len()? } else { 0 }))
    }
}

fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(bytes)
}

fn opens(dir: &Path) -> Result<()> {
    println!("\n| open, {OPEN_KEYS} keys | after | ms | keys found | MB on disk | filled in s |");
    println!("|---|---|---|---|---|---|");
    for store in ["fjall", "redb"] {
        for (after, how) in [("an ordered end", "end"), ("a kill", "kill")] {
            let dir = tempfile::tempdir_in(dir)?;
            let start = Instant::now();
            let child = Command::new(std::env::current_exe()?)
                .args(["--fill", store, how])
                .arg(dir.path())
                .stderr(std::process::Stdio::null())
                .status()?;
            if how == "end" && !child.success() {
                return Err(format!("filling {store} failed: {child}").into());
            }
            let filled = start.elapsed().as_secs_f64();
            let (took, keys) = open(store, dir.path())?;
            let ms = took.as_secs_f64() * 1e3;
            let mb = disk_bytes(dir.path())? / 1_000_000;
            println!("| {store} | {after} | {ms:.0} | {keys} | {mb} | {filled:.1} |");
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, store, how, dir] = args.as_slice()
        && flag == "--fill"
    {
        return fill(store, Path::new(dir), how == "kill");
    }
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let dir = args.first().map_or_else(default, PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    commits(&dir)?;
    opens(&dir)
}
