//! Goal: whatever order threads come in, a missing chunk is fetched once, whoever waits for room gets it, commits go out
//! in order and end, and no room is lost. Method: the whole file system with its store, on a simulated device, in
//! thousands of interleavings (`make test-race`); see `fastcache_reactor::race`.
//!
//! - `misses`: one fetch for everybody, also when it fails, a reader gives up, or the chunk is evicted meanwhile.
//! - `room`: writers wait for room and are woken.
//! - `commits`: seals, `fsync`, truncation and removal of one file at the same time.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may fail by panicking, and its numbers are small"
)]

#[allow(dead_code, reason = "shared with the tests of promises")]
#[path = "../promises/agent.rs"]
mod agent;
mod commits;
mod misses;
mod node;
mod room;
