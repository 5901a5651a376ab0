//! The namespace as the agent reaches it: embedded in this process, or a coordinator's.

use crate::config::AgentConfig;
use crate::error::AgentError;
use crate::types::Starting;
use fastcache_api::grpc;
use fastcache_api::locks::{LockAnswer, LockOp};
use fastcache_api::{Errno, NsReply, NsRequest};
use fastcache_cloud::Cloud;
use fastcache_coordinator::{
    Engine, HistoryConfig, HistoryOptions, Namespace, Notice, RemoteNamespace,
};
use tokio::sync::{mpsc, watch};
use tracing::info;

/// The namespace this node uses.
pub(crate) enum NamespaceHandle {
    /// A real one.
    Real(Namespace),
    /// A test's.
    #[cfg(test)]
    Fake(Box<dyn Fn(NsRequest) -> NsReply + Send + Sync>),
}

/// What a coordinator of its own process says; never anything from the embedded one.
pub(crate) type Notices = Option<mpsc::Receiver<Notice>>;

impl NamespaceHandle {
    /// Opens the embedded namespace, or registers with the coordinator (however long that takes; `tell` hears of it).
    pub(crate) async fn open(
        config: &AgentConfig,
        peer_id: &str,
        cloud: Option<Cloud>,
        tell: impl Fn(Starting) + Send + Sync,
    ) -> Result<(NamespaceHandle, Notices), AgentError> {
        let failed = |text: String| AgentError::Namespace(text);
        if let Some(coordinator) = &config.coordinator {
            let host = host(config);
            let node = grpc::Node {
                peer_id: peer_id.to_owned(),
                rest_address: format!("{host}:{}", config.port),
                // Until the data plane has said where it listens.
                peer_address: String::new(),
                capacity_bytes: 0,
                used_bytes: 0,
                dirty_bytes: 0,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                identity: config.keep_identity()?,
                load: 0,
                transport: String::new(),
            };
            let key = config.api_key.as_ref().map(|key| key.expose());
            info!(target: "control", coordinator, "registering with the coordinator");
            let registering = |why: Option<&str>| Starting::Registering {
                coordinator: coordinator.clone(),
                why: why.map(str::to_owned),
            };
            tell(registering(None));
            let connected = RemoteNamespace::connect_telling(coordinator, node, key, |why| {
                tell(registering(Some(why)));
            });
            let connected = connected.await;
            let (remote, revocations) = connected.map_err(|e| failed(e.to_string()))?;
            return Ok((
                NamespaceHandle::Real(Namespace::Remote(remote)),
                Some(revocations),
            ));
        }
        let history = cloud.map(|cloud| HistoryConfig {
            cloud,
            options: HistoryOptions {
                garbage_grace: config.garbage_grace,
                ..HistoryOptions::default()
            },
        });
        let engine = Engine::start(&config.state_dir.join("namespace"), history)
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok((NamespaceHandle::Real(Namespace::Embedded(engine)), None))
    }

    /// One operation.
    pub(crate) async fn call(&self, request: NsRequest) -> NsReply {
        match self {
            NamespaceHandle::Real(namespace) => namespace.call(request).await,
            #[cfg(test)]
            NamespaceHandle::Fake(answer) => answer(request),
        }
    }

    /// Something about locks; ENOSYS where no coordinator of its own process knows them.
    pub(crate) async fn lock(&self, op: &LockOp) -> Result<LockAnswer, Errno> {
        match self {
            NamespaceHandle::Real(Namespace::Remote(remote)) => remote.lock(op).await,
            _ => Err(Errno::ENOSYS),
        }
    }

    /// File system and epoch of a coordinator of its own process; `None`: embedded.
    pub(crate) fn owner(&self) -> Option<watch::Receiver<(u64, u64)>> {
        match self {
            NamespaceHandle::Real(Namespace::Remote(remote)) => Some(remote.owner()),
            _ => None,
        }
    }

    /// Whether this is an embedded namespace that was rebuilt from the bucket, and nobody has looked since which chunks
    /// went with the disks.
    pub(crate) fn is_unsettled(&self) -> bool {
        match self {
            NamespaceHandle::Real(Namespace::Embedded(engine)) => engine.is_unsettled(),
            _ => false,
        }
    }

    /// Somebody has.
    pub(crate) fn settled(&self) -> Result<(), String> {
        match self {
            NamespaceHandle::Real(Namespace::Embedded(engine)) => engine.settled(),
            _ => Ok(()),
        }
    }

    /// How the node is, for a coordinator.
    pub(crate) fn set_status(&self, capacity_bytes: u64, used_bytes: u64, dirty_bytes: u64) {
        if let NamespaceHandle::Real(Namespace::Remote(remote)) = self {
            remote.set_status(capacity_bytes, used_bytes, dirty_bytes);
        }
    }

    /// What the node does, for a coordinator: requests a second, and how they come.
    pub(crate) fn set_activity(&self, load: u64, transport: &str) {
        if let NamespaceHandle::Real(Namespace::Remote(remote)) = self {
            remote.set_activity(load, transport);
        }
    }

    /// A heartbeat now, and what the coordinator said.
    pub(crate) async fn heartbeat(&self) -> Result<(), String> {
        match self {
            NamespaceHandle::Real(Namespace::Remote(remote)) => remote.heartbeat().await,
            _ => Ok(()),
        }
    }

    /// The nodes, as the coordinator knows them; none from an embedded one.
    pub(crate) async fn peers(&self) -> Result<Vec<grpc::Peer>, String> {
        match self {
            NamespaceHandle::Real(Namespace::Remote(remote)) => remote.peers().await,
            _ => Ok(Vec::new()),
        }
    }

    /// Where other nodes reach the data plane; empty: they do not. For the next heartbeat.
    pub(crate) fn set_peer_address(&self, address: &str) {
        if let NamespaceHandle::Real(Namespace::Remote(remote)) = self {
            remote.set_peer_address(address);
        }
    }

    /// Changes when the list of nodes does; `None`: this node is alone.
    pub(crate) fn peers_version(&self) -> Option<watch::Receiver<u64>> {
        match self {
            NamespaceHandle::Real(Namespace::Remote(remote)) => Some(remote.peers_version()),
            _ => None,
        }
    }

    /// Puts everything on stable storage; for an ordered end. `is_unused`: nothing that was learned is used any more.
    pub(crate) async fn close(&self, is_unused: bool) {
        match self {
            NamespaceHandle::Real(namespace) => namespace.close(is_unused).await,
            #[cfg(test)]
            NamespaceHandle::Fake(_) => {}
        }
    }
}

/// How other nodes reach this one.
pub(crate) fn host(config: &AgentConfig) -> String {
    match &config.pod_ip {
        Some(ip) => ip.clone(),
        None if !config.listen.is_unspecified() => config.listen.to_string(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    }
}
