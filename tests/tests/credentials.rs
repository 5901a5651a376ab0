//! Promise: a node works with temporary credentials as clouds hand them out, at the clouds' own names and addresses and
//! over TLS, and what is refused is said at start with what to do.
//!
//! Method: a network of the test's own, where those names lead to moto, Azurite and a server that answers as metadata and
//! token services do. No endpoint is configured: only whose certificates to trust. Renewal is tested where it can be
//! sped up, in `controlplane/cloud/src/tests/temporary.rs`. Short form: a workload's identity; with
//! `FASTCACHE_CLOUDS=identities` (`make test-clouds`) every kind there is.

#![allow(clippy::unwrap_used, reason = "tests")]

use fastcache_tests::{
    Azurite, Bytes, Certificates, Identity, IdentitySetup, Node, S3, Setup, drop_page_cache,
    on_an_island, serial,
};

/// Whether every kind is asked for.
fn is_long() -> bool {
    std::env::var("FASTCACHE_CLOUDS").is_ok_and(|names| names.split(',').any(|n| n == "identities"))
}

/// One chunk and a part.
const LEN: usize = (4 << 20) + 12_345;

type Variables<'a> = &'a [(&'static str, &'a str)];

fn setup(flags: &[&str], variables: Variables) -> Setup {
    // Without profiles of whoever runs the tests.
    let home = [("HOME", "/nothing")];
    Setup {
        flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        env: variables
            .iter()
            .chain(&home)
            .map(|(n, v)| (*n, (*v).to_owned()))
            .collect(),
        capacity: Some("256MiB"),
        ..Setup::default()
    }
}

/// Writes, uploads, evicts, reads back, removes.
fn works(what: &str, flags: &[&str], variables: Variables) {
    let node = Node::start(setup(flags, variables));
    std::fs::write(node.at("file"), Bytes::of(7).range(0, LEN)).unwrap();
    node.flush();
    assert_eq!(node.state_xattr("file"), "persisted", "{what}");
    node.evict();
    drop_page_cache();
    let got = std::fs::read(node.at("file")).unwrap();
    assert_eq!(
        (got.len(), Bytes::of(7).first_difference(0, &got)),
        (LEN, None),
        "{what}"
    );
    // The history is in the bucket, too: it alone gives the file system back.
    node.down();
    std::fs::remove_dir_all(node.dir()).unwrap();
    node.up_with(&["--rebuild"]);
    let got = std::fs::read(node.at("file")).unwrap();
    assert_eq!(
        (got.len(), Bytes::of(7).first_difference(0, &got)),
        (LEN, None),
        "{what}, rebuilt"
    );
    node.down();
}

#[track_caller]
fn is_refused(flags: &[&str], variables: Variables, words: &[&str]) {
    let node = Node::prepare(setup(flags, variables));
    let out = node.try_up();
    let said = [out.stdout, out.stderr]
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .concat();
    assert!(
        !out.status.success() && !node.is_mounted(),
        "the node started: {said}"
    );
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("sig="), "{said}");
}

#[test]
fn every_kind_of_temporary_credentials_of_azure_works() {
    let _one = serial();
    let blob = "devstoreaccount1.blob.core.windows.net";
    let hosts = [
        ("127.0.0.2", blob),
        ("127.0.0.3", "login.microsoftonline.com"),
    ];
    on_an_island(&hosts, || {
        let names = [
            &*format!("DNS:{blob}"),
            "DNS:login.microsoftonline.com",
            "IP:127.0.0.2",
        ];
        let certificates = Certificates::of(&names);
        let azurite = Azurite::start_on("127.0.0.2", 443, Some(&certificates));
        let identity = Identity::start(&IdentitySetup {
            plain: &["169.254.169.254:80"],
            tls: &["127.0.0.3:443"],
            certificates: Some(&certificates),
            ..IdentitySetup::default()
        });
        let authority = format!("--cloud-ca={}", certificates.authority().display());
        let account = format!("--azure-account={}", azurite.account());
        let container = format!("--azure-container={}", azurite.container());
        let flags = |prefix: &'static str| {
            let store = ["--cloud-provider=azure", &account, &container, &authority];
            [&store[..], &[prefix]].concat()
        };
        let token_file = identity.token_file();
        let workload = [
            ("AZURE_TENANT_ID", Identity::TENANT),
            ("AZURE_CLIENT_ID", Identity::CLIENT),
            ("AZURE_FEDERATED_TOKEN_FILE", &token_file),
        ];
        let (signature, over) = (azurite.sas(3600), azurite.sas(-60));
        let signature = [("AZURE_STORAGE_SAS_TOKEN", &*signature)];
        let over = [("AZURE_STORAGE_SAS_TOKEN", &*over)];
        works(
            "workload identity",
            &flags("--cloud-prefix=workload"),
            &workload,
        );
        if is_long() {
            works("managed identity", &flags("--cloud-prefix=managed"), &[]);
            let log = identity.log();
            assert!(log.iter().any(|l| l == "azure-imds ok"), "{log:?}");
            let what = "shared access signature";
            works(what, &flags("--cloud-prefix=sas"), &signature);
        }
        let log = identity.log();
        assert!(log.iter().any(|l| l == "azure-workload ok"), "{log:?}");
        assert!(!log.iter().any(|l| l.ends_with("refused")), "{log:?}");

        is_refused(
            &flags("--cloud-prefix=over"),
            &over,
            &["make a new one", "--azure-sas"],
        );
        let unknown = [("AZURE_CLIENT_ID", "other")];
        is_refused(
            &flags("--cloud-prefix=other"),
            &unknown,
            &["managed identity", "AZURE_CLIENT_ID"],
        );
        let trusting_nobody = ["--cloud-provider=azure", &account, &container];
        is_refused(&trusting_nobody, &signature, &["--cloud-ca"]);
    });
}

#[test]
fn every_kind_of_temporary_credentials_of_amazon_works() {
    let _one = serial();
    let (path_style, virtual_hosted) = (
        "s3.us-east-1.amazonaws.com",
        "fastcache-tests.s3.us-east-1.amazonaws.com",
    );
    let sts = "sts.us-east-1.amazonaws.com";
    // In the short form the bucket is found by the name of its own alone.
    let mut hosts = vec![("127.0.0.2", virtual_hosted), ("127.0.0.3", sts)];
    if is_long() {
        hosts.push(("127.0.0.2", path_style));
    }
    on_an_island(&hosts, || {
        let names = [path_style, virtual_hosted, sts].map(|name| format!("DNS:{name}"));
        let names = [&*names[0], &names[1], &names[2], "IP:127.0.0.2"];
        let certificates = Certificates::of(&names);
        let s3 = S3::start_on("127.0.0.2", 443, Some(&certificates));
        let identity = Identity::start(&IdentitySetup {
            plain: &[
                "169.254.169.254:80",
                "169.254.170.2:80",
                "169.254.170.23:80",
            ],
            tls: &["127.0.0.3:443"],
            certificates: Some(&certificates),
            sts: Some(s3.endpoint()),
            ..IdentitySetup::default()
        });
        let authority = format!("--cloud-ca={}", certificates.authority().display());
        let bucket = format!("--s3-bucket={}", s3.bucket());
        let flags = |further: &[&'static str]| {
            let store = ["--cloud-provider=s3", &*bucket, &*authority];
            let all: Vec<String> = store
                .iter()
                .chain(further)
                .map(|f| (*f).to_owned())
                .collect();
            all
        };
        let token_file = identity.token_file();
        let web = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &*token_file),
            ("AWS_ROLE_ARN", Identity::ROLE),
        ];
        let task = [(
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "/v2/credentials/tests",
        )];
        let pod = [
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://169.254.170.23/v1/credentials",
            ),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token_file),
        ];
        let kinds: [(&str, &[&'static str], Variables); 4] = [
            (
                "sts",
                &["--cloud-prefix=sts", "--s3-addressing=virtual"],
                &web,
            ),
            ("ecs", &["--cloud-prefix=ecs"], &task),
            ("eks", &["--cloud-prefix=eks"], &pod),
            ("imds", &["--cloud-prefix=imds"], &[]),
        ];
        let kinds = &kinds[..if is_long() { kinds.len() } else { 1 }];
        for (kind, further, variables) in kinds {
            let flags = flags(further);
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            works(kind, &flags, variables);
            let log = identity.log();
            assert!(log.iter().any(|l| *l == format!("{kind} ok")), "{log:?}");
            let objects = s3.objects();
            let below = format!("{kind}/chunks/");
            assert!(
                objects.iter().any(|(key, _)| key.starts_with(&below)),
                "{objects:?}"
            );
        }
        let other = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &*token_file),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/other"),
        ];
        let refused = flags(&["--cloud-prefix=other", "--s3-addressing=virtual"]);
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        is_refused(&refused, &other, &["AWS_ROLE_ARN"]);
        is_refused(
            &["--cloud-provider=s3", &bucket, "--s3-addressing=virtual"],
            &web,
            &["--cloud-ca"],
        );
    });
}
