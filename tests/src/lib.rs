//! What the end-to-end tests stand on: real nodes, a real S3 server, bytes that can be told from any others.
//!
//! Every test starts real processes through `fastcache-ctl up` and talks to them as a user would: through the
//! mount, the command line and REST. What a test started it stops, by process id, also when it fails. A test that
//! lacks something it needs (root, /dev/fuse, io_uring, a tool) fails with the reason.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod azurite;
mod busy;
mod bytes;
mod cabled;
mod ceph;
mod certificates;
mod cluster;
mod coordinator;
mod fault_proxy;
mod held;
mod http;
mod identity;
mod island;
pub mod load;
mod loss;
mod machine;
mod manifest;
mod mapping;
mod node;
pub mod oracle;
mod plane;
pub mod program;
mod s3;
mod s3s;
mod shared;
mod tls_front;
mod tree;
mod uring;
mod written;

pub use azurite::Azurite;
pub use busy::{Busy, Seen};
pub use bytes::{Bytes, sha256_file};
pub use cabled::CabledNodes;
pub use ceph::Ceph;
pub use certificates::Certificates;
pub use cluster::Cluster;
pub use coordinator::Coordinator;
pub use fault_proxy::{Fault, FaultProxy, SeenRequest};
pub use held::HeldNodes;
pub use http::{Answer, Http, read_answer, vanish};
pub use identity::{Identity, IdentitySetup};
pub use island::{Cable, on_an_island};
pub use loss::lose_everything;
pub use machine::{
    close, drop_page_cache, free_port, have_own_files, number, output_of, program, repository, run,
    seed, serial, temp_dir, wait_until,
};
pub use manifest::Container;
pub use mapping::Mapping;
pub use node::{Cloud, Node, Setup};
pub use plane::{Plane, Stopped};
pub use s3::S3;
pub use s3s::S3s;
pub use shared::{shared_folder, shared_node};
pub use tls_front::TlsFront;
pub use tree::{SourceTree, assert_same_tree, count_files};
pub use uring::{UringOff, UringOn};
pub use written::{CHUNK, Files, write_and_close};
