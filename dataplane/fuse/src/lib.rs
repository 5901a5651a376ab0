//! The kernel's FUSE protocol: wire structures, transports, one file per group of operations.
//!
//! Decodes a request, calls [`fastcache_cache::FileSystem`], encodes the answer; there is no file system logic here.
//!
//! ```text
//! mount()  ─► Mount ─► session() a core ─► serve(fs, session): receive ─► parse ─► Handlers ─► reply
//!               └────► notifier(): the file system tells the kernel what to forget, from a thread of its own
//! ```

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "a test may fail by panicking, and its numbers are small"
    )
)]

pub mod handlers;
pub mod handshake;
pub mod mount;
pub mod notify;
pub mod opcode;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod wire;

pub use handlers::Handlers;
pub use mount::{Aborter, FS_TYPE, Mount, MountEntry, MountError, MountOptions, find_mount, mount};
pub use notify::Notifier;
pub use opcode::{counters, latencies};
pub use transport::choice::{Choice, ChoiceError, Kind, Wish, choose};
pub use transport::dev_fuse::BUFFER_MIN;
pub use transport::{Session, Transport};

use fastcache_cache::FileSystem;

/// What the requests in work of a core take at most beside their data, bytes: as many as it takes, each waiting.
pub const REQUESTS_BYTES: u64 = 24 << 20;

/// Serves one session on the core that calls, until the mount is gone. Every core of the mount needs one, since a
/// request goes to whichever core reads it first.
///
/// # Panics
/// When the core's pool is too small: buffers of [`BUFFER_MIN`] bytes, more than a dozen of them.
pub async fn serve(fs: FileSystem, session: Session) {
    let handlers = Handlers::new(fs, session.negotiated());
    session.serve(handlers).await;
}
