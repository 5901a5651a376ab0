//! The coordinator's REST interface: decodes, calls, encodes. Errors are `{"error":{"code":"…","message":"…"}}`.
//!
//! What there is stands in `rest/openapi.json`, which is served as `/openapi.json`; a test compares it with [`table`].

mod error;
mod key;
mod metrics;
#[cfg(test)]
mod tests;

use crate::{Coordinator, EngineStats};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use error::{ApiError, from_errno};
use fastcache_api::path::{FilePath, parameter};
use fastcache_api::{Attr, Errno, Kind, NS_VERSION, NsAnswer, NsOp, NsRequest, Time, grpc};
pub(crate) use key::want_key;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// Longest body, bytes.
const BODY_MAX: usize = 64 << 10;

/// Every endpoint.
fn table() -> Vec<(&'static str, MethodRouter<Coordinator>)> {
    vec![
        ("/api/peers/register", post(register)),
        ("/api/peers", get(peers)),
        ("/api/peers/status", put(status)),
        ("/api/files/location", get(location).put(set_location)),
        ("/api/stats", get(stats)),
        ("/api/health", get(health)),
        ("/metrics", get(metrics::metrics)),
        ("/openapi.json", get(openapi)),
    ]
}

/// The routes.
pub(crate) fn routes(coordinator: Coordinator) -> Router {
    let mut router = Router::new();
    for (path, methods) in table() {
        router = router.route(path, methods);
    }
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
        .with_state(coordinator)
}

async fn no_such_path() -> ApiError {
    ApiError(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is no such endpoint; /openapi.json lists them".to_owned(),
    )
}

async fn no_such_method() -> ApiError {
    let text = "this endpoint does not know that method".to_owned();
    ApiError(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

/// The description of this interface.
const OPENAPI: &str = include_str!("rest/openapi.json");

async fn openapi() -> Response {
    let text = OPENAPI.replacen(
        "\"0.0.0\"",
        concat!("\"", env!("CARGO_PKG_VERSION"), "\""),
        1,
    );
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// A number of 64 bits. JSON knows one kind of numbers: `5.0` is 5.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    let of_float = || {
        let float = number.as_f64().filter(|f| f.fract() == 0.0)?;
        format!("{float:.0}").parse().ok()
    };
    let whole = number.as_u64().or_else(of_float);
    whole.ok_or_else(|| D::Error::custom("this is a whole number from 0 to 2^64 - 1"))
}

/// A node's own account of itself.
#[derive(Deserialize)]
struct NodeBody {
    peer_id: String,
    #[serde(default, deserialize_with = "whole")]
    session: u64,
    #[serde(default)]
    rest_address: String,
    #[serde(default)]
    peer_address: String,
    #[serde(default, deserialize_with = "whole")]
    capacity_bytes: u64,
    #[serde(default, deserialize_with = "whole")]
    used_bytes: u64,
    #[serde(default, deserialize_with = "whole")]
    dirty_bytes: u64,
    #[serde(default)]
    version: String,
    #[serde(default, deserialize_with = "whole")]
    load: u64,
    #[serde(default)]
    transport: String,
}

impl NodeBody {
    fn node(self) -> grpc::Node {
        grpc::Node {
            peer_id: self.peer_id,
            rest_address: self.rest_address,
            peer_address: self.peer_address,
            capacity_bytes: self.capacity_bytes,
            used_bytes: self.used_bytes,
            dirty_bytes: self.dirty_bytes,
            version: self.version,
            identity: String::new(),
            load: self.load,
            transport: self.transport,
        }
    }
}

async fn register(
    State(coordinator): State<Coordinator>,
    body: Result<Json<NodeBody>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body?;
    let previous = body.session;
    let peer_id = body.peer_id.clone();
    let done = coordinator
        .register(body.node(), NS_VERSION, previous)
        .await?;
    Ok(Json(json!({
        "peer_id": peer_id,
        "session": done.session,
        "lease_ms": u64::try_from(done.lease.as_millis()).unwrap_or(u64::MAX),
    })))
}

async fn peers(State(coordinator): State<Coordinator>) -> Json<Value> {
    Json(json!({ "peers": coordinator.peers() }))
}

/// A heartbeat. It says how the node is, completely: what it leaves out is 0 or empty from then on.
async fn status(
    State(coordinator): State<Coordinator>,
    body: Result<Json<NodeBody>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body?;
    let session = body.session;
    coordinator.heartbeat(session, Some(body.node()), false)?;
    Ok(Json(json!({ "status": "ok" })))
}

#[derive(Deserialize)]
struct LocationBody {
    peer_id: String,
    #[serde(default = "yes")]
    present: bool,
}

fn yes() -> bool {
    true
}

async fn ask(coordinator: &Coordinator, op: NsOp) -> Result<NsAnswer, Errno> {
    coordinator
        .engine()
        .call(NsRequest {
            id: None,
            now: Time::now(),
            op,
        })
        .await
        .result
}

/// What `?path=` names: a path from the root, without a slash in front.
fn path_of(uri: &Uri) -> Result<FilePath, ApiError> {
    let path = parameter(uri.query(), "path")?.ok_or_else(|| {
        ApiError(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "`path` is missing: ?path=DIR/FILE".to_owned(),
        )
    })?;
    Ok(FilePath::from_bytes(&path)?)
}

/// The file at a path from the root.
async fn file_at(coordinator: &Coordinator, path: &FilePath) -> Result<Attr, ApiError> {
    let names = path.names().to_vec();
    match ask(coordinator, NsOp::Resolve { path: names }).await {
        Ok(NsAnswer::Entry(attr)) if attr.kind == Kind::File => Ok(attr),
        Ok(_) => {
            let text = format!("{path} is not a file");
            Err(ApiError(StatusCode::CONFLICT, "not_a_file", text))
        }
        Err(errno) => Err(from_errno(errno, path)),
    }
}

async fn location(
    State(coordinator): State<Coordinator>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let path = path_of(&uri)?;
    let attr = file_at(&coordinator, &path).await?;
    let of_file = NsOp::CloudRefs {
        ino: attr.ino,
        only: None,
    };
    let refs = match ask(&coordinator, of_file).await {
        Ok(NsAnswer::CloudRefs(refs)) => refs.len(),
        Ok(_) => 0,
        Err(errno) => return Err(from_errno(errno, &path)),
    };
    let held = coordinator.held(attr.ino).await;
    let told = coordinator.locations().of(attr.ino);
    let peers: Vec<_> = coordinator
        .peers()
        .into_iter()
        .filter(|p| held.contains_key(&p.peer_id) || told.contains(&p.peer_id))
        .collect();
    let held: Vec<_> = held
        .into_iter()
        .map(|(peer_id, held)| json!({ "peer_id": peer_id, "chunks": held.chunks, "bytes": held.bytes }))
        .collect();
    Ok(Json(json!({
        "path": path.to_string(),
        // as text: JSON numbers end at 2^53
        "ino": format!("{:x}", attr.ino.0),
        "size": attr.size,
        "chunk_size": attr.chunk_size,
        "cloud_chunks": refs,
        "held": held,
        "peers": peers,
    })))
}

async fn set_location(
    State(coordinator): State<Coordinator>,
    uri: Uri,
    body: Result<Json<LocationBody>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let path = path_of(&uri)?;
    let Json(body) = body?;
    if !coordinator
        .peers()
        .iter()
        .any(|p| p.peer_id == body.peer_id)
    {
        let text = format!("no node is registered as {:?}", body.peer_id);
        return Err(ApiError(StatusCode::NOT_FOUND, "unknown_peer", text));
    }
    let attr = file_at(&coordinator, &path).await?;
    coordinator
        .locations()
        .set(attr.ino, &body.peer_id, body.present);
    Ok(Json(json!({
        "path": path.to_string(),
        "peer_id": body.peer_id,
        "present": body.present,
    })))
}

#[derive(Serialize)]
struct Stats {
    namespace: EngineStats,
    coordinator: crate::CoordinatorStats,
}

async fn stats(State(coordinator): State<Coordinator>) -> Json<Stats> {
    let namespace = coordinator.engine().stats();
    Json(Stats {
        namespace,
        coordinator: coordinator.stats(),
    })
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}
