//! The budget of memory: one number, divided into parts that are fixed by what the node is started with, and tables that
//! share the rest. The table is in docs/operations.md.
//!
//! Fixed parts are what the process may come to take of them, whether it does or not. The tables have a bound each; the
//! checksums have what the others leave at the moment, and less when the process takes more than its budget all the same.

use anyhow::{Context, Result, bail};
use fastcache_api::control::{MemoryPart, MemoryStats, SLOT_BYTES};
use fastcache_cache::{CHUNK_BYTES, FileSystem, MemoryLimits, MemoryUse};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// The program, its libraries and stacks, rings, the journal's queue, names of other nodes' folders and names known not to
/// exist, and what malloc keeps.
const PROCESS_BYTES: u64 = 64 * MIB;
/// Least that the tables are given, bytes.
const INDEX_LEAST: u64 = 4 * MIB;
const INODES_LEAST: u64 = 8 * MIB;
const WRITES_LEAST: u64 = 8 * MIB;
const CHECKSUMS_LEAST: u64 = MIB;
/// Chunks of this size are what the index has room for at least.
const CHUNK_SIZE: u64 = 4 * MIB;
/// The smallest chunk takes so much of the device: a block and its header.
const CHUNK_LEAST: u64 = 8 << 10;
/// What a core has for further entries of FUSE over io_uring at least, bytes.
const ENTRIES_LEAST: u64 = 64 * MIB;
/// Unless told otherwise: this part of the machine's memory, or so much beyond the least.
const MACHINE_PART: u64 = 8;
const BEYOND_LEAST: u64 = 256 * MIB;
/// How often the checksums are given what the others leave.
const TICK: Duration = Duration::from_millis(500);

/// What the budget is divided for.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// `--memory`, bytes.
    pub wanted_bytes: Option<u64>,
    /// `--checksum-memory`, bytes.
    pub checksums_bytes: Option<u64>,
    /// Threads.
    pub cores: usize,
    /// Requests come over io_uring.
    pub is_uring: bool,
    /// Chunks are given to other nodes, and taken from them.
    pub has_peers: bool,
    /// Of the store; 0: not known yet.
    pub capacity_bytes: u64,
    /// Of the machine, or of the container.
    pub machine_bytes: u64,
}

/// The budget and its parts, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// The sum of all.
    pub total: u64,
    /// Buffers of requests, taken at the start.
    pub buffers: u64,
    /// Requests that wait.
    pub requests: u64,
    /// Further entries of FUSE over io_uring.
    pub entries: u64,
    /// The memory that both planes share.
    pub shared: u64,
    /// What other nodes are given, and give to be kept here.
    pub peers: u64,
    /// Everything else that is bounded by itself.
    pub process: u64,
    /// The tables.
    pub limits: MemoryLimits,
    /// The index, as far as `limits.chunks` goes.
    pub index: u64,
}

/// Divides the budget.
///
/// # Errors
/// When it is too small, with the least that is possible.
pub fn divide(needs: &Needs) -> Result<Budget> {
    let cores = needs.cores.max(1) as u64;
    let buffers = cores * crate::pool_bytes();
    let requests = cores * fastcache_fuse::REQUESTS_BYTES;
    let shared = crate::control::ARENA_SLOTS as u64 * SLOT_BYTES as u64;
    let peers_of_core = fastcache_peer::CORE_BYTES + crate::replicate::CORE_BYTES;
    let peers = u64::from(needs.has_peers) * cores * peers_of_core;
    let entries_least = u64::from(needs.is_uring) * cores * ENTRIES_LEAST;
    let index_most = needs.capacity_bytes / CHUNK_LEAST * CHUNK_BYTES;
    let index_least = (needs.capacity_bytes / CHUNK_SIZE * CHUNK_BYTES).max(INDEX_LEAST);
    let fixed = buffers + requests + shared + peers + PROCESS_BYTES;
    let tables = index_least + INODES_LEAST + WRITES_LEAST + CHECKSUMS_LEAST;
    let least = fixed + entries_least + tables;

    // Without a word about memory, entries that nobody uses take nothing from the tables.
    let entries_default = match needs.is_uring {
        true => entries_least.max(needs.machine_bytes / MACHINE_PART),
        false => 0,
    };
    let default = (least + BEYOND_LEAST).max(needs.machine_bytes / MACHINE_PART);
    let total = needs
        .wanted_bytes
        .unwrap_or(default - entries_least + entries_default);
    let Some(spare) = total.checked_sub(least) else {
        bail!(
            "--memory {} is too little: {} is the least for {}{} ({} for buffers, {} for requests that wait, {} shared with the agent, {} for other nodes, {} for the process, {} for tables); give it more, or fewer processors with --cores",
            mib(total),
            mib(least),
            count(needs.cores, "processor"),
            match needs.capacity_bytes {
                0 => String::new(),
                bytes => format!(" and a store of {}", mib(bytes)),
            },
            mib(buffers),
            mib(requests + entries_least),
            mib(shared),
            mib(peers),
            mib(PROCESS_BYTES),
            mib(tables),
        );
    };
    let entries = match (needs.is_uring, needs.wanted_bytes) {
        (false, _) => 0,
        (true, None) => entries_default,
        (true, Some(_)) => entries_least + spare / 4,
    };
    let tables = total - fixed - entries;
    let spare = tables - (index_least + INODES_LEAST + WRITES_LEAST + CHECKSUMS_LEAST);
    let index = (index_least + spare / 2).min(index_most.max(INDEX_LEAST));
    let limits = MemoryLimits {
        tables_bytes: tables,
        chunks: index / CHUNK_BYTES,
        inodes_bytes: INODES_LEAST + spare / 4,
        writes_bytes: WRITES_LEAST + spare / 8,
        checksums_least_bytes: CHECKSUMS_LEAST.min(needs.checksums_bytes.unwrap_or(u64::MAX)),
        checksums_most_bytes: needs.checksums_bytes.unwrap_or(tables),
    };
    Ok(Budget {
        total,
        buffers,
        requests,
        entries,
        shared,
        peers,
        process: PROCESS_BYTES,
        limits,
        index,
    })
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MIB))
}

fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// Memory of this machine, or of the container that it is, bytes.
///
/// # Errors
/// When `/proc/meminfo` does not say.
pub fn of_machine() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let all = in_kib(&text, "MemTotal:").context("/proc/meminfo has no MemTotal")?;
    // A container sees its own limit here.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default();
    Ok(limit
        .trim()
        .parse()
        .map_or(all, |limit: u64| limit.min(all)))
}

/// A line of a file of /proc that counts KiB, in bytes.
fn in_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Resident memory of this process, bytes: of its own, of files, and shared.
pub fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    in_kib(&text, "VmRSS:")
}

/// The budget while it is kept.
#[derive(Debug)]
pub struct Keeper {
    budget: Budget,
    /// What the tables took at the last look, and what the checksums may take, bytes.
    seen: Mutex<(MemoryUse, u64)>,
}

impl Keeper {
    /// Puts the bounds into effect. What tends them is [`Keeper::tend`].
    pub fn new(budget: Budget, fs: &FileSystem) -> Arc<Keeper> {
        fs.set_memory(budget.limits);
        let keeper = Arc::new(Keeper {
            budget,
            seen: Mutex::default(),
        });
        keeper.look(fs);
        keeper
    }

    /// For ever: gives the checksums what the other tables leave.
    pub async fn tend(self: Arc<Self>, fs: FileSystem) {
        while !fs.is_stopping() {
            fastcache_reactor::sleep(TICK).await;
            self.look(&fs);
        }
    }

    fn look(&self, fs: &FileSystem) {
        let left = resident().map_or(i64::MAX, |now| {
            i64::try_from(self.budget.total).unwrap_or(i64::MAX)
                - i64::try_from(now).unwrap_or(i64::MAX)
        });
        let bytes = fs.share_memory(left);
        *self.seen() = (fs.memory(), bytes);
    }

    fn seen(&self) -> MutexGuard<'_, (MemoryUse, u64)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the budget is, and what is used of it.
    pub fn stats(&self) -> MemoryStats {
        let budget = &self.budget;
        let (now, checksums) = *self.seen();
        let part = |name: &str, limit_bytes, used_bytes| MemoryPart {
            name: name.to_owned(),
            limit_bytes,
            used_bytes,
        };
        let mut parts = vec![
            part("buffers", budget.buffers, Some(budget.buffers)),
            part("requests", budget.requests + budget.entries, None),
            part("shared", budget.shared, None),
            part("peers", budget.peers, None),
            part("process", budget.process, None),
            part("index", budget.index, Some(now.index_bytes)),
        ];
        let limits = &budget.limits;
        parts.push(part("inodes", limits.inodes_bytes, Some(now.inodes_bytes)));
        parts.push(part("writes", limits.writes_bytes, Some(now.writes_bytes)));
        parts.push(part("checksums", checksums, Some(now.checksums_bytes)));
        MemoryStats {
            budget_bytes: budget.total,
            resident_bytes: resident().unwrap_or(0),
            pruned_inodes: now.pruned_inodes,
            parts,
        }
    }
}

#[cfg(test)]
mod tests;
