//! Promise: the file system calls do what they say under load: stress-ng's file stressors, with their own checks.
//!
//! The short form takes a few of them, side by side; `FASTCACHE_STRESS_SECONDS` takes all, each for so long.

use fastcache_tests::{Node, Plane, Setup, output_of, serial};
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

/// What the agent with its namespace may have resident after many changes, bytes: docs/operations.md, "Memory", without
/// uploads.
const AGENT_MAX: u64 = 224 << 20;

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
    let most = node.peak_memory(Plane::Agent);
    println!("the agent had at most {} MiB", most >> 20);
    assert!(
        most <= AGENT_MAX,
        "the agent had {} MiB resident",
        most >> 20
    );
}

/// Files made, renamed and unlinked.
const FILES: u32 = 30_000;
/// Of these, so many are there at any time, for each of [`WRITERS`].
const ALIVE: u32 = 2_000;
const WRITERS: u32 = 4;

#[test]
fn many_changes_leave_the_agent_inside_its_memory() {
    let _one = serial();
    let node = Node::start_default();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let dir = node.at(&format!("writer-{writer}"));
            scope.spawn(move || {
                std::fs::create_dir(&dir).expect("mkdir");
                for n in 0..FILES / WRITERS {
                    let (new, name) = (dir.join("new"), dir.join(n.to_string()));
                    std::fs::File::create(&new).expect("create");
                    std::fs::rename(&new, &name).expect("rename");
                    if let Some(old) = n.checked_sub(ALIVE) {
                        std::fs::remove_file(dir.join(old.to_string())).expect("unlink");
                    }
                }
            });
        }
    });
    let most = node.peak_memory(Plane::Agent);
    println!("the agent had at most {} MiB", most >> 20);
    assert!(most > 0, "the agent does not run");
    assert!(
        most <= AGENT_MAX,
        "the agent had {} MiB resident after {FILES} files came and went",
        most >> 20
    );
}
