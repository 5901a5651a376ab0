//! What the file system of a node promises, checked on its public API: no FUSE, no socket, no coordinator. The agent is
//! a task on the same reactor (`agent`), the store is a file in a temporary directory.
//!
//! - `adopt`: what is kept for a node that is gone becomes this node's own.
//! - `ahead`: who reads in sequence finds the next chunks, and speculation costs nobody anything.
//! - `attributes`: what is set of contents that are being written costs no question of its own.
//! - `contents`: random operations against a model in memory.
//! - `truncation`: what was cut off stays away.
//! - `commits`: a commit is sent until it is answered; what close returned survives a kill.
//! - `conflicts`: what was written under a lost lease is saved beside, and nothing of another node's is overwritten.
//! - `first_read`: a small file is read when it is opened, where that is of use.
//! - `fsync`: it returns when the level that the agent says is reached, and not before.
//! - `locks`: what a program holds, and what it gave up, is what the coordinator has.
//! - `misses`: one fetch for everybody, and never wrong bytes.
//! - `sick`: a device that fails loses nothing that the cloud can take.
//! - `names`: what cannot exist is not asked for, and what others make is found.
//! - `others`: what another node changes under a reader, and what is not where it should be yet.
//! - `pages`: the kernel hears of new contents when it has dropped the pages that lack them.
//! - `parts`: a small read of a large chunk costs the bytes it wants.
//! - `peers`: who is asked for what is not here.
//! - `replicas`: what is kept for others stays as long as they need it, and harms nothing here.
//! - `copies`: which versions are to be copied to others, and which are not any more.
//! - `give`: a full store gives other nodes what the cloud does not take.
//! - `space`: writers wait for room, and go on.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may fail by panicking, and its numbers are small"
)]

mod adopt;
mod agent;
mod ahead;
mod attributes;
mod commits;
mod conflicts;
mod contents;
mod copies;
mod first_read;
mod fsync;
mod give;
mod locks;
mod memory;
mod misses;
mod names;
mod node;
mod others;
mod pages;
mod parts;
mod peers;
mod replicas;
mod scripted;
mod sick;
mod space;
mod truncation;
