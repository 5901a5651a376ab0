//! Goal: to know what grows with the number of nodes before there are that many: messages at the coordinator, revocations of a
//! change, reads of the cloud, the balance of chunks. Method: a coordinator and its nodes in one simulated world that grows from
//! a seed; its clock, its devices and its network (times and losses) are simulated, and one thread runs everything, so that a
//! seed that fails fails again.
//!
//! ```text
//!  a core of the reactor (simulated)                  tokio (clock paused)
//!    FileSystem, Store, Device ── messages ──  agent ── RemoteNamespace ── Wires ── Coordinator, Engine
//!        └── Others: placement, hedges ── other FileSystems
//! ```
//!
//! What decides is the code of production: the coordinator with its registry, leases and namespace, the session of a node, the
//! data plane's caches, its tiers and its store, the placement of chunks. Replaced are sockets, the kernel, and those parts of
//! the agent that move messages ([`agent`]). Left out: replicas of what is not in the cloud yet, the history in the bucket.

pub mod agent;
pub mod cloud;
pub mod measure;
pub mod node;
pub mod peers;
pub mod wire;
pub mod world;

pub use measure::{Report, measure};
