//! Goal: who begins something and does not go on costs others nothing. Method: as in the parent.

use super::*;

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = now();
    while !is_true() {
        assert!(since.elapsed() < 4 * SOON, "never happened: {what}");
        sleep(Duration::from_millis(1)).await;
    }
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
    });
}
