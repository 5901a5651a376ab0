//! The object store tier: S3, Azure Blob, or a directory.

mod config;

pub use config::{CloudConfig, Secret};
