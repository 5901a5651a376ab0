//! What only shows with a table of leases that is small.

use super::*;
use fastcache_api::{Ino, NS_VERSION};
use futures_util::StreamExt;

/// Leases of the table.
const MAX: usize = 64;

/// A node that acknowledges whatever it is told; its session.
pub(super) async fn join(coordinator: &Coordinator, id: &str) -> u64 {
    let node = grpc::Node {
        peer_id: id.to_owned(),
        ..Default::default()
    };
    let registered = coordinator.register(node, NS_VERSION, 0).await.unwrap();
    let session = registered.session;
    let mut revoked = coordinator.watch(session).unwrap();
    let coordinator = coordinator.clone();
    tokio::spawn(async move {
        while let Some(Ok(revocation)) = revoked.next().await {
            coordinator.acknowledge(session, revocation.number);
        }
    });
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn more_can_be_read_than_there_are_leases() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::open(dir.path(), Options::default()).unwrap();
    coordinator.tables().leases = LeaseTable::with_max(MAX);
    let (a, b) = (join(&coordinator, "a").await, join(&coordinator, "b").await);
    for n in 0..4 * MAX as u64 {
        let session = [a, b][n as usize % 2];
        let ino = Ino(1000 + n);
        let since = Instant::now();
        loop {
            // As a read of it is answered.
            let lease_ms = {
                let mut tables = coordinator.tables();
                coordinator.grant(&mut tables, session, &[ino])
            };
            if lease_ms > 0 {
                break;
            }
            assert!(since.elapsed() < LEASE / 2, "no lease on number {n}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(coordinator.stats().leases <= MAX);
    }
    let stats = coordinator.stats();
    assert!(stats.revocations as usize >= 4 * MAX / (MAX / 8) - 8);
    assert_eq!((stats.revocations_unanswered, stats.peers_live), (0, 2));
}
