//! Goal: settings of the object store have the precedence that is documented, and secrets stay off command lines. Method:
//! command lines as clap reads them, with an environment of the test's own.

use crate::cli::AgentFlags;
use crate::settings::cloud::SECRET_FLAGS;
use crate::settings::{AgentSettings, Defaults, FileConfig};
use clap::Parser;
use fastcache_agent::{CloudConfig, Encryption, S3Config};
use std::path::Path;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    agent: AgentFlags,
}

fn resolve(args: &[&str], env: &[(&str, &str)]) -> Result<AgentSettings, String> {
    let words = std::iter::once(&"fastcache-ctl").chain(args);
    let line = Line::try_parse_from(words).map_err(|e| e.to_string())?;
    let get = |name: &str| {
        let found = env.iter().find(|(n, _)| *n == name);
        found.map(|(_, v)| (*v).to_owned())
    };
    let file = FileConfig::read(None).unwrap();
    AgentSettings::resolve(&line.agent, &file, &get, &Defaults::default())
        .map_err(|e| e.to_string())
}

fn s3(settings: &AgentSettings) -> S3Config {
    match settings.to_config().cloud {
        CloudConfig::S3(config) => *config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn secrets_of_every_flag_travel_by_the_environment_alone() {
    let values: Vec<(String, &str)> = SECRET_FLAGS
        .iter()
        .map(|(flag, variable)| (format!("s3cr3t{}", flag.replace("--", "-of-")), *variable))
        .collect();
    let mut args: Vec<String> = SECRET_FLAGS
        .iter()
        .zip(&values)
        .filter(|((flag, _), _)| *flag != "--s3-customer-key")
        .map(|((flag, _), (value, _))| format!("{flag}={value}"))
        .collect();
    args.extend(["--azure-client-id=i", "--azure-tenant-id=t"].map(str::to_owned));
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let settings = resolve(&words, &[]).unwrap();
    let shown = format!(
        "{settings:?}{:?}{:?}",
        settings.public(),
        settings.secrets()
    );
    // The access key's id names a key, as an account does; it is only kept off command lines.
    let shown = shown.replace("s3cr3t-of-s3-access-key", "");
    assert!(!shown.contains("s3cr3t"), "{shown}");
    let (line, carried) = settings.to_command();
    assert!(!format!("{line:?}").contains("s3cr3t"), "{line:?}");
    for (value, variable) in values {
        let is_carried = carried.contains(&(variable, value));
        assert_eq!(
            is_carried,
            variable != "FASTCACHE_S3_CUSTOMER_KEY",
            "{variable}"
        );
    }
}

#[test]
fn keys_of_settings_beat_a_profile_and_that_the_environment() {
    let env = [
        ("AWS_ACCESS_KEY_ID", "env"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_SESSION_TOKEN", "t"),
    ];
    let of_env = s3(&resolve(&[], &env).unwrap());
    assert_eq!(of_env.access_key.as_deref(), Some("env"));
    assert_eq!(of_env.session_token.unwrap().expose(), "t");
    let of_profile = s3(&resolve(&["--s3-profile=ci"], &env).unwrap());
    assert_eq!(
        (of_profile.access_key, of_profile.profile.as_deref()),
        (None, Some("ci"))
    );
    let args = [
        "--s3-access-key=flag",
        "--s3-secret-key=y",
        "--s3-profile=ci",
    ];
    let of_flags = s3(&resolve(&args, &env).unwrap());
    assert_eq!(of_flags.access_key.as_deref(), Some("flag"));
    assert!(
        of_flags.session_token.is_none(),
        "a token belongs to its keys"
    );
}

#[test]
fn prefix_encryption_and_addressing_reach_the_store() {
    let args = [
        "--cloud-prefix=/team/one/",
        "--s3-encryption=aws:kms",
        "--s3-kms-key=k",
        "--s3-addressing=virtual",
        "--cloud-uploads=3",
        "--garbage-grace=61",
    ];
    let env = [
        ("AWS_ENDPOINT_URL", "http://all"),
        ("AWS_ENDPOINT_URL_S3", "http://s3"),
    ];
    let settings = resolve(&args, &env).unwrap();
    let config = s3(&settings);
    assert_eq!(config.prefix.as_deref(), Some("team/one"));
    assert_eq!(config.endpoint.as_deref(), Some("http://s3"));
    assert!(config.is_virtual_hosted);
    assert!(matches!(
        config.encryption,
        Encryption::Kms {
            key_id: Some(_),
            is_dual: false,
            ..
        }
    ));
    assert_eq!(settings.to_config().upload_parallel, 3);
    assert_eq!(settings.to_config().garbage_grace.as_secs(), 61);
    let dir = [
        "--cloud-provider=dir",
        "--cloud-dir=/d",
        "--cloud-prefix=a/b",
    ];
    match resolve(&dir, &[]).unwrap().to_config().cloud {
        CloudConfig::Dir { path } => assert_eq!(path, Path::new("/d/a/b")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_what_to_do() {
    let cases: [(&[&str], &str); 8] = [
        (&["--s3-access-key=a"], "--s3-secret-key"),
        (&["--s3-session-token=a"], "--s3-access-key"),
        (&["--s3-kms-key=a"], "--s3-encryption"),
        (
            &["--s3-customer-key=a", "--s3-encryption=AES256"],
            "choose one",
        ),
        (&["--azure-client-secret=a"], "--azure-tenant-id"),
        (&["--cloud-uploads=0"], "1 to 64"),
        (&["--garbage-grace=59"], "at least 60"),
        (&["--s3-encryption=none"], "AES256"),
    ];
    for (args, want) in cases {
        let said = resolve(args, &[]).unwrap_err();
        assert!(said.contains(want), "{args:?}: {said}");
    }
}
