//! `tune`: the limits of the host that cost speed. `--check` (the default) looks, which anybody may; `--apply` changes
//! what is not as it should be, says what it changed, and how to make that outlive the next boot.
//!
//! Ends with 0 when everything is as it should be, 1 when something costs speed (or could not be changed), 2 when it
//! was not understood.

use super::{NOT_WELL, print_json};
use crate::node_file::NodeFile;
use crate::output::say;
use crate::up::mount_point::fastcache_mounts;
use clap::Args;
use serde::Serialize;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Readahead the data plane sets when it mounts, KiB.
const READ_AHEAD_KIB: u64 = 4096;
/// Pages of the largest request the data plane asks for: 1 MiB.
const MAX_PAGES: u64 = 256;
/// Capability of whom the limit of locked memory does not bind (`CAP_IPC_LOCK`).
const CAP_IPC_LOCK: u32 = 14;
/// Capability of whom `kernel.io_uring_disabled = 1` does not bind (`CAP_SYS_ADMIN`).
const CAP_SYS_ADMIN: u32 = 21;

/// `tune`.
#[derive(Clone, Debug, Args)]
pub struct TuneFlags {
    /// Only look; the default
    #[arg(long, conflicts_with = "apply")]
    pub check: bool,
    /// Change what is not as it should be; needs root
    #[arg(long)]
    pub apply: bool,
    /// The DIR of a node: its mount and its processes are looked at, too
    #[arg(long, value_name = "DIR", env = "FASTCACHE_DIR")]
    pub dir: Option<PathBuf>,
    /// Mount to look at [default: that of --dir, or every mount of fastcache on this machine]
    #[arg(long, value_name = "DIR")]
    pub mount: Vec<PathBuf>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Limit {
    /// What it is.
    name: String,
    /// What it is now; `None` when this kernel does not have it or hides it.
    now: Option<String>,
    /// What it should be.
    want: String,
    /// Whether it is.
    is_good: bool,
    /// What it gains.
    gain: &'static str,
    /// What to type.
    command: String,
    /// What makes it last.
    permanent: String,
    /// The file to write `write` to, where that is all there is to do.
    #[serde(skip)]
    file: Option<PathBuf>,
    #[serde(skip)]
    write: String,
    /// What `--apply` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<String>,
}

/// Where the kernel tells and takes its settings.
struct Host {
    proc: PathBuf,
    sys: PathBuf,
}

impl Host {
    fn this() -> Host {
        Host {
            proc: "/proc".into(),
            sys: "/sys".into(),
        }
    }

    /// A setting that is one word or number.
    fn word(path: &Path) -> Option<String> {
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// A setting where one of several words is chosen: `always [madvise] never`.
    fn chosen(path: &Path) -> Option<String> {
        let all = Host::word(path)?;
        let chosen = all.split_once('[')?.1.split_once(']')?.0;
        Some(chosen.to_owned())
    }

    fn choice(
        &self,
        file: &str,
        name: &str,
        good: &[&str],
        want: &str,
        gain: &'static str,
    ) -> Limit {
        let path = self.sys.join(file);
        let now = Host::chosen(&path);
        let shown = path.display();
        Limit {
            name: name.to_owned(),
            is_good: now.as_deref().is_none_or(|now| good.contains(&now)),
            now,
            want: want.to_owned(),
            gain,
            command: format!("echo {want} > {shown}"),
            permanent: format!(
                "a line `w {shown} - - - - {want}` in /etc/tmpfiles.d/fastcache.conf"
            ),
            file: Some(path.clone()),
            write: want.to_owned(),
            applied: None,
        }
    }

    fn huge_pages(&self) -> [Limit; 2] {
        [
            self.choice(
                "kernel/mm/transparent_hugepage/enabled",
                "huge pages for buffers",
                &["madvise", "always"],
                "madvise",
                "large reads and writes of the device: buffers on 2 MiB pages instead of 4 KiB ones",
            ),
            self.choice(
                "kernel/mm/transparent_hugepage/shmem_enabled",
                "huge pages for the memory both planes share",
                &["advise", "within_size", "always", "force"],
                "advise",
                "uploads, fetches and REST: fewer page faults on the arena; takes effect when the planes connect anew",
            ),
        ]
    }

    fn max_pages(&self) -> Limit {
        let path = self.proc.join("sys/fs/fuse/max_pages_limit");
        let now = Host::word(&path);
        let is_enough = |now: &String| now.parse::<u64>().is_ok_and(|n| n >= MAX_PAGES);
        Limit {
            name: "fs.fuse.max_pages_limit".to_owned(),
            // Kernels before 6.13 have no such limit but 256, which is enough.
            is_good: now.as_ref().is_none_or(is_enough),
            now,
            want: format!("{MAX_PAGES} or more"),
            gain: "requests of 1 MiB instead of smaller ones; takes effect at the next mount",
            command: format!("sysctl -w fs.fuse.max_pages_limit={MAX_PAGES}"),
            permanent: format!(
                "a line `fs.fuse.max_pages_limit = {MAX_PAGES}` in /etc/sysctl.d/90-fastcache.conf"
            ),
            file: Some(path),
            write: MAX_PAGES.to_string(),
            applied: None,
        }
    }

    fn io_uring(&self, capabilities: u64) -> Limit {
        let path = self.proc.join("sys/kernel/io_uring_disabled");
        let now = Host::word(&path);
        let has_admin = capabilities & (1 << CAP_SYS_ADMIN) != 0;
        let is_good = match now.as_deref() {
            None | Some("0") => true,
            Some("1") => has_admin,
            Some(_) => false,
        };
        Limit {
            name: "kernel.io_uring_disabled".to_owned(),
            is_good,
            now,
            want: "0".to_owned(),
            gain: "the data plane cannot start without io_uring; a container's seccomp profile can forbid it, too (Docker's default does)",
            command: "sysctl -w kernel.io_uring_disabled=0".to_owned(),
            permanent: "a line `kernel.io_uring_disabled = 0` in /etc/sysctl.d/90-fastcache.conf"
                .to_owned(),
            file: Some(path),
            write: "0".to_owned(),
            applied: None,
        }
    }

    fn enable_uring(&self) -> Limit {
        let now = Host::word(&self.sys.join("module/fuse/parameters/enable_uring"));
        Limit {
            name: "FUSE over io_uring (fuse.enable_uring)".to_owned(),
            is_good: true,
            now,
            want: "any: this version serves /dev/fuse".to_owned(),
            gain: "none yet",
            command: String::new(),
            permanent: String::new(),
            file: None,
            write: String::new(),
            applied: None,
        }
    }

    /// The limit of locked memory, of a running data plane or of this shell.
    fn locked_memory(&self, pid: Option<i32>) -> Limit {
        let who = pid.map_or("self".to_owned(), |pid| pid.to_string());
        let limits = Host::word(&self.proc.join(&who).join("limits"));
        let now = limits.as_deref().and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("Max locked memory"))?;
            line.split_whitespace().nth(3).map(str::to_owned)
        });
        let is_free = self.capabilities(&who) & (1 << CAP_IPC_LOCK) != 0;
        let mut shown = now.clone();
        if let (Some(text), true) = (&mut shown, is_free) {
            text.push_str(" (does not bind: CAP_IPC_LOCK)");
        }
        Limit {
            name: match pid {
                Some(pid) => format!("locked memory of the data plane (process {pid})"),
                None => "locked memory of what is started here".to_owned(),
            },
            is_good: is_free || now.as_deref().is_none_or(|n| n == "unlimited"),
            now: shown,
            want: "unlimited".to_owned(),
            gain: "registered buffers: less work for each read and write of the device",
            command: "ulimit -l unlimited, in the shell that starts the node".to_owned(),
            permanent: "LimitMEMLOCK=infinity in the systemd unit, or `* - memlock unlimited` in /etc/security/limits.conf".to_owned(),
            file: None,
            write: String::new(),
            applied: None,
        }
    }

    /// Effective capabilities of a process.
    fn capabilities(&self, who: &str) -> u64 {
        let status = Host::word(&self.proc.join(who).join("status")).unwrap_or_default();
        status
            .lines()
            .find_map(|l| l.strip_prefix("CapEff:"))
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .unwrap_or(0)
    }

    fn read_ahead(&self, mount: &Path) -> Limit {
        // statx of a mount whose data plane is away fails; of one that hangs it would hang: mountinfo answers always.
        let dev = self.device_of(mount);
        let file = dev.map(|(major, minor)| {
            self.sys
                .join(format!("class/bdi/{major}:{minor}/read_ahead_kb"))
        });
        let now = file.as_deref().and_then(Host::word);
        let is_enough = |now: &String| now.parse::<u64>().is_ok_and(|n| n >= READ_AHEAD_KIB);
        let shown = file
            .as_ref()
            .map_or_else(String::new, |f| f.display().to_string());
        Limit {
            name: format!("readahead of {}, KiB", mount.display()),
            is_good: now.as_ref().is_none_or(is_enough),
            now,
            want: READ_AHEAD_KIB.to_string(),
            gain: "sequential reads: several large requests in flight instead of one small one",
            command: format!("echo {READ_AHEAD_KIB} > {shown}"),
            permanent: "the data plane sets it whenever it mounts, if it may write /sys".to_owned(),
            file,
            write: READ_AHEAD_KIB.to_string(),
            applied: None,
        }
    }

    /// Device numbers of a mount.
    fn device_of(&self, mount: &Path) -> Option<(u64, u64)> {
        let table = std::fs::read_to_string(self.proc.join("self/mountinfo")).ok()?;
        let found = table.lines().rev().find_map(|line| {
            let mut fields = line.split(' ');
            let dev = fields.nth(2)?;
            (Path::new(fields.nth(1)?) == mount).then(|| dev.to_owned())
        });
        if let Some((major, minor)) = found.as_deref().and_then(|dev| dev.split_once(':')) {
            return Some((major.parse().ok()?, minor.parse().ok()?));
        }
        // Named in another way than the mount table does.
        let dev = std::fs::metadata(mount).ok()?.st_dev();
        Some((
            u64::from(rustix::fs::major(dev)),
            u64::from(rustix::fs::minor(dev)),
        ))
    }
}

/// `tune`.
pub fn tune(flags: &TuneFlags) -> anyhow::Result<ExitCode> {
    let host = Host::this();
    let node = match &flags.dir {
        Some(dir) => NodeFile::read(dir)?.filter(NodeFile::is_running),
        None => None,
    };
    let mut mounts = flags.mount.clone();
    if mounts.is_empty() {
        mounts = match &node {
            Some(node) => vec![node.mount.clone()],
            None => fastcache_mounts(),
        };
    }
    let mut limits: Vec<Limit> = host.huge_pages().into();
    limits.push(host.io_uring(host.capabilities("self")));
    limits.push(host.locked_memory(node.and_then(|n| n.data_pid)));
    limits.push(host.max_pages());
    limits.extend(mounts.iter().map(|mount| host.read_ahead(mount)));
    limits.push(host.enable_uring());
    if flags.apply {
        limits.iter_mut().for_each(apply);
    }
    if flags.json {
        print_json(&limits)?;
    } else {
        limits.iter().for_each(tell);
        let bad = limits.iter().filter(|l| !l.is_good).count();
        match (bad, flags.apply) {
            (0, _) => say!("nothing costs speed"),
            (n, false) => say!("{n} to change; tune --apply changes what it can"),
            (n, true) => say!("{n} could not be changed"),
        }
    }
    let is_good = limits.iter().all(|l| l.is_good);
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_WELL)
    })
}

/// Writes what is wanted, and looks whether it took.
fn apply(limit: &mut Limit) {
    if limit.is_good {
        return;
    }
    let Some(file) = &limit.file else {
        limit.applied = Some("has to be done by hand".to_owned());
        return;
    };
    let old = limit.now.clone().unwrap_or_default();
    if let Err(error) = std::fs::write(file, &limit.write) {
        limit.applied = Some(format!("could not be changed: {error}"));
        return;
    }
    let now = Host::chosen(file).or_else(|| Host::word(file));
    if now.as_deref() == Some(limit.write.as_str()) {
        limit.applied = Some(format!("changed from {old} to {}", limit.write));
        limit.is_good = true;
        limit.now = now;
    } else {
        limit.applied = Some("the kernel did not take it".to_owned());
    }
}

fn tell(limit: &Limit) {
    let mark = if limit.is_good { "ok   " } else { "SLOW " };
    let now = limit.now.as_deref().unwrap_or("not there");
    say!("{mark} {}: {now}", limit.name);
    if let Some(applied) = &limit.applied {
        say!("        {applied}");
    }
    let was_changed = limit.applied.is_some();
    if !limit.is_good {
        say!("        should be {}: {}", limit.want, limit.gain);
        say!("        now:     {}", limit.command);
    }
    if !limit.is_good || was_changed {
        say!("        for good: {}", limit.permanent);
    }
}

#[cfg(test)]
mod tests {
    //! A host made of files: what each setting is judged as, and what is written.
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempdir::Dir, Host) {
        let dir = tempdir::Dir::new();
        for (path, text) in files {
            let path = dir.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let host = Host {
            proc: dir.0.join("proc"),
            sys: dir.0.join("sys"),
        };
        (dir, host)
    }

    mod tempdir {
        /// A directory that goes with the test.
        pub(super) struct Dir(pub(super) std::path::PathBuf);
        impl Dir {
            pub(super) fn new() -> Dir {
                let name = format!(
                    "fastcache-tune-{}-{:x}",
                    std::process::id(),
                    rand::random::<u64>()
                );
                let dir = std::env::temp_dir().join(name);
                std::fs::create_dir(&dir).unwrap();
                Dir(dir)
            }
        }
        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    const LIMITS: &str =
        "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n";

    #[test]
    fn each_setting_is_judged() {
        let (_dir, host) = host(&[
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always madvise [never]\n",
            ),
            (
                "sys/kernel/mm/transparent_hugepage/shmem_enabled",
                "always within_size [advise] never deny force\n",
            ),
            ("proc/sys/fs/fuse/max_pages_limit", "32\n"),
            ("proc/sys/kernel/io_uring_disabled", "1\n"),
            ("proc/self/limits", LIMITS),
            ("proc/self/status", "CapEff:\t0000000000000000\n"),
            (
                "proc/self/mountinfo",
                "30 1 0:41 / /mnt/f rw - fuse.fastcache fastcache rw\n",
            ),
            ("sys/class/bdi/0:41/read_ahead_kb", "128\n"),
        ]);
        let [buffers, shared] = host.huge_pages();
        assert!(!buffers.is_good && shared.is_good);
        assert_eq!(buffers.now.as_deref(), Some("never"));
        assert!(!host.max_pages().is_good);
        assert!(!host.io_uring(0).is_good);
        assert!(host.io_uring(1 << CAP_SYS_ADMIN).is_good);
        let locked = host.locked_memory(None);
        assert_eq!(
            (locked.is_good, locked.now.as_deref()),
            (false, Some("8388608"))
        );
        let mut ahead = host.read_ahead(Path::new("/mnt/f"));
        assert_eq!((ahead.is_good, ahead.now.as_deref()), (false, Some("128")));
        apply(&mut ahead);
        assert!(ahead.is_good);
        assert_eq!(ahead.applied.as_deref(), Some("changed from 128 to 4096"));
        assert!(host.read_ahead(Path::new("/mnt/f")).is_good);
    }

    #[test]
    fn what_the_kernel_does_not_have_is_no_fault() {
        let (_dir, host) = host(&[
            ("proc/self/status", "CapEff:\t000001ffffffffff\n"),
            ("proc/self/limits", LIMITS),
        ]);
        assert!(
            host.huge_pages()
                .iter()
                .all(|l| l.is_good && l.now.is_none())
        );
        assert!(host.max_pages().is_good && host.io_uring(0).is_good);
        let locked = host.locked_memory(None);
        assert!(locked.is_good, "CAP_IPC_LOCK: {:?}", locked.now);
        let mut nothing = locked;
        nothing.is_good = false;
        apply(&mut nothing);
        assert!(!nothing.is_good && nothing.applied.is_some());
    }
}
