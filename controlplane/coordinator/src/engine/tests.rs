//! Goal: what was acknowledged survives a restart, and what was removed costs nothing. Method: an engine on a real store.

use super::*;
use fastcache_api::{Cred, Ino, Kind, NewInode, NsAnswer, OpId};
use fastcache_namespace::Kv;

fn make(seq: u64, name: &str) -> NsRequest {
    let new = NewInode {
        kind: Kind::Dir,
        mode: 0o755,
        rdev: 0,
        cred: Cred { uid: 0, gid: 0 },
        target: Vec::new(),
        chunk_size: 0,
    };
    let op = NsOp::Make {
        at: Some((Ino::ROOT, name.as_bytes().to_vec())),
        new,
    };
    NsRequest {
        id: Some(OpId { client: 7, seq }),
        now: Time { sec: 1, nsec: 2 },
        op,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_changes_and_answers_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = {
        let engine = Engine::open(dir.path()).unwrap();
        let first = engine.call(make(1, "a")).await;
        assert!(matches!(first.result, Ok(NsAnswer::Entry(_))));
        assert_eq!(engine.call(make(1, "a")).await, first);
        assert_eq!(engine.call(make(2, "a")).await.result, Err(Errno::EEXIST));
        first
    };
    // The background task gives the store up within one round.
    let engine = loop {
        match Engine::open(dir.path()) {
            Ok(engine) => break engine,
            Err(EngineError::Locked(_)) => tokio::time::sleep(SYNC_EVERY).await,
            Err(e) => panic!("{e}"),
        }
    };
    assert_eq!(engine.call(make(1, "a")).await, first);
    let stats = engine.stats();
    assert_eq!((stats.epoch, stats.inodes), (2, 2));
    assert!(
        stats.write_buffer_bytes > 0,
        "what is in the journal is in memory, too"
    );
    // Begin, the change, begin again.
    assert_eq!((stats.log_position, engine.log_begins()), (3, 1));
}

#[test]
fn a_scan_has_the_keys_of_its_prefix_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::builder(dir.path()).open().unwrap();
    let keys: [&[u8]; 6] = [b"a", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"];
    let kv = StateKv(db.keyspace("k", KeyspaceCreateOptions::default).unwrap());
    for key in keys {
        kv.0.insert(key, "").unwrap();
    }
    for prefix in [&b""[..], b"a", b"a\xff", b"b", b"c", b"\xff", b"\xff\xff"] {
        for from in [
            &b""[..],
            b"a",
            b"a\xff",
            b"a\xff\xff",
            b"b",
            b"\xff\xff\xff",
        ] {
            let expected: Vec<_> = keys
                .iter()
                .filter(|k| k.starts_with(prefix) && **k >= from)
                .map(|k| (k.to_vec(), Vec::new()))
                .collect();
            let snapshot = SnapshotKv(db.snapshot(), &kv.0);
            assert_eq!(kv.scan(prefix, from, 10).unwrap(), expected);
            assert_eq!(snapshot.scan(prefix, from, 10).unwrap(), expected);
        }
    }
}

/// What was removed before costs nothing: the removals stay in the store until it merges its tables.
#[tokio::test(flavor = "multi_thread")]
async fn removing_a_file_does_not_take_longer_with_every_file_that_was_removed() {
    const FILES: usize = 6000;
    const LOOKED_AT: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let mut seq = 0;
    let mut took = Vec::new();
    for n in 0..FILES {
        let name = n.to_string();
        let made = engine.call(make(2 * seq + 1, &name)).await;
        let Ok(NsAnswer::Entry(attr)) = made.result else {
            panic!("{made:?}")
        };
        for op in [
            NsOp::Rmdir {
                parent: Ino::ROOT,
                name: name.into_bytes(),
            },
            NsOp::Reap {
                inos: vec![attr.ino],
            },
        ] {
            let is_reap = matches!(op, NsOp::Reap { .. });
            seq += 1;
            let request = NsRequest {
                id: Some(OpId {
                    client: 8,
                    seq: 2 * seq,
                }),
                now: Time { sec: 1, nsec: 2 },
                op,
            };
            let start = Instant::now();
            assert!(engine.call(request).await.result.is_ok());
            if is_reap {
                took.push(start.elapsed());
            }
        }
    }
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (first, last) = (
        median(&took[..LOOKED_AT]),
        median(&took[FILES - LOOKED_AT..]),
    );
    println!("{first:?}, {last:?} after {FILES}");
    assert!(
        last < first * 5,
        "{first:?} at first, {last:?} after {FILES} files"
    );
}
