//! The stream of namespace operations: what one question does leaves the others alone. Asked over a socket, as by a node, but
//! with questions no node would ask.
#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_api::grpc::coordinator_client::CoordinatorClient;
use fastcache_api::grpc::{CallReply, CallRequest, Node, RegisterRequest};
use fastcache_api::{Errno, Ino, NS_VERSION, NsAnswer, NsOp, NsReply, NsRequest, Time};
use fastcache_coordinator::{Coordinator, Options, RemoteNamespace, serve};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// Nothing here takes this long unless it is broken.
const BOUND: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("in time")
}

fn root() -> Vec<u8> {
    let op = NsOp::GetAttr { ino: Ino::ROOT };
    let (id, now) = (None, Time::default());
    postcard::to_stdvec(&NsRequest { id, now, op }).unwrap()
}

fn is_root(reply: &CallReply) -> bool {
    let decoded: NsReply = postcard::from_bytes(&reply.reply).unwrap();
    matches!(decoded.result, Ok(NsAnswer::Attr(attr)) if attr.ino == Ino::ROOT)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_wrong_is_answered_alone() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::open(dir.path(), Options::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let address = format!("http://{host}");
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { drop(stopped.await) };
    let server = tokio::spawn(serve(coordinator, listener, None, shutdown));
    let mut client = within(CoordinatorClient::connect(address)).await.unwrap();
    let node = Node {
        peer_id: "a".to_owned(),
        ..Default::default()
    };
    let registering = client.register(RegisterRequest {
        node: Some(node),
        ns_version: NS_VERSION,
        previous_session: 0,
    });
    let session = within(registering).await.unwrap().into_inner().session;

    let (questions, asked) = mpsc::channel(16);
    let calls = within(client.calls(ReceiverStream::new(asked))).await;
    let mut answers = calls.unwrap().into_inner();
    let all = [
        (1, session, vec![0xff; 100]),
        (2, session, Vec::new()),
        (3, session + 1, root()),
        // The same number twice is the asker's own trouble.
        (4, session, root()),
        (4, session, root()),
        (u64::MAX, session, root()),
    ];
    let count = all.len();
    for (number, session, request) in all {
        let question = CallRequest {
            session,
            request,
            number,
        };
        questions.send(question).await.unwrap();
    }
    let mut got = Vec::new();
    while got.len() < count {
        got.push(within(answers.message()).await.unwrap().unwrap());
    }
    let code = |number| {
        let of: Vec<_> = got.iter().filter(|r| r.number == number).collect();
        let codes = of.iter().map(|reply| Code::from_i32(reply.code));
        codes.collect::<Vec<_>>()
    };
    assert_eq!(code(1), [Code::InvalidArgument], "{got:?}");
    assert_eq!(code(2), [Code::InvalidArgument], "{got:?}");
    assert_eq!(code(3), [Code::Unauthenticated], "{got:?}");
    assert_eq!(code(4), [Code::Ok, Code::Ok], "{got:?}");
    assert_eq!(code(u64::MAX), [Code::Ok], "{got:?}");
    assert!(got.iter().filter(|r| r.code == 0).all(is_root), "{got:?}");

    // One that is too long never gets on the stream of its node, and fails at once.
    let node = Node {
        peer_id: "b".to_owned(),
        ..Default::default()
    };
    let connecting = RemoteNamespace::connect(&host, node, None);
    let (remote, _notices) = within(connecting).await.unwrap();
    let ask = |name: Vec<u8>| NsRequest {
        id: None,
        now: Time::default(),
        op: NsOp::Resolve { path: vec![name] },
    };
    let long = within(remote.call(ask(vec![b'x'; 9 << 20]))).await;
    assert_eq!(long.result, Err(Errno::EIO));
    let short = within(remote.call(ask(b"x".to_vec()))).await;
    assert_eq!(short.result, Err(Errno::ENOENT));
    remote.close();

    // An ordered stop ends the stream, however long its node would have gone on.
    stop.send(()).unwrap();
    assert!(within(answers.message()).await.unwrap().is_none());
    within(server).await.unwrap().unwrap();
}
