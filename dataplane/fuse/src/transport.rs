//! The seam between how requests come and what they mean.
//!
//! A transport owns buffers and descriptors. It receives requests on one core, takes them apart, has
//! [`Handlers`] answer them, and sends the answers; a request is finished on the core that received it. There are two:
//! `/dev/fuse` on the reactor's ring, everywhere, and FUSE over io_uring, where it is asked for and the host has it.

pub mod choice;
pub mod dev_fuse;
mod gate;
pub(crate) mod interrupt;
pub mod uring;

use crate::handlers::Handlers;
use crate::handshake::Negotiated;
use std::future::Future;

/// Receives requests and sends answers, on one core.
pub trait Transport {
    /// Serves until the connection ends (unmounted or aborted).
    fn serve(self, handlers: Handlers) -> impl Future<Output = ()>;
}

/// One core's share of a mount, before it is served.
#[derive(Debug)]
pub enum Session {
    /// Over `/dev/fuse`.
    Dev(dev_fuse::Session),
    /// Over io_uring.
    Uring(uring::Session),
}

impl Session {
    /// What was agreed on with the kernel.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        match self {
            Session::Dev(session) => session.negotiated(),
            Session::Uring(session) => session.negotiated(),
        }
    }
}

impl Transport for Session {
    async fn serve(self, handlers: Handlers) {
        match self {
            Session::Dev(session) => session.serve(handlers).await,
            Session::Uring(session) => session.serve(handlers).await,
        }
    }
}
