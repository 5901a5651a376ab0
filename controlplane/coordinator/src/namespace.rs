//! The namespace as a node reaches it: in this process, or behind a coordinator's gRPC.

use crate::{Engine, RemoteNamespace};
use fastcache_api::{NsReply, NsRequest};

/// The namespace a node uses.
pub enum Namespace {
    /// In this process.
    Embedded(Engine),
    /// A coordinator's.
    Remote(RemoteNamespace),
}

impl Namespace {
    /// Does one operation. Every change carries an id, so that sending it twice does it once.
    pub async fn call(&self, request: NsRequest) -> NsReply {
        match self {
            Namespace::Embedded(engine) => engine.call(request).await,
            Namespace::Remote(remote) => remote.call(request).await,
        }
    }

    /// For an ordered end: puts everything acknowledged so far on stable storage where it is this process's to do.
    /// `is_unused`: what the coordinator told is used by nobody here any more.
    pub async fn close(&self, is_unused: bool) {
        match self {
            Namespace::Embedded(engine) => engine.close().await,
            Namespace::Remote(remote) if is_unused => remote.leave().await,
            Namespace::Remote(remote) => remote.close(),
        }
    }
}
