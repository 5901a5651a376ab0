//! The machine: what a test needs of it, commands with a time limit, temporary folders.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Free bytes a temporary folder must have: the largest test keeps 2 GiB twice, and a store beside it.
const FREE_MIN: u64 = 8 << 30;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Tests of one binary run one at a time: they share the disk, the cores and the page cache, and compare counters.
/// Also checks that the machine has what every test needs.
///
/// # Panics
/// Without root, `/dev/fuse` or io_uring, saying which.
pub fn serial() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests mount a file system: run them as root"
    );
    assert!(
        Path::new("/dev/fuse").exists(),
        "/dev/fuse is missing: load the fuse module (modprobe fuse)"
    );
    let disabled =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    assert!(
        matches!(disabled.trim(), "" | "0"),
        "io_uring is disabled: sysctl -w kernel.io_uring_disabled=0"
    );
    guard
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    let mut at = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    at.pop();
    at
}

/// A fresh folder under the system's temporary one, on a disk with room.
///
/// # Panics
/// When there is not enough space.
pub fn temp_dir(what: &str) -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix(&format!("fastcache-{what}-"))
        .tempdir()
        .unwrap_or_else(|e| panic!("no temporary folder: {e}"));
    let stat = rustix::fs::statvfs(dir.path()).unwrap_or_else(|e| panic!("statvfs: {e}"));
    let free = stat.f_bavail * stat.f_frsize;
    assert!(
        free >= FREE_MIN,
        "{} has {} MiB free; the tests need {} MiB (TMPDIR chooses another place)",
        dir.path().display(),
        free >> 20,
        FREE_MIN >> 20
    );
    dir
}

/// A binary of this project: from `FASTCACHE_BIN_DIR`, else built now with the release profile.
///
/// # Panics
/// When it cannot be built or is not there.
pub fn program(name: &str) -> PathBuf {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = built.get_or_insert_with(|| {
        if let Some(dir) = std::env::var_os("FASTCACHE_BIN_DIR") {
            return PathBuf::from(dir);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(Command::new(cargo).current_dir(repository()).args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "fastcache-ctl",
            "-p",
            "fastcache-data",
        ]));
        repository().join("target/release")
    });
    let path = dir.join(name);
    assert!(path.exists(), "{} is not there: make build", path.display());
    path
}

/// Runs a command to its end; panics with its output when it fails.
///
/// # Panics
/// When it cannot be started or does not succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let out = output_of(command);
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn output_of(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| {
        panic!(
            "{:?} cannot be started: {e} (tests/setup/install.sh installs it)",
            command.get_program()
        )
    })
}

/// Waits until `is_so` or `limit` has passed.
///
/// # Panics
/// When the time is over, naming what was waited for.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes back what is dirty and drops the kernel's clean pages, so that the next read asks the file system.
///
/// # Panics
/// Without root.
pub fn drop_page_cache() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap_or_else(|e| panic!("drop_caches: {e}"));
}

/// Closes a file and says what `close(2)` said; dropping it would not.
///
/// # Errors
/// What the system call returns.
pub fn close(file: std::fs::File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd as _;
    let descriptor = file.into_raw_fd();
    // SAFETY: `into_raw_fd` gave up ownership, so nobody else closes or uses this descriptor.
    if unsafe { libc::close(descriptor) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Gives this thread a table of open files of its own. A process that another thread starts gets a copy of all that is
/// open, and closes it before it begins: each close is a flush, which waits as long as the file system does, and what is
/// to be started may be what it waits for.
///
/// # Panics
/// When the kernel refuses.
pub fn have_own_files() {
    // SAFETY: what is open now stays open in both tables; this thread passes no descriptor that it opens to another one.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }
        .unwrap_or_else(|e| panic!("a table of open files of its own: {e}"));
}

/// A TCP port of 127.0.0.1 that was free a moment ago. None of those that the kernel gives to outgoing connections:
/// somebody's could take it before whom it is for.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.unwrap_or_else(|e| panic!("ip_local_port_range: {e}"));
    let end: u16 = range
        .split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .filter(|end| *end > FIRST)
        .unwrap_or(u16::MAX);
    (0..1000)
        .map(|_| rand::random_range(FIRST..end))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("no free port")
}

/// The value of an environment variable, or this.
///
/// # Panics
/// When it is not a number.
#[track_caller]
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
    })
}

/// The seed of a test: what the environment says. Where the variable `long` asks for the long form, a random one, so that
/// each run finds something else; the short form is the same each time, so that `make test` says the same twice.
///
/// # Panics
/// When it is not a number.
#[track_caller]
pub fn seed(name: &str, long: &str) -> u64 {
    let is_long = std::env::var_os(long).is_some();
    number(
        name,
        if is_long {
            rand::random::<u32>().into()
        } else {
            1
        },
    )
}
