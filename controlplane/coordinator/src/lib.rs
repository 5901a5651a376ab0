//! Registry, namespace log and leases of a cluster.
//!
//! ```text
//!  node ── gRPC ──► grpc ─┐
//!                         ├─► Coordinator ─► Engine (namespace and log, in an embedded store)
//!  people ─ REST ─► rest ─┘     │
//!                               └─ registry, leases
//!  a single node ─► Namespace::Embedded ─► Engine
//!  a node of many ─► Namespace::Remote ─► gRPC
//! ```

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )
)]

pub mod carrier;
mod coordinator;
mod engine;
mod grpc;
mod history;
mod leases;
mod locations;
mod locks;
mod namespace;
mod registry;
mod remote;
mod replace;
mod rest;
mod revocation;
mod serve;

pub use carrier::Carrier;
pub use coordinator::{
    Coordinator, CoordinatorStats, Held, LEASE, Options, REVOCATIONS_QUEUED, Registered, Renewed,
    Revocations, STALE_AFTER,
};
pub use engine::{Engine, EngineError, EngineStats, LOG_KEPT, SYNC_EVERY};
pub use history::{
    BucketError, HistoryConfig, HistoryError, HistoryOptions, RebuildError, RebuildOptions,
    Rebuilt, Step, check_bucket, rebuild,
};
pub use namespace::Namespace;
pub use registry::{PEER_ID_MAX, PEERS_MAX, Peer, RegisterError, UnknownSession};
pub use remote::{Lease, Notice, Question, RemoteError, RemoteNamespace, Revocation};
pub use replace::replace_file;
pub use serve::serve;
