//! Operations on names and attributes.

use super::Worker;
use super::pair::Difference;
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::path::Path;

/// Folders of a worker's own tree, its root included.
const DIRS: [&str; 6] = ["", "/d0", "/d1", "/d0/d0", "/d0/d1", "/d0/d1/d0"];
/// Names in each folder. Few, so that most operations meet something.
const NAMES: u32 = 8;

/// The names that a worker uses.
pub(super) struct Names {
    own: String,
    prefix: String,
}

impl Names {
    pub fn new(own: &str, worker: u64) -> Names {
        Names {
            own: own.to_owned(),
            prefix: format!("w{worker}-"),
        }
    }

    /// What this worker's names in the shared folder begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn dir(&self, rng: &mut StdRng) -> String {
        match rng.random_range(0..=DIRS.len()) {
            n if n < DIRS.len() => format!("{}{}", self.own, DIRS[n]),
            _ => "shared".to_owned(),
        }
    }

    fn name(&self, rng: &mut StdRng, kind: char) -> String {
        let dir = self.dir(rng);
        let prefix = if dir == "shared" { &self.prefix } else { "" };
        // Now and then a name that something else has: a file where a folder is expected, and the other way round.
        let kind = if rng.random_ratio(1, 20) { 'd' } else { kind };
        format!("{dir}/{prefix}{kind}{}", rng.random_range(0..NAMES))
    }

    /// The name of a file, most of the time.
    pub fn file(&self, rng: &mut StdRng) -> String {
        self.name(rng, 'f')
    }

    /// The name of a folder.
    fn folder(&self, rng: &mut StdRng) -> String {
        self.name(rng, 'd')
    }

    /// The name of anything.
    fn any(&self, rng: &mut StdRng) -> String {
        let kind = ['f', 'f', 'f', 'd', 's'][rng.random_range(0..5)];
        self.name(rng, kind)
    }
}

/// What stat(2) tells that is the same on every file system.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    mode: u32,
    owner: (u32, u32),
    size: i64,
    links: u64,
}

fn stat_of(path: &Path) -> Result<Stat, Errno> {
    let s = rustix::fs::lstat(path)?;
    let is_dir = FileType::from_raw_mode(s.st_mode) == FileType::Directory;
    Ok(Stat {
        mode: s.st_mode,
        owner: (s.st_uid, s.st_gid),
        size: if is_dir { 0 } else { s.st_size },
        // Others add folders to the shared one.
        links: if path.ends_with("shared") {
            0
        } else {
            s.st_nlink
        },
    })
}

impl Worker {
    pub(super) fn rename(&mut self) -> Result<(), Difference> {
        let from = self.names.any(&mut self.rng);
        let to = self.names.any(&mut self.rng);
        let flags = match self.rng.random_range(0..5) {
            0 => RenameFlags::NOREPLACE,
            1 => RenameFlags::EXCHANGE,
            _ => RenameFlags::empty(),
        };
        self.note(format!("rename {from} {to} {flags:?}"));
        self.pair
            .both(&format!("rename {from} {to} {flags:?}"), |root| {
                rustix::fs::renameat_with(CWD, root.join(&from), CWD, root.join(&to), flags)
            })
            .map(drop)
    }

    pub(super) fn link(&mut self) -> Result<(), Difference> {
        let (from, to) = (
            self.names.any(&mut self.rng),
            self.names.file(&mut self.rng),
        );
        self.note(format!("link {from} {to}"));
        self.pair
            .both(&format!("link {from} {to}"), |root| {
                rustix::fs::link(root.join(&from), root.join(&to))
            })
            .map(drop)
    }

    pub(super) fn unlink(&mut self) -> Result<(), Difference> {
        let name = self.names.any(&mut self.rng);
        self.note(format!("unlink {name}"));
        self.pair
            .both(&format!("unlink {name}"), |root| {
                rustix::fs::unlink(root.join(&name))
            })
            .map(drop)
    }

    pub(super) fn mkdir(&mut self) -> Result<(), Difference> {
        let name = self.names.folder(&mut self.rng);
        let mode = Mode::from_raw_mode([0o755, 0o700, 0o777, 0o2775][self.rng.random_range(0..4)]);
        self.note(format!("mkdir {name} {mode:?}"));
        self.pair
            .both(&format!("mkdir {name}"), |root| {
                rustix::fs::mkdir(root.join(&name), mode)
            })
            .map(drop)
    }

    pub(super) fn rmdir(&mut self) -> Result<(), Difference> {
        let name = self.names.folder(&mut self.rng);
        self.note(format!("rmdir {name}"));
        self.pair
            .both(&format!("rmdir {name}"), |root| {
                rustix::fs::rmdir(root.join(&name))
            })
            .map(drop)
    }

    pub(super) fn symlink(&mut self) -> Result<(), Difference> {
        let len = self.rng.random_range(0..3);
        let target = ["f0".to_owned(), "../d0".to_owned(), "x".repeat(3000)][len].clone();
        let dir = self.names.file(&mut self.rng);
        let name = format!("{}s{}", &dir[..dir.len() - 2], &dir[dir.len() - 1..]);
        self.note(format!("symlink {} {name}", target.len()));
        self.pair
            .both(&format!("symlink {name}"), |root| {
                rustix::fs::symlink(&target, root.join(&name))
            })?
            .ok();
        self.pair
            .both(&format!("readlink {name}"), |root| {
                rustix::fs::readlink(root.join(&name), Vec::new())
            })
            .map(drop)
    }

    pub(super) fn list(&mut self) -> Result<(), Difference> {
        let dir = self.names.dir(&mut self.rng);
        let prefix = if dir == "shared" {
            self.names.prefix().to_owned()
        } else {
            String::new()
        };
        self.note(format!("list {dir}"));
        self.pair
            .both(&format!("list {dir}"), |root| {
                let mut names = BTreeSet::new();
                let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
                let fd = rustix::fs::open(root.join(&dir), flags, Mode::empty())?;
                for entry in rustix::fs::Dir::new(fd)? {
                    let entry = entry?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if name.starts_with(&prefix)
                        && !names.insert((name, format!("{:?}", entry.file_type())))
                    {
                        return Err(Errno::EXIST);
                    }
                }
                Ok(names)
            })
            .map(drop)
    }

    pub(super) fn stat(&mut self) -> Result<(), Difference> {
        let name = self.names.any(&mut self.rng);
        self.note(format!("stat {name}"));
        self.pair
            .both(&format!("stat {name}"), |root| stat_of(&root.join(&name)))?
            .ok();
        match self.handles.first() {
            None => Ok(()),
            Some(handle) => handle
                .both("fstat", |fd| {
                    let s = rustix::fs::fstat(fd)?;
                    Ok((s.st_mode, s.st_size, s.st_nlink, s.st_uid, s.st_gid))
                })
                .map(drop),
        }
    }

    pub(super) fn chmod(&mut self) -> Result<(), Difference> {
        let name = self.names.any(&mut self.rng);
        if self.rng.random_ratio(1, 4) {
            let (uid, gid) = (
                self.rng.random_range(0..3) * 1000,
                self.rng.random_range(0..3) * 1000,
            );
            self.note(format!("chown {name} {uid} {gid}"));
            return self
                .pair
                .both(&format!("chown {name}"), |root| {
                    let uid = rustix::fs::Uid::from_raw(uid);
                    let gid = rustix::fs::Gid::from_raw(gid);
                    rustix::fs::chownat(
                        CWD,
                        root.join(&name),
                        Some(uid),
                        Some(gid),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )
                })
                .map(drop);
        }
        let bits = [0o644, 0o600, 0o4755, 0o2775, 0o400, 0o777, 0o700][self.rng.random_range(0..7)];
        self.note(format!("chmod {name} {bits:o}"));
        // A symbolic link of this name leads to a file of this worker, if anywhere.
        self.pair
            .both(&format!("chmod {name} {bits:o}"), |root| {
                rustix::fs::chmod(root.join(&name), Mode::from_raw_mode(bits))
            })
            .map(drop)
    }

    pub(super) fn times(&mut self) -> Result<(), Difference> {
        let name = self.names.any(&mut self.rng);
        let time = Timespec {
            tv_sec: self.rng.random_range(-1_000_000..4_000_000_000),
            tv_nsec: self.rng.random_range(0..1_000_000_000),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        self.note(format!("utimens {name}"));
        self.pair
            .both(&format!("utimens {name}"), |root| {
                let path = root.join(&name);
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                let s = rustix::fs::lstat(&path)?;
                Ok((s.st_mtime, s.st_mtime_nsec, s.st_atime, s.st_atime_nsec))
            })
            .map(drop)
    }

    pub(super) fn xattr(&mut self) -> Result<(), Difference> {
        let name = self.names.file(&mut self.rng);
        let key = format!("user.k{}", self.rng.random_range(0..4));
        let value = vec![self.rng.random::<u8>(); self.rng.random_range(0..200)];
        let what = self.rng.random_range(0..5);
        self.note(format!("xattr {what} {key} of {name}"));
        self.pair
            .both(&format!("xattr {what} {key} of {name}"), |root| {
                let path = root.join(&name);
                // The operations follow symbolic links; those lead to names of this worker, if anywhere.
                match what {
                    0 => rustix::fs::setxattr(&path, &key, &value, XattrFlags::empty())?,
                    1 => rustix::fs::setxattr(&path, &key, &value, XattrFlags::CREATE)?,
                    2 => rustix::fs::setxattr(&path, &key, &value, XattrFlags::REPLACE)?,
                    3 => rustix::fs::removexattr(&path, &key)?,
                    _ => {}
                }
                super::check::xattrs(&path)
            })
            .map(drop)
    }
}
