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

/// A real S3 server, stopped when dropped; `None` where `moto_server` is not installed.
struct Moto(std::process::Child, u16);

impl Moto {
    fn start() -> Option<Moto> {
        use std::process::{Command, Stdio};
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new("moto_server")
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let moto = Moto(child, port);
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if began.elapsed() > Duration::from_secs(20) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(moto)
    }

    fn make_bucket(&self, name: &str) {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.1)).unwrap();
        let host = format!("127.0.0.1:{}", self.1);
        write!(
            stream,
            "PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn config(&self, bucket: &str) -> CloudConfig {
        CloudConfig::S3 {
            bucket: bucket.into(),
            region: "us-east-1".into(),
            endpoint: Some(format!("http://127.0.0.1:{}", self.1)),
            access_key: Some("a".into()),
            secret_key: Some(Secret::new("s3cr3t")),
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn s3_carries_checksums_and_a_missing_bucket_is_said() {
    let Some(moto) = Moto::start() else {
        eprintln!("skipped: no moto_server");
        return;
    };
    moto.make_bucket("bkt");
    let cloud = Cloud::open(&moto.config("bkt")).unwrap().unwrap();
    cloud.check().await.unwrap();
    let etag = cloud
        .put("chunks/1/0-1", Bytes::from_static(b"hello"), 0xabc)
        .await
        .unwrap();
    let object = cloud.get("chunks/1/0-1").await.unwrap();
    assert_eq!(
        (&object.bytes[..], object.crc32c),
        (&b"hello"[..], Some(0xabc))
    );
    assert_eq!(object.etag, etag);
    assert_eq!(
        &cloud.get_range("chunks/1/0-1", 1, 3).await.unwrap().bytes[..],
        b"ell"
    );
    assert_eq!(cloud.list("chunks", 10).await.unwrap().len(), 1);
    cloud.delete("chunks/1/0-1").await.unwrap();
    cloud.delete("chunks/1/0-1").await.unwrap();
    assert!(matches!(
        cloud.get("chunks/1/0-1").await,
        Err(CloudError::NotFound(_))
    ));
    let missing = Cloud::open(&moto.config("nope")).unwrap().unwrap();
    let error = missing.check().await.unwrap_err();
    assert!(matches!(error, CloudError::NotFound(_)), "{error:?}");
    assert!(error.to_string().contains("create it"), "{error}");
}
