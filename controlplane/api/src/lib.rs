//! What the planes and nodes say to each other: ids, namespace operations, control messages, gRPC. No I/O.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod audit;
pub mod control;
mod errno;
mod ids;
mod key;
mod layout;
pub mod locks;
pub mod ns;
pub mod path;
pub mod placement;
pub mod settings;

pub use audit::{Audited, AuditedRef, Flaw, RefUse, Spare};
pub use errno::Errno;
pub use ids::{COUNTER_BITS, ChunkId, ChunkKey, Ino, InoHasher, InoMap, OpId, Time, Version};
pub use key::{API_KEY_HEADER, ApiKey};
pub use ns::*;

/// Version of the namespace operations as they travel and stand in the log. 1: first. 2: audits, conditions, the history
/// in the bucket. 4: they travel on one stream.
pub const NS_VERSION: u32 = 4;

/// The generated gRPC types and services (proto/fastcache.proto).
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod grpc {
    tonic::include_proto!("fastcache.v1");
}
