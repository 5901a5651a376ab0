//! The control plane of one node: data-plane client, LRU, persist queue, REST.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )
)]

mod bucket;
pub mod check;
mod config;
mod durability;
mod error;
mod garbage;
pub mod health;
mod history;
mod lanes;
mod leases;
mod link;
mod load;
mod lru;
pub mod metrics;
mod namespace;
mod node;
pub mod order;
mod peers;
mod persist;
mod pins;
pub mod rest;
mod serve;
#[cfg(test)]
mod tests;
pub mod types;
mod victims;
pub mod warm;

pub use config::{AgentConfig, FSYNC_COPIES_MAX, PUT_LIMIT_DEFAULT, UPLOADS_MAX};
pub use error::AgentError;
pub use fastcache_api::control::FsyncLevel;
pub use fastcache_cloud::{AzureConfig, CloudConfig, Encryption, Environment, S3Config, Secret};
pub use node::Node;
