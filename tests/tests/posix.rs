//! Promise: it behaves as a POSIX file system (pjdfstest).

use fastcache_tests::{Node, output_of, repository, serial};
use std::process::Command;

/// Of the 385 that pass on ext4 with this configuration (13 need a remount and are skipped).
const PASSES_MIN: u32 = 375;

const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.02
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

#[test]
fn pjdfstest_passes() {
    let _one = serial();
    let suite = repository().join("target/tools/bin/pjdfstest");
    assert!(
        suite.exists(),
        "pjdfstest is not built: tests/setup/install.sh"
    );
    let node = Node::start_default();
    let config = node.outside().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG).expect("the configuration");
    let here = node.at("pjdfstest");
    std::fs::create_dir(&here).expect("mkdir on the mount");

    let out = output_of(
        Command::new("timeout")
            .arg("300")
            .arg(suite)
            .env("RUST_BACKTRACE", "0")
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(&here)
            .args(["-s", "/dev/shm"]),
    );
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number = |word: &str| -> Option<u32> {
        let summary = text.lines().find(|l| l.starts_with("Summary:"))?;
        let part = summary
            .trim_start_matches("Summary:")
            .split(',')
            .find(|p| p.contains(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    let failed = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.trim_end().ends_with("FAILED"))
        .map(|(at, line)| {
            let reason = text.lines().nth(at + 1).unwrap_or("").trim();
            format!(
                "  {}: {reason}",
                line.split_whitespace().next().unwrap_or(line)
            )
        })
        .collect::<Vec<_>>()
        .join("\n");
    println!(
        "{}",
        text.lines()
            .find(|l| l.starts_with("Summary:"))
            .unwrap_or("no summary")
    );
    println!("failures:\n{failed}");
    let passed = number("passed").unwrap_or_else(|| panic!("no summary:\n{text}"));
    assert!(
        passed >= PASSES_MIN,
        "{passed} of 385 pass; at least {PASSES_MIN} must:\n{failed}"
    );
}
