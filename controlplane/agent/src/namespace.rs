//! The namespace as the agent reaches it: embedded in this process, or a coordinator's.

use crate::config::AgentConfig;
use crate::error::AgentError;
use fastcache_api::{NsReply, NsRequest};
use fastcache_coordinator::Engine;

/// The namespace this node uses.
pub(crate) enum NamespaceHandle {
    /// In this process, in `state_dir/namespace`.
    Embedded(Engine),
    /// A test's.
    #[cfg(test)]
    Fake(Box<dyn Fn(NsRequest) -> NsReply + Send + Sync>),
}

impl NamespaceHandle {
    /// Opens the embedded namespace, or prepares to reach the coordinator.
    pub(crate) async fn open(config: &AgentConfig) -> Result<NamespaceHandle, AgentError> {
        if let Some(coordinator) = &config.coordinator {
            return Err(AgentError::Namespace(format!(
                "cannot use the coordinator {coordinator}: this version has the embedded one only; \
                 leave out --coordinator"
            )));
        }
        let path = config.state_dir.join("namespace");
        let opened = tokio::task::spawn_blocking(move || Engine::open(&path)).await;
        let failed = |text: String| AgentError::Namespace(text);
        let engine = opened
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))?;
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

    /// Puts everything on stable storage; for an ordered end.
    pub(crate) async fn close(&self) {
        match self {
            NamespaceHandle::Embedded(engine) => engine.close().await,
            #[cfg(test)]
            NamespaceHandle::Fake(_) => {}
        }
    }
}
