//! Where credentials come from. moto stands for the store and for an instance's metadata; the proxy sees whose
//! credentials a request carries.

use super::*;
use fastcache_tests::{FaultProxy, run};
use std::process::Command;

/// Whose S3 key signed the last request.
fn signer(proxy: &FaultProxy) -> String {
    let last = proxy.requests().pop().unwrap();
    let text = last.authorization.unwrap_or_default();
    let key = text.split_once("Credential=").map_or("", |(_, rest)| rest);
    key.split('/').next().unwrap_or("").to_owned()
}

fn without_keys(endpoint: String, environment: Environment) -> S3Config {
    S3Config {
        access_key: None,
        secret_key: None,
        environment,
        ..s3_config(endpoint)
    }
}

#[tokio::test]
async fn s3_credentials_are_found_where_the_tools_put_them() {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let home = tempfile::tempdir().unwrap();
    let nothing = home.path().join("nothing").to_str().unwrap().to_owned();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(
        home.path().join(".aws/credentials"),
        "[default]\naws_access_key_id=AKIADEFAULT\naws_secret_access_key=x\n\
         [ci]\naws_access_key_id=AKIACI\naws_secret_access_key=x\n",
    )
    .unwrap();
    let home = home.path().to_str().unwrap();
    let keys = [
        ("AWS_ACCESS_KEY_ID", "AKIAENV"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("HOME", home),
    ];
    let instance = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*s3.endpoint()),
        ("HOME", &nothing),
    ];
    let named = S3Config {
        profile: Some("ci".into()),
        ..without_keys(proxy.endpoint(), keys.into_iter().collect())
    };
    let of =
        |pairs: &[(&str, &str)]| without_keys(proxy.endpoint(), pairs.iter().copied().collect());
    let cases = [
        ("of the settings", s3_config(proxy.endpoint()), "AKIATESTS"),
        ("of the environment", of(&keys), "AKIAENV"),
        ("a profile of the settings", named, "AKIACI"),
        (
            "a profile of the environment",
            of(&[("HOME", home), ("AWS_PROFILE", "ci")]),
            "AKIACI",
        ),
        ("the default profile", of(&[("HOME", home)]), "AKIADEFAULT"),
        ("the instance's", of(&instance), "test-key"),
    ];
    for (what, config, want) in cases {
        let cloud = open_s3(config);
        let at = put(&cloud, "chunks/1/0-1", b"hello").await;
        cloud.get_chunk(&at).await.unwrap();
        let signer = signer(&proxy);
        assert!(signer.starts_with(want), "{what}: {signer}");
    }
    let unknown = of(&[("HOME", home), ("AWS_PROFILE", "nobody")]);
    assert!(refusal(unknown).contains("`nobody`"));
    let forbidden = of(&[("AWS_EC2_METADATA_DISABLED", "true"), ("HOME", &nothing)]);
    assert!(refusal(forbidden).contains("AWS_ACCESS_KEY_ID"));
    // Nothing at all, and an instance that does not answer: said with what to do, and not as a passing failure.
    let nowhere = of(&[
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9"),
        ("HOME", &nothing),
    ]);
    let error = open_s3(nowhere).check().await.unwrap_err();
    assert!(matches!(error, CloudError::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("no credentials"), "{error}");
}

#[tokio::test]
async fn azure_takes_keys_signatures_and_tokens_and_says_when_they_are_wrong() {
    let azurite = Azurite::start();
    let proxy = FaultProxy::start(azurite.port());
    let endpoint = format!("{}/{}", proxy.endpoint(), azurite.account());
    let script = include_str!("sas.py");
    let sas = run(Command::new("python3").args(["-c", script, azurite.account(), azurite.key()]));
    let bare = AzureConfig {
        key: None,
        endpoint: Some(endpoint),
        ..azure_config(&azurite)
    };
    let signed = AzureConfig {
        sas: Some(Secret::new(sas.trim())),
        ..bare.clone()
    };
    let of_env = AzureConfig {
        environment: [("AZURE_STORAGE_KEY", azurite.key())].into_iter().collect(),
        ..bare.clone()
    };
    for config in [signed.clone(), of_env] {
        let cloud = open_azure(config);
        // Not `check`, which deletes: Azurite answers batches that carry a signature with 500.
        let at = put(&cloud, "chunks/1/0-1", b"hello").await;
        assert_eq!(&cloud.get_chunk(&at).await.unwrap()[..], b"hello");
    }
    let wrong = AzureConfig {
        key: Some(Secret::new("d3Jvbmc=")),
        ..bare.clone()
    };
    let error = open_azure(wrong).check().await.unwrap_err();
    assert!(matches!(error, CloudError::Denied(_)), "{error:?}");
    assert!(
        error.to_string().contains("refuses these credentials"),
        "{error}"
    );
    // An error about a signed request does not show the signature.
    let missing = AzureConfig {
        container: "not-there".into(),
        ..signed
    };
    let text = open_azure(missing).check().await.unwrap_err().to_string();
    assert!(!text.contains("sig="), "{text}");
    // A token is sent as it is. Azurite takes none over plain HTTP: what is asserted is what was sent.
    let token = AzureConfig {
        environment: [("AZURE_STORAGE_TOKEN", "t0ken")].into_iter().collect(),
        ..bare
    };
    assert!(open_azure(token).check().await.is_err());
    let sent = proxy.requests().pop().unwrap().authorization;
    assert_eq!(sent.as_deref(), Some("Bearer t0ken"));
}
