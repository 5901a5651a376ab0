//! One port for both: gRPC by its path, REST for the rest.

use crate::{Coordinator, grpc, rest};
use axum::middleware;
use axum::serve::ListenerExt;
use fastcache_api::ApiKey;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long an ordered end waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves gRPC (HTTP/2 without TLS) and REST, both for who shows the key when there is one, until `shutdown`, then ends in order: streams are ended, requests answered
/// within 5 s, the log put on stable storage.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    coordinator: Coordinator,
    listener: TcpListener,
    key: Option<ApiKey>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = rest::routes(coordinator.clone())
        .route_service(
            "/fastcache.v1.Coordinator/{*method}",
            grpc::service(coordinator.clone()),
        )
        .layer(middleware::from_fn_with_state(key, rest::want_key));
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(target: "registry", %error, "a connection keeps its delay");
        }
    });
    let (ending, ended) = tokio::sync::oneshot::channel::<()>();
    let stopping = coordinator.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        stopping.stop();
        // Nobody listens when the server has failed already.
        let _ = ending.send(());
    });
    let drained = async {
        match ended.await {
            Ok(()) => tokio::time::sleep(DRAIN).await,
            Err(_) => std::future::pending().await,
        }
    };
    let served = tokio::select! {
        served = server => served,
        () = drained => Ok(()),
    };
    coordinator.close().await;
    served
}
