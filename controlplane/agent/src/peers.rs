//! Other nodes: tells the coordinator where this node's data plane is reached, and the data plane where the others' are.

use crate::link::{Session, lock};
use crate::namespace::host;
use crate::node::Inner;
use fastcache_api::control::{DataAnswer, DataCall, PeerNode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::{debug, warn};

/// How often names are looked up again, and what failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Shortest time between two looks: many nodes may come at once, and each that is there asks for all of them.
const REST: Duration = Duration::from_millis(200);
/// How long a name may take to be looked up.
const LOOKUP_MAX: Duration = Duration::from_secs(3);

/// The address that others are told: that on which the data plane listens, with this node's host where it listens on all.
fn told_address(host: &str, listens: &str) -> String {
    match listens.parse::<SocketAddr>() {
        Ok(at) if at.ip().is_unspecified() => match host.contains(':') {
            true => format!("[{host}]:{}", at.port()),
            false => format!("{host}:{}", at.port()),
        },
        Ok(at) => at.to_string(),
        Err(_) => String::new(),
    }
}

impl Inner {
    /// A session of the data plane began: where it listens may be another place.
    pub(crate) fn data_plane_listens(self: &Arc<Self>, session: &Session) {
        let address = match &session.hello.peer_listen {
            Some(listens) => told_address(&host(&self.config), listens),
            None => String::new(),
        };
        let is_same = std::mem::replace(&mut *lock(&self.peer_address), address.clone()) == address;
        if is_same {
            return;
        }
        self.namespace.set_peer_address(&address);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(why) = inner.namespace.heartbeat().await {
                debug!(target: "control", why, "the next heartbeat tells where the data plane listens");
            }
        });
    }

    /// Live nodes with a data plane that listens, but for this one; addresses in numbers. And whether these are all that live.
    async fn live_peers(&self) -> Result<(Vec<PeerNode>, bool), String> {
        let mut found = Vec::new();
        let mut live = 0;
        for peer in self.namespace.peers().await? {
            let Some(node) = peer.node.filter(|_| peer.is_live) else {
                continue;
            };
            if node.peer_id == self.peer_id() {
                continue;
            }
            live += 1;
            if node.peer_address.is_empty() {
                continue;
            }
            let looked_up = tokio::net::lookup_host(node.peer_address.clone());
            match tokio::time::timeout(LOOKUP_MAX, looked_up).await {
                Ok(Ok(mut addresses)) => {
                    if let Some(address) = addresses.next() {
                        found.push(PeerNode {
                            id: node.peer_id,
                            address: address.to_string(),
                        });
                    }
                }
                Ok(Err(error)) => {
                    warn!(target: "control", node = node.peer_id, address = node.peer_address, %error, "the address of a node cannot be looked up");
                }
                Err(_) => {
                    warn!(target: "control", node = node.peer_id, address = node.peer_address, "looking up the address of a node takes too long");
                }
            }
        }
        found.sort();
        let are_all = found.len() == live;
        Ok((found, are_all))
    }
}

/// Tells the data plane of every change of the list of nodes, and a new session of it the whole list.
pub(crate) async fn tell_loop(inner: Arc<Inner>) {
    let (Some(mut version), Some(owner)) =
        (inner.namespace.peers_version(), inner.namespace.owner())
    else {
        return;
    };
    let mut sessions = inner.link.watch();
    let mut told: Option<(Arc<Session>, u64, Vec<PeerNode>)> = None;
    loop {
        let session = sessions.borrow_and_update().clone();
        version.borrow_and_update();
        let is_asked = session.is_some();
        if let Some(session) = session {
            let file_system = owner.borrow().0;
            match inner.live_peers().await {
                Ok((peers, are_all)) => {
                    // A data plane that does not listen asks nobody either.
                    let listens = !lock(&inner.peer_address).is_empty();
                    let has_peers = listens && !peers.is_empty();
                    inner.has_peers.store(has_peers, Ordering::Relaxed);
                    inner
                        .are_all_peers
                        .store(listens && are_all, Ordering::Relaxed);
                    inner.pace_uploads();
                    let is_told = told.as_ref().is_some_and(|(to, of, what)| {
                        Arc::ptr_eq(to, &session) && *of == file_system && *what == peers
                    });
                    let call = DataCall::Peers {
                        me: inner.peer_id().to_owned(),
                        file_system,
                        peers: peers.clone(),
                    };
                    if !is_told {
                        match session.call(session.any_lane(), call).await {
                            Ok(DataAnswer::Done) => {
                                inner.peers_are_told(if listens { peers.len() } else { 0 });
                                told = Some((session, file_system, peers));
                            }
                            other => {
                                warn!(target: "control", ?other, "the data plane was not told which nodes there are");
                            }
                        }
                    }
                }
                Err(why) => debug!(target: "control", why, "the list of nodes cannot be had"),
            }
        }
        if is_asked {
            tokio::time::sleep(REST).await;
        }
        tokio::select! {
            _ = version.changed() => {}
            _ = sessions.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = inner.stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_they_can_use() {
        assert_eq!(told_address("10.0.0.7", "0.0.0.0:8082"), "10.0.0.7:8082");
        assert_eq!(told_address("node-7", "[::]:99"), "node-7:99");
        assert_eq!(told_address("fd00::7", "[::]:99"), "[fd00::7]:99");
        assert_eq!(told_address("node-7", "10.0.0.8:1"), "10.0.0.8:1");
        assert_eq!(told_address("node-7", "nonsense"), "");
    }
}
