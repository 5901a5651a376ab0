//! The coordinator's REST interface: decodes, calls, encodes. Errors are `{"error":{"code":"…","message":"…"}}`.

use crate::registry::{RegisterError, UnknownSession};
use crate::{Coordinator, EngineStats};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use fastcache_api::{Attr, Errno, Kind, NS_VERSION, NsAnswer, NsOp, NsRequest, Time, grpc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write;

/// Longest body, bytes.
const BODY_MAX: usize = 64 << 10;

/// The routes.
pub(crate) fn routes(coordinator: Coordinator) -> Router {
    Router::new()
        .route("/api/peers/register", post(register))
        .route("/api/peers", get(peers))
        .route("/api/peers/status", put(status))
        .route("/api/files/location", get(location).put(set_location))
        .route("/api/stats", get(stats))
        .route("/api/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
        .with_state(coordinator)
}

/// An answer that is not a success.
struct ApiError(StatusCode, &'static str, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.1, "message": self.2 } });
        (self.0, Json(body)).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(e: JsonRejection) -> ApiError {
        ApiError(e.status(), "bad_request", e.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(e: QueryRejection) -> ApiError {
        ApiError(e.status(), "bad_request", e.body_text())
    }
}

impl From<UnknownSession> for ApiError {
    fn from(e: UnknownSession) -> ApiError {
        ApiError(StatusCode::NOT_FOUND, "unknown_session", e.to_string())
    }
}

impl From<RegisterError> for ApiError {
    fn from(e: RegisterError) -> ApiError {
        let text = e.to_string();
        let (status, code) = match e {
            RegisterError::PeerId | RegisterError::Version { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            RegisterError::Taken(_) => (StatusCode::CONFLICT, "peer_id_taken"),
            RegisterError::Full => (StatusCode::SERVICE_UNAVAILABLE, "too_many_peers"),
            RegisterError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        };
        ApiError(status, code, text)
    }
}

fn from_errno(errno: Errno, path: &str) -> ApiError {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => ApiError(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no {path}"),
        ),
        Errno::ENAMETOOLONG | Errno::EINVAL => ApiError(
            StatusCode::BAD_REQUEST,
            "bad_request",
            format!("{path:?} is not a path"),
        ),
        other => ApiError(StatusCode::INTERNAL_SERVER_ERROR, "io", other.to_string()),
    }
}

async fn no_such_path() -> ApiError {
    ApiError(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is no such endpoint".to_owned(),
    )
}

async fn no_such_method() -> ApiError {
    let text = "this endpoint does not know that method".to_owned();
    ApiError(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

/// A node's own account of itself.
#[derive(Deserialize)]
struct NodeBody {
    peer_id: String,
    #[serde(default)]
    session: u64,
    #[serde(default)]
    rest_address: String,
    #[serde(default)]
    peer_address: String,
    #[serde(default)]
    capacity_bytes: u64,
    #[serde(default)]
    used_bytes: u64,
    #[serde(default)]
    dirty_bytes: u64,
    #[serde(default)]
    version: String,
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
    coordinator.heartbeat(session, Some(body.node()))?;
    Ok(Json(json!({ "status": "ok" })))
}

#[derive(Deserialize)]
struct PathQuery {
    path: String,
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

/// The file at a path from the root. One `/` in front is allowed.
async fn file_at(coordinator: &Coordinator, path: &str) -> Result<Attr, ApiError> {
    let names: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    if names
        .iter()
        .any(|n| matches!(*n, "" | "." | "..") || n.contains('\0'))
    {
        return Err(from_errno(Errno::EINVAL, path));
    }
    let path_names = names.iter().map(|n| n.as_bytes().to_vec()).collect();
    match ask(coordinator, NsOp::Resolve { path: path_names }).await {
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
    query: Result<Query<PathQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(PathQuery { path }) = query?;
    let attr = file_at(&coordinator, &path).await?;
    let refs = match ask(
        &coordinator,
        NsOp::CloudRefs {
            ino: attr.ino,
            only: None,
        },
    )
    .await
    {
        Ok(NsAnswer::CloudRefs(refs)) => refs.len(),
        Ok(_) => 0,
        Err(errno) => return Err(from_errno(errno, &path)),
    };
    let holders = coordinator.locations().of(attr.ino);
    let peers: Vec<_> = coordinator
        .peers()
        .into_iter()
        .filter(|p| holders.contains(&p.peer_id))
        .collect();
    Ok(Json(json!({
        "path": path,
        "ino": attr.ino.0,
        "size": attr.size,
        "chunk_size": attr.chunk_size,
        "cloud_chunks": refs,
        "peers": peers,
    })))
}

async fn set_location(
    State(coordinator): State<Coordinator>,
    query: Result<Query<PathQuery>, QueryRejection>,
    body: Result<Json<LocationBody>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(PathQuery { path }) = query?;
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
    Ok(Json(
        json!({ "path": path, "peer_id": body.peer_id, "present": body.present }),
    ))
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

async fn metrics(State(coordinator): State<Coordinator>) -> Response {
    let namespace = coordinator.engine().stats();
    let own = coordinator.stats();
    let mut text = String::new();
    let mut one = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP fastcache_{name} {help}\n# TYPE fastcache_{name} {kind}\nfastcache_{name} {value}\n"
        );
    };
    one(
        "coordinator_peers",
        "gauge",
        "Nodes registered in this run.",
        own.peers as u64,
    );
    one(
        "coordinator_peers_live",
        "gauge",
        "Nodes that are live.",
        own.peers_live as u64,
    );
    one(
        "coordinator_leases",
        "gauge",
        "Leases noted.",
        own.leases as u64,
    );
    one(
        "coordinator_revocations_total",
        "counter",
        "Revocations sent.",
        own.revocations,
    );
    one(
        "coordinator_revocations_unanswered_total",
        "counter",
        "Revocations that were not acknowledged within a lease.",
        own.revocations_unanswered,
    );
    one(
        "namespace_inodes",
        "gauge",
        "Inodes that exist.",
        namespace.inodes,
    );
    one(
        "namespace_bytes",
        "gauge",
        "Bytes of all files.",
        namespace.bytes,
    );
    one(
        "namespace_log_position",
        "gauge",
        "Position of the last record.",
        namespace.log_position,
    );
    one(
        "namespace_log_synced_position",
        "gauge",
        "Position up to which the log is on stable storage.",
        namespace.synced_position,
    );
    one(
        "namespace_changes_total",
        "counter",
        "Changes since the start.",
        namespace.changes,
    );
    one(
        "namespace_reads_total",
        "counter",
        "Reads since the start.",
        namespace.reads,
    );
    one(
        "namespace_disk_bytes",
        "gauge",
        "Bytes the store takes on disk.",
        namespace.disk_bytes,
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
