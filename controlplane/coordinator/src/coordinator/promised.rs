//! How long a lease may be that an earlier run of the coordinator gave: `--lease` can be another one now.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest lease that may be out, in a file of the state directory.
pub(super) struct PromisedLease {
    path: PathBuf,
    before: Duration,
    now: Duration,
}

impl PromisedLease {
    /// Notes that leases of this length are given from now on, beside those of before.
    pub(super) fn open(dir: &Path, now: Duration) -> std::io::Result<PromisedLease> {
        let path = dir.join("lease-ms");
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => Duration::from_millis(text.trim().parse().map_err(|e| {
                std::io::Error::new(
                    ErrorKind::InvalidData,
                    format!(
                        "{}: {e}; write the longest --lease of before there, in milliseconds",
                        path.display()
                    ),
                )
            })?),
            Err(e) if e.kind() == ErrorKind::NotFound => Duration::ZERO,
            Err(e) => return Err(e),
        };
        let promised = PromisedLease { path, before, now };
        if before < now {
            promised.write(now)?;
        }
        Ok(promised)
    }

    /// The longest that may be out.
    pub(super) fn longest(&self) -> Duration {
        self.before.max(self.now)
    }

    /// None of before is out any more.
    pub(super) fn is_over(&self) {
        if self.before > self.now
            && let Err(error) = self.write(self.now)
        {
            tracing::warn!(target: "registry", %error, "the length of leases cannot be noted: the next start waits longer than it has to");
        }
    }

    fn write(&self, lease: Duration) -> std::io::Result<()> {
        let text = format!("{}\n", lease.as_millis());
        crate::replace_file(&self.path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_lease_is_known_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let second = Duration::from_secs(1);
        let open = |lease| PromisedLease::open(dir.path(), lease).unwrap();
        assert_eq!(open(10 * second).longest(), 10 * second);
        let shorter = open(2 * second);
        assert_eq!(shorter.longest(), 10 * second);
        // Killed before it was over.
        assert_eq!(open(2 * second).longest(), 10 * second);
        shorter.is_over();
        assert_eq!(open(2 * second).longest(), 2 * second);
        assert_eq!(open(30 * second).longest(), 30 * second);
        std::fs::write(dir.path().join("lease-ms"), "soon").unwrap();
        let refused = PromisedLease::open(dir.path(), second).err().unwrap();
        assert!(refused.to_string().contains("lease-ms"), "{refused}");
    }
}
