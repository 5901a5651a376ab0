//! The namespace as a node reaches it: in this process, or behind a coordinator's gRPC.

use crate::Engine;
use fastcache_api::{NsReply, NsRequest};

/// The namespace a node uses.
pub enum Namespace {
    /// In this process.
    Embedded(Engine),
}

impl Namespace {
    /// Does one operation. Every change carries an id, so that sending it twice does it once.
    pub async fn call(&self, request: NsRequest) -> NsReply {
        match self {
            Namespace::Embedded(engine) => engine.call(request).await,
        }
    }

    /// Puts everything acknowledged so far on stable storage, for an ordered end.
    pub async fn close(&self) {
        match self {
            Namespace::Embedded(engine) => engine.close().await,
        }
    }
}
