//! Goal: what the real program makes of its command line, environment and file, and its exit codes. Method: `config`
//! prints the effective settings; nothing is started.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

fn ctl(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastcache-ctl"));
    command.env_clear().args(args).envs(env.iter().copied());
    command.output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn setting(output: &Output, name: &str) -> String {
    let text = out(output);
    assert!(output.status.success(), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value[name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let dir = std::env::temp_dir().join(format!("fastcache-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("fastcache.toml");
    std::fs::write(&file, "s3-bucket = 'file'\nport = 1\napi-key = 's3cr3t'\n").unwrap();
    let file = file.to_str().unwrap();
    let plain = ["config", "--json"];
    let with_file = ["config", "--json", "--config", file];
    let with_flag = ["config", "--json", "--config", file, "--s3-bucket", "flag"];
    let env = [("FASTCACHE_S3_BUCKET", "env")];
    let both = [("FASTCACHE_S3_REGION", "ours"), ("AWS_REGION", "theirs")];
    assert_eq!(setting(&ctl(&plain, &[]), "s3-bucket"), "fuse-client-cache");
    assert_eq!(setting(&ctl(&with_file, &[]), "s3-bucket"), "file");
    assert_eq!(setting(&ctl(&with_file, &[]), "port"), "1");
    assert_eq!(setting(&ctl(&with_file, &env), "s3-bucket"), "env");
    assert_eq!(setting(&ctl(&with_flag, &env), "s3-bucket"), "flag");
    assert_eq!(setting(&ctl(&plain, &both), "s3-region"), "ours");
    assert_eq!(setting(&ctl(&plain, &both[1..]), "s3-region"), "theirs");
    assert_eq!(
        setting(&ctl(&plain, &[("FASTCACHE_CONFIG", file)]), "s3-bucket"),
        "file"
    );
    let shown = ctl(
        &with_file,
        &[
            ("FASTCACHE_AZURE_KEY", "s3cr3t"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
        ],
    );
    assert_eq!(setting(&shown, "api-key"), "***");
    assert!(!out(&shown).contains("s3cr3t"));
    let help = ctl(
        &["--help"],
        &[
            ("FASTCACHE_API_KEY", "s3cr3t"),
            ("FASTCACHE_AZURE_KEY", "s3cr3t"),
        ],
    );
    assert!(help.status.success() && !out(&help).contains("s3cr3t"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn exit_codes() {
    let code = |args: &[&str]| ctl(args, &[]).status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&["up", "--help"]), Some(0));
    assert_eq!(code(&["--no-such-flag"]), Some(2));
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["evict"]), Some(2));
    assert_eq!(code(&["evict", "a", "--all"]), Some(2));
    assert_eq!(code(&["config", "--chunk-size", "9"]), Some(2));
    assert_eq!(code(&["config", "--config", "/no/such/file"]), Some(2));
    assert_eq!(code(&["up", "--dir", "/x/d", "--mount", "/x"]), Some(2));
    assert_eq!(code(&["status", "--dir", "/no/such/dir"]), Some(1));
    assert_eq!(code(&["status", "--port", "1"]), Some(1));
    assert_eq!(code(&["status", "--coordinator", "a:1"]), Some(2));
    let nobody = ["status", "--cluster", "--coordinator", "127.0.0.1:1"];
    assert_eq!(code(&nobody), Some(1));
    let said = out(&ctl(&nobody, &[]));
    assert!(
        said.contains("the coordinator 127.0.0.1:1 does not answer"),
        "{said}"
    );
    let strange = ["status", "--cluster", "--coordinator", "no address"];
    assert_eq!(code(&strange), Some(1));
    assert_eq!(code(&["down", "--dir", "/no/such/dir"]), Some(1));
}
