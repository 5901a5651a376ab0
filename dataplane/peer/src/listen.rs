//! Accepting other nodes' connections: how many, and on which core each is served.

use crate::client::keep_alive;
use crate::cluster::Cluster;
use crate::server::{Chunks, serve};
use fastcache_reactor::{Fd, Remote, sleep};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Connections at once; more are closed at once. A cluster of 1000 nodes with 16 cores each has 16,000 of them.
const CONNECTIONS_MAX: u64 = 20_000;
/// Pause after a failed accept, so that a lasting error does not burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The core for a connection that comes in on this processor, as a place in `cores`, which are (processor, connections that it
/// serves): the one of that processor, unless it serves two more than another one; then one that serves the fewest.
fn core_for(comes_in: Option<usize>, cores: &[(usize, usize)]) -> Option<usize> {
    let fewest = cores.iter().map(|&(_, n)| n).min()?;
    let is_own = |&(cpu, n): &(usize, usize)| Some(cpu) == comes_in && n <= fewest + 1;
    let own = cores.iter().position(is_own);
    own.or_else(|| cores.iter().position(|&(_, n)| n == fewest))
}

/// Accepts connections for ever, on the core that calls, and serves them on all of `cores`: each where the kernel has its
/// packets, so that a request wakes no other processor, as far as that leaves all about as many.
pub async fn listen<C: Chunks>(cluster: Arc<Cluster>, listener: Fd, cores: Vec<Remote>, chunks: C) {
    // Each connection has a clone of its core's mark.
    let cores: Vec<(Remote, Arc<()>)> = cores.into_iter().map(|c| (c, Arc::default())).collect();
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(target: "peer", %error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let open = cluster.served.connections.fetch_add(1, Ordering::Relaxed);
        let served = Counted(Arc::clone(&cluster));
        if open >= CONNECTIONS_MAX {
            tracing::warn!(target: "peer", open, "too many connections: one is closed at once");
            continue;
        }
        keep_alive(&stream);
        let chunks = chunks.clone();
        let comes_in = rustix::net::sockopt::socket_incoming_cpu(stream.as_fd());
        let comes_in = comes_in.ok().and_then(|cpu| usize::try_from(cpu).ok());
        let serving = |(core, mark): &(Remote, Arc<()>)| (core.core(), Arc::strong_count(mark));
        let all: Vec<_> = cores.iter().map(serving).collect();
        if let Some((core, mark)) = core_for(comes_in, &all).and_then(|at| cores.get(at)) {
            let mark = Arc::clone(mark);
            core.spawn(move || async move {
                serve(&served.0, stream, chunks).await;
                drop((served, mark));
            });
        }
    }
}

/// A connection that is open.
struct Counted(Arc<Cluster>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.served.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_served_where_they_come_in_while_that_leaves_about_as_many_to_each() {
        assert_eq!(core_for(Some(0), &[]), None);
        assert_eq!(core_for(None, &[(0, 2), (1, 1)]), Some(1));
        assert_eq!(core_for(Some(3), &[(2, 1), (3, 2)]), Some(1));
        assert_eq!(core_for(Some(3), &[(2, 1), (3, 3)]), Some(0));
        assert_eq!(
            core_for(Some(7), &[(2, 1), (3, 0)]),
            Some(1),
            "not a core of this node"
        );
        // A card with one queue: all come in on one processor.
        let mut cores = [(0, 0), (1, 0), (2, 0)];
        for _ in 0..30 {
            let at = core_for(Some(0), &cores).unwrap();
            cores[at].1 += 1;
        }
        let most = cores.iter().map(|&(_, n)| n).max();
        assert!(most <= Some(12), "{cores:?}");
    }
}
