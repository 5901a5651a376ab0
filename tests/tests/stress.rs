//! Promise: the file system calls do what they say under load: stress-ng's file stressors, with their own checks.
//!
//! The short form takes a few of them, side by side; `FASTCACHE_STRESS_SECONDS` takes all, each for so long.

use fastcache_tests::{Node, Setup, output_of, serial};
use std::process::Command;
use std::time::Duration;

/// Of the class `filesystem`, what does not concern the mount (it works elsewhere, or on the machine as a whole), or
/// needs what FUSE cannot have.
const NOT_FOR_US: &str = "apparmor,bind-mount,binderfs,chdir,eventfd,procfs,handle,fanotify,ioprio,sysfs,dev,aiol,\
                          hdd,verity,file-ioctl,inotify,dnotify";
/// The short form: contents, names, attributes, locks, mappings.
const SHORT: &[&str] = &[
    "access",
    "chmod",
    "copy-file",
    "dentry",
    "dir",
    "dup",
    "fallocate",
    "fcntl",
    "filename",
    "flock",
    "fpunch",
    "fstat",
    "getdent",
    "iomix",
    "lease",
    "link",
    "lockf",
    "locka",
    "lockofd",
    "open",
    "readahead",
    "rename",
    "revio",
    "seek",
    "symlink",
    "utime",
    "xattr",
];

#[test]
fn the_file_stressors_find_nothing() {
    let _one = serial();
    let long = std::env::var("FASTCACHE_STRESS_SECONDS").ok();
    let node = Node::start(Setup {
        limit: Duration::from_secs(45 * 60),
        ..Setup::default()
    });
    let dir = node.at("stress");
    std::fs::create_dir(&dir).expect("mkdir");
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", "2400", "stress-ng", "--temp-path"])
        .arg(&dir)
        .args(["--verify", "--oomable"])
        .current_dir(&dir);
    match &long {
        Some(seconds) => {
            command.args(["--timeout", seconds, "--sequential", "2"]);
            command.args(["--class", "filesystem", "-x", NOT_FOR_US]);
        }
        None => {
            // Side by side: each checks itself while the others disturb it.
            command.args(["--timeout", "12"]);
            for stressor in SHORT {
                command.arg(format!("--{stressor}")).arg("1");
            }
        }
    }
    let out = output_of(&mut command);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    let fails: Vec<&str> = text.lines().filter(|l| l.contains(" fail: ")).collect();
    let skipped: Vec<&str> = text.lines().filter(|l| l.contains("skipped: ")).collect();
    println!("{}", skipped.join("\n"));
    assert!(
        fails.is_empty(),
        "{} failures:\n{}\n{text}",
        fails.len(),
        fails.join("\n")
    );
    // 3: a stressor could not run here and was skipped.
    assert!(
        matches!(out.status.code(), Some(0 | 3)),
        "stress-ng: {}\n{text}",
        out.status
    );
    assert!(
        text.contains("successful run completed"),
        "stress-ng did not come to its end:\n{text}"
    );
    // Whatever it did, the mount is whole.
    node.flush();
    let left = std::fs::read_dir(&dir).expect("the folder").count();
    println!("{left} entries left behind");
}
