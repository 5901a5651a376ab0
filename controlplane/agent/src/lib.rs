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
mod node;
pub mod metrics;
pub mod rest;
pub mod types;

pub use config::{AgentConfig, FsyncLevel, PUT_LIMIT_DEFAULT};
pub use error::AgentError;
pub use fastcache_cloud::{CloudConfig, Secret};
pub use node::Node;
