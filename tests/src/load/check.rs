//! The whole tree on the mount against the whole tree of the model.

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use walkdir::WalkDir;

/// Most bytes that a file's attributes have together, names or one value.
const XATTR_ROOM: usize = 64 << 10;

/// The extended attributes of users, with their values.
pub(super) fn xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    let mut list = vec![0; XATTR_ROOM];
    let n = rustix::fs::llistxattr(path, &mut list)?;
    let mut all = BTreeMap::new();
    for name in list[..n].split(|b| *b == 0) {
        let name = String::from_utf8_lossy(name).into_owned();
        if name.starts_with("user.") {
            let mut value = vec![0; XATTR_ROOM];
            let n = rustix::fs::lgetxattr(path, &name, &mut value)?;
            value.truncate(n);
            all.insert(name, value);
        }
    }
    Ok(all)
}

/// Sets the times of everything below `model` and `mount` to the same, derived from the names; so that they can be
/// compared later. Nothing may be at work in either.
///
/// # Panics
/// When a time cannot be set.
pub fn same_times(model: &Path, mount: &Path) {
    for entry in WalkDir::new(model).into_iter().filter_map(Result::ok) {
        let Ok(name) = entry.path().strip_prefix(model) else {
            continue;
        };
        let sum = name
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(7u32, |sum, b| {
                sum.wrapping_mul(31).wrapping_add(u32::from(*b))
            });
        let time = Timespec {
            tv_sec: i64::from(sum),
            tv_nsec: i64::from(sum % 1_000_000_000),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        for root in [model, mount] {
            let path = root.join(name);
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .unwrap_or_else(|e| panic!("utimens {}: {e}", path.display()));
        }
    }
}

/// Everything but times: names, kinds, modes, owners, sizes, links, targets, attributes, contents. With `prefix` only
/// names that begin with it, and what lies below them.
///
/// # Errors
/// The first differences, in words.
pub fn compare_now(model: &Path, mount: &Path, prefix: Option<&str>) -> Result<(), String> {
    let (a, b) = (tree(model, prefix)?, tree(mount, prefix)?);
    let mut wrong = Vec::new();
    for (name, entry) in &a {
        match b.get(name) {
            None => wrong.push(format!("{name} is missing on the mount")),
            Some(other) if other != entry => {
                wrong.push(format!("{name}\n  model: {entry:?}\n  mount: {other:?}"));
            }
            Some(_) => {}
        }
    }
    wrong.extend(
        b.keys()
            .filter(|name| !a.contains_key(*name))
            .map(|name| format!("{name} is on the mount only")),
    );
    for name in a.keys() {
        if wrong.len() < 10
            && let Err(e) = same_contents(&model.join(name), &mount.join(name))
        {
            wrong.push(format!("{name}: {e}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} differences between {} and {}:\n{}",
        wrong.len(),
        model.display(),
        mount.display(),
        wrong[..wrong.len().min(10)].join("\n")
    ))
}

/// What is compared of an inode beside its contents.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    links: u64,
    target: Option<String>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same inode.
    same_as: String,
}

fn is_refused(error: &walkdir::Error) -> bool {
    error
        .io_error()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

fn tree(root: &Path, prefix: Option<&str>) -> Result<BTreeMap<String, Entry>, String> {
    let mut first = BTreeMap::new();
    let mut all = BTreeMap::new();
    let is_wanted = |entry: &walkdir::DirEntry| {
        entry.depth() != 1
            || prefix.is_none_or(|p| entry.file_name().to_string_lossy().starts_with(p))
    };
    let walk = WalkDir::new(root).min_depth(1).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(is_wanted) {
        let entry = match entry {
            Ok(entry) => entry,
            // A folder that this user may not read is compared as far as it can be seen.
            Err(e) if is_refused(&e) => continue,
            Err(e) => return Err(format!("walking {}: {e}", root.display())),
        };
        let path = entry.path();
        let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let m = match entry.metadata() {
            Ok(m) => m,
            // Of a folder that this user may read and not search only the names are known; both sides listed them.
            Err(e) if is_refused(&e) => continue,
            Err(e) => return Err(wrong(&e)),
        };
        let name = path
            .strip_prefix(root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned();
        let target = if m.is_symlink() {
            let target = std::fs::read_link(path).map_err(|e| wrong(&e))?;
            Some(target.to_string_lossy().into_owned())
        } else {
            None
        };
        let found = Entry {
            mode: m.mode(),
            owner: (m.uid(), m.gid()),
            size: if m.is_dir() { 0 } else { m.len() },
            links: m.nlink(),
            target,
            xattrs: match xattrs(path) {
                Ok(all) => all,
                Err(Errno::ACCESS) => BTreeMap::new(),
                Err(e) => return Err(wrong(&e)),
            },
            same_as: first.entry(m.ino()).or_insert_with(|| name.clone()).clone(),
        };
        all.insert(name, found);
    }
    Ok(all)
}

fn same_contents(model: &Path, mount: &Path) -> Result<(), String> {
    if !model.symlink_metadata().is_ok_and(|m| m.is_file()) {
        return Ok(());
    }
    let read = |path: &Path| std::fs::read(path).map_err(|e| e.kind());
    match (read(model), read(mount)) {
        (Ok(a), Ok(b)) => {
            let at = a.iter().zip(&b).position(|(a, b)| a != b);
            match at {
                Some(at) => Err(format!("contents differ from byte {at} on")),
                None if a.len() != b.len() => Err(format!(
                    "{} bytes in the model, {} on the mount",
                    a.len(),
                    b.len()
                )),
                None => Ok(()),
            }
        }
        (Err(a), Err(b)) if a == b => Ok(()),
        (a, b) => Err(format!(
            "reading: model {:?}, mount {:?}",
            a.map(|a| a.len()),
            b.map(|b| b.len())
        )),
    }
}
