//! Goal: what was put is what is got or it is an error that names the object, and what goes wrong has the right type.
//! Method: the directory in a temporary one; real servers (moto, Azurite) started here, some behind a proxy that
//! misbehaves.

mod credentials;
mod faults;
mod temporary;

use super::*;
use bytes::Bytes;
use fastcache_api::CloudRef;
use fastcache_tests::{Azurite, S3};

fn dir() -> (tempfile::TempDir, Cloud) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/when/missing");
    let cloud = Cloud::open(&CloudConfig::Dir { path }).unwrap().unwrap();
    (dir, cloud)
}

fn s3_config(endpoint: String) -> S3Config {
    S3Config {
        bucket: "fastcache-tests".into(),
        region: "us-east-1".into(),
        endpoint: Some(endpoint),
        access_key: Some("AKIATESTS".into()),
        secret_key: Some(Secret::new("s3cr3t")),
        ..S3Config::default()
    }
}

fn open_s3(config: S3Config) -> Cloud {
    Cloud::open(&CloudConfig::S3(Box::new(config)))
        .unwrap()
        .unwrap()
}

fn azure_config(azurite: &Azurite) -> AzureConfig {
    AzureConfig {
        account: azurite.account().into(),
        container: azurite.container().into(),
        endpoint: Some(azurite.endpoint()),
        key: Some(Secret::new(azurite.key())),
        ..AzureConfig::default()
    }
}

fn open_azure(config: AzureConfig) -> Cloud {
    Cloud::open(&CloudConfig::Azure(Box::new(config)))
        .unwrap()
        .unwrap()
}

fn refusal(config: S3Config) -> String {
    Cloud::open(&CloudConfig::S3(Box::new(config)))
        .unwrap_err()
        .to_string()
}

/// Puts a chunk and says where it is.
async fn put(cloud: &Cloud, object: &str, bytes: &[u8]) -> CloudRef {
    let crc32c = crc_fast::crc32_iscsi(bytes);
    let etag = cloud
        .put(object, Bytes::copy_from_slice(bytes), crc32c)
        .await
        .unwrap();
    CloudRef {
        object: object.to_owned(),
        offset: 0,
        len: u32::try_from(bytes.len()).unwrap(),
        crc32c,
        etag,
    }
}

/// Chunks of every kind of size, parts of objects, and what is not what was put: the same of every store.
async fn keeps_its_promises(cloud: &Cloud) {
    cloud.check().await.unwrap();
    for len in [0, 1, 4095, 4 << 20] {
        let bytes: Vec<u8> = (0..len)
            .map(|n: u32| u8::try_from(n % 251).unwrap())
            .collect();
        let at = put(cloud, "chunks/1f/0-a", &bytes).await;
        assert!(at.etag.is_some());
        assert!(cloud.get_chunk(&at).await.unwrap() == bytes, "{len} bytes");
    }
    let bytes = b"0123456789".repeat(1000);
    let whole = put(cloud, "chunks/1f/1-b", &bytes).await;
    let part = CloudRef {
        offset: 10,
        len: 3,
        crc32c: crc_fast::crc32_iscsi(b"012"),
        ..whole.clone()
    };
    assert_eq!(&cloud.get_chunk(&part).await.unwrap()[..], b"012");
    let wrong = [
        (
            "wrong checksum",
            CloudRef {
                crc32c: 1,
                ..whole.clone()
            },
        ),
        (
            "wrong checksum of a part",
            CloudRef {
                offset: 11,
                ..part.clone()
            },
        ),
        (
            "longer than told",
            CloudRef {
                len: 9999,
                ..whole.clone()
            },
        ),
        (
            "shorter than told",
            CloudRef {
                offset: 9999,
                len: 2,
                ..whole.clone()
            },
        ),
    ];
    for (what, at) in wrong {
        let error = cloud.get_chunk(&at).await.unwrap_err();
        assert!(matches!(error, CloudError::Altered(_)), "{what}: {error:?}");
        assert!(
            error.to_string().contains("chunks/1f/1-b"),
            "{what}: {error}"
        );
    }
    let mut listed = cloud.list("chunks", 10).await.unwrap();
    listed.sort();
    let sizes = [
        ("chunks/1f/0-a".to_owned(), 4 << 20),
        ("chunks/1f/1-b".to_owned(), 10_000),
    ];
    assert_eq!(listed, sizes);
    cloud.delete("chunks/1f/1-b").await.unwrap();
    cloud.delete("chunks/1f/1-b").await.unwrap();
    let gone = cloud.get_chunk(&whole).await.unwrap_err();
    assert!(matches!(gone, CloudError::NotFound(_)), "{gone:?}");
}

#[tokio::test]
async fn a_directory_keeps_its_promises() {
    let (dir, cloud) = dir();
    keeps_its_promises(&cloud).await;
    // Altered on the disk, where there is no metadata to tell.
    let at = put(&cloud, "chunks/2/0-1", &[7; 8192]).await;
    let file = dir.path().join("made/when/missing/chunks/2/0-1");
    for bytes in [vec![8; 8192], vec![7; 8191], vec![7; 8193], Vec::new()] {
        std::fs::write(&file, &bytes).unwrap();
        let error = cloud.get_chunk(&at).await.unwrap_err();
        assert!(
            matches!(error, CloudError::Altered(_)),
            "{} bytes: {error:?}",
            bytes.len()
        );
    }
}

#[tokio::test]
async fn s3_keeps_its_promises() {
    let s3 = S3::start();
    let cloud = open_s3(s3_config(s3.endpoint()));
    keeps_its_promises(&cloud).await;
    put(&cloud, "chunks/1/0-1", b"hello").await;
    let head = cloud.head("chunks/1/0-1").await.unwrap();
    assert_eq!(head.crc32c, Some(crc_fast::crc32_iscsi(b"hello")));
    let missing = open_s3(S3Config {
        bucket: "not-there".into(),
        ..s3_config(s3.endpoint())
    });
    let error = missing.check().await.unwrap_err();
    assert!(matches!(error, CloudError::NotFound(_)), "{error:?}");
    assert!(error.to_string().contains("bucket not-there"), "{error}");
    assert!(error.to_string().contains("create it"), "{error}");
}

#[tokio::test]
async fn azure_keeps_its_promises() {
    let azurite = Azurite::start();
    let cloud = open_azure(azure_config(&azurite));
    keeps_its_promises(&cloud).await;
    put(&cloud, "chunks/1/0-1", b"hello").await;
    let head = cloud.head("chunks/1/0-1").await.unwrap();
    assert_eq!(head.crc32c, Some(crc_fast::crc32_iscsi(b"hello")));
    let missing = open_azure(AzureConfig {
        container: "not-there".into(),
        ..azure_config(&azurite)
    });
    let error = missing.check().await.unwrap_err();
    assert!(matches!(error, CloudError::NotFound(_)), "{error:?}");
    assert!(error.to_string().contains("container not-there"), "{error}");
}

#[tokio::test]
async fn a_prefix_is_a_part_of_every_key_and_hides_what_is_beside_it() {
    let s3 = S3::start();
    let of = |prefix: Option<&str>| {
        open_s3(S3Config {
            prefix: prefix.map(str::to_owned),
            ..s3_config(s3.endpoint())
        })
    };
    let (one, two, all) = (of(Some("team/one")), of(Some("team/two")), of(None));
    one.check().await.unwrap();
    let at = put(&one, "chunks/1/0-1", b"one").await;
    put(&two, "chunks/1/0-1", b"two").await;
    assert_eq!(&one.get_chunk(&at).await.unwrap()[..], b"one");
    assert_eq!(
        one.list("chunks", 10).await.unwrap(),
        [("chunks/1/0-1".to_owned(), 3)]
    );
    two.delete("chunks/1/0-1").await.unwrap();
    assert_eq!(
        all.list("", 10).await.unwrap(),
        [("team/one/chunks/1/0-1".to_owned(), 3)]
    );
    assert!(one.place().contains("below team/one"), "{}", one.place());
}

#[tokio::test]
async fn an_unreachable_server_is_transient_and_says_where() {
    let cloud = open_s3(s3_config("http://127.0.0.1:9".into()));
    let error = cloud.check().await.unwrap_err();
    assert!(error.is_passing(), "{error:?}");
    assert!(error.to_string().contains("http://127.0.0.1:9"), "{error}");
}

#[tokio::test]
async fn encryption_is_asked_for_and_a_customer_key_stays_off_plain_http() {
    let s3 = S3::start();
    let of = |encryption| S3Config {
        encryption,
        ..s3_config(s3.endpoint())
    };
    let kms = Encryption::Kms {
        key_id: Some("alias/tests".into()),
        bucket_key: Some(true),
        is_dual: false,
    };
    for (encryption, want) in [(Encryption::Store, "AES256"), (kms, "aws:kms")] {
        let cloud = open_s3(of(encryption));
        let at = put(&cloud, "chunks/1/0-1", b"hello").await;
        assert_eq!(&cloud.get_chunk(&at).await.unwrap()[..], b"hello");
        let head = std::process::Command::new("curl")
            .args([
                "-sI",
                "--user",
                "a:b",
                "--aws-sigv4",
                "aws:amz:us-east-1:s3",
            ])
            .arg(format!("{}/fastcache-tests/chunks/1/0-1", s3.endpoint()))
            .output()
            .unwrap();
        let head = String::from_utf8_lossy(&head.stdout).to_lowercase();
        let told = format!("x-amz-server-side-encryption: {}", want.to_lowercase());
        assert!(head.contains(&told), "{head}");
    }
    let key = Encryption::Customer(Secret::new("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="));
    let text = refusal(of(key));
    assert!(text.contains("https") && !text.contains("MDEy"), "{text}");
}

#[test]
fn settings_are_refused_with_a_sentence_and_secrets_hidden() {
    let config = s3_config("127.0.0.1:9".into());
    assert!(!format!("{config:?}").contains("s3cr3t"));
    let text = refusal(config.clone());
    assert!(text.contains("must start with http://"), "{text}");
    let half = S3Config {
        secret_key: None,
        endpoint: None,
        ..config.clone()
    };
    assert!(refusal(half).contains("AWS_SECRET_ACCESS_KEY"));
    let nameless = S3Config {
        bucket: String::new(),
        endpoint: None,
        ..config.clone()
    };
    assert!(refusal(nameless).contains("--s3-bucket"));
    let dotted = S3Config {
        prefix: Some("a/../b".into()),
        endpoint: None,
        ..config.clone()
    };
    assert!(refusal(dotted).contains("--cloud-prefix"));
    let untrusted = S3Config {
        ca_file: Some("/proc/version".into()),
        endpoint: None,
        ..config
    };
    assert!(refusal(untrusted).contains("--cloud-ca"));
    assert!(Cloud::open(&CloudConfig::None).unwrap().is_none());
}
