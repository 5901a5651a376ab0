//! Goal: who begins something and does not go on costs others nothing. Method: as in the parent.

use super::*;
use crate::server::coming_bytes;

/// Gives the first part of a replica, and nothing more.
async fn begin(client: &Arc<Cluster>, peer: &Arc<Peer>, key: ChunkKey) -> Result<(), AskError> {
    let frame = IoBuf::alloc(HEADER_BYTES + (1 << 20));
    client.put(peer, key, CHUNK_MAX, 0, frame, SOON).await
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = now();
    while !is_true() {
        assert!(since.elapsed() < 4 * SOON, "never happened: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn replicas_that_are_given_up_make_way() {
    let memory = Memory::default();
    reactor(|| async {
        let (server, client, peer) = pair(&memory);
        for n in 0..40 {
            assert_eq!(begin(&client, &peer, key(n)).await, Ok(()), "number {n}");
        }
        assert_eq!(coming_bytes(), 4 * CHUNK_MAX);
        // One that is gone on with comes whole.
        assert_eq!(begin(&client, &peer, key(99)).await, Ok(()));
        for part in 1..4 {
            let frame = IoBuf::alloc(HEADER_BYTES + (1 << 20));
            let given = client.put(&peer, key(99), CHUNK_MAX, part << 20, frame, SOON);
            assert_eq!(given.await, Ok(()));
        }
        assert_eq!(memory.find(key(99)), Some(CHUNK_MAX));
        assert_eq!(coming_bytes(), 3 * CHUNK_MAX);
        // What is released is forgotten at once.
        client.release(&peer, key(39));
        until("one is forgotten", || coming_bytes() == 2 * CHUNK_MAX).await;
        let frame = IoBuf::alloc(HEADER_BYTES + (1 << 20));
        let given = client.put(&peer, key(39), CHUNK_MAX, 1 << 20, frame, SOON);
        assert_eq!(given.await, Err(AskError::Busy));
        // And with their connection the others are.
        client.set(identity("b"), &[]);
        until("nothing is left", || coming_bytes() == 0).await;
        assert_eq!(server.stats().broken_connections, 0);
    });
}

#[test]
fn a_replica_that_is_there_is_kept_to_the_end() {
    let memory = Memory::default();
    reactor(|| async {
        let (_server, client, peer) = pair(&memory);
        let mut frame = IoBuf::alloc(HEADER_BYTES + 5);
        frame[HEADER_BYTES..].copy_from_slice(b"slow!");
        // It takes 500 ms, and who gives it waits for 100.
        let limit = Duration::from_millis(100);
        let given = client.put(&peer, key(500), 5, 0, frame, limit).await;
        assert_eq!(given, Err(AskError::Deadline));
        assert_eq!(memory.find(key(500)), None);
        until("it is kept", || memory.find(key(500)) == Some(5)).await;
        until("its room came back", || coming_bytes() == 0).await;
    });
}
