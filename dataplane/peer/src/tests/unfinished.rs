//! Goal: who begins something and does not go on costs others nothing. Method: as in the parent.

use super::*;
use crate::frame::{Header, Kind};
use crate::handshake::{self, Refusal};
use crate::server::coming_bytes;
use crate::stream::Incoming;

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

/// A node `a` that asks for so many parts and takes no answers.
async fn standing_still(address: SocketAddr, node: &str, parts: u64) -> Fd {
    let get = Header {
        key: key(1),
        length: 1 << 20,
        ..Header::new(Kind::Get, 0)
    };
    asking(address, node, get, parts).await
}

/// The same with another question.
async fn asking(address: SocketAddr, node: &str, question: Header, parts: u64) -> Fd {
    let stream = Fd::connect(address).await.unwrap();
    let mut incoming = Incoming::new(stream.clone());
    let me = identity(node);
    let shaken: Result<_, Refusal> =
        handshake::connect(&stream, &mut incoming, &token(), &me).await;
    assert_eq!(shaken.unwrap(), identity("a"));
    for request in 0..parts {
        let get = Header {
            request,
            ..question
        };
        let mut frame = IoBuf::alloc(HEADER_BYTES);
        frame.copy_from_slice(&get.encode());
        stream.send_whole(frame).await.0.unwrap();
    }
    stream
}

#[test]
fn what_nobody_can_be_waiting_for_any_more_is_not_served() {
    let memory = Memory::default();
    memory.put(key(9999), 4096);
    reactor(|| async {
        let (address, _server) = server(&memory, token(), Some(identity("a")));
        let get = Header {
            key: key(9999),
            length: 4096,
            timeout_ms: 100,
            ..Header::new(Kind::Get, 0)
        };
        let _still = asking(address, "c", get, 3).await;
        let reading = || memory.reading.load(Ordering::Relaxed);
        until("it is served", || reading() == 3).await;
        until("it is given up", || reading() == 0).await;
        assert_eq!(memory.abandoned.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn a_node_that_takes_no_answers_holds_up_nobody() {
    let memory = Memory::default();
    let bytes = memory.put(key(1), 1 << 20);
    reactor(|| async {
        let (address, server) = server(&memory, token(), Some(identity("a")));
        // More than its sockets take, and more than are served at once, on several connections.
        let mut still = Vec::new();
        for _ in 0..3 {
            still.push(standing_still(address, "c", 100).await);
        }
        // Long enough for all that can be read for it.
        sleep(Duration::from_millis(300)).await;
        let (client, peer) = client(address);
        let limit = Duration::from_secs(1);
        for _ in 0..20 {
            let buf = IoBuf::alloc(1 << 20);
            let got = client.fetch(&peer, key(1), 1 << 20, buf, limit).await;
            assert!(got.unwrap().0[..] == bytes[..]);
        }
        // It is hung up on before long.
        until("it is hung up on", || {
            server.stats().served_connections == 1
        })
        .await;
        drop(still);
    });
}
