//! One operation on two sides, and whether both answered the same.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The two sides answered differently.
#[derive(Debug)]
pub(super) struct Difference(pub String);

/// The mount and the model.
pub(super) struct Pair {
    mount: PathBuf,
    model: PathBuf,
}

/// A file that is open on both sides.
pub(super) struct Handle {
    pub mount: OwnedFd,
    pub model: OwnedFd,
    /// For the history.
    pub name: String,
    /// Opened with O_DIRECT: offsets, lengths and memory are aligned.
    pub is_direct: bool,
    /// Opened with O_APPEND: where a write goes is not what it says.
    pub is_append: bool,
}

impl Pair {
    pub fn new(mount: &Path, model: &Path) -> Pair {
        Pair {
            mount: mount.to_owned(),
            model: model.to_owned(),
        }
    }

    /// Does `f` on both sides, the model first; what it answered when that is the same.
    pub fn both<T: PartialEq + Debug>(
        &self,
        what: &str,
        f: impl Fn(&Path) -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, Difference> {
        let model = f(&self.model);
        let mount = f(&self.mount);
        same(what, model, mount)
    }

    /// Opens on both sides.
    pub fn open(
        &self,
        name: &str,
        flags: OFlags,
        mode: Mode,
    ) -> Result<Option<Handle>, Difference> {
        let model = rustix::fs::open(self.model.join(name), flags | OFlags::CLOEXEC, mode);
        let mount = rustix::fs::open(self.mount.join(name), flags | OFlags::CLOEXEC, mode);
        match (model, mount) {
            (Ok(model), Ok(mount)) => Ok(Some(Handle {
                mount,
                model,
                name: name.to_owned(),
                is_direct: flags.contains(OFlags::DIRECT),
                is_append: flags.contains(OFlags::APPEND),
            })),
            (model, mount) => {
                let (model, mount) = (model.map(|_| ()), mount.map(|_| ()));
                same(&format!("open {name} {flags:?}"), model, mount).map(|_| None)
            }
        }
    }
}

impl Handle {
    /// Does `f` on both descriptors, the model's first.
    pub fn both<T: PartialEq + Debug>(
        &self,
        what: &str,
        f: impl Fn(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, Difference> {
        let model = f(&self.model);
        let mount = f(&self.mount);
        same(&format!("{what} on {}", self.name), model, mount)
    }

    /// The size as the model has it.
    pub fn size(&self) -> u64 {
        rustix::fs::fstat(&self.model).map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0))
    }
}

/// What both answered, or how they differ.
fn same<T: PartialEq + Debug>(
    what: &str,
    model: Result<T, Errno>,
    mount: Result<T, Errno>,
) -> Result<Result<T, Errno>, Difference> {
    if model == mount {
        return Ok(mount);
    }
    let short = |r: &Result<T, Errno>| {
        let text = format!("{r:?}");
        text.chars().take(400).collect::<String>()
    };
    Err(Difference(format!(
        "{what}\n  model: {}\n  mount: {}",
        short(&model),
        short(&mount)
    )))
}
