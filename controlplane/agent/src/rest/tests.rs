//! Goal: what a client may send is judged as DESIGN section 6 says, whatever it sends. Method: tables over the
//! pure functions, then the router with a node whose data plane is away.

use super::error::eloop;
use super::path::{FilePath, PathError, Target, encode, parameter, target};
use super::range::{Selected, select};
use super::{etag, status_of};
use axum::http::{HeaderMap, HeaderValue, header};
use fastcache_api::Errno;

fn names(path: &str) -> FilePath {
    FilePath::from_bytes(path.as_bytes()).unwrap()
}

#[test]
fn path_rules() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(2049);
    let refused: &[(&str, PathError)] = &[
        ("", PathError::Empty),
        ("/etc/passwd", PathError::Absolute),
        ("%2Fetc/passwd", PathError::Absolute),
        ("a//b", PathError::EmptyComponent),
        ("a/b/", PathError::EmptyComponent),
        ("a%2F%2Fb", PathError::EmptyComponent),
        (".", PathError::Dots),
        ("..", PathError::Dots),
        ("a/../b", PathError::Dots),
        ("a/./b", PathError::Dots),
        ("a/%2e%2e/b", PathError::Dots),
        ("a%2F..%2Fb", PathError::Dots),
        ("%2E%2E%2Fx", PathError::Dots),
        ("../size", PathError::Dots),
        ("a%00b", PathError::Nul),
        ("a%", PathError::Escape),
        ("a%4", PathError::Escape),
        ("a%zz", PathError::Escape),
        ("a%+1", PathError::Escape),
        ("/size", PathError::Empty),
        (&long, PathError::NameTooLong),
        (&deep, PathError::TooLong),
    ];
    for (raw, why) in refused {
        assert_eq!(target(raw), Err(*why), "{raw:?}");
    }
    let taken: &[(&str, Target)] = &[
        ("a", Target::File(names("a"))),
        ("size", Target::File(names("size"))),
        ("a/b.txt", Target::File(names("a/b.txt"))),
        ("a%2Fb", Target::File(names("a/b"))),
        ("a+b", Target::File(names("a+b"))),
        ("a%20b", Target::File(names("a b"))),
        ("...", Target::File(names("..."))),
        ("..a/b..", Target::File(names("..a/b.."))),
        ("%252e%252e", Target::File(names("%2e%2e"))),
        ("a/size", Target::Size(names("a"))),
        ("a%2Fsize", Target::File(names("a/size"))),
        ("a%2Fsize/size", Target::Size(names("a/size"))),
        ("size/size", Target::Size(names("size"))),
        ("a/SIZE", Target::File(names("a/SIZE"))),
        ("a\\..\\b", Target::File(names("a\\..\\b"))),
    ];
    for (raw, what) in taken {
        assert_eq!(target(raw).as_ref(), Ok(what), "{raw:?}");
    }
    let bytes = FilePath::from_encoded("%FF%fe").unwrap();
    assert_eq!(bytes.names(), &[vec![0xff, 0xfe]]);
}

#[test]
fn what_is_encoded_comes_back() {
    let all: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    assert_eq!(
        FilePath::from_encoded(&encode(&all, true)).unwrap().names(),
        std::slice::from_ref(&all)
    );
    let query = format!("x=1&path={}", encode(&all, false));
    assert_eq!(parameter(Some(&query), "path").unwrap(), Some(all));
    assert_eq!(
        parameter(Some("path=a+b"), "path").unwrap(),
        Some(b"a b".to_vec())
    );
    assert_eq!(parameter(Some("wait"), "wait").unwrap(), Some(Vec::new()));
    assert_eq!(parameter(None, "path").unwrap(), None);
    assert_eq!(parameter(Some("path=%"), "path"), Err(PathError::Escape));
}

#[test]
fn ranges() {
    let part = |start, len| Selected::Part { start, len };
    let big = "99999999999999999999999";
    let table: &[(&str, u64, Selected)] = &[
        ("bytes=0-0", 10, part(0, 1)),
        ("bytes=0-9", 10, part(0, 10)),
        ("bytes=0-10", 10, part(0, 10)),
        ("bytes=5-", 10, part(5, 5)),
        ("bytes=9-", 10, part(9, 1)),
        ("bytes=-1", 10, part(9, 1)),
        ("bytes=-10", 10, part(0, 10)),
        ("bytes=-11", 10, part(0, 10)),
        ("Bytes=1-2", 10, part(1, 2)),
        ("bytes=10-", 10, Selected::Unsatisfiable),
        ("bytes=10-20", 10, Selected::Unsatisfiable),
        ("bytes=-0", 10, Selected::Unsatisfiable),
        ("bytes=0-", 0, Selected::Unsatisfiable),
        ("bytes=-5", 0, Selected::Unsatisfiable),
        ("bytes=5-4", 10, Selected::Whole),
        ("bytes=-", 10, Selected::Whole),
        ("bytes=", 10, Selected::Whole),
        ("bytes", 10, Selected::Whole),
        ("", 10, Selected::Whole),
        ("items=0-1", 10, Selected::Whole),
        ("bytes=0-1,3-4", 10, Selected::Whole),
        ("bytes=a-b", 10, Selected::Whole),
        ("bytes=+1-2", 10, Selected::Whole),
        ("bytes=1--2", 10, Selected::Whole),
        ("bytes=0-18446744073709551615", u64::MAX, part(0, u64::MAX)),
    ];
    for (header, size, what) in table {
        assert_eq!(select(header, *size), *what, "{header:?} of {size}");
    }
    assert_eq!(
        select(&format!("bytes={big}-"), 10),
        Selected::Unsatisfiable
    );
    assert_eq!(select(&format!("bytes=2-{big}"), 10), part(2, 8));
    assert_eq!(select(&format!("bytes=-{big}"), 10), part(0, 10));
}

#[test]
fn preconditions() {
    let with = |name, text: &str| {
        let mut h = HeaderMap::new();
        h.insert(name, HeaderValue::from_str(text).unwrap());
        h
    };
    let here = Some("\"1-2\"");
    use etag::Verdict::{Failed, Have, Proceed};
    assert_eq!(etag::judge(&HeaderMap::new(), here), Proceed);
    assert_eq!(
        etag::judge(&with(header::IF_MATCH, "\"1-2\""), here),
        Proceed
    );
    assert_eq!(
        etag::judge(&with(header::IF_MATCH, "\"0\", \"1-2\""), here),
        Proceed
    );
    assert_eq!(etag::judge(&with(header::IF_MATCH, "*"), here), Proceed);
    assert_eq!(etag::judge(&with(header::IF_MATCH, "*"), None), Failed);
    assert_eq!(
        etag::judge(&with(header::IF_MATCH, "W/\"1-2\""), here),
        Failed
    );
    assert_eq!(etag::judge(&with(header::IF_MATCH, "\"x\""), here), Failed);
    assert_eq!(
        etag::judge(&with(header::IF_NONE_MATCH, "W/\"1-2\""), here),
        Have
    );
    assert_eq!(etag::judge(&with(header::IF_NONE_MATCH, "*"), here), Have);
    assert_eq!(
        etag::judge(&with(header::IF_NONE_MATCH, "*"), None),
        Proceed
    );
    assert_eq!(
        etag::judge(&with(header::IF_NONE_MATCH, "\"x\""), here),
        Proceed
    );
    let mut odd = HeaderMap::new();
    odd.insert(header::IF_MATCH, HeaderValue::from_bytes(b"\xff").unwrap());
    assert_eq!(etag::judge(&odd, here), Failed);
    assert!(etag::range_applies(&HeaderMap::new(), "\"1-2\""));
    assert!(etag::range_applies(
        &with(header::IF_RANGE, "\"1-2\""),
        "\"1-2\""
    ));
    assert!(!etag::range_applies(
        &with(header::IF_RANGE, "Tue, 1 Jan 2030"),
        "\"1-2\""
    ));
}

#[test]
fn every_errno_has_a_status() {
    let table = [
        (Errno::ENOENT, 404),
        (Errno::EISDIR, 409),
        (Errno::ENOTDIR, 409),
        (Errno::EEXIST, 409),
        (Errno::ENOTEMPTY, 409),
        (Errno::ESTALE, 409),
        (Errno::EINVAL, 400),
        (Errno::ENAMETOOLONG, 400),
        (Errno::EACCES, 403),
        (Errno::EPERM, 403),
        (Errno::EFBIG, 413),
        (Errno::ENOSPC, 507),
        (Errno::ENOTCONN, 503),
        (Errno::EAGAIN, 503),
        (Errno::ETIMEDOUT, 504),
        (Errno::ENOTSUP, 501),
        (Errno::EIO, 500),
        (eloop(), 409),
    ];
    for (errno, status) in table {
        assert_eq!(status_of(errno).0.as_u16(), status, "{errno}");
    }
    for code in 1..200 {
        let status = status_of(Errno::from_code(code)).0;
        assert!(
            status.is_client_error() || status.is_server_error(),
            "{code}"
        );
    }
}

/// A node with a namespace and no data plane, and a client for its REST.
struct Served {
    _state: tempfile::TempDir,
    node: crate::Node,
    server: super::RestServer,
}

impl Served {
    async fn start(key: Option<&str>) -> Served {
        let state = tempfile::tempdir().unwrap();
        let node = crate::Node::start(crate::AgentConfig {
            socket: state.path().join("nobody.sock"),
            state_dir: state.path().join("state"),
            listen: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 0,
            api_key: key.map(crate::Secret::new),
            peer_id: Some("n1".to_owned()),
            put_limit: 1000,
            ..crate::AgentConfig::default()
        })
        .await
        .unwrap();
        let server = super::serve(node.clone()).await.unwrap();
        Served {
            _state: state,
            node,
            server,
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        ask_of(&self.server, method, path, headers).await
    }

    async fn stop(self) {
        self.server.stop(std::time::Duration::from_secs(1)).await;
        self.node.shutdown(std::time::Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_data_plane_says_so() {
    let served = Served::start(None).await;
    let (status, body) = served.ask("GET", "/api/health", &[]).await;
    assert_eq!(status, 503);
    assert!(body.contains("\"is_data_connected\":false"), "{body}");
    let table = [
        ("GET", "/api/files/nothing", 404, "not_found"),
        ("GET", "/api/files/nothing/size", 404, "not_found"),
        ("DELETE", "/api/files/nothing", 404, "not_found"),
        ("DELETE", "/api/files/no/thing", 404, "not_found"),
        ("GET", "/api/files", 400, "bad_path"),
        ("GET", "/api/files/", 400, "bad_path"),
        ("PUT", "/api/files/a/", 400, "bad_path"),
        ("PUT", "/api/files/%2e%2e/a", 400, "bad_path"),
        ("PUT", "/api/files/a/size", 405, "method_not_allowed"),
        ("POST", "/api/files/a", 405, "method_not_allowed"),
        ("GET", "/api/nothing", 404, "not_found"),
        ("GET", "/api/cache?limit=0", 400, "bad_request"),
        (
            "GET",
            "/api/cache?limit=99999999999999999999",
            400,
            "bad_request",
        ),
        ("GET", "/api/cache?after=x", 400, "bad_request"),
        ("GET", "/api/cache?after=%", 400, "bad_path"),
        ("GET", "/api/admin/state", 400, "bad_request"),
        ("GET", "/api/admin/state?path=..", 400, "bad_path"),
        ("GET", "/api/admin/state?path=nothing", 404, "not_found"),
        ("POST", "/api/admin/evict", 400, "bad_request"),
        ("POST", "/api/admin/flush?wait=perhaps", 400, "bad_request"),
        ("GET", "/api/cache", 200, "\"chunks\":[]"),
        ("GET", "/api/cache/stats", 200, "\"nvme\":null"),
        ("GET", "/api/peers", 200, "\"is_self\":true"),
        ("GET", "/api/peers/n1", 200, "\"id\":\"n1\""),
        ("GET", "/api/peers/n%31", 200, "\"id\":\"n1\""),
        ("GET", "/api/peers/n2", 404, "not_found"),
        ("POST", "/api/peers/n1/heartbeat", 200, "\"status\":\"ok\""),
        ("POST", "/api/peers/n2/heartbeat", 404, "not_found"),
        ("GET", "/api/peers/n1/heartbeat", 405, "method_not_allowed"),
        (
            "GET",
            "/api/admin/status",
            200,
            "\"is_data_connected\":false",
        ),
        ("GET", "/metrics", 200, "fastcache_data_connected 0"),
    ];
    for (method, path, want, text) in table {
        let (status, body) = served.ask(method, path, &[]).await;
        assert_eq!(status, want, "{method} {path}: {body}");
        assert!(body.contains(text), "{method} {path}: {body}");
        if status >= 400 {
            let error: super::types::ErrorBody = serde_json::from_str(&body).unwrap();
            assert!(!error.error.message.is_empty());
        }
    }
    let (status, _) = served
        .ask("PUT", "/api/files/a", &[("content-range", "bytes 0-1/2")])
        .await;
    assert_eq!(status, 400);
    let (status, _) = served
        .ask("PUT", "/api/files/a", &[("content-encoding", "gzip")])
        .await;
    assert_eq!(status, 415);
    served.stop().await;
}

/// One request to a server, whether its node has started or not.
async fn ask_of(
    server: &super::RestServer,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, String) {
    use http_body_util::{BodyExt, Full};
    let connector = hyper_util::client::legacy::connect::HttpConnector::new();
    let executor = hyper_util::rt::TokioExecutor::new();
    let client = hyper_util::client::legacy::Client::builder(executor).build(connector);
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", server.address()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<bytes::Bytes>::default()).unwrap();
    let answer = client.request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_not_started_yet_is_live_and_not_ready() {
    use crate::types::Starting;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let state = tempfile::tempdir().unwrap();
    let config = crate::AgentConfig {
        state_dir: state.path().to_owned(),
        socket: state.path().join("nobody.sock"),
        listen: std::net::Ipv4Addr::LOCALHOST.into(),
        port: 0,
        api_key: Some(crate::Secret::new("right")),
        peer_id: Some("n1".to_owned()),
        ..crate::AgentConfig::default()
    };
    let server = super::listen(&config).await.unwrap();
    let tell = server.telling();
    // A connection that stays open is answered by the node as soon as there is one.
    let mut early = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    for (at, word, text) in [
        (Starting::Opening, "starting", "namespace"),
        (
            Starting::Registering {
                coordinator: "far:8080".to_owned(),
                why: None,
            },
            "registering",
            "far:8080",
        ),
        (
            Starting::Registering {
                coordinator: "far:8080".to_owned(),
                why: Some("nobody listens".to_owned()),
            },
            "registering",
            "nobody listens",
        ),
    ] {
        tell(at);
        let word = format!("\"status\":\"{word}\"");
        for (path, want) in [("/api/health", 503), ("/api/health/live", 200)] {
            let (status, body) = ask_of(&server, "GET", path, &[]).await;
            assert_eq!(status, want, "{path}: {body}");
            assert!(body.contains(&word) && body.contains(text), "{body}");
            assert!(body.contains("\"peer_id\":\"n1\""), "{body}");
        }
        for path in ["/api/admin/status", "/metrics", "/api/files/a", "/nothing"] {
            assert_eq!(ask_of(&server, "GET", path, &[]).await.0, 401, "{path}");
            let key = [("x-api-key", "right")];
            let (status, body) = ask_of(&server, "GET", path, &key).await;
            assert_eq!(status, 503, "{path}: {body}");
            let error: super::types::ErrorBody = serde_json::from_str(&body).unwrap();
            assert!(error.error.message.contains(text), "{body}");
        }
    }
    let head = b"GET /api/health HTTP/1.1\r\nHost: n\r\n\r\n";
    early.write_all(head).await.unwrap();
    let mut first = [0; 12];
    early.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 503");

    let node = crate::Node::start(config).await.unwrap();
    server.open(node.clone());
    let close = b"GET /api/health HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
    early.write_all(close).await.unwrap();
    let mut rest = String::new();
    early.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("\"status\":\"degraded\""), "{rest}");
    let key = [("x-api-key", "right")];
    assert_eq!(ask_of(&server, "GET", "/metrics", &key).await.0, 200);
    assert_eq!(ask_of(&server, "GET", "/api/health/live", &[]).await.0, 503);
    server.stop(std::time::Duration::from_secs(1)).await;
    node.shutdown(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_wanted_by_everything_but_health() {
    let served = Served::start(Some("right")).await;
    assert_eq!(served.ask("GET", "/api/health", &[]).await.0, 503);
    for path in [
        "/api/files/a",
        "/api/cache",
        "/metrics",
        "/api/admin/status",
        "/nothing",
    ] {
        for given in [None, Some(""), Some("wrong"), Some("righ"), Some("right ")] {
            let headers: Vec<_> = given.iter().map(|k| ("x-api-key", *k)).collect();
            let (status, body) = served.ask("GET", path, &headers).await;
            // blanks around a header's value are not part of it
            let want = if given == Some("right ") { status } else { 401 };
            assert_eq!(status, want, "{path} with {given:?}");
            assert!(!body.contains("righ"), "{body}");
        }
        let (status, _) = served.ask("GET", path, &[("x-api-key", "right")]).await;
        assert_ne!(status, 401, "{path}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_says_how_long_it_is() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let served = Served::start(None).await;
    let mut stream = tokio::net::TcpStream::connect(served.server.address())
        .await
        .unwrap();
    let request = b"PUT /api/files/a HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 411 "), "{answer}");
    assert!(answer.contains("length_required"), "{answer}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_lists_every_route_and_no_other() {
    let document: serde_json::Value = serde_json::from_str(super::OPENAPI).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let told: std::collections::BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let served = super::table()
        .into_iter()
        .flat_map(|(_, paths, _)| paths.iter().copied());
    assert_eq!(told, served.collect());

    let served = Served::start(None).await;
    for (path, methods) in paths {
        // what it leads to does not matter, only whether the method is known
        let at = path.replace("{path}", "no/such").replace("{id}", "nobody");
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let is_told = methods.get(method.to_lowercase()).is_some();
            let header = [("content-encoding", "gzip")];
            let (status, body) = served.ask(method, &at, &header).await;
            assert_eq!(status != 405, is_told, "{method} {at}: {status} {body}");
        }
    }
    let (status, body) = served.ask("GET", "/openapi.json", &[]).await;
    assert_eq!(status, 200);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["info"]["version"], env!("CARGO_PKG_VERSION"));
    served.stop().await;
}
