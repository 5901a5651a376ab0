//! The chunk store on NVMe: how full it is, what it answered, what it lost.

use super::Kind::{Counter, Gauge};
use super::rising::total;
use super::{Metric, level, metric};
use crate::types::PinStats;
use fastcache_api::control::DataStats;
use metrics::{counter, gauge};

/// The metrics of this subject.
pub(super) const METRICS: &[Metric] = &[
    metric(
        "fastcache_nvme_capacity_bytes",
        Gauge,
        "",
        "what the store can hold",
    ),
    metric(
        "fastcache_nvme_used_bytes",
        Gauge,
        "",
        "what it holds, headers and rounding included",
    ),
    metric("fastcache_nvme_chunks", Gauge, "", "chunks in the store"),
    metric(
        "fastcache_dirty_chunks",
        Gauge,
        "",
        "chunks that are not in the cloud yet",
    ),
    metric(
        "fastcache_dirty_bytes",
        Gauge,
        "",
        "their bytes on the device: what would be lost with it",
    ),
    metric(
        "fastcache_fetching_chunks",
        Gauge,
        "",
        "chunks that readers wait for, from the cloud or for a slot",
    ),
    metric(
        "fastcache_uncommitted_files",
        Gauge,
        "",
        "sealed files that the namespace does not have yet",
    ),
    metric(
        "fastcache_arena_slots",
        Gauge,
        "",
        "slots of the memory that both planes share",
    ),
    metric(
        "fastcache_arena_free_slots",
        Gauge,
        "",
        "of those, unused; 0 for long: uploads and fetches wait",
    ),
    metric(
        "fastcache_memory_budget_bytes",
        Gauge,
        "",
        "most memory that the data plane is to take (`--memory`)",
    ),
    metric(
        "fastcache_memory_resident_bytes",
        Gauge,
        "",
        "resident memory of the data plane, shared memory included",
    ),
    metric(
        "fastcache_memory_limit_bytes",
        Gauge,
        "part",
        "what each part of the budget may take",
    ),
    metric(
        "fastcache_memory_bytes",
        Gauge,
        "part",
        "what it takes, where that is counted",
    ),
    metric(
        "fastcache_pruned_inodes_total",
        Counter,
        "",
        "inodes that the kernel was asked to give back because there were too many",
    ),
    metric(
        "fastcache_hits_total",
        Counter,
        "tier",
        "chunk reads answered by the tier: `nvme`, `peer` or `cloud` (one for each fetched chunk)",
    ),
    metric("fastcache_hit_bytes_total", Counter, "tier", "their bytes"),
    metric(
        "fastcache_misses_total",
        Counter,
        "",
        "chunk reads that the NVMe store could not answer",
    ),
    metric(
        "fastcache_readahead_chunks_total",
        Counter,
        "result",
        "chunks read ahead: `asked`; of those `used` by a reader, `wasted`, or `failed`",
    ),
    metric(
        "fastcache_readahead_bytes_total",
        Counter,
        "",
        "bytes asked for ahead of their readers",
    ),
    metric(
        "fastcache_pinned_files",
        Gauge,
        "",
        "files whose chunks are not evicted",
    ),
    metric(
        "fastcache_pinned_bytes",
        Gauge,
        "",
        "what their chunks take of the device",
    ),
    metric(
        "fastcache_evicted_chunks_total",
        Counter,
        "",
        "chunks evicted",
    ),
    metric(
        "fastcache_evicted_bytes_total",
        Counter,
        "",
        "their bytes on the device",
    ),
    metric(
        "fastcache_written_bytes_total",
        Counter,
        "",
        "bytes written by programs",
    ),
    metric(
        "fastcache_write_stalls_total",
        Counter,
        "",
        "times a writer waited for space or for uploads",
    ),
    metric(
        "fastcache_conflict_files_total",
        Counter,
        "",
        "files that lost their lease and became conflict files",
    ),
    metric(
        "fastcache_checksum_errors_total",
        Counter,
        "tier",
        "wrong checksums: `nvme` blocks, `cloud` objects, `arena` slots",
    ),
    metric(
        "fastcache_device_errors_total",
        Counter,
        "",
        "failed reads and writes of the NVMe device",
    ),
    metric(
        "fastcache_device_is_sick",
        Gauge,
        "",
        "1 while the device takes no journal: every close and fsync waits for the cloud",
    ),
    metric(
        "fastcache_device_spilled_bytes",
        Gauge,
        "",
        "refused by the device, in memory until the cloud has them",
    ),
    metric(
        "fastcache_device_bad_bytes",
        Gauge,
        "",
        "blocks that the device refused, not used before the next start",
    ),
    metric(
        "fastcache_unreadable_chunks",
        Gauge,
        "",
        "dirty chunks that the device does not give back",
    ),
];

/// What the agent knows of it.
pub(super) fn export_pins(pins: &PinStats) {
    level("fastcache_pinned_files", pins.files);
    level("fastcache_pinned_bytes", pins.bytes);
}

/// Begins those at 0 that nothing may ever happen to.
pub(super) fn announce() {
    for tier in ["nvme", "cloud", "arena"] {
        counter!("fastcache_checksum_errors_total", "tier" => tier).increment(0);
    }
}

pub(super) fn export(data: &DataStats) {
    level("fastcache_nvme_capacity_bytes", data.capacity_bytes);
    level("fastcache_nvme_used_bytes", data.used_bytes);
    level("fastcache_nvme_chunks", data.chunks);
    level("fastcache_dirty_chunks", data.dirty_chunks);
    level("fastcache_dirty_bytes", data.dirty_bytes);
    level("fastcache_uncommitted_files", data.uncommitted_files);
    level("fastcache_arena_slots", data.arena_slots);
    level("fastcache_arena_free_slots", data.arena_free);
    level("fastcache_fetching_chunks", data.fetching_chunks);
    level("fastcache_device_is_sick", u64::from(data.is_device_lost));
    level("fastcache_device_spilled_bytes", data.spilled_bytes);
    level("fastcache_device_bad_bytes", data.bad_bytes);
    level("fastcache_unreadable_chunks", data.unreadable_chunks);
    level("fastcache_memory_budget_bytes", data.memory.budget_bytes);
    level(
        "fastcache_memory_resident_bytes",
        data.memory.resident_bytes,
    );
    for part in &data.memory.parts {
        let name = &part.name;
        gauge!("fastcache_memory_limit_bytes", "part" => name.clone()).set(part.limit_bytes as f64);
        if let Some(used) = part.used_bytes {
            gauge!("fastcache_memory_bytes", "part" => name.clone()).set(used as f64);
        }
    }
    total(
        "fastcache_pruned_inodes_total",
        None,
        data.memory.pruned_inodes,
    );
    let tiers = [
        ("nvme", data.nvme_hits, data.nvme_hit_bytes),
        (
            "peer",
            data.peers.peer_fetched_chunks + data.peers.peer_parts,
            data.peers.peer_fetched_bytes + data.peers.peer_part_bytes,
        ),
        (
            "cloud",
            data.fetched_chunks
                .saturating_sub(data.peers.peer_fetched_chunks),
            data.fetched_bytes
                .saturating_sub(data.peers.peer_fetched_bytes),
        ),
    ];
    for (tier, hits, bytes) in tiers {
        total("fastcache_hits_total", Some(("tier", tier)), hits);
        total("fastcache_hit_bytes_total", Some(("tier", tier)), bytes);
    }
    let ahead = [
        ("asked", data.ahead_chunks),
        ("used", data.ahead_used),
        ("wasted", data.ahead_wasted),
        ("failed", data.ahead_failed),
    ];
    for (result, chunks) in ahead {
        total(
            "fastcache_readahead_chunks_total",
            Some(("result", result)),
            chunks,
        );
    }
    total("fastcache_readahead_bytes_total", None, data.ahead_bytes);
    total("fastcache_misses_total", None, data.misses);
    total("fastcache_evicted_chunks_total", None, data.evicted_chunks);
    total("fastcache_evicted_bytes_total", None, data.evicted_bytes);
    total("fastcache_written_bytes_total", None, data.written_bytes);
    total(
        "fastcache_checksum_errors_total",
        Some(("tier", "nvme")),
        data.checksum_errors,
    );
    total("fastcache_device_errors_total", None, data.device_errors);
    total("fastcache_write_stalls_total", None, data.write_stalls);
    total("fastcache_conflict_files_total", None, data.conflict_files);
}
