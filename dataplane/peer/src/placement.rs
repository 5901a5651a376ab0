//! Where chunks are kept, among the nodes that a [`Cluster`](crate::Cluster) has.

use crate::cluster::Peer;
use crate::handshake::Identity;
use fastcache_api::ChunkId;
use fastcache_api::placement::{NodeHash, homes};
use std::sync::Arc;

/// Places of a chunk's homes in the list of the others. This node may be one of the homes, and is not in that list.
pub fn homes_among(id: ChunkId, peers: &[Arc<Peer>], me: Option<&Identity>) -> Vec<usize> {
    let mut found = all_homes(id, peers, me);
    found.retain(|at| *at < peers.len());
    found
}

/// The place of a chunk's first home in that list; `None` when it is this node.
pub fn first_home_among(id: ChunkId, peers: &[Arc<Peer>], me: Option<&Identity>) -> Option<usize> {
    let first = all_homes(id, peers, me).first().copied();
    first.filter(|at| *at < peers.len())
}

/// The homes with this node, whose place is behind the list.
pub fn all_homes(id: ChunkId, peers: &[Arc<Peer>], me: Option<&Identity>) -> Vec<usize> {
    let mut nodes: Vec<NodeHash> = peers.iter().map(|p| NodeHash::of(&p.id)).collect();
    nodes.extend(me.map(|me| NodeHash::of(&me.id)));
    homes(id, &nodes)
}
