//! Whether the machine was started again since the run before: then what was not on stable storage is gone.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where the kernel says it (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The boot of the last run whose start was completed, in a file of the state directory.
pub(super) struct Boot {
    path: PathBuf,
    before: Option<String>,
    /// Empty where the kernel does not say it: then each start may be the first.
    now: String,
}

impl Boot {
    /// Reads which it was.
    pub(super) fn open(dir: &Path) -> std::io::Result<Boot> {
        let path = dir.join("boot-id");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let now = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        let now = now.trim().to_owned();
        Ok(Boot { path, before, now })
    }

    /// Whether it is the same one: the operating system has had everything since.
    pub(super) fn is_same(&self) -> bool {
        !self.now.is_empty() && self.before.as_ref() == Some(&self.now)
    }

    /// From now on it is this one. On stable storage when it returns.
    pub(super) fn note(&self) -> std::io::Result<()> {
        if self.is_same() {
            return Ok(());
        }
        crate::replace_file(&self.path, format!("{}\n", self.now).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_the_same_one_when_it_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Boot::open(dir.path()).unwrap();
        assert!(!open().is_same());
        open().note().unwrap();
        assert!(open().is_same());
        std::fs::write(dir.path().join("boot-id"), "another\n").unwrap();
        assert!(!open().is_same());
        open().note().unwrap();
        assert!(open().is_same());
        let nowhere = Boot {
            now: String::new(),
            ..open()
        };
        nowhere.note().unwrap();
        assert!(!nowhere.is_same());
    }
}
