//! The control plane of one node: data-plane client, LRU, persist queue, REST.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )
)]

mod config;
mod error;
mod garbage;
mod link;
mod lru;
pub mod metrics;
mod namespace;
mod node;
mod persist;
pub mod rest;
mod serve;
#[cfg(test)]
mod tests;
pub mod types;
mod victims;

pub use config::{AgentConfig, FsyncLevel, PUT_LIMIT_DEFAULT};
pub use error::AgentError;
pub use fastcache_cloud::{CloudConfig, Secret};
pub use node::Node;
