//! The seam between how requests come and what they mean.
//!
//! A transport owns buffers and descriptors. It receives requests on one core, takes them apart, has
//! [`Handlers`] answer them, and sends the answers; a request is finished on the core that received it. `/dev/fuse`
//! on the reactor's ring is the first; FUSE over io_uring can stand beside it with the same handlers.

pub mod dev_fuse;
mod gate;
pub(crate) mod interrupt;

use crate::handlers::Handlers;
use std::future::Future;

/// Receives requests and sends answers, on one core.
pub trait Transport {
    /// Serves until the connection ends (unmounted or aborted).
    fn serve(self, handlers: Handlers) -> impl Future<Output = ()>;
}
