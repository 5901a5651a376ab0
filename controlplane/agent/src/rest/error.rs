//! The one place where errors become HTTP: errno → status and code, and the one shape of a JSON error,
//! `{"error":{"code":"…","message":"…"}}`.

use super::path::PathError;
use super::types::{ErrorBody, ErrorDetail};
use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use fastcache_api::Errno;

/// An answer that is not a success.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// An error with its status, a code for programs and a message for people.
    pub fn new(status: StatusCode, code: &'static str, message: String) -> ApiError {
        ApiError {
            status,
            code,
            message,
            header: None,
        }
    }

    /// 400 with a message.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", message.into())
    }

    /// An errno, saying what it was about.
    pub fn of(errno: Errno, what: impl std::fmt::Display) -> ApiError {
        let (status, code) = status_of(errno);
        ApiError::new(status, code, format!("{what}: {}", text_of(errno)))
    }

    /// With a header of the answer.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.header = Some((name, value));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: ErrorDetail {
                code: self.code.to_owned(),
                message: self.message,
            },
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<Errno> for ApiError {
    fn from(errno: Errno) -> ApiError {
        let (status, code) = status_of(errno);
        ApiError::new(status, code, text_of(errno))
    }
}

impl From<PathError> for ApiError {
    fn from(e: PathError) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_path", e.to_string())
    }
}

/// ELOOP of Linux; the shared table has no name for it.
pub(super) fn eloop() -> Errno {
    Errno::from_code(40)
}

/// The HTTP status and the error code of an errno.
pub fn status_of(errno: Errno) -> (StatusCode, &'static str) {
    match errno {
        Errno::ENOENT | Errno::ENODATA => (StatusCode::NOT_FOUND, "not_found"),
        Errno::EISDIR => (StatusCode::CONFLICT, "is_directory"),
        Errno::ENOTDIR => (StatusCode::CONFLICT, "not_directory"),
        Errno::EEXIST => (StatusCode::CONFLICT, "exists"),
        Errno::ENOTEMPTY => (StatusCode::CONFLICT, "not_empty"),
        Errno::EBUSY | Errno::ESTALE | Errno::EXDEV | Errno::EMLINK => {
            (StatusCode::CONFLICT, "conflict")
        }
        Errno::EINVAL | Errno::ENAMETOOLONG => (StatusCode::BAD_REQUEST, "bad_request"),
        Errno::EPERM | Errno::EACCES | Errno::EROFS => (StatusCode::FORBIDDEN, "forbidden"),
        Errno::EFBIG | Errno::EOVERFLOW => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
        Errno::ENOSPC => (StatusCode::INSUFFICIENT_STORAGE, "no_space"),
        Errno::ENOTCONN => (StatusCode::SERVICE_UNAVAILABLE, "data_plane_away"),
        Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM => {
            (StatusCode::SERVICE_UNAVAILABLE, "try_again")
        }
        Errno::ETIMEDOUT => (StatusCode::GATEWAY_TIMEOUT, "timed_out"),
        Errno::ENOSYS | Errno::ENOTSUP => (StatusCode::NOT_IMPLEMENTED, "not_supported"),
        e if e == eloop() => (StatusCode::CONFLICT, "symlink_loop"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "io_error"),
    }
}

/// A sentence for people.
fn text_of(errno: Errno) -> String {
    let text = match errno {
        Errno::ENOENT => "no such file or directory",
        Errno::EISDIR => "is a directory",
        Errno::ENOTDIR => "a component of the path is not a directory",
        Errno::EEXIST => "exists",
        Errno::ENAMETOOLONG => "a name is longer than 255 bytes",
        Errno::ENOSPC => "no space left on this node",
        Errno::ENOTCONN => "the data plane is not connected",
        Errno::ETIMEDOUT => "timed out",
        Errno::ENOTSUP => "not supported by this node's configuration",
        Errno::ESTALE => "the file was changed or removed meanwhile",
        Errno::EIO => "input/output error; the node's log says more",
        e if e == eloop() => "too many symbolic links",
        _ => return errno.to_string(),
    };
    text.to_owned()
}
