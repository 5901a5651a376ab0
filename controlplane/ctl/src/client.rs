//! HTTP to a node of this machine, or to a coordinator: the REST of `fastcache-agent`, by the bodies it defines.

use crate::cli::NodeFlags;
use crate::node_file::NodeFile;
use crate::path::below_root;
use anyhow::Context;
use bytes::Bytes;
use fastcache_agent::Secret;
use fastcache_agent::rest::types::{ErrorBody, HealthBody, encode_path};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Port of a node that was not told another.
pub const PORT_DEFAULT: u16 = 8081;
/// How long a node may take to answer, where nothing else is said.
pub const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Largest answer, bytes: the state of a file of 400,000 chunks.
const BODY_MAX: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens, or the connection ended: trying again may help.
    #[error("{who} does not answer: {why}")]
    Unreachable {
        /// Who was asked.
        who: String,
        /// What happened.
        why: String,
    },
    /// The node says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Code for programs.
        code: String,
        /// Text for people.
        message: String,
    },
    /// It is not one of our nodes, or of another version.
    #[error("the answer of {who} is not understood: {why}")]
    Strange {
        /// Who was asked.
        who: String,
        /// What is odd.
        why: String,
    },
}

impl CallError {
    /// The node, or its data plane, is away for now.
    pub fn is_passing(&self) -> bool {
        match self {
            CallError::Unreachable { .. } => true,
            CallError::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            CallError::Strange { .. } => false,
        }
    }
}

/// A connection to REST.
#[derive(Clone)]
pub struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    /// `HOST:PORT`.
    address: String,
    /// Who that is, for people.
    who: String,
    key: Option<Secret>,
}

impl Api {
    /// To the node on a port of this machine.
    pub fn new(port: u16, key: Option<Secret>) -> Api {
        let who = format!("the node on port {port}");
        Api::to(format!("127.0.0.1:{port}"), who, key)
    }

    /// To the coordinator at `HOST:PORT`.
    pub fn at(coordinator: &str, key: Option<Secret>) -> Api {
        let who = format!("the coordinator {coordinator}");
        Api::to(coordinator.to_owned(), who, key)
    }

    fn to(address: String, who: String, key: Option<Secret>) -> Api {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Api {
            client,
            address,
            who,
            key,
        }
    }

    /// `GET`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.call(Method::GET, path, Some(ANSWER_MAX)).await
    }

    /// `POST` without a body; no `bound` waits for ever.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        bound: Option<Duration>,
    ) -> Result<T, CallError> {
        self.call(Method::POST, path, bound).await
    }

    /// `POST` whose answer is a line of JSON now and then; `on` gets each. For as long as it takes.
    pub async fn post_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut on: impl FnMut(T),
    ) -> Result<(), CallError> {
        let answer = self.send(Method::POST, path).await?;
        let status = answer.status();
        if !status.is_success() {
            let body = self.whole(answer).await?;
            return Err(self.refused(status, &body));
        }
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.unreachable(e.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            text.extend_from_slice(&data);
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                on(serde_json::from_slice(&line).map_err(|e| self.strange(e.to_string()))?);
            }
            if text.len() > BODY_MAX {
                return Err(self.strange("a line without an end".to_owned()));
            }
        }
        Ok(())
    }

    /// What the node says of its health, when it does within a short time.
    pub async fn health(&self) -> Option<HealthBody> {
        let asked = self.raw(Method::GET, "/api/health");
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
        let (_, body) = answer.ok()?.ok()?;
        serde_json::from_slice(&body).ok()
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        bound: Option<Duration>,
    ) -> Result<T, CallError> {
        let asked = self.raw(method, path);
        let (status, body) = match bound {
            None => asked.await?,
            Some(bound) => tokio::time::timeout(bound, asked)
                .await
                .map_err(|_| self.unreachable(format!("no answer within {bound:?}")))??,
        };
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(|e| self.strange(e.to_string()))
    }

    /// What an answer that is no success says.
    fn refused(&self, status: StatusCode, body: &[u8]) -> CallError {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(e) => CallError::Refused {
                status,
                code: e.error.code,
                message: match status {
                    StatusCode::UNAUTHORIZED => {
                        format!(
                            "{} wants its API key: --api-key, or FASTCACHE_API_KEY",
                            self.who
                        )
                    }
                    _ => e.error.message,
                },
            },
            Err(_) => self.strange(format!("status {status}")),
        }
    }

    async fn raw(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), CallError> {
        let answer = self.send(method, path).await?;
        Ok((answer.status(), self.whole(answer).await?))
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, CallError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key.expose());
        }
        let request = request.body(Full::default()).map_err(|e| {
            self.strange(format!(
                "it cannot be asked, by this address and API key: {e}"
            ))
        })?;
        self.client
            .request(request)
            .await
            .map_err(|e| self.unreachable(root_of(&e)))
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Bytes, CallError> {
        let body = Limited::new(answer.into_body(), BODY_MAX)
            .collect()
            .await
            .map_err(|e| self.unreachable(e.to_string()))?;
        Ok(body.to_bytes())
    }

    fn unreachable(&self, why: String) -> CallError {
        CallError::Unreachable {
            who: self.who.clone(),
            why,
        }
    }

    fn strange(&self, why: String) -> CallError {
        CallError::Strange {
            who: self.who.clone(),
            why,
        }
    }
}

/// The innermost reason: the outer ones say "client error".
fn root_of(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(inner) = error.source() {
        error = inner;
    }
    error.to_string()
}

/// The node an operator's command is about.
pub struct Target {
    /// Its REST.
    pub api: Api,
    /// Its port.
    pub port: u16,
    /// Its mount, where known.
    pub mount: Option<PathBuf>,
}

impl Target {
    /// Finds the node by `--dir` or `--port`.
    pub fn find(flags: &NodeFlags) -> anyhow::Result<Target> {
        let (port, mount) = match &flags.dir {
            Some(dir) => {
                let node = NodeFile::read(dir)?.with_context(|| {
                    format!(
                        "no node was started in {0}: fastcache-ctl up --dir {0} --mount DIR",
                        dir.display()
                    )
                })?;
                anyhow::ensure!(
                    node.is_running(),
                    "the node in {0} is stopped; start it with fastcache-ctl up --dir {0} --mount {1}",
                    dir.display(),
                    node.mount.display()
                );
                (flags.port.unwrap_or(node.port), Some(node.mount))
            }
            None => (flags.port.unwrap_or(PORT_DEFAULT), only_mount()),
        };
        Ok(Target {
            api: Api::new(port, flags.api_key.clone()),
            port,
            mount,
        })
    }

    /// A PATH of the command line as the value of a query.
    pub fn query_path(&self, path: &Path) -> anyhow::Result<String> {
        let cwd = std::env::current_dir().unwrap_or_default();
        let below = match below_root(path, self.mount.as_deref(), &cwd) {
            Ok(below) => below,
            // the mount may be named through a symbolic link: ask the file system once
            Err(error) => match std::fs::canonicalize(path) {
                Ok(real) => below_root(&real, self.mount.as_deref(), &cwd)?,
                Err(_) => return Err(error.into()),
            },
        };
        Ok(encode_path(&below, false))
    }
}

/// The mount of fastcache on this machine, when there is exactly one.
fn only_mount() -> Option<PathBuf> {
    let mut mounts = crate::up::mount_point::fastcache_mounts();
    if mounts.len() == 1 {
        mounts.pop()
    } else {
        None
    }
}
