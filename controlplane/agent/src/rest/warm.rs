//! `/api/admin/warmup`, `pin` and `unpin`: a file, or the files below a directory.

use super::admin::named;
use super::types::UnpinBody;
use super::{ApiError, Rest, tree};
use crate::warm::{LINES_MAX, Line};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fastcache_api::{Errno, Ino, Kind};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The regular files that `?path=` names; without it, all.
async fn files(rest: &Rest, uri: &Uri) -> Result<Vec<Ino>, ApiError> {
    let (dir, about) = match named(rest, uri).await? {
        None => (Ino::ROOT, "/".to_owned()),
        Some((path, attr)) => match attr.kind {
            Kind::File => return Ok(vec![attr.ino]),
            Kind::Dir => (attr.ino, path.to_string()),
            _ => {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    "not_a_file",
                    format!("{path}: is neither a file nor a directory"),
                ));
            }
        },
    };
    tree::files_below(&rest.node, dir)
        .await
        .map_err(|e| ApiError::of(e, &about))
}

/// `POST /api/admin/warmup?path=`: lines of JSON, the last one a report or an error. It stops when nobody reads any more.
pub async fn warmup(State(rest): State<Rest>, uri: Uri) -> Result<Response, ApiError> {
    begin(rest, &uri, false).await
}

/// `POST /api/admin/pin?path=`: the same, of files that are pinned first.
pub async fn pin(State(rest): State<Rest>, uri: Uri) -> Result<Response, ApiError> {
    begin(rest, &uri, true).await
}

async fn begin(rest: Rest, uri: &Uri, is_pin: bool) -> Result<Response, ApiError> {
    if !rest.node.is_data_connected() {
        return Err(ApiError::of(Errno::ENOTCONN, "the data plane is away"));
    }
    let files = files(&rest, uri).await?;
    let (to, from) = mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        let done = rest.node.warm(files, is_pin, &to).await;
        let last = match done {
            Ok(report) => Line::Done(report),
            Err(error) => Line::Error(error.to_string()),
        };
        // Fails when nobody reads any more.
        let _ = to.send(last).await;
    });
    let body = ReceiverStream::new(from).map(|line| {
        serde_json::to_vec(&line).map(|mut text| {
            text.push(b'\n');
            Bytes::from(text)
        })
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(body)).into_response())
}

/// `POST /api/admin/unpin?path=`.
pub async fn unpin(State(rest): State<Rest>, uri: Uri) -> Result<Json<UnpinBody>, ApiError> {
    let files = files(&rest, &uri).await?;
    let unpinned = rest.node.unpin(files).await;
    let files = unpinned.map_err(|e| ApiError::of(e, "unpin"))?;
    Ok(Json(UnpinBody { files }))
}
