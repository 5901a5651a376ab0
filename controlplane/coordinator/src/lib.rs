//! Registry, namespace log and leases of a cluster.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")
)]

mod engine;
mod namespace;

pub use engine::{Engine, EngineError, EngineStats, LOG_KEPT, SYNC_EVERY};
pub use namespace::Namespace;
