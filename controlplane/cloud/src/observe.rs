//! Sees every answer of the store as it comes: what asks for fewer requests is noted before anybody retries.

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Longest pause that a `Retry-After` is granted: beyond, the store is asked anyway.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// What the answers said.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    paused_until: Mutex<Option<Instant>>,
}

impl Watch {
    /// Until when the store asked not to be asked; `None`: it did not, or that is over.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        let mut until = self
            .paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *until = until.filter(|at| *at > Instant::now());
        *until
    }

    fn see(&self, status: u16, retry_after: Option<&str>) {
        if !matches!(status, 429 | 503) {
            return;
        }
        metrics::counter!("fastcache_cloud_throttled_total").increment(1);
        // Seconds; the form with a date is not used by any store known, and clocks differ.
        let seconds = retry_after.and_then(|v| v.trim().parse::<u64>().ok());
        if let Some(seconds) = seconds {
            let pause = Duration::from_secs(seconds).min(PAUSE_MAX);
            let until = Instant::now() + pause;
            let mut now = self
                .paused_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *now = Some(now.map_or(until, |at| at.max(until)));
        }
    }
}

/// Makes clients that are watched.
#[derive(Debug)]
pub(crate) struct Observer {
    watch: Arc<Watch>,
    /// Whether the endpoint of temporary credentials was named, with `http://`: nothing else asks for plain HTTP
    /// against the options.
    is_http_allowed: bool,
}

impl Observer {
    pub(crate) fn new(watch: Arc<Watch>, is_http_allowed: bool) -> Observer {
        Observer {
            watch,
            is_http_allowed,
        }
    }
}

impl HttpConnector for Observer {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = if self.is_http_allowed {
            ReqwestConnector::default().connect(&options.clone().with_allow_http(true))?
        } else {
            ReqwestConnector::default().connect(options)?
        };
        Ok(HttpClient::new(Watched {
            inner,
            watch: self.watch.clone(),
        }))
    }
}

#[derive(Debug)]
struct Watched {
    inner: HttpClient,
    watch: Arc<Watch>,
}

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.inner.execute(request).await?;
        let after = answer
            .headers()
            .get("retry-after")
            .and_then(|v| v.to_str().ok());
        self.watch.see(answer.status().as_u16(), after);
        Ok(answer)
    }
}
