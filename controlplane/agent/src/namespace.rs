//! The namespace as the agent reaches it: embedded in this process, or a coordinator's.

use crate::config::AgentConfig;
use crate::error::AgentError;
use fastcache_api::{NsReply, NsRequest};
use fastcache_coordinator::Engine;

/// The namespace this node uses.
pub(crate) enum NamespaceHandle {
    /// In this process, in the state directory.
    Embedded(Engine),
    /// A test's.
    #[cfg(test)]
    Fake(Box<dyn Fn(NsRequest) -> NsReply + Send + Sync>),
}

impl NamespaceHandle {
    /// Opens the embedded namespace, or prepares to reach the coordinator.
    pub(crate) async fn open(config: &AgentConfig) -> Result<NamespaceHandle, AgentError> {
        let dir = config.state_dir.join("namespace");
        let engine = Engine::open(&dir).map_err(|e| AgentError::Namespace(e.to_string()))?;
        Ok(NamespaceHandle::Embedded(engine))
    }

    /// One operation.
    pub(crate) async fn call(&self, request: NsRequest) -> NsReply {
        match self {
            NamespaceHandle::Embedded(engine) => engine.call(request).await,
            #[cfg(test)]
            NamespaceHandle::Fake(answer) => answer(request),
        }
    }
}
