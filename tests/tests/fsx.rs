//! Promise: what was written is what is read, whatever way it was written: fsx, with mappings, holes, truncation and
//! copies, while the store is emptied under it; and after the node was stopped and started again.
//!
//! fsx compares each read with what it wrote. A failure names the seed; `fsx -f … -S SEED` does the same again.

use fastcache_tests::{Node, Setup, number, repository, seed, serial, sha256_file};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Files larger than a few chunks (1 MiB here), operations smaller and larger than a block.
const CONFIG: &str = "
flen = 3670016
[opsize]
max = 262144
[weights]
close_open = 1.0
invalidate = 1.0
mapread = 10.0
mapwrite = 10.0
read = 10.0
write = 10.0
truncate = 4.0
fsync = 1.0
fdatasync = 1.0
posix_fallocate = 1.0
punch_hole = 4.0
sendfile = 2.0
posix_fadvise = 1.0
copy_file_range = 4.0
";
/// The same without a change of the size, on whole blocks: much of it reaches the device as it is.
const BLOCKS: &str = "
blockmode = true
[opsize]
max = 524288
align = 4096
[weights]
invalidate = 1.0
mapread = 5.0
mapwrite = 5.0
read = 10.0
write = 10.0
punch_hole = 4.0
truncate = 0.0
copy_file_range = 4.0
fsync = 1.0
";
/// Bytes of the file of the block mode.
const BLOCKS_BYTES: usize = 9 << 20;
/// Seeds and operations of the short form.
const SEEDS: u64 = 2;
const OPS: u64 = 2_500;

/// Runs fsx once for each file at the same time, and evicts everything again and again until they are done.
fn exercise(node: &Node, seed: u64, files: &[(&str, &str)]) {
    let suite = repository().join("target/tools/bin/fsx");
    assert!(suite.exists(), "fsx is not built: tests/setup/install.sh");
    let ops = number("FASTCACHE_FSX_OPS", OPS);
    let mut children = Vec::new();
    for (file, config) in files {
        let config_file = node.outside().join(format!("{file}.toml"));
        std::fs::write(&config_file, config).expect("the configuration");
        let child = Command::new("timeout")
            .args(["-s", "KILL", "900"])
            .arg(&suite)
            .arg("-f")
            .arg(&config_file)
            .args(["-S", &seed.to_string(), "-N", &ops.to_string(), "-P"])
            .arg(node.outside())
            .arg(node.at(file))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fsx starts");
        children.push((file, child));
    }
    while children
        .iter_mut()
        .any(|(_, child)| matches!(child.try_wait(), Ok(None)))
    {
        node.ctl(&["flush"]);
        node.evict();
        std::thread::sleep(Duration::from_millis(200));
    }
    for (file, child) in children {
        let out = child.wait_with_output().expect("the end of fsx");
        let text = String::from_utf8_lossy(&out.stdout);
        let tail: Vec<&str> = text.lines().rev().take(60).collect();
        assert!(
            out.status.success(),
            "fsx on {file} with seed {seed} and {ops} operations: {}\n{}{}",
            out.status,
            tail.into_iter().rev().collect::<Vec<_>>().join("\n"),
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

fn sums(files: &[std::path::PathBuf]) -> Vec<String> {
    files.iter().map(|f| sha256_file(f)).collect()
}

#[test]
fn fsx_finds_nothing_while_the_store_is_emptied_and_after_a_restart() {
    let _one = serial();
    // Room is short on purpose.
    let node = Node::start(Setup {
        flags: ["--chunk-size", "1"].map(str::to_owned).to_vec(),
        capacity: Some("256MiB"),
        limit: Duration::from_secs(number("FASTCACHE_FSX_SECONDS", 300)),
        ..Setup::default()
    });
    let first = seed("FASTCACHE_FSX_SEED", "FASTCACHE_FSX_SEEDS");
    println!("FASTCACHE_FSX_SEED={first}");
    let files = [("a", CONFIG), ("b", CONFIG), ("blocks", BLOCKS)];
    let paths = files.map(|(name, _)| node.at(name));
    for seed in first..first + number("FASTCACHE_FSX_SEEDS", SEEDS) {
        // The block mode wants a file that is there.
        std::fs::write(Path::new(&paths[2]), vec![0u8; BLOCKS_BYTES]).expect("the file of blocks");
        exercise(&node, seed, &files);
        let before = sums(&paths);
        node.flush();
        node.evict();
        assert_eq!(sums(&paths), before, "seed {seed}: after an eviction");
        node.down();
        node.up();
        assert_eq!(sums(&paths), before, "seed {seed}: after a restart");
    }
}
