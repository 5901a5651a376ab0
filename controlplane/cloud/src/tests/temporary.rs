//! Temporary credentials: handed out by services that answer as the clouds' own do, used for real requests, renewed
//! before they end, and where they are refused that is said with what to do.

use super::*;
use fastcache_tests::{Certificates, FaultProxy, Identity, IdentitySetup, TlsFront, free_port};
use std::time::{Duration, Instant};

/// Longest wait for a renewal that is due after two seconds.
const RENEWED_WITHIN: Duration = Duration::from_secs(30);

/// The key that signed the last request for this object.
fn signer(proxy: &FaultProxy, object: &str) -> String {
    let requests = proxy.requests();
    let last = requests.iter().rev().find(|r| r.path.ends_with(object));
    let text = last
        .and_then(|r| r.authorization.clone())
        .unwrap_or_default();
    let key = text.split_once("Credential=").map_or("", |(_, rest)| rest);
    key.split('/').next().unwrap_or("").to_owned()
}

fn count(identity: &Identity, line: &str) -> usize {
    identity.log().iter().filter(|l| *l == line).count()
}

#[tokio::test]
async fn temporary_keys_of_amazon_are_used_and_renewed() {
    let s3 = S3::start();
    let proxy = FaultProxy::start(s3.port());
    let address = Identity::free_address();
    let identity = Identity::start(&IdentitySetup {
        plain: &[&address],
        sts: Some(s3.endpoint()),
        renew_after_s: 2,
        ..IdentitySetup::default()
    });
    let base = format!("http://{address}");
    let kinds: [(&str, Vec<(&str, String)>); 3] = [
        (
            "imds",
            vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", base.clone())],
        ),
        (
            "eks",
            vec![
                (
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    format!("{base}/v1/credentials"),
                ),
                (
                    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                    identity.token_file(),
                ),
            ],
        ),
        ("sts", web_identity(&identity, &base)),
    ];
    let mut running = Vec::new();
    for (kind, variables) in kinds {
        let cloud = open_s3(of_variables(proxy.endpoint(), variables));
        cloud.check().await.unwrap();
        let object = format!("chunks/{kind}/0-1");
        let at = put(&cloud, &object, b"hello").await;
        let first = signer(&proxy, &object);
        assert!(first.len() > 10, "{kind}: {first}");
        running.push((kind, cloud, at, first));
    }
    for (kind, cloud, at, first) in running {
        let began = Instant::now();
        loop {
            assert_eq!(&cloud.get_chunk(&at).await.unwrap()[..], b"hello");
            if signer(&proxy, &at.object) != first {
                break;
            }
            assert!(began.elapsed() < RENEWED_WITHIN, "{kind} was not renewed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(
            cloud
                .list(&format!("chunks/{kind}"), 9)
                .await
                .unwrap()
                .len(),
            1
        );
        assert!(count(&identity, &format!("{kind} ok")) >= 2, "{kind}");
    }
}

fn web_identity(identity: &Identity, sts: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_WEB_IDENTITY_TOKEN_FILE", identity.token_file()),
        ("AWS_ROLE_ARN", Identity::ROLE.to_owned()),
        ("AWS_ENDPOINT_URL_STS", sts.to_owned()),
    ]
}

fn of_variables(endpoint: String, variables: Vec<(&str, String)>) -> S3Config {
    S3Config {
        access_key: None,
        secret_key: None,
        environment: variables
            .into_iter()
            .chain([("HOME", "/nothing".to_owned())])
            .collect(),
        ..s3_config(endpoint)
    }
}

/// Azure's services and Azurite, all of them but the metadata service over TLS.
struct Azure {
    azurite: Azurite,
    identity: Identity,
    certificates: Certificates,
    metadata: String,
    authority: String,
}

impl Azure {
    fn start(renew_after_s: u32) -> Azure {
        let certificates = Certificates::of(&["IP:127.0.0.1"]);
        let (metadata, authority) = (Identity::free_address(), Identity::free_address());
        Azure {
            azurite: Azurite::start_on("127.0.0.1", free_port(), Some(&certificates)),
            identity: Identity::start(&IdentitySetup {
                plain: &[&metadata],
                tls: &[&authority],
                certificates: Some(&certificates),
                renew_after_s,
                ..IdentitySetup::default()
            }),
            certificates,
            metadata: format!("http://{metadata}/metadata/identity/oauth2/token"),
            authority: format!("https://{authority}"),
        }
    }

    fn config(&self, variables: &[(&str, &str)]) -> AzureConfig {
        AzureConfig {
            key: None,
            ca_file: Some(self.certificates.authority()),
            environment: variables.iter().copied().collect(),
            ..azure_config(&self.azurite)
        }
    }

    fn workload<'a>(&'a self, client: &'a str, token_file: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("AZURE_AUTHORITY_HOST", &self.authority),
            ("AZURE_TENANT_ID", Identity::TENANT),
            ("AZURE_CLIENT_ID", client),
            ("AZURE_FEDERATED_TOKEN_FILE", token_file),
        ]
    }

    fn secret<'a>(&'a self, tenant: &'a str, secret: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("AZURE_AUTHORITY_HOST", &self.authority),
            ("AZURE_TENANT_ID", tenant),
            ("AZURE_CLIENT_ID", Identity::CLIENT),
            ("AZURE_CLIENT_SECRET", secret),
        ]
    }
}

#[tokio::test]
async fn tokens_of_azure_are_used_and_renewed() {
    let azure = Azure::start(2);
    let token_file = azure.identity.token_file();
    let kinds = [
        (
            "azure-imds",
            azure.config(&[("IDENTITY_ENDPOINT", &azure.metadata)]),
        ),
        (
            "azure-workload",
            azure.config(&azure.workload(Identity::CLIENT, &token_file)),
        ),
        (
            "azure-secret",
            azure.config(&azure.secret(Identity::TENANT, Identity::SECRET)),
        ),
    ];
    let each = kinds.into_iter().map(|(kind, config)| {
        // Each in a folder of its own: they go on beside each other.
        let prefix = Some(kind.to_owned());
        let cloud = open_azure(AzureConfig { prefix, ..config });
        let identity = &azure.identity;
        let log = move || count(identity, &format!("{kind} ok"));
        async move {
            keeps_its_promises(&cloud).await;
            let at = put(&cloud, "chunks/1/0-1", b"hello").await;
            // Azurite refuses a token four seconds after it was handed out: the third is asked for when the first is
            // over.
            let began = Instant::now();
            while log() < 3 {
                assert_eq!(&cloud.get_chunk(&at).await.unwrap()[..], b"hello");
                assert!(began.elapsed() < RENEWED_WITHIN, "{kind} was not renewed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(&cloud.get_chunk(&at).await.unwrap()[..], b"hello");
            for (object, _) in cloud.list("chunks", 9).await.unwrap() {
                cloud.delete(&object).await.unwrap();
            }
            assert!(cloud.list("chunks", 9).await.unwrap().is_empty());
        }
    });
    futures_util::future::join_all(each).await;
}

/// What is said at a start with this.
async fn refused(config: CloudConfig) -> CloudError {
    match Cloud::open(&config) {
        Ok(cloud) => cloud.unwrap().check().await.unwrap_err(),
        Err(error) => error,
    }
}

#[track_caller]
fn assert_said(what: &str, error: &CloudError, want: &str) {
    let text = error.to_string();
    assert!(text.contains(want), "{what}: {text}");
    assert!(!error.is_passing(), "{what}: the node would start: {text}");
    for secret in ["sig=", "wrong-s3cret", "token-of-the-pod", "wrong-token"] {
        assert!(!text.contains(secret), "{what}: {secret}: {text}");
    }
}

/// A file with a token that nobody knows, and one whose token ends with its line.
fn token_files() -> (tempfile::TempDir, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, token: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, token).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let files = (file("wrong", "wrong-token"), file("line", "wrong-token\n"));
    (dir, files.0, files.1)
}

#[tokio::test]
async fn refused_identities_of_azure_are_said_with_what_to_do() {
    let azure = Azure::start(0);
    let right = azure.identity.token_file();
    let (_dir, wrong, line) = token_files();
    let azurite = &azure.azurite;
    let of = |variables: &[(&str, &str)]| azure.config(variables);
    let sas = |seconds| AzureConfig {
        sas: Some(Secret::new(azurite.sas(seconds))),
        ..of(&[])
    };
    let workload = |client: &str, file: &str| of(&azure.workload(client, file));
    let secret = |tenant: &str, secret: &str| of(&azure.secret(tenant, secret));
    let metadata = ("IDENTITY_ENDPOINT", &*azure.metadata);
    let away = (
        "IDENTITY_ENDPOINT",
        "http://127.0.0.1:9/metadata/identity/oauth2/token",
    );
    let untrusting = AzureConfig {
        ca_file: None,
        key: Some(Secret::new(azurite.key())),
        ..of(&[])
    };
    open_azure(sas(600)).check().await.unwrap();
    let file = "AZURE_FEDERATED_TOKEN_FILE";
    let table = [
        ("a signature that is over", sas(-600), "make a new one"),
        (
            "no such identity",
            of(&[metadata, ("AZURE_CLIENT_ID", "other")]),
            "AZURE_CLIENT_ID",
        ),
        ("no metadata service", of(&[away]), "no credentials"),
        (
            "an unknown application",
            workload("other", &right),
            "AZURE_CLIENT_ID",
        ),
        (
            "no token file",
            workload(Identity::CLIENT, "/not/there"),
            file,
        ),
        (
            "a token with its line's end",
            workload(Identity::CLIENT, &line),
            file,
        ),
        ("another's token", workload(Identity::CLIENT, &wrong), file),
        (
            "a wrong tenant",
            secret("wrong", Identity::SECRET),
            "AZURE_TENANT_ID",
        ),
        (
            "a wrong secret",
            secret(Identity::TENANT, "wrong-s3cret"),
            "AZURE_CLIENT_SECRET",
        ),
        (
            "a token that is none",
            of(&[("AZURE_STORAGE_TOKEN", "wrong-token")]),
            "AZURE_STORAGE_TOKEN",
        ),
        ("an unknown authority", untrusting, "--cloud-ca"),
    ];
    for (what, config, want) in table {
        let error = refused(CloudConfig::Azure(Box::new(config))).await;
        assert_said(what, &error, want);
    }
}

#[tokio::test]
async fn refused_identities_of_amazon_are_said_with_what_to_do() {
    let certificates = Certificates::of(&["IP:127.0.0.1"]);
    let s3 = S3::start_on("127.0.0.1", free_port(), Some(&certificates));
    let address = Identity::free_address();
    let identity = Identity::start(&IdentitySetup {
        plain: &[&address],
        sts: Some("http://127.0.0.1:9".to_owned()),
        ..IdentitySetup::default()
    });
    let base = format!("http://{address}");
    let (_dir, wrong, line) = token_files();
    let of = |variables: Vec<(&str, String)>| S3Config {
        ca_file: Some(certificates.authority()),
        ..of_variables(s3.endpoint(), variables)
    };
    let web = |name: &'static str, value: &str| {
        let mut variables = web_identity(&identity, &base);
        variables.push((name, value.to_owned()));
        of(variables)
    };
    let pod = |file: &str| {
        of(vec![
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                format!("{base}/v1/credentials"),
            ),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_owned()),
        ])
    };
    let trusting = S3Config {
        ca_file: Some(certificates.authority()),
        ..s3_config(s3.endpoint())
    };
    open_s3(trusting).check().await.unwrap();
    let (of_web, of_pod) = (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    );
    let table = [
        ("another's token", web(of_web, &wrong), of_web),
        ("no token file", web(of_web, "/not/there"), of_web),
        (
            "another role",
            web("AWS_ROLE_ARN", "arn:aws:iam::1:role/other"),
            "AWS_ROLE_ARN",
        ),
        ("a pod's wrong token", pod(&wrong), of_pod),
        ("a pod without its token", pod("/not/there"), of_pod),
        ("a pod's token with its line's end", pod(&line), of_pod),
        (
            "an unknown authority",
            s3_config(s3.endpoint()),
            "--cloud-ca",
        ),
    ];
    for (what, config, want) in table {
        let error = refused(CloudConfig::S3(Box::new(config))).await;
        assert_said(what, &error, want);
    }
    // A service that is away may come back: the node starts, and waits for it.
    let away = web("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9");
    let error = refused(CloudConfig::S3(Box::new(away))).await;
    assert!(error.is_passing(), "{error}");
    assert!(
        error.to_string().contains("service that gives credentials"),
        "{error}"
    );
}

#[tokio::test]
async fn a_customer_key_goes_over_tls_with_every_request_for_an_object() {
    let (s3, azurite) = (S3::start(), Azurite::start());
    let certificates = Certificates::of(&["IP:127.0.0.1"]);
    let key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    let proxies = [
        FaultProxy::start(s3.port()),
        FaultProxy::start(azurite.port()),
    ];
    let fronts = proxies
        .each_ref()
        .map(|p| TlsFront::start(p.port(), &certificates));
    let ca_file = Some(certificates.authority());
    let amazon = open_s3(S3Config {
        encryption: Encryption::Customer(Secret::new(key)),
        ca_file: ca_file.clone(),
        ..s3_config(fronts[0].endpoint())
    });
    let of = |endpoint: &str| AzureConfig {
        endpoint: Some(format!("{endpoint}/{}", azurite.account())),
        ca_file: ca_file.clone(),
        environment: [("AZURE_STORAGE_ENCRYPTION_KEY", key)]
            .into_iter()
            .collect(),
        ..azure_config(&azurite)
    };
    let azure = open_azure(of(&fronts[1].endpoint()));
    // Neither server encrypts with it: what is shown is that it arrives, each time, and over TLS alone.
    amazon.check().await.unwrap();
    proxies[0].forget();
    let at = put(&amazon, "chunks/1/0-1", b"hello").await;
    assert_eq!(&amazon.get_chunk(&at).await.unwrap()[..], b"hello");
    amazon.head("chunks/1/0-1").await.unwrap();
    let seen = proxies[0].requests();
    assert_eq!(seen.len(), 3, "{seen:?}");
    for request in seen {
        assert_eq!(request.customer_key.as_deref(), Some(key), "{request:?}");
    }
    // Azurite refuses requests with it, which says that it came, too.
    let text = azure.check().await.unwrap_err().to_string();
    assert!(text.contains("x-ms-encryption-key"), "{text}");
    assert!(!text.contains(key), "{text}");
    let seen = proxies[1].requests();
    let seen: Vec<_> = seen.iter().filter(|r| r.is_put()).collect();
    assert!(!seen.is_empty() && seen.iter().all(|r| r.customer_key.as_deref() == Some(key)));
    let clear = Cloud::open(&CloudConfig::Azure(Box::new(of(&proxies[1].endpoint()))));
    let text = clear.unwrap_err().to_string();
    assert!(text.contains("https") && !text.contains("MDEy"), "{text}");
}
