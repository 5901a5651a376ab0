//! A store that misbehaves: moto behind the fault proxy.

use super::*;
use fastcache_tests::{Fault, FaultProxy};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

struct Bad {
    _s3: S3,
    proxy: FaultProxy,
    cloud: Cloud,
}

fn bad() -> Bad {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let cloud = open_s3(s3_config(proxy.endpoint()));
    Bad {
        _s3: s3,
        proxy,
        cloud,
    }
}

/// A fault that meets the first `n` chosen requests.
fn first(
    n: usize,
    choose: fn(&fastcache_tests::SeenRequest) -> bool,
) -> impl Fn(&fastcache_tests::SeenRequest) -> bool + Send + Sync {
    let seen = AtomicUsize::new(0);
    move |r| choose(r) && seen.fetch_add(1, Ordering::Relaxed) < n
}

fn is_get(r: &fastcache_tests::SeenRequest) -> bool {
    r.is_get()
}

fn is_put(r: &fastcache_tests::SeenRequest) -> bool {
    r.is_put()
}

#[tokio::test]
async fn errors_at_30_percent_are_not_seen_by_the_caller() {
    let bad = bad();
    bad.proxy.set(Fault::Status {
        code: 500,
        share: 0.3,
        retry_after_s: None,
    });
    for n in 0..40u8 {
        let at = put(&bad.cloud, &format!("chunks/1/{n}-1"), &[n; 5000]).await;
        assert!(
            bad.cloud.get_chunk(&at).await.unwrap()[..] == [n; 5000],
            "{n}"
        );
    }
    assert!(bad.proxy.hurt() >= 10, "{}", bad.proxy.hurt());
}

#[tokio::test]
async fn wrong_bytes_and_cut_bodies_never_come_back() {
    let bad = bad();
    let at = put(&bad.cloud, "chunks/1/0-1", &[9; 100_000]).await;
    let part = CloudRef {
        offset: 50_000,
        len: 10,
        crc32c: crc_fast::crc32_iscsi(&[9; 10]),
        ..at.clone()
    };
    for fault in [Fault::Corrupt, Fault::Shorten, Fault::Truncate] {
        bad.proxy.set_where(fault.clone(), is_get);
        for at in [&at, &part] {
            let error = bad.cloud.get_chunk(at).await.unwrap_err();
            let is_right = match fault {
                // Half of a part is a body that is shorter than its range: any error will do, no bytes.
                Fault::Corrupt => matches!(error, CloudError::Altered(_)),
                _ => true,
            };
            assert!(is_right, "{fault:?}: {error:?}");
            assert!(
                error.to_string().contains("chunks/1/0-1"),
                "{fault:?}: {error}"
            );
        }
        // Once is the network's fault, and not seen.
        bad.proxy.set_where(fault.clone(), first(1, is_get));
        assert!(bad.cloud.get_chunk(&at).await.is_ok(), "{fault:?} once");
    }
}

#[tokio::test]
async fn a_hanging_read_is_asked_again_elsewhere() {
    let bad = bad();
    let at = put(&bad.cloud, "chunks/1/0-1", &[1; 1000]).await;
    bad.proxy.set_where(Fault::BlackHole, first(1, is_get));
    let began = Instant::now();
    bad.cloud.get_chunk(&at).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    // One budget for all: when every read is slow, few are asked twice.
    bad.proxy.set(Fault::Pass);
    for _ in 0..64 {
        bad.cloud.get_chunk(&at).await.unwrap();
    }
    bad.proxy.forget();
    bad.proxy.set_where(
        Fault::Delay {
            delay: Duration::from_millis(400),
            share: 1.0,
        },
        is_get,
    );
    let all = (0..100).map(|_| bad.cloud.get_chunk(&at));
    for done in futures_util::future::join_all(all).await {
        done.unwrap();
    }
    let asked = bad.proxy.requests().len();
    assert!(
        (101..=116).contains(&asked),
        "{asked} requests for 100 reads"
    );
}

#[tokio::test]
async fn a_store_that_is_gone_fails_fast_after_a_while_and_is_found_again() {
    let bad = bad();
    let at = put(&bad.cloud, "chunks/1/0-1", &[1; 1000]).await;
    bad.proxy.set(Fault::Refuse);
    let many = (0..10).map(|_| bad.cloud.get_chunk(&at));
    for failed in futures_util::future::join_all(many).await {
        let error = failed.unwrap_err();
        assert!(error.is_passing(), "{error:?}");
    }
    let began = Instant::now();
    let error = bad.cloud.get_chunk(&at).await.unwrap_err();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(error.is_passing(), "{error:?}");
    bad.proxy.set(Fault::Pass);
    let began = Instant::now();
    while bad.cloud.get_chunk(&at).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "not found again");
    }
}

#[tokio::test]
async fn a_half_dead_store_is_an_error_within_the_deadline() {
    let bad = bad();
    let at = put(&bad.cloud, "chunks/1/0-1", &[1; 1000]).await;
    bad.proxy.set(Fault::BlackHole);
    let began = Instant::now();
    let (got, put) = tokio::join!(
        bad.cloud.get_chunk(&at),
        bad.cloud.put("chunks/1/1-1", Bytes::from_static(b"x"), 0)
    );
    let took = began.elapsed();
    assert!(got.unwrap_err().is_passing() && put.unwrap_err().is_passing());
    assert!(took <= CALL_DEADLINE + Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn throttling_is_told_at_once_and_its_pause_is_kept() {
    let bad = bad();
    let at = put(&bad.cloud, "chunks/1/0-1", &[1; 1000]).await;
    assert!(bad.cloud.paused_until().is_none());
    let busy = Fault::Status {
        code: 503,
        share: 1.0,
        retry_after_s: Some(2),
    };
    bad.proxy.set_where(busy, first(1, is_put));
    let refused = bad
        .cloud
        .put("chunks/1/1-1", Bytes::from_static(b"x"), 0)
        .await;
    assert!(
        matches!(refused, Err(CloudError::Throttled(_))),
        "{refused:?}"
    );
    assert!(bad.cloud.paused_until().is_some());
    let began = Instant::now();
    bad.cloud.get_chunk(&at).await.unwrap();
    assert!(
        began.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    assert!(bad.cloud.paused_until().is_none());
}

#[tokio::test]
async fn resets_and_lost_answers_are_repeated() {
    let bad = bad();
    bad.proxy.set_where(Fault::LoseAnswer, first(1, is_put));
    let at = put(&bad.cloud, "chunks/1/0-1", &[1; 1000]).await;
    bad.proxy
        .set_where(Fault::Reset { share: 1.0 }, first(2, is_get));
    bad.cloud.get_chunk(&at).await.unwrap();
    bad.proxy.set(Fault::Pass);
    assert_eq!(bad.cloud.list("chunks", 10).await.unwrap().len(), 1);
}
