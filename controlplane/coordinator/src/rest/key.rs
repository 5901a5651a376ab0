//! The API key on everything but health: the REST endpoints, and gRPC, which is how a node reaches everything there is.

use super::ApiError;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fastcache_api::{API_KEY_HEADER, ApiKey};

/// What every path of the gRPC service begins with.
pub(crate) const GRPC: &str = "/fastcache.v1.Coordinator/";

/// Refuses calls without the key, telling nothing else. gRPC gets `PERMISSION_DENIED`, which a node takes as final.
pub(crate) async fn want_key(
    State(key): State<Option<ApiKey>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let given = request.headers().get(API_KEY_HEADER);
    let given = given.map_or(&b""[..], |v| v.as_bytes());
    if path == "/api/health" || key.is_none_or(|key| key.is(given)) {
        return next.run(request).await;
    }
    if path.starts_with(GRPC) {
        let text = "a valid API key is required: start the node with the coordinator's --api-key";
        return tonic::Status::permission_denied(text).into_http();
    }
    let text = "a valid X-API-Key header is required".to_owned();
    ApiError(StatusCode::UNAUTHORIZED, "unauthorized", text).into_response()
}
