//! Where something is to be refused, and what works all the same.

use fastcache_tests::{Bytes, Node, Setup, output_of, program, temp_dir};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longer than any refusal may take, seconds.
const REFUSAL_LIMIT_S: u32 = 90;

/// A folder in which nothing should start.
pub struct Place {
    pub home: tempfile::TempDir,
    pub mount: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let home = temp_dir("bad");
        let mount = home.path().join("mnt");
        std::fs::create_dir(&mount).expect("mkdir");
        Place { home, mount }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn dir(&self) -> PathBuf {
        self.at("dir")
    }

    /// `up` with these flags, on a mount of our own unless they name another.
    pub fn up(&self, flags: &[&str]) -> Command {
        let mut command = limited("fastcache-ctl");
        command.arg("up").arg("--dir").arg(self.dir());
        if !flags.contains(&"--mount") {
            command.arg("--mount").arg(&self.mount);
        }
        command.args(["--port", "0", "--nvme-capacity", "64MiB"]);
        command.args(flags);
        command.args(["--detach"]);
        command
    }

    /// The same without the flags that the case gives another value.
    pub fn up_plain(&self, flags: &[&str]) -> Command {
        let mut command = limited("fastcache-ctl");
        command.arg("up").arg("--dir").arg(self.dir());
        command.arg("--mount").arg(&self.mount).args(flags);
        command.args(["--detach"]);
        command
    }

    /// `fastcache-data` alone.
    pub fn data(&self, nvme: &Path) -> Command {
        let mut command = limited("fastcache-data");
        command.arg("--nvme").arg(nvme);
        command.arg("--mount").arg(&self.mount);
        command.arg("--socket").arg(self.at("sock"));
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = limited("fastcache-ctl")
            .arg("down")
            .arg("--dir")
            .arg(self.dir())
            .output();
        let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
    }
}

pub fn limited(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg(REFUSAL_LIMIT_S.to_string()).arg(program(name));
    command
}

/// Runs what must be refused: it fails, in time, and what it says has all of these words. No backtrace.
#[track_caller]
pub fn refused(command: &mut Command, says: &[&str]) -> String {
    let out = output_of(command);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let text = text + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success(), "{command:?} was accepted: {text}");
    assert_ne!(out.status.code(), Some(124), "{command:?}: no end: {text}");
    for word in says {
        assert!(
            text.contains(word),
            "{command:?} does not say {word:?}: {text}"
        );
    }
    assert!(!text.contains("panicked"), "{command:?}: {text}");
    text
}

/// Writes a file, and it comes back.
#[track_caller]
pub fn works(node: &Node) {
    let path = node.at(&format!("works-{}", rand::random::<u32>()));
    let bytes = Bytes::of(7).range(0, 100_000);
    std::fs::write(&path, &bytes).expect("write");
    assert!(std::fs::read(&path).expect("read") == bytes);
}

/// A node with a small store.
#[track_caller]
pub fn small_node() -> Node {
    Node::start(Setup {
        capacity: Some("64MiB"),
        ..Setup::default()
    })
}
