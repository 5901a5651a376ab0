//! One port for both: gRPC by its path, REST for the rest.
//!
//! Each connection is served by one thread ([`threads`]), from its first byte to its end.

mod threads;

use crate::{Coordinator, grpc, rest};
use axum::middleware;
use axum::serve::Listener;
use fastcache_api::ApiKey;
use std::future::Future;
use std::io;
use std::time::Duration;
use threads::Threads;
use tokio::net::TcpListener;

/// How long an ordered end waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves gRPC (HTTP/2 without TLS) and REST, both for who shows the key when there is one, until `shutdown`, then ends in order: streams are ended, requests answered
/// within 5 s, the log put on stable storage.
///
/// # Errors
/// When there can be no thread for the connections.
pub async fn serve(
    coordinator: Coordinator,
    mut listener: TcpListener,
    key: Option<ApiKey>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = rest::routes(coordinator.clone())
        .route_service(
            "/fastcache.v1.Coordinator/{*method}",
            grpc::service(coordinator.clone()),
        )
        .layer(middleware::from_fn_with_state(key, rest::want_key));
    let mut threads = Threads::start(&router, listener.local_addr()?)?;
    drop(router);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // By axum's listener: it waits where there are no more open files.
        let (stream, from) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = &mut shutdown => break,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(target: "registry", %error, "a connection keeps its delay");
        }
        threads.take(stream, from);
    }
    drop(listener);
    coordinator.stop();
    threads.end(DRAIN).await;
    coordinator.close().await;
    Ok(())
}
