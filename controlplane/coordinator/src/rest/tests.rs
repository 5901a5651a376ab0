//! Goal: `/openapi.json` tells what there is, all of it and nothing else. Method: it is compared with the table of
//! routes, and every method is tried on every path.

use super::{OPENAPI, routes, table};
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
