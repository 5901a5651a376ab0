//! Goal: chunks go to the object store and come back verified, and the node survives a data plane that goes
//! away. Method: a data plane of threads that speaks the socket's protocol, the directory backend, and a
//! namespace of a few closures.

mod data_plane;
mod leases;
mod locks;

use crate::lanes::Lanes;
use crate::namespace::NamespaceHandle;
use crate::persist::object_key;
use crate::{AgentConfig, CloudConfig, Node};
use data_plane::{DataPlane, key};
use fastcache_api::control::{DataCall, NodeAnswer, NodeCall};
use fastcache_api::{
    CloudRef, Errno, HistoryState, HistoryStatus, Ino, NsAnswer, NsOp, NsReply, NsRequest, Version,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Refs = Arc<Mutex<HashMap<(Ino, u32, Version), CloudRef>>>;

fn namespace(refs: Refs) -> NamespaceHandle {
    NamespaceHandle::Fake(Box::new(move |request: NsRequest| {
        let mut refs = refs.lock().unwrap();
        let result = match request.op {
            NsOp::Persisted { chunks } => {
                assert!(request.id.is_some());
                for c in chunks {
                    refs.insert((c.key.ino, c.key.index, c.key.version), c.at);
                }
                Ok(NsAnswer::Done)
            }
            NsOp::CloudRefs { ino, only } => {
                let found = refs.iter().filter(|((i, index, version), _)| {
                    *i == ino && only.is_none_or(|only| only == (*index, *version))
                });
                let found = found.map(|((_, i, v), at)| (*i, *v, at.clone()));
                Ok(NsAnswer::CloudRefs(found.collect()))
            }
            NsOp::GetAttr { ino: Ino(404) } => Err(Errno::ENOENT),
            NsOp::WithXattr { .. } => Ok(NsAnswer::WithXattr {
                inos: vec![],
                last: None,
            }),
            NsOp::TakeGarbage { .. } => Ok(NsAnswer::Garbage(vec![])),
            NsOp::History { .. } | NsOp::Persist { .. } => Ok(NsAnswer::History(HistoryStatus {
                state: HistoryState::Shipping,
                is_covered: true,
                ..HistoryStatus::default()
            })),
            _ => Ok(NsAnswer::Done),
        };
        NsReply {
            result,
            touched: vec![],
            log_position: 0,
            lease_ms: None,
        }
    }))
}

async fn node(dir: &Path, refs: &Refs) -> Node {
    std::fs::create_dir_all(dir.join("state")).unwrap();
    let config = AgentConfig {
        socket: dir.join("data.sock"),
        state_dir: dir.join("state"),
        cloud: CloudConfig::Dir {
            path: dir.join("cloud"),
        },
        upload_quiet: Duration::from_millis(20),
        ..AgentConfig::default()
    };
    let cloud = crate::node::start::open_cloud(&config).await.unwrap();
    let namespace = namespace(refs.clone());
    Node::start_on(config, "test".to_owned(), namespace, cloud, Lanes::here())
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_go_up_and_come_back_verified() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataPlane::start(&dir.path().join("data.sock"));
    // From before the agent started, of a file that is gone, and one whose version is gone.
    data.put(key(2, 1), b"old and dirty", true);
    data.put(key(404, 1), b"deleted", true);
    let refs = Refs::default();
    let node = node(dir.path(), &refs).await;
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    data.put(key(3, 1), &[7; 100_000], true);
    data.tell_stored(key(3, 1));
    data.tell_stored(key(5, 9));
    until("clean", || {
        data.clean().contains(&key(2, 1)) && data.clean().contains(&key(3, 1))
    })
    .await;
    until("dropped", || data.is_gone(key(404, 1))).await;
    until("empty", || node.backlog().chunks == 0).await;
    assert_eq!(node.stats().await.cloud.puts, 3);
    assert_eq!(node.cached(None, 10).len(), 4);

    let fetched = data
        .call(NodeCall::Fetch {
            key: key(3, 1),
            slot: 5,
        })
        .unwrap();
    let NodeAnswer::Fetched { len, crc32c } = fetched else {
        panic!("{fetched:?}")
    };
    let slot = data.slot(5, len);
    assert_eq!(
        (slot.len(), crc_fast::crc32_iscsi(&slot)),
        (100_000, crc32c)
    );

    let object = dir.path().join("cloud").join(object_key(key(3, 1)));
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[500] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    assert!(matches!(
        data.call(NodeCall::Fetch {
            key: key(3, 1),
            slot: 5
        }),
        Err(Errno::EIO)
    ));
    assert!(matches!(
        data.call(NodeCall::Fetch {
            key: key(3, 2),
            slot: 5
        }),
        Err(Errno::EIO)
    ));

    node.write_file(Ino(9), 4, b"abc").await.unwrap();
    assert_eq!(&node.read_file(Ino(9), 4, 10).await.unwrap()[..], b"abc");
    let report = node.shutdown(Duration::from_secs(5)).await;
    assert_eq!(report.dirty_chunks, 0);
    assert_eq!(data.slots_out(), 0, "every slot came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_that_goes_away_is_told_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("data.sock");
    let data = DataPlane::start(&socket);
    let refs = Refs::default();
    let node = node(dir.path(), &refs).await;
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    data.stop();
    until("disconnected", || !node.is_data_connected()).await;
    assert!(matches!(
        node.write_file(Ino(9), 0, &vec![0; 5 << 20]).await,
        Err(Errno::EINVAL)
    ));
    node.ns(NsOp::Unlink {
        parent: Ino::ROOT,
        name: b"gone".to_vec(),
    })
    .await
    .unwrap();
    let data = DataPlane::start(&socket);
    let read = node.read_file(Ino(9), 0, 10).await;
    assert!(read.unwrap().is_empty());
    let seen = data.seen();
    let DataCall::Invalidate { entries, .. } = &seen[0] else {
        panic!("{seen:?}")
    };
    assert_eq!(entries, &vec![(Ino::ROOT, b"gone".to_vec())]);
    node.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_data_plane_that_stops_too() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataPlane::start(&dir.path().join("data.sock"));
    let node = node(dir.path(), &Refs::default()).await;
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    data.go_at_seal();
    let began = Instant::now();
    node.shutdown(Duration::from_secs(20)).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_namespace_survives_a_restart() {
    use fastcache_api::{Cred, Kind, NewInode};
    let dir = tempfile::tempdir().unwrap();
    let data = DataPlane::start(&dir.path().join("data.sock"));
    let config = AgentConfig {
        socket: dir.path().join("data.sock"),
        state_dir: dir.path().join("state"),
        cloud: CloudConfig::Dir {
            path: dir.path().join("cloud"),
        },
        ..AgentConfig::default()
    };
    let node = Node::start(config.clone()).await.unwrap();
    assert!(node.wait_connected(Duration::from_secs(10)).await);
    let new = NewInode {
        kind: Kind::File,
        mode: 0o644,
        rdev: 0,
        cred: Cred { uid: 0, gid: 0 },
        target: vec![],
        chunk_size: 4 << 20,
    };
    node.ns(NsOp::Make {
        at: Some((Ino::ROOT, b"a".to_vec())),
        new,
    })
    .await
    .unwrap();
    let attr = node.resolve(&[b"a".to_vec()]).await.unwrap();
    let told = data.seen().into_iter().find_map(|call| match call {
        DataCall::Invalidate {
            touched, entries, ..
        } => Some((touched, entries)),
        _ => None,
    });
    let (touched, entries) = told.unwrap();
    assert_eq!(entries, vec![(Ino::ROOT, b"a".to_vec())]);
    assert!(touched.iter().any(|a| a.ino == Ino::ROOT));
    // As soon as its record is in the bucket.
    let began = Instant::now();
    while node.file_state(attr.ino).await.unwrap().state.to_string() != "persisted" {
        assert!(began.elapsed() < Duration::from_secs(20), "in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.stats().await.namespace.unwrap().inodes, 2);
    let id = std::fs::read_to_string(dir.path().join("state/peer-id")).unwrap();
    assert_eq!(id.trim(), node.peer_id());
    node.shutdown(Duration::from_secs(1)).await;
    drop(node);
    let began = Instant::now();
    let node = loop {
        // The last handle on the store goes with the last task.
        match Node::start(config.clone()).await {
            Ok(node) => break node,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(10), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(node.resolve(&[b"a".to_vec()]).await.unwrap().ino, attr.ino);
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_a_coordinator_see_each_other() {
    use fastcache_api::{Cred, Kind, NewInode};
    use fastcache_coordinator::{Coordinator, Options};
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let state = dir.path().join("coordinator");
    std::fs::create_dir_all(&state).unwrap();
    let coordinator = Coordinator::open(&state, Options::default()).unwrap();
    let serving = tokio::spawn(fastcache_coordinator::serve(
        coordinator,
        listener,
        None,
        std::future::pending(),
    ));
    let config = |name: &str| AgentConfig {
        socket: dir.path().join(name).with_extension("sock"),
        state_dir: dir.path().join(name),
        coordinator: Some(address.clone()),
        cloud: CloudConfig::Dir {
            path: dir.path().join("cloud"),
        },
        ..AgentConfig::default()
    };
    let data = [config("a"), config("b")].map(|c| DataPlane::start(&c.socket));
    let a = Node::start(config("a")).await.unwrap();
    let b = Node::start(config("b")).await.unwrap();
    assert!(a.wait_connected(Duration::from_secs(10)).await);
    assert!(b.wait_connected(Duration::from_secs(10)).await);
    let lookup = NsOp::Lookup {
        parent: Ino::ROOT,
        name: b"f".to_vec(),
    };
    assert_eq!(b.ns(lookup).await, Err(Errno::ENOENT));
    let new = NewInode {
        kind: Kind::File,
        mode: 0o644,
        rdev: 0,
        cred: Cred { uid: 0, gid: 0 },
        target: vec![],
        chunk_size: 4 << 20,
    };
    a.ns(NsOp::Make {
        at: Some((Ino::ROOT, b"f".to_vec())),
        new,
    })
    .await
    .unwrap();
    assert!(b.resolve(&[b"f".to_vec()]).await.is_ok());
    // What b had looked up was revoked, and its data plane told, before the change was answered.
    let is_told = |call: &DataCall| match call {
        DataCall::Invalidate { entries, inos, .. } => {
            entries.contains(&(Ino::ROOT, b"f".to_vec())) || inos.contains(&Ino::ROOT)
        }
        _ => false,
    };
    assert!(data[1].seen().iter().any(is_told), "{:?}", data[1].seen());
    a.shutdown(Duration::from_secs(1)).await;
    b.shutdown(Duration::from_secs(1)).await;
    serving.abort();
}
