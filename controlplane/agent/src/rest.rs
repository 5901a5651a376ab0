//! REST of a node (DESIGN section 6): thin. It decodes a request, calls [`Node`], encodes the answer.
//! It listens before there is a node, and says until then what the node is at (`starting`).
//!
//! Paths, ranges and entity tags have a file each, as has the translation of errors into statuses; all of
//! them are functions without I/O. Every endpoint but `/api/health` and `/api/health/live` wants the API key when there
//! is one.
//! Nothing a client sends can panic the process: every header and query is parsed by a total function.

mod admin;
mod cache;
mod download;
mod error;
mod etag;
mod files;
mod peers;
mod range;
mod server;
mod starting;
#[cfg(test)]
mod tests;
mod tree;
pub mod types;
mod upload;
mod warm;

pub use error::{ApiError, status_of};
use fastcache_api::path;
pub use fastcache_api::path::{FilePath, PathError};
pub use server::{RestServer, listen, serve};

use crate::{Node, metrics};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use fastcache_api::{API_KEY_HEADER, ApiKey};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// `PUT`s at once. Each holds at most two pieces of 1 MiB: 64 MiB in all.
const PUTS_MAX: usize = 32;
/// `GET`s of contents at once. Each holds at most three pieces of 256 KiB: 192 MiB in all, when every client is slow.
const GETS_MAX: usize = 256;
/// How long a request waits for its turn before it is answered with 503: longer than a client may stop, so that those
/// behind stopped ones get their turn.
const TURN_MAX: Duration = Duration::from_secs(60);

/// What the handlers share.
#[derive(Clone)]
struct Rest {
    node: Node,
    key: Option<ApiKey>,
    puts: Arc<Semaphore>,
    gets: Arc<Semaphore>,
}

/// A place among those that are served, or 503 after [`TURN_MAX`].
async fn turn(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    let place = tokio::time::timeout(TURN_MAX, places.clone().acquire_owned()).await;
    // never closed
    place.ok().and_then(Result::ok).ok_or_else(|| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many transfers at once; try again".to_owned(),
        )
        .with_header(header::RETRY_AFTER, header::HeaderValue::from_static("1"))
    })
}

/// Whether this node serves: what decides that it gets work.
const HEALTH: &str = "/api/health";
/// Whether this process is well: what decides that it is restarted.
const HEALTH_LIVE: &str = "/api/health/live";

/// An endpoint: its route, the paths of `/openapi.json` that it serves, its methods.
type Endpoint = (&'static str, &'static [&'static str], MethodRouter<Rest>);

/// Every endpoint. `rest/openapi.json` describes the same; a test compares the two.
fn table() -> Vec<Endpoint> {
    let file = get(files::get_file)
        .put(files::put_file)
        .delete(files::delete_file);
    vec![
        (
            "/api/files/{*path}",
            &["/api/files/{path}", "/api/files/{path}/size"],
            file,
        ),
        ("/api/cache", &["/api/cache"], get(cache::list)),
        ("/api/cache/stats", &["/api/cache/stats"], get(cache::stats)),
        (HEALTH, &[HEALTH], get(cache::health)),
        // Of a node that has started both are the same.
        (HEALTH_LIVE, &[HEALTH_LIVE], get(cache::health)),
        ("/api/peers", &["/api/peers"], get(peers::list)),
        ("/api/peers/{id}", &["/api/peers/{id}"], get(peers::one)),
        (
            "/api/peers/{id}/heartbeat",
            &["/api/peers/{id}/heartbeat"],
            post(peers::heartbeat),
        ),
        ("/metrics", &["/metrics"], get(cache::metrics_text)),
        ("/openapi.json", &["/openapi.json"], get(openapi)),
        (
            "/api/admin/status",
            &["/api/admin/status"],
            get(admin::status),
        ),
        ("/api/admin/state", &["/api/admin/state"], get(admin::state)),
        (
            "/api/admin/backlog",
            &["/api/admin/backlog"],
            get(admin::backlog),
        ),
        (
            "/api/admin/flush",
            &["/api/admin/flush"],
            post(admin::flush),
        ),
        (
            "/api/admin/evict",
            &["/api/admin/evict"],
            post(admin::evict),
        ),
        (
            "/api/admin/warmup",
            &["/api/admin/warmup"],
            post(warm::warmup),
        ),
        ("/api/admin/pin", &["/api/admin/pin"], post(warm::pin)),
        ("/api/admin/unpin", &["/api/admin/unpin"], post(warm::unpin)),
        ("/api/admin/gc", &["/api/admin/gc"], post(admin::gc)),
        ("/api/admin/fsck", &["/api/admin/fsck"], post(admin::fsck)),
    ]
}

/// The routes, with their middleware.
pub fn router(node: Node) -> Router {
    metrics::install();
    let key = node.config().api_key.as_ref();
    let rest = Rest {
        key: key.map(|key| ApiKey::new(key.expose())),
        node,
        puts: Arc::new(Semaphore::new(PUTS_MAX)),
        gets: Arc::new(Semaphore::new(GETS_MAX)),
    };
    let mut router = Router::new()
        .route("/api/files", get(files::no_path).fallback(files::no_path))
        .route("/api/files/", get(files::no_path).fallback(files::no_path));
    for (route, _, methods) in table() {
        router = router.route(route, methods);
    }
    router
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(rest.clone(), want_key))
        .layer(middleware::from_fn(count))
        .with_state(rest)
}

/// The description of this interface.
const OPENAPI: &str = include_str!("rest/openapi.json");

/// `GET /openapi.json`.
async fn openapi() -> Response {
    let version = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");
    let text = OPENAPI.replacen("\"0.0.0\"", version, 1);
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is no endpoint {}", uri.path()),
    )
}

async fn not_allowed(method: Method, uri: Uri) -> ApiError {
    let refused = ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} does not take {method}", uri.path()),
    );
    // One route with the files, and fewer methods; elsewhere the router tells which there are.
    if uri.path().starts_with("/api/files/") && uri.path().ends_with("/size") {
        return refused.with_header(header::ALLOW, files::ALLOWED_OF_SIZE);
    }
    refused
}

/// Refuses requests without the key, telling nothing else.
async fn want_key(State(rest): State<Rest>, request: Request, next: Next) -> Response {
    let is_open = [HEALTH, HEALTH_LIVE].contains(&request.uri().path());
    if is_open || shows(rest.key.as_ref(), request.headers()) {
        return next.run(request).await;
    }
    no_key().into_response()
}

/// Whether a request shows the key, when there is one.
fn shows(key: Option<&ApiKey>, headers: &HeaderMap) -> bool {
    let given = headers.get(API_KEY_HEADER);
    let given = given.map_or(&b""[..], |v| v.as_bytes());
    key.is_none_or(|key| key.is(given))
}

fn no_key() -> ApiError {
    let text = "a valid X-API-Key header is required".to_owned();
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", text)
}

/// Counts requests by method and status, and how long each took to its first byte.
async fn count(request: Request, next: Next) -> Response {
    let method = match *request.method() {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    };
    let start = Instant::now();
    let response = next.run(request).await;
    metrics::rest_request(method, response.status().as_u16(), start.elapsed());
    response
}
