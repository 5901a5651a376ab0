//! Goal: `/openapi.json` tells what there is, all of it and nothing else. Method: it is compared with the table of
//! routes, and every method is tried on every path.

use super::{NodeBody, OPENAPI, routes, table};
use crate::{Coordinator, Options};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::Value;
use std::collections::BTreeSet;
use tower::ServiceExt;

#[tokio::test]
async fn openapi_lists_every_route_and_no_other() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let told: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let served: BTreeSet<&str> = table().into_iter().map(|(path, _)| path).collect();
    assert_eq!(told, served);

    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::open(dir.path(), Options::default()).unwrap();
    let router = routes(coordinator.clone());
    for (path, methods) in paths {
        for method in [
            Method::GET,
            Method::PUT,
            Method::POST,
            Method::DELETE,
            Method::PATCH,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            let is_told = methods.get(method.as_str().to_lowercase()).is_some();
            let request = Request::builder()
                .method(&method)
                .uri(path)
                .body(Body::empty())
                .unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let is_served = answer.status() != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_served, is_told, "{method} {path}");
        }
    }
    coordinator.close().await;
}

#[test]
fn a_whole_number_may_be_written_with_a_point() {
    let used = |text: &str| {
        let body = format!(r#"{{"peer_id":"a","used_bytes":{text}}}"#);
        serde_json::from_str::<NodeBody>(&body).map(|b| b.used_bytes)
    };
    for (text, number) in [
        ("5.0", 5),
        ("2e3", 2000),
        ("3802630226890198.0", 3_802_630_226_890_198),
        ("9007199254740991.0", (1 << 53) - 1),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(used(text).unwrap(), number, "{text}");
    }
    for text in ["5.5", "-1", "1e30", "\"5\"", "null"] {
        assert!(used(text).is_err(), "{text}");
    }
}
