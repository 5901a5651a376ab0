//! `DIR/node.json`: what runs in a node's directory, for whoever comes next; and `DIR/lock`, which says whether
//! its supervisor lives. The file is replaced as a whole, so that a reader never sees half of it.

use anyhow::Context;
use fastcache_coordinator::replace_file;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Version of the file. 1: first.
const VERSION: u32 = 1;

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its planes are being started.
    Starting,
    /// The mount answers.
    Ready,
    /// It was asked to stop.
    Stopping,
    /// It stopped in order.
    Stopped,
}

/// What is not in the cloud when a node has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Chunks.
    pub dirty_chunks: u64,
    /// Their bytes.
    pub dirty_bytes: u64,
}

/// What runs in a directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeFile {
    /// Of this file.
    pub version: u32,
    /// How far the node is.
    pub phase: Phase,
    /// The mount point, absolute.
    pub mount: PathBuf,
    /// The control socket between the planes; tells our processes from others with a reused id.
    pub socket: PathBuf,
    /// Port of REST.
    pub port: u16,
    /// When `up` was called, seconds since 1970.
    pub started: u64,
    /// How long a stop waits for uploads, seconds.
    pub stop_timeout_seconds: u64,
    /// Process ids; absent when a plane does not run.
    pub supervisor_pid: Option<i32>,
    /// `fastcache-data`.
    pub data_pid: Option<i32>,
    /// `fastcache-ctl`.
    pub agent_pid: Option<i32>,
    /// What was not in the cloud when the node stopped.
    pub left: Option<Left>,
    /// What a node that is starting waits for, for people: its coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

impl NodeFile {
    /// Of a node that begins to start.
    pub fn new(mount: PathBuf, socket: PathBuf, port: u16, stop_timeout_seconds: u64) -> NodeFile {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        NodeFile {
            version: VERSION,
            phase: Phase::Starting,
            mount,
            socket,
            port,
            started: now.map_or(0, |d| d.as_secs()),
            stop_timeout_seconds,
            supervisor_pid: Some(rustix::process::getpid().as_raw_nonzero().get()),
            data_pid: None,
            agent_pid: None,
            left: None,
            waits_for: None,
        }
    }

    /// Whether something of it may run.
    pub fn is_running(&self) -> bool {
        self.phase != Phase::Stopped
    }

    /// Reads the file of a directory; `None` when no node was ever started there.
    pub fn read(dir: &Path) -> anyhow::Result<Option<NodeFile>> {
        let path = dir.join("node.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let node: NodeFile = serde_json::from_str(&text).with_context(|| {
            format!(
                "{}: damaged; when nothing runs in there, remove it",
                path.display()
            )
        })?;
        anyhow::ensure!(
            node.version == VERSION,
            "{}: of version {}, this program knows {VERSION}",
            path.display(),
            node.version
        );
        Ok(Some(node))
    }

    /// Replaces the file.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join("node.json");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        replace_file(&path, &text).with_context(|| path.display().to_string())
    }
}

/// Held by the supervisor of a directory as long as it lives, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` when another process has it.
    pub fn take(dir: &Path) -> anyhow::Result<Option<Lock>> {
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written_and_one_holds_the_lock() {
        let dir = std::env::temp_dir().join(format!("fastcache-node-file-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(NodeFile::read(&dir).unwrap().is_none());
        let mut node = NodeFile::new("/mnt/x".into(), "/d/run/data.sock".into(), 8081, 30);
        node.data_pid = Some(7);
        node.write(&dir).unwrap();
        let again = NodeFile::read(&dir).unwrap().unwrap();
        assert_eq!(again.data_pid, Some(7));
        assert_eq!(again.phase, Phase::Starting);
        assert!(again.is_running());
        let lock = Lock::take(&dir).unwrap();
        assert!(lock.is_some());
        assert!(Lock::take(&dir).unwrap().is_none());
        drop(lock);
        assert!(Lock::take(&dir).unwrap().is_some());
        std::fs::write(dir.join("node.json"), "{").unwrap();
        assert!(NodeFile::read(&dir).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
