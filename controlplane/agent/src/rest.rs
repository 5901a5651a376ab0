//! REST of a node (DESIGN section 6): thin. It decodes a request, calls [`Node`], encodes the answer.
//!
//! Paths, ranges and entity tags have a file each, as has the translation of errors into statuses; all of
//! them are functions without I/O. Every endpoint but `/api/health` wants the API key when there is one.
//! Nothing a client sends can panic the process: every header and query is parsed by a total function.

mod admin;
mod cache;
mod error;
mod etag;
mod files;
mod path;
mod range;
#[cfg(test)]
mod tests;
mod tree;
pub mod types;

pub use error::{ApiError, status_of};
pub use path::{FilePath, PathError};

use crate::{Node, metrics};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// `PUT`s at once; further ones wait. Each holds one buffer of 4 MiB.
const PUTS_MAX: usize = 32;
/// `GET`s of contents at once; further ones wait. Each holds at most three pieces of 4 MiB.
const GETS_MAX: usize = 64;

/// What the handlers share.
#[derive(Clone)]
struct Rest {
    node: Node,
    puts: Arc<Semaphore>,
    gets: Arc<Semaphore>,
}

/// A listening REST server.
pub struct RestServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RestServer {
    /// Where it listens: the port it got when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and waits, at most `bound`, until the requests that run have ended.
    pub async fn stop(self, bound: Duration) {
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout(bound, self.task).await.is_err() {
            abort.abort();
            tracing::warn!(target: "rest", ?bound, "requests still ran when REST had to stop");
        }
    }
}

/// Listens on the configured address and port, and serves until stopped. Needs a tokio runtime.
pub async fn serve(node: Node) -> std::io::Result<RestServer> {
    let config = node.config();
    let at = SocketAddr::new(config.listen, config.port);
    let listener = tokio::net::TcpListener::bind(at)
        .await
        .map_err(|e| std::io::Error::new(e.kind(), format!("cannot listen on {at}: {e}")))?;
    let address = listener.local_addr()?;
    let app = router(node);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
            let _ = stopped.await;
        });
        if let Err(error) = serving.await {
            tracing::error!(target: "rest", %error, "REST ended");
        }
    });
    Ok(RestServer {
        address,
        stop,
        task,
    })
}

/// The routes, with their middleware.
pub fn router(node: Node) -> Router {
    metrics::install();
    let rest = Rest {
        node,
        puts: Arc::new(Semaphore::new(PUTS_MAX)),
        gets: Arc::new(Semaphore::new(GETS_MAX)),
    };
    let file = get(files::get_file)
        .head(files::head_file)
        .put(files::put_file)
        .delete(files::delete_file);
    Router::new()
        .route("/api/files", get(files::no_path).fallback(files::no_path))
        .route("/api/files/", get(files::no_path).fallback(files::no_path))
        .route("/api/files/{*path}", file)
        .route("/api/cache", get(cache::list))
        .route("/api/cache/stats", get(cache::stats))
        .route("/api/health", get(cache::health))
        .route("/api/peers", get(cache::peers))
        .route("/api/peers/{id}", get(cache::peer))
        .route("/metrics", get(cache::metrics_text))
        .route("/api/admin/status", get(admin::status))
        .route("/api/admin/state", get(admin::state))
        .route("/api/admin/backlog", get(admin::backlog))
        .route("/api/admin/flush", post(admin::flush))
        .route("/api/admin/evict", post(admin::evict))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(rest.clone(), want_key))
        .layer(middleware::from_fn(count))
        .with_state(rest)
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is no endpoint {}", uri.path()),
    )
}

async fn not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} does not take {method}", uri.path()),
    )
}

/// Refuses requests without the key, telling nothing else.
async fn want_key(State(rest): State<Rest>, request: Request, next: Next) -> Response {
    if let Some(key) = &rest.node.config().api_key
        && request.uri().path() != "/api/health"
    {
        let given = request
            .headers()
            .get("x-api-key")
            .map_or(&b""[..], |v| v.as_bytes());
        if !bool::from(given.ct_eq(key.expose().as_bytes())) {
            return ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "a valid X-API-Key header is required".to_owned(),
            )
            .into_response();
        }
    }
    next.run(request).await
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
