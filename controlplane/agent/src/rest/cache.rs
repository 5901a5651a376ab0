//! What a node tells about itself: cache, health, metrics.

use super::path::parameter;
use super::types::{CacheBody, CachedBody, HealthBody, StatsBody};
use super::{ApiError, Rest};
use crate::metrics;
use crate::types::NodeStats;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use fastcache_api::{ChunkId, Ino};

/// Chunks of a page of `/api/cache` unless asked otherwise.
const PAGE: usize = 1000;
/// Most chunks of a page.
const PAGE_MAX: usize = 10_000;

/// `GET /api/cache?after=INO.INDEX&limit=N`.
pub async fn list(State(rest): State<Rest>, uri: Uri) -> Result<Json<CacheBody>, ApiError> {
    let after = parameter(uri.query(), "after")?.filter(|v| !v.is_empty());
    let after = match after {
        None => None,
        Some(text) => Some(chunk_id(&text).ok_or_else(|| {
            ApiError::bad_request("`after` is what `next` of the page before said: INO.INDEX")
        })?),
    };
    let limit = match parameter(uri.query(), "limit")? {
        None => PAGE,
        Some(text) => std::str::from_utf8(&text)
            .ok()
            .and_then(|t| t.parse::<usize>().ok())
            .filter(|n| (1..=PAGE_MAX).contains(n))
            .ok_or_else(|| {
                ApiError::bad_request(format!("`limit` is a number from 1 to {PAGE_MAX}"))
            })?,
    };
    let cached = rest.node.cached(after, limit);
    let next = (cached.len() == limit)
        .then(|| {
            cached
                .last()
                .map(|c| format!("{:x}.{}", c.key.ino.0, c.key.index))
        })
        .flatten();
    let chunks = cached
        .iter()
        .map(|c| CachedBody {
            ino: format!("{:x}", c.key.ino.0),
            index: c.key.index,
            version: format!("{:x}", c.key.version.0),
            len_bytes: c.len,
            device_bytes: c.device_bytes,
            is_dirty: c.is_dirty,
        })
        .collect();
    Ok(Json(CacheBody { chunks, next }))
}

fn chunk_id(text: &[u8]) -> Option<ChunkId> {
    let (ino, index) = std::str::from_utf8(text).ok()?.split_once('.')?;
    Some(ChunkId {
        ino: Ino(u64::from_str_radix(ino, 16).ok()?),
        index: index.parse().ok()?,
    })
}

/// A node's counters as JSON.
pub fn stats_body(stats: &NodeStats) -> StatsBody {
    StatsBody {
        nvme: stats.data.clone(),
        pinned: (&stats.pins).into(),
        queue: (&stats.backlog).into(),
        cloud: (&stats.cloud).into(),
        namespace: stats.namespace.as_ref().map(Into::into),
        history: stats.history.clone(),
    }
}

/// `GET /api/cache/stats`.
pub async fn stats(State(rest): State<Rest>) -> Json<StatsBody> {
    Json(stats_body(&rest.node.stats().await))
}

/// `GET /api/health`, `/api/health/live`: 200, or 503 when the data plane is away. Never needs a key.
pub async fn health(State(rest): State<Rest>) -> Response {
    let is_data_connected = rest.node.is_data_connected();
    let (status, text) = if is_data_connected {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "degraded")
    };
    let body = HealthBody {
        status: text.to_owned(),
        waits_for: None,
        is_data_connected,
        are_cloud_reads_stopped: rest.node.are_cloud_reads_stopped(),
        peer_id: rest.node.peer_id().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    (status, Json(body)).into_response()
}

/// `GET /metrics`, as Prometheus reads it.
pub async fn metrics_text(State(rest): State<Rest>) -> Result<Response, ApiError> {
    let stats = rest.node.stats().await;
    let text = metrics::render(&stats).ok_or_else(|| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_metrics",
            "another metrics recorder is installed in this process".to_owned(),
        )
    })?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response())
}
