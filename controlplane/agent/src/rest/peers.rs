//! `/api/peers`: the nodes of the cluster, as the coordinator knows them. A node with an embedded one is alone.

use super::types::{HeartbeatBody, PeerBody, PeersBody};
use super::{ApiError, Rest};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use fastcache_api::path::encode;

/// 503: there is a coordinator, and it does not answer.
fn away(why: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "coordinator_away", why)
}

/// The nodes, this one first.
async fn all(rest: &Rest) -> Result<Vec<PeerBody>, ApiError> {
    let node = &rest.node;
    let known = node.peers().await.map_err(away)?;
    let me = node.peer_id();
    let (mut own, others): (Vec<PeerBody>, Vec<PeerBody>) = known
        .into_iter()
        .map(|peer| {
            let at = peer.node.unwrap_or_default();
            PeerBody {
                is_self: at.peer_id == me,
                is_healthy: peer.is_live,
                id: at.peer_id,
                address: Some(at.rest_address).filter(|a| !a.is_empty()),
                peer_address: Some(at.peer_address).filter(|a| !a.is_empty()),
                capacity_bytes: at.capacity_bytes,
                used_bytes: at.used_bytes,
                dirty_bytes: at.dirty_bytes,
                version: at.version,
                load: Some(at.load),
                transport: at.transport,
                last_heartbeat_ms: Some(peer.last_heartbeat_ms),
            }
        })
        .partition(|p| p.is_self);
    let is_healthy = node.is_data_connected();
    match own.first_mut() {
        Some(own) => own.is_healthy &= is_healthy,
        None => {
            let stats = node.stats().await;
            let data = stats.data.unwrap_or_default();
            let config = node.config();
            let address = config.pod_ip.as_ref();
            own.push(PeerBody {
                id: me.to_owned(),
                address: address.map(|ip| format!("{ip}:{}", config.port)),
                is_self: true,
                is_healthy,
                peer_address: None,
                capacity_bytes: data.capacity_bytes,
                used_bytes: data.used_bytes,
                dirty_bytes: data.dirty_bytes,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                load: None,
                transport: data.transport,
                last_heartbeat_ms: None,
            });
        }
    }
    own.extend(others);
    Ok(own)
}

/// The node that the path of `uri` names; `tail` follows its id.
async fn named(rest: &Rest, uri: &Uri, tail: &str) -> Result<PeerBody, ApiError> {
    let asked = uri.path().strip_prefix("/api/peers/").unwrap_or_default();
    let asked = asked.strip_suffix(tail).unwrap_or(asked);
    let found = all(rest).await?.into_iter();
    // ids have only characters that need no encoding; they may be encoded all the same
    let is_it = |p: &PeerBody| {
        p.id == asked
            || fastcache_api::path::FilePath::from_encoded(asked)
                .is_ok_and(|name| encode(&name.names().join(&b'/'), true) == p.id)
    };
    found.into_iter().find(is_it).ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "no node of this name is known; GET /api/peers lists them".to_owned(),
        )
    })
}

/// `GET /api/peers`.
pub async fn list(State(rest): State<Rest>) -> Result<Json<PeersBody>, ApiError> {
    let peers = all(&rest).await?;
    Ok(Json(PeersBody { peers }))
}

/// `GET /api/peers/{id}`.
pub async fn one(State(rest): State<Rest>, uri: Uri) -> Result<Json<PeerBody>, ApiError> {
    named(&rest, &uri, "").await.map(Json)
}

/// `POST /api/peers/{id}/heartbeat`: this node tells the coordinator at once how it is. Nobody can tell that of another
/// node: 409, with where to ask.
pub async fn heartbeat(
    State(rest): State<Rest>,
    uri: Uri,
) -> Result<Json<HeartbeatBody>, ApiError> {
    let peer = named(&rest, &uri, "/heartbeat").await?;
    if !peer.is_self {
        let at = peer.address.as_deref().unwrap_or("an unknown address");
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "another_node",
            format!(
                "a node sends its own heartbeat only; {} is at {at}",
                peer.id
            ),
        ));
    }
    rest.node.heartbeat().await.map_err(away)?;
    Ok(Json(HeartbeatBody {
        id: peer.id,
        status: "ok".to_owned(),
    }))
}
