//! The one place where the coordinator's errors become HTTP: `{"error":{"code":"…","message":"…"}}`.

use super::BODY_MAX;
use crate::registry::{RegisterError, UnknownSession};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fastcache_api::Errno;
use fastcache_api::path::{FilePath, PathError};
use serde_json::json;

/// An answer that is not a success.
pub(crate) struct ApiError(
    pub(super) StatusCode,
    pub(super) &'static str,
    pub(super) String,
);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.1, "message": self.2 } });
        (self.0, Json(body)).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(e: JsonRejection) -> ApiError {
        match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("a body has at most {BODY_MAX} bytes"),
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ApiError(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
                "send JSON, with Content-Type: application/json".to_owned(),
            ),
            _ => ApiError(StatusCode::BAD_REQUEST, "bad_request", e.body_text()),
        }
    }
}

impl From<PathError> for ApiError {
    fn from(e: PathError) -> ApiError {
        ApiError(StatusCode::BAD_REQUEST, "bad_path", e.to_string())
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
            RegisterError::PeerId | RegisterError::Identity | RegisterError::Version { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            RegisterError::Taken(_) | RegisterError::OtherNode { .. } => {
                (StatusCode::CONFLICT, "peer_id_taken")
            }
            // Trying again cannot help: a cluster knows its nodes for ever.
            RegisterError::Full => (StatusCode::CONFLICT, "too_many_peers"),
            RegisterError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        };
        ApiError(status, code, text)
    }
}

pub(super) fn from_errno(errno: Errno, path: &FilePath) -> ApiError {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => ApiError(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no {path}"),
        ),
        Errno::ENAMETOOLONG | Errno::EINVAL => ApiError(
            StatusCode::BAD_REQUEST,
            "bad_request",
            format!("{path} is not a path"),
        ),
        other => ApiError(StatusCode::INTERNAL_SERVER_ERROR, "io", other.to_string()),
    }
}
