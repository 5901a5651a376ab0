//! Chunks between nodes: frames on TCP, a client with pooled connections, a server.
//!
//! What a chunk is worth, where it is kept and whom to ask first is decided above: the server asks a [`Chunks`], the client
//! does what it is told. Both ends run on the ring of the core they are on; a connection never leaves its core.
//!
//! - `frame`: the bytes. `stream`: frames on one socket. `handshake`: who may talk to whom.
//! - `cluster`: who this node is, and who the others are. `placement`: which of them keep a chunk. `client`, `server`: the two ends;
//!   `listen`: where each connection is served.
//!
//! Invariants: whatever comes from the wire is bounded and checked before it is used, and what cannot be used ends its
//! connection with a line in the log; every wait has a deadline; bytes that were not verified are given to nobody.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "a test may fail by panicking, and its numbers are small"
    )
)]

mod client;
mod cluster;
mod frame;
pub mod fuzz;
mod handshake;
mod listen;
mod placement;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use client::AskError;
pub use cluster::{Cluster, Peer, PeerAt};
pub use frame::{FrameError, HEADER_BYTES, PAYLOAD_MAX, Status, VERSION};
pub use handshake::{ID_MAX, Identity, TOKEN_MAX, TOKEN_MIN, Token};
pub use listen::listen;
pub use placement::{all_homes, first_home_among, homes_among};
pub use server::{CORE_BYTES, Chunks, Part};
pub use stream::Broken;
