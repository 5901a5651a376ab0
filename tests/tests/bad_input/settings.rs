//! Flags and configuration files.

use super::place::{Place, limited, refused};
use fastcache_tests::serial;

#[test]
fn flags_that_make_no_sense_are_refused() {
    let _one = serial();
    let place = Place::new();
    for (flags, says) in [
        (
            ["--fsync", "sometimes"],
            &["sometimes", "local, peers, cloud"][..],
        ),
        (["--nvme-capacity", "10GB"], &["10GB", "10GiB"]),
        (["--nvme-capacity", "-1"], &["-1"]),
        (["--chunk-size", "9"], &["--chunk-size", "1, 2, 3 or 4"]),
        (["--cores", "4000"], &["4000", "available"]),
        (["--cores", "a-b"], &["a-b", "0-3"]),
        (["--port", "99999"], &["99999", "65535"]),
        (
            ["--cloud-provider", "gcs"],
            &["gcs", "s3, azure, dir, none"],
        ),
        (["--put-limit", "lots"], &["lots", "10GiB"]),
        (["--listen", "here"], &["here", "ADDR"]),
        (["--listen", "0.0.0.0:8082"], &["--cluster-token-file"]),
        (["--cluster-token", "short"], &["5 bytes", "16"]),
        (["--no-such-flag", "1"], &["--no-such-flag"]),
    ] {
        refused(&mut place.up_plain(&flags), says);
    }
    refused(limited("fastcache-ctl").args(["up"]), &["--dir"]);
    let mount_in_dir = place.dir().join("..");
    refused(
        limited("fastcache-ctl")
            .arg("up")
            .arg("--dir")
            .arg(place.dir())
            .arg("--mount")
            .arg(mount_in_dir),
        &["hide", "choose another"],
    );
}

#[test]
fn a_configuration_file_is_read_or_its_error_names_the_line() {
    let _one = serial();
    let place = Place::new();
    let file = place.at("config.toml");
    let with = |text: &[u8]| {
        std::fs::write(&file, text).expect("write");
        file.to_str().expect("path").to_owned()
    };
    let missing = place.at("no-such.toml");
    let missing = missing.to_str().expect("path");
    let folder = place.home.path().to_str().expect("path");
    refused(
        &mut place.up(&["--config", missing]),
        &["no-such.toml", "--config"],
    );
    refused(&mut place.up(&["--config", folder]), &[folder, "--config"]);
    for (text, says) in [
        (
            &b"fsync = \"local\"\ns3-buket = \"x\"\n"[..],
            &["line 2", "s3-buket", "did you mean `s3-bucket`"][..],
        ),
        (
            b"stop_timeout = 3\n",
            &["stop_timeout", "did you mean `stop-timeout`"],
        ),
        (b"port = \"high\"\n", &["line 1", "port"]),
        (b"fsync = \"often\"\n", &["line 1", "often"]),
        (b"port = \n", &["line 1"]),
        (b"\xff\xfe = 1\n", &["UTF-8"]),
        (b"[section]\nport = 1\n", &["section"]),
    ] {
        let path = with(text);
        refused(&mut place.up(&["--config", &path]), says);
    }
    // The data plane says the same of its file, and a secret in the line is not repeated.
    let path = with(b"nvme_capacity = \"1GiB\"\n");
    let mut data = place.data(&place.at("nvme"));
    data.args(["--config", &path]);
    refused(
        &mut data,
        &["nvme_capacity", "did you mean `nvme-capacity`"],
    );
    let path = with(b"api-kee = \"hunter2\"\n");
    for command in [
        &mut place.up(&["--config", &path]),
        place.data(&place.at("nvme")).args(["--config", &path]),
    ] {
        let said = refused(command, &["did you mean `api-key`"]);
        assert!(!said.contains("hunter2"), "{said}");
    }
}
