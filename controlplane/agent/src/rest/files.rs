//! `/api/files/{path}`: what a request is about, and whether its preconditions hold.
//!
//! Bytes go out in `download`, and come in in `upload`. A precondition of a change is judged on what is there and
//! then goes with the change into the namespace, which makes it only if that is still there: the two are one.

use super::path::{FilePath, Target, target};
use super::types::SizeBody;
use super::upload::put;
use super::{ApiError, Rest, download, etag, tree};
use crate::Node;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use fastcache_api::{Attr, Errno, Ino, Kind, NsOp};

/// How often a change under a precondition is judged again because the file changed meanwhile; then it is 412.
pub const JUDGED_MAX: u32 = 8;

/// Methods of `…/size`.
pub const ALLOWED_OF_SIZE: HeaderValue = HeaderValue::from_static("GET,HEAD");

/// `/api/files` without a path.
pub async fn no_path() -> ApiError {
    super::PathError::Empty.into()
}

fn target_of(uri: &Uri) -> Result<Target, ApiError> {
    Ok(target(
        uri.path().strip_prefix("/api/files/").unwrap_or_default(),
    )?)
}

fn file_of(method: &Method, uri: &Uri) -> Result<FilePath, ApiError> {
    match target_of(uri)? {
        Target::File(path) => Ok(path),
        Target::Size(_) => Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!(
                "{method} does not go with the suffix /size; a file of that name is written as \
                 %2Fsize"
            ),
        )
        .with_header(header::ALLOW, ALLOWED_OF_SIZE)),
    }
}

/// A header's value; text that cannot be one is empty.
pub fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// 412.
pub fn precondition(path: &FilePath) -> ApiError {
    ApiError::new(
        StatusCode::PRECONDITION_FAILED,
        "precondition_failed",
        format!("{path}: If-Match or If-None-Match does not hold"),
    )
}

/// Attributes with everything that was written so far: what an application has open is sealed first, because
/// `close` does not wait until its contents are in the namespace.
pub async fn sealed(node: &Node, attr: Attr) -> Result<Attr, Errno> {
    if attr.kind != Kind::File {
        return Ok(attr);
    }
    if let Err(error) = node.seal(Some(attr.ino), false).await {
        tracing::debug!(target: "rest", %error, ino = %attr.ino, "not sealed; committed contents");
        return Ok(attr);
    }
    tree::getattr(node, attr.ino).await
}

/// The regular file a path leads to, with everything that was written to it.
async fn current(node: &Node, path: &FilePath) -> Result<Attr, ApiError> {
    let about = |e| ApiError::of(e, path);
    let attr = tree::find(node, path).await.map_err(about)?;
    match attr.kind {
        Kind::File => sealed(node, attr).await.map_err(about),
        Kind::Dir => Err(about(Errno::EISDIR)),
        _ => Err(ApiError::new(
            StatusCode::CONFLICT,
            "not_a_file",
            format!("{path}: is not a regular file"),
        )),
    }
}

/// `GET` and `HEAD` of `/api/files/{path}` and `…/size`.
pub async fn get_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    match target_of(&uri)? {
        Target::Size(path) => {
            let size = current(&rest.node, &path).await?.size;
            Ok(Json(SizeBody { size }).into_response())
        }
        Target::File(path) => {
            let mut attr = current(&rest.node, &path).await?;
            for _ in 0..JUDGED_MAX {
                let failed = match download::answer(&rest, &method, &headers, &path, &attr).await {
                    Ok(answer) => return answer,
                    Err(errno) => errno,
                };
                // Replaced or changed while it was read: that is not an error of the reader's.
                let now = current(&rest.node, &path).await?;
                if (now.ino, now.layout_version) == (attr.ino, attr.layout_version) {
                    return Err(ApiError::of(failed, &path));
                }
                attr = now;
            }
            Err(ApiError::of(Errno::ESTALE, &path))
        }
    }
}

/// `PUT /api/files/{path}`.
pub async fn put_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let path = file_of(&method, &uri)?;
    put(&rest, &path, &headers, body).await
}

/// `DELETE /api/files/{path}`: removes the name (of a symbolic link, that of the link). 204.
pub async fn delete_file(
    State(rest): State<Rest>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let path = file_of(&method, &uri)?;
    let about = |e| ApiError::of(e, &path);
    let node = &rest.node;
    let (parents, name) = path.split();
    let is_conditional = etag::is_conditional(&headers);
    for _ in 0..JUDGED_MAX {
        let parent = match FilePath::from_bytes(&parents.join(&b'/')) {
            Ok(dir) => tree::find(node, &dir).await.map_err(about)?.ino,
            Err(_) => Ino::ROOT,
        };
        let attr = tree::lookup(node, parent, name)
            .await
            .map_err(|e| match e {
                Errno::ENOTDIR => about(Errno::ENOENT),
                e => about(e),
            })?;
        let name = name.to_vec();
        let op = if is_conditional {
            let attr = sealed(node, attr).await.map_err(about)?;
            if etag::judge(&headers, Some(&etag::of(&attr))) != etag::Verdict::Proceed {
                return Err(precondition(&path));
            }
            let expected = (attr.ino, attr.layout_version);
            NsOp::UnlinkIf {
                parent,
                name,
                expected,
            }
        } else {
            NsOp::Unlink { parent, name }
        };
        match node.ns(op).await.and_then(|r| r.result) {
            Ok(_) => return Ok(StatusCode::NO_CONTENT),
            Err(Errno::ESTALE) if is_conditional => {}
            Err(e) => return Err(about(e)),
        }
    }
    Err(precondition(&path))
}
