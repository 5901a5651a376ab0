//! Goal: flag over environment over file over default, for every kind of setting, and no secret in any output.
//! Method: tables; the environment is a function. That `FASTCACHE_*` reach the flags is shown by the real binary
//! in `tests/cli.rs`.

use super::*;
use crate::cli::Cli;
use crate::cli::StoreFlags;
use clap::{CommandFactory, Parser};

fn no_env(_: &str) -> Option<String> {
    None
}

fn clouds_env(name: &str) -> Option<String> {
    let value = match name {
        "AWS_REGION" => "env-region",
        "AWS_ACCESS_KEY_ID" => "AKID",
        "AWS_SECRET_ACCESS_KEY" => "s3cr3t-aws",
        "AZURE_STORAGE_ACCOUNT" => "env-account",
        "AZURE_STORAGE_KEY" => "s3cr3t-azure",
        "AZURE_CONTAINER_NAME" => "env-container",
        "POD_IP" => "10.0.0.7",
        _ => return None,
    };
    Some(value.to_owned())
}

fn resolve(flags: &AgentFlags, file: &str, env: Environment<'_>) -> AgentSettings {
    let file = FileConfig::parse(file).unwrap();
    AgentSettings::resolve(flags, &file, env, &Defaults::default()).unwrap()
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_of_the_agent_has_its_variable() {
    for arg in Cli::command().get_arguments() {
        let Some(long) = arg.get_long().filter(|l| !["help", "version"].contains(l)) else {
            continue;
        };
        let want = format!("FASTCACHE_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(
            arg.get_env().and_then(|e| e.to_str()),
            Some(want.as_str()),
            "--{long}"
        );
    }
}

#[test]
fn precedence() {
    let file = "s3-region = 'file'\ns3-bucket = 'file'\nport = 1\nchunk-size = 2\n\
                fsync = 'cloud'\nazure-container = 'file'\napi-key = 's3cr3t-file'";
    let bare = resolve(&AgentFlags::default(), "", &no_env);
    assert_eq!(bare.s3_region, "us-east-1");
    assert_eq!(bare.s3_bucket, "fuse-client-cache");
    assert_eq!(bare.azure_container, "fuse-cache");
    assert_eq!((bare.port, bare.chunk_size, bare.fsync), (None, 4, None));
    assert_eq!(bare.provider, Provider::S3);
    assert_eq!(bare.to_config().port, 8081);
    assert_eq!(bare.to_config().chunk_size, 4 << 20);
    assert_eq!(bare.to_config().put_limit, 100 << 20);

    let from_file = resolve(&AgentFlags::default(), file, &no_env);
    assert_eq!(from_file.s3_region, "file");
    assert_eq!(from_file.s3_bucket, "file");
    assert_eq!((from_file.port, from_file.chunk_size), (Some(1), 2));
    assert_eq!(from_file.fsync, Some(Fsync::Cloud));
    assert_eq!(from_file.api_key.as_ref().unwrap().expose(), "s3cr3t-file");

    let from_env = resolve(&AgentFlags::default(), file, &clouds_env);
    assert_eq!(from_env.s3_region, "env-region");
    assert_eq!(from_env.s3_bucket, "file");
    assert_eq!(from_env.azure_container, "env-container");
    assert_eq!(from_env.azure_account.as_deref(), Some("env-account"));
    assert_eq!(from_env.pod_ip.as_deref(), Some("10.0.0.7"));

    let flags = AgentFlags {
        store: StoreFlags {
            s3_region: Some("flag".to_owned()),
            azure_container: Some(String::new()),
            ..StoreFlags::default()
        },
        port: Some(9),
        fsync: Some(Fsync::Peers),
        api_key: Some(Secret::new("s3cr3t-flag")),
        ..AgentFlags::default()
    };
    let from_flags = resolve(&flags, file, &clouds_env);
    assert_eq!(from_flags.s3_region, "flag");
    assert_eq!(
        (from_flags.port, from_flags.fsync),
        (Some(9), Some(Fsync::Peers))
    );
    assert_eq!(from_flags.api_key.as_ref().unwrap().expose(), "s3cr3t-flag");
    assert_eq!(
        from_flags.azure_container, "env-container",
        "an empty value is none"
    );
}

#[test]
fn no_secret_is_ever_printed() {
    let flags = AgentFlags {
        api_key: Some(Secret::new("s3cr3t-flag")),
        ..AgentFlags::default()
    };
    let settings = resolve(&flags, "", &clouds_env);
    let (args, env) = settings.to_command();
    let printed = format!(
        "{settings:?} {:?} {:?} {:?} {args:?} {flags:?}",
        settings.public(),
        settings.secrets(),
        settings.to_config()
    );
    assert!(!printed.contains("s3cr3t"), "{printed}");
    assert!(env.contains(&("FASTCACHE_API_KEY", "s3cr3t-flag".to_owned())));
    let wrong = FileConfig::parse("api-key = ['s3cr3t']").unwrap_err();
    assert!(!wrong.contains("s3cr3t"), "{wrong}");
}

#[test]
fn an_unknown_key_of_the_file_is_named() {
    let error = FileConfig::parse("port = 1\ns3-bukket = 'x'").unwrap_err();
    assert!(
        error.contains("s3-bukket") && error.contains("line 2"),
        "{error}"
    );
    assert!(FileConfig::parse("port = 'x'").is_err());
    assert!(FileConfig::parse("port = 70000").is_err());
    assert!(FileConfig::parse("cloud-provider = 'ftp'").is_err());
}

#[test]
fn what_cannot_work_is_refused() {
    let refused = |flags: AgentFlags| {
        AgentSettings::resolve(
            &flags,
            &FileConfig::default(),
            &no_env,
            &Defaults::default(),
        )
        .unwrap_err()
        .to_string()
    };
    let with = AgentFlags::default;
    assert!(
        refused(AgentFlags {
            chunk_size: Some(5),
            ..with()
        })
        .contains("--chunk-size")
    );
    assert!(
        refused(AgentFlags {
            chunk_size: Some(0),
            ..with()
        })
        .contains("--chunk-size")
    );
    let dir = AgentFlags {
        store: provider(Provider::Dir),
        ..with()
    };
    assert!(refused(dir).contains("--cloud-dir"));
    let azure = AgentFlags {
        store: provider(Provider::Azure),
        ..with()
    };
    assert!(refused(azure).contains("--azure-account"));
    let none = AgentFlags {
        store: provider(Provider::None),
        fsync: Some(Fsync::Cloud),
        ..with()
    };
    assert!(refused(none).contains("--fsync cloud"));
    let alone = |coordinator: Option<&str>| AgentFlags {
        store: provider(Provider::None),
        fsync: Some(Fsync::Peers),
        coordinator: coordinator.map(str::to_owned),
        ..with()
    };
    assert!(refused(alone(None)).contains("--fsync peers"));
    let among_others = resolve(&alone(Some("host:8080")), "", &no_env).to_config();
    assert_eq!(
        (among_others.fsync, among_others.fsync_copies),
        (Some(FsyncLevel::Peers), 1)
    );
    for copies in [0, 3] {
        let flags = AgentFlags {
            fsync_copies: Some(copies),
            ..with()
        };
        assert!(refused(flags).contains("--fsync-copies is 1 or 2"));
    }
    assert!(
        refused(AgentFlags {
            put_limit: Some("x".into()),
            ..with()
        })
        .contains("--put-limit")
    );
}

#[test]
fn an_agent_started_with_the_settings_has_the_settings() {
    let flags = AgentFlags {
        coordinator: Some("c:1".to_owned()),
        bind: Some("::1".parse().unwrap()),
        chunk_size: Some(1),
        peer_id: Some("-odd id".to_owned()),
        ..AgentFlags::default()
    };
    let file = FileConfig::default();
    let settings =
        AgentSettings::resolve(&flags, &file, &no_env, &Defaults::of_up("/d".as_ref())).unwrap();
    let (mut args, _) = settings.to_command();
    args.insert(0, "fastcache-ctl".into());
    let again = Cli::try_parse_from(&args).unwrap();
    let again = AgentSettings::resolve(&again.agent, &file, &no_env, &Defaults::default()).unwrap();
    assert_eq!(settings.public(), again.public());
}

#[test]
fn sizes() {
    let table = [
        ("1", 1),
        ("4096", 4096),
        ("1KiB", 1024),
        ("512m", 512 << 20),
        ("10GiB", 10 << 30),
        ("10 GiB", 10 << 30),
        ("1TiB", 1 << 40),
    ];
    for (text, bytes) in table {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in [
        "",
        "GiB",
        "1.5GiB",
        "-1",
        "0",
        "10XB",
        "10GB",
        "99999999999TiB",
        "1e9",
    ] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

fn provider(provider: Provider) -> StoreFlags {
    StoreFlags {
        cloud_provider: Some(provider),
        ..StoreFlags::default()
    }
}

#[test]
fn readahead_is_a_size_or_nothing() {
    let resolve = |size: &str| {
        let flags = DataFlags {
            read_ahead: Some(size.to_owned()),
            ..DataFlags::default()
        };
        DataSettings::resolve(&flags, &FileConfig::default(), Path::new("/d"))
            .map(|data| data.read_ahead)
            .map_err(|e| e.to_string())
    };
    assert_eq!(resolve("0"), Ok(Some(0)));
    assert_eq!(resolve("64MiB"), Ok(Some(64 << 20)));
    assert!(resolve("much").unwrap_err().contains("--read-ahead"));
}

#[test]
fn memory_is_a_size_and_the_flag_wins_over_the_file() {
    let resolve = |flag: Option<&str>, file: &str| {
        let flags = DataFlags {
            memory: flag.map(str::to_owned),
            ..DataFlags::default()
        };
        let file = FileConfig::parse(file).unwrap();
        DataSettings::resolve(&flags, &file, Path::new("/d"))
            .map(|data| (data.memory, data.checksum_memory))
            .map_err(|e| e.to_string())
    };
    let file = "memory = \"2GiB\"\nchecksum-memory = \"1MiB\"\n";
    assert_eq!(resolve(None, ""), Ok((None, None)));
    assert_eq!(resolve(None, file), Ok((Some(2 << 30), Some(1 << 20))));
    assert_eq!(
        resolve(Some("700 MiB"), file),
        Ok((Some(700 << 20), Some(1 << 20)))
    );
    assert!(resolve(Some("some"), "").unwrap_err().contains("--memory"));
    let wrong = resolve(None, "checksum-memory = \"x\"").unwrap_err();
    assert!(wrong.contains("--checksum-memory"), "{wrong}");
}

#[test]
fn the_cluster_token_is_of_one_place_and_never_shown() {
    let file = FileConfig::parse("cluster-token = \"of the file, in words\"").unwrap();
    let resolve = |flags: DataFlags| {
        let data = DataSettings::resolve(&flags, &file, Path::new("/d")).unwrap();
        assert!(!format!("{data:?}").contains("words"), "{data:?}");
        let token = data.cluster_token.map(|t| t.expose().to_owned());
        (token, data.cluster_token_file)
    };
    let of_file = Some("of the file, in words".to_owned());
    assert_eq!(resolve(DataFlags::default()), (of_file, None));
    let path = Some(std::path::PathBuf::from("/token"));
    let flags = DataFlags {
        cluster_token_file: path.clone(),
        ..DataFlags::default()
    };
    assert_eq!(resolve(flags), (None, path));
}

/// The data plane accepts a file that it shares with the agent: it must know these keys.
#[test]
fn the_shared_list_of_keys_is_complete() {
    let said = toml::from_str::<FileConfig>("no-such-key = 1").unwrap_err();
    let names: Vec<&str> = said.message().split('`').skip(3).step_by(2).collect();
    let of_data = [
        "nvme",
        "nvme-capacity",
        "listen",
        "cluster-token",
        "cluster-token-file",
        "cores",
        "fuse-transport",
        "read-ahead",
        "memory",
        "checksum-memory",
        "mount",
        "format",
        "force",
    ];
    for name in &names {
        assert!(
            of_data.contains(name) || fastcache_api::settings::AGENT_KEYS.contains(name),
            "{name} is missing in fastcache_api::settings::AGENT_KEYS"
        );
    }
}
