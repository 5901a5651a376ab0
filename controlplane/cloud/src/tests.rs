//! Goal: what was put is what is got, and what goes wrong has the right type. Method: the directory backend
//! in a temporary directory; S3 and Azure are tested against real servers in `tests/`.

use super::*;

fn dir() -> (tempfile::TempDir, Cloud) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/when/missing");
    let cloud = Cloud::open(&CloudConfig::Dir { path }).unwrap().unwrap();
    (dir, cloud)
}

#[tokio::test]
async fn round_trip_in_a_directory() {
    let (_dir, cloud) = dir();
    cloud.check().await.unwrap();
    let etag = cloud
        .put("chunks/1f/0-a", Bytes::from_static(b"hello"), 1)
        .await
        .unwrap();
    assert!(etag.is_some());
    assert_eq!(
        &cloud.get("chunks/1f/0-a").await.unwrap().bytes[..],
        b"hello"
    );
    assert_eq!(
        &cloud.get_range("chunks/1f/0-a", 1, 3).await.unwrap().bytes[..],
        b"ell"
    );
    let listed = cloud.list("chunks", 10).await.unwrap();
    assert_eq!(listed, vec![("chunks/1f/0-a".to_owned(), 5)]);
    cloud.delete("chunks/1f/0-a").await.unwrap();
    cloud.delete("chunks/1f/0-a").await.unwrap();
    let gone = cloud.get("chunks/1f/0-a").await.unwrap_err();
    assert!(matches!(gone, CloudError::NotFound(_)), "{gone:?}");
}

#[tokio::test]
async fn an_unreachable_server_is_transient_and_says_where() {
    let cloud = Cloud::open(&CloudConfig::S3 {
        bucket: "b".into(),
        region: "us-east-1".into(),
        endpoint: Some("http://127.0.0.1:9".into()),
        access_key: Some("a".into()),
        secret_key: Some(Secret::new("s3cr3t")),
    })
    .unwrap()
    .unwrap();
    let error = cloud.check().await.unwrap_err();
    assert!(error.is_passing(), "{error:?}");
    assert!(error.to_string().contains("http://127.0.0.1:9"), "{error}");
}

#[test]
fn settings_are_refused_with_a_sentence_and_secrets_hidden() {
    let mut config = CloudConfig::S3 {
        bucket: "b".into(),
        region: "us-east-1".into(),
        endpoint: Some("127.0.0.1:9".into()),
        access_key: Some("a".into()),
        secret_key: Some(Secret::new("s3cr3t")),
    };
    assert!(!format!("{config:?}").contains("s3cr3t"));
    let error = Cloud::open(&config).unwrap_err();
    assert!(
        error.to_string().contains("must start with http://"),
        "{error}"
    );
    if let CloudConfig::S3 {
        secret_key,
        endpoint,
        ..
    } = &mut config
    {
        *secret_key = None;
        *endpoint = None;
    }
    let error = Cloud::open(&config).unwrap_err();
    assert!(
        error.to_string().contains("AWS_SECRET_ACCESS_KEY"),
        "{error}"
    );
    assert!(Cloud::open(&CloudConfig::None).unwrap().is_none());
}
