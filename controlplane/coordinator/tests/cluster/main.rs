//! What a coordinator promises its nodes, over real connections on loopback.
//!
//! - `leases`: a change is answered when no other node can still be using what it replaced.
//! - `sessions`: who is one of the nodes, from its registration to its end, also across a restart.
//! - `asking`: what nodes are asked about.
//! - `rest`: REST says what there is, and a key closes it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod asking;
mod leases;
mod rest;
mod sessions;
mod support;
