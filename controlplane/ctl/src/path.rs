//! What PATH on the command line means: a path under the mount, or relative to the root of fastcache.

use crate::settings::UsageError;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The names from the root of fastcache, joined by `/`; empty for the root itself.
///
/// An absolute path must be below `mount` (which `None` means: not known). A relative path counts from the root of
/// fastcache, except where it leads under the mount from where the shell stands (`cwd`): then it means that, as for any
/// program.
/// `..` is resolved as text; the file system is not asked, because it may be the one that does not answer.
pub fn below_root(path: &Path, mount: Option<&Path>, cwd: &Path) -> Result<Vec<u8>, UsageError> {
    if path.as_os_str().is_empty() {
        return Err(UsageError("PATH is empty".to_owned()));
    }
    let mount = mount.map(clean);
    let inside = |p: &Path| {
        let mount = mount.as_ref()?;
        clean(p).strip_prefix(mount).ok().map(Path::to_path_buf)
    };
    let relative = if path.is_absolute() {
        match inside(path) {
            Some(relative) => relative,
            None => {
                return Err(UsageError(match &mount {
                    Some(mount) => format!(
                        "{} is not below the mount {}; name a path there, or one relative to the \
                         root of fastcache",
                        path.display(),
                        mount.display()
                    ),
                    None => format!(
                        "{}: with --port the mount is not known; name a path relative to the root \
                         of fastcache, or use --dir",
                        path.display()
                    ),
                }));
            }
        }
    } else {
        if let Some(relative) = inside(&cwd.join(path)) {
            return Ok(relative.as_os_str().as_bytes().to_vec());
        }
        let mut out = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => out.push(name),
                Component::ParentDir if !out.pop() => {
                    return Err(UsageError(format!(
                        "{} leaves the root of fastcache",
                        path.display()
                    )));
                }
                _ => {}
            }
        }
        out
    };
    Ok(relative.as_os_str().as_bytes().to_vec())
}

/// An absolute path without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_the_mount_or_relative_to_the_root() {
        let mount = Some(Path::new("/mnt/x"));
        let ok = |path: &str, cwd: &str| {
            String::from_utf8(below_root(path.as_ref(), mount, cwd.as_ref()).unwrap()).unwrap()
        };
        assert_eq!(ok("/mnt/x/a/b", "/"), "a/b");
        assert_eq!(ok("/mnt/x", "/"), "");
        assert_eq!(ok("/mnt/x/", "/"), "");
        assert_eq!(ok("/mnt/./x/a/../b", "/"), "b");
        assert_eq!(ok("a/b", "/home"), "a/b");
        assert_eq!(ok("./a//b/", "/home"), "a/b");
        assert_eq!(ok("a/../b", "/home"), "b");
        assert_eq!(ok("b", "/mnt/x/a"), "a/b");
        assert_eq!(ok("../b", "/mnt/x/a"), "b");
        assert_eq!(ok("x/a", "/mnt"), "a");
        assert_eq!(ok("y/a", "/mnt"), "y/a");
        assert_eq!(ok(".", "/home"), "");
    }

    #[test]
    fn what_is_elsewhere_is_refused() {
        let mount = Some(Path::new("/mnt/x"));
        for (path, cwd) in [
            ("/etc/passwd", "/"),
            ("/mnt/xy/a", "/"),
            ("/mnt/x/../y", "/"),
            ("..", "/home"),
            ("a/../../b", "/home"),
            ("../../b", "/mnt/x/a"),
            ("", "/"),
        ] {
            assert!(
                below_root(path.as_ref(), mount, cwd.as_ref()).is_err(),
                "{path} in {cwd}"
            );
        }
        assert!(below_root("/mnt/x/a".as_ref(), None, "/".as_ref()).is_err());
        assert_eq!(below_root("a".as_ref(), None, "/".as_ref()).unwrap(), b"a");
    }
}
