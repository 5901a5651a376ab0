//! The mount point of a node: whether it answers, and cleaning up a mount whose server is gone.
//!
//! Between the end of a dead mount and the next one, the bare directory would be visible, and programs that go on
//! writing would write into it, where the new mount hides their files. So the directory is made immutable for that
//! time, where its file system can do that.

use anyhow::Context;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// How long the mount may take to answer one question.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// How long a mount whose processes were just killed may take to be dead.
const DEAD_PROBE_MAX: Duration = Duration::from_secs(5);

/// A line of `/proc/self/mountinfo`.
struct Mounted {
    at: PathBuf,
    kind: String,
    source: String,
}

impl Mounted {
    /// Whether it is a mount of fastcache.
    fn is_ours(&self) -> bool {
        self.kind.starts_with("fuse")
            && (self.kind.contains("fastcache") || self.source.contains("fastcache"))
    }
}

fn mounts() -> Vec<Mounted> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// `36 35 98:0 /root /at options [tags…] - kind source super-options`, blanks as `\040`.
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut words = line.split(|b| *b == b' ');
    let at = PathBuf::from(std::ffi::OsString::from_vec(unescape(words.nth(4)?)));
    let mut after = words.skip_while(|w| *w != b"-").skip(1);
    let mut text = || {
        after
            .next()
            .map(|w| String::from_utf8_lossy(&unescape(w)).into_owned())
    };
    Some(Mounted {
        at,
        kind: text()?,
        source: text()?,
    })
}

fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, more @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                more @ ..,
            ] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = more;
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}

/// Where fastcache is mounted on this machine.
pub fn fastcache_mounts() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = mounts()
        .into_iter()
        .filter(Mounted::is_ours)
        .map(|m| m.at)
        .collect();
    all.dedup();
    all
}

/// A mount point.
pub struct MountPoint {
    path: PathBuf,
    /// The directory below the mount, where it could be opened before something was mounted on it.
    bare: Option<File>,
}

impl MountPoint {
    /// Names it; nothing is touched.
    pub fn of(path: &Path) -> MountPoint {
        MountPoint {
            path: path.to_path_buf(),
            bare: None,
        }
    }

    /// Makes it ready for a new mount: made when it is missing, cleaned when a mount of fastcache on it is dead. The
    /// path as the kernel tells it is the one to use from then on.
    pub fn prepare(path: &Path) -> anyhow::Result<MountPoint> {
        let real = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::canonicalize(parent))
                .with_context(|| format!("cannot make {}", parent.display()))?
                .join(name),
            _ => path.to_path_buf(),
        };
        let mut point = MountPoint {
            path: real,
            bare: None,
        };
        point.clean_if_dead()?;
        match std::fs::symlink_metadata(&point.path) {
            Ok(found) if found.is_symlink() => {
                point.path = std::fs::canonicalize(&point.path)
                    .with_context(|| point.path.display().to_string())?;
                point.clean_if_dead()?;
            }
            Ok(_) => {}
            Err(_) => std::fs::create_dir_all(&point.path)
                .with_context(|| format!("cannot make {}", point.path.display()))?,
        }
        anyhow::ensure!(
            point.path.is_dir(),
            "--mount {0} is not a directory: name another, or move the file away and mkdir -p {0}",
            point.path.display()
        );
        if let Some(other) = point.top() {
            anyhow::bail!(
                "{} is the mount point of something else ({} {}); choose another, or unmount it",
                point.path.display(),
                other.kind,
                other.source
            );
        }
        point.bare = File::open(&point.path).ok();
        // a supervisor that was killed in the short time between two mounts could not undo it
        point.set_immutable(false);
        Ok(point)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is mounted on it, if anything: the topmost.
    fn top(&self) -> Option<Mounted> {
        mounts().into_iter().rev().find(|m| m.at == self.path)
    }

    /// Whether fastcache is mounted on it, dead or alive.
    pub fn is_mounted(&self) -> bool {
        self.top().is_some_and(|m| m.is_ours())
    }

    /// Detaches a mount of fastcache that is dead; one that lives belongs to another node.
    fn clean_if_dead(&self) -> anyhow::Result<()> {
        if self.is_mounted() && !self.is_dead() {
            anyhow::bail!(
                "another fastcache node is mounted on {}: choose another --mount, or stop that node",
                self.path.display()
            );
        }
        self.clean()
    }

    /// Whether nobody serves the mount any more. A thread asks, because the question itself may hang: then somebody
    /// does.
    fn is_dead(&self) -> bool {
        let path = self.path.clone();
        let (say, hear) = mpsc::channel();
        let spawned = std::thread::Builder::new()
            .name("mount-probe".to_owned())
            .spawn(move || {
                let _ = say.send(rustix::fs::statfs(&path).map(drop));
            });
        let answer = spawned.ok().map(|_| hear.recv_timeout(DEAD_PROBE_MAX));
        matches!(answer, Some(Ok(Err(Errno::NOTCONN | Errno::CONNABORTED))))
    }

    /// Ends the connection of a mount of fastcache on it: whoever waits for an answer gets ECONNABORTED, whether the data
    /// plane runs, stands or hangs. Bounded: a thread asks, because the kernel may wait for the data plane.
    pub fn abort(&self) {
        if !self.is_mounted() {
            return;
        }
        let path = self.path.clone();
        let (say, hear) = mpsc::channel();
        let asked = std::thread::Builder::new()
            .name("mount-abort".to_owned())
            .spawn(move || {
                // FUSE ends the connection before it looks whether the mount is in use.
                let _ = say.send(unmount(&path, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW));
            });
        let result = asked.map(|_| hear.recv_timeout(PROBE_MAX));
        if !matches!(result, Ok(Ok(Ok(()) | Err(Errno::BUSY)))) {
            tracing::warn!(target: "supervisor", mount = %self.path.display(), ?result, "the connection could not be cut; killing the data plane ends it too");
        }
    }

    /// Detaches mounts of fastcache on it. To be called when their data plane is gone.
    pub fn clean(&self) -> anyhow::Result<()> {
        let mut is_protected = false;
        while self.top().is_some_and(|m| m.is_ours()) {
            if !is_protected {
                is_protected = true;
                self.set_immutable(true);
            }
            unmount(&self.path, UnmountFlags::DETACH)
                .with_context(|| format!("cannot unmount {}", self.path.display()))?;
            tracing::info!(target: "supervisor", mount = %self.path.display(), "a dead mount is gone");
        }
        Ok(())
    }

    /// The bare directory takes files again, or no more. Where its file system knows no such thing, nothing is lost but
    /// a protection.
    pub fn set_immutable(&self, is_immutable: bool) {
        let Some(dir) = &self.bare else { return };
        let set = ioctl_getflags(dir).and_then(|mut flags| {
            if flags.contains(IFlags::IMMUTABLE) == is_immutable {
                return Ok(());
            }
            flags.set(IFlags::IMMUTABLE, is_immutable);
            ioctl_setflags(dir, flags)
        });
        if let Err(error) = set {
            tracing::debug!(target: "supervisor", %error, "the bare mount point is not protected");
        }
    }

    /// Whether the mount answers, within a bound: a thread asks, because the question itself may hang.
    pub async fn answers(&self) -> bool {
        if !self.is_mounted() {
            return false;
        }
        let path = self.path.clone();
        let (say, hear) = mpsc::channel();
        let spawned = std::thread::Builder::new()
            .name("mount-probe".to_owned())
            .spawn(move || {
                let _ =
                    say.send(rustix::fs::statfs(&path).is_ok() && std::fs::metadata(&path).is_ok());
            });
        if spawned.is_err() {
            return false;
        }
        let start = std::time::Instant::now();
        while start.elapsed() < PROBE_MAX {
            match hear.try_recv() {
                Ok(answers) => return answers,
                Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let m = parse(
            b"40 30 0:35 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.fastcache fastcache rw",
        )
        .unwrap();
        assert_eq!(m.at, Path::new("/mnt/a b"));
        assert!(m.is_ours());
        let m = parse(b"40 30 0:35 / /mnt/x rw - fuse fastcache rw,user_id=0").unwrap();
        assert!(m.is_ours());
        let m = parse(b"40 30 0:35 / /mnt/x rw - fuse.sshfs host: rw").unwrap();
        assert!(!m.is_ours());
        let m = parse(b"40 30 8:1 / /fastcache rw - ext4 /dev/fastcache rw").unwrap();
        assert!(!m.is_ours());
        assert!(parse(b"").is_none());
        assert!(parse(b"40 30 8:1 / /x").is_none());
        assert_eq!(unescape(b"a\\134\\9\\"), b"a\\\\9\\");
    }
}
