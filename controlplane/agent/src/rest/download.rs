//! Bytes of a file on their way to a client.
//!
//! A download holds no slot of the shared memory while it waits for its client: each piece is copied out of its slot
//! at once, by a task that ends whether or not the client takes it. What it does hold (a place, three pieces) goes
//! with the connection. The last piece is sent only when the contents are still those that the ETag names: a file
//! that changed meanwhile is a cut connection, never a mixture.

use super::files::{precondition, sealed, value};
use super::path::FilePath;
use super::range::{Selected, select};
use super::{ApiError, Rest, etag, tree, turn};
use crate::Node;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fastcache_api::{Attr, Errno, Ino, Version};
use futures_util::stream;
use std::io;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

/// Bytes of one piece.
const PIECE: u64 = 256 << 10;

/// The answer to `GET` or `HEAD` of a file, or why its first bytes cannot be read.
pub async fn answer(
    rest: &Rest,
    method: &Method,
    headers: &HeaderMap,
    path: &FilePath,
    attr: &Attr,
) -> Result<Result<Response, ApiError>, Errno> {
    let (status, start, len) = match selected(method, headers, path, attr) {
        Ok(selected) => selected,
        Err(refused) => return Ok(Err(refused)),
    };
    let tag = etag::of(attr);
    if status == StatusCode::NOT_MODIFIED {
        return Ok(Ok((status, [(header::ETAG, value(&tag))]).into_response()));
    }
    let body = if *method == Method::HEAD || len == 0 {
        Body::empty()
    } else {
        let place = match turn(&rest.gets).await {
            Ok(place) => place,
            Err(busy) => return Ok(Err(busy)),
        };
        let download = Download {
            node: rest.node.clone(),
            ino: attr.ino,
            version: attr.layout_version,
            at: start,
            end: start.saturating_add(len),
            _place: place,
        };
        download.body().await?
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let h = response.headers_mut();
    h.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    h.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    h.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    h.insert(header::ETAG, value(&tag));
    if status == StatusCode::PARTIAL_CONTENT {
        let last = start + len - 1;
        h.insert(
            header::CONTENT_RANGE,
            value(&format!("bytes {start}-{last}/{}", attr.size)),
        );
    }
    Ok(Ok(response))
}

/// Status, first byte and length of the answer to a request, or its refusal.
fn selected(
    method: &Method,
    headers: &HeaderMap,
    path: &FilePath,
    attr: &Attr,
) -> Result<(StatusCode, u64, u64), ApiError> {
    let tag = etag::of(attr);
    match etag::judge(headers, Some(&tag)) {
        etag::Verdict::Proceed => {}
        etag::Verdict::Have => return Ok((StatusCode::NOT_MODIFIED, 0, 0)),
        etag::Verdict::Failed => return Err(precondition(path)),
    }
    let range = headers
        .get(header::RANGE)
        .and_then(|v| v.to_str().ok())
        // RFC 9110: Range is defined for GET only
        .filter(|_| *method == Method::GET && etag::range_applies(headers, &tag));
    let selected = range.map_or(Selected::Whole, |r| select(r, attr.size));
    match selected {
        Selected::Whole => Ok((StatusCode::OK, 0, attr.size)),
        Selected::Part { start, len } => Ok((StatusCode::PARTIAL_CONTENT, start, len)),
        Selected::Unsatisfiable => Err(ApiError::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range_not_satisfiable",
            format!("{path}: has {} bytes", attr.size),
        )
        .with_header(
            header::CONTENT_RANGE,
            value(&format!("bytes */{}", attr.size)),
        )),
    }
}

/// A part of a file that is being sent.
struct Download {
    node: Node,
    ino: Ino,
    /// Layout version that the ETag names.
    version: Version,
    /// Where the piece that was not asked for yet begins.
    at: u64,
    end: u64,
    _place: OwnedSemaphorePermit,
}

type Piece = JoinHandle<Result<Bytes, Errno>>;

impl Download {
    /// A body that is read as the client takes it, one piece ahead. The first piece is read before the status is sent,
    /// so that a file that cannot be read is an error and not a cut connection.
    async fn body(mut self) -> Result<Body, Errno> {
        let first = self.next().ok_or(Errno::EINVAL)?;
        let first = piece(first).await?;
        let ahead = self.next();
        if ahead.is_none() {
            self.is_unchanged().await?;
            return Ok(Body::from(first));
        }
        let state = (self, Some(first), ahead);
        Ok(Body::from_stream(stream::unfold(state, step)))
    }

    /// Begins to read the next piece.
    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let (node, ino, at) = (self.node.clone(), self.ino, self.at);
        let len = (PIECE - at % PIECE).min(self.end - at);
        self.at += len;
        Some(tokio::spawn(async move {
            let want = u32::try_from(len).map_err(|_| Errno::EINVAL)?;
            let bytes = node.read_file(ino, at, want).await?;
            // Shorter: the file was truncated meanwhile.
            if bytes.len() as u64 == len {
                Ok(bytes)
            } else {
                Err(Errno::ESTALE)
            }
        }))
    }

    /// ESTALE when the contents are no longer those of the ETag.
    async fn is_unchanged(&self) -> Result<(), Errno> {
        let attr = tree::getattr(&self.node, self.ino).await?;
        if sealed(&self.node, attr).await?.layout_version == self.version {
            Ok(())
        } else {
            Err(Errno::ESTALE)
        }
    }
}

async fn piece(piece: Piece) -> Result<Bytes, Errno> {
    // A task that panicked has said so.
    piece.await.unwrap_or(Err(Errno::EIO))
}

type State = (Download, Option<Bytes>, Option<Piece>);

/// Sends what is ready, then what was read ahead; an error ends the stream and so cuts the connection.
async fn step((mut download, ready, ahead): State) -> Option<(io::Result<Bytes>, State)> {
    if let Some(bytes) = ready {
        return Some((Ok(bytes), (download, None, ahead)));
    }
    let bytes = piece(ahead?).await;
    let next = download.next();
    let bytes = match bytes {
        Ok(bytes) if next.is_none() => download.is_unchanged().await.map(|()| bytes),
        bytes => bytes,
    };
    match bytes {
        Ok(bytes) => Some((Ok(bytes), (download, None, next))),
        Err(error) => {
            tracing::warn!(target: "rest", %error, ino = %download.ino, "a download was cut");
            let error = io::Error::from_raw_os_error(error.code());
            Some((Err(error), (download, None, None)))
        }
    }
}
