//! What REST says before there is a node: it listens first, since a node that has to register with a coordinator starts
//! when that answers.
//!
//! Two questions, two answers. Whether it serves (`/api/health`: 503, so that nothing is sent here), and whether a
//! restart would help (`/api/health/live`: 200, it would wait for the same again). Everything else is 503 with the reason.

use super::types::HealthBody;
use super::{ApiError, HEALTH, HEALTH_LIVE, no_key, shows};
use crate::AgentConfig;
use crate::link::lock;
use crate::types::Starting;
use axum::Router;
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Body};
use fastcache_api::ApiKey;
use std::sync::{Mutex, OnceLock};

/// Where requests arrive: the node's routes, as soon as there is a node.
pub(super) struct Front {
    app: OnceLock<Router>,
    at: Mutex<Starting>,
    key: Option<ApiKey>,
    peer_id: String,
}

impl Front {
    pub(super) fn new(config: &AgentConfig) -> Front {
        let key = config.api_key.as_ref();
        Front {
            app: OnceLock::new(),
            at: Mutex::default(),
            key: key.map(|key| ApiKey::new(key.expose())),
            peer_id: config.known_peer_id().unwrap_or_default(),
        }
    }

    /// What the node is at.
    pub(super) fn tell(&self, at: Starting) {
        *lock(&self.at) = at;
    }

    /// From now on these answer; the first stay.
    pub(super) fn open(&self, app: Router) {
        let _ = self.app.set(app);
    }

    pub(super) fn app(&self) -> Option<Router> {
        self.app.get().cloned()
    }

    /// The answer while there is no node.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let (word, text) = match &*lock(&self.at) {
            Starting::Opening => (
                "starting",
                "the object store and the namespace are being opened".to_owned(),
            ),
            Starting::Registering { coordinator, why } => (
                "registering",
                match why {
                    Some(why) => {
                        format!("the coordinator {coordinator} does not register this node: {why}")
                    }
                    None => format!("the coordinator {coordinator} has not answered yet"),
                },
            ),
        };
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let status = match request.uri().path() {
            HEALTH if is_read => StatusCode::SERVICE_UNAVAILABLE,
            HEALTH_LIVE if is_read => StatusCode::OK,
            _ if !shows(self.key.as_ref(), request.headers()) => return no_key().into_response(),
            _ => {
                let text = format!("this node has not started yet: {text}");
                return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, word, text)
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
                    .into_response();
            }
        };
        let body = HealthBody {
            status: word.to_owned(),
            waits_for: Some(text),
            is_data_connected: false,
            are_cloud_reads_stopped: false,
            peer_id: self.peer_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        (status, Json(body)).into_response()
    }
}
