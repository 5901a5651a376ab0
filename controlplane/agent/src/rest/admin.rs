//! `/api/admin/…`: what `fastcache-ctl`'s operator commands ask of a node. Parameters are in the query.

use super::cache::stats_body;
use super::path::{FilePath, parameter};
use super::types::{ChunkStateBody, EvictBody, FlushBody, QueueBody, StateBody, StatusBody};
use super::{ApiError, Rest, tree};
use crate::CloudConfig;
use crate::check::report::Line;
use crate::check::{CheckError, FsckRequest, GRACE_DEFAULT, GcRequest, LINES_MAX};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fastcache_api::{Attr, Errno, Ino, Kind};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// `GET /api/admin/status`.
pub async fn status(State(rest): State<Rest>) -> Json<StatusBody> {
    let node = &rest.node;
    let stats = node.stats().await;
    let config = node.config();
    Json(StatusBody {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        peer_id: node.peer_id().to_owned(),
        pid: std::process::id(),
        uptime_seconds: stats.uptime.as_secs_f64(),
        is_data_connected: node.is_data_connected(),
        coordinator: config
            .coordinator
            .clone()
            .unwrap_or_else(|| "embedded".to_owned()),
        cloud_place: place(&config.cloud),
        chunk_size_bytes: config.chunk_size,
        fsync: rest.node.fsync_level().name().to_owned(),
        problems: crate::health::assess(&stats),
        stats: stats_body(&stats),
    })
}

/// Where objects go, without secrets.
fn place(cloud: &CloudConfig) -> String {
    match cloud {
        CloudConfig::Dir { path } => format!("dir {}", path.display()),
        CloudConfig::None => "none".to_owned(),
        other => format!("{} {}", other.provider(), other.place()),
    }
}

/// What `?path=` names: `None` without it, or when it is the root.
pub async fn named(rest: &Rest, uri: &Uri) -> Result<Option<(FilePath, Attr)>, ApiError> {
    let Some(path) = parameter(uri.query(), "path")?.filter(|p| !p.is_empty()) else {
        return Ok(None);
    };
    let path = FilePath::from_bytes(&path)?;
    let attr = tree::find(&rest.node, &path)
        .await
        .map_err(|e| ApiError::of(e, &path))?;
    Ok(Some((path, attr)))
}

fn is_set(uri: &Uri, name: &str) -> Result<bool, ApiError> {
    match parameter(uri.query(), name)?.as_deref() {
        None | Some(b"false" | b"0") => Ok(false),
        Some(b"" | b"true" | b"1") => Ok(true),
        Some(_) => Err(ApiError::bad_request(format!("`{name}` is true or false"))),
    }
}

/// `GET /api/admin/state?path=`.
pub async fn state(State(rest): State<Rest>, uri: Uri) -> Result<Json<StateBody>, ApiError> {
    let Some((path, attr)) = named(&rest, &uri).await? else {
        return Err(ApiError::bad_request("`path` is missing"));
    };
    match attr.kind {
        Kind::File => {}
        Kind::Dir => return Err(ApiError::of(Errno::EISDIR, &path)),
        _ => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "not_a_file",
                format!("{path}: is not a regular file"),
            ));
        }
    }
    let state = rest
        .node
        .file_state(attr.ino)
        .await
        .map_err(|e| ApiError::of(e, &path))?;
    Ok(Json(StateBody {
        path: path.to_string(),
        ino: format!("{:x}", attr.ino.0),
        state: state.state.to_string(),
        size: state.size,
        chunks: state
            .chunks
            .into_iter()
            .map(|c| ChunkStateBody {
                index: c.index,
                version: format!("{:x}", c.version.0),
                len_bytes: c.len,
                state: c.state.to_string(),
                object: c.object,
                etag: c.etag,
            })
            .collect(),
    }))
}

/// `GET /api/admin/backlog`: the persist queue, for progress.
pub async fn backlog(State(rest): State<Rest>) -> Json<QueueBody> {
    Json((&rest.node.backlog()).into())
}

/// `POST /api/admin/flush?path=&wait=`: seals and uploads a file, or everything; a directory counts as everything.
pub async fn flush(State(rest): State<Rest>, uri: Uri) -> Result<Json<FlushBody>, ApiError> {
    let ino: Option<Ino> = named(&rest, &uri)
        .await?
        .filter(|(_, attr)| attr.kind == Kind::File)
        .map(|(_, attr)| attr.ino);
    let wait = is_set(&uri, "wait")?;
    let left = match rest.node.flush(ino, wait).await {
        Ok(left) => left,
        Err(Errno::ENOTSUP) => {
            let (code, text) = match rest.node.history_problem().await {
                Some(text) if rest.node.has_cloud() => ("no_history", text),
                _ => (
                    "no_cloud",
                    "this node has no cloud tier (--cloud-provider none): nothing can be persisted"
                        .to_owned(),
                ),
            };
            return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, code, text));
        }
        Err(e) => return Err(ApiError::of(e, "flush")),
    };
    Ok(Json(FlushBody {
        chunks_left: left.chunks_left,
        bytes_left: left.bytes_left,
        queue: (&rest.node.backlog()).into(),
    }))
}

/// `?grace=` of gc and fsck, seconds.
fn grace(uri: &Uri) -> Result<Duration, ApiError> {
    match parameter(uri.query(), "grace")? {
        None => Ok(GRACE_DEFAULT),
        Some(text) => std::str::from_utf8(&text)
            .ok()
            .and_then(|t| t.parse().ok())
            .map(Duration::from_secs)
            .ok_or_else(|| ApiError::bad_request("`grace` is a number of seconds")),
    }
}

/// `POST /api/admin/gc?delete=&force=&grace=`: lines of JSON, the last one a report or an error.
pub async fn gc(State(rest): State<Rest>, uri: Uri) -> Result<Response, ApiError> {
    let request = GcRequest {
        is_delete: is_set(&uri, "delete")?,
        is_forced: is_set(&uri, "force")?,
        grace: grace(&uri)?,
    };
    Ok(lines(|to| async move {
        let done = rest.node.gc(request, to).await;
        done.map(|report| Line::Gc(Box::new(report)))
    }))
}

/// `POST /api/admin/fsck?deep=&repair=&grace=`: lines of JSON, the last one a report or an error.
pub async fn fsck(State(rest): State<Rest>, uri: Uri) -> Result<Response, ApiError> {
    let request = FsckRequest {
        is_deep: is_set(&uri, "deep")?,
        is_repair: is_set(&uri, "repair")?,
        grace: grace(&uri)?,
    };
    Ok(lines(|to| async move {
        let done = rest.node.fsck(request, to).await;
        done.map(|report| Line::Fsck(Box::new(report)))
    }))
}

/// Runs a check in a task of its own and sends what it tells, line by line. It ends when nobody reads any more.
fn lines<F>(check: impl FnOnce(mpsc::Sender<Line>) -> F) -> Response
where
    F: Future<Output = Result<Line, CheckError>> + Send + 'static,
{
    let (to, from) = mpsc::channel(LINES_MAX);
    let running = check(to.clone());
    tokio::spawn(async move {
        let last = running
            .await
            .unwrap_or_else(|error| Line::Error(error.to_string()));
        // Fails when nobody reads any more.
        let _ = to.send(last).await;
    });
    let body = ReceiverStream::new(from).map(|line| {
        serde_json::to_vec(&line).map(|mut text| {
            text.push(b'\n');
            Bytes::from(text)
        })
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(body),
    )
        .into_response()
}

/// `POST /api/admin/evict?path=` or `?all=true`: clean chunks of a file, of the files below a directory, or all.
pub async fn evict(State(rest): State<Rest>, uri: Uri) -> Result<Json<EvictBody>, ApiError> {
    let about = |e| ApiError::of(e, "evict");
    let mut sum = EvictBody::default();
    let inos = match named(&rest, &uri).await? {
        None if is_set(&uri, "all")? => vec![None],
        None => return Err(ApiError::bad_request("give `path`, or `all=true`")),
        Some((_, attr)) if attr.kind == Kind::Dir => {
            let files = tree::files_below(&rest.node, attr.ino)
                .await
                .map_err(about)?;
            files.into_iter().map(Some).collect()
        }
        Some((_, attr)) => vec![Some(attr.ino)],
    };
    for ino in inos {
        let (chunks, bytes) = rest.node.evict(ino).await.map_err(about)?;
        sum.chunks += chunks;
        sum.bytes += bytes;
        let (chunks, bytes) = rest.node.pinned_here(ino);
        sum.pinned_chunks += chunks;
        sum.pinned_bytes += bytes;
    }
    Ok(Json(sum))
}
